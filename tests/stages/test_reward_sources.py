"""A reward model of several sources: weights, what is held out, the figures of each, refusals, and resumption."""

import dataclasses
import json
import socket
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.stages.reward_world import SETTINGS, WEIGHTS, make_config, make_world
from tests.stages.sft_world import curve, finish, interrupt, spawn_python, weights
from vigor_jax import cli, fingerprint
from vigor_jax.config import RunConfig, TrainConfig
from vigor_jax.data.batches.tree_batches import TreeLoader
from vigor_jax.errors import InputError
from vigor_jax.evaluation.image_names import bare_name
from vigor_jax.hf.load import load_model, open_checkpoint
from vigor_jax.hf.options import ModelConfig
from vigor_jax.parallel.sharding import MeshConfig, make_mesh
from vigor_jax.pipeline.run import Run
from vigor_jax.stages.reward_evaluation import evaluate, evaluate_sources, table
from vigor_jax.stages.reward_rows import answer_loss, is_held_out, make_encoder
from vigor_jax.stages.reward_sources import learned_rows, questions, read_sources
from vigor_jax.stages.train_reward import train_reward
from vigor_jax.stages.train_reward_config import AnnotationSource, TrainRewardConfig


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def checkpoint(world):
    return open_checkpoint(world / "model")


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(), jax.devices()[:1])


def read(config, checkpoint, run_dir):
    """What is learned and what is held out, of each source."""
    sources = read_sources(config, make_encoder(config, checkpoint), run_dir)
    return ([source.part(held_out=which) for source in sources] for which in (False, True))


def test_an_image_of_two_sources_is_held_out_in_both_or_in_none(world, checkpoint, tmp_path):
    taught, held_out = read(make_config(world), checkpoint, tmp_path)
    learned, left = (
        [{bare_name(image) for image in source.annotations} for source in part] for part in (taught, held_out)
    )
    assert set.union(*learned).isdisjoint(set.union(*left))
    shared = {f"{number:012d}" for number in range(6, 12)}
    assert left[0] & shared == left[1] & shared
    assert 0 < len(left[0] & shared) < len(shared)
    assert [len(one | other) for one, other in zip(learned, left, strict=True)] == [12, 10]


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("a/b.c.jpg", "b.c"),
        ("000000000042.jpg", "000000000042"),
        ("val2014/COCO_val2014_000000000042.jpg", "000000000042"),
        ("COCO_train2014_42.jpg", "COCO_train2014_42"),
    ],
)
def test_bare_names(image, name):
    assert bare_name(image) == name


def test_one_file_holds_out_what_it_always_did(world, checkpoint, tmp_path):
    config = make_config(world, sources=(), annotations=world / "bought.jsonl", images=str(world / "bought"))
    taught, held_out = read(config, checkpoint, tmp_path)
    for part, which in ((taught, False), (held_out, True)):
        assert all(is_held_out(image, config.held_out) == which for image in part[0].annotations)
    assert [source.name for source in taught] == [""]


@pytest.mark.parametrize("form", ["branches", "separate"])
@pytest.mark.parametrize("balance", ["none", "weighted"])
def test_the_loss_is_the_weighted_sum_of_the_sources(world, checkpoint, mesh, tmp_path, balance, form):
    """In float64: the sum over sources s and answers i of w_s c_i loss_i, over that of w_s c_i, where good and bad
    answers have the same sum of w_s c_i if they are balanced, and c_i = 1 if not."""
    config = make_config(world, balance=balance, form=form)
    encoder = make_encoder(config, checkpoint)
    taught, _ = read(config, checkpoint, tmp_path)
    count = {
        (s, good): sum((not kinds) == good for kinds in source.errors)
        for s, source in enumerate(taught)
        for good in (True, False)
    }
    own = list(WEIGHTS.values())
    both = {good: sum(own[s] * count[s, good] for s in range(2)) for good in (True, False)}
    factor = {good: sum(both.values()) / (2 * both[good]) if balance == "weighted" else 1.0 for good in both}
    model = load_model(checkpoint, mesh=mesh, dtype=jnp.float32)

    @jax.jit
    def losses(rows):
        return answer_loss(model, rows, config)

    def total(rows):
        loader = TreeLoader(
            rows, encoder, checkpoint.tokenizer.pad_id, checkpoint.preprocessing, 48, bucket=config.bucket
        )
        return np.array(losses(loader.make(range(len(rows))).rows), np.float64)

    rows = learned_rows(taught, config, encoder)
    found = total([row for part in rows for row in part])
    expected = np.zeros(2)
    for s, part in enumerate(rows):
        for good in (True, False):
            alone = [_weighing_only(row, good) for row in part]
            expected += own[s] * factor[good] * total(alone)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def _weighing_only(row, good):
    """A row where answers that are good, or those that are bad, weigh 1 and the others nothing."""
    return row._replace(
        descriptions=tuple(
            dataclasses.replace(each, weights=tuple(float((answer == "1") == good) for answer in each.answers))
            for each in row.descriptions
        )
    )


