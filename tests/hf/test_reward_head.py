"""The file of a reward head: written here and read by torch, the other way, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vigor_jax.errors import InputError
from vigor_jax.hf.reward_head import RewardHead, digest, head_file, read_head, weights_folder, write_head

HEAD = RewardHead(np.random.default_rng(0).normal(size=8).astype(np.float32), 0.25)


def save(folder: Path, dtype: torch.dtype = torch.float32, width: int = 8) -> torch.nn.Linear:
    """As LLaVA-RLHF's trainer does."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(width, 1).to(dtype)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(layer.state_dict(), folder / "reward_head")
    return layer


def test_torch_reads_it(tmp_path):
    write_head(HEAD, tmp_path / "reward_head")
    state = torch.load(tmp_path / "reward_head", weights_only=True)
    assert {name: (list(each.shape), each.dtype) for name, each in state.items()} == {
        "weight": ([1, 8], torch.float32),
        "bias": ([1], torch.float32),
    }
    layer = torch.nn.Linear(8, 1)
    layer.load_state_dict(state)
    x = np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32)
    expected = x.astype(np.float64) @ HEAD.kernel.astype(np.float64) + HEAD.bias
    np.testing.assert_allclose(layer(torch.tensor(x)).detach().numpy()[:, 0], expected, atol=1e-6)
    found = read_head(tmp_path, 8)
    np.testing.assert_array_equal(found.kernel, HEAD.kernel)
    assert found.bias == HEAD.bias


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_reads_torch(tmp_path, dtype):
    layer = save(tmp_path, dtype)
    found = read_head(tmp_path, 8)
    np.testing.assert_array_equal(found.kernel, layer.weight.detach().float().numpy()[0])
    assert found.bias == layer.bias.detach().float().item()


@pytest.mark.parametrize("adapter", ["", "adapter_model", "adapter_model/lora_default"])
def test_where_it_is(tmp_path, adapter):
    """Next to the adapter, or above it as in a checkpoint of their trainer; found from either folder."""
    save(tmp_path)
    folder = tmp_path / adapter
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text("{}")
    assert weights_folder(tmp_path) == folder
    assert weights_folder(folder) == folder
    assert head_file(folder) == tmp_path / "reward_head"


def test_one_above_another_folder_is_another_ones(tmp_path):
    save(tmp_path)
    (tmp_path / "policy").mkdir()
    assert head_file(tmp_path / "policy") is None


def test_the_digest_is_of_its_numbers(tmp_path):
    write_head(HEAD, tmp_path / "reward_head")
    assert digest(read_head(tmp_path, 8)) == digest(HEAD)
    assert digest(HEAD._replace(bias=0.5)) != digest(HEAD)


def refused(folder: Path, message: str, width: int = 8) -> None:
    with pytest.raises(InputError, match=message) as error:
        read_head(folder, width)
    assert "\n" not in str(error.value)


def test_refused_in_one_line(tmp_path):
    refused(tmp_path, "has no file reward_head, so it is no reward model; give the folder that train_preference_reward")
    save(tmp_path, width=6)
    refused(
        tmp_path, r"expected weight \[1, 8\] and bias \[1\], for the model's states have 8 numbers, got weight \[1, 6"
    )
    torch.save({"kernel": torch.zeros(8)}, tmp_path / "reward_head")
    refused(tmp_path, "expected the tensors weight and bias, got 'kernel'")
    write_head(HEAD._replace(bias=float("nan")), tmp_path / "reward_head")
    refused(tmp_path, "its numbers are not finite")
    (tmp_path / "reward_head").write_bytes(b"hello")
    refused(tmp_path, "is no file of torch.save")
