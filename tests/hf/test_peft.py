"""LoRA adapters on disk: ours in PEFT, PEFT's in ours, the original LLaVA's both ways, and merged ones."""

import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from safetensors.torch import load_file, save_file

from tests.hf.test_round_trip import build_original, weights
from tests.models.test_lora import random_adapter
from tests.tiny_llava import Tiny, build_checkpoint
from vigor_jax.errors import InputError
from vigor_jax.hf.export import export_checkpoint, find_layout
from vigor_jax.hf.load import load_model, open_checkpoint
from vigor_jax.hf.weights.torch_bin import torch_tensors
from vigor_jax.hf.weights.torch_bin_write import write_torch_bin
from vigor_jax.models.lora import add_lora
from vigor_jax.models.lora_config import LoraConfig
from vigor_jax.models.vlm import abstract_model
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.parallel.sharding import make_mesh

ROOT = Path(__file__).resolve().parents[2]
PYTHON_4 = Path(os.environ.get("VIGOR_DETECTOR_PYTHON", ROOT / ".venv-detector" / "bin" / "python"))
needs_peft = pytest.mark.skipif(
    importlib.util.find_spec("peft") is None, reason="NOT TESTED: PEFT is not installed; pip install -e '.[test]'"
)
TINY = Tiny()
LORAS = {
    "language model": LoraConfig(rank=4, alpha=6),
    "one projection, rslora": LoraConfig(rank=3, alpha=5, target=("language_model.layers.v_proj",), rslora=True),
    "all parts": LoraConfig(rank=2, alpha=4, target=("language_model", "vision_tower", "multi_modal_projector")),
    "projector in full": LoraConfig(rank=4, alpha=8, also=("multi_modal_projector",)),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that transformers 4 and 5 read, by our own export."""
    root = tmp_path_factory.mktemp("peft")
    export_checkpoint(open_checkpoint(build_checkpoint(root / "source", TINY)), {}, root / "base")
    return root / "base"


def trained(base: Path, lora: LoraConfig, *, size: float = 0.1, vision_tower: Path | None = None) -> dict[str, Any]:
    """What training would have made: an adapter that does something, and moved weights of what `also` names."""
    checkpoint = open_checkpoint(base, vision_tower)
    params = random_adapter(add_lora(abstract_model(checkpoint.config), lora), size=size)
    if lora.also:
        rng = np.random.default_rng(1)
        for entry in checkpoint.entries:
            if any(entry.path.startswith(f"{part}.") for part in lora.also):
                value = checkpoint.tensors[entry.name].read().astype(np.float32).transpose(entry.axes)
                params[entry.path] = value + rng.normal(0, 0.05, value.shape).astype(np.float32)
    return {path: jnp.asarray(value) for path, value in params.items()}


def write(base: Path, lora: LoraConfig, out: Path, **export: Any) -> Path:
    export_checkpoint(open_checkpoint(base), trained(base, lora), out, lora=lora, **export)
    return out


def our_logits(directory: Path, adapter: Path | None = None, **load: Any) -> np.ndarray:
    """Of the prompt and picture of `peft_program`."""
    checkpoint = open_checkpoint(directory, adapter=adapter)
    model = load_model(checkpoint, mesh=make_mesh(MeshConfig()), dtype=jnp.float32, **load)
    edge = TINY.image_size
    pixels = np.random.default_rng(0).normal(size=(1, 3, edge, edge)).astype(np.float32)
    ids = jnp.asarray([[1, *[509] * 4, *range(10, 30)]])
    features = model.vision_tower(jnp.asarray(pixels.transpose(0, 2, 3, 1)), model.config.num_vision_layers)[:, 1:]
    x = model.embed(ids, model.multi_modal_projector(features))
    hidden, _ = model.language_model(x, jnp.arange(x.shape[1])[None])
    return np.asarray(model.language_model.logits(hidden))


def close(ours: Any, theirs: Any, tolerance: float = 1e-5) -> bool:
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    return bool(np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max())


# Ours in PEFT


@needs_peft
@pytest.mark.parametrize("kind", LORAS)
def test_peft_loads_ours_with_equal_logits_and_misses_nothing(base, tmp_path, kind):
    from tests.hf.peft_program import logits_with

    out = write(base, LORAS[kind], tmp_path / "adapter")
    theirs, problems = logits_with(str(base), str(out))
    assert problems == []
    assert close(our_logits(base, out), theirs)
    assert not close(our_logits(base), theirs, 0.05)  # the adapter does something


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON_4.exists(), reason="NOT TESTED: transformers 4; make it with scripts/detector_env.sh")
def test_peft_under_transformers_4_loads_ours_too(base, tmp_path):
    adapters = [write(base, lora, tmp_path / f"adapter-{number}") for number, lora in enumerate(LORAS.values())]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    done = subprocess.run(
        [PYTHON_4, Path(__file__).with_name("peft_program.py"), base, json.dumps([str(each) for each in adapters])],
        capture_output=True, text=True, env=environment, timeout=600,
    )  # fmt: skip
    if "No module named 'peft'" in done.stderr:
        pytest.skip("NOT TESTED: PEFT under transformers 4; install peft in that environment")
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["version"].startswith("4.")
    for adapter, (theirs, problems) in zip(adapters, said["found"], strict=True):
        assert problems == []
        assert close(our_logits(base, adapter), theirs)


def test_the_files_are_as_peft_writes_them(base, tmp_path):
    out = write(base, LORAS["language model"], tmp_path / "adapter")
    assert {path.name for path in out.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"], config["task_type"]) == ("LORA", 4, 6, "CAUSAL_LM")
    assert config["base_model_name_or_path"] == str(base.resolve())
    tensors = load_file(out / "adapter_model.safetensors")
    assert len(tensors) == 2 * 7 * TINY.text_layers
    stem = "base_model.model.model.language_model.layers.1.mlp.down_proj"
    assert tensors[f"{stem}.lora_A.weight"].shape == (4, TINY.text_mlp)
    assert tensors[f"{stem}.lora_B.weight"].shape == (TINY.text_width, 4)


# Theirs in ours


def theirs_of(base: Path, out: Path, *, save: bool = True, **config: Any) -> Any:
    """An adapter that PEFT made and saved, and the model that has it."""
    import peft

    model = transformers.LlavaForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **config}
    model = peft.get_peft_model(model, peft.LoraConfig(**settings))
    torch.manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                weight.add_(0.1 * torch.randn_like(weight))
    if save:
        model.save_pretrained(out)
    return model.eval()


def logits_of(model: Any) -> np.ndarray:
    pixels = torch.tensor(np.random.default_rng(0).normal(size=(1, 3, TINY.image_size, TINY.image_size)))
    ids = torch.tensor([[1, *[509] * 4, *range(10, 30)]])
    with torch.no_grad():
        return model(input_ids=ids, pixel_values=pixels.float()).logits.numpy()


OF_PEFT = {
    "a list, which matches the tower, too": {},
    "all linear layers": {"target_modules": "all-linear"},
    "rslora": {"use_rslora": True, "r": 3},
    "parts in full": {"modules_to_save": ["multi_modal_projector", "lm_head"]},
    "one of the layers": {"layers_to_transform": [1], "target_modules": r".*language_model.*\.1\..*(q_proj|up_proj)"},
    "gaussian": {"init_lora_weights": "gaussian"},
}


@pytest.mark.main
@needs_peft
@pytest.mark.parametrize("kind", OF_PEFT)
def test_pefts_load_here(base, tmp_path, kind):
    config = dict(OF_PEFT[kind])
    if kind == "one of the layers":
        config.pop("layers_to_transform")  # PEFT takes it for lists only, with the same result
    model = theirs_of(base, tmp_path / "adapter", **config)
    if kind == "one of the layers":
        edit(tmp_path / "adapter", layers_to_transform=[1])
    theirs = logits_of(model)
    assert close(our_logits(tmp_path / "adapter"), theirs)  # the base is where the adapter says
    assert close(our_logits(base, tmp_path / "adapter", scan=False), theirs)


@needs_peft
def test_older_spellings_and_torchs_own_format(base, tmp_path):
    theirs = logits_of(theirs_of(base, tmp_path / "adapter", target_modules=r".*language_model.*\.(q_proj|o_proj)"))
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    old = {
        name.replace("model.model.language_model.", "model.language_model.model."): value
        for name, value in tensors.items()
    }
    assert old.keys() != tensors.keys()
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    torch.save(old, tmp_path / "adapter" / "adapter_model.bin")
    assert close(our_logits(base, tmp_path / "adapter"), theirs)


# The original LLaVA's


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("original") / "llava-base"
    directory.mkdir()
    return build_original(directory, TINY, tower_inside=False, dtype=torch.float32)


def as_the_original_code_does(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """The weights that LLaVA's `load_pretrained_model` ends with: base, other parts, then the merged adapter."""
    state = dict(weights(base))
    others = torch.load(adapter / "non_lora_trainables.bin", weights_only=True)
    others = {(k[11:] if k.startswith("base_model.") else k): v for k, v in others.items()}
    if any(k.startswith("model.model.") for k in others):
        others = {(k[6:] if k.startswith("model.") else k): v for k, v in others.items()}
    assert others.keys() <= state.keys()
    state |= {name: value.float() for name, value in others.items()}
    config = json.loads((adapter / "adapter_config.json").read_text())
    tensors = load_file(adapter / "adapter_model.safetensors")
    for name, b in tensors.items():
        if ".lora_B." in name:
            a = tensors[name.replace(".lora_B.", ".lora_A.")]
            module = name.removeprefix("base_model.model.").replace(".lora_B.weight", ".weight")
            state[module] = state[module] + config["lora_alpha"] / config["r"] * b @ a
    return state


@pytest.mark.main
@pytest.mark.parametrize("kind", ["language model", "projector in full"])
def test_the_original_form_there_and_back(original, tmp_path, kind):
    lora = LORAS[kind]
    params = trained(original, lora)
    checkpoint = open_checkpoint(original)
    out = tmp_path / "llava-lora"
    export_checkpoint(checkpoint, params, out, layout="llava-lora", lora=lora, dtype="float32")
    names = {"adapter_config.json", "adapter_model.safetensors", "config.json", "non_lora_trainables.bin"}
    assert {path.name for path in out.iterdir()} == names
    assert json.loads((out / "config.json").read_text())["model_type"] == "llava_llama"
    assert all(
        name.startswith("base_model.model.model.layers.") for name in load_file(out / "adapter_model.safetensors")
    )
    others = torch.load(out / "non_lora_trainables.bin", weights_only=True)
    assert bool(others) == bool(lora.also)
    assert all(name.startswith("base_model.model.model.mm_projector.") for name in others)

    merged = tmp_path / "merged"
    export_checkpoint(checkpoint, params, merged, layout="llava", lora=lora)
    expected, found = as_the_original_code_does(original, out), weights(merged)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
    assert close(our_logits(out), our_logits(merged))


@pytest.mark.main
@pytest.mark.parametrize("named", [True, False], ids=["by the adapter", "given"])
def test_an_adapter_on_a_language_model_alone_brings_the_rest(original, tmp_path, named):
    """As LLaVA's authors publish them: Vicuna below, the projector next to the adapter, the tower by name."""
    lora, vicuna, out = LORAS["projector in full"], tmp_path / "vicuna", tmp_path / "llava-lora"
    params = trained(original, lora)
    export_checkpoint(open_checkpoint(original), params, out, layout="llava-lora", lora=lora, dtype="float32")
    merged = tmp_path / "merged"
    export_checkpoint(open_checkpoint(original), params, merged, layout="llava", lora=lora)
    shutil.copytree(original, vicuna, ignore=shutil.ignore_patterns("clip", "pytorch_model.bin"))
    language = {name: value for name, value in weights(original).items() if "mm_projector" not in name}
    torch.save(language, vicuna / "pytorch_model.bin")
    config = json.loads((vicuna / "config.json").read_text())
    plain = {key: value for key, value in config.items() if not key.startswith("mm_")}
    (vicuna / "config.json").write_text(json.dumps(plain | {"model_type": "llama"}))
    edit(out, base_model_name_or_path=str(vicuna))
    found = our_logits(out) if named else our_logits(vicuna, out)
    assert close(found, our_logits(merged))
    with pytest.raises(InputError, match="'llama' is not supported"):
        open_checkpoint(vicuna)

    # Training continues it: what is written then must bring the rest, too.
    again, again_merged = tmp_path / "llava-lora-again", tmp_path / "merged-again"
    begun = open_checkpoint(out) if named else open_checkpoint(vicuna, adapter=out)
    further = {path: value * 1.5 for path, value in params.items()}
    with pytest.raises(InputError, match="can be written as llava-hf or llava or llava-lora, got 'peft'") as caught:
        find_layout("peft", begun, lora)
    assert "\n" not in str(caught.value)
    export_checkpoint(begun, further, again, lora=lora, dtype="float32")
    assert (again / "non_lora_trainables.bin").exists()
    export_checkpoint(begun, further, again_merged, layout="llava", lora=lora)
    found = our_logits(again) if named else our_logits(vicuna, again)
    assert close(found, our_logits(again_merged))
    assert not close(found, our_logits(merged), 0.05)
    unchanged = tmp_path / "llava-lora-unchanged"  # exported without training
    export_checkpoint(begun, {}, unchanged, dtype="float32")
    assert close(our_logits(vicuna, unchanged), our_logits(merged))


# Merged


def test_a_merged_export_loads_in_transformers(base, tmp_path):
    lora = LORAS["projector in full"]
    adapter = write(base, lora, tmp_path / "adapter")
    merged = write(base, lora, tmp_path / "merged", layout="llava-hf")
    model = transformers.LlavaForConditionalGeneration.from_pretrained(merged, dtype=torch.float32).eval()
    assert close(our_logits(base, adapter), logits_of(model))
    again = tmp_path / "again"  # an adapter's folder, merged
    export_checkpoint(open_checkpoint(adapter), {}, again, layout="llava-hf")
    for name, value in weights(merged).items():
        torch.testing.assert_close(weights(again)[name], value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("dtype", "size", "least", "most"),
    [
        ("bfloat16", 1e-5, 0.2, 0.4),  # measured on 2 million weights of deviation 0.02: 28%, 69%, 99%
        ("bfloat16", 3e-5, 0.6, 0.8),
        ("bfloat16", 1e-4, 0.97, 1.02),
        ("float16", 1e-5, 0.94, 1.0),
        ("float32", 1e-5, 0.9999, 1.0001),
    ],
)
def test_a_merged_export_says_how_much_survived(tmp_path, caplog, dtype, size, least, most):
    source = build_checkpoint(tmp_path / "source", Tiny(text_width=256, text_mlp=256))
    tensors = load_file(source / "model.safetensors")
    rng = np.random.default_rng(0)
    kind = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}[dtype]
    for name, value in tensors.items():
        if "language_model" in name and value.ndim == 2:
            rounded = rng.normal(0, 0.02, tuple(value.shape)).astype(kind).astype(np.float32)
            tensors[name] = torch.tensor(rounded)
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    lora = LoraConfig(rank=64, alpha=64, target=("language_model.layers.gate_proj",))
    deviation = (size / 8) ** 0.5  # of a sum of 64 products
    with caplog.at_level("INFO"):
        export_checkpoint(
            open_checkpoint(source), trained(source, lora, size=deviation), tmp_path / "merged",
            layout="llava-hf", dtype=dtype, lora=lora,
        )  # fmt: skip
    line = next(line for line in caplog.messages if "survived" in line)
    assert f"merged into weights of {dtype}" in line
    share = int(line.split("%")[0].rsplit(" ", 1)[1]) / 100
    assert least - 0.005 <= share <= most + 0.005
    assert ("float32, or the layout peft" in line) == (share < 0.99)


