"""`python -m vigor_jax.claims`: files and figures from a run's verdicts, the demo's detector in a sidecar, refusals."""

import io
import json
from pathlib import Path

import numpy as np
import pytest

import vigor_jax.demo
from tests.rewards.claims.test_stream import detected
from vigor_jax import claims, cli
from vigor_jax.config import TrainConfig
from vigor_jax.data.records.annotations import write_annotations
from vigor_jax.data.records.store import write_part
from vigor_jax.demo.dataset import annotate_caption
from vigor_jax.demo.drawing import box_xyxy, draw
from vigor_jax.demo.language import say
from vigor_jax.demo.scenes import COLORS, IMAGE_SIZE, PLACES, Statement, make_scene
from vigor_jax.errors import InputError
from vigor_jax.records import AnnotatedSentence, Annotation, Candidate, Span, Verdict

CHECKPOINTS = Path(vigor_jax.demo.__file__).parent / "checkpoints"
STAR = "There is a star on the left."


def annotation(image, *errors, text=STAR, attribute=""):
    return Annotation(image, text, (AnnotatedSentence(Span(0, len(text)), errors, attribute),))


@pytest.fixture
def world(tmp_path):
    """A run whose detector has found a star at different places, and people who call it left up to 0.6 of the width."""
    centers = [(0.025 + 0.05 * step) for step in range(20)] * 4
    candidates, verdicts, annotations = [], [], []
    for number, center in enumerate(centers):
        image = f"{number}.png"
        box = (center - 0.02, 0.1, center + 0.02, 0.2)
        found = detected(("star", (box,)))
        for index, text in enumerate(("A moon in blue is at the top.", STAR)):
            candidates.append(Candidate(image, "Describe it.", index, text, (1,), -0.1, "stop"))
            verdicts.append(Verdict(image, index, "detector", found.signals))
        annotations.append(annotation(image, *(["location"] if center > 0.6 else [])))
    for part in range(2):
        half = slice(part * len(candidates) // 2, (part + 1) * len(candidates) // 2)
        write_part(tmp_path / "run" / "candidates", part, 2, candidates[half], Candidate)
        write_part(tmp_path / "run" / "verdicts" / "detector", part, 2, verdicts[half], Verdict)
    write_annotations(tmp_path / "annotations.jsonl", annotations)
    return tmp_path


def arguments(world, **changes):
    given = {
        "annotations": world / "annotations.jsonl",
        "verdicts": world / "run",
        "detection.phrases.tagger": CHECKPOINTS / "tagger",
        "out": world / "sub" / "judge.json",
    }
    given |= {name.replace("__", "."): value for name, value in changes.items()}
    return [f"--{name}={value}" for name, value in given.items() if value is not None]


def test_a_run_that_has_judged_the_descriptions(world, capsys):
    claims.main(arguments(world, claims__judge__narrowed="exactly"))
    out = capsys.readouterr().out
    assert "place: 80 sentences, 80 with one claim; people call 32 wrong\n" in out
    assert "  >    100.0%  100.0%    80.0%           0.1         0.333           0.5\n" in out
    assert "  *     88.9%  100.0%    90.0%          0.05         0.333           0.5\n" in out
    assert "chosen on half of the images and measured on the other half: precision 100.0%, recall 100.0%" in out
    assert "number: 0 sentences, 0 with one claim; people call 0 wrong\n" in out

    found = json.loads((world / "sub" / "judge.json").read_text())
    place = found["kinds"]["place"]
    assert place["suggested"] == {"place_margin": 0.1, "center_width": 1 / 3, "side_width": 0.5}
    assert found["judge"] | place["suggested"] == found["judge"]
    (row,) = [row for row in place["rows"] if {**row, **place["suggested"]} == row]
    assert (row["cases"], row["decided"], row["wrong"], row["said"], row["agreed"]) == (80, 64, 32, 32, 32)
    assert place["rows"][0]["place_margin"] == 0.05
    assert found["kinds"]["number"]["too_few_cases"] is True


def test_training_takes_the_yaml(world):
    claims.main(arguments(world, claims__judge__narrowed="exactly"))
    given = ["--config", str(world / "sub" / "judge.yaml"), "--run.dir", "r", "--model.path", "m"]
    config = cli.parse(TrainConfig, given, description="")
    assert (config.claims.judge.place_margin, config.claims.judge.narrowed) == (0.1, "exactly")
    found = json.loads((world / "sub" / "judge.json").read_text())["judge"]
    assert {name: getattr(config.claims.judge, name) for name in found} == found


def test_only_the_kinds_that_are_asked_for(world, capsys):
    claims.main(arguments(world, claims__kinds="number,attribute"))
    assert "place:" not in capsys.readouterr().out
    assert list(json.loads((world / "sub" / "judge.json").read_text())["kinds"]) == ["number", "attribute"]


def test_descriptions_that_the_run_has_not_judged_are_told(world, capsys):
    with (world / "annotations.jsonl").open("a") as file:
        file.write(json.dumps({"image": "0.png", "description": "Ha.", "sentences": [{"text": "Ha.", "errors": []}]}))
    claims.main(arguments(world))
    assert capsys.readouterr().out.startswith("1 descriptions are left out: the run has no verdict on them\n")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"verdicts": None}, "^--images is not given; give the images of the descriptions, or --verdicts of a run$"),
        ({"precision": 0}, r"precision: expected a share in \(0, 1\], got 0$"),
        ({"precision": 95}, r"precision: expected a share in \(0, 1\], got 95$"),
        ({"out": "judge.yaml"}, "out: expected a file of JSON, next to which the YAML is written, got judge.yaml"),
        ({"grid__iou": "[2.0]"}, r"^grid: iou: expected a fraction in \[0, 1\], got 2.0$"),
        ({"grid__place": "[0.1]"}, "grid.place.*grid.place_margin"),
        ({"claims__judge__iou": 3}, r"iou: expected a fraction in \[0, 1\], got 3"),
        ({"annotations": "no.jsonl"}, "no.jsonl: cannot read the annotations"),
        ({"verdicts": "nowhere"}, "nowhere"),
        ({"detection__phrases__tagger": "nowhere"}, "nowhere"),
        ({"verdicts": None, "images": "."}, "^detection: give either addresses, of sidecars that serve, or model"),
    ],
)  # fmt: skip
def test_what_is_refused(world, changes, message):
    with pytest.raises(InputError, match=message) as error:
        claims.main(arguments(world, **changes))
    assert "\n" not in str(error.value)
    assert not (world / "sub" / "judge.json").exists()


