"""The cache of compiled programs: where it is, who may write it, and that a second process finds what a first left."""

import logging
import os
import stat
import subprocess
import sys
import warnings

import jax
import pytest

from vigor_jax.parallel.compilation_cache import MAX_BYTES, keep_compiled, user_folder

SETTINGS = (
    "jax_enable_compilation_cache",
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
)
PROGRAM = """
import sys

import jax
import jax.numpy as jnp
from jax._src import monitoring

from vigor_jax.parallel.compilation_cache import keep_compiled

hits = []
monitoring.register_event_listener(lambda event, **_: hits.append(event) if event.endswith("cache_hits") else None)
keep_compiled("off" if sys.argv[1:] else None)
result = jax.jit(lambda x: jnp.linalg.qr(jnp.sin(x) @ x)[0].sum())(jnp.arange(64.0).reshape(8, 8))
print(result.tobytes().hex(), len(hits))
"""


@pytest.fixture(autouse=True)
def settings(monkeypatch, tmp_path):
    """JAX as a user's command finds it, and a cache folder for this test."""
    before = {name: jax.config.values[name] for name in SETTINGS}
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_the_default_is_a_bounded_folder_of_the_user_alone(tmp_path):
    keep_compiled()
    folder = jax.config.values["jax_compilation_cache_dir"]
    assert os.path.dirname(folder) == str(user_folder()) == str(tmp_path / "cache" / "vigor_jax" / "compiled")
    assert [stat.S_IMODE(os.stat(each).st_mode) for each in (user_folder().parent, user_folder(), folder)] == [
        0o700
    ] * 3
    assert jax.config.values["jax_compilation_cache_max_size"] == MAX_BYTES


def test_off_and_the_settings_of_jax_hold(tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    keep_compiled()
    assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path / "own")
    keep_compiled("off")
    assert not jax.config.values["jax_enable_compilation_cache"]
    keep_compiled(tmp_path / "given")  # JAX_ENABLE_COMPILATION_CACHE=false
    assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path / "own")
    assert not (tmp_path / "given").exists()
    assert not user_folder().exists()


@pytest.mark.parametrize("spoiled", ["others", "file"])
def test_a_folder_that_cannot_be_used_is_one_warning(tmp_path, caplog, spoiled):
    place = tmp_path / "place"
    if spoiled == "others":
        place.mkdir()
        place.chmod(0o777)
    else:
        place.write_text("")
    with caplog.at_level(logging.WARNING):
        keep_compiled(place)
    (record,) = caplog.records
    assert "compiled programs are not kept" in record.message
    assert str(place) in record.message
    assert "\n" not in record.message
    assert jax.config.values["jax_compilation_cache_dir"] is None


def test_a_user_without_a_home_is_one_warning(caplog, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    with caplog.at_level(logging.WARNING):
        keep_compiled()
    (record,) = caplog.records
    assert record.message.startswith("compiled programs are not kept: Could not determine home directory")


def test_what_a_killed_process_left_half_written_is_removed():
    keep_compiled()
    folder = jax.config.values["jax_compilation_cache_dir"]
    for name in ("whole-cache", "whole-atime", "half-cache"):
        with open(os.path.join(folder, name), "wb") as file:
            file.write(bytes(8))
    keep_compiled(user_folder())
    assert {"whole-cache", "whole-atime"} <= set(os.listdir(folder))
    assert "half-cache" not in os.listdir(folder)


def test_of_a_disk_that_becomes_full_the_first_warning_is_told(caplog):
    keep_compiled()
    with caplog.at_level(logging.WARNING), warnings.catch_warnings():
        warnings.simplefilter("always")
        show = warnings.showwarning
    for name in ("jit_a", "jit_b"):
        text = f"Error writing persistent compilation cache entry for '{name}': OSError: No space left on device"
        show(UserWarning(text), UserWarning, "compiler.py", 1)
    assert [record.message for record in caplog.records if "jit_" in record.message] == [
        "not every compiled program is kept: Error writing persistent compilation cache entry for 'jit_a': OSError: No"
        " space left on device"
    ]


def test_a_second_process_finds_what_the_first_compiled(tmp_path):
    env = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_COMPIL", "JAX_PERSIST"))}
    env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # it is a short program

    def run(*arguments: str) -> tuple[str, int]:
        command = [sys.executable, "-c", PROGRAM, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
        result, hits = done.stdout.split()
        return result, int(hits)

    first, second, without = run(), run(), run("off")
    assert first[1] == without[1] == 0 < second[1]
    assert first[0] == second[0] == without[0]
