"""Texts in sentences and phrases, and the choice among responses by what reward streams say of them."""

import dataclasses
import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from vigor_jax.api.models import Judgment, groups
from vigor_jax.data.images.given import ImageLike, image_files
from vigor_jax.data.images.preprocessing import load_image
from vigor_jax.errors import InputError
from vigor_jax.inference.responses import Response
from vigor_jax.records import CLAIM_KINDS, Verdict
from vigor_jax.rewards.boxed_phrases import boxed_phrases
from vigor_jax.rewards.content import has_words
from vigor_jax.rewards.fusion import FusionConfig, Moments, Scale, per_unit
from vigor_jax.rewards.fusion import choose as choose_rows
from vigor_jax.rewards.mentions import Phrase
from vigor_jax.rewards.phrases import PhrasesConfig, make_phrases
from vigor_jax.rewards.refine import Refined
from vigor_jax.rewards.refine import refine as refine_text
from vigor_jax.rewards.sentences import split_sentences
from vigor_jax.stages.select_config import SelectConfig


@dataclasses.dataclass(frozen=True)
class Sentence:
    """A sentence and its place: characters [start, end) of the text."""

    text: str
    start: int
    end: int


def sentences(text: str) -> list[Sentence]:
    """The sentences of a text, in order, without the white space around them."""
    _check_text(text)
    return [Sentence(text[start:end], start, end) for start, end in split_sentences(text)]


def phrases(text: str, config: PhrasesConfig | None = None) -> list[Phrase]:
    """What a text mentions, each thing once, with every place where it is asserted, denied or supposed.

    Args:
      text: the text.
      config: how phrases are found; by default the nouns of NLTK's tagger, whose data must be there.

    Raises:
      InputError: the tagger's data or a list of words is missing.
    """
    _check_text(text)
    if not isinstance(config, PhrasesConfig | None):
        raise InputError(f"config: expected a PhrasesConfig, got {type(config).__name__}; PhrasesConfig(...) makes one")
    return _extractor(config or PhrasesConfig())(text, split_sentences(text))


def _check_text(text: Any) -> None:
    if not isinstance(text, str):
        raise InputError(f"text: expected a string, got {type(text).__name__}")


@functools.cache
def _extractor(config: PhrasesConfig) -> Any:
    return make_phrases(config)


