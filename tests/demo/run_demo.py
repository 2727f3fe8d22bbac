"""The demo's command, with a few scenes."""

from vigor_jax import cli, train
from vigor_jax.demo import dataset
from vigor_jax.demo.dataset import DemoDataConfig

SMALL = DemoDataConfig(unlabeled=24, annotated=24, held_out=16, asked=8, mme=3)

if __name__ == "__main__":
    dataset.DemoDataConfig = lambda: SMALL  # type: ignore[assignment,misc]
    cli.run(train.main)
