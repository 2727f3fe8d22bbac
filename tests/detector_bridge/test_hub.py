"""Models by their name on the Hub: fetched from a server of its protocol, by processes with their own caches."""

import random
import re
import resource
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

from detector_bridge.errors import InputError
from detector_bridge.hub import is_id, local_directory, origin
from detector_bridge.server import find_model
from tests.hub_server import Hub, Repository, commit_of, files_of, serving, wait_for

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = ("config.json", "tokenizer.json", "preprocessor_config.json")
QFORMER = "qformer_tokenizer/tokenizer.json"
INDEX = '{{"weight_map": {{"a": "{0}-00001-of-00002.{1}", "b": "{0}-00002-of-00002.{1}"}}}}'
SHARDS = [f"model-0000{k}-of-00002.safetensors" for k in (1, 2)]
TORCH_SHARDS = [f"pytorch_model-0000{k}-of-00002.bin" for k in (1, 2)]


@pytest.fixture(name="hub")
def running_hub():
    with serving() as hub:
        yield hub


class Done(NamedTuple):
    """How a process ended, the folder that it was told, where this came from, and the files there."""

    code: int
    directory: str
    origin: str
    files: set[str]
    errors: str


def start(hub: Hub, cache: Path, name: str, **more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.detector_bridge.run_hub", name]
    environment = hub.environment(cache, HF_HUB_DISABLE_PROGRESS_BARS="1", **more)
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def end(process: subprocess.Popen) -> Done:
    out, errors = process.communicate(timeout=120)
    directory, origin, files = out.splitlines() if out else ("", "", "")
    return Done(process.returncode, directory, origin, set(files.split()), errors)


def fetch(hub: Hub, cache: Path, name: str, **more: str) -> Done:
    done = end(start(hub, cache, name, **more))
    assert done.code == 0, done.errors
    return done


def refusal(hub: Hub, cache: Path, name: str, **more: str) -> str:
    done = end(start(hub, cache, name, **more))
    assert done.code == 2, done.errors
    assert done.errors.startswith("error: ")
    assert done.errors.count("\n") == 1
    return done.errors


def write(folder: Path, files: Iterable[str], *, size: int = 50_000, seed: int = 0) -> Path:
    """A model whose weights are any bytes."""
    for name in (*SETTINGS, *files):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".index.json"):
            path.write_text(INDEX.format(*name.removesuffix(".index.json").rsplit(".", 1)))
        else:
            path.write_bytes(random.Random(f"{name} {seed}").randbytes(300 if name in SETTINGS else size))
    return folder


# Name → what a repository has of weights, and what is read of it.
WEIGHTS = {
    "both formats": (("model.safetensors", "pytorch_model.bin"), {"model.safetensors"}),
    "both in shards": (
        ("model.safetensors.index.json", *SHARDS, "pytorch_model.bin.index.json", *TORCH_SHARDS),
        {"model.safetensors.index.json", *SHARDS},
    ),
    "whole and in shards": (("model.safetensors", "model.safetensors.index.json", *SHARDS), {"model.safetensors"}),
    "torch": (("pytorch_model.bin", "mm_projector.bin"), {"pytorch_model.bin", "mm_projector.bin"}),
    "torch in shards": (
        ("pytorch_model.bin.index.json", *TORCH_SHARDS, "model.fp16.safetensors"),
        {"pytorch_model.bin.index.json", *TORCH_SHARDS},
    ),
    "no index": (SHARDS, set(SHARDS)),
    "folders": (("model.safetensors", QFORMER), {"model.safetensors", QFORMER}),
    "an adapter": (("adapter_model.safetensors", "adapter_model.bin"), {"adapter_model.safetensors"}),
    "LLaVA's adapter": (
        ("adapter_model.bin", "non_lora_trainables.bin"),
        {"adapter_model.bin", "non_lora_trainables.bin"},
    ),
    "a model with an adapter": (("model.safetensors", "adapter_model.safetensors"), {"model.safetensors"}),
}
AGAIN = ("both in shards", "no index", "LLaVA's adapter")


def serve(hub: Hub, folder: Path, kind: str) -> None:
    others = ("README.md", "flax_model.msgpack", "onnx/config.json", "onnx/model.onnx", "optimizer.pt", "model.gguf")
    hub.repositories["tiny/model"] = Repository({"main": write(folder, (*WEIGHTS[kind][0], *others))})


