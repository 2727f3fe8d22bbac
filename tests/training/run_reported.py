"""Fine-tunes a tiny world with metrics for trackers, in a process that may kill itself; then reads metrics back.

python -m tests.training.run_reported train '{"world": DIR, "run_dir": DIR, "to": ["wandb"], "end": "SIGTERM"}'
python -m tests.training.run_reported wandb FOLDER
"""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

BLOCK, MAGIC = 32768, 7


def train(job: dict) -> None:
    import jax.numpy as jnp

    from vigor_jax import cli
    from vigor_jax.hf.load import open_checkpoint
    from vigor_jax.parallel.config import MeshConfig
    from vigor_jax.parallel.sharding import make_mesh
    from vigor_jax.stages.sft import SftConfig, sft
    from vigor_jax.training import loop as module
    from vigor_jax.training.trackers import Reporting

    original = module.make_train_step

    def killing(*given):
        step, count = original(*given), 0

        def update(*given):
            nonlocal count
            if count == 8 and job.get("end"):
                time.sleep(2)  # trackio writes twice a second
                os.kill(os.getpid(), getattr(signal, job["end"]))
            count += 1
            return step(*given)

        return update

    module.make_train_step = killing
    cli.show_progress()
    world = Path(job["world"])
    config = SftConfig(
        data=world / "data.json",
        images=str(world / "images"),
        batch_size=4,
        epochs=4,
        max_length=128,
        bucket=64,
        save_every=2,
        log_every=1,
    )
    reporting = Reporting(tuple(job["to"]), "tiny", "few")
    checkpoint = open_checkpoint(world / "model")
    sft(config, checkpoint, Path(job["run_dir"]), make_mesh(MeshConfig()), dtype=jnp.float32, reporting=reporting)
    assert {"wandb", "trackio"} & sys.modules.keys() <= set(job["to"])


def of_wandb(folder: Path) -> dict:
    """Run ids, and (step, name, value) in the order of the folders' files."""
    from wandb.proto import wandb_internal_pb2 as pb

    runs, points = [], []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for content in records(path.read_bytes()):
            record = pb.Record()
            record.ParseFromString(content)
            if record.WhichOneof("record_type") == "run" and record.run.run_id not in runs:
                runs.append(record.run.run_id)
                name = [record.run.project, record.run.display_name]
            if record.WhichOneof("record_type") == "history":
                values = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                points += [(values["_step"], key, value) for key, value in values.items() if not key.startswith("_")]
    return {"runs": runs, "name": name, "points": points}


def records(content: bytes) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format, behind a header of wandb's."""
    place, parts = MAGIC, []
    while place + 7 <= len(content):
        if BLOCK - place % BLOCK < 7:
            place += BLOCK - place % BLOCK
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        parts.append(content[place + 7 : place + 7 + length])
        place += 7 + length
        if kind in (1, 4):
            yield b"".join(parts)
            parts = []


if __name__ == "__main__":
    if sys.argv[1] == "train":
        train(json.loads(sys.argv[2]))
    else:
        print(json.dumps(of_wandb(Path(sys.argv[2]))))
