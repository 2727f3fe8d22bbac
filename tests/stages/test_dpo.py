"""The stage that learns from preferences: its reference, what it keeps and exports, and what it refuses."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vigor_jax as vj
from tests.data.preferences.form_files import embedded, png
from tests.hf.test_peft import close, needs_peft, our_logits
from tests.stages.dpo_world import curve, folders, make_config, make_world, references, weights
from tests.stages.sft_world import interrupt
from vigor_jax.data.batches.places import learned_places
from vigor_jax.errors import InputError, StaleError
from vigor_jax.hf.load import open_checkpoint
from vigor_jax.models.lora import lora_paths
from vigor_jax.models.lora_config import LoraConfig
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.parallel.sharding import make_mesh
from vigor_jax.stages import dpo_reference
from vigor_jax.stages.dpo import dpo
from vigor_jax.stages.dpo_config import DpoConfig

LORA = LoraConfig(rank=4, alpha=8)
ROWS = 18


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return make_world(tmp_path_factory.mktemp("dpo") / "world", rows=ROWS)


def run(world: Path, run_dir: Path, checkpoint: Any = None, dtype: Any = jnp.float32, **changes: Any) -> Path:
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    config = make_config(world, **{"lora": LORA, "learning_rate": 1e-2, **changes})
    return dpo(config, checkpoint or open_checkpoint(world / "model"), run_dir, mesh, dtype=dtype)


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory) -> Path:
    """Two updates of eight rows; two rows fill no batch."""
    run_dir = tmp_path_factory.mktemp("trained")
    run(world, run_dir)
    return run_dir


class Reading:
    """Counts what the reference reads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows = 0
        original = dpo_reference._Scorer.__call__

        def counted(scorer, rows):
            self.rows += len(rows)
            return original(scorer, rows)

        monkeypatch.setattr(dpo_reference._Scorer, "__call__", counted)


@pytest.fixture
def reading(monkeypatch) -> Reading:
    return Reading(monkeypatch)


def test_it_begins_with_its_reference_and_moves_away(trained):
    first, last = curve(trained)
    assert first["loss"] == pytest.approx(math.log(2), rel=1e-5)
    assert abs(first["margin"]) < 1e-4
    assert last["loss"] < 0.99 * math.log(2)
    assert last["accuracy"] > 0.7
    assert last["margin"] == pytest.approx(last["better_reward"] - last["worse_reward"], abs=1e-5)
    found = weights(trained)
    assert found.keys() == lora_paths(found.keys())


@pytest.mark.main
def test_the_reference_reads_every_row_once_and_is_the_model_without_adapter(world, trained):
    """By log-probabilities that the public interface gives of whole answers."""
    said, rows = references(trained), json.loads((world / "preferences.json").read_text())
    assert len(said) == ROWS
    plain = [row for row in rows if "context" not in row and "history" not in row]
    assert len(plain) > 10
    texts = [(world / "images" / row["image"], text) for row in plain for text in row["responses"]]
    model = vj.load(world / "model", dtype="float32")
    found = iter(model.logprobs([image for image, _ in texts], rows[0]["prompt"], [text for _, text in texts]))
    sums = np.sort([sum(each.own) for each in said.values()])
    for row in plain:
        expected = sum(next(found).sum_logprob for _ in row["responses"])
        assert np.abs(sums - expected).min() < 1e-4 * abs(expected), row["name"]


@pytest.mark.main
def test_what_the_reference_said_is_not_computed_again(world, trained, tmp_path, reading):
    """Whatever is learned from it; and a run that is done needs none of it."""
    (tmp_path / "references").symlink_to(trained / "references")
    run(world, tmp_path, learning_rate=1e-3, beta=0.3, loss="hinge", batch_size=4)
    assert reading.rows == 0
    assert len(curve(tmp_path)) == 4
    (tmp_path / "references").unlink()
    run(world, tmp_path, learning_rate=1e-3, beta=0.3, loss="hinge", batch_size=4)
    assert not (tmp_path / "references").exists()


def loader_of(world: Path, config: DpoConfig) -> Any:
    from vigor_jax.stages.dpo import _data

    checkpoint, mesh = open_checkpoint(world / "model"), make_mesh(MeshConfig(), jax.devices()[:1])
    return checkpoint, _data(config, checkpoint, mesh, world, "dpo")[0], mesh


class Echo:
    """In place of the reference: says 1 of every token."""

    def __init__(self, config, checkpoint, loader, mesh, dtype):
        self.loader = loader

    def __call__(self, rows):
        for row in rows:
            yield dpo_reference.Reference(row.digest().hex(), (1.0,) * sum(self.loader.encoder(row).lengths), ())