def test_files_that_do_not_go_together(world):
    def refused(message, **changes):
        with pytest.raises(InputError, match=message) as error:
            claims.main(arguments(world, **changes))
        assert "\n" not in str(error.value)

    empty = world / "images"
    empty.mkdir()
    (empty / "other.png").write_bytes(b"")
    refused(
        "images: .* lacks 80 of 80 images that are described, '0.png' first; give the folder that the descriptions",
        verdicts=None, images=empty, detection__model=world,
    )  # fmt: skip
    other = world / "other.jsonl"
    write_annotations(other, [annotation("0.png", text="A house.")])
    refused(r"verdicts: none of the 1 descriptions is a candidate of .*run; annotate some of its", annotations=other)
    other.write_text("\n")
    refused("other.jsonl: expected descriptions with judgments, got none", annotations=other)
    write_part(world / "half" / "candidates", 0, 1, [Candidate("0.png", "", 0, STAR, (1,), 0.0, "stop")], Candidate)
    write_part(world / "half" / "verdicts" / "detector", 0, 1, [], Verdict)
    refused("half has no verdict of the detector on candidate 0 of '0.png'; let the run", verdicts=world / "half")


@pytest.mark.slow
@pytest.mark.main
def test_the_demos_detector_and_its_people(tmp_path):
    """Scenes are drawn and captions annotated by what is true: that "left" is no half of the image is to be found."""
    rng = np.random.default_rng(3)
    (tmp_path / "images").mkdir()
    annotations = []
    for number in range(48):
        scene = make_scene(rng)
        file = io.BytesIO()
        draw(scene).save(file, "PNG")
        (tmp_path / "images" / f"{number}.png").write_bytes(file.getvalue())
        made = []
        for true in scene.statements:
            count = int(rng.integers(1, 4))
            place = str(rng.choice(PLACES)) if count == 1 else None
            made.append(Statement(true.shape, str(rng.choice([true.color, rng.choice(COLORS)])), count, place))
        text = " ".join(say(statement, int(rng.integers(12))) for statement in made)
        annotations.append(annotate_caption(f"{number}.png", text, scene, 0.0, rng))
    write_annotations(tmp_path / "annotations.jsonl", annotations)
    (tmp_path / "colors.txt").write_text("[color]\n" + "\n".join(COLORS))
    given = arguments(
        tmp_path, verdicts=None, images=tmp_path / "images", detection__model=CHECKPOINTS / "detector",
        claims__words__attributes=tmp_path / "colors.txt", claims__judge__unnamed_direction="center",
        claims__judge__narrowed="exactly", grid__most_counted="[12]",
    )  # fmt: skip
    claims.main([*given, "--detection.options", '["--batch-size","16"]'])
    found = json.loads((tmp_path / "sub" / "judge.json").read_text())["kinds"]
    place = found["place"]
    assert place["suggested"]["side_width"] < place["rows"][0]["side_width"] == 0.5
    assert place["rows"][0]["recall"] < 0.9
    for kind in ("number", "place", "attribute"):
        (row,) = [row for row in found[kind]["rows"] if {**row, **found[kind]["suggested"]} == row]
        assert row["wrong"] > 20
        assert row["precision"] >= 0.95
        assert row["recall"] >= 0.95
    with pytest.raises(InputError, match="lacks 48 of 48 images that are described"):  # before a detector is started
        claims.main([*given, "--images", str(tmp_path / "sub")])