# Files and refusals


def test_torch_reads_what_is_written_without_it(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.normal(size=(3, 4)).astype(np.float32),
        "b.c": rng.normal(size=(5,)).astype(np.float16),
        "transposed": rng.normal(size=(3, 4)).astype(np.float32).T,
        "bf16": rng.normal(size=(2, 2)).astype(ml_dtypes.bfloat16),
        "scalar": np.float32(3),
        "ints": np.arange(70000),
        "none": np.zeros((0, 3), np.float32),
    }
    write_torch_bin(tmp_path / "x.bin", arrays)
    read = torch.load(tmp_path / "x.bin", weights_only=True)
    ours = torch_tensors(tmp_path / "x.bin")
    assert read.keys() == ours.keys() == arrays.keys()
    for name, array in arrays.items():
        assert tuple(read[name].shape) == np.shape(array)
        np.testing.assert_array_equal(read[name].float().numpy(), np.asarray(array, np.float32))
        np.testing.assert_array_equal(ours[name].read().astype(np.float32), np.asarray(array, np.float32))
    write_torch_bin(tmp_path / "empty.bin", {})
    assert torch.load(tmp_path / "empty.bin", weights_only=True) == {}


def edit(adapter: Path, **config: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))


def edit_tensors(change: Any) -> Any:
    def spoil(adapter: Path) -> None:
        path = adapter / "adapter_model.safetensors"
        save_file(change(load_file(path)), path, {"format": "pt"})

    return spoil


