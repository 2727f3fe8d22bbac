"""Attributes that a CLIP judges, in a run: scoring, what is stale or refused, plans; and the loop of the demo."""

import dataclasses
import logging
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vigor_jax.demo
from tests.rewards.claims import crop_world
from tests.tiny_llava import Tiny
from tests.tiny_llava import build_checkpoint as build_llava
from vigor_jax.config import RunConfig, TrainConfig, with_pinned_models
from vigor_jax.data.records import store
from vigor_jax.demo.drawing import draw
from vigor_jax.demo.language import parse, say
from vigor_jax.demo.scenes import COLORS, make_scene
from vigor_jax.errors import InputError
from vigor_jax.hf.clip.checkpoint import open_clip
from vigor_jax.hf.options import ModelConfig
from vigor_jax.models.llava import LlavaConfig
from vigor_jax.pipeline.run import Run
from vigor_jax.plan.planning import programs
from vigor_jax.plan.recipe import recipe
from vigor_jax.records import Candidate, Selection, Verdict
from vigor_jax.rewards.claims.crops import ClipAttributesConfig
from vigor_jax.rewards.claims.find import ClaimWordsConfig
from vigor_jax.rewards.claims.judge import JudgeConfig
from vigor_jax.rewards.claims.stream import ClaimsConfig
from vigor_jax.rewards.detector_config import DetectionConfig
from vigor_jax.rewards.phrases import PhrasesConfig
from vigor_jax.stages.programs import Sizes, Work
from vigor_jax.stages.sample_config import SampleConfig
from vigor_jax.stages.score_config import ScoreConfig, StreamConfig
from vigor_jax.stages.select_config import SelectConfig

CHECKPOINTS = Path(vigor_jax.demo.__file__).parent / "checkpoints"
BOXES = '''
"""A detector that knows where things are."""

from tests.rewards.claims.crop_world import WORLD, detected


class Boxes:
    name, digest = "detector", "boxes"

    def judge(self, items):
        found = {texts: boxes for texts, boxes in WORLD}
        for item in items:
            yield list(detected(item.texts, found[item.texts], item.image))
'''
SIZES = Sizes(prompt=64, response=32, branch_row=128, sentences=6, example=128)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    root = crop_world.make_world(tmp_path_factory.mktemp("world"))
    build_llava(root / "policy", Tiny())
    (root / "boxes.py").write_text(BOXES)
    return root


def write_candidates(folder: Path, items) -> None:
    """In two parts."""
    for part, own in enumerate((items[:3], items[3:])):
        found = [
            Candidate(item.image, item.prompt, number, text, (1,), -1.0, "stop")
            for item in own
            for number, text in enumerate(item.texts)
        ]
        store.write_part(folder / "candidates", part, 2, found, Candidate)


def config(world, run_dir, *, limits=None, **sections) -> TrainConfig:
    given = {
        "run": RunConfig(dir=run_dir, stages=("score",)),
        "model": ModelConfig(path=world / "policy", dtype="float32"),
        "sample": SampleConfig(images=str(world / "images")),
        "score": ScoreConfig(streams=(StreamConfig(f"{world / 'boxes.py'}:Boxes"), "clip_attributes")),
        "detection": DetectionConfig(phrases=crop_world.PHRASES),
        "clip_attributes": ClipAttributesConfig(model=world / "clip", batch_size=3, **limits or {}),
    }
    return TrainConfig(**given | sections)


LIMITS = {"least_right": 0.12, "most_wrong": 0.05, "least_rival": 0.2}


def verdicts(run_dir):
    return list(store.read_parts(run_dir / "verdicts" / "clip_attributes", Verdict))


def said_by(judge, world, folder):
    """The verdicts of a stream as they are read from a disk."""
    found = [verdict for own in judge.judge(crop_world.items(world)) for verdict in own]
    store.write_part(folder / "said" / "clip_attributes", 0, 1, found, Verdict)
    return list(store.read_parts(folder / "said" / "clip_attributes", Verdict))


