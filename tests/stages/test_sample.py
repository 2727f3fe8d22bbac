"""The sampling stage: what its parts hold does not depend on which of them were there before."""

import itertools
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from tests.tiny_llava import Tiny, build_checkpoint
from vigor_jax.data.records.store import read_parts
from vigor_jax.hf.load import open_checkpoint
from vigor_jax.inference.sampling_config import SamplingConfig
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.parallel.sharding import make_mesh
from vigor_jax.records import Candidate
from vigor_jax.stages.sample import sample
from vigor_jax.stages.sample_config import SampleConfig

NUM_PARTS = 3
# Prompts of several lengths, and answers of several: requests take the rows of others that have ended.
PROMPTS = ("What is on the table?", "Describe the image in as much detail as you can, and say where each thing is.")
SAMPLING = SamplingConfig(batch_size=2, num_candidates=2, max_new_tokens=40, prompt_bucket=8, repetition_stop=1)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = tmp_path_factory.mktemp("sample")
    build_checkpoint(world / "model", Tiny())
    (world / "images").mkdir()
    rng = np.random.default_rng(0)
    for i in range(5 * NUM_PARTS):
        Image.fromarray(rng.integers(0, 256, (40, 30 + i, 3), np.uint8)).save(world / "images" / f"{i:02}.png")
    return world


def sample_missing(world: Path, records: Path) -> dict[str, bytes]:
    """Samples the parts that `records` lacks; all parts by name."""
    config = SampleConfig(images=str(world / "images"), prompts=PROMPTS, images_per_part=5, sampling=SAMPLING)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    sample(config, open_checkpoint(world / "model"), records, mesh, dtype="float32")
    return {path.name: path.read_bytes() for path in (records / "candidates").iterdir() if path.suffix == ".parquet"}


@pytest.fixture(scope="module")
def uninterrupted(world):
    return sample_missing(world, world / "uninterrupted")


@pytest.mark.slow
@pytest.mark.main
def test_answers_of_several_lengths_share_rows(world, uninterrupted):
    lengths = {len(candidate.token_ids) for candidate in read_parts(world / "uninterrupted" / "candidates", Candidate)}
    assert len(lengths) >= 3  # which ones depends on the processor's rounding


KEPT = [kept for size in range(NUM_PARTS) for kept in itertools.combinations(range(NUM_PARTS), size)]


def case_of(kept):
    marks = [pytest.mark.main] * (kept in ((0,), (0, 2))) + [pytest.mark.slow] * (kept not in ((), (0,)))
    return pytest.param(kept, marks=marks, id=str(kept))


@pytest.mark.parametrize("kept", map(case_of, KEPT))
def test_a_part_is_the_same_whatever_parts_were_there(world, uninterrupted, tmp_path, kept):
    """Log-probabilities to the last bit, whatever the parts that a kill left."""
    assert len(uninterrupted) == NUM_PARTS
    folder = tmp_path / "candidates"
    folder.mkdir()
    for name in (sorted(uninterrupted)[i] for i in kept):
        (folder / name).write_bytes(uninterrupted[name])
    assert sample_missing(world, tmp_path) == uninterrupted
