"""Checkpoints with tied embeddings: what is stored, and what transformers makes of it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file, save_model

from tests.hf.test_round_trip import assert_same, build_original, logits, params_of, through_jax, weights
from tests.tiny_llava import Tiny, build_checkpoint, build_model
from vigor_jax.errors import InputError
from vigor_jax.hf.load import open_checkpoint
from vigor_jax.hf.weights import tensor_checks

TIED = Tiny(tied=True)
EMBEDDINGS, HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("tied") / "model", TIED)


@pytest.fixture
def copied(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copied"))


def assert_reads_like(directory: Path, checkpoint: Path) -> None:
    expected = params_of(checkpoint)
    assert "language_model.lm_head" not in expected
    found = params_of(directory)
    assert found.keys() == expected.keys()
    for path in expected:
        np.testing.assert_array_equal(found[path], expected[path])
    assert open_checkpoint(directory).digest() == open_checkpoint(checkpoint).digest()


def test_a_bin_file_as_torch_saves_a_tied_model(copied: Path, checkpoint: Path) -> None:
    """Two names for one storage, in transformers' spelling in memory."""
    state = build_model(TIED).state_dict()
    assert state["lm_head.weight"].data_ptr() == state["model.language_model.embed_tokens.weight"].data_ptr()
    (copied / "model.safetensors").unlink()
    torch.save(state, copied / "pytorch_model.bin")
    assert_reads_like(copied, checkpoint)
    np.testing.assert_array_equal(logits(copied, TIED), logits(checkpoint, TIED))


def test_shards_of_bin_files(copied: Path, checkpoint: Path) -> None:
    """Each shard has its own copy."""
    state = build_model(TIED).state_dict()
    (copied / "model.safetensors").unlink()
    torch.save({name: value for name, value in state.items() if "lm_head" not in name}, copied / "a.bin")
    torch.save({"lm_head.weight": state["lm_head.weight"]}, copied / "b.bin")
    index = {"weight_map": {name: "b.bin" if "lm_head" in name else "a.bin" for name in state}}
    (copied / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert_reads_like(copied, checkpoint)


@pytest.mark.parametrize("rows", [1, 7, 576, 4096])
@pytest.mark.parametrize("head", [HEAD, "lm_head.weight"])
def test_equal_copies(copied: Path, checkpoint: Path, head: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_checks, "_ROWS", rows)
    tensors = load_file(copied / "model.safetensors")
    save_file(tensors | {head: tensors[EMBEDDINGS].clone()}, copied / "model.safetensors", {"format": "pt"})
    assert_reads_like(copied, checkpoint)
    out = through_jax(copied, copied.parent / "out")
    assert_same(weights(out), weights(through_jax(checkpoint, copied.parent / "expected")))
    np.testing.assert_array_equal(logits(out, TIED), logits(copied, TIED))


def test_equal_in_another_type(copied: Path, checkpoint: Path) -> None:
    tensors = {name: value.bfloat16() for name, value in load_file(copied / "model.safetensors").items()}
    save_file(tensors | {HEAD: tensors[EMBEDDINGS].float()}, copied / "model.safetensors")
    assert open_checkpoint(copied).dtype.name == "bfloat16"


def test_the_output_layer_alone(copied: Path, checkpoint: Path) -> None:
    """What `safetensors.torch.save_model` leaves of two names: the first in the alphabet."""
    save_model(build_model(TIED), str(copied / "model.safetensors"))
    stored = load_file(copied / "model.safetensors")
    assert "lm_head.weight" in stored
    assert not any("embed_tokens" in name for name in stored)
    assert_reads_like(copied, checkpoint)


@pytest.mark.parametrize("rows", [100, 4096])
@pytest.mark.parametrize("row", [0, 99, 100, 575])
def test_different_copies_are_refused(copied: Path, row: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_checks, "_ROWS", rows)
    tensors = load_file(copied / "model.safetensors")
    head = tensors[EMBEDDINGS].clone()
    head[row, 3] += 1
    save_file(tensors | {HEAD: head}, copied / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"ties the output layer .* set tie_word_embeddings to false") as caught:
        open_checkpoint(copied)
    assert "\n" not in str(caught.value)
    # What the line says transformers does, and that its advice does the same here.
    theirs = transformers.LlavaForConditionalGeneration.from_pretrained(copied)
    assert torch.equal(theirs.lm_head.weight, head)
    assert torch.equal(theirs.get_input_embeddings().weight, tensors[EMBEDDINGS])
    config = json.loads((copied / "config.json").read_text()) | {"tie_word_embeddings": False}
    config["text_config"]["tie_word_embeddings"] = False
    (copied / "config.json").write_text(json.dumps(config))
    np.testing.assert_array_equal(params_of(copied)["language_model.lm_head"], head.numpy().T)


@pytest.mark.parametrize("shape", [(575, 64), (576, 63), (64,), ()])
def test_copies_of_another_shape_are_refused(copied: Path, shape: tuple[int, ...]) -> None:
    tensors = load_file(copied / "model.safetensors")
    save_file(tensors | {HEAD: torch.zeros(shape)}, copied / "model.safetensors")
    with pytest.raises(InputError, match="ties the output layer") as caught:
        open_checkpoint(copied)
    assert "\n" not in str(caught.value)


def test_the_original_layout(tmp_path: Path) -> None:
    source = build_original(tmp_path / "llava", TIED, tower_inside=True)
    config = json.loads((source / "config.json").read_text()) | {"tie_word_embeddings": True}
    (source / "config.json").write_text(json.dumps(config))
    assert "lm_head.weight" in torch.load(source / "pytorch_model.bin", weights_only=True)
    assert HEAD not in open_checkpoint(source).tensors
    assert EMBEDDINGS in open_checkpoint(source).tensors