@pytest.mark.parametrize("kind", WEIGHTS)
def test_what_is_read_is_fetched_and_nothing_else(hub, tmp_path, kind):
    serve(hub, tmp_path / "model", kind)
    done = fetch(hub, tmp_path / "cache", "tiny/model")
    assert done.files == {*SETTINGS, *WEIGHTS[kind][1]} == hub.sent.keys()
    assert done.origin == f"tiny/model@{commit_of(tmp_path / 'model')}"
    for name in done.files:
        assert (Path(done.directory) / name).read_bytes() == (tmp_path / "model" / name).read_bytes()
        assert hub.sent[name] == (tmp_path / "model" / name).stat().st_size


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind in AGAIN else [pytest.mark.slow]) for kind in WEIGHTS]
)
def test_what_is_here_is_not_fetched_again(hub, tmp_path, kind):
    serve(hub, tmp_path / "model", kind)
    done = fetch(hub, tmp_path / "cache", "tiny/model")
    hub.forget()
    assert fetch(hub, tmp_path / "cache", "tiny/model") == done
    assert not hub.sent
    hub.forget()
    assert fetch(hub, tmp_path / "cache", "tiny/model", HF_HUB_OFFLINE="1") == done
    assert not hub.asked


@pytest.mark.slow
@pytest.mark.main
def test_branches_tags_and_commits(hub, tmp_path):
    names = ("main", "v1", "refs/pr/1")
    folders = {name: write(tmp_path / f"of-{k}", ["model.safetensors"], seed=k) for k, name in enumerate(names)}
    hub.repositories["tiny/model"] = Repository(folders)
    found = {name: fetch(hub, tmp_path / "cache", f"tiny/model@{name}") for name in folders}
    assert found["main"] == fetch(hub, tmp_path / "cache", "tiny/model")
    for name, done in found.items():
        assert done.origin == f"tiny/model@{commit_of(folders[name])}"
        same = (Path(done.directory) / "model.safetensors").read_bytes()
        assert same == (folders[name] / "model.safetensors").read_bytes()
        hub.forget()
        assert fetch(hub, tmp_path / "cache", done.origin) == done
        assert not hub.sent
        assert fetch(hub, tmp_path / "cache", f"tiny/model@{name}", HF_HUB_OFFLINE="1") == done


def test_a_download_that_breaks_off_continues_where_it_was(hub, tmp_path):
    model = write(tmp_path / "model", ["model.safetensors"], size=25_000_000)
    hub.repositories["tiny/model"] = Repository({"main": model})
    hub.cut["model.safetensors"] = 23_000_000
    if (first := end(start(hub, tmp_path / "cache", "tiny/model"))).code:  # early versions of the library give up
        assert "broke off" in first.errors
        assert first.errors.count("\n") == 1
    done = fetch(hub, tmp_path / "cache", "tiny/model")
    whole = (model / "model.safetensors").read_bytes()
    assert (Path(done.directory) / "model.safetensors").read_bytes() == whole
    (continued,) = [line for line in hub.asked if "bytes=" in line]
    place = int(re.search(r"bytes=(\d+)-", continued)[1])
    assert place >= 20 << 20  # the library asks again for the last 10 MiB that it has begun
    assert hub.sent["model.safetensors"] == 23_000_000 + len(whole) - place


def test_a_killed_download_keeps_the_files_that_are_complete(hub, tmp_path):
    files = ("model.safetensors.index.json", *SHARDS)
    hub.repositories["tiny/model"] = Repository({"main": write(tmp_path / "model", files)})
    with hub.holding(SHARDS[1]):
        process = start(hub, tmp_path / "cache", "tiny/model")
        blobs = tmp_path / "cache" / "hub" / "models--tiny--model" / "snapshots"
        wait_for(lambda: SHARDS[1] in hub.sent and list(blobs.glob(f"*/{SHARDS[0]}")))
        process.kill()
        process.communicate()
    assert "not in the cache" in refusal(hub, tmp_path / "cache", "tiny/model", HF_HUB_OFFLINE="1")
    hub.forget()
    assert fetch(hub, tmp_path / "cache", "tiny/model").files == {*SETTINGS, *files}
    assert hub.sent.keys() == {SHARDS[1]}


@pytest.mark.slow
@pytest.mark.main
def test_of_several_processes_one_fetches(hub, tmp_path):
    files = ("model.safetensors.index.json", *SHARDS)
    hub.repositories["tiny/model"] = Repository({"main": write(tmp_path / "model", files)})
    with hub.holding(SHARDS[0]):
        processes = [start(hub, tmp_path / "cache", "tiny/model") for _ in range(3)]
        wait_for(lambda: SHARDS[0] in hub.sent)
        requests = len(hub.asked)
        with pytest.raises(AssertionError):
            wait_for(lambda: len(hub.asked) > requests + len(files), seconds=2)
    done = [end(process) for process in processes]
    assert [each.code for each in done] == [0, 0, 0]
    assert done[0].files == done[1].files == done[2].files == {*SETTINGS, *files}
    assert {name: hub.sent[name] for name in SHARDS} == dict.fromkeys(SHARDS, 50_000)
    assert any("waiting for another process" in each.errors for each in done)