def test_what_it_depends_on_makes_another_and_the_older_one_goes(world, tmp_path, monkeypatch):
    monkeypatch.setattr(dpo_reference, "_Scorer", Echo)

    def folder_of(config: DpoConfig, dtype: str = "float32") -> str:
        checkpoint, loader, mesh = loader_of(world, config)
        dpo_reference.references(config, checkpoint, loader, str(tmp_path), mesh, dtype, lambda: None)
        (folder,) = tmp_path.iterdir()
        return folder.name

    plain, noised = make_config(world), make_config(world, image_factor=1.0, image_term="noised")
    assert folder_of(plain) == folder_of(plain)
    same = {"learning_rate": 1.0, "beta": 1.0, "epochs": 7, "loss": "ipo", "template": "v1", "max_length": 500,
            "length_normalized": True, "noise_step": 3, "crop": 0.9, "sft_factor": 1.0, "seed": 4}  # fmt: skip
    for name, value in same.items():
        assert folder_of(dataclasses.replace(plain, **{name: value})) == folder_of(plain), name
    rows = json.loads(plain.data.read_text())
    rows[3]["responses"][0] += " And a cat."
    changed = tmp_path.parent / "changed.json"
    changed.write_text(json.dumps(rows))
    others = [
        folder_of(config)
        for config in (
            plain,
            dataclasses.replace(plain, template="v0"),
            dataclasses.replace(plain, data=changed),
            dataclasses.replace(plain, image_factor=1.0),
            dataclasses.replace(plain, image_factor=1.0, crop=0.5),
            noised,
            dataclasses.replace(noised, noise_step=700),
            dataclasses.replace(noised, seed=1),
        )
    ]
    others.append(folder_of(plain, "bfloat16"))
    assert len(set(others)) == len(others)


def test_pairs_of_changed_tokens_have_their_own_rows(world):
    """Each pair of three responses is a row, and weighs what differs between its two."""
    loader = loader_of(world, make_config(world, changed_weight=5.0))[1]
    plain = loader_of(world, make_config(world))[1]
    assert len(loader.data) == sum(len(row.preference.pairs()) for row in plain.data)
    assert (loader.num_responses, loader.num_pairs) == (2, 1)
    made = loader.make(range(8)).rows
    found = set(np.unique(made.responses.weights).tolist())
    assert found == {0.0, 1.0, 5.0}


def test_a_pair_of_its_own_row_must_fit_and_not_all_responses_together(world, tmp_path):
    data = tmp_path / "data.json"
    responses = [f"{'dog ' * 25}{number}." for number in range(4)]
    data.write_text(json.dumps([GOOD | {"responses": responses, "ratings": [*range(4)]}]))
    settings = {"data": data, "batch_size": 1, "max_length": 300}
    assert len(loader_of(world, make_config(world, **settings, changed_weight=5.0))[1].data) == 6
    with pytest.raises(InputError, match=r"4 responses have \d+ tokens, and max_length is 300"):
        loader_of(world, make_config(world, **settings))


def test_images_in_the_file_may_share_a_name(world, tmp_path):
    """Rows of equal texts about two such images are two rows to the reference."""
    row = {"question": "What is it?", "chosen": "A circle.", "rejected": "A square."}
    pictures = [{"bytes": png(color), "path": "image.png"} for color in ("red", "black", "red")]
    data = embedded(tmp_path / "data.parquet", [row] * 3, pictures)
    run(world, tmp_path / "run", data=data, images=None, batch_size=1)
    said = [each.own for each in references(tmp_path / "run").values()]
    assert said[0] == pytest.approx(said[2], abs=1e-6)
    assert said[0] != pytest.approx(said[1], abs=1e-3)
    assert curve(tmp_path / "run")[0]["loss"] == pytest.approx(math.log(2), rel=1e-5)


