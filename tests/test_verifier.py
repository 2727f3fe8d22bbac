"""`python -m vigor_jax.verifier` on captions of drawn scenes: the file, the figures, and what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.rewards import clip_world
from vigor_jax import verifier
from vigor_jax.disk import describe
from vigor_jax.errors import InputError
from vigor_jax.rewards.clip_baselines import Baselines
from vigor_jax.rewards.verifier import ClipVerifier

ROOT = Path(__file__).resolve().parents[1]
# What is in each picture, in the words of the annotations.
OBJECTS = {"0.png": ["dog"], "1.png": ["person", "cat"], "2.png": ["cup"], "3.png": ["person"], "4.png": []}
KNOWN = ("dog", "person", "cat", "cup", "bench")  # "bench" is in no picture, and known all the same
CAPTIONS = [
    ("0.png", "A dog and two cats. The dog sees a puppy."),
    ("0.png", "A bench."),
    ("1.png", "Two cats on a bench with a man."),
    ("1.png", ""),
    ("2.png", "A traffic light."),  # of which nothing is known
    ("3.png", "A woman, no dog."),
    ("4.png", "A dog, a man and a bench."),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    root = clip_world.make_world(tmp_path_factory.mktemp("world"))
    categories = [{"id": number, "name": name} for number, name in enumerate(KNOWN)]
    images = [{"id": number, "file_name": name} for number, name in enumerate(OBJECTS)]
    annotations = [
        {"image_id": number, "category_id": KNOWN.index(each)}
        for number, own in enumerate(OBJECTS.values())
        for each in own
    ]
    coco = {"images": images, "categories": categories, "annotations": annotations}
    (root / "instances.json").write_text(json.dumps(coco))
    lines = [{"image": image, "text": text} for image, text in CAPTIONS]
    (root / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def arguments(world: Path, out: Path, **changes) -> list[str]:
    given = {
        "clip.model": world / "clip",
        "clip.entities": world / "entities.txt",
        "clip.batch_size": 2,
        "captions": world / "captions.jsonl",
        "objects": world / "instances.json",
        "images": world / "images",
        "out": out,
    }
    given |= {name.replace("__", "."): value for name, value in changes.items()}
    return [str(part) for name, value in given.items() if value is not None for part in (f"--{name}", value)]


@pytest.fixture(scope="module")
def cosines(world):
    """(image, word or text) → cosine."""
    scorer = ClipVerifier(clip_world.checkpoint(world), clip_world.config(world), clip_world.mesh())
    found = {}
    for image, text in CAPTIONS:
        (item,) = (each for each in clip_world.items(world) if each.image == image)
        ((words,),) = scorer.score([item._replace(texts=(text,))])
        ((whole,),) = scorer.score([item._replace(texts=(text,))], "caption")
        found |= {(image, word.label): word.cosine for word in words}
        found |= dict.fromkeys([(image, text)] * len(whole), sum(each.cosine for each in whole))
    return found


# The known words of each caption, mention by mention, and whether they are wrong.
MENTIONS = [
    ("0.png", 0, [("dog", 0), ("cat", 1), ("dog", 0), ("puppy", 0)]),
    ("0.png", 1, [("bench", 1)]),
    ("1.png", 2, [("cat", 0), ("bench", 1), ("man", 0)]),
    ("3.png", 5, [("woman", 0)]),
    ("4.png", 6, [("dog", 1), ("man", 1), ("bench", 1)]),
]


def test_the_file_has_the_means_of_eq_7(world, cosines, tmp_path, capsys):
    verifier.main(arguments(world, tmp_path / "sub" / "b.json"))
    found = Baselines.read(tmp_path / "sub" / "b.json")
    for side, kind in ((found.correct, 0), (found.hallucinated, 1)):
        own = [[cosines[image, word] for word, wrong in words if wrong == kind] for image, _, words in MENTIONS]
        own = [each for each in own if each]
        assert side.mean == pytest.approx(np.mean([np.mean(each) for each in own]), abs=1e-6)
        assert (side.words, side.responses) == (sum(map(len, own)), len(own))
        assert side.quantiles[-1] == pytest.approx(max(map(max, own)), abs=1e-6)
    assert (found.made_of["images"], found.made_of["captions_read"]) == (5, 7)
    assert found.made_of["model"] == "clip"

    out = capsys.readouterr().out
    assert "12 mentions of objects in 7 captions: 6 correct, 6 hallucinated; 1 more are none of the objects" in out
    assert f"mu_c {250 * found.correct.mean:.2f}, mu_h {250 * found.hallucinated.mean:.2f}" in out

    def auc(score) -> float:
        words = [(score(image, caption, word), wrong) for image, caption, own in MENTIONS for word, wrong in own]
        pairs = [(good > bad) + (good == bad) / 2 for good, w in words if not w for bad, v in words if v]
        return float(np.mean(pairs))

    by_word = auc(lambda image, _, word: cosines[image, word])
    by_caption = auc(lambda image, caption, _: cosines[image, CAPTIONS[caption][1]])
    assert f"{by_word:.3f} by the score of the word, {by_caption:.3f} by that of the whole caption" in out
    assert out.count("absolute") == 3
    assert "absolute 10 *" in out


def test_whole_captions_as_the_control(world, cosines, tmp_path):
    verifier.main(arguments(world, tmp_path / "b.json", clip__per="caption"))
    found = Baselines.read(tmp_path / "b.json")
    own = [cosines[image, CAPTIONS[caption][1]] for image, caption, words in MENTIONS if any(w for _, w in words)]
    assert found.hallucinated.mean == pytest.approx(np.mean(own), abs=1e-6)
    assert found.made_of["per"] == "caption"


@pytest.mark.slow
@pytest.mark.main
def test_a_process_of_its_own(world, tmp_path):
    command = [sys.executable, "-m", "vigor_jax.verifier"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}

    def run(*more, **changes):
        given = arguments(world, tmp_path / "b.json", **changes)
        return subprocess.run([*command, *given, *more], capture_output=True, text=True, env=environment, cwd=ROOT)

    done = run("--clip.margin", "0.5", "--clip.margin_unit", "std")
    assert done.returncode == 0, done.stderr
    assert "std 0.5 *" in done.stdout
    failed = run(clip__model=world / "absent")
    assert failed.returncode == 2
    assert "absent is no directory; give the directory of a CLIP" in failed.stderr.splitlines()[-1]
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip__model": None}, "--clip.model is not given"),
        ({"objects": "no.json"}, "no.json"),
        ({"captions": "no.jsonl"}, "no.jsonl"),
        ({"clip__entities": "no.txt"}, "clip.entities: expected coco, lvis or a file"),
    ],
)
def test_files_that_are_missing(world, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        verifier.main(arguments(world, tmp_path / "b.json", **changes))


def test_a_place_for_no_file_is_refused_before_anything_is_scored(world, tmp_path, monkeypatch):
    """Hours of scores would be lost."""
    monkeypatch.setattr(verifier, "measure", None)
    (tmp_path / "file").write_text("kept")
    with pytest.raises(InputError, match=r"--out .* is a directory; name a file in it, such as .*/baselines\.json$"):
        verifier.main(arguments(world, tmp_path))
    for out, reason in (("file/b.json", "File exists"), ("file/deep/b.json", "Not a directory")):
        with pytest.raises(OSError, match=reason) as error:
            verifier.main(arguments(world, tmp_path / out))
        assert describe(error.value)  # what the command prints
    assert (tmp_path / "file").read_text() == "kept"


def test_captions_without_what_is_needed(world, tmp_path):
    def refused(lines, message, **changes):
        (tmp_path / "c.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        with pytest.raises(InputError, match=message) as error:
            verifier.main(arguments(world, tmp_path / "b.json", captions=tmp_path / "c.jsonl", **changes))
        assert "\n" not in str(error.value)
        assert not (tmp_path / "b.json").exists()

    refused([{"image": "0.png", "text": "A traffic light."}], "of the object words of 1 captions none is an object of")
    refused([{"image": "0.png", "text": ""}], "none is an object of")
    refused([{"image": "0.png", "text": "A dog."}], "no hallucinated word in any response")
    refused([{"image": "4.png", "text": "A dog."}], "no correct word in any response")
    refused([{"image": "9.png", "text": "A dog."}], "9.png.* is not known")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "other.png").write_bytes((world / "images" / "0.png").read_bytes())
    refused(
        [{"image": "0.png", "text": "A dog."}, {"image": "1.png", "text": "A cat."}],
        "lacks 2 of 2 images that have captions, '0.png' first",
        images=tmp_path / "images",
    )