@pytest.mark.slow
@pytest.mark.main
def test_what_the_hub_refuses_is_one_line(hub, tmp_path):
    model = write(tmp_path / "model", ["model.safetensors"])
    hub.repositories |= {
        "tiny/model": Repository({"main": model}),
        "tiny/gated": Repository({"main": model}, token="right", gated=True),
        "tiny/private": Repository({"main": model}, token="right"),
        "tiny/gguf": Repository({"main": write(tmp_path / "gguf", ["model.gguf"])}),
    }
    cache = tmp_path / "cache"
    nothing = f"tiny/nothing is no folder here, and {hub.url} has no such model, or it is private"
    assert nothing in refusal(hub, cache, "tiny/nothing")
    assert nothing in refusal(hub, cache, "tiny/nothing", HF_TOKEN="right")
    assert f"tiny/model has no revision 'v2' at {hub.url}" in refusal(hub, cache, "tiny/model@v2")
    for token in ({}, {"HF_TOKEN": "wrong"}):
        assert f"is gated: accept its terms at {hub.url}/tiny/gated" in refusal(hub, cache, "tiny/gated", **token)
    assert "or it is private" in refusal(hub, cache, "tiny/private")
    assert "does not know the token" in refusal(hub, cache, "tiny/private", HF_TOKEN="wrong")
    for name in ("tiny/gated", "tiny/private"):
        assert fetch(hub, cache, name, HF_TOKEN="right").files == {*SETTINGS, "model.safetensors"}
    assert "no name of a model on the Hub can be so" in refusal(hub, cache, "tiny--er/model")
    assert "has no weights that are read" in refusal(hub, cache, "tiny/gguf")


def test_no_network_is_one_line(hub, tmp_path):
    hub.repositories["tiny/model"] = Repository({"main": write(tmp_path / "model", ["model.safetensors"])})
    done = fetch(hub, tmp_path / "cache", "tiny/model")
    hub.down = True
    assert fetch(hub, tmp_path / "cache", "tiny/model") == done
    line = refusal(hub, tmp_path / "other", "tiny/model")
    assert f"{hub.url} cannot be reached (" in line
    assert "503" in line
    for model, place in (("tiny/model", "other"), ("tiny/model@v2", "cache")):
        line = refusal(hub, tmp_path / place, model, HF_HUB_OFFLINE="1")
        assert f"in the cache {tmp_path / place / 'hub'}, and HF_HUB_OFFLINE forbids fetching it" in line
        assert "run `hf download tiny/model --revision " in line
    gone = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    assert end(start(hub, tmp_path / "cache", "tiny/model", **gone)).files == done.files
    assert "http://127.0.0.1:9 cannot be reached" in refusal(hub, tmp_path / "other", "tiny/model", **gone)


def test_a_full_disk_is_one_line(hub, tmp_path):
    hub.repositories["tiny/model"] = Repository({"main": write(tmp_path / "model", ["model.safetensors"])})
    hub.sizes["model.safetensors"] = 10**18
    line = refusal(hub, tmp_path / "cache", "tiny/model")
    assert "its weights need 1000000000.00 GB, and " in line
    assert "model.safetensors" not in hub.sent
    hub.sizes.clear()

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))  # the child inherits it
    try:
        process = start(hub, tmp_path / "cache", "tiny/model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    done = end(process)
    assert done.code == 2
    assert "File too large" in done.errors.splitlines()[-1]
    assert "Traceback" not in done.errors


@pytest.mark.parametrize(
    "name",
    ["/a/b", "./a/b", "../b", "~/b", "a/b/c", "a", "", "a/", "/a", "a/b/", "a b/c", "a/b@", "https://a/b", "a\n/b"],
)
def test_what_looks_like_a_path_is_one(name):
    assert not is_id(name)
    assert local_directory(name) == Path(name).expanduser()


def test_what_exists_here_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_id("tiny/model")
    assert is_id("tiny/model@refs/pr/1")
    assert not is_id(Path("tiny/model"))
    (tmp_path / "tiny" / "model").mkdir(parents=True)
    assert not is_id("tiny/model")
    assert local_directory("tiny/model") == Path("tiny/model")
    assert origin(tmp_path / "tiny" / "model") == str(tmp_path / "tiny" / "model")
    assert files_of(tmp_path) == []


def test_the_original_layout_in_the_cache_needs_no_weights_of_transformers(tmp_path, monkeypatch):
    snapshot = tmp_path / "models--tiny--original" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "groundingdino_swint_ogc.pth").touch()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert find_model(snapshot, "groundingdino") == snapshot
    with pytest.raises(InputError, match="its weights are not in the cache"):
        find_model(snapshot, "transformers")
