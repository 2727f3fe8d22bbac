"""Chunked cross-entropy against float64 and torch; and that it never holds all the logits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.extend.core import ClosedJaxpr, Jaxpr

from vigor_jax.data.text.conversation import IGNORE_INDEX
from vigor_jax.training.losses import chunked_cross_entropy, supervised_first

ROOT = Path(__file__).resolve().parents[2]


def make_case(batch=3, length=37, width=16, vocab=50, seed=0):
    rng = np.random.default_rng(seed)
    hidden = rng.standard_normal((batch, length, width), np.float32)
    head = rng.standard_normal((width, vocab), np.float32)
    labels = rng.integers(0, vocab, (batch, length)).astype(np.int32)
    labels[rng.random((batch, length)) < 0.4] = IGNORE_INDEX
    return hidden, head, labels


def in_float64(hidden, head, labels):
    """Sum over t of log sum_v exp(z_tv) - z_t,label(t+1), written out."""
    total, count = 0.0, 0
    for row, row_labels in zip(hidden.astype(np.float64), labels, strict=True):
        for state, label in zip(row[:-1], row_labels[1:], strict=True):
            if label != IGNORE_INDEX:
                logits = state @ head.astype(np.float64)
                total += np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[label]
                count += 1
    return total, count


def naive(hidden, head, labels):
    logits = jax.nn.log_softmax(hidden[:, :-1] @ head)
    targets = labels[:, 1:]
    picked = jnp.take_along_axis(logits, jnp.maximum(targets, 0)[..., None], -1)[..., 0]
    return -jnp.sum(picked, where=targets != IGNORE_INDEX)


@pytest.mark.parametrize("chunk", [1, 5, 8, 36, 37, 1000])
def test_equals_float64(chunk):
    hidden, head, labels = make_case()
    expected, count = in_float64(hidden, head, labels)
    total, tokens = jax.jit(lambda *args: chunked_cross_entropy(*args, chunk=chunk))(hidden, head, labels)
    assert total.dtype == jnp.float32
    assert tokens.dtype == jnp.int32
    assert tokens == count
    assert abs(total - expected) <= 1e-6 * expected


@pytest.mark.parametrize("chunk", [5, 37])
@pytest.mark.parametrize(
    "share", [0.4, *(pytest.param(share, marks=[pytest.mark.slow, pytest.mark.main]) for share in (0.0, 1.0))]
)
def test_supervised_first_changes_the_order_only(chunk, share):
    hidden, head, labels = make_case()
    labels = np.where(np.random.default_rng(1).random(labels.shape) < share, np.maximum(labels, 0), IGNORE_INDEX)
    expected, count = in_float64(hidden, head, labels)

    def loss(hidden, head):
        hidden, first = supervised_first(hidden, jnp.asarray(labels))
        return chunked_cross_entropy(hidden, head, first, chunk=chunk)

    (total, tokens), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(hidden, head)
    assert tokens == count
    assert abs(total - expected) <= 1e-6 * expected
    slow = jax.grad(lambda hidden, head: naive(hidden, head, labels), argnums=(0, 1))(hidden, head)
    for got, wanted in zip(grads, slow, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max(), rtol=0)
    is_supervised = np.asarray(supervised_first(hidden, jnp.asarray(labels))[1][:, 1:]) != IGNORE_INDEX
    assert (is_supervised[:, :-1] >= is_supervised[:, 1:]).all()  # what is not comes last


@pytest.mark.parametrize("chunk", [7, 16, 64])
def test_value_and_gradients_equal_torch(chunk):
    hidden, head, labels = make_case()
    ours, grads = jax.value_and_grad(lambda h, w: chunked_cross_entropy(h, w, labels, chunk=chunk)[0], (0, 1))(
        hidden, head
    )
    leaves = [torch.tensor(x, requires_grad=True) for x in (hidden, head)]
    theirs = torch.nn.functional.cross_entropy(
        (leaves[0] @ leaves[1])[:, :-1].reshape(-1, head.shape[1]),
        torch.tensor(labels[:, 1:].reshape(-1)).long(),
        ignore_index=IGNORE_INDEX,
        reduction="sum",
    )
    theirs.backward()
    np.testing.assert_allclose(ours, theirs.item(), rtol=1e-6)
    for got, leaf in zip(grads, leaves, strict=True):
        np.testing.assert_allclose(got, leaf.grad.numpy(), atol=1e-5 * np.abs(leaf.grad.numpy()).max())


def test_softmax_is_float32_for_bfloat16_states():
    """Against float64 on the very numbers that bfloat16 holds, the error is float32's, not bfloat16's."""
    hidden, head, labels = make_case(vocab=500)
    hidden, head = jnp.asarray(hidden, jnp.bfloat16), jnp.asarray(head, jnp.bfloat16)
    expected, _ = in_float64(np.asarray(hidden, np.float32), np.asarray(head, np.float32), labels)
    total, _ = chunked_cross_entropy(hidden, head, labels, chunk=8)
    assert total.dtype == jnp.float32
    assert abs(total - expected) <= 1e-5 * expected


def test_nothing_supervised():
    hidden, head, labels = make_case()
    total, tokens = chunked_cross_entropy(hidden, head, np.full_like(labels, IGNORE_INDEX), chunk=8)
    assert (total, tokens) == (0, 0)


def largest_float32(jaxpr) -> int:
    """Elements of the largest float32 value that a jaxpr or one inside it makes."""
    largest = 0
    for eqn in jaxpr.eqns:
        shapes = [var.aval for var in eqn.outvars]
        largest = max([largest, *(int(np.prod(x.shape)) for x in shapes if x.dtype == jnp.float32)])
        for param in eqn.params.values():
            for inner in param if isinstance(param, tuple | list) else (param,):
                if isinstance(inner, ClosedJaxpr | Jaxpr):
                    largest = max(largest, largest_float32(getattr(inner, "jaxpr", inner)))
    return largest


def test_the_logits_never_exist_at_once():
    batch, length, width, vocab, chunk = 2, 256, 32, 4000, 32
    args = make_case(batch, length, width, vocab)

    def chunked(hidden, head, labels):
        return chunked_cross_entropy(hidden, head, labels, chunk=chunk)[0]

    def measure(loss):
        run = jax.value_and_grad(loss, (0, 1))
        temporary = jax.jit(run).lower(*args).compile().memory_analysis().temp_size_in_bytes
        return largest_float32(jax.make_jaxpr(run)(*args).jaxpr), temporary

    full = batch * length * vocab
    assert measure(naive)[0] >= batch * (length - 1) * vocab  # the measure sees what is there
    largest, temporary = measure(chunked)
    assert largest == batch * chunk * vocab
    # One chunk's logits, their gradient and a copy: far from 8 chunks' of either.
    assert temporary < 4 * 4 * full // 8
    assert temporary < measure(naive)[1] / 3


SHARDED = """
import json, math, re, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from vigor_jax.training.losses import chunked_cross_entropy
from vigor_jax.parallel.sharding import BATCH, make_mesh, to_global
from vigor_jax.parallel.config import MeshConfig

