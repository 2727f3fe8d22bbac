"""What weights in 8 bits do to captions: the demo's policy sampled with and without `sample.int8`, the truth known.

    python -m benchmarks.int8 [--images 400] [--repeats 3]

Random choices are the same on both sides of a repeat, and others in the next one. Printed are the share of captions
that are the same word by word, and of both sides' sentences those that name what is not there, that are wrong in
color, count or place, or wrong at all; medians over the repeats, with their range.
"""

import argparse
import dataclasses
import statistics
import tempfile
from pathlib import Path

from tqdm import tqdm

from benchmarks.common import describe_machine
from vigor_jax.data.records.store import read_parts
from vigor_jax.demo.config import demo_config
from vigor_jax.demo.dataset import DemoDataConfig, prepare, read_scenes
from vigor_jax.demo.metrics import compute_metrics
from vigor_jax.demo.scenes import Scene
from vigor_jax.hf.load import open_checkpoint
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.parallel.sharding import make_mesh
from vigor_jax.records import Candidate
from vigor_jax.stages.sample import sample
from vigor_jax.stages.sample_config import SampleConfig


def captions(config: SampleConfig, policy: Path, records: Path, dtype: str) -> list[Candidate]:
    """Five an image."""
    sample(config, open_checkpoint(policy), records, make_mesh(MeshConfig()), dtype=dtype)
    return list(read_parts(records / "candidates", Candidate))


def shares(found: list[Candidate], scenes: dict[str, Scene]) -> dict[str, float]:
    """In percent, but for the words of a caption."""
    truth = compute_metrics((candidate.text, scenes[candidate.image]) for candidate in found)
    words = statistics.fmean(len(candidate.text.split()) for candidate in found)
    wrong = {"absent": truth.absent, "color, count, place": truth.unseen, "any error": truth.bad}
    return {name: 100 * share for name, share in wrong.items()} | {"words": words}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of everything else")
    options = parser.parse_args()
    same: list[float] = []
    table: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        data = Path(name) / "data"
        prepare(data, DemoDataConfig(unlabeled=options.images, annotated=20, held_out=40, asked=20, mme=4))
        scenes = read_scenes(data, "unlabeled")
        config = demo_config()
        for seed in tqdm(range(options.repeats), unit="repeat", dynamic_ncols=True):
            sides = []
            for int8 in (False, True):
                sampling = dataclasses.replace(config.sample.sampling, seed=seed)
                images = str(data / "images" / "unlabeled")
                changed = dataclasses.replace(config.sample, images=images, sampling=sampling, int8=int8)
                sides.append(captions(changed, data / "policy", Path(name) / f"{seed} {int8}", options.dtype))
                for column, value in shares(sides[-1], scenes).items():
                    table.setdefault("8 bits" if int8 else options.dtype, {}).setdefault(column, []).append(value)
            same.append(100 * statistics.fmean(one.text == other.text for one, other in zip(*sides, strict=True)))
    print(f"{describe_machine()}; {options.images} images, 5 captions each, {options.repeats} repeats")
    print(f"the same, word by word: {statistics.median(same):.1f}% ({min(same):.1f}-{max(same):.1f})")
    for side, columns in table.items():
        cells = (f"{name} {statistics.median(v):.2f} ({min(v):.2f}-{max(v):.2f})" for name, v in columns.items())
        print(f"{side:9} {', '.join(cells)}")


if __name__ == "__main__":
    main()
