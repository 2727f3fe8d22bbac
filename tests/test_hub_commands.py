"""Commands that are given models by their names on the Hub, against a server of its protocol."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.detector_bridge.tiny_detector import write_transformers
from tests.hf.test_round_trip import build_original
from tests.hub_server import Repository, commit_of, serving
from tests.stages.sft_world import TINY, make_world
from tests.tiny_clip import build_checkpoint as build_clip
from tests.tiny_llava import build_checkpoint

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(name="hub", scope="module")
def running_hub():
    with serving() as hub:
        yield hub


@pytest.fixture(scope="module")
def world(tmp_path_factory, hub):
    """A checkpoint, here and on the Hub, and pictures with conversations."""
    world = make_world(tmp_path_factory.mktemp("hub"), examples=12)
    hub.repositories["tiny/llava"] = Repository({"main": world / "model"})
    return world


class Machine:
    """Runs commands with a cache of the Hub's models."""

    def __init__(self, hub, cache: Path) -> None:
        self.hub, self.cache = hub, cache

    def run(self, *command: object, code: int = 0, **more: str) -> str:
        """The command's last line on stderr."""
        environment = self.hub.environment(self.cache, HF_HUB_DISABLE_PROGRESS_BARS="1", **more)
        arguments = [sys.executable, *map(str, command)]
        done = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        assert done.stderr.count("error: ") == (code == 2)
        return (done.stderr.splitlines() or [""])[-1]


@pytest.fixture
def machine(hub, tmp_path):
    return Machine(hub, tmp_path / "cache")


def caption(world: Path, model: object, out: Path) -> list[object]:
    settings = ("--sampling.max_new_tokens", 8, "--sampling.temperature", 0, "--sampling.batch_size", 4)
    return ["-m", "vigor_jax.caption", "--model", model, "--images", world / "images", "--out", out, *settings]


@pytest.mark.slow
def test_captions_by_name_are_those_of_the_folder(machine, world, tmp_path):
    texts = {}
    for place, model, offline in (
        ("here", world / "model", "1"),
        ("hub", "tiny/llava", "0"),
        ("again", "tiny/llava", "1"),
    ):
        machine.run(*caption(world, model, tmp_path / f"{place}.jsonl"), HF_HUB_OFFLINE=offline)
        texts[place] = (tmp_path / f"{place}.jsonl").read_text()
    assert texts["here"] == texts["hub"] == texts["again"] != ""
    settings = json.loads((tmp_path / "hub.jsonl.settings.json").read_text())
    assert settings["model"] == f"tiny/llava@{commit_of(world / 'model')}"

    out = tmp_path / "none.jsonl"
    line = machine.run(*caption(world, "tiny/nothing", out), code=2)
    assert line.startswith("error: tiny/nothing is no folder here, and http://127.0.0.1:")
    line = machine.run(*caption(world, "tiny/nothing", out), code=2, HF_HUB_OFFLINE="1")
    assert line.startswith("error: tiny/nothing is no folder here and not, or not wholly, in the cache ")


def train(world: Path, run_dir: Path, *more: object) -> list[object]:
    places = ["--run.dir", run_dir, "--model.path", "tiny/moving", "--model.dtype", "float32"]
    data = ["--sft.data", world / "data.json", "--sft.images", world / "images"]
    sizes = ["--sft.batch_size", 4, "--sft.max_length", 128, "--sft.bucket", 64]
    return ["-m", "vigor_jax.train", *places, *data, *sizes, *more]


@pytest.mark.slow
@pytest.mark.main
def test_a_run_says_which_commit_it_is_of(hub, machine, world, tmp_path):
    """And stays with it: in its settings, checkpoints and exports, with and without a network."""
    repository = hub.repositories["tiny/moving"] = Repository({"main": world / "model"})
    name = f"tiny/moving@{commit_of(world / 'model')}"
    run = tmp_path / "run"
    machine.run(*train(world, run))
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["path"] == name
    assert json.loads((run / "export" / "vigor_jax.json").read_text())["base"] == name
    (record,) = (run / "checkpoints" / "sft").glob("*/record/record.json")
    assert json.loads(record.read_text())["base"] == name

    exporting = ["-m", "vigor_jax.export", "--checkpoint", run / "checkpoints" / "sft", "--out"]
    machine.run(*exporting, tmp_path / "offline", HF_HUB_OFFLINE="1")
    for file in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (tmp_path / "offline" / file).read_bytes() == (run / "export" / file).read_bytes()

    repository.revisions["main"] = build_checkpoint(tmp_path / "newer", TINY, seed=1)
    line = machine.run(*train(world, run), code=2)
    assert f"{run} was made with model " in line
    machine.run("-m", "vigor_jax.train", "--config", run / "config.yaml")  # which names the commit


@pytest.mark.slow
@pytest.mark.main
def test_an_original_comes_with_the_tower_that_it_names(hub, machine, tmp_path):
    original = build_original(tmp_path / "original", TINY, tower_inside=False)
    hub.repositories["tiny/tower"] = Repository({"main": original / "clip"})
    program = (
        "import sys; from vigor_jax.hf.load import open_checkpoint;"
        "print(open_checkpoint(*sys.argv[1:]).digest(), file=sys.stderr)"
    )
    wanted = machine.run("-c", program, original, original / "clip")

    config = json.loads((original / "config.json").read_text())
    (original / "config.json").write_text(json.dumps(config | {"mm_vision_tower": "tiny/tower"}))
    hub.repositories["tiny/original"] = Repository({"main": original})
    assert machine.run("-c", program, "tiny/original") == wanted
    assert machine.run("-c", program, "tiny/original", "tiny/tower@main", HF_HUB_OFFLINE="1") == wanted
    assert machine.run("-c", program, original, "tiny/tower") == wanted


