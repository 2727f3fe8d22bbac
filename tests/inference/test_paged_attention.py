"""One step of attention over prompts and pages, against its formula in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vigor_jax.inference import paged_attention
from vigor_jax.inference.kv_cache import BLOCK, Latest, Pages, Prefix, Slots, block_counts, page_counts, write_pages


def test_page_counts():
    assert page_counts(512) == [4, 5, 6, 8, 10, 12, 16, 20, 24, 31]
    assert page_counts(198) == [4, 5, 6, 8, 10, 12]
    assert page_counts(33) == [1]
    assert page_counts(17) == page_counts(1) == []


def test_block_counts_hold_as_many_pages():
    assert block_counts(512, 60) == [30, 8, 7, 15, 15, 15, 30, 30, 30, 53]
    assert block_counts(198, 2) == [1, 1, 1]
    assert sum(block_counts(512, 7)) * BLOCK >= 31 * 7


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize(
    ("images", "candidates", "kv_heads", "groups", "head_dim", "prompt", "blocks"),
    [(3, 2, 2, 2, 8, 5, (1, 2)), (2, 1, 1, 1, 4, 1, ()), (2, 5, 2, 1, 32, 40, (3, 1, 2)), (4, 1, 1, 4, 16, 7, (2,))],
)
def test_a_query_sees_its_prompt_its_own_tokens_and_itself(
    dtype, images, candidates, kv_heads, groups, head_dim, prompt, blocks
):
    """Candidates in any slots, pages in any order; some slots and rows are empty, some pages nobody's."""
    rng, page, step = np.random.default_rng(0), 4, 2
    num_slots = (images - 1) * candidates

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    q = draw(num_slots, kv_heads * groups, head_dim)
    k, v = (draw(num_slots, kv_heads, head_dim) for _ in range(2))
    lengths = rng.integers(1, prompt + 1, images)
    keys, values = draw(images, kv_heads, head_dim, prompt), draw(images, kv_heads, prompt, head_dim)
    prefix = Prefix(keys, values, jnp.asarray(lengths), *[jnp.zeros((images, 2))] * 3)
    pages = [Pages(*(draw(count, kv_heads, BLOCK * page, head_dim) for _ in range(2))) for count in blocks]
    latest = Latest(*(draw(page, num_slots, kv_heads, head_dim) for _ in range(2)), *[jnp.zeros((num_slots, page))] * 2)
    places = rng.permutation([(row, index) for row in range(images) for index in range(candidates)])[:num_slots]
    of_rows = np.zeros((images, candidates), int)
    of_rows[tuple(places.T)] = np.arange(num_slots)
    owners = rng.integers(0, num_slots + 1, (sum(blocks), BLOCK))
    numbers = [jnp.asarray(x) for x in (*places.T, np.ones(num_slots, int), np.zeros(num_slots, bool), owners[:0])]
    slots = Slots(*numbers, jnp.asarray(of_rows), jnp.asarray(owners))
    visible = paged_attention.what_is_visible(prefix, latest, slots, step)
    found = jax.jit(paged_attention.paged_attention)(q, k, v, prefix, pages, latest, slots, visible)
    assert found.dtype == dtype

    def float64(x):
        return np.asarray(x, np.float64)

    def of_pages(parts, slot, head):
        """Tokens of all pages of a slot."""
        found = [float64(x)[:, head].reshape(-1, page, head_dim) for x in parts]
        return np.concatenate(
            [np.zeros((0, head_dim)), *np.concatenate(found)[owners.ravel() == slot]] if found else []
        )

    expected = np.zeros(q.shape)
    for slot, head in np.ndindex(q.shape[:2]):
        of, row = head // groups, places[slot][0]
        own = [(of_pages([getattr(x, name) for x in pages], slot, of) if blocks else np.zeros((0, head_dim)))
               for name in ("keys", "values")]  # fmt: skip
        seen = [float64(prefix.keys)[row, of, :, : lengths[row]].T, own[0], float64(latest.keys)[:step, slot, of]]
        told = [float64(prefix.values)[row, of, : lengths[row]], own[1], float64(latest.values)[:step, slot, of]]
        seen, told = (
            np.concatenate([*seen, float64(k)[slot, of][None]]),
            np.concatenate([*told, float64(v)[slot, of][None]]),
        )
        scores = np.exp(seen @ float64(q)[slot, head] / head_dim**0.5)
        expected[slot, head] = scores / scores.sum() @ told
    atol = {jnp.float32: 2e-6, jnp.bfloat16: 2e-2, jnp.float16: 3e-3}[dtype]
    np.testing.assert_allclose(float64(found), expected, atol=atol)


@pytest.mark.parametrize("layers", [(), (3,)])
def test_what_a_call_added_goes_to_the_page_of_each_slot(layers):
    rng, page, heads, width = np.random.default_rng(0), 4, 2, 3
    before = [rng.normal(size=(*layers, count, heads, BLOCK * page, width)) for count in (2, 1)]
    new = rng.normal(size=(*layers, page, 3, heads, width))
    pages = [Pages(jnp.asarray(x), jnp.asarray(-x)) for x in before]
    latest = Latest(jnp.asarray(new), jnp.asarray(-new), jnp.zeros((3, page)), jnp.zeros((3, page)))
    found = write_pages(pages, latest, jnp.array([17, np.iinfo(np.int32).max, 9]))
    expected = [x.copy() for x in before]
    for block, place, slot in ((expected[1][..., 0, :, :, :], 1, 0), (expected[0][..., 1, :, :, :], 1, 2)):
        block[..., place * page : (place + 1) * page, :] = np.moveaxis(new[..., slot, :, :], -3, -2)
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_array_equal(got.keys, np.float32(want))
        np.testing.assert_array_equal(got.values, np.float32(-want))
