"""Makes the small checkpoints that the demo ships, from nothing, with fixed seeds.

python -m vigor_jax.demo.build policy      # an hour and a quarter on two cores, and a quarter more for its control
python -m vigor_jax.demo.build detector    # half an hour on one; needs torch and transformers
python -m vigor_jax.demo.build verifier    # minutes
python -m vigor_jax.demo.build tagger      # seconds
"""

import json
import random
from pathlib import Path

import numpy as np

from vigor_jax import cli
from vigor_jax.demo.dataset import CHECKPOINTS
from vigor_jax.demo.detector import build_detector
from vigor_jax.demo.language import tagged_sentences
from vigor_jax.demo.policy import build_policy
from vigor_jax.demo.verifier import build_verifier
from vigor_jax.rewards.language.tagger import TAGGER

NUM_TAGGED = 3000


def main() -> None:
    """Runs the command line; see the module's docstring."""
    parser = cli.Parser("demo.build", __doc__)
    parser.add_argument("what", choices=("policy", "detector", "verifier", "tagger"))
    parser.add_argument("--out", type=Path, help="directory of the checkpoint; by default the one that is shipped")
    parser.add_argument("--work", type=Path, default=Path("runs/demo_policy"), help="where the policy's training lives")
    options = parser.parse_args()
    cli.show_progress()
    out = options.out or CHECKPOINTS / options.what
    if options.what == "policy":
        build_policy(out, options.work)
    elif options.what == "tagger":
        build_tagger(out)
    elif options.what == "verifier":
        build_verifier(out)
    else:
        build_detector(out)


def build_tagger(out: Path, seed: int = 0) -> None:
    """Teaches NLTK's tagger the demo's sentences, and writes it as NLTK does, in three JSON files.

    Args:
      out: directory.
      seed: of the sentences and of their order.
    """
    from nltk.tag.perceptron import PerceptronTagger

    random.seed(seed)  # the tagger shuffles
    tagger = PerceptronTagger(load=False)
    tagger.train(list(tagged_sentences(np.random.default_rng(seed), NUM_TAGGED)))
    out.mkdir(parents=True, exist_ok=True)
    for name, content in zip(("weights", "tagdict", "classes"), tagger.encode_json_obj(), strict=True):
        text = json.dumps(sorted(content) if name == "classes" else content, sort_keys=True)
        (out / f"{TAGGER}.{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    cli.run(main)
