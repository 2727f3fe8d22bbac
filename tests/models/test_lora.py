"""LoRA on our layers against PEFT's own (where it is installed), and against the merged kernel."""

import copy
import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from jax.sharding import PartitionSpec as P

from tests.models.test_parity import TINY, assert_close, make_case, port
from tests.tiny_llava import build_model
from vigor_jax.data.text.conversation import IGNORE_INDEX
from vigor_jax.errors import InputError
from vigor_jax.models.int8 import quantize_decoder
from vigor_jax.models.layers import Linear
from vigor_jax.models.lora import add_lora, lora_modules, lora_paths
from vigor_jax.models.lora_config import LoraConfig
from vigor_jax.models.vlm import abstract_model, param_paths
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.parallel.sharding import make_mesh, param_shardings
from vigor_jax.training.config import TrainingConfig
from vigor_jax.training.losses import chunked_cross_entropy
from vigor_jax.training.train_step import partition_params, trained_in

SEVEN = {f"language_model.layers.{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}
# Ours, and the modules of transformers that are the same.
TARGETS = {
    "language model": (("language_model",), r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"),
    "two of its layers": (("language_model.layers.[qv]_proj",), r".*language_model.*\.(q|v)_proj"),
    "tower and projector": (
        ("language_model", "vision_tower", "multi_modal_projector"),
        r".*\.((q|k|v|o|gate|up|down|out)_proj|fc1|fc2|linear_1|linear_2)",
    ),
}
RSLORA, WHOLE = "two of its layers", "tower and projector"


def set_params(model, params) -> None:
    """Puts arrays in the place of a model's parameters."""
    for path, variable in param_paths(nnx.state(model)).items():
        if path in params:
            *modules, name = path.split(".")
            node = model
            for each in modules:
                node = node[int(each)] if each.isdecimal() else getattr(node, each)
            getattr(node, name).set_value(jnp.asarray(params[path], variable.get_value().dtype))


def random_adapter(model, seed: int = 0, size: float = 0.1) -> dict[str, np.ndarray]:
    """Values for the adapter's matrices, B not zero."""
    rng = np.random.default_rng(seed)
    state = param_paths(nnx.state(model))
    return {
        path: rng.normal(0, size, state[path].get_value().shape).astype(np.float32)
        for path in sorted(lora_paths(state.keys()))
    }


CASES = [
    # rslora changes one factor, so fast tests have it once; also the whole model, which takes longest to compile.
    pytest.param(
        target, scan, rslora,
        id=f"{'stacked' if scan else 'apart'}-{target}-{'rslora' if rslora else 'lora'}",
        marks=[pytest.mark.slow] if rslora and (scan or target != RSLORA)
        else [pytest.mark.slow, pytest.mark.main] if scan and target == WHOLE
        else [] if scan and target != RSLORA else [pytest.mark.main],
    )
    for target in TARGETS for scan in (True, False) for rslora in (False, True)
]  # fmt: skip


@pytest.mark.parametrize(("target", "scan", "rslora"), CASES)
def test_output_and_gradients_equal_pefts(target, scan, rslora):
    peft = pytest.importorskip("peft", reason="NOT TESTED: PEFT is not installed; pip install -e '.[test]'")
    ours_target, theirs_target = TARGETS[target]
    theirs = build_model(TINY)
    ours = port(theirs, TINY, scan=scan)
    add_lora(ours, LoraConfig(rank=3, alpha=7, target=ours_target, rslora=rslora))
    values = random_adapter(ours)
    set_params(ours, values)
    theirs = peft.get_peft_model(
        theirs, peft.LoraConfig(r=3, lora_alpha=7, target_modules=theirs_target, use_rslora=rslora)
    )
    names = {name: path_of(name, scan) for name, _ in theirs.named_parameters() if ".lora_" in name}
    assert {path for path, _ in names.values()} == values.keys()
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if name in names:
                path, layer = names[name]
                weight.copy_(torch.tensor((values[path] if layer is None else values[path][layer]).T.copy()))

    case = make_case(TINY, ours.config)
    theirs.double()  # so that the roundings are ours alone
    output = theirs(
        input_ids=torch.tensor(case.token_ids),
        pixel_values=case.pixel_values.double(),
        attention_mask=torch.tensor(case.mask),
        labels=torch.tensor(case.labels),
    )
    output.loss.backward()

    graphdef, params, frozen = partition_params(ours, values.keys())

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        model = merge_params_of(graphdef, params | frozen)
        hidden = model(case.token_ids, case.pixels)
        total, tokens = chunked_cross_entropy(hidden, model.language_model.head(), case.labels, chunk=16)
        return total / tokens

    value, grads = loss(params)
    assert (case.labels != IGNORE_INDEX).sum() > 10
    np.testing.assert_allclose(value, output.loss.item(), rtol=1e-5)
    largest = max(float(jnp.abs(grad).max()) for grad in grads.values())
    for name, weight in theirs.named_parameters():
        if name in names:
            path, layer = names[name]
            grad = grads[path] if layer is None else grads[path][layer]
            expected = np.zeros_like(grad.T) if weight.grad is None else weight.grad.numpy()
            assert np.abs(np.asarray(grad).T - expected).max() <= 1e-5 * max(largest, 1), name


def merge_params_of(graphdef, weights):
    """`merge_params` for layers that may be kept apart, whose paths have numbers."""
    pieces = ((tuple(int(each) if each.isdecimal() else each for each in path.split(".")), weight)
              for path, weight in weights.items())  # fmt: skip
    return nnx.merge(graphdef, nnx.from_flat_state(list(pieces)))


def path_of(name: str, scan: bool) -> tuple[str, int | None]:
    """A parameter of PEFT's model → ours, and the layer in the stack."""
    part = next(each for each in ("language_model", "vision_tower", "multi_modal_projector") if f".{each}." in name)
    matrix = "lora_a" if ".lora_A." in name else "lora_b"
    layer = re.search(r"\.layers\.(\d+)\.", name)
    module = name.split(".lora_")[0].rsplit(".", 1)[1]
    if layer is None:
        return f"{part}.{module}.{matrix}", None
    stem = f"{part}.layers" if scan else f"{part}.layers.{layer[1]}"
    return f"{stem}.{module}.{matrix}", int(layer[1]) if scan else None


def one_layer(dtype, *, bias: bool = False) -> Linear:
    return Linear((48, 32), ("embed", "heads"), bias=bias, dtype=dtype, rngs=nnx.Rngs(0))


def adapted(layer: Linear, rank: int = 4, size: float = 0.1) -> tuple[Linear, np.ndarray]:
    """A layer with an adapter, and what that adds to its kernel."""
    rng = np.random.default_rng(1)
    a, b = (rng.normal(0, size, shape).astype(np.float32) for shape in ((48, rank), (rank, 32)))
    layer.lora_a, layer.lora_b = (nnx.Param(jnp.asarray(each, layer.kernel.dtype)) for each in (a, b))
    if layer.kernel.dtype == jnp.int8:
        layer.lora_a, layer.lora_b = nnx.Param(jnp.asarray(a)), nnx.Param(jnp.asarray(b))
    layer.lora_scale = 2.0
    return layer, 2.0 * a @ b


@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_computes_with_the_sum_of_both(bias):
    x = np.random.default_rng(2).normal(size=(5, 48)).astype(np.float32)
    layer, update = adapted(one_layer(jnp.float32, bias=bias))
    whole = np.asarray(layer.kernel[...]) + update
    expected = x @ whole + (0 if layer.bias is None else np.asarray(layer.bias[...]))
    assert_close(layer(x), expected, 1e-5)


@pytest.mark.main
def test_a_layer_of_8_bits_computes_with_the_sum_of_both():
    model = port(build_model(TINY), TINY, scan=False)
    add_lora(model, LoraConfig(rank=4, alpha=8))
    set_params(model, random_adapter(model, size=0.3))
    quantize_decoder(model)
    layer = model.language_model.layers[0].down_proj
    x = np.random.default_rng(2).normal(size=(5, layer.kernel.shape[0])).astype(np.float32)
    base = np.asarray(layer.kernel[...], np.float32) * np.asarray(layer.scale[...])
    a, b = (jnp.asarray(each[...]) for each in (layer.lora_a, layer.lora_b))
    assert_close(layer(jnp.asarray(x)), x @ (base + 2.0 * np.asarray(a @ b)), 1e-5)

    def adapted_by(matrices):
        again = copy.deepcopy(layer)
        again.lora_a, again.lora_b = map(nnx.Param, matrices)
        return jnp.square(again(jnp.asarray(x))).sum()

    found = jax.grad(adapted_by)((a, b))
    expected = jax.grad(lambda pair: jnp.square(x @ (base + 2.0 * pair[0] @ pair[1])).sum())((a, b))
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, 1e-4)


def test_16_bits_do_not_swallow_a_small_update():
    """The update is far below the step between neighboring outputs: on the average it must arrive all the same."""
    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.normal(size=(4096, 48)), jnp.bfloat16)
    plain = one_layer(jnp.bfloat16)
    layer, update = adapted(copy.deepcopy(plain), size=0.001)
    change = np.asarray(layer(x), np.float64) - np.asarray(plain(x), np.float64)
    wanted = np.asarray(x, np.float64) @ update
    assert np.abs(wanted).mean() < 0.1 * np.abs(np.asarray(plain(x), np.float64)).mean() * 2**-8
    share = (change * wanted).sum() / np.square(wanted).sum()
    assert 0.8 < share < 1.2
    rounded_apart = (plain(x) + jnp.asarray(wanted, jnp.bfloat16)).astype(np.float64) - plain(x).astype(np.float64)
    assert (rounded_apart * wanted).sum() / np.square(wanted).sum() < 0.5  # what this is about