def without(part: str) -> Any:
    return edit_tensors(lambda tensors: {name: value for name, value in tensors.items() if part not in name})


FIRST = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight"
REFUSED = {
    "DoRA": (lambda d: edit(d, use_dora=True), "use_dora true is not supported, only plain LoRA"),
    "biases": (lambda d: edit(d, bias="all"), "bias 'all' is not supported, only none"),
    "ranks of their own": (lambda d: edit(d, rank_pattern={"q_proj": 2}), "rank_pattern an object with 1 keys is not"),
    "PiSSA": (lambda d: edit(d, init_lora_weights="pissa"), "init_lora_weights 'pissa' is not supported: it changes"),
    "IA3": (lambda d: edit(d, peft_type="IA3"), "holds a PEFT adapter (IA3 for "),
    "prompts": (lambda d: edit(d, peft_type="PROMPT_TUNING"), "this kind cannot be merged into the weights"),
    "another rank": (lambda d: edit(d, r=8), "has rank 4, but adapter_config.json says r 8"),
    "a rank that is none": (lambda d: edit(d, r="4"), "r: expected a whole number from 1 to"),
    "a magnitude": (
        edit_tensors(lambda t: t | {FIRST.replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(64)}),
        "1 tensors are for layers that",
    ),
    "other layers": (
        edit_tensors(lambda t: {name.replace(".q_proj.", ".qkv_proj."): value for name, value in t.items()}),
        "4 tensors are for layers that",
    ),
    "a layer that is not there": (
        edit_tensors(lambda t: t | {FIRST.replace(".0.", ".9."): t[FIRST].clone()}),
        "1 tensors are for layers that",
    ),
    "other sizes": (
        edit_tensors(lambda t: {name: value.repeat(2, 2) for name, value in t.items()}),
        "tensors have other sizes than",
    ),
    "one of two": (without("0.self_attn.q_proj.lora_B"), "lacks 1 of the tensors of its layers"),
    "a layer too few": (without("layers.0.self_attn.q_proj"), "lacks 2 of the tensors of its layers"),
    "none": (without("lora_"), "holds no LoRA matrices"),
    "no weights": (lambda d: (d / "adapter_model.safetensors").unlink(), "holds no weights: expected adapter_model"),
    "no config": (lambda d: (d / "adapter_config.json").unlink(), "without its adapter_config.json"),
    "damaged": (lambda d: (d / "adapter_model.safetensors").write_bytes(b"x"), "no whole safetensors file"),
}


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory) -> Path:
    return write(base, LORAS["language model"], tmp_path_factory.mktemp("refused") / "adapter")


