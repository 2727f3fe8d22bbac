"""Preferences of sentences (SENTINEL, Peng et al. 2025): a text grows by sentences that the streams find right, and at
each step a right next sentence is paired with a wrong one.

White space before a sentence belongs to the sentence: text + sentence is what the model has written, and the sentences
of a text joined are the text. The first sentence has none in front, as no response has.

All texts of some images grow together: step k samples the next sentences of all of them, and the streams judge these
together. What is drawn depends on the seed, the image, its prompt and the step.

Where the paper says no more, these are our readings: how long a text grows; that of several right sentences the one
with most positive signals is taken; that an unknown one is taken where none is right; that a sentence which the text
has said already counts for nothing, and one that says nothing new is not right.
"""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from vigor_jax.inference.policy import Policy
from vigor_jax.inference.sampler import Completion, Request
from vigor_jax.records import ImageFile, Preference, ScoreItem, Signal, Span, Verdict
from vigor_jax.rewards.content import has_words
from vigor_jax.rewards.repetitions import repetitions
from vigor_jax.rewards.sentences import split_sentences
from vigor_jax.rewards.stream import RewardStream
from vigor_jax.stages.pair_config import PairConfig
from vigor_jax.stages.pair_records import Pairing, counts, errors_of, is_negative, length_ratio
from vigor_jax.stages.ppo_rewards import judge_responses

_UNREADABLE = "\ufffd"  # stands for bytes that are no character, and is no token of the model's
# Why a text has ended.
ENDED, MOST, NOTHING_NEW, ALL_WRONG, POSITIONS = (
    "the model ends it",
    "pair.max_sentences",
    "nothing new is said",
    "all next sentences are wrong",
    "the model's positions run out",
)
# Why sentences were left out, or steps gave no pair.
CUT, REPEATED, NO_WORDS = "sentence cut at sampling.max_new_tokens", "sentence said already", "sentence that is no text"
NONE_WRONG, NONE_RIGHT, LENGTHS = "step without a wrong sentence", "step without a right sentence", "lengths"


@dataclasses.dataclass
class Text:
    """What an image's sentences have come to.

    Attributes:
      image: its name.
      file: it.
      prompt: what is asked.
      context: the text so far.
      sentences: of it.
      ended: why it does not grow any more; "" while it does.
      preferences: found on the way.
      left_out: what gave none, by reason.
      errors: of rejected sentences, by kind.
    """

    image: str
    file: ImageFile
    prompt: str
    context: str = ""
    sentences: list[Span] = dataclasses.field(default_factory=list)
    ended: str = ""
    preferences: list[Preference] = dataclasses.field(default_factory=list)
    left_out: Counter[str] = dataclasses.field(default_factory=Counter)
    errors: Counter[str] = dataclasses.field(default_factory=Counter)

    def pairing(self) -> Pairing:
        """As it is kept."""
        return Pairing(
            image=self.image,
            prompt=self.prompt,
            text=self.context,
            sentences=tuple(self.sentences),
            ended=self.ended,
            pairs=len(self.preferences),
            left_out=counts(self.left_out),
            errors=counts(self.errors),
        )


class Option(NamedTuple):
    """A next sentence.

    Attributes:
      text: it, with the white space before it.
      is_end: all samples that begin with it end with it.
    """

    text: str
    is_end: bool


class Judged(NamedTuple):
    """A next sentence with what the streams say of it.

    Attributes:
      option: the sentence.
      verdict: "right", "wrong" or "unknown".
      positive: sum of its positive signals.
      negative: the same.
      errors: kinds of its errors.
    """

    option: Option
    verdict: str
    positive: float
    negative: float
    errors: frozenset[str]