@pytest.mark.slow
@pytest.mark.main
def test_a_sidecar_serves_a_model_of_the_hub(hub, machine, tmp_path):
    """Started by its command, and as a child by the trainer, which fetches for it."""
    detector = write_transformers(tmp_path / "detector")
    hub.repositories["tiny/detector"] = Repository({"main": detector})
    served = f"tiny/detector@{commit_of(detector)}"
    program = (
        "import sys; from detector_bridge.local import LocalConfig, LocalDetector;"
        "from detector_bridge.client import BlockingClient, ClientConfig\n"
        "with LocalDetector(LocalConfig(sys.argv[1])) as sidecar, "
        "BlockingClient(ClientConfig((sidecar.address,))) as client:\n"
        "    print(client.info()[0].model, file=sys.stderr)"
    )
    assert machine.run("-c", program, "tiny/detector") == served
    assert machine.run("-c", program, "tiny/detector", HF_HUB_OFFLINE="1") == served
    assert machine.run("-c", program, detector) == "detector"


@pytest.mark.slow  # `detector_bridge/test_hub.py` has the same refusals at each gate
def test_what_a_sidecar_cannot_serve(hub, machine, tmp_path):
    hub.repositories["tiny/detector"] = Repository({"main": write_transformers(tmp_path / "detector")})
    serving_it = ["-m", "detector_bridge.server", "--listen", f"unix:{tmp_path / 'socket'}", "--model"]
    assert "has no such model" in machine.run(*serving_it, "tiny/nothing", code=2)
    assert "HF_HUB_OFFLINE" in machine.run(*serving_it, "tiny/nothing", code=2, HF_HUB_OFFLINE="1")
    line = machine.run(*serving_it, "tiny/detector", "--backend", "groundingdino", code=2)
    assert "--backend groundingdino reads nothing from the Hub" in line


def test_plan_takes_the_sizes_and_no_weights(hub, machine, world):
    program = (
        "import sys; from vigor_jax.hf.hub import local_directory; from vigor_jax.plan.planning import model_config;"
        "print(model_config(local_directory('tiny/llava')).text.hidden_size, file=sys.stderr)"
    )
    hub.forget()
    assert machine.run("-c", program) == str(TINY.text_width)
    assert not [file for file in hub.sent if file.endswith("safetensors")]


def test_a_run_keeps_the_commit_of_its_detector(hub, machine, tmp_path):
    """Where it scores, and with the backend that reads the Hub; a folder stays as it is."""
    detector = write_transformers(tmp_path / "detector")
    hub.repositories["tiny/detector"] = Repository({"main": detector})
    program = (
        "import sys; from vigor_jax import cli; from vigor_jax.config import TrainConfig, with_pinned_models;"
        "pinned = lambda given: with_pinned_models(cli.parse(TrainConfig, given, description='')).detection.model;"
        "common = ['--run.dir', 'r', '--model.path', 'm', '--detection.model'];"
        "print(*(pinned([*common, *given.split()]) for given in sys.argv[1:]), file=sys.stderr)"
    )
    scoring, by_another, unread = "--run.stages score", "--detection.backend groundingdino", "--run.stages sft"
    given = (
        f"tiny/detector {scoring}",
        f"{detector} {scoring}",
        f"tiny/absent {scoring} {by_another}",
        f"tiny/absent {unread}",
    )
    pinned = f"tiny/detector@{commit_of(detector)}"
    assert machine.run("-c", program, *given).split() == [pinned, str(detector), "tiny/absent", "tiny/absent"]
    assert machine.run("-c", program, f"{pinned} {scoring}", HF_HUB_OFFLINE="1") == pinned


def test_a_verifier_by_its_name_is_that_of_the_folder(hub, machine, tmp_path):
    """Also without the Hub, once it is in the cache; a run keeps its commit where the verifier judges."""
    clip = build_clip(tmp_path / "clip")
    hub.repositories["tiny/clip"] = Repository({"main": clip})
    opens = (
        "import sys; from vigor_jax.hf.clip.checkpoint import open_clip;"
        "print(*(open_clip(name).digest() for name in sys.argv[1:]), file=sys.stderr)"
    )
    ours, fetched = machine.run("-c", opens, clip, "tiny/clip").split()
    assert ours == fetched == machine.run("-c", opens, "tiny/clip", HF_HUB_OFFLINE="1")
    pins = (
        "import sys; from vigor_jax import cli; from vigor_jax.config import TrainConfig, with_pinned_models;"
        "pinned = lambda given: with_pinned_models(cli.parse(TrainConfig, given, description='')).clip.model;"
        "common = ['--run.dir', 'r', '--model.path', 'm', '--clip.model'];"
        "print(*(pinned([*common, *given.split()]) for given in sys.argv[1:]), file=sys.stderr)"
    )
    given = "tiny/clip --run.stages score --score.streams clip", "tiny/absent --run.stages sft"
    assert machine.run("-c", pins, *given).split() == [f"tiny/clip@{commit_of(clip)}", "tiny/absent"]
