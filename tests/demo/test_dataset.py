"""The demo's data on disk: the same every time, all of it or nothing, and true."""

import dataclasses
import filecmp
import json
from pathlib import Path

import numpy as np
import pytest

from vigor_jax.data.records.annotations import read_annotations
from vigor_jax.demo import dataset
from vigor_jax.demo.dataset import DemoDataConfig, annotate_caption, prepare, read_scenes
from vigor_jax.demo.drawing import draw
from vigor_jax.demo.language import errors, parse
from vigor_jax.demo.scenes import SHAPES, make_scene
from vigor_jax.errors import InputError
from vigor_jax.evaluation.benchmarks.mme import read_subtasks
from vigor_jax.evaluation.benchmarks.pope import read_questions

SMALL = DemoDataConfig(unlabeled=4, annotated=6, held_out=5, asked=4, mme=2, seed=4)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("demo") / "data"
    prepare(directory, SMALL)
    return directory


def files(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


@pytest.mark.slow
@pytest.mark.main
def test_the_same_seed_writes_the_same_bytes(directory: Path, tmp_path: Path) -> None:
    prepare(tmp_path / "again", SMALL)
    names = files(directory)
    assert names == files(tmp_path / "again")
    assert {"annotations.jsonl", "objects.json", "scenes.json", "policy/model.safetensors"} <= set(names)
    # The settings next to the descriptions name the policy by its place.
    names.remove("descriptions.jsonl.settings.json")
    _, different, failed = filecmp.cmpfiles(directory, tmp_path / "again", names, shallow=False)
    assert (different, failed) == ([], [])


@pytest.mark.slow
@pytest.mark.main
def test_what_is_written_stays_and_nothing_else_is_written_over(directory: Path, tmp_path: Path) -> None:
    before = {name: (directory / name).stat().st_mtime_ns for name in files(directory)}
    prepare(directory, SMALL)
    assert {name: (directory / name).stat().st_mtime_ns for name in files(directory)} == before
    with pytest.raises(InputError, match=r"holds the demo data .*'held_out': 5.*expected .*'held_out': 6.*remove it"):
        prepare(directory, dataclasses.replace(SMALL, held_out=6))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds something else"):
        prepare(tmp_path, SMALL)
    assert files(tmp_path) == ["notes.txt"]


@pytest.mark.slow
@pytest.mark.main
def test_interrupted_data_are_completed(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(dataset, "annotate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare(tmp_path / "data", SMALL)
    assert not (tmp_path / "data").exists()
    prepare(tmp_path / "data", SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    name = "annotations.jsonl"
    assert (tmp_path / "data" / name).read_bytes() == (directory / name).read_bytes()


@pytest.mark.slow
@pytest.mark.main
def test_scenes_do_not_depend_on_how_many_there_are(directory: Path) -> None:
    scenes = read_scenes(directory, "held_out")
    assert len(scenes) == 5
    for number, (name, scene) in enumerate(scenes.items()):
        assert scene == make_scene(np.random.default_rng([4, 2, number]))
        path = directory / "images" / "held_out" / name
        draw(scene).save(directory.parent / "drawn.png")
        assert path.read_bytes() == (directory.parent / "drawn.png").read_bytes()


@pytest.mark.slow
@pytest.mark.main
def test_questions_have_true_labels(directory: Path) -> None:
    objects = {image: set(names) for image, names in json.loads((directory / "objects.json").read_text()).items()}
    assert objects.keys() == read_scenes(directory, "held_out").keys()
    for split in ("random", "popular", "adversarial"):
        questions = read_questions(directory / "pope" / f"{split}.json")
        labels = [question.label for question in questions]
        assert labels.count("yes") == labels.count("no") >= 2 * 4
        for question in questions:
            (shape,) = (shape for shape in SHAPES if f" {shape} " in question.text)
            assert (question.label == "yes") == (shape in objects[question.image])
    subtasks = read_subtasks(directory / "mme")
    assert set(subtasks) == {"existence", "count", "position", "color"}
    assert {len(questions) for questions in subtasks.values()} == {4}


@pytest.mark.slow
@pytest.mark.main
def test_judgments_are_the_truth(directory: Path) -> None:
    """All of them, where annotators make no mistakes."""
    scenes = read_scenes(directory, "annotated")
    names = {"object": "object", "color": "attribute", "count": "attribute", "place": "location"}
    for annotation in read_annotations(directory / "annotations.jsonl"):
        scene = scenes[Path(annotation.image).name]
        careful = annotate_caption(annotation.image, annotation.description, scene, 0.0, np.random.default_rng(0))
        found = [sentence.errors for sentence in careful.sentences]
        truths = [
            errors(sentence.statement, scene) if sentence.statement else None
            for sentence in parse(annotation.description)
        ]
        expected = [("conjecture",) if t is None else tuple(dict.fromkeys(names[kind] for kind in t)) for t in truths]
        assert found == expected


def test_annotators_are_wrong_as_often_as_they_should_be() -> None:
    text = "There are two stars in red. A moon in blue is at the top. A ring in green is on the left."
    scene = make_scene(np.random.default_rng(0))
    true = [
        not sentence.errors for sentence in annotate_caption("a", text, scene, 0.0, np.random.default_rng(0)).sentences
    ]
    rng = np.random.default_rng(1)
    wrong = [
        bool(sentence.errors) == is_true
        for _ in range(1000)
        for sentence, is_true in zip(annotate_caption("a", text, scene, 0.2, rng).sentences, true, strict=True)
    ]
    assert np.mean(wrong) == pytest.approx(0.2, abs=0.025)
