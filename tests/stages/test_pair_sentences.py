"""Pairs of sentences, fast: what a sentence is judged as, and texts that a scripted model writes."""

import hashlib
import random
import re
from itertools import pairwise
from types import SimpleNamespace

import pytest

from tests.stages.ppo_world import Letters
from vigor_jax.errors import InputError
from vigor_jax.inference.sampling_config import SamplingConfig
from vigor_jax.records import Signal, Span, Verdict
from vigor_jax.rewards.repetitions import repetitions
from vigor_jax.rewards.sentences import split_sentences
from vigor_jax.stages.pair_config import PairConfig
from vigor_jax.stages.pair_records import length_ratio
from vigor_jax.stages.pair_sentences import Option, Text, grow, is_enough, judge_sentence, step_seed

CONTEXT = "A cat. "  # seven characters


def signal(start, end, negative, positive, absent=False, kind=""):
    return Signal("x", (Span(start, end),), negative, positive, 0.5, absent, kind=kind)


@pytest.mark.parametrize(
    ("signals", "verdict", "with_negative"),
    [
        ([], "unknown", "unknown"),
        ([signal(8, 9, 0, 1)], "right", "right"),
        ([signal(8, 9, 1, 0, absent=True)], "wrong", "wrong"),
        ([signal(8, 9, 0, 1), signal(9, 10, 1, 0, absent=True)], "wrong", "wrong"),
        ([signal(8, 9, 0, 1), signal(9, 10, 0.5, 0)], "unknown", "wrong"),
        ([signal(8, 9, 0, 0)], "unknown", "unknown"),
        ([signal(2, 5, 1, 0, absent=True)], "unknown", "unknown"),  # of the context, which was judged before
        ([signal(2, 5, 1, 0, absent=True), signal(8, 9, 0, 1)], "right", "right"),
        ([signal(5, 8, 0, 1)], "right", "right"),  # across the border
        ([signal(7, 12, 0.2, 0.8)], "right", "right"),  # as the reward model's: a little of both
        ([signal(7, 12, 0.8, 0.2)], "unknown", "wrong"),
        ([Signal("x", (Span(2, 5), Span(8, 9)), 1, 0, 0.1, True)], "wrong", "wrong"),  # said again
        ([Signal("dog", (Span(2, 5), Span(9, 12)), 0, 1, 0.9)], "unknown", "unknown"),  # right, and nothing new
        ([Signal("dog", (Span(2, 5),), 0, 1, 0.9), Signal("dog", (Span(9, 12),), 0, 1, 0.9)], "unknown", "unknown"),
        ([Signal("1", (Span(0, 6),), 0, 1, 0.9), Signal("1", (Span(7, 13),), 0, 1, 0.9)], "right", "right"),
        ([Signal("dog", (Span(2, 5),), 0, 1, 0.9), Signal("a dog", (Span(7, 12),), 0, 1, 0.9)], "right", "right"),
    ],
)
def test_what_a_sentence_is_judged_as(signals, verdict, with_negative):
    said = {"stream": Verdict("a.png", 0, "stream", tuple(signals))}
    for wrong, expected in (("absent", verdict), ("negative", with_negative)):
        found = judge_sentence(Option("A dog.", False), "A dog, ", said, PairConfig("sentences", wrong=wrong))
        assert found.verdict == expected


def test_kinds_of_errors_and_sums():
    said = {
        "detector": Verdict("a.png", 0, "detector", (signal(8, 9, 2, 0, True), signal(8, 9, 0, 3))),
        "claims": Verdict(
            "a.png", 0, "claims", (signal(9, 10, 1, 0, True, "number"), signal(2, 3, 5, 0, True, "place"))
        ),
    }
    found = judge_sentence(Option("A dog.", False), "A dog, ", said, PairConfig("sentences"))
    assert (found.positive, found.negative, found.errors) == (3, 3, {"detector", "number"})


class Script:
    """A model that writes what a function says; a token is a character, 0 the end."""

    def __init__(self, write, positions=10**6):
        self._write, self.asked = write, []
        sizes = SimpleNamespace(max_position_embeddings=positions)
        self.checkpoint = SimpleNamespace(config=SimpleNamespace(text=sizes))

    def request(self, image_id, image, prompt, *, context=""):
        return SimpleNamespace(image_id=image_id, prompt=prompt, context=context, prompt_ids=f"?{context}")

    def continuation(self, context, token_ids):
        return "".join(map(chr, filter(None, token_ids)))

    def sample(self, requests, sampling, *, seed, is_enough):
        for request in requests:
            self.asked.append((request.image_id, request.context, seed))
            yield [self._completion(self._write(request, seed, c), is_enough) for c in range(sampling.num_candidates)]

    def _completion(self, text, is_enough):
        ends = [n for n in range(len(text) + 1) if is_enough(text[:n])]
        tokens = [*map(ord, text[: ends[0]]), *([] if ends else [0])] if ends else [*map(ord, text), 0]
        reason = "stop"
        if text.endswith("-"):  # cut by the limit
            tokens, reason = [*map(ord, text)], "length"
        return SimpleNamespace(token_ids=tokens, finish_reason=reason)