@pytest.mark.main
def test_a_fixed_row_continues_and_a_learned_one_does_not(world, tmp_path, monkeypatch, caplog):
    rows = json.loads((world / "preferences.json").read_text())
    data = tmp_path / "data.json"
    data.write_text(json.dumps(rows))
    run_dir = tmp_path / "run"
    settings = {"data": data, "batch_size": 6, "save_every": 1}
    interrupt(lambda: run(world, run_dir, **settings), monkeypatch, after=1)
    learned = learned_places(ROWS, 0, 6)
    spoiled = next(index for index in range(ROWS) if index in learned)
    fixed, removed, *_ = (index for index in range(ROWS) if index not in learned)

    def write(changed: int) -> None:
        edited = [dict(row) for row in rows]
        edited[changed]["responses"] = ["A circle and a cat.", "A dog."]
        edited[changed]["ratings"] = [1, 0]
        data.write_text(json.dumps([row for index, row in enumerate(edited) if index != removed or changed != fixed]))

    write(spoiled)
    with pytest.raises(StaleError, match="in 1 rows that were learned already"):
        run(world, run_dir, **settings)
    write(fixed)
    run(world, run_dir, **settings)
    assert "2 rows" in caplog.text
    assert [line["step"] for line in curve(run_dir)] == [1, 2, 3]
    assert len(references(run_dir)) == ROWS - 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": LoraConfig(target=("nothing",))}, "lora.target"),
        ({"lora": None, "freeze": ("vision_tower", "language_model", "multi_modal_projector")}, "freeze"),
        ({"learning_rate": 5e-4}, "was made with learning_rate 0.01, which is now 0.0005"),
    ],
)
def test_what_training_refuses_is_said_before_the_reference_reads(world, trained, reading, changes, message):
    with pytest.raises(InputError, match=message):
        run(world, trained, **changes)
    assert reading.rows == 0


# What cannot be used

GOOD: dict[str, Any] = {"image": "00.png", "prompt": "What?", "responses": ["A dog.", "A cat."], "ratings": [1, 0]}
LONG = "dog " * 3000
RATED = {"prompt": "What?", "img_path": "00.png"}
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "equal texts": ({"responses": ["A dog.", "A dog."]}, {}, r"two responses are equal \('A dog.'\)"),
    "equal tokens": ({"responses": ["A dog.", "A▁dog."]}, {}, "two responses have the same tokens; remove one"),
    "empty": ({"responses": ["A dog.", "  "]}, {}, "response 1 is empty"),
    "no such image": ({"image": "99.png"}, {}, "99.png does not exist"),
    "too long": (
        {"responses": ["dog " * 100, "A cat."]},
        {"max_length": 300},
        "have [0-9]+ tokens, and max_length is 300; raise it, or remove",
    ),
    "longer than the model": ({"responses": [LONG, "A cat."]}, {"max_length": 99999}, "and the model has [0-9]+ posit"),
    "no number": ({"ratings": [float("nan"), 0]}, {}, "expected finite ratings"),
    "text alone, with a term of images": ({"image": ""}, {"image_factor": 1.0}, "has no image, which dpo.image_factor"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_rows_that_cannot_be_used_are_refused_or_left_out(what, world, tmp_path):
    changed, settings, message = REFUSED[what]
    data = tmp_path / "data.json"
    data.write_text(json.dumps([GOOD, GOOD | changed, GOOD | {"image": "01.png"}]))
    settings = {"data": data, "batch_size": 2, **settings}
    with pytest.raises(InputError, match=message) as error:
        run(world, tmp_path / "run", **settings)
    assert "\n" not in str(error.value)
    assert "index 1" in str(error.value)
    assert "dpo.skip_bad" in str(error.value)
    assert not (tmp_path / "run" / "references").exists()
    loader = loader_of(world, make_config(world, **settings, skip_bad=True))[1]
    assert [row.number for row in loader.data] == [0, 2]


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        ([GOOD | {"ratings": [1, 1]}], {}, "no two responses of different ratings; expected at least one pair"),
        ([GOOD], {}, "1 preferences x 1 epochs are fewer than one batch of 8; lower dpo.batch_size or raise dpo.epo"),
        ([GOOD], {"form": "own2"}, "unknown form 'own2' of preferences"),
        ([GOOD], {"batch_size": 8, "accumulate": 8, "data": None}, "dpo.data: no file is given"),
        ([GOOD], {"template": "caption"}, "template"),
    ],
    ids=["ties", "batch", "form", "no data", "template"],
)
def test_data_that_gives_no_batch_is_refused(rows, changes, message, world, tmp_path):
    data = tmp_path / "data.json"
    data.write_text(json.dumps(rows))
    with pytest.raises(InputError, match=message) as error:
        run(world, tmp_path / "run", **{"data": data, **changes})
    assert "\n" not in str(error.value)


def test_ties_are_counted(world, tmp_path, caplog):
    data = tmp_path / "data.json"
    data.write_text(json.dumps([GOOD, GOOD | {"ratings": [2, 2]}, GOOD | {"ratings": [3, 3]}]))
    assert len(loader_of(world, make_config(world, data=data, batch_size=1))[1].data) == 1
    assert "2 ties are left out, as they say nothing of which is better" in caplog.text