hidden, head, labels = (np.load(f"{sys.argv[1]}/{name}.npy") for name in ("hidden", "head", "labels"))
def loss(hidden, head):
    return chunked_cross_entropy(hidden, head, labels, chunk=8)[0]
results = []
for sizes in ((8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4)):
    mesh = make_mesh(MeshConfig(*sizes))
    where = NamedSharding(mesh, BATCH), NamedSharding(mesh, P("fsdp", "tensor"))
    with jax.set_mesh(mesh):
        run = jax.jit(jax.value_and_grad(loss, (0, 1)), in_shardings=where, out_shardings=(None, where))
        text = run.lower(hidden, head).compile().as_text()
        value, grads = run(hidden, head)
    largest = max(math.prod(map(int, shape.split(","))) for shape in re.findall(r"f32\\[([0-9,]+)\\]", text))
    results.append([float(value), *(np.asarray(g).tolist() for g in grads), largest])
print(json.dumps(results))
"""


@pytest.mark.slow
@pytest.mark.main
def test_sharded_equals_one_device(tmp_path):
    hidden, head, labels = make_case(batch=8, length=40, width=16, vocab=128)
    for name, value in (("hidden", hidden), ("head", head), ("labels", labels)):
        np.save(tmp_path / f"{name}.npy", value)
    ran = subprocess.run(
        [sys.executable, "-c", SHARDED, str(tmp_path)],
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    expected, grads = jax.value_and_grad(lambda h, w: naive(h, w, labels), (0, 1))(hidden, head)
    for value, got_hidden, got_head, largest in json.loads(ran.stdout.splitlines()[-1]):
        assert abs(value - expected) <= 1e-6 * expected
        for got, reference in ((got_hidden, grads[0]), (got_head, grads[1])):
            np.testing.assert_allclose(got, reference, atol=1e-5 * float(jnp.abs(reference).max()))
        # No device ever holds its eighth of all the logits, let alone another's.
        assert largest < 8 * 40 * 128 // 8