@pytest.mark.parametrize("kind", REFUSED)
def test_refusals_are_one_line(base, adapter, tmp_path, kind):
    spoil, message = REFUSED[kind]
    copied = shutil.copytree(adapter, tmp_path / "copied")
    spoil(copied)
    for how in ((base, None, copied), (copied,)):  # as it is given, and as a run opens what it has made
        with pytest.raises(InputError) as caught:
            open_checkpoint(*how, base=base)
        assert message in str(caught.value)
        assert str(copied) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 1500


def test_an_adapter_of_another_model(adapter, base, tmp_path):
    other = build_checkpoint(tmp_path / "other", TINY, seed=1)
    with pytest.raises(InputError, match=r"trained on another model: the weights of .*other differ from those; give"):
        open_checkpoint(other, adapter=adapter)
    half = tmp_path / "half"  # the same model all the same
    export_checkpoint(open_checkpoint(base), {}, half, dtype="float32")
    assert open_checkpoint(half, adapter=adapter).adapter is not None
    small = build_checkpoint(tmp_path / "small", Tiny(text_width=32, heads=2, kv_heads=1))
    with pytest.raises(InputError, match=r"tensors have other sizes than .*small"):
        open_checkpoint(small, adapter=adapter)


def test_an_adapter_that_is_continued_knows_its_base(base, tmp_path):
    """Also where it brings whole what tells a base from others; an export of what was not trained further, too."""
    lora = LoraConfig(rank=4, alpha=6, also=("language_model.norm",))
    first, again = write(base, lora, tmp_path / "first"), tmp_path / "again"
    for is_trained in (True, False):
        begun = open_checkpoint(base, adapter=first)
        kept = {path: jnp.asarray(value) for path, value in begun.adapter.read(begun.entries).items()}
        export_checkpoint(begun, trained(base, lora) if is_trained else kept, again, lora=lora, layout="peft")
        assert open_checkpoint(base, adapter=again).adapter.full == begun.adapter.full
        shutil.rmtree(again)