def test_figures_of_each_source():
    p_good = np.array([0.9, 0.2, 0.4, 0.8, 0.1])
    errors = {"a": [(), ("object",)], "none": [], "b": [(), ("location",), ("location",)]}
    found = evaluate_sources(p_good, errors)
    assert found.pop("sources") == {"a": evaluate(p_good[:2], errors["a"]), "b": evaluate(p_good[2:], errors["b"])}
    assert found == evaluate(p_good, [kinds for own in errors.values() for kinds in own])
    assert evaluate_sources(p_good[:2], {"": errors["a"]}) == evaluate(p_good[:2], errors["a"])
    lines = table({"epoch": 1.0, **evaluate_sources(p_good, errors)}).splitlines()
    assert [line.split()[:2] for line in lines[2:5]] == [["all", "5"], ["object", "1"], ["location", "2"]]
    assert lines[5] == "  of a"
    assert lines[6].split() == ["all", "2", "1.000", "1.000"]
    assert lines[8] == "  of b"
    assert lines[10].split() == ["location", "2", "0.500", "0.500"]


# Settings


def test_sources_from_a_config_file_and_the_command_line(tmp_path):
    text = "[{name: people, annotations: a.jsonl, images: photos, weight: 2}, {name: bought, annotations: b.jsonl}]"
    (tmp_path / "c.yaml").write_text(
        f"run: {{dir: r, stages: [train_reward]}}\nmodel: {{path: m}}\ntrain_reward:\n  images: p\n  sources: {text}\n"
    )
    for arguments in (
        ["--config", str(tmp_path / "c.yaml")],
        ["--run.dir", "r", "--run.stages", "train_reward", "--model.path", "m", "--train_reward.images", "p",
         "--train_reward.sources", text],
    ):  # fmt: skip
        config = cli.parse(TrainConfig, arguments, description="")
        people, bought = config.train_reward.sources
        assert people == AnnotationSource("people", Path("a.jsonl"), "photos", 2.0)
        assert bought == AnnotationSource("bought", Path("b.jsonl"), None, 1.0)
        (tmp_path / "d.yaml").write_text(cli.dump(config))
        assert cli.parse(TrainConfig, ["--config", str(tmp_path / "d.yaml")], description="") == config


def test_names_and_weights_are_settings_and_places_are_not(world):
    config = make_config(world)
    found = {key: value for key, value in fingerprint.of(config, "r").items() if "sources" in key}
    people, bought = ({"name": name, "weight": weight} for name, weight in WEIGHTS.items())
    expected = {"r.sources.0": people, "r.sources.1": bought}
    assert found == {f"{section}.{key}": value for section, own in expected.items() for key, value in own.items()}
    assert not any("sources" in key for key in fingerprint.of(TrainRewardConfig()))


A = AnnotationSource("a", Path("a.jsonl"), "p")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dataclasses.replace(A, weight=0.0), "expected a weight of more than 0 for a, got 0.0"),
        (lambda: dataclasses.replace(A, weight=float("nan")), "expected a weight of more than 0 for a, got nan"),
        (lambda: dataclasses.replace(A, name=" "), "sources: expected a name on one line, got ' '"),
        (lambda: dataclasses.replace(A, name="a\nb"), "sources: expected a name on one line, got 'a"),
        (lambda: TrainRewardConfig(sources=(A, A)), "sources: expected each name once, got a, a"),
        (lambda: TrainRewardConfig(sources=(A,), annotations=Path("b")), "one file or several of judged descriptions"),
    ],
)
def test_wrong_sources_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_a_source_without_images_is_refused(world, checkpoint, tmp_path):
    sources = tuple(dataclasses.replace(source, images=None) for source in make_config(world).sources)
    with pytest.raises(
        InputError, match=r"sources: name the images of people, or those of all as train_reward\.images"
    ):
        read(make_config(world, sources=sources), checkpoint, tmp_path)


def test_bad_rows_of_all_sources_are_told_together(world, checkpoint, tmp_path):
    spoiled = []
    for source in make_config(world).sources:
        path = tmp_path / source.annotations.name
        lines = source.annotations.read_text().splitlines()
        path.write_text("\n".join([*lines, json.dumps(json.loads(lines[0]) | {"image": "gone.png"}), "{"]))
        spoiled.append(dataclasses.replace(source, annotations=path))
    with pytest.raises(InputError) as refused:
        read(make_config(world, sources=tuple(spoiled)), checkpoint, tmp_path)
    message = str(refused.value)
    assert "\n" not in message
    for source in spoiled:
        assert f"{source.annotations}: 2 of " in message
    assert message.count("gone.png does not exist") == message.count("malformed JSON") == 2
    taught, held_out = read(make_config(world, sources=tuple(spoiled), skip_bad=True), checkpoint, tmp_path)
    assert [len(one.annotations) + len(other.annotations) for one, other in zip(taught, held_out, strict=True)] == [
        12,
        10,
    ]
    for name in WEIGHTS:
        assert len((tmp_path / f"bad_annotations.{name}.jsonl").read_text().splitlines()) == 2


