"""Rewards per token, against a slow formula that looks at one character after the other."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.text.test_split_text import llama, tiny  # noqa: F401 (fixtures)
from vigor_jax.errors import InputError
from vigor_jax.records import Candidate, Signal, Span, Verdict
from vigor_jax.rewards.detection import DetectorStream
from vigor_jax.rewards.entities import EntityPhrases
from vigor_jax.rewards.reward_model import RewardModel
from vigor_jax.rewards.sentences import split_sentences
from vigor_jax.rewards.stream import credit_of
from vigor_jax.rewards.token_rewards import (
    RewardShares,
    TokenRewardConfig,
    batch_token_rewards,
    scale_of,
    token_offsets,
    token_rewards,
)

ROOT = Path(__file__).resolve().parents[2]
CAPTIONS = ROOT.parent / "shared" / "data" / "captions" / "llava13b_coco_captions.jsonl"
EPSILON = np.finfo(np.float32).eps


def verdict(*signals, stream="s"):
    return Verdict("a.jpg", 0, stream, signals)


def signal(*spans, negative=0.0, positive=0.0, label="x"):
    return Signal(label, tuple(Span(*span) for span in spans), negative, positive, 0.5)


def offsets_of(*lengths):
    """Of tokens that stand for as many characters each."""
    ends = np.cumsum([0, *lengths])
    return np.stack([ends[:-1], ends[1:]], axis=1).astype(np.int32)


def slowly(verdict, lengths, config, credit):
    """The rewards as the documentation says, character by character and token by token."""
    owner = [token for token, length in enumerate(lengths) for _ in range(length)]
    rewards = [0.0] * len(lengths)
    if not lengths:
        return rewards
    for one in verdict.signals:
        worth = config.positive * one.positive - config.negative * one.negative
        mentions = list(one.spans) or [None]
        for number, span in enumerate(mentions):
            value = worth if number == 0 or config.mentions == "all" else 0.0
            if number > 0 and credit == "words":
                value -= config.repetition
            tokens = []
            for character in range(*(span or (0, 0))):
                if owner[character] not in tokens:
                    tokens.append(owner[character])
            if credit == "response" or not tokens:
                tokens = [len(lengths) - 1]
            elif credit == "sentence":
                tokens = [tokens[-1]]
            elif config.reward_at != "all":
                tokens = [tokens[0 if config.reward_at == "first" else -1]]
            for token in tokens:
                rewards[token] += value / len(tokens)
    return rewards


@st.composite
def cases(draw):
    lengths = draw(st.lists(st.integers(0, 4), max_size=8))
    size = sum(lengths)
    span = st.tuples(st.integers(0, size), st.integers(0, size)).map(sorted).map(tuple)
    spans = st.lists(span.filter(lambda ends: ends[0] < ends[1]), max_size=3) if size else st.just([])
    amount = st.floats(0, 10, width=32)
    one = st.builds(
        lambda spans, negative, positive: signal(*spans, negative=negative, positive=positive),
        spans,
        amount,
        amount,
    )
    return lengths, verdict(*draw(st.lists(one, max_size=5)))


configs = st.builds(
    TokenRewardConfig,
    reward_at=st.sampled_from(["all", "first", "last"]),
    mentions=st.sampled_from(["first", "all"]),
    positive=st.floats(0, 3),
    negative=st.floats(0, 3),
    repetition=st.sampled_from([0.0, 0.25]),
)


@settings(deadline=None)
@given(cases(), configs, st.sampled_from(["words", "sentence", "response"]))
def test_against_the_slow_formula(case, config, credit):
    lengths, found = case
    rewards = token_rewards(found, offsets_of(*lengths), config, credit=credit)
    assert rewards.dtype == np.float32
    assert rewards.shape == (len(lengths),)
    np.testing.assert_allclose(rewards, slowly(found, lengths, config, credit), rtol=2 * EPSILON, atol=1e-6)


@settings(deadline=None)
@given(st.lists(st.tuples(cases(), cases()), max_size=4), configs)
def test_batches_are_the_weighted_sums_of_streams(pairs, config):
    credits = {"one": "words", "two": "sentence"}
    config = TokenRewardConfig(
        config.reward_at, config.mentions, config.positive, config.negative, weights={"two": 0.5}
    )
    lengths = [own for (own, _), _ in pairs]
    # The second stream's signals lie within the first one's text, or are left out.
    second = [
        verdict(*(one for one in found.signals if all(end <= sum(own) for _, end in one.spans)), stream="two")
        for (own, _), (_, found) in pairs
    ]
    verdicts = [{"one": found, "two": other} for ((_, found), _), other in zip(pairs, second, strict=True)]
    batch = batch_token_rewards(verdicts, [offsets_of(*own) for own in lengths], config, credits=credits)
    assert batch.rewards.dtype == np.float32
    assert batch.lengths.tolist() == list(map(len, lengths))
    assert batch.rewards.shape == (len(pairs), max(map(len, lengths), default=0))
    assert batch.mask.sum() == sum(map(len, lengths))
    for row, (own, by_stream) in enumerate(zip(lengths, verdicts, strict=True)):
        one = np.array(slowly(by_stream["one"], own, config, "words"))
        two = np.array(slowly(by_stream["two"], own, config, "sentence"))
        np.testing.assert_allclose(batch.rewards[row, : len(own)], one + 0.5 * two, rtol=2 * EPSILON, atol=1e-6)
        assert not batch.rewards[row, len(own) :].any()
        assert batch.mask[row].tolist() == [place < len(own) for place in range(batch.rewards.shape[1])]


# "A red dog ." as "A", " red", " d", "og", ".", and the end.
OFFSETS = offsets_of(1, 4, 2, 2, 1, 0)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0, 0, 0.5, 0.5, 0, 0]),
        ({"reward_at": "first"}, [0, 0, 1, 0, 0, 0]),
        ({"reward_at": "last"}, [0, 0, 0, 1, 0, 0]),
        ({"mentions": "all"}, [1, 0, 0.5, 0.5, 0, 0]),
        ({"repetition": 0.25}, [-0.25, 0, 0.5, 0.5, 0, 0]),
        ({"positive": 3.0}, [0, 0, 1.5, 1.5, 0, 0]),
    ],
)
def test_words(options, expected):
    found = verdict(signal((6, 9), (0, 1), positive=1.0))
    assert token_rewards(found, OFFSETS, TokenRewardConfig(**options)).tolist() == expected


def test_sentences_and_responses():
    found = verdict(signal((0, 10), negative=1.0))
    config = TokenRewardConfig(reward_at="first")
    assert token_rewards(found, OFFSETS, config, credit="sentence").tolist() == [0, 0, 0, 0, -1, 0]
    assert token_rewards(found, OFFSETS, config, credit="response").tolist() == [0, 0, 0, 0, 0, -1]
    assert token_rewards(verdict(signal(positive=2.0)), OFFSETS, config).tolist() == [0, 0, 0, 0, 0, 2]
    cut = OFFSETS[:-1]  # the response was cut off: no token ends it
    assert token_rewards(found, cut, config, credit="response").tolist() == [0, 0, 0, 0, -1]


def test_empty_responses():
    none = np.zeros((0, 2), np.int32)
    config = TokenRewardConfig()
    assert token_rewards(verdict(signal(positive=1.0)), none, config, credit="response").shape == (0,)
    batch = batch_token_rewards([{}, {}], [none, none], config, credits={"s": "words"})
    assert batch.rewards.shape == batch.mask.shape == (2, 0)
    assert batch_token_rewards([], [], config, credits={}).rewards.shape == (0, 0)
    only_end = np.zeros((1, 2), np.int32)
    assert token_rewards(verdict(signal(negative=1.0)), only_end, config).tolist() == [-1]


def test_streams_say_what_they_judge():
    class Odd:
        name = "odd"
        credit = "paragraph"

    assert credit_of(DetectorStream) == "words"
    assert credit_of(RewardModel) == "sentence"
    with pytest.raises(
        InputError, match="stream odd: credit: expected one of words, sentence, response, got 'paragraph'"
    ):
        credit_of(Odd())


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("A 😀 dog, 日本!", lambda t: t.encode("A 😀 dog, 日本!")),
        ("A dog", lambda t: [*t.encode("\n A dog \n"), t.eos_id]),
        ("A dog.", lambda t: [*t.encode("A dog. ### Human"), t.eos_id]),
        ("", lambda t: [t.eos_id]),
        ("", lambda t: []),
        ("", lambda t: t.encode(" \n")),
    ],
)
def test_every_character_has_one_token(tiny, text, ids):  # noqa: F811
    ids = ids(tiny)
    offsets = token_offsets(tiny, ids, text)
    assert offsets.shape == (len(ids), 2)
    assert offsets.dtype == np.int32
    owners = [sum(start <= place < end for start, end in offsets) for place in range(len(text))]
    assert owners == [1] * len(text)
    flat = offsets.ravel().tolist()
    assert flat == sorted(flat)


def test_a_character_of_several_tokens_is_the_last_ones(tiny):  # noqa: F811
    text = "A 😀."
    ids = tiny.encode(text)
    rewards = token_rewards(verdict(signal((2, 3), positive=1.0)), token_offsets(tiny, ids, text), TokenRewardConfig())
    assert rewards.tolist() == [0] * (len(ids) - 2) + [1, 0]


def test_tokens_of_another_text_are_refused(tiny):  # noqa: F811
    with pytest.raises(
        InputError, match="tokens say 'A dog', but its text is 'A cat'; expected the tokens of this text"
    ):
        token_offsets(tiny, tiny.encode("A dog"), "A cat")


@pytest.mark.parametrize("reward_at", ["all", "first", "last"])
def test_real_captions(llama, reward_at):  # noqa: F811
    """COCO's things, sentences and the whole: each token sum is the sum of the signals."""
    if not CAPTIONS.exists():
        pytest.skip("needs ../shared/data/captions")
    find, config, several = EntityPhrases(), TokenRewardConfig(reward_at), 0
    for line in CAPTIONS.read_text(encoding="utf-8").splitlines()[:80]:
        text = json.loads(line)["text"]
        ids = llama.encode(text)
        offsets = token_offsets(llama, ids, text)
        assert "".join(text[start:end] for start, end in offsets) == text
        sentences = split_sentences(text)
        things = verdict(
            *(
                signal(*phrase.mentions, positive=float(number % 2), negative=float(not number % 2))
                for number, phrase in enumerate(find(text, sentences))
                if phrase.mentions
            )
        )
        judged = verdict(*(signal(span, negative=0.3, positive=0.7) for span in sentences))
        for found, credit in ((things, "words"), (judged, "sentence"), (judged, "response")):
            rewards = token_rewards(found, offsets, config, credit=credit)
            expected = found.positive - found.negative
            np.testing.assert_allclose(rewards.sum(dtype=np.float64), expected, rtol=0, atol=len(ids) * EPSILON)
        paid = np.flatnonzero(token_rewards(things, offsets, config))
        for token in paid:  # whatever is paid is part of a name
            assert any(
                start < offsets[token, 1] and end > offsets[token, 0]
                for one in things.signals
                for start, end in one.spans[:1]
            )
        ends = np.flatnonzero(token_rewards(judged, offsets, config, credit="sentence"))
        assert [text[: offsets[token, 1]] for token in ends] == [text[:end] for _, end in sentences]
        several += sum(
            ((offsets[:, 0] < end) & (offsets[:, 1] > start)).sum() > 1
            for one in things.signals
            for start, end in one.spans
        )
    assert several > 120  # names of two or more tokens


