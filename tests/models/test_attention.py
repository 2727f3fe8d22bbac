"""Attention over packed rows and trees, by every implementation that runs here, against its formula in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vigor_jax.models import attention as module
from vigor_jax.models.attention import attention, masked_attention


def exact(q, k, v, sees, d_out):
    """Output and gradients of q, k and v under a mask [B T S], one head at a time, in float64."""
    q, k, v, d_out = (np.asarray(x, np.float64) for x in (q, k, v, d_out))
    out, d_q, d_k, d_v = np.zeros_like(q), np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    groups, scale = q.shape[2] // k.shape[2], q.shape[-1] ** -0.5
    for row, head in np.ndindex(len(q), q.shape[2]):
        queries, keys = q[row, :, head], k[row, :, head // groups]
        values, d = v[row, :, head // groups], d_out[row, :, head]
        scores = np.where(sees[row], queries @ keys.T * scale, -np.inf)
        p = np.exp(scores - scores.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        d_p = d @ values.T
        d_scores = p * (d_p - (p * d_p).sum(1, keepdims=True)) * scale
        out[row, :, head] = p @ values
        d_q[row, :, head] = d_scores @ keys
        d_k[row, :, head // groups] += d_scores.T @ queries
        d_v[row, :, head // groups] += p.T @ d
    return out, d_q, d_k, d_v


def in_segments(segment_ids):
    ids = np.asarray(segment_ids)
    return (ids[:, :, None] == ids[:, None]) & np.tri(ids.shape[1], dtype=bool)


def tree(length):
    """Of two rows, of each key the query behind the last one that sees it: paths of several lengths in the first, which
    padding follows, and one path alone in the second."""
    first, start, rest = np.arange(1, length + 1), length // 3, (length // 2) // 3
    first[:start] = 3 * rest + start
    for branch in range(start, start + 3 * rest, rest):
        first[branch : branch + rest] = branch + rest
        first[branch + 5 : branch + 9] = branch + 9  # a suffix inside
    return jnp.asarray(np.stack([first, np.full(length, length)]), jnp.int32)


def in_tree(visible_until):
    queries, until = np.arange(visible_until.shape[1])[:, None], np.asarray(visible_until)
    return (queries < until[:, None]) & (queries >= queries.T)


def inputs(length, heads, kv_heads, head_dim, segments):
    """Two rows: segments of the given lengths with padding behind them, and one segment alone."""
    rng = np.random.default_rng(length)
    shapes = [(2, length, heads, head_dim), *[(2, length, kv_heads, head_dim)] * 2, (2, length, heads, head_dim)]
    q, k, v, d_out = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    segment_ids = np.ones((2, length), np.int32)
    segment_ids[0] = 0
    segment_ids[0, : sum(segments)] = np.repeat(np.arange(len(segments)) + 1, segments)
    return q, k, v, d_out, jnp.asarray(segment_ids)


def attend(name, q, k, v, **numbers):
    """Causal attention over rows that are packed, or trees, as `numbers` say."""
    if name == "splash":
        return module._splash(q, k, v, **numbers, interpret=True)
    if name == "pallas":
        return module._flash(q, k, v, **numbers, interpret=True)
    return attention(q, k, v, causal=True, **numbers, implementation=name)


def check(name, q, k, v, d_out, sees, **numbers):
    @jax.jit
    def run(q, k, v, d_out):
        out, pull = jax.vjp(lambda q, k, v: attend(name, q, k, v, **numbers), q, k, v)
        return out, *pull(d_out)

    for got, expected in zip(run(q, k, v, d_out), exact(q, k, v, sees, d_out), strict=True):
        np.testing.assert_allclose(got, expected, atol=5e-6, rtol=0)


@pytest.mark.parametrize(
    ("name", "length", "heads", "kv_heads", "head_dim", "segments"),
    [
        ("auto", 50, 4, 2, 16, (20, 1, 17)),
        # Three heads at a time, of four.
        pytest.param("by_heads", 600, 4, 1, 8, (100, 300, 150), marks=[pytest.mark.slow, pytest.mark.main]),
        ("xla", 256, 2, 2, 8, (255, 1)),
        ("xla", 600, 4, 1, 8, (100, 300, 150)),  # segments that cross the blocks of queries
        ("splash", 256, 2, 1, 128, (100, 60, 37)),
        ("splash", 200, 2, 1, 128, (100, 60, 37)),  # padded
        ("pallas", 256, 2, 1, 64, (100, 60, 37)),
    ],
)
def test_packed_rows_equal_each_segment_alone(name, length, heads, kv_heads, head_dim, segments):
    q, k, v, d_out, segment_ids = inputs(length, heads, kv_heads, head_dim, segments)
    check(name, q, k, v, d_out, in_segments(segment_ids), segment_ids=segment_ids)


@pytest.mark.parametrize(
    ("name", "length", "heads", "kv_heads", "head_dim"),
    [
        ("auto", 50, 4, 2, 16),
        ("by_heads", 300, 4, 1, 8),
        ("xla", 600, 4, 1, 8),
        ("splash", 384, 2, 1, 128),
        ("splash", 320, 2, 2, 128),  # padded
        pytest.param("splash", 640, 2, 1, 128, marks=[pytest.mark.slow, pytest.mark.main]),  # with blocks left out
    ],
)
def test_trees_equal_the_formula_under_their_mask(name, length, heads, kv_heads, head_dim):
    q, k, v, d_out, _ = inputs(length, heads, kv_heads, head_dim, (length,))
    until = tree(length)
    check(name, q, k, v, d_out, in_tree(until), visible_until=until)


def test_causal_splash_takes_any_length():
    q, k, v, d_out, _ = inputs(200, 2, 1, 128, (200,))
    check("splash", q, k, v, d_out, np.repeat(np.tri(200, dtype=bool)[None], 2, 0))


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
    out, pull = jax.vjp(lambda q, k, v: attend("by_heads", q, k, v, segment_ids=segment_ids), q, k, v)
    for got, expected in zip((out, *pull(d_out)), exact(q, k, v, in_segments(segment_ids), d_out), strict=True):
        assert got.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(got, np.float64), expected, rtol=2**-8, atol=5e-6)  # one rounding


@pytest.mark.parametrize(
    ("backend", "dtype", "length", "head_dim", "expected"),
    [
        ("cpu", jnp.float32, 1024, 128, "by_heads"),
        ("tpu", jnp.bfloat16, 1024, 128, "splash"),
        ("tpu", jnp.bfloat16, 320, 128, "splash"),
        ("tpu", jnp.bfloat16, 100, 128, "xla"),
        ("tpu", jnp.bfloat16, 1024, 64, "xla"),
        ("gpu", jnp.bfloat16, 1024, 128, "pallas"),
        ("gpu", jnp.float32, 1024, 128, "xla"),
        ("gpu", jnp.bfloat16, 1000, 128, "xla"),
    ],
)
def test_which_kernel_packed_rows_take(monkeypatch, backend, dtype, length, head_dim, expected):
    monkeypatch.setattr(module.jax, "default_backend", lambda: backend)
    q = jax.ShapeDtypeStruct((2, length, 4, head_dim), dtype)
    assert module._fastest_packed(q) == expected
    if backend == "tpu":  # which packed rows, trees and prompts take alike
        assert module._fastest_tree(q) == module._fastest(q, q, True) == expected


@pytest.mark.parametrize(
    ("backend", "dtype", "length", "expected"),
    [
        ("cpu", jnp.float32, 2048, "by_heads"),
        ("gpu", jnp.bfloat16, 2048, "cudnn"),
        ("gpu", jnp.bfloat16, 2047, "xla"),
        ("gpu", jnp.float32, 2048, "xla"),
    ],
)
def test_which_kernel_trees_take(monkeypatch, backend, dtype, length, expected):
    monkeypatch.setattr(module.jax, "default_backend", lambda: backend)
    assert module._fastest_tree(jax.ShapeDtypeStruct((2, length, 4, 128), dtype)) == expected


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
