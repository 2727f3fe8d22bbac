"""What the stages hand to each other; docs/artifacts.md shows an example of each.

Text is never searched for again once it has been analyzed: spans are offsets into a candidate's text.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple, Protocol, TypeAlias, get_args

ErrorType: TypeAlias = Literal["object", "attribute", "relationship", "location", "conjecture"]
ClaimKind: TypeAlias = Literal["number", "place", "relation", "attribute"]
CLAIM_KINDS: tuple[ClaimKind, ...] = get_args(ClaimKind)
DecidedBy: TypeAlias = Literal["content", "penalty", "positive", "repetition", "logprob", "index", "only", "random"]


class Span(NamedTuple):
    """Characters [start, end) of a text."""

    start: int
    end: int


class Edit(NamedTuple):
    """What makes a text true: `text` in place of the characters of `span`."""

    span: Span
    text: str


class PhraseScore(NamedTuple):
    """A phrase that a detector was asked for, and its best score, in [0, 1]."""

    phrase: str
    score: float


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One sampled response.

    Attributes:
      image: path below the image folder.
      prompt: what was asked.
      candidate: index among the responses to this image and prompt.
      text: the response.
      token_ids: its tokens, with the one that ended it.
      mean_logprob: mean over its tokens, under the model as it is.
      finish_reason: "stop", "length" or "repetition".
    """

    image: str
    prompt: str
    candidate: int
    text: str
    token_ids: tuple[int, ...]
    mean_logprob: float
    finish_reason: str


@dataclasses.dataclass(frozen=True)
class Signal:
    """What a reward stream says of one thing that a candidate states: a phrase, or a sentence.

    Attributes:
      label: the phrase; or the reward model's answer, such as "1" or "0 object".
      spans: where the candidate states it.
      negative: 0 or more; summed over a candidate's signals it is the stream's penalty.
      positive: 0 or more; breaks ties.
      score: as the stream gave it: detection score, p(good), or the verifier's cosine, 0 if negative; in [0, 1].
      absent: what the spans state is not so, mostly because the thing is not there: refinement drops the sentences
        that the spans lie in.
      boxes_xyxy: where it was found: corners relative to the image, in [0, 1], best first.
      denied: the caption says that it is not there. With `absent` it is there all the same: the caption is wrong.
      kind: of a claim: "number", "place", "relation" or "attribute"; "" for a phrase or a sentence.
      edits: what makes a wrong claim right, where that is known: disjoint, in the order of the text.
    """

    label: str
    spans: tuple[Span, ...]
    negative: float
    positive: float
    score: float
    absent: bool = False
    boxes_xyxy: tuple[tuple[float, float, float, float], ...] = ()
    denied: bool = False
    kind: str = ""
    edits: tuple[Edit, ...] = ()


@dataclasses.dataclass(frozen=True)
class Verdict:
    """All that one stream says of one candidate.

    Attributes:
      image: as in the candidate.
      candidate: as in the candidate.
      stream: name of the stream.
      signals: in the order of their first span.
      attributes: what a detector was asked about attributes: "red car", "blue car"; no signals.
    """

    image: str
    candidate: int
    stream: str
    signals: tuple[Signal, ...]
    attributes: tuple[PhraseScore, ...] = ()

    @property
    def negative(self) -> float:
        return sum(signal.negative for signal in self.signals)

    @property
    def positive(self) -> float:
        return sum(signal.positive for signal in self.signals)


@dataclasses.dataclass(frozen=True)
class Dropped:
    """A sentence that refinement left out: its place in the chosen text, and why (one line)."""

    span: Span
    reason: str


@dataclasses.dataclass(frozen=True)
class Repaired:
    """Words of the chosen text that refinement replaced: their place, what they were and are, and why (one line)."""

    span: Span
    old: str
    new: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Rollout:
    """One response that PPO learned from, with what it knew of each of its tokens.

    Attributes:
      image: as in a candidate.
      prompt: what was asked.
      candidate: index among the responses to this image and prompt.
      text: the response.
      token_ids: its tokens, with the one that ended it; all that follows has one number for each.
      token_spans: where each stands in the text; empty where it adds no letter.
      finish_reason: "stop", "length" or "repetition".
      logprobs: under the policy that drew them.
      ref_logprobs: under the policy that training began with.
      values: of the value head; empty without one.
      rewards: of the streams, before the divergence and the end are counted.
      advantages: as the update weighs them.
      verdicts: of each stream.
    """

    image: str
    prompt: str
    candidate: int
    text: str
    token_ids: tuple[int, ...]
    token_spans: tuple[Span, ...]
    finish_reason: str
    logprobs: tuple[float, ...]
    ref_logprobs: tuple[float, ...]
    values: tuple[float, ...]
    rewards: tuple[float, ...]
    advantages: tuple[float, ...]
    verdicts: tuple[Verdict, ...]