def grow(
    config: PairConfig,
    policy: Policy,
    judges: Mapping[str, RewardStream],
    texts: Sequence[Text],
    on_end: Callable[[int], None] = lambda number: None,
) -> None:
    """Lets texts grow sentence by sentence until all have ended; their preferences are found on the way.

    Args:
      config: settings.
      policy: writes.
      judges: streams by name, each after those that it needs.
      texts: the same in all processes; each begins empty.
      on_end: is told how many have ended, step by step.

    Raises:
      InputError: as sampling and the streams.
    """
    num_ended = 0
    for step in range(config.max_sentences):
        if not (asked := list(_requests(policy, texts))):
            break
        found = policy.sample(
            [request for _, request in asked],
            config.sampling,
            seed=step_seed(config.sampling.seed, step),
            is_enough=is_enough,
        )
        options = [_options(policy, text, some) for (text, _), some in zip(asked, found, strict=True)]
        judged = _judge(judges, [text for text, _ in asked], options, config)
        for (text, _), own in zip(asked, judged, strict=True):
            if own:
                _take(config, text, own)
            if not text.ended and step == config.max_sentences - 1:
                text.ended = MOST
        before, num_ended = num_ended, sum(bool(text.ended) for text in texts)
        on_end(num_ended - before)


def step_seed(seed: int, step: int) -> int:
    """Of the draws of a step."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {step}".encode(), digest_size=6).digest(), "little")


def is_enough(text: str) -> bool:
    """Whether a sentence has ended and the next one has begun: what follows is not wanted."""
    return len(split_sentences(text)) > 1


def _requests(policy: Policy, texts: Sequence[Text]) -> Iterator[tuple[Text, Request]]:
    """Texts that have not ended, and what they ask for."""
    positions = policy.checkpoint.config.text.max_position_embeddings
    for text in texts:
        if text.ended:
            continue
        request = policy.request(text.image, text.file, text.prompt, context=text.context)
        if text.context and len(request.prompt_ids) >= positions:
            text.ended = POSITIONS
        else:
            yield text, request


def _options(policy: Policy, text: Text, completions: Sequence[Completion]) -> list[Option]:
    """The different next sentences, in the order in which they were drawn; without any the text has ended."""
    found: dict[str, bool] = {}
    before = text.left_out[CUT]
    for completion in completions:
        continued = policy.continuation(text.context, completion.token_ids)
        sentences = split_sentences(continued)
        is_end = completion.finish_reason == "stop" and len(sentences) == 1
        if not sentences:
            text.left_out[CUT] += completion.finish_reason != "stop"
        elif len(sentences) == 1 and not is_end:
            text.left_out[CUT] += 1
        else:
            sentence = continued[: sentences[0].end]
            found[sentence] = is_end and found.get(sentence, True)
    options = []
    for sentence, is_end in found.items():
        if not has_words(sentence, 1) or _UNREADABLE in sentence:
            text.left_out[NO_WORDS] += 1
        elif _is_repeated(text, sentence):
            text.left_out[REPEATED] += 1
        else:
            options.append(Option(sentence, is_end))
    if not options:
        text.ended = NOTHING_NEW if found else CUT if text.left_out[CUT] > before else ENDED
    return options


def _is_repeated(text: Text, sentence: str) -> bool:
    whole = text.context + sentence
    return any(span.end == len(whole) for span in repetitions(whole))


def _judge(
    judges: Mapping[str, RewardStream], texts: Sequence[Text], options: Sequence[Sequence[Option]], config: PairConfig
) -> list[list[Judged]]:
    """The options of each text, judged as its end: of what the whole text says, the signals in the sentence count."""
    with_options = [index for index, own in enumerate(options) if own]
    items = [
        ScoreItem(
            texts[index].image,
            texts[index].file,
            texts[index].prompt,
            tuple(texts[index].context + option.text for option in options[index]),
        )
        for index in with_options
    ]
    judged: list[list[Judged]] = [[] for _ in texts]
    for index, verdicts in zip(with_options, judge_responses(judges, items) if items else [], strict=True):
        context = texts[index].context
        judged[index] = [
            judge_sentence(option, context, each, config) for option, each in zip(options[index], verdicts, strict=True)
        ]
    return judged


def judge_sentence(option: Option, context: str, verdicts: Mapping[str, Verdict], config: PairConfig) -> Judged:
    """What the streams say of a sentence behind a context, from what they say of both together.

    A signal counts as what it is more of: the reward model's are a little negative and a little positive always. Right
    is only what says something new: a model that is taught to prefer what it has said already repeats itself.
    """
    start = len(context)
    own = {name: _within(verdict.signals, start) for name, verdict in verdicts.items()}
    signals = [signal for some in own.values() for signal in some]
    negative = [signal for signal in signals if is_negative(signal)]
    if any(signal.absent or config.wrong == "negative" for signal in negative):
        verdict = "wrong"
    elif not negative and _says_news(context + option.text, start, verdicts):
        verdict = "right"
    else:
        verdict = "unknown"
    sums = sum(signal.positive for signal in signals), sum(signal.negative for signal in signals)
    return Judged(option, verdict, *sums, frozenset(errors_of(verdicts, own)))


def _says_news(text: str, start: int, verdicts: Mapping[str, Verdict]) -> bool:
    """Whether a positive signal points behind a place at words that none of its stream and label has before it."""

    def said(name: str, signal: Signal, span: Span) -> tuple[str, str, str]:
        return name, signal.label, text[slice(*span)].lower()

    spans = [
        (name, signal, span)
        for name, verdict in verdicts.items()
        for signal in verdict.signals
        for span in signal.spans
    ]
    before = {said(*each) for each in spans if each[2].end <= start}
    return any(each[1].positive > 0 and said(*each) not in before for each in spans if each[2].end > start)


def _within(signals: Sequence[Signal], start: int) -> list[Signal]:
    """Those that point behind a place."""
    return [signal for signal in signals if any(span.end > start for span in signal.spans)]


def _take(config: PairConfig, text: Text, judged: Sequence[Judged]) -> None:
    """Pairs what is right with what is wrong, and adds a sentence to the text, or ends it."""
    right = sorted((each for each in judged if each.verdict == "right"), key=lambda each: -each.positive)
    wrong = sorted((each for each in judged if each.verdict == "wrong"), key=lambda each: -each.negative)
    unknown = sorted((each for each in judged if each.verdict == "unknown"), key=lambda each: each.negative)
    if right and wrong:
        for chosen, rejected in _pairs(config, right, wrong, text.left_out):
            texts = chosen.option.text, rejected.option.text
            text.preferences.append(
                Preference(text.image, text.prompt, texts, (1.0, 0.0), context=text.context, whole=False)
            )
            text.errors.update(rejected.errors)
    else:
        text.left_out[NONE_WRONG if not wrong else NONE_RIGHT] += 1
    if not (right or unknown):
        text.ended = ALL_WRONG
        return
    added = (right or unknown)[0].option
    start = len(text.context)
    text.context += added.text
    text.sentences.append(Span(start, len(text.context)))
    if added.is_end:
        text.ended = ENDED


def _pairs(
    config: PairConfig, right: Sequence[Judged], wrong: Sequence[Judged], left_out: Counter[str]
) -> list[tuple[Judged, Judged]]:
    """As many as wanted, no wrong sentence twice: the best with the worst, or those that are nearest in length."""
    ratios = {
        (i, j): length_ratio(a.option.text, b.option.text) for i, a in enumerate(right) for j, b in enumerate(wrong)
    }
    near = sorted(ratios, key=lambda pair: (-ratios[pair] if config.match_lengths else 0.0, pair))
    near = [pair for pair in near if ratios[pair] >= config.match_lengths]
    left_out[LENGTHS] += len({j for _, j in ratios} - {j for _, j in near})
    taken: dict[int, tuple[Judged, Judged]] = {}
    for i, j in near:
        if j not in taken and len(taken) < config.per_step:
            taken[j] = right[i], wrong[j]
    return list(taken.values())
