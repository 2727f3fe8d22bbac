"""The README.md of an export: carries the card of its evaluation, and what people have written into it."""

import os
from pathlib import Path
from typing import Any

from vigor_jax.evaluation.card.card import Card
from vigor_jax.evaluation.card.compare import make_card
from vigor_jax.evaluation.card.model_index import TASK
from vigor_jax.evaluation.card.readme import README, without_card, write_readme
from vigor_jax.evaluation.card.results import METRICS_FILE, read_systems
from vigor_jax.hf.hub import is_id
from vigor_jax.json_fields import Fields, exists
from vigor_jax.stages.stage import EVALUATION, EXPORT

# In an export: what it was made of.
PROVENANCE = "vigor_jax.json"
# A file that a layout has → the library that the Hub names for it.
_LIBRARIES = {"adapter_config.json": "peft", "preprocessor_config.json": "transformers"}


def carry_card(card: Card, out: Path, run: Path) -> None:
    """Writes a card into the README.md of an export.

    Args:
      card: its last model is the exported one.
      out: the export.
      run: that it is of.
    """
    base = Fields.read(run / EXPORT / PROVENANCE).text("base", "")
    library = next((name for file, name in _LIBRARIES.items() if (out / file).exists()), None)
    metadata: dict[str, Any] = {
        **({"base_model": base.partition("@")[0]} if is_id(base) else {}),
        **({"library_name": library} if library else {}),
        "pipeline_tag": TASK,
    }
    write_readme(out, card, run.resolve().name, metadata)


def carry_card_of(run: Path, out: Path, checkpoint: str = "", step: int | None = None) -> None:
    """The same of a run's evaluation; does nothing if the run has none of this model.

    Args:
      run: its directory.
      out: another export of what the run has exported.
      checkpoint: name of the checkpoints that it was made of; by default it was made of the run's export.
      step: of the checkpoint.
    """
    path = run / EXPORT / PROVENANCE
    if not exists(path) or not exists(run / EVALUATION / "tuned" / METRICS_FILE):
        return
    provenance = Fields.read(path)
    if step is None:
        if exists(run / EXPORT / README):
            (out / README).write_bytes((run / EXPORT / README).read_bytes())
    elif provenance.values.get("step") != step or Path(provenance.text("checkpoint", "")).name != checkpoint:
        return
    carry_card(make_card(*read_systems([run / EVALUATION])), out, run)


def put_aside(export: Path) -> None:
    """Keeps the README.md of an export that is about to be removed, without the card, which is of another model."""
    if exists(path := export / README):
        text = path.read_bytes().decode("utf-8", "surrogateescape")
        _aside(export).write_bytes(without_card(text).encode("utf-8", "surrogateescape"))


def put_back(export: Path) -> None:
    """Gives the new export what `put_aside` has kept, in this run or in one that was stopped."""
    if exists(aside := _aside(export)):
        os.replace(aside, export / README)


def _aside(export: Path) -> Path:
    return export.with_name(f".{export.name}.{README}")
