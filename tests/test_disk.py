"""Full disks, read-only places and files in the way: one line with the path, and afterwards the same result."""

import errno
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from tests.test_train import arguments, environment, world  # noqa: F401 (a fixture)
from vigor_jax import cli, train
from vigor_jax.data.records import store
from vigor_jax.disk import check_room, describe, naming
from vigor_jax.errors import InputError
from vigor_jax.records import Target
from vigor_jax.training.checkpoint import Checkpoints, latest_step, restore_params_only

ROOT = Path(__file__).resolve().parents[1]


def mount(*command: str) -> bool:
    return subprocess.run(["mount", *command], capture_output=True).returncode == 0


@pytest.fixture
def small(tmp_path):
    """A file system of 2 MiB; skips where none may be mounted."""
    folder = tmp_path / "small"
    folder.mkdir()
    if not mount("-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)):
        pytest.skip("a file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, *, leave: int = 0) -> None:
    """Fills a file system up."""
    usage = os.statvfs(folder)
    with (folder / "fill").open("wb") as file:
        file.write(bytes(max(0, usage.f_bavail * usage.f_frsize - leave)))


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "", "/a"), "/a: No space left on device; make room there"),
        (OSError(errno.EDQUOT, "", b"/a"), "/a: Disk quota exceeded; make room in your quota"),
        (OSError(errno.ENOSPC, ""), "No space left on device; make room"),
        (PermissionError(errno.EACCES, "", "/a"), "/a: Permission denied; check the permissions"),
        (OSError(errno.EROFS, "", "/a"), "/a: Read-only file system; choose a place"),
        (OSError(errno.ENOTEMPTY, "", "/a", None, "/b"), "/b: Directory not empty"),
        (OSError(errno.ENOENT, "", "a\nb"), "a b: No such file or directory; check the path"),
    ],
)
def test_errors_of_disks_are_one_line(error, line):
    assert describe(error).startswith(line)
    assert "\n" not in describe(error)


@pytest.mark.parametrize(
    "error", [OSError("no number"), ConnectionRefusedError(errno.ECONNREFUSED, ""), FileNotFoundError(2, "")]
)
def test_other_errors_stay_defects(error):
    assert describe(error) is None
    with pytest.raises(type(error)):
        cli.run(lambda: (_ for _ in ()).throw(error))


def test_naming_adds_the_path_that_a_write_leaves_out(small):
    fill(small)
    path = small / "file"
    with pytest.raises(OSError, match="No space") as error, naming(path), path.open("wb") as file:
        file.write(bytes(10_000))
    assert error.value.filename == str(path)
    with pytest.raises(OSError, match="Errno 28") as error, naming(small), naming(path):
        raise OSError(errno.ENOSPC, "")
    assert error.value.filename == str(path)  # the nearest one


def test_check_room(tmp_path):
    check_room(tmp_path / "not" / "there", 1, "a checkpoint")
    with pytest.raises(InputError, match=r"there: a checkpoint needs 1000000\.00 GB, and \S+ GB are free there; make"):
        check_room(tmp_path / "not" / "there", 10**15, "a checkpoint")


def test_a_part_on_a_full_disk(small):
    fill(small, leave=8192)
    records = [Target(f"{i}.jpg", "Describe it.", np.random.default_rng(i).bytes(999).hex()) for i in range(100)]
    with pytest.raises(OSError, match="No space") as error:
        store.write_part(small / "targets", 0, 1, records, Target)
    assert describe(error.value).startswith(f"{small}/targets/part-00000-of-00001.parquet: No space left on device")
    (small / "fill").unlink()
    assert [path.name for path in (small / "targets").iterdir()] == []
    store.write_part(small / "targets", 0, 1, records, Target)
    assert list(store.read_parts(small / "targets", Target)) == records


SAVE = """
import resource, sys
from pathlib import Path
import jax.numpy as jnp, numpy as np
from vigor_jax import cli
from vigor_jax.training.checkpoint import Checkpoints

def main():
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[5]), resource.RLIM_INFINITY))
    values = np.random.default_rng(0).standard_normal((4, 100_000)).astype(np.float32)
    with Checkpoints(Path(sys.argv[1])) as checkpoints:
        if sys.argv[2] == "unseen":
            checkpoints.check_room = lambda *given: None  # as if the disk filled up just after
        first = 1 + (checkpoints.latest_step() or 0)
        for step in range(first, first + int(sys.argv[3])):
            arrays = {str(i): jnp.asarray(v) for i, v in enumerate(values)}
            checkpoints.save(step, arrays, {"n": jnp.int32(1)}, {"fingerprint": {}})
        if sys.argv[4] == "wait":
            checkpoints.wait()

cli.show_progress()
cli.run(main)
"""


