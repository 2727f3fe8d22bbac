"""What the demo's run has learnt: captions of scenes it never saw, before and after, with numbers and a picture."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from vigor_jax.caption import CaptionCommand, caption
from vigor_jax.demo.build import QUESTION
from vigor_jax.demo.contact_sheet import Shown, draw_sheet
from vigor_jax.demo.scoring import Scores, score
from vigor_jax.demo.world import Statement
from vigor_jax.sampling import SamplingConfig

# Two sentences more than the longest true caption needs.
SAMPLING = SamplingConfig(temperature=0, num_candidates=1, max_new_tokens=64, batch_size=40)
NUM_IN_SHEET = 8
ROWS = (
    ("sentences right", "sentences_right", "{:.1%}"),
    ("  their object", "objects_right", "{:.1%}"),
    ("  their colour", "colours_right", "{:.1%}"),
    ("  their place", "places_right", "{:.1%}"),
    ("objects described", "recall", "{:.1%}"),
    ("captions all right", "captions_right", "{:.1%}"),
    ("hallucinated objects per caption", "hallucinated_objects", "{:.2f}"),
    ("words per caption", "words", "{:.1f}"),
)


def show(run_dir: Path, *, template: Literal["v1", "plain"] = "v1") -> dict[str, Scores]:
    """Captions the held-out scenes with the base and the exported checkpoint, and shows how much of it is true.

    Prints a table and two examples, and writes `captions/*.jsonl`, `metrics/demo.json` and `demo.png` in the run's
    directory. Captions that are there already are not made again.

    Beside the two models stands a control: the tuned model's captions, each held against the next scene in place of
    its own. It is what a model gets that has learnt the world's language and does not look.

    Args:
      run_dir: with `world/` (`build.prepare`) and `export/`.
      template: the conversation format of the training.

    Returns:
      Scores of "base", "tuned" and "control".
    """
    world = run_dir / "world"
    truth = {
        Path(image).name: [Statement(item["shape"], item["colour"], item["place"]) for item in objects]
        for image, objects in json.loads((world / "truth.json").read_text(encoding="utf-8")).items()
        if image.startswith("held_out/")
    }
    base = _captions(world / "checkpoint", world, run_dir / "captions" / "base.jsonl", template)
    tuned = _captions(run_dir / "export", world, run_dir / "captions" / "tuned.jsonl", template)
    names = sorted(truth)
    truths = [truth[name] for name in names]
    scores = {
        "base": score([base[name] for name in names], truths),
        "tuned": score([tuned[name] for name in names], truths),
        "control": score([tuned[name] for name in names], truths[1:] + truths[:1]),
    }
    report = {"scenes": len(names), **{name: dataclasses.asdict(value) for name, value in scores.items()}}
    (run_dir / "metrics").mkdir(exist_ok=True)
    (run_dir / "metrics" / "demo.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")

    sheet = run_dir / "demo.png"
    images = world / "images" / "held_out"
    shown = [Shown(images / name, base[name], tuned[name], truth[name]) for name in names[:NUM_IN_SHEET]]
    heading = (
        f"Sentences right: {scores['base'].sentences_right:.1%} before, {scores['tuned'].sentences_right:.1%} after"
    )
    draw_sheet(shown, f"{heading} ({len(names)} held-out scenes; these are the first {len(shown)})").save(sheet)

    print(table(scores, len(names)))
    for item in shown[:2]:
        print(f"\n{item.image}\n  before: {_shortened(item.before)}")
        print(f"  after:  {item.after}\n  truth:  {_told(item.truth)}")
    print(f"\npicture: {sheet}\nmodel:   {run_dir / 'export'} (loads in transformers, too)", flush=True)
    return scores


def table(scores: Mapping[str, Scores], num_scenes: int) -> str:
    """The scores as text, one column for each model."""
    columns = {"base": "before", "tuned": "after", "control": "control*"}
    lines = [f"{f'{num_scenes} held-out scenes':34}" + "".join(f"{columns[name]:>10}" for name in scores)]
    for label, field, form in ROWS:
        values = (form.format(getattr(value, field)) for value in scores.values())
        lines.append(f"{label:34}" + "".join(f"{value:>10}" for value in values))
    return "\n".join([*lines, "* the captions after, held against other scenes: what not looking would get"])


def _captions(model: Path, world: Path, out: Path, template: Literal["v1", "plain"]) -> dict[str, str]:
    """Image → caption; made anew where the model is newer than the captions."""
    if out.exists() and out.stat().st_mtime < (model / "config.json").stat().st_mtime:
        out.unlink()
    print(f"captions of the held-out scenes by {model}", flush=True)
    images = world / "images" / "held_out"
    caption(CaptionCommand(model, images, out, QUESTION, template, dtype="float32", sampling=SAMPLING))
    lines = map(json.loads, out.read_text(encoding="utf-8").splitlines())
    return {line["image"]: line["text"] for line in lines}


def _shortened(text: str, limit: int = 100) -> str:
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return text if len(text) <= limit else text[:limit] + " ..."


def _told(truth: Sequence[Statement]) -> str:
    return ", ".join(f"{item.colour} {item.shape} {item.place}" for item in truth)
