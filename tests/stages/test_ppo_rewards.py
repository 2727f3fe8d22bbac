"""Streams in a rollout: claims on their tokens; and what is advised where no token has a reward."""

import dataclasses
from contextlib import closing

import numpy as np
import pytest

from tests.rewards import clip_world
from tests.stages.ppo_world import Letters, Silent
from vigor_jax.demo.config import demo_config
from vigor_jax.demo.dataset import CHECKPOINTS, COLOR_WORDS, write_colors
from vigor_jax.demo.drawing import draw
from vigor_jax.demo.language import NUMBERS, say
from vigor_jax.demo.scenes import COLORS, PLACES, make_scene
from vigor_jax.errors import InputError
from vigor_jax.hf.load import open_checkpoint
from vigor_jax.records import ScoreItem, Signal, Span, Verdict
from vigor_jax.rewards.clip import ClipStream
from vigor_jax.rewards.clip_baselines import make_baselines
from vigor_jax.rewards.stream import credit_of
from vigor_jax.rewards.token_rewards import TokenRewardConfig, batch_token_rewards, token_offsets
from vigor_jax.rewards.verifier import ClipVerifier
from vigor_jax.stages.ppo_rewards import advice, judge_responses
from vigor_jax.stages.score import ScoreStage
from vigor_jax.stages.score_config import ScoreConfig

KNOWN, UNKNOWN = "A dog and two cats.", "Nothing of that kind."


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return clip_world.make_world(tmp_path_factory.mktemp("advice"))


def clip(world, **changes) -> ClipStream:
    """Of eq. 8 with means that no score of a random CLIP reaches: a cosine is at most 1."""
    config = clip_world.config(world, baselines=world / "b.json", **changes)
    made_of = ClipVerifier(clip_world.checkpoint(world), config, clip_world.mesh()).made_of
    far = make_baselines([[(1.5, False), (-1.5, True)]], made_of)
    return ClipStream(clip_world.checkpoint(world), config, clip_world.mesh(), far)


def advised(world, judges, text: str, **settings) -> str:
    items = [each._replace(texts=(text,)) for each in clip_world.items(world)[:2]]
    verdicts = [own for some in judge_responses(judges, items) for own in some]
    return advice(judges, verdicts, TokenRewardConfig(**settings))


@pytest.mark.parametrize(
    ("changes", "text", "expected"),
    [
        ({}, KNOWN, "lower --clip.margin (now 10)"),
        ({"margin": 3, "margin_sign": "-"}, KNOWN, "raise --clip.margin (now 3)"),
        ({"margin": 0}, KNOWN, "give a --clip.margin above 0 with --clip.margin_sign -"),
        ({}, UNKNOWN, "give --clip.entities a list with words that they use"),
        ({"per": "caption"}, KNOWN, "lower --clip.margin (now 10)"),
    ],
    ids=["the margin", "turned", "no margin", "no word is in the list", "of the caption"],
)
def test_of_the_verifier(world, changes, text, expected):
    stream = clip(world, **changes)
    assert advised(world, {"clip": stream}, text) == expected
    assert advised(world, {"silent": Silent(), "clip": stream}, text) == expected


def test_of_another_stream(world):
    """Whatever else a class of a user's may have."""
    silent = Silent()
    silent.advice = "none"
    assert advised(world, {"silent": silent}, KNOWN) == "give a stream that judges what these responses say"


def test_a_margin_is_not_blamed_for_the_weights(world):
    """Where a stream does judge, what it says is lost later."""
    judges = {"clip": clip(world), "letters": Letters()}
    said = advised(world, judges, "a cat", positive=0.0, weights={"letters": 0.5})
    assert said == (
        "the streams do judge them, and ppo.token_rewards (positive 0, negative 1, weights.letters 0.5) leaves nothing "
        "of it; raise what is 0"
    )


@pytest.mark.parametrize("normalize", ["std", "variance"])
def test_what_is_equal_everywhere_is_nothing_to_normalize(world, normalize):
    judges = {"letters": Letters()}
    items = [each._replace(texts=("a cat",) * 2) for each in clip_world.items(world)[:2]]
    verdicts = [own for some in judge_responses(judges, items) for own in some]
    offsets = [np.array([[0, 1], [1, 5]], np.int32)] * 4
    for kind, rewarded, said in ((normalize, False, "or give normalize none"), ("none", True, "raise what is 0")):
        config = TokenRewardConfig(normalize=kind)
        found = batch_token_rewards(verdicts, offsets, config, credits={"letters": "words"})
        assert bool(found.rewards.any()) == rewarded
        assert advice(judges, verdicts, config).endswith(said)


def test_what_helps_does_help(world):
    """Lowered so far, the margin rewards something; the scores of `clip` stay."""
    config = clip_world.config(world, baselines=world / "b.json", margin=1.0, margin_unit="quantile")
    made_of = ClipVerifier(clip_world.checkpoint(world), config, clip_world.mesh()).made_of
    near = make_baselines([[(1.0, False), (-0.9, False), (-1.0, True)]], made_of)
    seen = []
    for margin in (1.0, 0.0):
        lowered = dataclasses.replace(config, margin=margin)
        stream = ClipStream(clip_world.checkpoint(world), lowered, clip_world.mesh(), near)
        (verdict,) = next(stream.judge([clip_world.items(world)[0]._replace(texts=(KNOWN,))]))
        seen.append([signal.positive > 0 for signal in verdict.signals])
    assert seen == [[False, False], [True, True]]