def save(folder, look="looks", steps=1, end="wait", limit=resource.RLIM_INFINITY) -> tuple[int, str]:
    command = [sys.executable, "-c", SAVE, str(folder), look, str(steps), end, str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == len(done.stderr.splitlines()) == (done.returncode != 0), done.stderr[-3000:]
    return done.returncode, "".join(errors)


def test_a_checkpoint_that_does_not_fit_is_refused_before_it_is_begun(small):
    fill(small, leave=1_000_000)
    code, line = save(small / "c")
    assert code == 2
    assert re.match(
        rf"error: {small}/c: a checkpoint needs 1\.60 MB, and 9\d\d\.\d\d kB are free there; make room", line
    )
    assert list((small / "c").iterdir()) == []


@pytest.mark.parametrize("end", ["wait", pytest.param("leave", marks=[pytest.mark.slow, pytest.mark.main])])
@pytest.mark.parametrize("steps", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_disk_that_fills_up_during_a_save(small, steps, end):
    """The error comes with the next save, the wait or the end of the context."""
    fill(small, leave=1_000_000)
    code, line = save(small / "c", "unseen", steps, end)
    assert code == 2
    assert line.startswith(f"error: {small}/c: a checkpoint needs ")
    (small / "fill").unlink()
    assert latest_step(small / "c") is None
    assert save(small / "c") == (0, "")
    assert restore_params_only(small / "c")["3"].shape == (100_000,)


@pytest.mark.slow
@pytest.mark.parametrize("end", ["wait", pytest.param("leave", marks=pytest.mark.main)])
def test_a_limit_on_the_size_of_files(tmp_path, end):
    code, line = save(tmp_path / "c", steps=2, end=end, limit=200_000)
    assert code == 2
    assert line.startswith(f"error: {tmp_path}/c: File too large; raise the limit")
    assert save(tmp_path / "c") == (0, "")


@pytest.mark.slow
@pytest.mark.main
def test_a_read_only_disk_and_a_file_in_the_way(small):
    (small / "file").touch()
    assert save(small / "file" / "c")[0] == 2
    assert mount("-o", "remount,ro", str(small))
    code, line = save(small / "c")
    assert (code, "Read-only file system; choose a place" in line) == (2, True)


def test_the_newest_good_checkpoint_stays(small):
    with Checkpoints(small / "c") as checkpoints:
        checkpoints.save(1, {"a": jnp.arange(1000)}, {"n": jnp.int32(1)}, {"fingerprint": {}})
    fill(small)
    code, _ = save(small / "c", "unseen", 2)
    assert code == 2
    assert latest_step(small / "c") == 1
    np.testing.assert_array_equal(restore_params_only(small / "c")["a"], np.arange(1000))


def refused(given: list[str], capsys) -> str:
    with pytest.raises(SystemExit) as end:
        cli.run(lambda: train.main(given))
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert end.value.code == 2
    (line,) = errors
    return line


def test_a_run_below_a_file_is_one_line(world, capsys):  # noqa: F811
    line = refused(arguments(world, run__dir=world / "chat.json" / "deep" / "run"), capsys)
    assert f"{world}/chat.json/deep/run: Not a directory" in line
    line = refused(arguments(world, run__dir=world / "chat.json"), capsys)
    assert f"{world}/chat.json: File exists" in line


def test_a_run_on_a_read_only_disk_is_one_line(world, small, capsys):  # noqa: F811
    assert mount("-o", "remount,ro", str(small))
    assert "Read-only file system" in refused(arguments(world, run__dir=small / "run"), capsys)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [*(pytest.param(name, marks=pytest.mark.main) for name in ("caption", "evaluate")), "export"]
)
def test_outputs_on_a_full_disk_and_below_a_file(world, small, command):  # noqa: F811
    (world / "objects.json").write_text('{"000.jpg": ["dog"]}')
    (world / "captions.jsonl").write_text('{"image": "000.jpg", "text": "A dog."}\n')
    fill(small)
    for place in small, world / "chat.json":
        out = place / "deep" / "out"
        given = {
            "caption": ["--model", world / "model", "--images", world / "images", "--out", out],
            "export": ["--checkpoint", world / "model", "--out", out, "--layout", "llava-hf"],
            "evaluate": [
                "chair",
                "--objects",
                world / "objects.json",
                "--captions",
                world / "captions.jsonl",
                "--out",
                out,
            ],
        }[command]
        run = [sys.executable, "-m", f"vigor_jax.{command}", *map(str, given)]
        done = subprocess.run(run, capture_output=True, text=True, env=environment(world), cwd=ROOT, timeout=300)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr, done.stderr[-3000:]
        assert done.stderr.splitlines()[-1].startswith(f"error: {place}"), done.stderr


@pytest.mark.slow
def test_a_run_that_ran_out_of_room_ends_as_one_that_did_not(world, small):  # noqa: F811
    """The same command on a disk that grows: refused with one line until there is room enough."""
    expected = world / "run"
    runs = [arguments(world, run__dir=folder, sft__epochs=2, sft__save_every=2) for folder in (expected, small / "run")]
    codes = []
    for size, given in (
        ("100m", runs[0]),
        *((size, runs[1]) for size in ("4k", "16k", "1m", "1900k", "3400k", "100m")),
    ):
        assert mount("-o", f"remount,size={size}", str(small))
        command = [sys.executable, "-m", "vigor_jax.train", *given]
        done = subprocess.run(command, capture_output=True, text=True, env=environment(world), cwd=ROOT, timeout=600)
        assert "Traceback" not in done.stderr, done.stderr[-3000:]
        assert sum(line.startswith("error: ") for line in done.stderr.splitlines()) == (done.returncode != 0)
        codes.append(done.returncode)
    assert codes == [0, 2, 2, 2, 2, 2, 0]
    ours, theirs = ((run / "export" / "model.safetensors").read_bytes() for run in (small / "run", expected))
    assert ours == theirs