@pytest.fixture(scope="module")
def colored(tmp_path_factory):
    """A run that knows the boxes of drawn things, and captions that say a color of each scene's first thing."""
    root, rng = tmp_path_factory.mktemp("colored"), np.random.default_rng(4)
    (root / "images").mkdir()
    (root / "colors.txt").write_text("[color]\n" + "\n".join(COLORS))
    candidates, verdicts, annotations = [], [], []
    for number in range(48):
        scene, image = make_scene(rng), f"{number}.png"
        draw(scene).save(root / "images" / image)
        true = scene.statements[0]
        color = str(rng.choice(COLORS)) if number % 2 else true.color
        text = say(true._replace(color=color), 0)
        boxes = tuple(
            tuple(edge / IMAGE_SIZE for edge in box_xyxy(item)) for item in scene.objects if item.shape == true.shape
        )
        candidates.append(Candidate(image, "Describe it.", 0, text, (1,), -0.1, "stop"))
        verdicts.append(Verdict(image, 0, "detector", detected((true.shape, boxes)).signals))
        wrong = ("attribute", "color") if color != true.color else ()
        annotations.append(annotation(image, *wrong[:1], text=text, attribute=wrong[1] if wrong else ""))
    write_part(root / "run" / "candidates", 0, 1, candidates, Candidate)
    write_part(root / "run" / "verdicts" / "detector", 0, 1, verdicts, Verdict)
    write_annotations(root / "annotations.jsonl", annotations)
    return root


CROPS = {
    "clip_attributes.model": CHECKPOINTS / "verifier",
    "clip_attributes.template": "there is {} in the middle.",
    "claims.kinds": "place",
}


def test_attributes_that_a_clip_judges(colored, capsys):
    words = {"claims.words.attributes": colored / "colors.txt", "images": colored / "images"}
    claims.main(arguments(colored, **CROPS, **words))
    out = capsys.readouterr().out
    found = json.loads((colored / "sub" / "judge.json").read_text())
    assert set(found["kinds"]) == {"place", "clip_attributes"}
    table = found["kinds"]["clip_attributes"]
    said = [row for row in table["rows"] if {**row, **table["suggested"]} == row]
    assert len(said) == 1
    assert said[0]["cases"] == 48
    assert said[0]["wrong"] > 10
    assert said[0]["precision"] >= 0.95
    assert said[0]["recall"] > 0.4
    assert said[0]["recall"] == max(row["recall"] for row in table["rows"] if (row["precision"] or 0) >= 0.95)
    assert f"clip_attributes: 48 sentences, 48 with one claim; people call {said[0]['wrong']} wrong\n" in out
    assert "most_wrong   least_rival\n" in out
    assert "chosen on half of the images" in out

    flags = ["--config", str(colored / "sub" / "judge.yaml"), "--run.dir", "r", "--model.path", "m"]
    section = cli.parse(TrainConfig, flags, description="").clip_attributes
    assert {name: getattr(section, name) for name in table["suggested"]} == table["suggested"]
    assert (section.least_right, section.template) == (0.5, "a photo of {}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": None}, r"^--images is not given; the CLIP of --clip_attributes\.model judges by them$"),
        ({"clip_attributes__model": "absent"}, r"^clip_attributes\.model: absent is no directory"),
        (
            {"grid__most_wrong": "0.7"},
            r"^grid: clip_attributes\.least_right: expected more than most_wrong, 0\.7, got 0\.5$",
        ),
    ],
)
def test_what_a_clip_needs(colored, changes, message):
    given = {"images": colored / "images", **{name.replace(".", "__"): value for name, value in CROPS.items()}}
    with pytest.raises(InputError, match=message):
        claims.main(arguments(colored, **given | changes))
