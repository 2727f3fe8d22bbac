"""The tables of docs/scaling.md: plans of our configs for machines that are not here.

    python -m benchmarks.scaling                          all rows that this environment can compile
    python -m benchmarks.scaling --tables ppo,dpo         some tables
    python -m benchmarks.scaling --write docs/scaling.md  then puts the tables in place of those in the file

TPUs and GPUs need an environment each (docs/scaling.md): run it in both, with the same `--out`. Every plan is kept
there, a row that has one is not planned again, and rows that have none say so. A plan takes one to four minutes.
"""

import argparse
import importlib.util
import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vigor_jax.plan.hardware import GIB, parse_topology

logger = logging.getLogger(__name__)

Found = Mapping[str, Any]
# By kind of machine: what compiles for it.
COMPILERS = {True: "jax_cuda13_plugin", False: "libtpu"}
NOT_PLANNED = "not planned"


class Row(NamedTuple):
    """A line of a table.

    Attributes:
      labels: what stands in its first columns.
      topology: the machine.
      arguments: of `python -m vigor_jax.plan`.
    """

    labels: tuple[str, ...]
    topology: str
    arguments: tuple[str, ...]


class Table(NamedTuple):
    """A table of the page.

    Attributes:
      head: titles of the columns.
      rows: machines and configs.
      cells: from a plan, what stands behind the labels.
    """

    head: tuple[str, ...]
    rows: tuple[Row, ...]
    cells: Callable[[Found], list[str]]


def config(name: str, *arguments: str, stages: str = "", pod: str = "") -> tuple[str, ...]:
    """Arguments that name a config, what lies on top of it, and the stages."""
    files = [f"configs/{name}.yaml", *([f"configs/pods/{pod}.yaml"] if pod else [])]
    chosen = ["--run.stages", stages] if stages else []
    return (*(part for file in files for part in ("--config", file)), *chosen, *arguments)


def gib(found: Found, stage: str, *names: str, what: str = "peak") -> str:
    """The largest of some programs, of which a plan may lack the last ones."""
    sizes = [each[what] for each in found["estimates"] if each["stage"] == stage and each["name"] in names]
    return f"{max(sizes) / GIB:.1f}"


def limit(found: Found) -> str:
    """GiB that a device has."""
    return f"{found['estimates'][0]['memory'] / GIB:.1f}"


def hours(found: Found) -> list[str]:
    """Device-hours and hours of all stages; nothing of what does not fit."""
    if not found["fits"]:
        return ["does not fit", ""]
    return [f"{sum(stage[key] for stage in found['stages']):.2g}" for key in ("device_hours", "hours")]


PODS = {
    "v5e:4x4": "v5e",
    "v5e:16x16": "v5e_256",
    "v5p:2x2x2": "",
    "v6e:4x4": "",
    "a100-40g:8": "",
}
LORA = ("--sft.lora.rank", "128", "--sft.lora.alpha", "256")
BLIP, FISAO_BLIP = "sft_instructblip_13b", "fisao_instructblip_13b"
TWO_AN_IMAGE = ("--mesh.fsdp", "8", "--mesh.tensor", "2")

