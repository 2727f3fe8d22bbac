"""Attention over packed rows, by every implementation that runs here, against its formula in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vigor_jax.models import attention as module
from vigor_jax.models.attention import attention, masked_attention


def exact(q, k, v, segment_ids, d_out):
    """Output and gradients of q, k and v, one segment and one head at a time, in float64."""
    q, k, v, d_out = (np.asarray(x, np.float64) for x in (q, k, v, d_out))
    out, d_q, d_k, d_v = np.zeros_like(q), np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    groups, scale = q.shape[2] // k.shape[2], q.shape[-1] ** -0.5
    for row, ids in enumerate(np.asarray(segment_ids)):
        for segment in np.unique(ids):
            at = np.flatnonzero(ids == segment)
            for head in range(q.shape[2]):
                queries, keys = q[row, at, head], k[row, at, head // groups]
                values, d = v[row, at, head // groups], d_out[row, at, head]
                scores = np.where(np.tri(len(at), dtype=bool), queries @ keys.T * scale, -np.inf)
                p = np.exp(scores - scores.max(1, keepdims=True))
                p /= p.sum(1, keepdims=True)
                d_p = d @ values.T
                d_scores = p * (d_p - (p * d_p).sum(1, keepdims=True)) * scale
                out[row, at, head] = p @ values
                d_q[row, at, head] = d_scores @ keys
                d_k[row, at, head // groups] += d_scores.T @ queries
                d_v[row, at, head // groups] += p.T @ d
    return out, d_q, d_k, d_v


def inputs(length, heads, kv_heads, head_dim, segments):
    """Two rows: segments of the given lengths with padding behind them, and one segment alone."""
    rng = np.random.default_rng(length)
    shapes = [(2, length, heads, head_dim), *[(2, length, kv_heads, head_dim)] * 2, (2, length, heads, head_dim)]
    q, k, v, d_out = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    segment_ids = np.ones((2, length), np.int32)
    segment_ids[0] = 0
    segment_ids[0, : sum(segments)] = np.repeat(np.arange(len(segments)) + 1, segments)
    return q, k, v, d_out, jnp.asarray(segment_ids)


IMPLEMENTATIONS = {
    "auto": lambda *args: attention(*args[:3], causal=True, segment_ids=args[3]),
    "xla": lambda *args: attention(*args[:3], causal=True, segment_ids=args[3], implementation="xla"),
    "by_heads": lambda *args: attention(*args[:3], causal=True, segment_ids=args[3], implementation="by_heads"),
    "splash": lambda *args: module._splash(*args, interpret=True),
    "pallas": lambda *args: module._flash(*args, interpret=True),
}


@pytest.mark.parametrize(
    ("name", "length", "heads", "kv_heads", "head_dim", "segments"),
    [
        ("auto", 50, 4, 2, 16, (20, 1, 17)),
        # Three heads at a time, of four.
        pytest.param("by_heads", 600, 4, 1, 8, (100, 300, 150), marks=[pytest.mark.slow, pytest.mark.main]),
        ("xla", 256, 2, 2, 8, (255, 1)),
        ("xla", 600, 4, 1, 8, (100, 300, 150)),  # segments that cross the blocks of queries
        ("splash", 256, 2, 1, 128, (100, 60, 37)),
        ("pallas", 256, 2, 1, 64, (100, 60, 37)),
    ],
)
def test_packed_rows_equal_each_segment_alone(name, length, heads, kv_heads, head_dim, segments):
    q, k, v, d_out, segment_ids = inputs(length, heads, kv_heads, head_dim, segments)

    @jax.jit
    def run(q, k, v, d_out):
        out, pull = jax.vjp(lambda q, k, v: IMPLEMENTATIONS[name](q, k, v, segment_ids), q, k, v)
        return out, *pull(d_out)

    for got, expected in zip(run(q, k, v, d_out), exact(q, k, v, segment_ids, d_out), strict=True):
        np.testing.assert_allclose(got, expected, atol=5e-6, rtol=0)


def test_one_segment_is_causal_attention():
    q, k, v, _, _ = inputs(300, 4, 2, 16, (300,))
    packed = jax.jit(lambda q, k, v: attention(q, k, v, causal=True, segment_ids=jnp.ones((2, 300), int)))
    np.testing.assert_allclose(packed(q, k, v), attention(q, k, v, causal=True), atol=2e-6, rtol=0)


@pytest.mark.slow
@pytest.mark.main
@pytest.mark.parametrize("causal", [True, False])
def test_a_few_heads_at_a_time_are_the_plain_formula(causal):
    q, k, v, d_out, _ = inputs(300, 4, 2, 16, (300,))

    def run(implementation):
        def formula(q, k, v):
            return attention(q, k, v, causal=causal, implementation=implementation)

        out, pull = jax.vjp(formula, q, k, v)
        return out, *pull(d_out)

    for got, expected in zip(run("by_heads"), run("xla"), strict=True):
        np.testing.assert_allclose(got, expected, atol=5e-6, rtol=0)


def test_a_few_heads_at_a_time_lose_nothing_in_16_bits():
    *numbers, segment_ids = inputs(300, 2, 2, 16, (100, 150))
    q, k, v, d_out = (x.astype(jnp.bfloat16) for x in numbers)
    out, pull = jax.vjp(lambda q, k, v: IMPLEMENTATIONS["by_heads"](q, k, v, segment_ids), q, k, v)
    for got, expected in zip((out, *pull(d_out)), exact(q, k, v, segment_ids, d_out), strict=True):
        assert got.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(got, np.float64), expected, rtol=2**-8, atol=5e-6)  # one rounding


@pytest.mark.parametrize(
    ("backend", "dtype", "length", "head_dim", "expected"),
    [
        ("cpu", jnp.float32, 1024, 128, "by_heads"),
        ("tpu", jnp.bfloat16, 1024, 128, "splash"),
        ("tpu", jnp.bfloat16, 1000, 128, "xla"),
        ("tpu", jnp.bfloat16, 1024, 64, "xla"),
        ("gpu", jnp.bfloat16, 1024, 128, "pallas"),
        ("gpu", jnp.float32, 1024, 128, "xla"),
        ("gpu", jnp.bfloat16, 1000, 128, "xla"),
    ],
)
def test_which_kernel_packed_rows_take(monkeypatch, backend, dtype, length, head_dim, expected):
    monkeypatch.setattr(module.jax, "default_backend", lambda: backend)
    assert module._fastest_packed(jax.ShapeDtypeStruct((2, length, 4, head_dim), dtype)) == expected


@pytest.mark.parametrize(
    ("backend", "keys", "expected"),
    [("gpu", 32, "cudnn"), ("gpu", 257, "xla"), ("tpu", 257, "xla"), ("cpu", 257, "by_heads")],
)
def test_which_kernel_queries_of_another_sequence_take(monkeypatch, backend, keys, expected):
    """Such as the Q-Former's, of an image: cuDNN has no gradient for an odd number of keys."""
    monkeypatch.setattr(module.jax, "default_backend", lambda: backend)
    q, k = (jax.ShapeDtypeStruct((2, length, 12, 64), jnp.bfloat16) for length in (32, keys))
    assert module._fastest(q, k, False) == expected


