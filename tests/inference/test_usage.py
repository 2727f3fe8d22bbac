"""What decoding reads and computes in vain, as the sampler counts it, at the lengths of real captions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.sft import CAPTION_LENGTHS
from tests.inference.run_sampling import CONFIG, make_requests
from tests.inference.test_sampler import Words
from tests.tiny_llava import Tiny, build_checkpoint
from vigor_jax.hf.load import load_model, open_checkpoint
from vigor_jax.inference.kv_cache import BLOCK
from vigor_jax.inference.sampler import Ending, Sampler
from vigor_jax.inference.schedule import Part
from vigor_jax.parallel.sharding import MeshConfig, make_mesh


class Given(Sampler):
    """Candidates end at given lengths."""

    def _ending(self, candidate):
        end = int(self.lengths[candidate.group.number, candidate.index])
        return Ending(end, "length") if len(candidate.token_ids) >= end else None


def caption_lengths(images, runaway=0.0):
    rng = np.random.default_rng(0)
    lengths = rng.choice(CAPTION_LENGTHS, (images, 5))
    return np.where(rng.random(lengths.shape) < runaway, 400, lengths)


@pytest.fixture(scope="module")
def sampler(tmp_path_factory):
    checkpoint = open_checkpoint(build_checkpoint(tmp_path_factory.mktemp("usage") / "model", Tiny()))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    model = load_model(checkpoint, mesh=mesh, dtype=jnp.float32, scan=False)
    config = dataclasses.replace(CONFIG, num_candidates=5, batch_size=4, max_new_tokens=400)
    own = Given(model, Words(), config, mesh)
    own.request = make_requests(checkpoint, 1)[0]
    return own


@pytest.mark.main
def test_captions(sampler):
    """Nine tenths of the steps are useful and six tenths of what is read is live, the end of the run included, and
    with one response in a hundred that does not end, too."""
    for runaway, useful in (0.0, 0.9), (0.01, 0.85):
        images = 100
        sampler.lengths = caption_lengths(images, runaway)
        sampler.usage = type(sampler.usage)()
        requests = [dataclasses.replace(sampler.request, image_id=str(i)) for i in range(images)]
        found = list(sampler.generate(requests))
        assert [[len(c.token_ids) for c in group] for group in found] == sampler.lengths.tolist()
        usage = sampler.usage
        assert usage.useful_steps == (sampler.lengths - 1).sum()
        assert usage.live_tokens_read == sum(n * (n - 1) // 2 for n in sampler.lengths.ravel().tolist())
        assert usage.useful_prompts == images
        assert usage.useful >= useful
        assert usage.live >= 0.6
        assert usage.prefill >= 0.95
    before = sampler.compilations.copy()
    list(sampler.generate(requests))
    assert sampler.compilations == before


def test_slots_and_pages_are_nobodys_twice():
    """Random endings: each candidate has its pages alone, in the order of its text, and all ends where it began."""
    rng, part = np.random.default_rng(0), Part(num_rows=6, num_slots=8, num_candidates=2, num_pages=8 * 12)
    left = {}
    for image in range(200):
        while not part.free_rows:
            pages = part.place(16 if left else 0)
            tables = part.tables(pages, 12)
            taken = [page for c in part.slots if c for page in c.pages]
            assert len(taken) == len(set(taken))
            assert part.pages_reach == max(taken, default=-1) + 1
            for slot, candidate in enumerate(part.slots):
                assert tables.done[slot] == (candidate is None)
                owned = np.flatnonzero(tables.owners.ravel() == slot)
                assert sorted(candidate.pages if candidate else []) == owned.tolist()
                if candidate:
                    assert tables.of_rows[candidate.row, candidate.index] == slot
                    assert pages[slot] == (candidate.pages[-1] if candidate.pages else np.iinfo(np.int32).max)
                    left.setdefault(candidate, rng.integers(1, 13))
                    left[candidate] -= 1
                    candidate.has_ended = not left[candidate]
            part.release()
        part.add(image)
    assert len(left) > 300
    assert tables.owners.size == 12 * BLOCK