TABLES = {
    "recipe": Table(
        ("pod", "with", "prompts", "decoding", "judging", "fine-tuning", "of", "device-hours", "hours"),
        tuple(
            Row((f"`{pod}`", f"`configs/pods/{file}.yaml`" if file else ""), pod, config("vigor_all_7b", pod=file))
            for pod, file in PODS.items()
        ),
        lambda found: [
            gib(found, "sample", "prefill"),
            gib(found, "sample", "decode", "growth"),
            gib(found, "score", "reward model"),
            gib(found, "sft", "update"),
            limit(found),
            *hours(found),
        ],
    ),
    "reward": Table(
        ("pod of the reward model", "with", "update", "of", "device-hours", "hours"),
        tuple(
            Row((f"`{pod}`", f"`configs/pods/{file}.yaml`" if file else ""), pod, config("reward_model_7b", pod=file))
            for pod, file in PODS.items()
        ),
        lambda found: [gib(found, "train_reward", "update"), limit(found), *hours(found)],
    ),
    "sft": Table(
        ("what is trained", "machine", "held", "update", "of", "device-hours", "hours"),
        tuple(
            Row((what, f"`{machine}`"), machine, config(BLIP, *options, stages="sft"))
            for machine in ("a100-80g:4", "h200:1", "v5p:2x2x2", "v5e:4x4")
            for what, options in (("Q-Former and language model", ()), ("LoRA", LORA))
        ),
        lambda found: [
            gib(found, "sft", "update", what="arguments"),
            gib(found, "sft", "update"),
            limit(found),
            *hours(found),
        ],
    ),
    "ppo": Table(
        ("config", "machine", "held", "rollout", "update", "of", "device-hours", "hours"),
        (
            *(
                Row(("`fisao_7b`", f"`{machine}`"), machine, config("fisao_7b", stages="ppo"))
                for machine in ("h200:1", "a100-80g:4", "v5p:2x2x2")
            ),
            Row(
                ("`fisao_7b`, two chips an update's image", "`v6e:4x4`"),
                "v6e:4x4",
                config("fisao_7b", *TWO_AN_IMAGE, stages="ppo"),
            ),
            Row(
                ("`fisao_7b` with `pods/v5e_ppo`", "`v5e:4x4`"),
                "v5e:4x4",
                config("fisao_7b", stages="ppo", pod="v5e_ppo"),
            ),
            Row(("`vigor_ppo_7b`", "`h200:1`"), "h200:1", config("vigor_ppo_7b", stages="ppo")),
            *(
                Row((f"`{FISAO_BLIP}`", f"`{machine}`"), machine, config(FISAO_BLIP, stages="ppo"))
                for machine in ("a100-80g:4", "h200:1", "v5p:2x2x2")
            ),
            Row(
                (f"`{FISAO_BLIP}` with `pods/v5e_ppo`", "`v5e:4x4`"),
                "v5e:4x4",
                config(FISAO_BLIP, stages="ppo", pod="v5e_ppo"),
            ),
        ),
        lambda found: [
            gib(found, "ppo", "update", what="arguments"),
            gib(found, "ppo", "prefill", "decode", "growth"),
            gib(found, "ppo", "update"),
            limit(found),
            *hours(found),
        ],
    ),
    "dpo": Table(
        ("config", "machine", "held", "update", "reference", "of", "device-hours", "hours"),
        tuple(
            Row((what, f"`{machine}`"), machine, config("dpo_7b", *options, stages="dpo"))
            for what, options, machine in (
                ("`dpo_7b`, an adapter of rank 128", (), "a100-80g:4"),
                ("`dpo_7b --dpo.lora null`, all weights", ("--dpo.lora", "null"), "a100-80g:4"),
                ("`dpo_7b`, an adapter of rank 128", (), "h200:1"),
            )
        ),
        lambda found: [
            gib(found, "dpo", "update", what="arguments"),
            gib(found, "dpo", "update"),
            gib(found, "dpo", "reference"),
            limit(found),
            *hours(found),
        ],
    ),
}
# Models of other sizes than LLaVA-1.5 7B: of a checkpoint a plan reads only these.
SIZES = {
    "instructblip_13b": {
        "model_type": "instructblip",
        "image_token_index": 32000,
        "text_config": {
            "model_type": "llama",
            "hidden_size": 5120,
            "intermediate_size": 13824,
            "num_hidden_layers": 40,
            "num_attention_heads": 40,
            "vocab_size": 32064,
            "max_position_embeddings": 2048,
        },
    },
}


def plan(row: Row, out: Path) -> Found | None:
    """The plan of a row; None if this environment cannot compile it and none is kept."""
    kept = out / file_of(row)
    if not kept.is_file():
        if not importlib.util.find_spec(COMPILERS[parse_topology(row.topology).is_gpu]):
            return None
        arguments = [*row.arguments, "--topology", row.topology, "--no-nearest", "--json", *_sizes(row, out)]
        logger.warning("planning %s", " ".join(arguments))
        done = subprocess.run([sys.executable, "-m", "vigor_jax.plan", *arguments], stdout=subprocess.PIPE, text=True)
        if done.returncode not in (0, 3):  # 3: it does not fit, and the plan says by how much
            raise SystemExit(done.returncode)
        kept.write_text(done.stdout, encoding="utf-8")
    return json.loads(kept.read_text(encoding="utf-8"))


def file_of(row: Row) -> str:
    """Name of the file that a plan is kept in."""
    return re.sub(r"[^\w.]+", "_", " ".join((row.topology, *row.arguments))) + ".json"


def _sizes(row: Row, out: Path) -> list[str]:
    """The option that names a model of other sizes than LLaVA-1.5 7B, whose config.json this writes."""
    for name, sizes in SIZES.items():
        if any(name in argument for argument in row.arguments):
            directory = out / name
            directory.mkdir(exist_ok=True)
            (directory / "config.json").write_text(json.dumps(sizes), encoding="utf-8")
            return ["--model.path", str(directory)]
    return []


def markdown(table: Table, out: Path) -> str:
    """A table, with what is planned now and what was before."""
    lines = [line(table.head), line(["---"] * len(table.head))]
    for row in table.rows:
        found = plan(row, out)
        empty = len(table.head) - len(row.labels) - 1
        lines.append(line([*row.labels, *(table.cells(found) if found else [NOT_PLANNED, *[""] * empty])]))
    return "\n".join(lines)


def line(cells: Any) -> str:
    """A line of a table."""
    return re.sub(r"\|  (?=\|)", "| ", f"| {' | '.join(cells)} |")


def replaced(text: str, table: Table, made: str) -> str:
    """A page with a table in place of the one with the same head."""
    place = re.search(rf"^{re.escape(line(table.head))}\n(\|.*\n)+", text, re.MULTILINE)
    if place is None:
        raise SystemExit(f"the page has no table with the head {line(table.head)}")
    return text[: place.start()] + made + "\n" + text[place.end() :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", default=",".join(TABLES), help="which, by name")
    parser.add_argument("--out", type=Path, default=Path("runs/scaling"), help="folder of the plans")
    parser.add_argument("--write", type=Path, help="file whose tables are replaced")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.tables.split(","):
        made = markdown(TABLES[name], options.out)
        print(f"{name}\n\n{made}\n", flush=True)
        if options.write:
            text = options.write.read_text(encoding="utf-8")
            options.write.write_text(replaced(text, TABLES[name], made), encoding="utf-8")


if __name__ == "__main__":
    main()