def test_a_folder_of_files_is_data(world, tmp_path):
    """Its digest is that of all of them."""
    folder = tmp_path / "data"
    folder.mkdir()
    for index in range(2):
        (folder / f"{index}.json").write_text(json.dumps([GOOD | {"image": f"0{index}.png"}]))
    config = make_config(world, data=folder, batch_size=2)
    from vigor_jax.stages.dpo import _data

    checkpoint, mesh = open_checkpoint(world / "model"), make_mesh(MeshConfig(), jax.devices()[:1])

    def facts() -> dict[str, Any]:
        return _data(config, checkpoint, mesh, tmp_path, "dpo")[1].facts

    before = facts()
    assert before["examples"] == 2
    (folder / "1.json").write_text(json.dumps([GOOD | {"image": "02.png"}]))
    assert facts()["sha256"] != before["sha256"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": 0.0}, "dpo.beta: expected more than 0, got 0.0"),
        ({"changed_weight": 0.0}, "dpo.changed_weight: expected more than 0"),
        ({"label_smoothing": 0.5}, "dpo.label_smoothing: expected 0 to less than 0.5"),
        ({"label_smoothing": 0.1, "loss": "ipo"}, "dpo.label_smoothing is of the loss sigmoid; set it to 0 for ipo"),
        ({"pair_factor": -1.0}, "dpo.pair_factor: expected 0 or more"),
        ({"pair_factor": 0.0}, "dpo: all factors are 0, which leaves nothing to learn; set dpo.pair_factor"),
        ({"crop": 0.0}, "dpo.crop: expected more than 0, at most 1"),
        ({"noise_step": 1000}, "dpo.noise_step: expected 0 to 999, got 1000"),
        ({"max_length": 0}, "dpo.max_length: expected at least 1"),
        ({"batch_size": 6, "accumulate": 4}, "batch_size 6 does not divide into accumulate 4 equal parts"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        DpoConfig(**changes)


# Other types, whole models, what comes out


@needs_peft
@pytest.mark.slow
@pytest.mark.main
def test_an_adapter_loads_in_peft_and_continues_with_itself_as_the_reference(world, trained, tmp_path):
    from tests.hf.peft_program import logits_with

    adapter = vj.export(trained / "checkpoints" / "dpo", tmp_path / "adapter", base=world / "model")
    theirs, problems = logits_with(str(world / "model"), str(adapter))
    assert problems == []
    assert close(our_logits(world / "model", adapter), theirs)
    assert not close(our_logits(world / "model"), theirs, 1e-3)

    checkpoint = open_checkpoint(world / "model", adapter=adapter)
    with pytest.raises(InputError, match="is an adapter, and training would change the weights below it; give lora"):
        run(world, tmp_path / "never", checkpoint, lora=None)
    assert not (tmp_path / "never" / "references").exists()
    run(world, tmp_path / "second", checkpoint)
    assert curve(tmp_path / "second")[0]["loss"] == pytest.approx(math.log(2), rel=1e-5)
    before, after = references(trained), references(tmp_path / "second")
    assert before.keys() == after.keys()
    assert max(np.abs(np.subtract(after[key].own, before[key].own)).max() for key in before) > 0.05


@pytest.mark.slow
@pytest.mark.main
def test_a_whole_model_loads_in_transformers(world, trained, tmp_path):
    from tests.hf.peft_program import logits_with

    checkpoints = run(world, tmp_path / "run", lora=None, learning_rate=1e-3)
    out = vj.export(checkpoints, tmp_path / "out", layout="llava-hf", base=world / "model")
    theirs, _ = logits_with(str(out), None)
    assert close(our_logits(out), theirs)
    assert not close(our_logits(world / "model"), theirs, 1e-3)
    assert curve(tmp_path / "run")[0]["loss"] == pytest.approx(math.log(2), rel=1e-5)
    assert references(tmp_path / "run") == references(trained)  # whatever is trained


@pytest.mark.slow
def test_sixteen_bits_begin_near_the_reference(world, tmp_path):
    """Training and the reference's pass are two programs, which round in different places."""
    run(world, tmp_path, dtype=jnp.bfloat16, epochs=1)
    first = curve(tmp_path)[0]
    assert first["loss"] == pytest.approx(math.log(2), rel=0.02)
    assert len(folders(tmp_path)) == 1
