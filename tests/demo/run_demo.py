"""The demo's command, in a world of a few scenes."""

from vigor_jax import cli, train
from vigor_jax.demo.world import WorldConfig

SMALL = WorldConfig(unlabelled=24, annotated=24, held_out=16, asked=8, mme=3)

if __name__ == "__main__":
    train.WorldConfig = lambda: SMALL  # type: ignore[assignment,misc]
    cli.run(train.main)
