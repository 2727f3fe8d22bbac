"""Both checkpoint layouts in and out: every spelling, every tensor bit for bit, and transformers' own verdict."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from safetensors.torch import load_file, save_file

from tests.tiny_llava import Tiny, build_checkpoint, build_model, write_processor
from vigor_jax.errors import InputError
from vigor_jax.hf.export import export_checkpoint
from vigor_jax.hf.llava import names
from vigor_jax.hf.load import load_model, open_checkpoint
from vigor_jax.models.vlm import param_paths
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.parallel.sharding import make_mesh

TINY = Tiny()
LINEAR = Tiny(linear_projector=True)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def params_of(directory: Path, vision_tower: Path | None = None, *, scan: bool = True, dtype=None) -> dict:
    """Every parameter, through the device, in the type it has on disk."""
    checkpoint = open_checkpoint(directory, vision_tower)
    model = load_model(checkpoint, mesh=make_mesh(MeshConfig()), dtype=dtype or checkpoint.dtype, scan=scan)
    return {path: variable.get_value() for path, variable in param_paths(nnx.state(model)).items()}


def through_jax(directory: Path, out: Path, *, scan: bool = True, **export) -> Path:
    """Disk → device arrays → disk; no tensor is copied past JAX."""
    export_checkpoint(open_checkpoint(directory), params_of(directory, scan=scan), out, **export)
    return out


def weights(directory: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    for path in sorted(directory.glob("*.safetensors")):
        tensors |= load_file(path)
    for path in sorted(directory.glob("pytorch_model*.bin")):
        tensors |= torch.load(path, weights_only=True)
    return tensors


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert torch.equal(a[name].view(torch.uint8), b[name].view(torch.uint8)), name


def old_spelling(model: transformers.LlavaForConditionalGeneration) -> dict[str, torch.Tensor]:
    """The names llava-hf checkpoints have on disk, written down here independently of the package."""
    renamed = {}
    for name, value in model.state_dict().items():
        name = name.removeprefix("model.")
        name = name.replace("language_model.", "language_model.model.").replace("lm_head", "language_model.lm_head")
        name = name.replace("vision_tower.", "vision_tower.vision_model.")
        renamed[name] = value.contiguous()
    return renamed


def original_spelling(model, tiny: Tiny) -> dict[str, torch.Tensor]:
    """The original code's names, the same; the vocabulary without the rows that llava-hf adds."""
    renamed = {}
    for name, value in old_spelling(model).items():
        if "embed_tokens" in name or "lm_head" in name:
            value = value[: tiny.image_token_id].clone()
        if "linear_2" in name and tiny.linear_projector:
            continue
        first = "model.mm_projector." if tiny.linear_projector else "model.mm_projector.0."
        name = name.replace("multi_modal_projector.linear_1.", first)
        name = name.replace("multi_modal_projector.linear_2.", "model.mm_projector.2.")
        name = name.replace("language_model.lm_head", "lm_head").replace("language_model.model.", "model.")
        renamed[name.replace("vision_tower.", "model.vision_tower.vision_tower.")] = value
    return renamed