def test_signals_are_looked_at_and_not_their_number():
    """One that is neither good nor bad leaves nothing to weigh."""
    neutral = Verdict("a", 0, "letters", (Signal("word", (Span(0, 1),), 0.0, 0.0, 0.5),))
    found = advice({"letters": Letters()}, [{"letters": neutral}], TokenRewardConfig(positive=0.0))
    assert found == "give a stream that judges what these responses say"


class Forgetful(Letters):
    """Leaves something out: a text of each image, or an image."""

    def __init__(self, kept: slice, images: slice) -> None:
        self._kept, self._images = kept, images

    def judge(self, items):
        for verdicts in list(super().judge(items))[self._images]:
            yield verdicts[self._kept]


@pytest.mark.parametrize(
    ("kept", "images", "got"),
    [
        (slice(1, None), slice(None), "0 of 2"),
        (slice(None), slice(1), "1 of 1"),
        (slice(None), slice(0), "0 of 0"),
    ],
    ids=["texts", "an image", "all"],
)
@pytest.mark.parametrize("together", [False, True])
def test_a_stream_that_leaves_something_out_is_named(world, monkeypatch, kept, images, got, together):
    monkeypatch.setattr(Forgetful, "uses_devices", together, raising=False)
    items = [each._replace(texts=(KNOWN,)) for each in clip_world.items(world)[:2]]
    with pytest.raises(InputError) as error:
        judge_responses({"letters": Letters(), "forgetful": Forgetful(kept, images)}, items)
    said = f"expected one verdict for each text, 2 of 2 images, got {got}; its judge must yield"
    assert said in str(error.value)
    assert str(error.value).startswith("stream letters: ")
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.main
def test_claims_are_paid_on_the_words_that_claim(tmp_path):
    """The demo's detector in a sidecar, drawn scenes, captions with one thing wrong, and the demo's tokens.

    The streams are given in the other order: claims need the detector's verdicts on the same responses.
    """
    rng, tokenizer = np.random.default_rng(0), open_checkpoint(CHECKPOINTS / "policy").tokenizer
    write_colors(tmp_path)
    items, wrong = [], []
    for number in range(6):
        scene = make_scene(rng)
        draw(scene).save(tmp_path / f"{number}.png")
        said = [(say(*each), words) for each, words in one_thing_wrong(scene.statements, form=number)]
        items.append(
            ScoreItem(f"{number}.png", tmp_path / f"{number}.png", "Describe it.", tuple(text for text, _ in said))
        )
        wrong += [words for _, words in said]
    demo = demo_config()
    words = dataclasses.replace(demo.claims.words, attributes=tmp_path / COLOR_WORDS)
    phrases = dataclasses.replace(demo.detection.phrases, tagger=CHECKPOINTS / "tagger")
    detection = dataclasses.replace(demo.detection, model=CHECKPOINTS / "detector", phrases=phrases)
    claims, streams = dataclasses.replace(demo.claims, words=words), ScoreConfig(("claims", "detector"))
    with closing(ScoreStage(streams, detection, demo.reward_model, str(tmp_path), claims=claims)) as stage:
        judges = stage.judges(None)  # which our streams without a model do not look at
        verdicts = [own for some in judge_responses(judges, items) for own in some]
    assert list(judges) == ["detector", "claims"]
    texts = [text for item in items for text in item.texts]
    ids = [tokenizer.encode(text) for text in texts]
    offsets = [token_offsets(tokenizer, own, text) for own, text in zip(ids, texts, strict=True)]
    config = TokenRewardConfig(weights={"detector": 0.0})
    found = batch_token_rewards(
        verdicts, offsets, config, credits={name: credit_of(each) for name, each in judges.items()}
    )
    for text, own, row, expected in zip(texts, offsets, found.rewards, wrong, strict=True):
        start = text.index(expected)
        inside = (own[:, 0] < start + len(expected)) & (own[:, 1] > start)
        punished = row[: len(own)] < 0
        np.testing.assert_array_equal(punished, inside, err_msg=f"{text!r}: {expected!r}")
        assert row[: len(own)][inside].sum() == pytest.approx(-1)
        assert (row[: len(own)] > 0).any()  # what else it claims is right
    assert len(texts) > 12


def one_thing_wrong(statements, form):
    """Statements of a scene with another color, number or place: arguments of `say`, and the words that are wrong."""
    for true in statements:
        color = COLORS[COLORS.index(true.color) - 1]
        yield (true._replace(color=color), form), color
        if true.number == 1:
            place = PLACES[PLACES.index(true.place) - 4]
            yield (true._replace(place=place), form), place
        else:
            yield (true._replace(number=5 - true.number), form), NUMBERS[5 - true.number]
