"""Settings for every test: CPU, no network, and one cache of compiled programs for all processes of the session."""

import os
import shutil
import tempfile

import pytest

SHARED = "JAX_COMPILATION_CACHE_DIR"
OWN = SHARED not in os.environ  # pytest's workers and the processes that tests start find it set

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tests build the same tiny models again and again; equal programs are compiled once.
if OWN:
    os.environ[SHARED] = tempfile.mkdtemp(prefix="compiled-")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# XLA's own passes run as always; LLVM, which takes half of the time of the tests, optimizes little of such programs.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is `main` is slow, before `-m` chooses."""
    for item in items:
        if item.get_closest_marker("main"):
            item.add_marker(pytest.mark.slow)


def pytest_unconfigure(config: pytest.Config) -> None:
    if OWN:
        shutil.rmtree(os.environ[SHARED], ignore_errors=True)
