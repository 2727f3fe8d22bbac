"""Scores of words, sentences and captions against transformers, from the files on disk.

As a program, `python -m tests.rewards.test_verifier JOB`, it scores on several devices for the tests here.
"""

import json
import sys
from itertools import chain
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from tests.rewards import clip_world
from tests.rewards.clip_world import TEXTS
from tests.stages.sft_world import finish, spawn_python
from vigor_jax.data.text.box_text import write_boxes
from vigor_jax.errors import InputError
from vigor_jax.records import Span
from vigor_jax.rewards.sentences import split_sentences
from vigor_jax.rewards.verifier import ClipVerifier

CLOSE = 1e-5
# The words of each text, in the order of their first places, and how often each is asserted.
WORDS = (
    ([("dog", 2), ("cat", 1), ("puppy", 1)], [("dog", 1), ("bench", 1)], []),
    ([("traffic light", 1), ("man", 1)], []),
    ([("glass", 1), ("glasses", 1)], [("woman", 1), ("hot-dog", 1)], [], [("bench", 3)]),
    ([("man", 1)],),
    ([("cat", 40)],),
)
CATEGORIES = {"puppy": "dog", "hot-dog": "dog", "man": "person", "woman": "person", "glasses": "glass"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return clip_world.make_world(tmp_path_factory.mktemp("clip"))


def verifier(world, *sizes, **changes) -> ClipVerifier:
    return ClipVerifier(clip_world.checkpoint(world), clip_world.config(world, **changes), clip_world.mesh(*sizes))


@pytest.fixture(scope="module")
def words(world):
    return verifier(world)


@pytest.fixture(scope="module")
def reference(world):
    """(image's number, text) → cosine, by transformers alone."""
    model = transformers.CLIPModel.from_pretrained(world / "clip").eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(world / "clip")
    processor = transformers.CLIPImageProcessor.from_pretrained(world / "clip")

    def cosine(number: int, text: str, pad: bool = True) -> float:
        image = Image.open(world / "images" / f"{number}.png")
        if pad:
            side = max(image.size)
            square = Image.new("RGB", (side, side), tuple(int(255 * mean) for mean in processor.image_mean))
            square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
            image = square
        limit = model.config.text_config.max_position_embeddings
        tokens = tokenizer([text], truncation=True, max_length=limit, return_tensors="pt")
        with torch.no_grad():
            found = model(**tokens, **processor([image], return_tensors="pt"))
        return float(found.text_embeds[0] @ found.image_embeds[0])

    return cosine


def test_words_are_found_and_scored(world, words, reference):
    found = list(words.score(clip_world.items(world)))
    assert [[[(each.label, len(each.spans)) for each in own] for own in texts] for texts in found] == [
        list(texts) for texts in WORDS
    ]
    for number, (texts, given) in enumerate(zip(found, TEXTS, strict=True)):
        for own, text in zip(texts, given, strict=True):
            for each in own:
                assert each.category == CATEGORIES.get(each.label, each.label)
                assert abs(each.cosine - reference(number, each.label)) < CLOSE
                for span in each.spans:
                    assert text[slice(*span)][0].lower() == each.label[0]
                    assert text[slice(*span)].isalpha() == each.label.isalpha()
    cosines = {round(each.cosine, 4) for texts in found for own in texts for each in own}
    assert len(cosines) > 8


@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize("per", ["sentence", "caption"])
def test_sentences_and_captions(world, reference, per, pad):
    found = list(verifier(world, per=per, pad=pad).score(clip_world.items(world)))
    sentences = {TEXTS[0][0]: ["A dog and two cats.", "The Dog sees a puppy."], "nothing": ["nothing"]}
    for number, (texts, given) in enumerate(zip(found, TEXTS, strict=True)):
        for own, text in zip(texts, given, strict=True):
            assert {each.label for each in own} <= {per}
            assert bool(own) == bool(text.strip())
            stated = [text[slice(*each.spans[0])] for each in own]
            if per == "caption":
                assert stated == [text] * len(own)
            elif text in sentences:
                assert stated == sentences[text]
            for each, said in zip(own, stated, strict=True):
                assert abs(each.cosine - reference(number, said, pad)) < CLOSE


@pytest.mark.parametrize("per", ["sentence", "caption"])
def test_boxes_are_not_scored(world, per):
    scorer = verifier(world, per=per)
    item = clip_world.items(world)[0]
    expected = next(scorer.score([item]))
    ends = [[span.end for span in split_sentences(text)] for text in item.texts]
    places = [[(Span(end, end), (0.25, 0.3, 0.58, 1.0)) for end in own] for own in ends]
    boxed = item._replace(texts=tuple(map(write_boxes, item.texts, places)))
    found = next(scorer.score([boxed]))
    assert [[each.cosine for each in own] for own in found] == [[each.cosine for each in own] for own in expected]
    if per == "sentence":
        spans = [[each.spans[0] for each in own] for own in found]
        assert spans == [split_sentences(text) for text in boxed.texts] != [split_sentences(t) for t in item.texts]


def assert_same(found, expected):
    """But for the last digits of cosines."""
    for its, own in zip(chain(*chain(*found)), chain(*chain(*expected)), strict=True):
        assert its[:3] == own[:3]
        assert abs(its.cosine - own.cosine) < CLOSE


def test_batches_change_nothing_and_compile_once(world, words):
    items = clip_world.items(world)
    expected = list(words.score(items))
    before = words.compilations
    assert list(words.score(items[::-1]))[::-1] == expected  # to the last digit
    assert [found for item in items for found in words.score([item])] == expected
    assert words.compilations == before == 2  # images, and words of one length
    assert_same(verifier(world, batch_size=8).score(items), expected)


@pytest.mark.parametrize("per", ["sentence", "caption"])
def test_neighbors_change_no_digit(world, per):
    """A run that was stopped in between judges in other batches."""
    items, scorer = clip_world.items(world), verifier(world, per=per)
    expected = list(scorer.score(items))
    assert [found for item in items for found in scorer.score([item])] == expected
    assert scorer.compilations == 2


def test_nothing_goes_to_the_device_unasked(world, words):
    items = clip_world.items(world)
    expected = list(words.score(items))
    with jax.transfer_guard("disallow"):
        assert list(words.score(items)) == expected


def test_images_are_read_ahead_and_not_all_at_once(world, words):
    asked = []

    def asking():
        for item in clip_world.items(world):
            asked.append(item)
            yield item

    results = words.score(asking())
    assert not asked
    next(results)
    assert len(asked) == 4


def test_an_image_that_cannot_be_read_is_named(world, words):
    item = clip_world.items(world)[0]
    with pytest.raises(InputError, match=r"0\.png: .*no\.png: no such image"):
        list(words.score([item._replace(path=item.path.with_name("no.png"))]))


def test_what_cosines_depend_on(world, words, tmp_path):
    assert verifier(world, batch_size=7, margin=3, scale=1).made_of == words.made_of
    (tmp_path / "list.txt").write_text(clip_world.ENTITIES + "zebra\n")
    for changes, key in (
        ({"entities": tmp_path / "list.txt"}, "entities"),
        ({"per": "caption"}, "per"),
        ({"pad": False}, "pad"),
    ):
        found = verifier(world, **changes).made_of
        assert [name for name in found if found[name] != words.made_of[name]] == [key]
    (tmp_path / "copy.txt").write_text("# the same words\n" + clip_world.ENTITIES)
    assert verifier(world, entities=tmp_path / "copy.txt").made_of == words.made_of


@pytest.mark.slow
def test_same_on_eight_devices(world, words, tmp_path):
    job = {"world": str(world), "out": str(tmp_path / "out.json"), "meshes": [(2, 2, 2), (1, 8, 1), (8, 1, 1)]}
    finish(spawn_python(["-m", "tests.rewards.test_verifier", json.dumps(job)], devices=8, cache=tmp_path / "cache"))
    expected = cosines(words, world)
    for found in json.loads((tmp_path / "out.json").read_text()):
        np.testing.assert_allclose(found, expected, atol=CLOSE)


def cosines(scorer: ClipVerifier, world: Path) -> list[float]:
    return [each.cosine for texts in scorer.score(clip_world.items(world)) for own in texts for each in own]


def main() -> None:
    job = json.loads(sys.argv[1])
    world = Path(job["world"])
    found = [cosines(verifier(world, *sizes, batch_size=3), world) for sizes in job["meshes"]]
    Path(job["out"]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
