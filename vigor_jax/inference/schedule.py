"""Who is where: prompts in rows, candidates in slots, their tokens in pages; decided on the host, without a device.

Each part of the mesh has its own `Part`. All processes take the same decisions, because all see the same tokens.
"""

import collections
import dataclasses
import heapq
from typing import Any

import numpy as np

from vigor_jax.inference.kv_cache import BLOCK, PAGE, Slots


@dataclasses.dataclass
class Usage:
    """What decoding did, and how much of it was of use.

    Attributes:
      steps: of candidates: each slot takes part in each step, whether a candidate needs it or not.
      useful_steps: those that added a token which its candidate kept.
      tokens_read: of candidates whose keys and values were read, those of no candidate and after its end included.
      live_tokens_read: of these, the candidates' own tokens, for a token that was kept.
      prompts_read: prompts that went through prefill, those that only fill a batch up included.
      useful_prompts: without these.
    """

    steps: int = 0
    useful_steps: int = 0
    tokens_read: int = 0
    live_tokens_read: int = 0
    prompts_read: int = 0
    useful_prompts: int = 0

    @property
    def useful(self) -> float:
        """Share of the steps of candidates that were useful."""
        return self.useful_steps / max(self.steps, 1)

    @property
    def live(self) -> float:
        """Share of the candidates' tokens read that were live."""
        return self.live_tokens_read / max(self.tokens_read, 1)

    @property
    def prefill(self) -> float:
        """Share of the prompts read that were no filling."""
        return self.useful_prompts / max(self.prompts_read, 1)


@dataclasses.dataclass(eq=False)
class Candidate:
    """One response under way.

    Attributes:
      group: of an image, whatever the caller knows it by.
      index: among those of its image.
      row: of its prompt.
      token_ids: so far.
      logprobs: of them.
      pages: of its tokens but for those of the last call.
      has_ended: and so needs no slot any more.
    """

    group: Any
    index: int
    row: int
    token_ids: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))
    logprobs: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.float32))
    pages: list[int] = dataclasses.field(default_factory=list)
    has_ended: bool = False


class Part:
    """Rows, slots and pages of one part of the mesh. The lowest free ones are taken, so that few pages are read.

    Args:
      num_rows: of prompts.
      num_slots: of candidates.
      num_candidates: of each prompt.
      num_pages: that all slots can need.
    """

    def __init__(self, num_rows: int, num_slots: int, num_candidates: int, num_pages: int) -> None:
        self._shape = num_rows, num_candidates
        self._free_rows, self._free_pages = list(range(num_rows)), list(range(num_pages))
        self._left = [0] * num_rows  # candidates of each row that have not ended
        self._ready: collections.deque[Candidate] = collections.deque()
        self.slots: list[Candidate | None] = [None] * num_slots

    @property
    def free_rows(self) -> int:
        """Prompts that there is room for."""
        return len(self._free_rows)

    @property
    def starves(self) -> bool:
        """Whether a slot is empty, and no candidate waits for it."""
        return len(self._ready) < self.slots.count(None)

    @property
    def pages_reach(self) -> int:
        """Pages, from the first, among which all are that a candidate has."""
        return 1 + max((page for candidate in self.slots if candidate for page in candidate.pages), default=-1)

    def add(self, group: Any) -> int:
        """The row for a prompt, whose candidates now wait for slots."""
        row = heapq.heappop(self._free_rows)
        num_candidates = self._shape[1]
        self._left[row] = num_candidates
        self._ready.extend(Candidate(group, index, row) for index in range(num_candidates))
        return row

    def place(self, num_tokens: int) -> np.ndarray:
        """Gives candidates in slots a page for what the last call added, and empty slots candidates.

        Args:
          num_tokens: that it added to each.

        Returns:
          The page for each slot, int32; one too many for none.
        """
        pages = np.full(len(self.slots), np.iinfo(np.int32).max, np.int32)
        for slot, candidate in enumerate(self.slots):
            if candidate is not None:
                assert num_tokens == PAGE, "only a last call is short"
                candidate.pages.append(heapq.heappop(self._free_pages))
                pages[slot] = candidate.pages[-1]
            elif self._ready:
                self.slots[slot] = self._ready.popleft()
        return pages

    def release(self) -> None:
        """Takes candidates that have ended out of their slots; a prompt that has no other is given up, too."""
        for slot, candidate in enumerate(self.slots):
            if candidate is not None and candidate.has_ended:
                self.slots[slot] = None
                for page in candidate.pages:
                    heapq.heappush(self._free_pages, page)
                self._left[candidate.row] -= 1
                if not self._left[candidate.row]:
                    heapq.heappush(self._free_rows, candidate.row)

    def tables(self, pages: np.ndarray, num_blocks: int) -> Slots:
        """What the device has to know: `pages` are what `place` gave, owners those of the first `num_blocks` blocks."""
        num_slots = len(self.slots)
        rows, candidates, num_tokens = np.zeros((3, num_slots), np.int32)
        done, of_rows = np.ones(num_slots, bool), np.zeros(self._shape, np.int32)
        owners = np.full(num_blocks * BLOCK, num_slots, np.int32)
        for slot, candidate in enumerate(self.slots):
            if candidate is not None:
                rows[slot], candidates[slot] = candidate.row, candidate.index
                num_tokens[slot], done[slot] = max(1, len(candidate.token_ids)), False
                of_rows[candidate.row, candidate.index] = slot
                owners[candidate.pages] = slot
        return Slots(rows, candidates, num_tokens, done, pages, of_rows, owners.reshape(-1, BLOCK))  # type: ignore[arg-type]