@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)])
def test_a_new_adapter_changes_nothing(dtype):
    model = port(build_model(TINY), TINY, scan=True)
    case = make_case(TINY, model.config)
    state = nnx.state(model)
    nnx.update(model, jax.tree.map(lambda w: w.astype(dtype), state))
    run = jax.jit(lambda model: model.language_model.logits(model(case.token_ids, case.pixels)))
    before = np.asarray(run(model))
    after = np.asarray(run(add_lora(model, LoraConfig(rank=4, alpha=8), dtype=dtype)))
    assert_close(after, before, 1e-6 if dtype == jnp.float32 else 2e-2)


@pytest.mark.main
@pytest.mark.parametrize("scan", [True, False], ids=["stacked", "apart"])
def test_it_begins_as_pefts_does(scan):
    model = add_lora(port(build_model(TINY), TINY, scan=scan), LoraConfig(rank=64), seed=5)
    again = add_lora(port(build_model(TINY), TINY, scan=scan), LoraConfig(rank=64), seed=5)
    other = add_lora(port(build_model(TINY), TINY, scan=scan), LoraConfig(rank=64), seed=6)
    weights, same, others = (
        {path: np.asarray(variable.get_value()) for path, variable in param_paths(nnx.state(each)).items()}
        for each in (model, again, other)
    )
    matrices = sorted(path for path in weights if path.endswith("lora_a"))
    assert len(matrices) == 7 * (1 if scan else TINY.text_layers)
    for path in matrices:
        a, bound = weights[path], weights[path].shape[-2] ** -0.5
        assert np.abs(a).max() <= bound
        np.testing.assert_allclose(a.std(), bound / math.sqrt(3), rtol=0.05)  # uniform in ±bound
        np.testing.assert_array_equal(a, same[path])
        assert not np.array_equal(a, others[path])
        assert not weights[path.replace("lora_a", "lora_b")].any()
    assert len({weights[path].tobytes() for path in matrices}) == len(matrices)


