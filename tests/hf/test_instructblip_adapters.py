"""LoRA adapters on InstructBLIP: ours in PEFT and PEFT's in ours, with equal logits."""

import importlib.util

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from tests.hf.test_peft import close, trained
from tests.tiny_instructblip import IMAGE_TOKEN_ID, TinyBlip, build_checkpoint
from vigor_jax.errors import InputError
from vigor_jax.hf.export import export_checkpoint, find_layout
from vigor_jax.hf.load import load_model, open_checkpoint
from vigor_jax.models.clip import normalize
from vigor_jax.models.lora_config import LoraConfig
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.parallel.sharding import make_mesh

needs_peft = pytest.mark.skipif(
    importlib.util.find_spec("peft") is None, reason="NOT TESTED: PEFT is not installed; pip install -e '.[test]'"
)
LORAS = {
    "language model": LoraConfig(rank=4, alpha=6),
    "all parts": LoraConfig(rank=2, alpha=4, target=("language_model", "vision_tower", "multi_modal_projector")),
    "projection in full": LoraConfig(rank=4, alpha=8, also=("multi_modal_projector.language_projection",)),
}
IDS = [[*[IMAGE_TOKEN_ID] * 4, 2, *range(10, 30)]]
WORDS = [[2, 30, 41, 7, 3]]
PIXELS = np.random.default_rng(0).integers(0, 256, (1, 28, 28, 3), np.uint8)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return build_checkpoint(tmp_path_factory.mktemp("peft") / "base", TinyBlip())


def their_logits(model, config) -> np.ndarray:
    values = np.asarray(normalize(jnp.asarray(PIXELS), config.vision)).transpose(0, 3, 1, 2)
    with torch.no_grad():
        return (
            model.eval()(
                input_ids=torch.tensor(IDS),
                pixel_values=torch.tensor(values),
                qformer_input_ids=torch.tensor(WORDS),
            )
            .logits[0]
            .numpy()
        )


def our_logits(base, adapter=None) -> np.ndarray:
    model = load_model(open_checkpoint(base, adapter=adapter), mesh=make_mesh(MeshConfig()), dtype=jnp.float32)
    hidden = model(jnp.asarray(IDS), jnp.asarray(PIXELS[None]), instructions=jnp.asarray([WORDS], jnp.int32))
    return np.asarray(model.language_model.logits(hidden))[0]


@needs_peft
@pytest.mark.parametrize(
    "kind", [*list(LORAS)[:1], *(pytest.param(k, marks=pytest.mark.slow) for k in list(LORAS)[1:])]
)
def test_peft_loads_ours_with_equal_logits_and_misses_nothing(base, tmp_path, kind, recwarn):
    import peft

    checkpoint, out = open_checkpoint(base), tmp_path / "adapter"
    export_checkpoint(checkpoint, trained(base, LORAS[kind]), out, lora=LORAS[kind])
    model = transformers.InstructBlipForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(model, out)
    words = ("missing", "unexpected", "ignored", "not found")
    assert not [w for w in recwarn if any(word in str(w.message).lower() for word in words)]
    theirs = their_logits(model, checkpoint.config)
    assert close(our_logits(base, out), theirs, 2e-5)
    assert not close(our_logits(base), theirs, 0.05)  # the adapter does something


@needs_peft
@pytest.mark.slow
@pytest.mark.main
def test_what_peft_saves_is_read(base, tmp_path):
    import peft

    torch.manual_seed(0)
    model = transformers.InstructBlipForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    names = ["q_proj", "down_proj", "qkv", "query", "dense", "language_projection"]
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=names, init_lora_weights=False, task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, config)
    model.save_pretrained(tmp_path / "adapter")
    checkpoint = open_checkpoint(base, adapter=tmp_path / "adapter")
    assert {path.split(".")[0] for path in checkpoint.adapter.lora.target} == {
        "vision_tower", "multi_modal_projector", "language_model",
    }  # fmt: skip
    assert close(our_logits(base, tmp_path / "adapter"), their_logits(model, checkpoint.config), 2e-5)


def test_an_adapter_cannot_bring_the_queries(base):
    checkpoint = open_checkpoint(base)
    lora = LoraConfig(rank=2, also=("multi_modal_projector",))
    with pytest.raises(InputError, match="layout: peft holds modules, and the Q-Former's query_tokens"):
        find_layout(None, checkpoint, lora)
    assert find_layout("instructblip", checkpoint, lora) == "instructblip"
