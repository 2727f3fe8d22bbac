"""The verifier's stream: from scores to signals, and what is refused or told at its start."""

import dataclasses
import logging

import nltk.data
import pytest
import tokenizers

from tests.rewards import clip_world
from vigor_jax.errors import InputError
from vigor_jax.records import Span
from vigor_jax.rewards.clip import ClipStream
from vigor_jax.rewards.clip_baselines import Baselines, make_baselines, thresholds
from vigor_jax.rewards.sentences import split_sentences
from vigor_jax.rewards.stream import credit_of
from vigor_jax.rewards.verifier import ClipVerifier, read_entities
from vigor_jax.rewards.verifier_config import ClipStreamConfig

SCALE = 10.0


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return clip_world.make_world(tmp_path_factory.mktemp("clip"))


def config(world, **changes) -> ClipStreamConfig:
    given = {"scale": SCALE, "margin": 0.5, "margin_unit": "std", "baselines": world / "b.json"}
    return clip_world.config(world, **given | changes)


@pytest.fixture(scope="module")
def scored(world):
    """What the verifier says; test_verifier.py shows that it is right."""
    verifier = ClipVerifier(clip_world.checkpoint(world), config(world), clip_world.mesh())
    return list(verifier.score(clip_world.items(world)))


@pytest.fixture(scope="module")
def baselines(world, scored) -> Baselines:
    """By which the upper half of the words is correct."""
    verifier = ClipVerifier(clip_world.checkpoint(world), config(world), clip_world.mesh())
    cosines = sorted(each.cosine for texts in scored for own in texts for each in own)
    middle = cosines[len(cosines) // 2]
    responses = [[(each.cosine, each.cosine < middle) for each in own] for texts in scored for own in texts]
    return make_baselines(responses, verifier.made_of)


def stream(world, baselines, **changes) -> ClipStream:
    return ClipStream(clip_world.checkpoint(world), config(world, **changes), clip_world.mesh(), baselines)


@pytest.mark.parametrize(("per", "credit"), [("word", "words"), ("sentence", "sentence"), ("caption", "response")])
def test_what_is_scored_gets_the_reward(world, baselines, per, credit):
    verifier = ClipVerifier(clip_world.checkpoint(world), config(world, per=per), clip_world.mesh())
    own = dataclasses.replace(baselines, made_of=verifier.made_of)
    assert credit_of(stream(world, own, per=per)) == credit


def test_signals_follow_eq_8(world, baselines, scored):
    limits = thresholds(baselines, SCALE, 0.5, "std")
    verdicts = list(stream(world, baselines).judge(clip_world.items(world)))
    kinds = set()
    for item, texts, found in zip(clip_world.items(world), scored, verdicts, strict=True):
        assert [(each.image, each.candidate, each.stream) for each in found] == [
            (item.image, number, "clip") for number in range(len(item.texts))
        ]
        for own, verdict in zip(texts, found, strict=True):
            assert [signal.label for signal in verdict.signals] == [each.label for each in own]
            for each, signal in zip(own, verdict.signals, strict=True):
                reward, score = limits(SCALE * each.cosine), SCALE * each.cosine
                kinds.add((score >= limits.reward, score <= limits.punish))
                assert signal.positive - signal.negative == pytest.approx(reward)
                assert min(signal.positive, signal.negative) == 0
                assert signal.absent == (score <= limits.punish)
                assert signal.score == pytest.approx(min(max(each.cosine, 0), 1))
                assert signal.spans == each.spans
    assert kinds == {(True, False), (False, True), (False, False)}


def test_all_places_of_a_word_are_in_one_signal(world, baselines):
    (verdict,) = next(stream(world, baselines).judge([clip_world.items(world)[2]._replace(texts=("A cat, a Cat.",))]))
    (signal,) = verdict.signals
    assert signal.spans == (Span(2, 5), Span(9, 12))


def test_whole_sentences_are_not_said_to_be_absent(world, baselines):
    made_of = dict(baselines.made_of) | {"per": "sentence"}
    whole = dataclasses.replace(baselines, made_of=made_of)
    verdicts = stream(world, whole, per="sentence").judge(clip_world.items(world))
    signals = [signal for found in verdicts for verdict in found for signal in verdict.signals]
    assert {signal.label for signal in signals} == {"sentence"}
    assert any(signal.negative > 0 for signal in signals)
    assert not any(signal.absent for signal in signals)


def test_the_digest_covers_all_that_decides(world, baselines):
    first = stream(world, baselines).digest
    assert stream(world, baselines, batch_size=5).digest == first
    moved = dataclasses.replace(baselines, correct=dataclasses.replace(baselines.correct, mean=0.9))
    others = [stream(world, moved).digest]
    for changes in ({"scale": 11}, {"margin": 0.4}, {"margin": 0.1, "margin_unit": "absolute"}):
        others.append(stream(world, baselines, **changes).digest)
    for key in ("pad", "per"):
        value = {"pad": False, "per": "caption"}[key]
        fitting = dataclasses.replace(baselines, made_of=dict(baselines.made_of) | {key: value})
        others.append(stream(world, fitting, **{key: value}).digest)
    assert len({first, *others}) == 1 + len(others)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (
            "verifier",
            r"b.json was made with another verifier .*: 123456789012, and now it is [0-9a-f]{12}; make it",
        ),
        ("entities", "another list of words"),
        ("per", "another clip.per: caption, and now it is word"),
        ("pad", "another clip.pad: False, and now it is True"),
    ],
)
def test_baselines_of_something_else(world, baselines, key, message):
    before = {"verifier": "123456789012345", "entities": "1", "per": "caption", "pad": False}[key]
    with pytest.raises(InputError, match=message) as error:
        stream(world, dataclasses.replace(baselines, made_of=dict(baselines.made_of) | {key: before}))
    assert "\n" not in str(error.value)