@dataclasses.dataclass(frozen=True)
class Selection:
    """What became of the candidates of one image.

    Attributes:
      image: as in the candidates.
      prompt: as in the candidates.
      candidate: the chosen one.
      decided_by: what told it from the next best: "content" (no other has any), "penalty", "positive", "repetition"
        (it repeats less), "logprob", "index"; "only" where there was no other; "random" in the controls.
      penalties: of each candidate, in their order.
      stream_penalties: the terms that the penalties are sums of: one row a candidate, one column a stream.
      text: the chosen one, as sampled.
      dropped: its sentences that were left out.
      refined: what is left of it, "" if nothing is; with boxes if they were asked for.
      reason: why the image gives no target; "" if it gives one.
      decisive_stream: where the penalty decided, the stream whose terms differ most between the chosen one and the
        next best; else "".
      words: of each candidate; shows whether short ones are favored.
      mentions: signals that point into the text: one row a candidate, one column a stream.
      refined_mentions: those that point into what is left of the chosen one, one a stream.
      has_content: whether each candidate says anything that counts; those that do not lose to those that do.
      repeats: sentences of each candidate that repeat an earlier one of the same candidate word for word.
      repaired: words of the chosen one that were replaced, in sentences that were kept.
    """

    image: str
    prompt: str
    candidate: int
    decided_by: DecidedBy
    penalties: tuple[float, ...]
    stream_penalties: tuple[tuple[float, ...], ...]
    text: str
    dropped: tuple[Dropped, ...]
    refined: str
    reason: str
    decisive_stream: str = ""
    words: tuple[int, ...] = ()
    mentions: tuple[tuple[int, ...], ...] = ()
    refined_mentions: tuple[int, ...] = ()
    has_content: tuple[bool, ...] = ()
    repeats: tuple[int, ...] = ()
    repaired: tuple[Repaired, ...] = ()


@dataclasses.dataclass(frozen=True)
class Target:
    """What the policy is to say of an image."""

    image: str
    prompt: str
    text: str


@dataclasses.dataclass(frozen=True)
class Preference:
    """Responses to one image and prompt, and how good each is.

    Attributes:
      image: path below the image folder.
      prompt: the last question; the image comes before it unless it says "<image>".
      responses: two or more, no two alike.
      ratings: of each response, on any scale: more is better. Two of equal rating are not compared.
      context: how the answer begins that every response continues; "" where responses are whole answers.
      whole: the answer ends with the response; with False, as with a sentence of many, it may continue.
      history: question, answer, question, answer, ... before the prompt; the image comes before the first.
      name: what its source calls it; "" if it has no name.
    """

    image: str
    prompt: str
    responses: tuple[str, ...]
    ratings: tuple[float, ...]
    context: str = ""
    whole: bool = True
    history: tuple[str, ...] = ()
    name: str = ""

    @property
    def first_prompt(self) -> str:
        """The first question, which the image comes with."""
        return (*self.history, self.prompt)[0]

    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Indices of every two responses of different ratings, the better one first; the best before the others."""
        ranked = sorted(range(len(self.ratings)), key=lambda index: -self.ratings[index])
        pairs = itertools.combinations(ranked, 2)
        return tuple((better, worse) for better, worse in pairs if self.ratings[better] > self.ratings[worse])


@dataclasses.dataclass(frozen=True)
class AnnotatedSentence:
    """One sentence of a description, as a person judged it.

    Attributes:
      span: its place in the description.
      errors: what is wrong with it, each kind once; none if it is right.
      attribute: which attribute is wrong ("color", "count", ...) where one is, else "".
      creative: it says more than the obvious, rightly.
    """

    span: Span
    errors: tuple[ErrorType, ...]
    attribute: str = ""
    creative: bool = False


@dataclasses.dataclass(frozen=True)
class Annotation:
    """One description of an image with a judgment of every sentence.

    Attributes:
      image: path below the image folder.
      description: the whole text.
      sentences: in order, without overlap; together they cover every letter of the description.
      detail: level of detail as judged, None where nobody did.
      missing: what the description leaves out.
    """

    image: str
    description: str
    sentences: tuple[AnnotatedSentence, ...]
    detail: int | None = None
    missing: tuple[str, ...] = ()


class ImageFile(Protocol):
    """An image, wherever it is: a `pathlib.Path`, or a `data.images.store.StoredImage`; str() says where."""

    @property
    def name(self) -> str: ...

    def read_bytes(self) -> bytes: ...


class ScoreItem(NamedTuple):
    """The candidates of one image and prompt, for a reward stream to judge.

    Attributes:
      image: path below the image folder.
      path: the image's file, or what reads it from a shard: `path.read_bytes()`.
      prompt: what was asked.
      texts: the candidates, in their order.
      verdicts: of the streams that the stream `needs`, by name: one for each text.
    """

    image: str
    path: ImageFile
    prompt: str
    texts: tuple[str, ...]
    verdicts: Mapping[str, tuple[Verdict, ...]] = MappingProxyType({})