@pytest.fixture(scope="module")
def scored(world, tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("run")
    write_candidates(run_dir, crop_world.items(world))
    Run(config(world, run_dir, limits=LIMITS)).go()
    return run_dir


def test_a_run_scores_what_the_stream_says(world, scored, tmp_path):
    assert verdicts(scored) == said_by(crop_world.stream(world, **LIMITS), world, tmp_path)
    signals = [signal for verdict in verdicts(scored) for signal in verdict.signals]
    assert {signal.kind for signal in signals} == {"attribute"}
    assert {signal.absent for signal in signals} == {True, False}


def copied(scored, tmp_path) -> Path:
    return Path(shutil.copytree(scored, tmp_path / "run"))


@pytest.mark.main
@pytest.mark.parametrize(
    ("limits", "sections", "key"),
    [
        ({"least_rival": 0.3}, {}, "clip_attributes.least_rival 0.2, which is now 0.3"),
        ({"template": "{}"}, {}, 'clip_attributes.template "a photo of {}", which is now "{}"'),
        ({}, {"claims": ClaimsConfig(judge=JudgeConfig(iou=0.4))}, "claims.judge.iou 0.5, which is now 0.4"),
    ],
)
def test_another_setting_makes_verdicts_stale(world, scored, tmp_path, limits, sections, key):
    run_dir = copied(scored, tmp_path)
    changed = config(world, run_dir, limits=LIMITS | limits, **sections)
    with pytest.raises(InputError, match=re.escape(key)) as caught:
        Run(changed).go()
    assert "score.clip_attributes" in str(caught.value)
    before = verdicts(run_dir)
    assert before == verdicts(scored)
    Run(dataclasses.replace(changed, run=dataclasses.replace(changed.run, overwrite=True))).go()
    judge = crop_world.stream(world, claims=changed.claims, **LIMITS | limits)
    assert verdicts(run_dir) == said_by(judge, world, tmp_path)


def test_what_changes_nothing_makes_nothing_stale(world, scored, tmp_path):
    """Another batch, and other settings of the claims that boxes judge."""
    run_dir = copied(scored, tmp_path)
    shutil.copytree(world / "clip", tmp_path / "clip")
    same = ClipAttributesConfig(model=tmp_path / "clip", batch_size=2, **LIMITS)
    claims = ClaimsConfig(kinds=("number",), judge=JudgeConfig(place_margin=0.1))
    Run(config(world, run_dir, clip_attributes=same, claims=claims)).go()
    assert verdicts(run_dir) == verdicts(scored)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"clip_attributes": ClipAttributesConfig()}, r"^clip_attributes\.model is not given; name a CLIP"),
        ({"clip_attributes": ClipAttributesConfig(model="absent")}, r"^clip_attributes\.model: absent is no directory"),
        (
            {"score": ScoreConfig(streams=("clip_attributes",))},
            r"^score\.streams: clip_attributes needs the verdicts of detector; add that stream$",
        ),
    ],
    ids=["no model", "no directory", "no detector"],
)
def test_it_is_refused_before_anything_is_judged(world, tmp_path, sections, message):
    write_candidates(tmp_path / "run", crop_world.items(world))
    with pytest.raises(InputError, match=message) as caught:
        Run(config(world, tmp_path / "run", **sections)).go()
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "verdicts").exists()


def test_options_stand_in_its_section():
    with pytest.raises(
        InputError, match=r"clip_attributes takes no options here; its settings are clip_attributes\.\*$"
    ):
        ScoreConfig(streams=("detector", StreamConfig("clip_attributes", {"margin": 0.2})))


def test_a_model_without_a_text_tower_is_refused(world, tmp_path):
    given = ClipAttributesConfig(model=world / "policy")
    with pytest.raises(InputError, match=r"^clip_attributes\.model: .*expected a whole CLIP .* got 'llava'") as caught:
        Run(config(world, tmp_path, clip_attributes=given)).go()
    assert "\n" not in str(caught.value)


def test_an_image_that_is_damaged_is_named(world, scored, tmp_path):
    shutil.copytree(world / "images", tmp_path / "images")
    damaged = tmp_path / "images" / "3.png"
    damaged.write_bytes(damaged.read_bytes()[:200])
    write_candidates(tmp_path / "run", crop_world.items(world))
    given = config(world, tmp_path / "run", limits=LIMITS, sample=SampleConfig(images=str(tmp_path / "images")))
    with pytest.raises(InputError, match=r"^3\.png: .*not a readable image .*; replace or remove it$"):
        Run(given).go()
    shutil.copy(world / "images" / "3.png", damaged)
    Run(given).go()  # and what was done stays
    assert verdicts(tmp_path / "run") == verdicts(scored)