def test_targets():
    model = abstract_model(port(build_model(TINY), TINY, scan=True).config)
    assert lora_modules(model, ("language_model",)).keys() == SEVEN
    assert lora_modules(model, ("language_model.layers.(gate|up)_proj",)).keys() == {
        "language_model.layers.gate_proj",
        "language_model.layers.up_proj",
    }
    assert lora_modules(model, ("multi_modal_projector.linear_1", "language_model.layers.q_proj")).keys() == {
        "multi_modal_projector.linear_1",
        "language_model.layers.q_proj",
    }
    apart = abstract_model(model.config, scan=False)
    assert len(lora_modules(apart, ("language_model.layers.q_proj",))) == TINY.text_layers


def test_both_matrices_lie_as_the_kernel_does():
    mesh = jax.sharding.AbstractMesh((1, 2, 2), ("data", "fsdp", "tensor"))
    model = add_lora(abstract_model(port(build_model(TINY), TINY, scan=True).config), LoraConfig(rank=8))
    specs = {path: each.get_value().spec for path, each in param_paths(param_shardings(nnx.state(model), mesh)).items()}
    q, down = "language_model.layers.q_proj", "language_model.layers.down_proj"
    assert specs[f"{q}.lora_a"] == P(None, "fsdp", None)
    assert specs[f"{q}.lora_b"] == P(None, None, "tensor")
    assert specs[f"{down}.lora_a"] == P(None, "tensor", None)
    assert specs[f"{down}.lora_b"] == P(None, None, "fsdp")
    real = port(build_model(TINY), TINY, scan=True)
    one = make_mesh(MeshConfig(), jax.devices()[:1])
    nnx.update(real, jax.device_put(nnx.state(real), param_shardings(nnx.state(real), one)))
    add_lora(real, LoraConfig(rank=8))
    assert real.language_model.layers.q_proj.lora_a.get_value().sharding.mesh == one


