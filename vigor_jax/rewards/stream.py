"""What a reward is to the loop: candidates of an image in, signals with their places in the text out.

The detector (`detection.py`) and the reward model (`reward_model.py`) are two streams; fusion, selection and refinement
know nothing else about them. docs/rewards.md writes a third one.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Literal, Protocol, TypeAlias, get_args

from vigor_jax.errors import InputError
from vigor_jax.records import ScoreItem, Verdict

Credit: TypeAlias = Literal["words", "sentence", "response"]


class RewardStream(Protocol):
    """Judges candidates.

    Attributes:
      name: of the stream; its verdicts are kept in `verdicts/NAME/`.
      digest: of all that its verdicts depend on; verdicts on disk made with another one are refused.

    Three more may stand in a class: `uses_devices = True` says that it computes on the devices of all processes, which
    then judge each part together, and it is made with the keyword `mesh`; `needs = ("detector",)` names streams that
    judge first, and whose verdicts it finds in `ScoreItem.verdicts`; `credit` says which tokens of a response its
    signals are about (`credit_of`).
    """

    name: str
    digest: str

    def judge(self, items: Iterable[ScoreItem]) -> Iterator[list[Verdict]]:
        """Verdicts on the texts of each item, in the order of the items and of their texts.

        Items are read ahead of the results, as many as keep the stream's device busy.

        Raises:
          InputError: an image cannot be read, or the stream's service cannot be reached; names it.
        """


def credit_of(stream: Any) -> Credit:
    """Which tokens get what a stream, or its class, says: those of its spans, "words", if it does not say.

    "sentence": a signal is about what its span says as a whole, and is put on the span's last token. "response": it is
    about the whole response, and is put on the last token of all.

    Raises:
      InputError: it says something else.
    """
    credit: Credit = getattr(stream, "credit", "words")
    if credit not in get_args(Credit):
        name = getattr(stream, "name", stream)
        raise InputError(f"stream {name}: credit: expected one of {', '.join(get_args(Credit))}, got {credit!r}")
    return credit