def test_a_vision_tower_in_full_is_told(base, tmp_path, caplog):
    write(base, LoraConfig(rank=4, alpha=6, also=("vision_tower.pre_layrnorm",)), tmp_path / "adapter")
    assert "PEFT leaves out without a word under transformers 5" in caplog.text


def test_a_base_that_is_gone(adapter, tmp_path):
    copied = shutil.copytree(adapter, tmp_path / "copied")
    for named in (str(tmp_path / "gone"), "nobody/nothing", None, ""):
        edit(copied, base_model_name_or_path=named)
        with pytest.raises(InputError) as caught:
            open_checkpoint(copied)
        assert f"--model BASE --model.adapter {copied}; or merge them: python -m vigor_jax.export" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_two_adapters(adapter):
    with pytest.raises(InputError, match="is an adapter, and so is"):
        open_checkpoint(adapter, adapter=adapter)


def test_layouts_that_do_not_fit(base, adapter, tmp_path):
    with pytest.raises(InputError, match="layout: peft is for adapters, and none was trained here; give llava-hf"):
        export_checkpoint(open_checkpoint(base), {}, tmp_path / "x", layout="peft")
    with pytest.raises(InputError, match="layout: llava-lora names the vision tower by its place on the Hub, which"):
        export_checkpoint(open_checkpoint(adapter), {}, tmp_path / "llava-lora", layout="llava-lora")
    with pytest.raises(InputError, match="names the vision tower by its place"):  # before anything is trained
        find_layout("llava-lora", open_checkpoint(base), LORAS["language model"])
    assert list(tmp_path.iterdir()) == [] or all(path.name.startswith(".") for path in tmp_path.iterdir())


@pytest.mark.parametrize("lora", [LORAS["all parts"], LoraConfig(also=("vision_tower.pre_layrnorm",))])
def test_no_tower_in_the_original_form(original, lora):
    """Known from the settings alone, so before training."""
    match = (
        "layout: llava-lora holds no weights of the vision tower, which lora trains here; choose peft or llava-hf or"
    )
    with pytest.raises(InputError, match=match):
        find_layout("llava-lora", open_checkpoint(original), lora)
    assert find_layout(None, open_checkpoint(original), lora) == "peft"


def test_a_digest_tells_adapters_apart(base, adapter, tmp_path):
    plain, one = open_checkpoint(base), open_checkpoint(base, adapter=adapter)
    other = write(base, LoraConfig(rank=4, alpha=12), tmp_path / "other")  # the same matrices, twice as strong
    assert len({each.digest() for each in (plain, one, open_checkpoint(base, adapter=other))}) == 3
    assert nnx.graphdef(load_model(one, mesh=make_mesh(MeshConfig()), dtype=jnp.float32)) is not None
