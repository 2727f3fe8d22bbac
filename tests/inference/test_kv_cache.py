"""One step of attention over the caches, against its formula in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vigor_jax.inference import kv_cache


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize(
    ("images", "candidates", "kv_heads", "groups", "head_dim", "prompt", "steps"),
    [(2, 3, 2, 2, 8, 5, 4), (1, 1, 1, 1, 4, 1, 1), (1, 5, 2, 1, 32, 40, 64), (3, 1, 1, 4, 16, 7, 9)],
)
def test_a_query_sees_its_prompt_its_own_tokens_and_itself(
    dtype, images, candidates, kv_heads, groups, head_dim, prompt, steps
):
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    q = draw(images, candidates, kv_heads * groups, head_dim)
    k, v = (draw(images, candidates, kv_heads, head_dim) for _ in range(2))
    shared_keys, shared_values = draw(images, kv_heads, head_dim, prompt), draw(images, kv_heads, prompt, head_dim)
    keys, values = (draw(images, kv_heads, candidates, steps, head_dim) for _ in range(2))
    lengths = rng.integers(1, prompt + 1, images)
    is_own = rng.random((images, steps)) < 0.5
    found = jax.jit(kv_cache._attention)(
        q, k, v, shared_keys, shared_values, jnp.asarray(lengths), keys, values, jnp.asarray(is_own)
    )
    assert found.dtype == dtype

    q, k, v, shared_keys, shared_values, keys, values = (
        np.asarray(x, np.float64) for x in (q, k, v, shared_keys, shared_values, keys, values)
    )
    expected = np.zeros_like(q)
    for image, candidate, head in np.ndindex(q.shape[:3]):
        of, own = head // groups, is_own[image]
        seen = np.concatenate(
            [
                shared_keys[image, of, :, : lengths[image]].T,
                keys[image, of, candidate, own],
                k[None, image, candidate, of],
            ]
        )
        told = np.concatenate(
            [
                shared_values[image, of, : lengths[image]],
                values[image, of, candidate, own],
                v[None, image, candidate, of],
            ]
        )
        scores = np.exp(seen @ q[image, candidate, head] / head_dim**0.5)
        expected[image, candidate, head] = scores / scores.sum() @ told
    atol = {jnp.float32: 2e-6, jnp.bfloat16: 2e-2, jnp.float16: 2e-3}[dtype]
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, atol=atol)