def texts_of(number):
    return [Text(f"{i}.png", None, "?") for i in range(number)]


def run(write, number=1, *, positions=10**6, candidates=3, **settings):
    config = PairConfig("sentences", sampling=SamplingConfig(num_candidates=candidates, seed=5), **settings)
    policy, texts = Script(write, positions), texts_of(number)
    grow(config, policy, {"letters": Letters()}, texts)
    return policy, texts


def of_list(*lists):
    """Step k writes what list k says: a candidate an entry."""

    def write(request, seed, candidate):
        step = next(k for k in range(99) if step_seed(5, k) == seed)
        return lists[step][candidate] if step < len(lists) else ""

    return write


# To `Letters` a word with "a" is right, another one with "o" wrong, and others are unknown.
@pytest.mark.parametrize(
    ("lists", "settings", "text", "ended", "pairs", "left_out"),
    [
        ([["Cat.", "Dog.", "Hen."]], {}, "Cat.", "the model ends it", [("", "Cat.", "Dog.")], {}),
        ([["Cat. B", "Dog.", "Cat."]], {}, "Cat.", "the model ends it", [("", "Cat.", "Dog.")], {}),
        ([["Cat. B", "Dog.", "Hat man. B"], [" Fox.", " Pan.", " Pan."]], {}, "Hat man. Pan.", "the model ends it",
         [("", "Hat man.", "Dog."), ("Hat man.", " Pan.", " Fox.")], {}),
        ([["Cat. B", "Dog. B", "Dog. B"], ["\n\n1. Cow. B", "\n\n2. Man.", ""]], {}, "Cat.\n\n2. Man.",
         "the model ends it", [("", "Cat.", "Dog."), ("Cat.", "\n\n2. Man.", "\n\n1. Cow.")], {}),
        ([["Dog.", "Cow.", "Dog."]], {}, "", "all next sentences are wrong", [], {"step without a right sentence": 1}),
        ([["Dog.", "Hen.", "Elk."]], {}, "Hen.", "the model ends it", [], {"step without a right sentence": 1}),
        ([["Cat.", "Hen.", "Elk."]], {}, "Cat.", "the model ends it", [], {"step without a wrong sentence": 1}),
        ([["Cat. B"] * 3, [" cat!", " Cat.", " CAT. A"]], {}, "Cat.", "nothing new is said", [],
         {"sentence said already": 3, "step without a wrong sentence": 1}),
        ([["A cat. B"] * 3, ["ave. There is a man. B"] * 3, [" There is a man."] * 3], {},
         "A cat.ave. There is a man.", "nothing new is said", [],
         {"sentence said already": 1, "step without a wrong sentence": 2}),
        ([["Cat. B"] * 3, [" Cat.", " Cow.", " Man."]], {}, "Cat. Man.", "the model ends it",
         [("Cat.", " Man.", " Cow.")], {"sentence said already": 1, "step without a wrong sentence": 1}),
        ([["Cat. B"] * 3, [" Cow.", " ...", " \ufffdat."]], {}, "Cat.", "all next sentences are wrong", [],
         {"sentence that is no text": 2, "step without a wrong sentence": 1, "step without a right sentence": 1}),
        ([["A long-", "Dog.", "Cat."]], {}, "Cat.", "the model ends it", [("", "Cat.", "Dog.")],
         {"sentence cut at sampling.max_new_tokens": 1}),
        ([["A long-"] * 3], {}, "", "sentence cut at sampling.max_new_tokens", [],
         {"sentence cut at sampling.max_new_tokens": 3}),
        ([["Cat. A long-", "Dog.", "Dog."]], {}, "Cat.", "the model ends it", [("", "Cat.", "Dog.")], {}),
        ([[""] * 3], {}, "", "the model ends it", [], {}),
        ([["Cat. B", "Dog.", "Dog."]] , {"max_sentences": 1}, "Cat.", "pair.max_sentences", [("", "Cat.", "Dog.")], {}),
        ([["Cat. B", "Dog.", "Dog."]] , {"positions": 5}, "Cat.", "the model's positions run out",
         [("", "Cat.", "Dog.")], {}),
        ([["Fat cat.", "Dog so.", "Cow."]], {"per_step": 2}, "Fat cat.", "the model ends it",
         [("", "Fat cat.", "Dog so."), ("", "Fat cat.", "Cow.")], {}),
        ([["Fat cat is here.", "Dog.", "Man."]], {"match_lengths": 1.0}, "Fat cat is here.", "the model ends it",
         [("", "Man.", "Dog.")], {}),
        ([["Fat cat is here.", "Dog.", "Cow."]], {"match_lengths": 0.5}, "Fat cat is here.", "the model ends it", [],
         {"lengths": 2}),
        ([["Man here in.", "Dog.", "Oxen do so."]], {"match_lengths": 0.3, "per_step": 2}, "Man here in.",
         "the model ends it", [("", "Man here in.", "Oxen do so."), ("", "Man here in.", "Dog.")], {}),
    ],
)  # fmt: skip
def test_a_text_grows(lists, settings, text, ended, pairs, left_out):
    _, (found,) = run(of_list(*lists), **settings)
    assert (found.context, found.ended) == (text, ended)
    assert [(each.context, *each.responses) for each in found.preferences] == pairs
    assert {name: number for name, number in found.left_out.items() if number} == left_out
    pairing = found.pairing()
    assert "".join(text[slice(*span)] for span in pairing.sentences) == text == pairing.text
    assert pairing.pairs == len(pairs)