def build_original(directory: Path, tiny: Tiny, *, tower_inside: bool, dtype=torch.float16) -> Path:
    """A checkpoint as the original code's trainer writes it."""
    model = build_model(tiny).to(dtype)
    write_processor(directory, tiny)
    for name in ("preprocessor_config.json", "processor_config.json"):
        (directory / name).unlink()
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["id"] < tiny.image_token_id]
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    settings.pop("added_tokens_decoder")
    (directory / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": "<unk>"}))
    (directory / "special_tokens_map.json").unlink()

    tensors = original_spelling(model, tiny)
    inside = {name for name in tensors if name.startswith("model.vision_tower.")}
    tower = {name.removeprefix("model.vision_tower.vision_tower."): tensors[name] for name in inside}
    vision = model.config.vision_config.to_dict()
    (directory / "clip").mkdir()
    (directory / "clip" / "config.json").write_text(json.dumps(vision))
    if not tower_inside:
        save_file(tower, directory / "clip" / "model.safetensors", metadata={"format": "pt"})
        tensors = {name: value for name, value in tensors.items() if name not in inside}
    torch.save(tensors, directory / "pytorch_model.bin")
    text = model.config.text_config
    config = {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama",
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "num_hidden_layers": text.num_hidden_layers,
        "num_attention_heads": text.num_attention_heads,
        "num_key_value_heads": text.num_key_value_heads,
        "rms_norm_eps": text.rms_norm_eps,
        "max_position_embeddings": text.max_position_embeddings,
        "vocab_size": tiny.image_token_id,
        "mm_vision_tower": str(directory / "clip"),
        "mm_vision_select_layer": -2,
        "mm_hidden_size": tiny.vision_width,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    if not tiny.linear_projector:
        config |= {"mm_projector_type": "mlp2x_gelu", "image_aspect_ratio": "pad"}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def logits(directory: Path, tiny: Tiny) -> np.ndarray:
    """What transformers computes from a directory; fails on any key it misses or does not expect."""
    model, info = transformers.LlavaForConditionalGeneration.from_pretrained(
        directory, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    generator = torch.Generator().manual_seed(0)
    pixel_values = torch.randn(1, 3, tiny.image_size, tiny.image_size, generator=generator)
    ids = torch.tensor([[1, *[tiny.image_token_id] * tiny.num_image_tokens, 5, 6, 7, 8]])
    with torch.no_grad():
        return model(input_ids=ids, pixel_values=pixel_values).logits.numpy()


@pytest.mark.slow
@pytest.mark.parametrize("tiny", [TINY, LINEAR, Tiny(tied=True), Tiny(kv_heads=4, full=True)])
@pytest.mark.parametrize(
    "dtype", [pytest.param(name, marks=[pytest.mark.main] if name == "bfloat16" else []) for name in DTYPES]
)
def test_hf_to_jax_to_hf_is_bit_identical(tmp_path, tiny, dtype):
    checkpoint = build_checkpoint(tmp_path / "source", tiny, dtype=DTYPES[dtype])
    expected = old_spelling(build_model(tiny).to(DTYPES[dtype]))
    if tiny.tied:
        expected.pop("language_model.lm_head.weight")
    for scan in (True, False):
        out = through_jax(checkpoint, tmp_path / f"out{scan}", scan=scan)
        assert_same(weights(out), expected)
    np.testing.assert_array_equal(logits(out, tiny), logits(checkpoint, tiny))


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("files", ["safetensors", "bin"])
def test_devices_and_the_host_get_the_same_weights(tmp_path, monkeypatch, files, scan):
    """As GPUs and TPUs are loaded, a layer at a time, and as CPUs are, whose memory is read into."""
    build_checkpoint(tmp_path, TINY)
    if files == "bin":
        torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    found = []
    for is_host in (True, False):
        monkeypatch.setattr("vigor_jax.hf.load._is_host", lambda mesh, is_host=is_host: is_host)
        model = load_model(open_checkpoint(tmp_path), mesh=make_mesh(MeshConfig()), dtype=jnp.bfloat16, scan=scan)
        found.append({path: np.asarray(value[...]) for path, value in param_paths(nnx.state(model)).items()})
    host, device = found
    assert host.keys() == device.keys()
    assert all(host[path].tobytes() == device[path].tobytes() for path in host)


def spellings(model) -> dict[str, dict[str, torch.Tensor]]:
    """Every way the same tensors are named on disk (by transformers 4.x and 5.x, before and after loading)."""
    old = old_spelling(model)
    memory = dict(model.state_dict())
    with_tower = {
        name.replace("model.vision_tower.", "model.vision_tower.vision_model."): v for name, v in memory.items()
    }
    without = {name.replace("vision_tower.vision_model.", "vision_tower."): value for name, value in old.items()}
    buffers = {
        "vision_tower.vision_model.embeddings.position_ids": torch.arange(5)[None],
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
    }
    named = {
        "old": old,
        "in memory, with vision_model": with_tower,
        "in memory": memory,
        "old without vision_model": without,
        "with buffers": old | buffers,
    }
    return {key: {name: value.clone() for name, value in found.items()} for key, found in named.items()}


@pytest.mark.parametrize(
    "spelling",
    ["old", "in memory, with vision_model", "in memory", "old without vision_model", "with buffers"],
)
@pytest.mark.parametrize(
    "files",
    [
        "safetensors",
        pytest.param("sharded safetensors", marks=[pytest.mark.slow, pytest.mark.main]),
        pytest.param("bin", marks=[pytest.mark.slow, pytest.mark.main]),
        pytest.param("sharded bin", marks=[pytest.mark.slow, pytest.mark.main]),
    ],
)
def test_every_spelling_and_file_format_loads(tmp_path, spelling, files):
    model = build_model(TINY).half()
    checkpoint = build_checkpoint(tmp_path / "source", TINY, dtype=torch.float16)
    expected = params_of(checkpoint)
    for path in checkpoint.glob("model*"):
        path.unlink()
    tensors = spellings(model)[spelling]
    half = len(tensors) // 2
    parts = (
        [dict(list(tensors.items())[:half]), dict(list(tensors.items())[half:])] if "sharded" in files else [tensors]
    )
    stem, suffix = ("model", "safetensors") if "safetensors" in files else ("pytorch_model", "bin")
    weight_map = {}
    for i, part in enumerate(parts, 1):
        name = f"{stem}-{i:05}-of-{len(parts):05}.{suffix}" if "sharded" in files else f"{stem}.{suffix}"
        save_file(part, checkpoint / name) if suffix == "safetensors" else torch.save(part, checkpoint / name)
        weight_map |= dict.fromkeys(part, name)
    if "sharded" in files:
        index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        (checkpoint / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    found = params_of(checkpoint)
    assert found.keys() == expected.keys()
    for path in expected:
        assert found[path].dtype == jnp.float16
        np.testing.assert_array_equal(found[path], expected[path])


@pytest.mark.parametrize("tower_inside", [True, False])
@pytest.mark.parametrize("tiny", [TINY, LINEAR], ids=["v1.5", "v1.0"])
def test_original_to_jax_to_original_is_bit_identical(tmp_path, tiny, tower_inside):
    checkpoint = build_original(tmp_path / "llava-source", tiny, tower_inside=tower_inside)
    out = through_jax(checkpoint, tmp_path / "llava-out")
    assert_same(weights(out), weights(checkpoint))
    if not tower_inside:
        assert_same(weights(out / "vision_tower"), weights(checkpoint / "clip"))
    again = open_checkpoint(out)
    assert again.config == open_checkpoint(checkpoint).config
    assert again.preprocessing == open_checkpoint(checkpoint).preprocessing
    before, after = (json.loads((directory / "config.json").read_text()) for directory in (checkpoint, out))
    same = before.keys() - {"mm_vision_tower"}
    # Written though the source left it out: absent means something else in other versions.
    assert {key: after[key] for key in same} == {key: before[key] for key in same}
    assert after["mm_use_im_patch_token"] is False


@pytest.mark.parametrize("tiny", [TINY, LINEAR], ids=["v1.5", "v1.0"])
@pytest.mark.parametrize("tower_inside", [True, False])
def test_original_to_hf_and_back(tmp_path, tiny, tower_inside):
    checkpoint = build_original(tmp_path / "llava-source", tiny, tower_inside=tower_inside)
    hf = through_jax(checkpoint, tmp_path / "hf", layout="llava-hf")
    theirs = old_spelling(build_model(tiny).half())
    ours = weights(hf)
    assert ours.keys() == theirs.keys()
    rows = tiny.image_token_id
    for name in theirs:
        kept = slice(rows) if "embed_tokens" in name or "lm_head" in name else slice(None)
        assert torch.equal(ours[name][kept], theirs[name][kept]), name
    embedding = ours["language_model.model.embed_tokens.weight"].float()
    assert embedding.shape[0] == 512
    torch.testing.assert_close(embedding[rows:], embedding[:rows].mean(0).expand(512 - rows, -1), atol=1e-3, rtol=0)

    processor = transformers.AutoProcessor.from_pretrained(hf)
    assert processor.tokenizer.convert_tokens_to_ids("<image>") == rows
    assert processor.tokenizer.pad_token_id == rows + 1
    assert np.isfinite(logits(hf, tiny)).all()

    back = through_jax(hf, tmp_path / "llava-back", layout="llava")
    expected = weights(checkpoint)
    if tower_inside:
        tower = {name: expected.pop(name) for name in list(expected) if "vision_tower" in name}
        tower = {name.removeprefix("model.vision_tower.vision_tower."): value for name, value in tower.items()}
    else:
        tower = weights(checkpoint / "clip")
    assert_same(weights(back), expected)
    assert_same(weights(back / "vision_tower"), tower)
    tokenizer = transformers.AutoTokenizer.from_pretrained(back)
    assert len(tokenizer) == rows  # the original code resizes the embeddings to this number
    moved = tmp_path / "llava-moved"
    shutil.move(back, moved)
    assert open_checkpoint(moved).config == dataclasses.replace(
        open_checkpoint(checkpoint).config, projector=open_checkpoint(checkpoint).config.projector
    )


@pytest.mark.slow
@pytest.mark.main
def test_v1_0_projector_is_exact_through_hf(tmp_path):
    """One linear layer, stored as itself and an identity, gives the same bits in transformers as alone."""
    for dtype in (torch.float32, torch.bfloat16):
        checkpoint = build_original(tmp_path / f"llava-{dtype}", LINEAR, tower_inside=True, dtype=dtype)
        hf = through_jax(checkpoint, tmp_path / f"hf-{dtype}", layout="llava-hf")
        model = transformers.LlavaForConditionalGeneration.from_pretrained(hf, dtype=dtype)
        linear = torch.load(checkpoint / "pytorch_model.bin", weights_only=True)
        x = torch.randn(7, LINEAR.vision_width).to(dtype)
        alone = x @ linear["model.mm_projector.weight"].T + linear["model.mm_projector.bias"]
        with torch.no_grad():
            through = model.model.multi_modal_projector(x)
        reference = torch.nn.functional.linear(
            x, linear["model.mm_projector.weight"], linear["model.mm_projector.bias"]
        )
        assert torch.equal(through, reference)
        torch.testing.assert_close(through, alone, rtol=2e-2, atol=2e-2)


def test_untrained_weights_are_copied_and_trained_ones_rounded(tmp_path):
    """A float16 base: what was not trained keeps its bits though the run computed in bfloat16."""
    source_dir = build_checkpoint(tmp_path / "source", TINY, dtype=torch.float16)
    checkpoint = open_checkpoint(source_dir)
    mesh = make_mesh(MeshConfig())
    model = load_model(checkpoint, mesh=mesh, dtype=jnp.bfloat16, master=lambda path: "norm" in path)
    all_params = {path: variable.get_value() for path, variable in param_paths(nnx.state(model)).items()}
    trained = {path: value + 0.25 for path, value in all_params.items() if "language_model" in path and "norm" in path}
    assert all(value.dtype == jnp.float32 for value in trained.values())
    assert all_params["language_model.lm_head"].dtype == jnp.bfloat16
    export_checkpoint(checkpoint, trained, tmp_path / "out")
    before, after = old_spelling(build_model(TINY).half()), weights(tmp_path / "out")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "language_model" in name and "norm" in name}
    for name in changed:
        assert torch.equal(after[name], (before[name].float() + 0.25).half())


def test_sharded_export_and_dtype(tmp_path):
    checkpoint = open_checkpoint(build_checkpoint(tmp_path / "source", TINY))
    export_checkpoint(checkpoint, {}, tmp_path / "out", dtype="bfloat16", shard_bytes=60_000)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    assert {value.dtype for value in weights(tmp_path / "out").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert np.abs(logits(tmp_path / "out", TINY) - logits(tmp_path / "source", TINY)).max() < 1.0


def test_tokenizer_files_are_copied_byte_for_byte(tmp_path):
    checkpoint = build_checkpoint(tmp_path / "source", TINY)
    (checkpoint / "chat_template.jinja").write_text("{{ messages }}")
    export_checkpoint(open_checkpoint(checkpoint), {}, tmp_path / "out")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (checkpoint / name).read_bytes()


def test_processor_of_the_export_gives_one_token_per_feature(tmp_path):
    import PIL.Image

    for tiny in (TINY, Tiny(full=True)):
        checkpoint = build_checkpoint(tmp_path / f"source{tiny.full}", tiny)
        export_checkpoint(open_checkpoint(checkpoint), {}, tmp_path / f"out{tiny.full}")
        processor = transformers.AutoProcessor.from_pretrained(tmp_path / f"out{tiny.full}")
        image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8))
        inputs = processor(images=image, text="USER: <image>\nWhat? ASSISTANT:", return_tensors="pt")
        model = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / f"out{tiny.full}")
        assert (inputs["input_ids"] == tiny.image_token_id).sum() == tiny.num_image_tokens
        assert model.generate(**inputs, max_new_tokens=3, do_sample=False).shape[1] == inputs["input_ids"].shape[1] + 3


def test_table_of_names_is_bijective():
    for tiny in (TINY, LINEAR):
        config = open_config(tiny)
        entries = names.entries(config)
        assert len({entry.name for entry in entries}) == len(entries)
        assert len({(entry.path, entry.layer) for entry in entries}) == len(entries)
        for entry in entries:
            assert names.canonical_hf(entry.name) == entry.name
            assert names.canonical_original(names.original_name(entry.name, config), config) == entry.name


def open_config(tiny: Tiny):
    from vigor_jax.hf.llava.config import from_hf

    return from_hf(build_model(tiny).config.to_dict(), Path("config.json"))


def rewrite(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def drop_tensor(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    tensors.pop(next(name for name in tensors if "layers.1.mlp.up_proj" in name))
    save_file(tensors, checkpoint / "model.safetensors")


def add_tensor(checkpoint: Path) -> None:
    save_file(
        load_file(checkpoint / "model.safetensors") | {"reward_head": torch.ones(2)}, checkpoint / "model.safetensors"
    )


def cut_rows(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    name = next(name for name in tensors if "embed_tokens" in name)
    save_file(tensors | {name: tensors[name][:-1].clone()}, checkpoint / "model.safetensors")


def cut_weights(checkpoint: Path) -> None:
    content = (checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "model.safetensors").write_bytes(content[:-9])


def other_size(checkpoint: Path) -> None:
    rewrite(checkpoint / "preprocessor_config.json", size={"shortest_edge": 99})


def set_config(**changes):
    return lambda checkpoint: rewrite(checkpoint / "config.json", **changes)


BAD = {
    "a tensor is missing": (drop_tensor, "1 missing: language_model.model.layers.1.mlp.up_proj.weight"),
    "a tensor too many": (add_tensor, "1 unexpected: reward_head"),
    "a wrong shape": (cut_rows, "expected [576, 64], got [575, 64]"),
    "no config": (lambda d: (d / "config.json").unlink(), "config.json is missing"),
    "config is no JSON": (lambda d: (d / "config.json").write_text("{"), "cannot be read as JSON"),
    "no tokenizer": (lambda d: (d / "tokenizer.json").unlink(), "no tokenizer.json"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "weights"),
    "no image processor": (lambda d: (d / "preprocessor_config.json").unlink(), "preprocessor_config.json is missing"),
    "cut weights": (cut_weights, "model.safetensors"),
    "another model": (set_config(model_type="llava_next"), "model_type 'llava_next' is not supported"),
    "image token elsewhere": (set_config(image_token_index=3), "the tokenizer's <image> is 509"),
    "a layer that is not": (set_config(vision_feature_layer=-9), "-9 is not among"),
    "not the identity": (set_config(projector_hidden_act="linear"), "must be the identity"),
    "another image size": (other_size, "must be the same size"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_checkpoints_are_refused_in_one_line(tmp_path, what):
    spoil, message = BAD[what]
    checkpoint = build_checkpoint(tmp_path / "source", TINY)
    spoil(checkpoint)
    with pytest.raises(InputError) as error:
        open_checkpoint(checkpoint)
    assert message in str(error.value)
    assert str(checkpoint) in str(error.value)
    assert "\n" not in str(error.value)


def test_rotary_scaling_is_refused(tmp_path):
    checkpoint = build_checkpoint(tmp_path / "source", TINY)
    config = json.loads((checkpoint / "config.json").read_text())
    config["text_config"]["rope_scaling"] = {"type": "linear", "factor": 4.0}
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="rotary scaling 'linear'"):
        open_checkpoint(checkpoint)


def test_original_without_its_tower_is_refused(tmp_path):
    checkpoint = build_original(tmp_path / "llava", TINY, tower_inside=False)
    rewrite(checkpoint / "config.json", mm_vision_tower="openai/clip-vit-large-patch14")
    with pytest.raises(InputError, match="give its directory as vision_tower"):
        open_checkpoint(checkpoint)
    assert open_checkpoint(checkpoint, vision_tower=checkpoint / "clip").layout == "llava"
    rewrite(checkpoint / "config.json", mm_use_im_start_end=True)
    with pytest.raises(InputError, match="mm_use_im_start_end"):
        open_checkpoint(checkpoint, vision_tower=checkpoint / "clip")


def test_a_tower_that_an_export_brings_comes_before_a_given_one(tmp_path):
    """Where it was trained; the given one is for the checkpoint that does not bring it, which a round began with."""
    begun = build_original(tmp_path / "llava", TINY, tower_inside=False)
    given = shutil.move(begun / "clip", tmp_path / "clip")
    checkpoint, params = open_checkpoint(begun, given), params_of(begun, given)
    name = next(path for path in params if path.startswith("vision_tower.") and "class_embedding" in path)
    trained = params[name] + 1
    out = tmp_path / "llava-export"
    export_checkpoint(checkpoint, {name: trained}, out)
    np.testing.assert_array_equal(params_of(out, given)[name], trained)
    np.testing.assert_array_equal(params_of(out)[name], trained)
    rewrite(out / "config.json", mm_vision_tower="openai/clip-vit-large-patch14")  # does not name what lies there
    np.testing.assert_array_equal(params_of(out, given)[name], params[name])


def test_export_refuses_a_directory_with_something_in_it(tmp_path):
    checkpoint = open_checkpoint(build_checkpoint(tmp_path / "source", TINY))
    (tmp_path / "out").mkdir()
    export_checkpoint(checkpoint, {}, tmp_path / "out")
    with pytest.raises(InputError, match="exists already"):
        export_checkpoint(checkpoint, {}, tmp_path / "out")
    assert not list(tmp_path.glob(".out*"))