def test_a_margin_that_leaves_nothing_is_told(world, baselines, caplog):
    with caplog.at_level(logging.INFO):
        stream(world, baselines)
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert "% of the correct words of the baselines" in caplog.text
        caplog.clear()
        found = list(stream(world, baselines, margin=100, margin_unit="absolute").judge(clip_world.items(world)))
    (warning,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "with a margin of +100 nothing in the baselines' responses would be rewarded or punished" in warning.message
    assert "14 words, 0% of them rewarded, 0% punished" in caplog.text
    signals = [signal for verdicts in found for verdict in verdicts for signal in verdict.signals]
    assert not any(signal.positive or signal.negative for signal in signals)


@pytest.mark.parametrize("per", ["caption", "sentence"])
def test_what_is_longer_than_the_verifier_reads_is_told_once(world, baselines, caplog, per):
    texts = [text for item in clip_world.items(world) for text in item.texts if text.strip()]
    if per == "sentence":
        texts = [text[slice(*span)] for text in texts for span in split_sentences(text)]
    tokenizer = tokenizers.Tokenizer.from_file(str(world / "clip" / "tokenizer.json"))
    limit = clip_world.checkpoint(world).config.text.max_position_embeddings
    cut = sum(len(tokenizer.encode(text).ids) > limit for text in texts)
    assert 0 < cut < len(texts)
    whole = dataclasses.replace(baselines, made_of=dict(baselines.made_of) | {"per": per})
    judge = stream(world, whole, per=per)
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            list(judge.judge(clip_world.items(world)))
    (line,) = [message for message in caplog.messages if "longer than" in message]
    assert line.startswith(f"clip: {cut} of {len(texts)} {per}s (")
    assert line.endswith(f"%) are longer than the {limit} tokens that the verifier reads; their ends are not judged")
    caplog.clear()
    with caplog.at_level(logging.INFO):  # the words of a long caption are all read
        list(stream(world, baselines).judge(clip_world.items(world)))
    assert "longer than" not in caplog.text


def test_a_tagger_that_is_missing_is_told_by_its_option(monkeypatch, tmp_path):
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    with pytest.raises(InputError, match=r"^clip\.entities lvis: NLTK's tagger .* run `python -m nltk") as caught:
        read_entities(ClipStreamConfig(entities="lvis"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "clip.batch_size must be at least 1, got 0"),
        ({"scale": 0}, "clip.scale: expected a number above 0"),
        ({"scale": float("inf")}, "clip.scale"),
        ({"margin": -1}, "clip.margin: expected 0 or more, got -1; clip.margin_sign turns it"),
        ({"margin": 2, "margin_unit": "quantile"}, "clip.margin: expected a quantile from 0 to 1, got 2"),
        ({"margin": 0.5, "margin_unit": "quantile", "margin_sign": "-"}, "clip.margin_sign: '-' means nothing"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(InputError, match=message):
        ClipStreamConfig(**changes)


def test_what_is_not_given():
    with pytest.raises(InputError, match=r"clip.model is not given; name a CLIP"):
        ClipStreamConfig().check_given()
    with pytest.raises(InputError, match=r"clip.baselines is not given; make the file with python -m"):
        ClipStreamConfig(model="x").check_given()