def babble(request, seed, candidate):
    """Some sentences, whatever came before."""
    key = hashlib.sha256(repr((request.image_id, request.context, seed, candidate)).encode()).digest()
    draw = random.Random(key)
    words = ("cat", "dog", "hen", "fat", "on", "elk")
    sentences = []
    for _ in range(draw.randint(0, 3)):
        sentences.append(" ".join(draw.choices(words, k=draw.randint(1, 5))) + draw.choice(".!"))
    text = draw.choice((" ", "\n", "\n\n", "")).join(each.capitalize() for each in sentences)
    return (draw.choice((" ", "\n\n")) if request.context else "") + text


@pytest.mark.parametrize("settings", [{}, {"match_lengths": 0.6, "per_step": 3}, {"max_sentences": 4}], ids=str)
def test_properties_of_what_grows(settings):
    policy, texts = run(babble, 60, candidates=5, **{"max_sentences": 8} | settings)
    contexts = {}
    for image, context, _ in policy.asked:
        contexts.setdefault(image, []).append(context)
    num_pairs, lengths = 0, set()
    for text in texts:
        own = contexts[text.image]
        assert own[0] == ""
        assert all(after.startswith(before) and len(after) > len(before) for before, after in pairwise(own))
        assert text.context.startswith(own[-1])
        pieces = [text.context[slice(*span)] for span in text.sentences]
        assert "".join(pieces) == text.context
        assert all(len(split_sentences(piece)) == 1 and piece == piece.rstrip() for piece in pieces)
        assert not repetitions(text.context)
        assert not any(is_wrong(piece) for piece in pieces)
        assert text.ended
        lengths.add(len(pieces))
        for each in text.preferences:
            right, wrong = each.responses
            assert each.context in own
            assert each.ratings == (1.0, 0.0)
            assert not each.whole
            assert not is_wrong(right)
            assert is_wrong(wrong)
            assert length_ratio(right, wrong) >= settings.get("match_lengths", 0)
            num_pairs += 1
        assert all(own.count(each.context) for each in text.preferences)
        steps = [each.context for each in text.preferences]
        assert max(map(steps.count, steps), default=0) <= settings.get("per_step", 1)
    assert num_pairs > 30
    assert len(lengths) > 3


def is_wrong(sentence):
    return any("o" in word and "a" not in word for word in re.findall(r"\w+", sentence.lower()))


def test_texts_do_not_depend_on_their_company():
    _, together = run(babble, 20, candidates=4)
    for index, text in enumerate(together):
        alone = Text(f"{index}.png", None, "?")
        config = PairConfig("sentences", sampling=SamplingConfig(num_candidates=4, seed=5))
        grow(config, Script(babble), {"letters": Letters()}, [alone])
        assert alone == text


def test_every_step_has_another_seed():
    assert len({step_seed(seed, step) for seed in range(20) for step in range(20)}) == 400


def test_where_a_sentence_is_enough():
    assert [is_enough(text) for text in ("", "A cat", "A cat.", "A cat. ", "A cat. T", "1. A cat.", " Mr. X")] == [
        False, False, False, False, True, False, False
    ]  # fmt: skip


class Wrong(Letters):
    """Yields too little."""

    def judge(self, items):
        for _ in items:
            yield []


def test_a_stream_that_is_silent_of_a_sentence_is_refused():
    with pytest.raises(InputError, match="expected one verdict for each text"):
        grow(PairConfig("sentences"), Script(babble), {"letters": Wrong()}, texts_of(3))