CONFIG = TrainingConfig(lora=LoraConfig(rank=4))
REFUSED = {
    "rank": (lambda: LoraConfig(rank=0), "lora.rank: expected at least 1, got 0"),
    "alpha": (lambda: LoraConfig(alpha=0), "lora.alpha: expected more than 0, got 0"),
    "alpha that is no number": (lambda: LoraConfig(alpha=math.nan), "lora.alpha: expected more than 0, got nan"),
    "no target": (lambda: LoraConfig(target=()), "lora.target: expected at least one name"),
    "unknown target": (
        lambda: paths_of(LoraConfig(target=("language_model.layers.q_prj",))),
        "lora.target: 'language_model.layers.q_prj' matches no linear layer; the nearest name is "
        "'language_model.layers.q_proj'",
    ),
    "no pattern": (lambda: paths_of(LoraConfig(target=("(",))), "lora.target: '(' is no regular expression"),
    "a target that is no linear layer": (
        lambda: paths_of(LoraConfig(target=("language_model.embed_tokens",))),
        "matches no linear layer",
    ),
    "both": (
        lambda: trained(LoraConfig(target=("multi_modal_projector",), also=("multi_modal_projector",))),
        "lora.also: multi_modal_projector.linear_1.bias has an adapter; leave it out there or in lora.target",
    ),
    "frozen projector": (
        lambda: trained(LoraConfig(also=("multi_modal_projector",)), freeze=("multi_modal_projector",)),
        "freeze: 'multi_modal_projector' covers multi_modal_projector.linear_1.bias, which lora.also trains; change",
    ),
    "unknown part": (lambda: trained(LoraConfig(also=("projector",))), "lora.also: 'projector' matches no parameter"),
}


def paths_of(lora: LoraConfig) -> set[str]:
    config = port(build_model(TINY), TINY, scan=True).config
    return set(param_paths(nnx.state(add_lora(abstract_model(config), lora))))


def trained(lora: LoraConfig, **training) -> frozenset[str]:
    return trained_in(paths_of(lora), dataclasses.replace(CONFIG, lora=lora, **training))


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    make, message = REFUSED[case]
    with pytest.raises(InputError) as caught:
        make()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_trained_is_the_adapter_and_what_is_named_next_to_it():
    assert trained(LoraConfig()) == {f"{module}.lora_{x}" for module in SEVEN for x in "ab"}
    projector = {path for path in paths_of(LoraConfig()) if path.startswith("multi_modal_projector.")}
    assert trained(LoraConfig(also=("multi_modal_projector",))) == trained(LoraConfig()) | projector
    assert trained(LoraConfig(), freeze=("vision_tower", "language_model")) == trained(LoraConfig())
