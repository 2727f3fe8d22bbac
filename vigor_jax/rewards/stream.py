"""What a reward is to the loop: candidates of an image in, signals with their places in the text out.

The detector (`detection.py`) and the reward model (`reward_model.py`) are two streams; fusion, selection and refinement
know nothing else about them. docs/rewards.md writes a third one.
"""

from collections.abc import Iterable, Iterator
from typing import Protocol

from vigor_jax.records import ScoreItem, Verdict


class RewardStream(Protocol):
    """Judges candidates.

    Attributes:
      name: of the stream; its verdicts are kept in `verdicts/NAME/`.
      digest: of all that its verdicts depend on; verdicts on disk made with another one are refused.

    Two more may stand in a class: `uses_devices = True` says that it computes on the devices of all processes, which
    then judge each part together, and it is made with the keyword `mesh`; `needs = ("detector",)` names streams that
    judge first, and whose verdicts it finds in `ScoreItem.verdicts`.
    """

    name: str
    digest: str

    def judge(self, items: Iterable[ScoreItem]) -> Iterator[list[Verdict]]:
        """Verdicts on the texts of each item, in the order of the items and of their texts.

        Items are read ahead of the results, as many as keep the stream's device busy.

        Raises:
          InputError: an image cannot be read, or the stream's service cannot be reached; names it.
        """
