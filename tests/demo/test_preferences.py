"""Preferences that the demo makes are read by the readers that users have, and say what is true."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from PIL import Image

from vigor_jax.data.preferences.read import scan_preferences
from vigor_jax.data.records import store
from vigor_jax.demo.dataset import DemoDataConfig
from vigor_jax.demo.language import errors, parse
from vigor_jax.demo.preferences import FILES, write_preferences
from vigor_jax.demo.scenes import make_scene
from vigor_jax.demo.teaching import describe, true_and_worse
from vigor_jax.records import Candidate

CONFIG = DemoDataConfig(careless_annotators=0.0)
SCENES = {f"{number:05d}.png": make_scene(np.random.default_rng(number)) for number in range(40)}


def wrong(text, image):
    """Sentences of a caption with a mistake."""
    found = [sentence.statement for sentence in parse(text)]
    return sum(statement is None or bool(errors(statement, SCENES[image])) for statement in found)


def worth(source, text, image):
    """What a caption is worth: to people, what is right less what is wrong; to others, the share that is right."""
    number, bad = len(parse(text)), wrong(text, image)
    return number - 2 * bad if source == "people" else -bad / number


@pytest.fixture(scope="module")
def seed(tmp_path_factory):
    """As much of a seed's directory as preferences are made of."""
    directory, rng = tmp_path_factory.mktemp("seed"), np.random.default_rng(0)
    (directory / "data" / "images" / "unlabeled").mkdir(parents=True)
    for image in SCENES:
        Image.new("RGB", (4, 4)).save(directory / "data" / "images" / "unlabeled" / image)
    scenes = {f"unlabeled/{image}": dataclasses.asdict(scene) for image, scene in SCENES.items()}
    (directory / "data" / "scenes.json").write_text(json.dumps(scenes))
    candidates = [
        Candidate(image, "Say.", number, describe(scene, rng), (1,), -1.0, "stop")
        for image, scene in SCENES.items()
        for number in range(4)
    ]
    store.write_part(directory / "shared" / "candidates", 0, 1, candidates, Candidate)
    return directory


@pytest.mark.parametrize("source", FILES)
def test_the_better_response_is_the_better_one(source, seed):
    path = write_preferences(source, seed, CONFIG)
    scan = scan_preferences(path, seed / "data" / "images" / "unlabeled")
    assert not scan.bad
    assert scan.form in path.name
    assert len(scan.rows) > len(SCENES) / 2
    right, pairs = 0, 0
    for row in scan.rows:
        image = row.preference.image
        for better, worse in row.preference.pairs():
            good, bad = (row.preference.responses[index] for index in (better, worse))
            right += worth(source, good, image) > worth(source, bad, image)
            pairs += 1
            if source == "worse":
                assert wrong(good, image) == 0
    assert right == pairs if source != "random" else 0.2 * pairs < right < 0.8 * pairs


def test_people_compare_every_two_captions_of_an_image_that_differ_in_what_is_right(seed):
    path = write_preferences("people", seed, CONFIG)
    compared = [
        {row.preference.responses[index] for index in pair}
        for row in scan_preferences(path, seed / "data" / "images" / "unlabeled").rows
        for pair in row.preference.pairs()
    ]
    texts: dict[str, list[str]] = {}
    for candidate in store.read_parts(seed / "shared" / "candidates", Candidate):
        texts.setdefault(candidate.image, []).append(candidate.text)
    expected = [
        {one, other}
        for image, found in texts.items()
        for one, other in itertools.combinations(found, 2)
        if worth("people", one, image) != worth("people", other, image)
    ]
    assert len(expected) > 2 * len(SCENES)
    assert sorted(map(sorted, compared)) == sorted(map(sorted, expected))


def test_preferences_are_made_once_and_always_the_same(seed):
    path = write_preferences("rated", seed, CONFIG)
    content = path.read_bytes()
    path.unlink()
    assert write_preferences("rated", seed, CONFIG).read_bytes() == content
    path.write_text("kept")
    assert write_preferences("rated", seed, CONFIG).read_text() == "kept"
    path.unlink()


def test_worse_captions_have_as_many_sentences_and_half_of_them_wrong():
    rng, shares = np.random.default_rng(0), []
    for image, scene in SCENES.items():
        true, worse = true_and_worse(scene, rng)
        assert len(parse(true)) == len(parse(worse)) == len(scene.statements)
        assert wrong(worse, image) > 0
        shares.append(wrong(worse, image) / len(parse(worse)))
    assert 0.35 < np.mean(shares) < 0.7
