"""What is done otherwise on CPUs: right on a CPU, and the plain operation elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vigor_jax.models import cpu
from vigor_jax.models.layers import Linear


def numbers(*shapes, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def jaxpr(function, *arguments):
    """Of the value and all gradients."""

    def both(*arguments):
        value, pull = jax.vjp(function, *arguments)
        return value, pull(jnp.ones_like(value))

    return str(jax.make_jaxpr(both)(*arguments))


@pytest.mark.parametrize("rows", [(3,), (2, 5), (2, 1, 4)])
@pytest.mark.parametrize(("width", "columns"), [(4, 9), (9, 4), (6, 6), (1, 3)])
@pytest.mark.parametrize(("dtype", "rounding"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2**-7)])
def test_matmul_and_its_gradient(rows, width, columns, dtype, rounding):
    x, kernel, d_y = numbers((*rows, width), (width, columns), (*rows, columns), dtype=dtype)
    y, pull = jax.vjp(cpu.matmul, x, kernel)
    plain = x @ kernel
    assert jnp.array_equal(y, plain)
    exact = [np.asarray(each, np.float64) for each in (x, kernel, d_y)]
    d_x = exact[2] @ exact[1].T
    d_kernel = exact[0].reshape(-1, width).T @ exact[2].reshape(-1, columns)
    for found, expected, like in zip(pull(d_y), (d_x, d_kernel), (x, kernel), strict=True):
        assert found.dtype == like.dtype
        assert found.shape == like.shape
        np.testing.assert_allclose(np.asarray(found, np.float64), expected, atol=rounding * 10)


@pytest.mark.parametrize("backend", ["tpu", "gpu", "cuda"])
def test_elsewhere_they_are_the_plain_operations(monkeypatch, backend):
    x, kernel = numbers((2, 5, 8), (8, 3))
    q, k, v = numbers((2, 300, 4, 8), (2, 300, 2, 8), (2, 300, 2, 8))
    mask = jnp.tri(300, dtype=bool)[None].repeat(2, 0)

    def plain_attention(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None], implementation="xla")

    def attention(q, k, v):
        return cpu.dot_product_attention(q, k, v, mask)

    def plain_sum(x, kernel):
        return jnp.einsum("ija,ab->ijb", x, kernel, preferred_element_type=jnp.float32)

    def sum_float32(x, kernel):
        return cpu.einsum_float32("ija,ab->ijb", x, kernel)

    halves = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    sums = jaxpr(plain_sum, *halves)
    products = jaxpr(jnp.matmul, x, kernel)
    attentions = jaxpr(plain_attention, q, k, v)
    linear = Linear((8, 3), (None, None), bias=False, dtype=jnp.float32, rngs=nnx.Rngs(0))
    graphdef, weights = nnx.split(linear)
    layer = str(jax.make_jaxpr(lambda weights, x: nnx.merge(graphdef, weights)(x))(weights, x))
    assert "custom_vjp" in layer  # here, on a CPU
    assert jaxpr(cpu.matmul, x, kernel) != products
    assert jaxpr(attention, q, k, v) != attentions
    assert jaxpr(sum_float32, *halves) != sums
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert jaxpr(cpu.matmul, x, kernel) == products
    assert jaxpr(attention, q, k, v) == attentions
    assert jaxpr(sum_float32, *halves) == sums
    layer = str(jax.make_jaxpr(lambda weights, x: nnx.merge(graphdef, weights)(x))(weights, x))
    assert "custom_vjp" not in layer
    assert "dot_general" in layer


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 1), (4, 5, 300)])
@pytest.mark.parametrize("backend", ["cpu", "gpu", "tpu"])
def test_argmax_is_the_first_index_of_the_maximum(monkeypatch, shape, backend):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    scores = np.random.default_rng(1).integers(0, 4, shape).astype(np.float32)  # with many ties
    scores[scores == 0] = -np.inf
    found = jax.jit(cpu.argmax)(scores)
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, np.argmax(scores, -1))


def test_argmax_where_nothing_may_be_chosen():
    assert cpu.argmax(jnp.full(5, -jnp.inf)) == 0