def test_plans_have_its_program(world):
    given = config(world, world / "run", score=ScoreConfig(streams=("detector", "clip_attributes")))
    (program,) = programs(given, LlavaConfig(), jax.devices()[:1], SIZES)
    checkpoint = open_clip(world / "clip")
    assert (program.stage, program.name, program.rows) == ("score", "crops", 3)
    assert program.held == 4 * sum(int(jnp.prod(jnp.array(each.shape))) for each in checkpoint.tensors.values())
    assert program.flops == checkpoint.config.vision.forward_flops(3, images=3)
    assert program.lower().compile().cost_analysis()["flops"] > 0.8 * program.flops

    @dataclasses.dataclass
    class Estimate:
        name: str
        rows: int
        seconds: float
        stage: str = "score"

    (time,) = recipe([Estimate("crops", 8, 2.0)], given, Work(images=20), 1)
    assert (time.calls, time.hours * 3600) == (10, pytest.approx(20.0))  # four crops an image


def test_a_name_on_the_hub_is_pinned_where_it_judges(world, monkeypatch):
    monkeypatch.setattr("vigor_jax.config.pinned", lambda name: f"{name}@commit" if name == "org/clip" else name)
    named = config(world, world / "run", clip_attributes=ClipAttributesConfig(model="org/clip"))
    assert with_pinned_models(named).clip_attributes.model == "org/clip@commit"
    assert with_pinned_models(named).clip.model is None
    unread = dataclasses.replace(named, score=ScoreConfig(streams=("detector", "clip")))
    assert with_pinned_models(unread).clip_attributes.model == "org/clip"


@pytest.mark.slow
@pytest.mark.main
def test_the_demos_clip_repairs_colors(world, tmp_path, caplog):
    """A real detector behind gRPC finds the things, the demo's CLIP says which color they have; the truth is known."""
    rng = np.random.default_rng(3)
    (tmp_path / "images").mkdir()
    (tmp_path / "colors.txt").write_text("[color]\n" + "\n".join(COLORS))
    scenes, candidates = {}, []
    for number in range(24):
        scene, name = make_scene(rng), f"{number:02}.png"
        draw(scene).save(tmp_path / "images" / name)
        scenes[name] = scene
        said = [true._replace(color=str(rng.choice([true.color, *COLORS]))) for true in scene.statements]
        text = " ".join(say(statement, int(rng.integers(12))) for statement in said)
        candidates.append(Candidate(name, "Describe it.", 0, text, (1,), -1.0, "stop"))
    store.write_part(tmp_path / "run" / "candidates", 0, 1, candidates, Candidate)
    claims = ClaimsConfig(
        kinds=("number", "place"),
        words=ClaimWordsConfig(attributes=tmp_path / "colors.txt"),
        judge=JudgeConfig(side_width=1 / 3, unnamed_direction="center", narrowed="exactly"),
    )
    given = config(
        world,
        tmp_path / "run",
        run=RunConfig(dir=tmp_path / "run", stages=("score", "select")),
        sample=SampleConfig(images=str(tmp_path / "images")),
        score=ScoreConfig(streams=("detector", "claims", "clip_attributes")),
        detection=DetectionConfig(model=CHECKPOINTS / "detector", phrases=PhrasesConfig(tagger=CHECKPOINTS / "tagger")),
        claims=claims,
        clip_attributes=ClipAttributesConfig(model=CHECKPOINTS / "verifier", template="there is {} in the middle."),
        select=SelectConfig(refine="repair"),
    )
    with caplog.at_level(logging.INFO):
        Run(given).go()
    assert re.search(r"clip_attributes: \d+ claims, \d+% of them right, \d+% wrong", caplog.text)
    assert not any(verdict.attributes for verdict in store.read_parts(tmp_path / "run" / "verdicts/detector", Verdict))
    right = wrong = 0
    for selection in store.read_parts(tmp_path / "run" / "selections", Selection):
        truth = {statement.shape: statement.color for statement in scenes[selection.image].statements}
        before, after = (
            {each.statement.shape: each.statement.color for each in parse(text)}
            for text in (selection.text, selection.refined)
        )
        for shape, color in after.items():
            if color != before[shape]:
                assert before[shape] != truth[shape]
                right, wrong = right + (color == truth[shape]), wrong + (color != truth[shape])
    assert right > 10
    assert wrong <= right / 10