def test_an_empty_source_is_refused(world, checkpoint, tmp_path):
    (tmp_path / "none.jsonl").write_text("\n")
    people, bought = make_config(world).sources
    config = make_config(world, sources=(people, dataclasses.replace(bought, annotations=tmp_path / "none.jsonl")))
    with pytest.raises(InputError, match=r"none\.jsonl: expected judged sentences, got none in 0 rows"):
        read(config, checkpoint, tmp_path)


# Runs


def evaluations(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics" / "reward_eval.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(world, checkpoint, mesh, tmp_path_factory):
    """A run that nothing disturbed."""
    run_dir = tmp_path_factory.mktemp("whole")
    train_reward(make_config(world), checkpoint, run_dir, mesh, dtype=jnp.float32)
    return run_dir


@pytest.mark.slow
@pytest.mark.main
def test_each_source_is_evaluated_on_its_own(whole, world, checkpoint, tmp_path):
    taught, held_out = read(make_config(world), checkpoint, tmp_path)
    assert len(evaluations(whole)) == SETTINGS["epochs"]
    for line in evaluations(whole):
        for source, left in zip(taught, held_out, strict=True):
            own = line["sources"][source.name]
            assert own["count"] == len(left.errors)
            assert own["weight"] == WEIGHTS[source.name]
            answers = Counter("bad" if kinds else "good" for kinds in source.errors)
            assert own["trained"] == {"good": answers["good"], "bad": answers["bad"]}
        assert line["count"] == sum(own["count"] for own in line["sources"].values())
        for kind in ("good", "bad"):
            assert line["trained"][kind] == sum(own["trained"][kind] for own in line["sources"].values())
    rows = questions(held_out, make_encoder(make_config(world), checkpoint))
    assert len(rows) == sum(len(source.annotations) for source in held_out)


@pytest.mark.slow
@pytest.mark.main
def test_a_killed_run_resumes_with_the_same_bits_and_tells_what_changed(
    whole, world, checkpoint, mesh, tmp_path, monkeypatch, caplog
):
    copies = []
    for source in make_config(world).sources:
        path = tmp_path / source.annotations.name
        path.write_bytes(source.annotations.read_bytes())
        copies.append(dataclasses.replace(source, annotations=path))
    config = make_config(world, sources=tuple(copies))

    def run(config=config):
        return train_reward(config, checkpoint, tmp_path / "run", mesh, dtype=jnp.float32)

    interrupt(run, monkeypatch, after=4)
    lines = copies[1].annotations.read_text().splitlines()
    taught, _ = read(config, checkpoint, tmp_path)
    learned = next(iter(taught[1].annotations))
    kept = [line for line in lines if json.loads(line)["image"] != learned]
    copies[1].annotations.write_text("\n".join(kept))
    with pytest.raises(InputError, match=r"people\.jsonl, .*bought\.jsonl differs") as refused:
        run()
    assert "\n" not in str(refused.value)
    copies[1].annotations.write_text("\n".join(lines) + "\n")
    run()
    assert (tmp_path / "run" / "metrics" / "reward_eval.jsonl").read_text() == (
        whole / "metrics" / "reward_eval.jsonl"
    ).read_text()
    expected = weights(whole, "train_reward")
    for path, value in weights(tmp_path / "run", "train_reward").items():
        np.testing.assert_array_equal(value, expected[path], err_msg=path)


@pytest.mark.slow
@pytest.mark.main
def test_a_changed_weight_is_a_changed_setting(world, tmp_path):
    def run(weight):
        sources = tuple(
            dataclasses.replace(source, weight=weight if source.name == "bought" else source.weight)
            for source in make_config(world).sources
        )
        config = make_config(world, sources=sources, epochs=1)
        run_config = RunConfig(tmp_path, ("train_reward",))
        Run(TrainConfig(run_config, ModelConfig(world / "model", dtype="float32"), train_reward=config)).go()

    run(0.5)
    with pytest.raises(InputError, match=r"train_reward\.sources\.1\.weight 0\.5, which is now 2"):
        run(2.0)
    run(0.5)


@pytest.mark.slow
def test_two_processes_equal_one(whole, world, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    jobs = [
        {
            "world": str(world),
            "run_dir": str(tmp_path / "run"),
            "mesh": [2, 1, 1],
            "distributed": {"coordinator": coordinator, "num_processes": 2, "process_id": process},
        }
        for process in range(2)
    ]
    finish(
        *(
            spawn_python(["-m", "tests.stages.run_reward", json.dumps(job)], devices=1, cache=tmp_path / str(process))
            for process, job in enumerate(jobs)
        )
    )
    for one, other in zip(evaluations(tmp_path / "run"), evaluations(whole), strict=True):
        assert one["sources"].keys() == other["sources"].keys()
        for name, own in one["sources"].items():
            assert own["count"] == other["sources"][name]["count"]
            means = [bin["p_good"] or 0.0 for bin in own["calibration"]]
            np.testing.assert_allclose(
                means, [b["p_good"] or 0.0 for b in other["sources"][name]["calibration"]], atol=1e-4
            )
    losses, others = ([line["loss"] for line in curve(path, "train_reward")] for path in (tmp_path / "run", whole))
    np.testing.assert_allclose(losses, others, rtol=1e-5)