def test_the_documented_lines_work(tiny, capsys):  # noqa: F811
    page = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```py\n(.*?)```", page, re.DOTALL)
    ids = (*tiny.encode("A dog."), tiny.eos_id)
    candidates = [Candidate("a.jpg", "", 0, "A dog.", ids, 0.0, "stop")]
    verdicts = [verdict(signal((2, 5), positive=1.0), stream="detector")]
    exec(code, {"tokenizer": tiny, "candidates": candidates, "verdicts": verdicts})
    assert capsys.readouterr().out == f"(1, {len(ids)}) [{len(ids)}]\n"


def test_spread_divides_as_in_fusion():
    verdicts = [{"a": verdict(signal((0, 1), negative=float(n), positive=2.0 * n), stream="a")} for n in (0, 1, 2, 3)]
    config = TokenRewardConfig(normalize="std", weights={"a": 3.0})
    scale = scale_of(["a"], verdicts, config)
    assert scale.negative.tolist() == pytest.approx([3 / np.std([0, 1, 2, 3])])
    batch = batch_token_rewards(verdicts, [offsets_of(1)] * 4, config, credits={"a": "words"})
    assert batch.rewards.ravel() == pytest.approx(np.zeros(4), abs=1e-6)  # equal in units of their spread
    only = TokenRewardConfig(normalize="variance", negative=0.0)
    batch = batch_token_rewards(verdicts, [offsets_of(1)] * 4, only, credits={"a": "words"})
    assert batch.rewards.ravel() == pytest.approx(np.array([0, 2, 4, 6]) / np.var([0, 2, 4, 6]))


