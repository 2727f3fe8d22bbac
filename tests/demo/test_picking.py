"""Sets of annotated captions that are picked by a model of their random half."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from vigor_jax.data.records import store
from vigor_jax.data.records.annotations import read_annotations, write_annotations
from vigor_jax.demo import compare
from vigor_jax.demo.dataset import annotate_caption
from vigor_jax.demo.picking import ASKED, EPOCHS, FIRST, Asked, choose_asked, taught_by, told, write_asked, write_pool
from vigor_jax.demo.scenes import make_scene
from vigor_jax.demo.teaching import describe
from vigor_jax.demo.variants import VARIANTS
from vigor_jax.feedback.of_run import scored_descriptions
from vigor_jax.feedback.pick import disagreement, uncertainty
from vigor_jax.records import Candidate, Signal, Verdict

SCENES = 40
SIZE = 20


@pytest.fixture(scope="module")
def annotations(tmp_path_factory):
    """Of two captions of each scene."""
    rng, found = np.random.default_rng(0), []
    for number in range(SCENES):
        scene = make_scene(np.random.default_rng(number))
        for other in (number, number + 1):
            text = describe(make_scene(np.random.default_rng(other)), rng)
            found.append(annotate_caption(f"annotated/{number:05d}.png", text, scene, 0.0, rng))
    path = tmp_path_factory.mktemp("data") / "annotations.jsonl"
    write_annotations(path, found)
    return path


@pytest.fixture(scope="module")
def pool(annotations, tmp_path_factory):
    """With a reward model and a detector that say anything of the sentences."""
    pool, rng = tmp_path_factory.mktemp("pool"), np.random.default_rng(1)
    write_pool(annotations, pool)
    verdicts: dict[str, list[Verdict]] = {"reward_model": [], "detector": []}
    for candidate, annotation in zip(
        store.read_parts(pool / "candidates", Candidate), read_annotations(annotations), strict=True
    ):
        for stream, own in verdicts.items():
            scores = rng.random(len(annotation.sentences))
            is_wrong = scores < 0.5
            signals = tuple(
                Signal("0 location" if wrong else "1", (sentence.span,), float(wrong), 1.0 - wrong, score,
                       absent=bool(wrong) and stream == "detector")
                for sentence, score, wrong in zip(annotation.sentences, scores, is_wrong, strict=True)
            )  # fmt: skip
            own.append(Verdict(candidate.image, candidate.candidate, stream, signals))
    for stream, own in verdicts.items():
        store.write_part(pool / "verdicts" / stream, 0, 1, own, Verdict)
    return pool


def keys(found):
    return [(each.image, each.description) for each in found]


def test_the_pool_is_all_captions_once(annotations, pool):
    candidates = list(store.read_parts(pool / "candidates", Candidate))
    assert [(each.image, each.text) for each in candidates] == keys(read_annotations(annotations))
    assert {each.candidate for each in candidates} == {0, 1}
    write_pool(annotations, pool)
    assert list(store.read_parts(pool / "candidates", Candidate)) == candidates


def test_random_sets_hold_each_other(annotations, pool):
    small, large = (choose_asked(Asked("random", size), annotations, pool, 3) for size in (10, 30))
    assert large[:10] == small
    assert len({each.image for each in large}) == 30
    known = dict(zip(keys(read_annotations(annotations)), read_annotations(annotations), strict=True))
    assert all(known[key] == each for key, each in zip(keys(large), large, strict=True))
    assert choose_asked(Asked("random", 10), annotations, pool, 4) != small


@pytest.mark.parametrize(("way", "worth"), [("uncertain", uncertainty), ("disagreement", disagreement)])
def test_half_is_random_and_the_other_half_is_worth_most(annotations, pool, way, worth):
    half = choose_asked(Asked("random", SIZE // 2), annotations, pool, 0)
    found = choose_asked(Asked(way, SIZE), annotations, pool, 0)
    assert found[: SIZE // 2] == half
    assert len(set(keys(found))) == SIZE
    scored = {(each.description.image, each.description.text): worth(each) for each in scored_descriptions(pool)}
    left = {key: value for key, value in scored.items() if key not in keys(half)}
    picked = keys(found)[SIZE // 2 :]
    assert [left[key] for key in picked] == sorted((left[key] for key in picked), reverse=True)
    images = {image for image, _ in picked}
    assert len(images) == len(picked)
    least = min(left[key] for key in picked)
    assert all(value <= least for key, value in left.items() if key[0] not in images)


def test_a_set_is_written_once_and_told(annotations, pool, tmp_path, caplog):
    path = tmp_path / "new" / "annotations.jsonl"
    with caplog.at_level("INFO"):
        write_asked(Asked("coverage", SIZE), annotations, pool, path, 0)
    found = list(read_annotations(path))
    assert len(found) == SIZE
    sentences = [sentence for each in found for sentence in each.sentences]
    wrong = sum(bool(sentence.errors) for sentence in sentences)
    assert f"{SIZE} captions, {len(sentences)} sentences, {wrong} wrong (" in caplog.text
    assert told(found) in caplog.text
    before = path.read_bytes()
    write_asked(Asked("random", 3), annotations, pool, path, 1)
    assert path.read_bytes() == before


def test_every_variant_learns_from_all_of_its_set():
    variants = {variant.judged: variant for variant in VARIANTS}
    config = compare._config(Path("data"), 0)
    for name, asked in {**ASKED, "first": FIRST}.items():
        found = taught_by(config, Path("own.jsonl"), asked).train_reward
        assert (found.annotations, found.held_out, found.epochs) == (Path("own.jsonl"), 0.0, EPOCHS[asked.size])
        assert (
            dataclasses.replace(found, annotations=config.train_reward.annotations, held_out=0.1, epochs=2)
            == config.train_reward
        )
        assert name == "first" or f"{asked.size:,} captions" in variants[name].label
    assert FIRST.size == min(asked.size for asked in ASKED.values()) // 2
