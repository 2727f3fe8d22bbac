"""Steps whose files are damaged: one line that names the step and the one before it, and no wrong number."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.test_json_fields import put
from tests.training.test_checkpoint import FINGERPRINT, abstract, assert_same, make_state, save
from vigor_jax.errors import InputError
from vigor_jax.training.checkpoint import Checkpoints, latest_step, read_record, restore_params_only

pytestmark = pytest.mark.versions  # of Orbax

ROOT = Path(__file__).resolve().parents[2]


def large_state(seed: int = 0):
    """Arrays of which Orbax keeps the numbers in separate files."""
    rng = np.random.default_rng(seed)
    params = {name: jnp.asarray(rng.standard_normal((64, 40), np.float32)) for name in ("a.kernel", "b.kernel")}
    return params, {"opt_state": {"mu": jax.tree.map(lambda x: x + 1, params)}, "step": jnp.int32(7)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("saved") / "sft"
    for step in (5, 7):
        with Checkpoints(directory) as checkpoints:
            checkpoints.save(step, *large_state(step), {"fingerprint": FINGERPRINT})
    return directory


@pytest.fixture
def directory(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "sft"))


def resume(directory: Path):
    """As a training stage resumes."""
    params, rest = large_state(7)
    with Checkpoints(directory) as checkpoints:
        step = checkpoints.latest_step()
        assert step == 7
        checkpoints.record(step, FINGERPRINT)
        return checkpoints.restore(step, abstract(params), abstract(rest))


def export(directory: Path):
    """As the export reads the newest step."""
    step = latest_step(directory)
    assert step == 7
    read_record(directory, step)
    return restore_params_only(directory, abstract(large_state()[0]), step)


def check(directory: Path, read: Callable, expected) -> bool:
    """Whether the damage was refused; else what was read is what was saved."""
    try:
        found = read(directory)
    except InputError as error:
        check_line(str(error), directory)
        return True
    assert_same(found, expected)
    return False


def check_line(message: str, directory: Path) -> None:
    assert "\n" not in message
    assert message.startswith(f"{directory / '7'} is damaged (")
    assert message.endswith("; remove that folder to go back to step 5, which is there")
    assert len(message) < len(str(directory)) * 3 + 500


def files_of(directory: Path) -> list[Path]:
    return sorted(path.relative_to(directory) for path in (directory / "7").rglob("*") if path.is_file())


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def to_zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def to_pipe(path: Path) -> None:
    path.unlink()
    put("a named pipe", path)


DAMAGES = {"removed": Path.unlink, "empty": lambda path: os.truncate(path, 0), "halved": halve, "zeros": to_zeros}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_one_line_or_makes_no_difference(directory: Path, saved: Path, damage: str) -> None:
    refused = []
    for path in files_of(directory):
        DAMAGES[damage](directory / path)
        refused.append(check(directory, resume, large_state(7)))
        check(directory, export, large_state(7)[0])
        (directory / path).unlink(missing_ok=True)
        shutil.copyfile(saved / path, directory / path)
    assert sum(refused) > 5, refused
    assert not check(directory, resume, large_state(7))


def test_flips_of_bits_are_found(directory: Path) -> None:
    """Where the numbers are, which Orbax reads as other numbers in nine of ten cases."""
    chance = random.Random(0)
    files = [
        path for path in files_of(directory) if path.parent.name == "d" and (directory / path).stat().st_size > 5000
    ]
    assert {path.parts[1] for path in files} == {"params", "rest"}  # how many there are of each is up to Orbax
    refused = 0
    for _ in range(40):
        path = directory / chance.choice(files)
        content = path.read_bytes()
        changed = bytearray(content)
        changed[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(changed)
        refused += check(directory, resume, large_state(7))
        path.write_bytes(content)
    assert refused > 30


@pytest.mark.parametrize("part", ["params", "rest", "record"])
def test_a_part_that_is_missing(directory: Path, part: str) -> None:
    shutil.rmtree(directory / "7" / part)
    assert check(directory, resume, large_state(7))
    shutil.rmtree(directory / "7")
    with Checkpoints(directory) as checkpoints:
        assert checkpoints.latest_step() == 5
        params, rest = large_state(5)
        assert_same(checkpoints.restore(5, abstract(params), abstract(rest)), (params, rest))


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "{}", '{"fingerprint": 3}', "[" * 100_000, "\x00" * 9])
def test_a_damaged_record_names_the_step_before(directory: Path, content: str) -> None:
    (directory / "7" / "record" / "record.json").write_text(content)
    with pytest.raises(InputError, match=r"record\.json cannot be read") as caught:
        read_record(directory, 7)
    check_line(str(caught.value), directory)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["record/record.json", "sums/sums"])
def test_a_named_pipe_is_not_waited_for(directory: Path, name: str) -> None:
    to_pipe(directory / "7" / name)
    assert check(directory, resume, large_state(7))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"params": {}, "rest": []}', '{"params": null, "rest": 3}'])
def test_damaged_sums(directory: Path, content: str) -> None:
    (directory / "7" / "sums" / "sums").write_text(content)
    assert check(directory, resume, large_state(7))


def test_without_an_older_step(tmp_path: Path) -> None:
    params, rest = save(tmp_path)
    (tmp_path / "7" / "params" / "manifest.ocdbt").unlink()
    for read in (
        lambda: restore_params_only(tmp_path),
        lambda: restore_params_only(tmp_path, abstract(params)),
        lambda: Checkpoints(tmp_path).restore(7, abstract(params), abstract(rest)),
    ):
        with pytest.raises(InputError, match=r"7 is damaged .* remove that folder to begin again, for no older one"):
            read()


def test_checkpoints_without_sums_are_read(tmp_path: Path) -> None:
    """Those of versions that wrote none."""
    params, rest = save(tmp_path)
    shutil.rmtree(tmp_path / "7" / "sums")
    with Checkpoints(tmp_path) as checkpoints:
        assert_same(checkpoints.restore(7, abstract(params), abstract(rest)), (params, rest))


def test_reading_in_another_type_is_no_damage(tmp_path: Path) -> None:
    params, _ = save(tmp_path)
    half = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=x.sharding), params)
    assert_same(restore_params_only(tmp_path, half), jax.tree.map(lambda x: x.astype(jnp.bfloat16), params))


def test_another_model_is_not_called_damage(tmp_path: Path) -> None:
    params, _ = save(tmp_path)
    wide = {name: jax.ShapeDtypeStruct((9, 9), x.dtype, sharding=x.sharding) for name, x in params.items()}
    for wanted in (wide, abstract({"c.kernel": params["a.kernel"]})):
        with pytest.raises(
            InputError, match=r"does not fit this model .* give the model that training began with"
        ) as caught:
            restore_params_only(tmp_path, wanted)
        assert "\n" not in str(caught.value)


COMMAND = """
import sys
from pathlib import Path
from tests.training.test_damaged_checkpoint import export, resume
from vigor_jax import cli

cli.show_progress()
cli.run(lambda: {"resume": resume, "export": export}[sys.argv[1]](Path(sys.argv[2])))
"""


@pytest.mark.parametrize("how", ["resume", "export"])
def test_a_command_prints_one_line(directory: Path, how: str) -> None:
    """And nothing of what Orbax's threads say, which are reading other arrays when the first is found damaged."""
    for path in files_of(directory):
        if path.parent.name == "d" and (directory / path).stat().st_size > 5000:
            (directory / path).unlink()
    command = [sys.executable, "-c", COMMAND, how, str(directory)]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    check_line(lines[0].removeprefix("error: "), directory)


def test_make_state_is_read_back_with_sums(tmp_path: Path) -> None:
    """An optimizer's state has tuples and empty nodes in it."""
    params, rest = make_state()
    save(tmp_path)
    sums = json.loads((tmp_path / "7" / "sums" / "sums").read_text())
    assert len(sums["params"]) == 2
    assert len(sums["rest"]) == len(jax.tree.leaves(rest))
    with Checkpoints(tmp_path) as checkpoints:
        assert_same(checkpoints.restore(7, abstract(params), abstract(rest)), (params, rest))