@dataclasses.dataclass(frozen=True)
class Fused:
    """The penalty of one response; a list of these is a table.

    Attributes:
      index: position of the image.
      image: its name.
      candidate: index among the responses to this image and prompt.
      penalty: of all streams together; the least is the best.
      terms: what each stream adds to it, by its name.
    """

    index: int
    image: str
    candidate: int
    penalty: float
    terms: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The response that was chosen for one image and prompt; a list of these is a table.

    Attributes:
      index: position of the image.
      image: its name.
      prompt: what was asked.
      candidate: the chosen one.
      text: what it says.
      penalty: its penalty.
      decided_by: what told it from the next best, see `records.Selection`.
      decisive_stream: where the penalty decided, the stream whose terms differ most; else "".
    """

    index: int
    image: str
    prompt: str
    candidate: int
    text: str
    penalty: float
    decided_by: str
    decisive_stream: str


def fuse(
    responses: Sequence[Response],
    *judgments: Sequence[Judgment],
    rule: Literal["paper", "balanced"] = "paper",
    weights: Mapping[str, float] | None = None,
    gamma: float = 1.0,
    normalize: Literal["variance", "std"] = "variance",
    per: Literal["caption", "sentence"] = "caption",
) -> list[Fused]:
    """One penalty for each response, from what all streams say (ViGoR, section 3.3).

    A stream's signals are divided by their variance over all responses given, so give all there are at once.

    Args:
      responses: from `Policy.generate`.
      *judgments: of each stream a list, in the order of the responses.
      rule: see `rewards.fusion`, as the other settings.
      weights: of the streams by name; 1 for those that are not named.
      gamma: weight of what is right under "balanced".
      normalize: what sums are divided by.
      per: whether sums are divided by the number of sentences.

    Raises:
      InputError: there are no responses, or the judgments are not of these.
    """
    config = FusionConfig(rule, dict(weights or {}), gamma, normalize, per)
    return [
        Fused(response.index, response.image, response.candidate, penalty, dict(zip(names, terms, strict=True)))
        for own, choice, names in _fuse(responses, judgments, config)
        for response, penalty, terms in zip(own, choice.penalties, choice.terms, strict=True)
    ]


def choose(
    responses: Sequence[Response],
    *judgments: Sequence[Judgment],
    rule: Literal["paper", "balanced"] = "paper",
    weights: Mapping[str, float] | None = None,
    gamma: float = 1.0,
    normalize: Literal["variance", "std"] = "variance",
    per: Literal["caption", "sentence"] = "caption",
) -> list[Chosen]:
    """The best response for each image and prompt, as the stage `select` chooses it; arguments as of `fuse`."""
    config = FusionConfig(rule, dict(weights or {}), gamma, normalize, per)
    found = []
    for own, choice, _ in _fuse(responses, judgments, config):
        best = own[choice.candidate]
        penalty = choice.penalties[choice.candidate]
        found.append(
            Chosen(
                index=best.index,
                image=best.image,
                prompt=best.prompt,
                candidate=best.candidate,
                text=best.text,
                penalty=penalty,
                decided_by=choice.decided_by,
                decisive_stream=choice.decisive_stream,
            )
        )
    return found


def refine(
    text: str | Response | Chosen,
    judgments: Sequence[Judgment],
    *,
    drop_continuations: bool = False,
    drop_repetitions: bool = False,
    repair: bool = False,
    claims: Collection[str] = CLAIM_KINDS,
    boxes: ImageLike | None = None,
) -> Refined:
    """Leaves out the sentences that mention something that is not there (ViGoR, section 3.3), or claim what is wrong.

    Args:
      text: the text; of a response or a chosen one, only its own judgments among those given are read.
      judgments: of any streams.
      drop_continuations: whether sentences that only continue one that is left out go too.
      drop_repetitions: whether a sentence that stands there already is kept once.
      repair: whether a wrong claim is made right instead, where that is sure.
      claims: kinds of claims whose sentences go, or are repaired.
      boxes: the image, to write behind the first mention of each thing that was found its best box, relative to the
        square that LLaVA-1.5 pads the image to.

    Raises:
      InputError: a judgment is about another text, or none is about this response; there is no such kind of claim; or
        the image cannot be read.
    """
    kinds = [claims] if isinstance(claims, str) else claims
    if unknown := [kind for kind in kinds if kind not in CLAIM_KINDS]:
        raise InputError(f"refine: claims: expected some of {', '.join(CLAIM_KINDS)}, got {unknown[0]!r}")
    own = list(judgments)
    if not isinstance(text, str):
        own = [j for j in judgments if (j.index, j.candidate, j.text) == (text.index, text.candidate, text.text)]
        if judgments and not own:
            raise InputError(
                f"refine: none of the judgments is of candidate {text.candidate} of image {text.index}, "
                f"{text.text[:40]!r}; give those of the same responses"
            )
    words = text if isinstance(text, str) else text.text
    for judgment in own:
        if judgment.text != words:
            raise InputError(f"refine: a judgment is of the text {judgment.text[:40]!r}, expected {words[:40]!r}")
    verdicts = [Verdict(j.image, j.candidate, j.stream, j.signals) for j in own]
    boxed = None if boxes is None else boxed_phrases(verdicts, load_image(image_files(boxes)[0].file).size)
    return refine_text(
        words,
        verdicts,
        drop_continuations=drop_continuations,
        drop_repetitions=drop_repetitions,
        repair=repair,
        claims=kinds,
        boxes=boxed,
    )


def _fuse(
    responses: Sequence[Response], judgments: Sequence[Sequence[Judgment]], config: FusionConfig
) -> Iterator[tuple[list[Response], Any, tuple[str, ...]]]:
    """The responses of each image and prompt, the choice among them, and the streams' names."""
    if not responses or not all(isinstance(response, Response) for response in responses):
        raise InputError("responses: expected what generate returned, at least one Response")
    if not judgments:
        raise InputError("judgments: expected the list of at least one stream, got none")
    for number, own in enumerate(judgments):
        about = [(response.index, response.text) for response in responses]
        if [(judgment.index, judgment.text) for judgment in own] != about:
            raise InputError(
                f"judgments[{number}]: expected one of each response, in their order; judge the same responses"
            )
    names = tuple(own[0].stream for own in judgments)
    if len(set(names)) < len(names):
        raise InputError(f"judgments: expected lists of different streams, got {', '.join(names)}")
    negatives, positives = (
        np.array([[getattr(judgment, kind) for judgment in row] for row in zip(*judgments, strict=True)], np.float64)
        for kind in ("negative", "positive")
    )
    has_text = np.array([has_words(response.text, SelectConfig.min_words) for response in responses], bool)
    counts = np.array([len(split_sentences(response.text)) for response in responses], np.int64)
    moments = Moments(len(names)), Moments(len(names))
    for total, each in zip(moments, (negatives, positives), strict=True):
        total.add((each / per_unit(counts, config))[has_text])
    scale = Scale.of(names, *moments, config)
    telling = [own for own, factor in zip(judgments, scale.positive, strict=True) if factor > 0]
    said = [any(judgment.signals for judgment in row) for row in zip(*telling, strict=True)] if telling else True
    grouped = groups(responses)
    starts = np.cumsum([0, *(len(own) for _, _, own in grouped)])
    logprobs = np.array([response.mean_logprob for response in responses])
    choices = choose_rows(negatives, positives, logprobs, counts, starts, scale, config, has_content=has_text & said)
    for (_, _, own_responses), choice in zip(grouped, choices, strict=True):
        yield own_responses, choice, names
