"""Makes the small checkpoints that the demo ships: `python -m vigor_jax.demo.build policy|detector|tagger`."""

import argparse
import logging
import sys
from pathlib import Path

from vigor_jax.demo.policy import build_policy

CHECKPOINTS = Path(__file__).parent / "checkpoints"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["policy", "detector", "tagger"])
    parser.add_argument("--work", type=Path, default=Path("runs/demo_build"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--scenes", type=int, default=30000)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    build_policy(args.out or CHECKPOINTS / "policy", args.work, num_scenes=args.scenes)


if __name__ == "__main__":
    main()
