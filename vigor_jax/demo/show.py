"""What the demo's run has changed: captions of scenes it never saw, before and after, with numbers and a picture."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from vigor_jax.demo.contact_sheet import Shown, draw_sheet
from vigor_jax.demo.dataset import describe_truth, read_scenes
from vigor_jax.demo.metrics import CaptionMetrics, compute_metrics, reward_auc
from vigor_jax.inference.predictor import read_answers
from vigor_jax.stages.stage import EVALUATION, EXPORT

NUM_IN_SHEET = 8
ROWS = (
    ("sentences with an error", "bad"),
    ("  of those about what is there", "unseen"),
    ("  with a wrong color", "color"),
    ("  with a wrong number", "count"),
    ("  with a wrong place", "place"),
)


def is_evaluated(run_dir: Path) -> bool:
    """Whether a run has captions of the models before and after, which `show` compares."""
    return all(_captions_file(run_dir, model).is_file() for model in ("base", "tuned"))


def show(run_dir: Path, data: Path, records: str | None = None) -> dict[str, CaptionMetrics]:
    """Prints what no benchmark tells and the truth of the scenes does, with two examples; draws a picture of some more.

    Writes `metrics/demo.json` and `demo.png` in the run's directory.

    Args:
      run_dir: with `evaluation/`.
      data: as `dataset.prepare` writes it.
      records: where the run's candidates and verdicts are, if not in `run_dir`.

    Returns:
      Those of "base" and "tuned".
    """
    scenes = read_scenes(data, "held_out")
    captions = {name: _captions(run_dir, name) for name in ("base", "tuned")}
    found = {
        name: compute_metrics((text, scenes[image]) for image, text in own.items()) for name, own in captions.items()
    }
    aucs = reward_auc(records or run_dir, read_scenes(data, "unlabeled"))
    report = {"captions": {name: dataclasses.asdict(value) for name, value in found.items()}, "reward_auc": aucs}
    (run_dir / "metrics").mkdir(exist_ok=True)
    (run_dir / "metrics" / "demo.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")

    images = data / "images" / "held_out"
    shown = [
        Shown(images / image, captions["base"][image], captions["tuned"][image], scenes[image])
        for image in sorted(captions["base"])[:NUM_IN_SHEET]
    ]
    sheet = run_dir / "demo.png"
    draw_sheet(shown, f"Before and after, the first {len(shown)} held-out scenes; what is wrong is red").save(sheet)

    print(table(found))
    told = ", ".join(f"{kind} {value:.2f}" for kind, value in aucs.items())
    print(f"AUC of the reward model, kind by kind: {told}")
    for item in shown[:2]:
        print(
            f"\n{item.image}\n  before: {item.before}\n  after:  {item.after}\n  truth:  {describe_truth(item.scene)}"
        )
    print(f"\npicture: {sheet}\nmodel:   {run_dir / EXPORT} (loads in transformers, too)", flush=True)
    return found


def table(found: Mapping[str, CaptionMetrics]) -> str:
    """The figures as text, one column for each model."""
    lines = []
    for label, field in ROWS:
        values = (f"{getattr(value, field):.1%}" for value in found.values())
        lines.append(f"{label:34}" + "".join(f"{value:>10}" for value in values))
    return "\n".join(lines)


def _captions(run_dir: Path, model: str) -> dict[str, str]:
    return {line["image"]: line["text"] for line in read_answers(_captions_file(run_dir, model))}


def _captions_file(run_dir: Path, model: str) -> Path:
    return run_dir / EVALUATION / model / "captions.jsonl"