@pytest.mark.parametrize("backend", ["cpu", "tpu"])
def test_masked_attention_is_float32_inside(monkeypatch, backend):
    monkeypatch.setattr(module.jax, "default_backend", lambda: backend)
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 5, heads, 8)) for heads in (4, 2, 2))
    mask = np.stack([np.tri(5, dtype=bool), np.ones((5, 5), bool)])
    found = masked_attention(*(jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)), jnp.asarray(mask))
    assert found.dtype == jnp.bfloat16
    q, k, v = (np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64) for x in (q, k, v))
    scores = np.einsum("btkgh,bskh->bkgts", q.reshape(2, 5, 2, 2, 8), k) / 8**0.5
    scores = np.exp(np.where(mask[:, None, None], scores, -np.inf))
    expected = np.einsum("bkgts,bskh->btkgh", scores / scores.sum(-1, keepdims=True), v).reshape(2, 5, 4, 8)
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, atol=0.02)


def test_a_mask_that_hides_what_is_behind_may_say_so():
    q, k, v, d_out, _ = inputs(300, 4, 2, 16, (300,))  # several blocks of queries
    random = np.random.default_rng(0).random((2, 300, 300)) < 0.7
    mask = jnp.asarray(np.tri(300, dtype=bool) & (random | np.eye(300, dtype=bool)))

    def run(causal):
        out, pull = jax.vjp(lambda q, k, v: masked_attention(q, k, v, mask, causal=causal), q, k, v)
        return out, *pull(d_out)

    for got, expected in zip(run(True), run(False), strict=True):
        np.testing.assert_allclose(got, expected, atol=5e-6, rtol=0)


def test_cudnn_takes_no_packed_rows():
    q, k, v, _, segment_ids = inputs(8, 2, 2, 8, (3, 2))
    with pytest.raises(AssertionError, match="cuDNN takes no segment ids"):
        attention(q, k, v, causal=True, segment_ids=segment_ids, implementation="cudnn")