def test_shares():
    found = verdict(signal((6, 9), positive=1.0), signal((0, 1), negative=1.0))
    batch = batch_token_rewards([{"s": found}, {}], [OFFSETS, OFFSETS[:4]], TokenRewardConfig(), credits={"s": "words"})
    shares = RewardShares()
    shares.add(batch)
    shares.add(batch)
    assert shares == RewardShares(responses=4, tokens=20, rewarded=4, punished=2)
    assert (shares.share_rewarded, shares.share_punished) == (0.2, 0.1)
    shares.check("")


def test_nothing_to_learn_from_is_refused():
    batch = batch_token_rewards([{}], [OFFSETS], TokenRewardConfig(), credits={"s": "words"})
    shares = RewardShares()
    shares.add(batch)
    expected = "none of the 6 tokens of 1 responses has a reward: rewarded 0.0%, punished 0.0%; "
    with pytest.raises(InputError, match=expected + r"lower --clip\.margin \(now 10\)"):
        shares.check("lower --clip.margin (now 10)")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reward_at": "middle"}, "token_rewards.reward_at: expected one of all, first, last, got 'middle'"),
        ({"mentions": "some"}, "token_rewards.mentions: expected one of first, all, got 'some'"),
        ({"normalize": "deviation"}, "token_rewards.normalize: expected one of none, variance, std, got 'deviation'"),
        ({"positive": -1.0}, "token_rewards.positive: expected a finite number of 0 or more, got -1.0"),
        ({"repetition": float("nan")}, "token_rewards.repetition: expected a finite number of 0 or more, got nan"),
        ({"weights": {"a": -1.0}}, "token_rewards.weights.a: expected a finite number of 0 or more, got -1.0"),
    ],
)
def test_wrong_settings(options, message):
    with pytest.raises(InputError) as error:
        TokenRewardConfig(**options)
    assert str(error.value) == message


def test_wrong_verdicts():
    config = TokenRewardConfig()
    with pytest.raises(InputError, match=r"stream s, a\.jpg, candidate 0, signal 'x': .* text of 10, got 6 to 11"):
        token_rewards(verdict(signal((6, 11), positive=1.0)), OFFSETS, config)
    with pytest.raises(InputError, match=r"expected characters of a text of 10, got 6 to 6"):
        token_rewards(verdict(signal((6, 6), positive=1.0)), OFFSETS, config)
    with pytest.raises(InputError, match="expected finite numbers, got nan"):
        token_rewards(verdict(signal((6, 9), positive=float("nan"))), OFFSETS, config)
    with pytest.raises(InputError, match="verdict of stream 'other': expected one of s"):
        batch_token_rewards([{"other": verdict()}], [OFFSETS], config, credits={"s": "words"})
    with pytest.raises(InputError, match="there is no stream 'detectr'; the nearest stream is detector"):
        batch_token_rewards([], [], TokenRewardConfig(weights={"detectr": 1.0}), credits={"detector": "words"})
