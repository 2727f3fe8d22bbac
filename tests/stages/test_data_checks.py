"""What a training run does about rows that it cannot learn from, before its first update."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import pytest

from tests.stages.sft_world import curve, interrupt, make_world, weights
from vigor_jax import cli, train
from vigor_jax.errors import InputError
from vigor_jax.hf.load import open_checkpoint
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.parallel.sharding import make_mesh
from vigor_jax.stages import sft as sft_module
from vigor_jax.stages.sft import SftConfig, sft
from vigor_jax.training import loop as loop_module
from vigor_jax.training.checkpoint import latest_step


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world") / "w", examples=40)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="module")
def checkpoint(world):
    return open_checkpoint(world / "model")


@pytest.fixture
def records(world):
    return json.loads((world / "data.json").read_text())


@pytest.fixture
def config(world, tmp_path):
    return settings(world, tmp_path / "data.json")


def settings(world, data):
    return SftConfig(
        data=data,
        images=world / "images",
        batch_size=8,
        learning_rate=1e-3,
        max_length=256,
        bucket=256,
        loss_chunk=64,
        save_every=2,
    )


LONG = "What is on the table, and who is behind it? " * 40


def spoil_question(record):
    record["conversations"][0]["value"] += LONG


def spoil_question_before_image(record):
    record["conversations"][0]["value"] = LONG + "<image>"


def spoil_later_image(record):
    answer = {"from": "gpt", "value": LONG}
    record["conversations"] = [{"from": "human", "value": "Hi"}, answer, *record["conversations"]]


def spoil_text(record):
    record["conversations"][1]["value"] += "\ud83d"


def spoil_image(record):
    record["image"] = "absent.png"


def spoil_turns(record):
    del record["conversations"][1]


def spoil_answer(record):
    record["conversations"][1]["value"] = "  "


def spoil_medium(record):
    record["video"] = "a.mp4"
    del record["image"]
    record["conversations"][0]["value"] = "What is in the picture?"


SPOILED = {
    1: (spoil_question, "the first answer starts after"),
    3: (spoil_question_before_image, "which leaves nothing to learn"),
    8: (spoil_later_image, "the images end at token"),
    12: (spoil_text, "lone surrogate"),
    17: (spoil_image, "absent.png does not exist; 1 of "),
    19: (spoil_turns, "1 turns"),
    28: (spoil_answer, "empty answer"),
    31: (spoil_medium, "the key 'video'"),
}


def spoil(records, chosen=SPOILED):
    for index in chosen:
        SPOILED[index][0](records[index])
    return records


@pytest.mark.parametrize("index", SPOILED)
def test_a_bad_row_ends_the_run_before_it_begins(config, checkpoint, mesh, records, tmp_path, index, monkeypatch):
    """None of them is in the first batch."""
    config.data.write_text(json.dumps(spoil(records, [index])))
    monkeypatch.setattr(loop_module, "load_trainable", None)  # it does not come to reading the weights
    with pytest.raises(InputError) as caught:
        sft(config, checkpoint, tmp_path / "run", mesh, dtype=jnp.float32)
    message = str(caught.value)
    assert message.startswith(f"{config.data}, index {index} (id 'example-{index}'): ")
    assert SPOILED[index][1] in message
    assert message.endswith("; fix them, or give --sft.skip_bad true to leave them out")
    assert "\n" not in message


def test_all_bad_rows_are_told_at_once(config, checkpoint, mesh, records, tmp_path):
    config.data.write_text(json.dumps(spoil(records)))
    with pytest.raises(InputError) as caught:
        sft(config, checkpoint, tmp_path / "run", mesh, dtype=jnp.float32)
    message = str(caught.value)
    assert f"{len(SPOILED)} of 40 rows cannot be trained on; fix them, or give --sft.skip_bad true" in message
    for index, (_, reason) in SPOILED.items():
        assert f"index {index} (id 'example-{index}'): " in message
        assert reason in message
    assert not (tmp_path / "run" / "bad_rows.jsonl").exists()


def test_more_bad_rows_than_a_message_holds_are_in_a_file(config, checkpoint, mesh, records, tmp_path):
    for record in records[5:20]:
        spoil_question(record)
    config.data.write_text("\n".join(map(json.dumps, records)))
    with pytest.raises(InputError) as caught:
        sft(config, checkpoint, tmp_path / "run", mesh, dtype=jnp.float32)
    report = tmp_path / "run" / "bad_rows.jsonl"
    assert f"and 5 more, all of them in {report}" in str(caught.value)
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    assert [line["row"] for line in lines] == list(range(6, 21))  # lines of the file
    assert [line["id"] for line in lines] == [f"example-{index}" for index in range(5, 20)]
    assert all("nothing to learn" in line["reason"] for line in lines)


@pytest.mark.parametrize("max_length", [40, 256, 512])
def test_advice_stays_within_the_models_positions(config, checkpoint, mesh, records, tmp_path, max_length):
    spoil_question(records[1])
    config.data.write_text(json.dumps(records[1:2] * 8))
    with pytest.raises(InputError, match="the model has 512 positions, so shorten") as caught:
        sft(dataclasses.replace(config, max_length=max_length), checkpoint, tmp_path / "run", mesh, dtype=jnp.float32)
    assert "raise max_length" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.main
def test_bad_rows_are_left_out_if_they_may_be(config, checkpoint, mesh, records, tmp_path, caplog):
    """The run equals one on the file without them, which is what was asked for."""
    good = [record for index, record in enumerate(records) if index not in SPOILED]
    config.data.write_text(json.dumps(good))
    sft(config, checkpoint, tmp_path / "good", mesh, dtype=jnp.float32)
    config.data.write_text(json.dumps(spoil(records)))
    caplog.clear()
    sft(dataclasses.replace(config, skip_bad=True), checkpoint, tmp_path / "run", mesh, dtype=jnp.float32)
    assert f"{len(SPOILED)} of 40 rows cannot be trained on and are left out, as --sft.skip_bad says" in caplog.text
    lines = (tmp_path / "run" / "bad_rows.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in lines] == list(SPOILED)
    assert curve(tmp_path / "run") == curve(tmp_path / "good")
    assert len(curve(tmp_path / "run")) == 4


def test_nothing_but_bad_rows(config, checkpoint, mesh, records, tmp_path):
    for record in records:
        spoil_question(record)
    config.data.write_text(json.dumps(records))
    with pytest.raises(InputError, match=r"40 of 40 rows cannot be trained on; no other row is left: index 0"):
        sft(dataclasses.replace(config, skip_bad=True), checkpoint, tmp_path / "run", mesh, dtype=jnp.float32)


# ---- continuing with other data


@pytest.fixture(scope="module")
def begun(world, checkpoint, mesh, tmp_path_factory):
    """A run of which three updates are done, and the first two kept."""
    run_dir = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patch:
        config = settings(world, world / "data.json")
        interrupt(lambda: sft(config, checkpoint, run_dir, mesh, dtype=jnp.float32), patch, after=3)
    return run_dir


def begin(config, checkpoint, mesh, records, run_dir, begun):
    """Puts the run that has begun there; returns the rows in the order in which they are learned."""
    config.data.write_text(json.dumps(records))
    shutil.copytree(begun, run_dir)
    batches = sft_module._loader(config, checkpoint, mesh).batches()
    taken = [records.index(record) for batch in batches for record in records if record["id"] in batch.ids]
    assert len(set(taken)) == 40
    return taken


def fix(record):
    record["conversations"][1]["value"] = "A red dog waves."


def assert_same_runs(run_dir, reference):
    assert curve(run_dir) == curve(reference)
    expected = weights(reference)
    for path, value in weights(run_dir).items():
        assert (value == expected[path]).all(), path


@pytest.mark.slow
@pytest.mark.parametrize("named", [True, pytest.param(False, marks=pytest.mark.main)])
def test_rows_that_were_fixed_before_they_were_learned(
    config, checkpoint, mesh, records, tmp_path, begun, caplog, named
):
    """Bit for bit as if they had been so from the beginning; also where only their places tell which they are."""
    later = begin(config, checkpoint, mesh, records, tmp_path / "run", begun)[16:]
    for index in (later[0], later[-1]):
        fix(records[index])
        if not named:
            del records[index]["id"]
    config.data.write_text("\n".join(map(json.dumps, records)))
    for directory in ("run", "whole"):
        sft(config, checkpoint, tmp_path / directory, mesh, dtype=jnp.float32)
    assert "2 rows of" in caplog.text
    assert_same_runs(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.main
def test_rows_that_were_removed_before_they_were_learned(
    config, checkpoint, mesh, records, tmp_path, monkeypatch, begun, caplog
):
    """What is left is learned when it would have been; a run that is killed once more still knows the empty places."""
    taken = begin(config, checkpoint, mesh, records, tmp_path / "run", begun)
    removed = {taken[17], taken[18], taken[33]}
    left = [record for index, record in enumerate(records) if index not in removed]
    fix(records[taken[39]])
    config.data.write_text(json.dumps(left))
    seen = []
    original = sft_module.fine_tune

    def spy(config, checkpoint, run_dir, mesh, batches, data, **how):
        seen.extend(batch.ids for batch in batches.batches(2))
        return original(config, checkpoint, run_dir, mesh, batches, data, **how)

    monkeypatch.setattr(sft_module, "fine_tune", spy)
    interrupt(lambda: sft(config, checkpoint, tmp_path / "run", mesh, dtype=jnp.float32), monkeypatch, after=2)
    assert "4 rows of" in caplog.text
    first = [{records[index]["id"] for index in taken[at : at + 8] if index not in removed} for at in (16, 24, 32)]
    assert [set(ids) for ids in seen] == first
    seen.clear()
    sft(config, checkpoint, tmp_path / "run", mesh, dtype=jnp.float32)
    assert [set(ids) for ids in seen] == first
    assert len(curve(tmp_path / "run")) == 5
    config.data.write_text(json.dumps(left[1:]))
    with pytest.raises(InputError, match=r"rows that were learned already: its row .* was removed"):
        sft(config, checkpoint, tmp_path / "run", mesh, dtype=jnp.float32)


def test_empty_places_change_nothing_but_their_own_batch(config, checkpoint, mesh, records, tmp_path):
    """Padded and packed: the loss of a batch with an empty place is that of the others alone."""
    config.data.write_text(json.dumps(records))
    loader = sft_module._loader(config, checkpoint, mesh)
    whole = [batch.ids for batch in loader.batches()]
    number = [example.id for example in loader.examples].index(whole[2][3])
    holey = [None if index == number else example for index, example in enumerate(loader.examples)]
    for pack in (1, 2):
        batches = list(dataclasses.replace(loader, examples=holey, pack=pack, rows=None).batches())
        assert [batch.ids for batch in batches] == [tuple(name for name in ids if name != whole[2][3]) for ids in whole]
        plain = list(dataclasses.replace(loader, pack=pack, rows=None).batches())
        for index, (batch, other) in enumerate(zip(batches, plain, strict=True)):
            assert (batch.num_tokens == other.num_tokens) == (index != 2)
            assert ((batch.rows.labels >= 0).sum() == (other.rows.labels >= 0).sum()) == (index != 2)


def swap(records, taken):
    records[taken[0]], records[taken[30]] = records[taken[30]], records[taken[0]]


def reformat(records, taken):
    for record in records:
        record["source"] = "other"


@pytest.mark.slow
@pytest.mark.parametrize("change", [swap, reformat])
def test_other_bytes_with_the_same_rows(config, checkpoint, mesh, records, tmp_path, begun, change):
    """What is in which line, and keys that nobody reads, make no difference."""
    begin(config, checkpoint, mesh, records, tmp_path / "whole", begun)
    sft(config, checkpoint, tmp_path / "whole", mesh, dtype=jnp.float32)
    taken = begin(config, checkpoint, mesh, records, tmp_path / "run", begun)
    change(records, taken)
    config.data.write_text(json.dumps(records))
    sft(config, checkpoint, tmp_path / "run", mesh, dtype=jnp.float32)
    assert_same_runs(tmp_path / "run", tmp_path / "whole")


def fix_learned(records, taken):
    fix(records[taken[15]])
    return rf"in 1 rows that were learned already: index {taken[15]} \(id 'example-{taken[15]}'\) was changed"


def remove_learned(records, taken):
    del records[taken[0]]
    return rf"in 1 rows that were learned already: its row {taken[0]} \(from 0\) was removed"


def add(records, taken):
    records.append({**records[taken[30]], "id": "new", "conversations": records[taken[0]]["conversations"][::-1][::-1]})
    fix(records[-1])
    return r"its index 40 \(id 'new'\) has no place among the 40 rows"


def remove_a_batch(records, taken):
    gone = set(taken[24:32])
    records[:] = [record for index, record in enumerate(records) if index not in gone]
    return "too many rows were removed: update 4 has none left"


@pytest.mark.main
@pytest.mark.parametrize("change", [fix_learned, remove_learned, add, remove_a_batch])
def test_what_a_run_cannot_continue_with(config, checkpoint, mesh, records, tmp_path, begun, change):
    taken = begin(config, checkpoint, mesh, records, tmp_path / "run", begun)
    original = config.data.read_bytes()
    message = change(records, taken)
    config.data.write_text(json.dumps(records))
    with pytest.raises(InputError, match=message) as caught:
        sft(config, checkpoint, tmp_path / "run", mesh, dtype=jnp.float32)
    assert "go back to that data, choose another run directory, or give --run.overwrite true" in str(caught.value)
    assert "\n" not in str(caught.value)
    config.data.write_bytes(original)
    sft(config, checkpoint, tmp_path / "run", mesh, dtype=jnp.float32)
    assert len(curve(tmp_path / "run")) == 5


@pytest.mark.slow
def test_all_has_been_learned_in_a_second_epoch(config, checkpoint, mesh, records, tmp_path, monkeypatch):
    config = dataclasses.replace(config, epochs=2)
    config.data.write_text(json.dumps(records))
    interrupt(lambda: sft(config, checkpoint, tmp_path / "run", mesh, dtype=jnp.float32), monkeypatch, after=7)
    fix(records[7])
    config.data.write_text(json.dumps(records))
    with pytest.raises(InputError, match="in 1 rows that were learned already: index 7"):
        sft(config, checkpoint, tmp_path / "run", mesh, dtype=jnp.float32)


@pytest.mark.main
def test_a_run_without_a_checkpoint_takes_any_data(config, checkpoint, mesh, records, tmp_path, monkeypatch):
    config.data.write_text(json.dumps(records))
    interrupt(lambda: sft(config, checkpoint, tmp_path / "run", mesh, dtype=jnp.float32), monkeypatch, after=1)
    config.data.write_text(json.dumps(records[4:]))
    sft(config, checkpoint, tmp_path / "run", mesh, dtype=jnp.float32)
    assert len(curve(tmp_path / "run")) == 4


# ---- by the command


def refusal(arguments, capsys) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.run(lambda: train.main(arguments))
    assert end.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


@pytest.fixture
def arguments(config, world, tmp_path):
    options = {
        "run.dir": tmp_path / "run",
        "model.path": tmp_path / "model",
        "model.dtype": "float32",
        "sft.data": config.data,
        "sft.images": config.images,
        "sft.batch_size": 8,
        "sft.max_length": 256,
        "sft.bucket": 256,
        "sft.save_every": 2,
    }
    shutil.copytree(world / "model", tmp_path / "model")
    return [str(part) for name, value in options.items() for part in (f"--{name}", value)]


@pytest.mark.slow
@pytest.mark.main
def test_the_same_command_continues_after_a_bad_row_is_fixed(config, records, arguments, tmp_path, capsys, monkeypatch):
    """Refused before the first update; broken off by an image in its middle; then nothing else needs to be said."""
    good = json.dumps(records)
    config.data.write_text(json.dumps(spoil(records, [1])))
    assert "index 1 (id 'example-1'): the first answer starts after" in refusal(arguments, capsys)
    config.data.write_text(good)
    with monkeypatch.context() as patch:
        interrupt(lambda: train.main(arguments), patch, after=3)
    records = json.loads(good)
    mesh, checkpoint = make_mesh(MeshConfig()), open_checkpoint(tmp_path / "model")
    *_, last = sft_module._loader(config, checkpoint, mesh).batches()
    late = next(record for record in records if record["id"] == last.ids[0])
    fix(late)
    config.data.write_text(json.dumps(records))
    train.main(arguments)
    assert len(curve(tmp_path / "run")) == 5

    fix(records[11])  # all is done
    config.data.write_text(json.dumps(records))
    assert "made with sft.data" in refusal(arguments, capsys)
    train.main([*arguments, "--run.overwrite", "true"])
    assert len(curve(tmp_path / "run")) == 5


@pytest.mark.slow
def test_overwrite_begins_again_where_a_row_came_back(config, records, arguments, tmp_path, capsys):
    """The data's file is what it was, so only the rows tell; what the message advises is what helps."""
    images = shutil.copytree(config.images, tmp_path / "images")
    arguments += ["--sft.images", str(images), "--sft.skip_bad", "true"]
    config.data.write_text(json.dumps(records))
    late = next(images.iterdir())
    late.rename(tmp_path / "late.png")
    train.main(arguments)
    assert latest_step(tmp_path / "run" / "checkpoints" / "sft") == 4
    (tmp_path / "late.png").rename(late)
    assert "has no place among the 39 rows" in (said := refusal(arguments, capsys))
    assert said.endswith("or give --run.overwrite true to begin again")
    train.main([*arguments, "--run.overwrite", "true"])
    assert latest_step(tmp_path / "run" / "checkpoints" / "sft") == 5


def test_a_run_is_bound_to_its_tokenizer(config, records, arguments, tmp_path, capsys, monkeypatch):
    """Also `sft` alone, which has no list of stages."""
    config.data.write_text(json.dumps(records))
    with monkeypatch.context() as patch:
        interrupt(lambda: train.main(arguments), patch, after=3)
    path = tmp_path / "model" / "tokenizer.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content, indent=3))  # other bytes, the same tokenizer
    assert open_checkpoint(path.parent).tokenizer.digest()
    content["model"]["merges"].pop()
    path.write_text(json.dumps(content))
    assert "was made with model.tokenizer" in refusal(arguments, capsys)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    settings = dataclasses.replace(config, loss_chunk=128, learning_rate=2e-5)
    with pytest.raises(InputError, match="was made with tokenizer"):
        sft(settings, open_checkpoint(path.parent), tmp_path / "run", mesh, dtype=jnp.float32)
