"""Compiled programs are kept from one command to the next, in a folder that only the user can write.

What JAX finds there it runs, so the folder counts as code. JAX knows a program by its operations, options, version of
the compiler and kind of device, but on a CPU not by what that CPU can do: so each kind of CPU has a folder.
"""

import hashlib
import logging
import os
import platform
import stat
import warnings
from pathlib import Path
from typing import Any

import filelock
import jax

from vigor_jax.disk import describe
from vigor_jax.parallel.config import Compiled

logger = logging.getLogger(__name__)

# Programs that have not been used for the longest time make room for new ones.
MAX_BYTES = 4 << 30
# Of what is compiled faster, finding and reading it would take as long.
MIN_SECONDS = 0.1
# Room that the disk must have for the cache to be used.
MIN_FREE_BYTES = 256 << 20
_CPU_FIELDS = ("vendor_id", "cpu family", "model", "flags", "CPU implementer", "CPU part", "Features")


def keep_compiled(place: Compiled = None) -> None:
    """Lets JAX keep what it compiles, and look there first. Where that cannot be, one warning says so.

    JAX's own settings hold where they are given: `JAX_COMPILATION_CACHE_DIR`, `JAX_ENABLE_COMPILATION_CACHE`,
    `JAX_COMPILATION_CACHE_MAX_SIZE` and `JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS`.

    Args:
      place: a folder; by default one in the user's cache folder, unless JAX has one; "off" for none.
    """
    if place == "off":
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if not jax.config.values["jax_enable_compilation_cache"]:
        return
    if place is None and jax.config.values["jax_compilation_cache_dir"]:
        return
    try:
        folder = (place or user_folder()) / _cpu()
        problem = _prepare(folder)
    except RuntimeError as error:  # as in a container whose user has no name there
        problem = str(error)
    if problem:
        logger.warning("compiled programs are not kept: %s (--help tells of compiled)", problem)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if jax.config.values["jax_compilation_cache_max_size"] == -1:
        jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_SECONDS)
    _warn_once()


def user_folder() -> Path:
    """Where the programs of all commands of this user are kept: `$XDG_CACHE_HOME/vigor_jax/compiled`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vigor_jax" / "compiled"


def _cpu() -> str:
    """What programs for a CPU depend on: its model and its instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").partition("\n\n")[0].splitlines()
    except OSError:
        lines = [f"model: {platform.processor()}"]
    fields = "\n".join(line for line in lines if line.partition(":")[0].strip() in _CPU_FIELDS)
    return f"{platform.machine()}-{hashlib.sha256(fields.encode()).hexdigest()[:12]}"


def _prepare(folder: Path) -> str | None:
    """Makes the folder, for its user alone; says what is wrong if it cannot be used."""
    try:
        for each in (*reversed(folder.parents), folder):
            if not each.exists():
                each.mkdir(mode=0o700, exist_ok=True)
        for each in (folder.parent, folder):
            found = each.stat()
            if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                return f"others can write {each}, and what is in it is run; chmod 700, or give another folder"
        space = os.statvfs(folder)
        if space.f_bavail * space.f_frsize < MIN_FREE_BYTES:
            return f"the disk of {folder} is full"
        _remove_halves(folder)
    except (OSError, filelock.Timeout) as error:
        return f"{folder} cannot be used ({describe(error) or error})"
    return None


def _remove_halves(folder: Path) -> None:
    """Removes programs that a process was ended in the middle of writing: JAX neither reads nor replaces them, and with
    one of them makes no room for others. It writes `-atime` last.
    """
    with filelock.FileLock(folder / ".lockfile", timeout=10):  # JAX's own
        for program in folder.glob("*-cache"):
            if not program.with_name(f"{program.name.removesuffix('-cache')}-atime").exists():
                program.unlink()


def _warn_once() -> None:
    """JAX warns of each program that it cannot read or write, as on a disk that has become full."""
    show, told = warnings.showwarning, False

    def show_first(message: Warning | str, *rest: Any, **named: Any) -> None:
        nonlocal told
        if "persistent compilation cache" not in str(message):
            show(message, *rest, **named)
        elif not told:
            told = True
            logger.warning("not every compiled program is kept: %s", message)

    warnings.showwarning = show_first
