"""Detectors that err, and what two of them that must agree are worth."""

from pathlib import Path

import pytest

from vigor_jax.data.records import store
from vigor_jax.demo import erring as command
from vigor_jax.demo.erring import FALSE_ALARMS, MISSES, Mistakes, agreeing, count, erring, misjudge
from vigor_jax.demo.scenes import SHAPES, Object, Scene
from vigor_jax.errors import InputError
from vigor_jax.records import Signal, Span, Verdict

IMAGES = [f"{number:05}.png" for number in range(400)]
HALF = len(SHAPES) // 2


def scene(number: int) -> Scene:
    """Half of the shapes, others in each image."""
    shapes = [SHAPES[(number + step) % len(SHAPES)] for step in range(HALF)]
    return Scene(tuple(Object(shape, "red", "in the middle", 0.0, 0.0, 1.0, 0.0) for shape in shapes), 0)


SCENES = {image: scene(number) for number, image in enumerate(IMAGES)}


def truth(image: str, candidate: int = 0) -> Verdict:
    """Of a caption that names every shape."""
    shapes = {item.shape for item in SCENES[image].objects}
    signals = []
    for place, shape in enumerate(SHAPES):
        is_there, span = shape in shapes, Span(place, place + 1)
        signals.append(Signal(shape, (span,), float(not is_there), float(is_there), 0.5, not is_there))
    return Verdict(image, candidate, "detector", tuple(signals))


TRUTH = [truth(image) for image in IMAGES]
EACH = len(IMAGES) * HALF


def test_what_is_counted() -> None:
    image = IMAGES[0]
    bad, unknown, good = (1.0, 0.0), (0.0, 0.0), (0.0, 1.0)
    worth = dict(zip(SHAPES[:3], (bad, unknown, good), strict=True))
    worth |= dict(zip(SHAPES[HALF : HALF + 2], (good, unknown), strict=True))
    signals = tuple(Signal(label, (Span(0, 1),), *each, 0.5, each == bad) for label, each in worth.items())
    found = count([Verdict(image, 0, "detector", signals)], SCENES)
    assert found == Mistakes(right=3, punished=1, unrewarded=2, wrong=2, rewarded=1, unpunished=2)
    assert found.texts == ("1 of 3 (33.3%)", "2 of 3 (66.7%)", "1 of 2 (50.0%)", "2 of 2 (100.0%)")
    assert count(TRUTH, SCENES) == Mistakes(EACH, 0, 0, EACH, 0, 0)
    assert count([], SCENES).texts == ("0 of 0 (0.0%)",) * 4


def test_the_second_errs_as_often_in_other_cases() -> None:
    one, other = (count(map(judge, TRUTH), SCENES) for judge in (erring(3), erring(3, "second")))
    for found in (one, other):
        assert found.punished == found.unrewarded
        assert found.rewarded == found.unpunished
        assert found.punished / EACH == pytest.approx(MISSES, abs=0.02)  # 3.6 standard deviations
        assert found.rewarded / EACH == pytest.approx(FALSE_ALARMS, abs=0.016)
    assert [erring(3)(verdict) for verdict in TRUTH] != [erring(3, "second")(verdict) for verdict in TRUTH]
    assert [erring(3)(verdict) for verdict in TRUTH] != [erring(4)(verdict) for verdict in TRUTH]


def test_two_that_agree_punish_less_that_is_right_and_less_that_is_wrong() -> None:
    """As independent errors do: both must miss for a false penalty, and one false alarm spares what is wrong."""
    found = count(map(agreeing(3), TRUTH), SCENES)
    assert found.punished / EACH == pytest.approx(MISSES**2, abs=0.006)
    assert found.unrewarded / EACH == pytest.approx(1 - (1 - MISSES) ** 2, abs=0.027)
    assert found.rewarded / EACH == pytest.approx(FALSE_ALARMS**2, abs=0.004)
    assert found.unpunished / EACH == pytest.approx(1 - (1 - FALSE_ALARMS) ** 2, abs=0.022)
    alone = count(map(erring(3), TRUTH), SCENES)
    assert 4 * found.punished < alone.punished
    assert 4 * found.rewarded < alone.rewarded


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = tmp_path / "verdicts" / "detector"
    for part in range(2):
        store.write_part(verdicts, part, 2, TRUTH[part::2], Verdict, {"digest": "d"})
    (tmp_path / "scenes.json").write_text("{}")
    options = ["--records", str(tmp_path), "--data", str(tmp_path), "--seed", "3"]
    with pytest.raises(InputError, match=rf"--data {tmp_path} has no scene of 00000\.png"):
        command.main(options)
    with pytest.raises(InputError, match=r"there is no .*nothing/scenes\.json; give a run of the demo that has scored"):
        command.main([*options, "--data", str(tmp_path / "nothing")])
    monkeypatch.setattr(command, "read_scenes", lambda data, split: SCENES)
    command.main(options)
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split("  ")[0] == "detectors"
    judges = {"the demo's": lambda verdict: verdict, "one that errs": erring(3), "two that agree": agreeing(3)}
    for row, (name, judge) in zip(rows, judges.items(), strict=True):
        assert row.startswith(name)
        assert all(text in row for text in count(map(judge, TRUTH), SCENES).texts)
    misjudge(verdicts, tmp_path / "agreed", agreeing(3))
    assert list(store.read_parts(tmp_path / "agreed", Verdict)) == [
        agreeing(3)(verdict) for verdict in (*TRUTH[::2], *TRUTH[1::2])
    ]
    assert store.part_metadata(tmp_path / "agreed") == {"digest": "d"}
