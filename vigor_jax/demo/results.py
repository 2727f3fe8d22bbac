"""What `compare` has measured: a file that later runs add to, the table and the picture made of it."""

import json
import math
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal, NamedTuple, TypeAlias

import vigor_jax
from vigor_jax.data.records.store import write_atomically
from vigor_jax.demo.metrics import KINDS
from vigor_jax.demo.variants import VARIANTS, Variant
from vigor_jax.errors import InputError

Figures = Mapping[str, float]
Auc: TypeAlias = Literal["reward_auc", "verifier_auc"]
# Key in the file → what the line below the table says of it.
AUCS: Mapping[Auc, str] = {
    "reward_auc": "AUC of the reward model within a form of sentence, kind by kind",
    "verifier_auc": "AUC of the verifier, correct against hallucinated mentions, by the score of",
}


class Column(NamedTuple):
    """A figure of every variant.

    Attributes:
      name: in the file.
      label: in the table.
      factor: the table shows it times this.
      description: one line.
    """

    name: str
    label: str
    factor: int
    description: str


COLUMNS = (
    Column("chair_i", "CHAIR_i", 100, "shapes mentioned that are not there, of all mentioned"),
    Column("c3", "C@3", 100, "the same among the first three mentions of a caption"),
    Column("chair_s", "CHAIR_s", 100, "captions that mention one that is not there"),
    Column("recall", "recall", 100, "shapes mentioned, of those there"),
    Column("bad", "bad sentences", 100, "sentences with any error"),
    Column("color", "color", 100, "of the sentences about what is there, those with a wrong color"),
    Column("count", "count", 100, "of those about several, those with a wrong number"),
    Column("place", "place", 100, "of those about one, those with a wrong place"),
    Column("any", "any of the three", 100, "of the sentences about what is there, those with one of the three errors"),
    Column("words", "words", 1, "words of a caption"),
    Column("repeats", "repeats", 100, "sentences that say again what an earlier one of the caption has said"),
    Column("again", "named again", 100, "sentences about a shape that their caption has named before"),
    Column("pope", "POPE", 100, "POPE's accuracy, mean of the three splits"),
    Column("pope_adversarial", "POPE adv.", 100, "POPE's accuracy, adversarial split"),
    Column("taught", "absent in targets", 100, "sentences of its training targets that name what is not there"),
    *(
        Column(f"auc_{kind}", f"AUC {kind}", 100, f"AUC of its reward model, {kind} errors, if it has one of its own")
        for kind in KINDS
    ),
    Column("seconds", "CPU s", 1, "CPU seconds of the variant's own stages, its evaluation included"),
    Column("shared_seconds", "shared CPU s", 1, "CPU seconds of the candidates, verdicts and reward model it uses"),
)


class Results:
    """Results in a file: opened, or begun.

    The file is JSON: `settings`, `columns`, `variants` (name → entry of the table of variants), `runs` (a record for
    each variant and seed: the columns, the version and the commit), `summary` (variant → column → mean, std, seeds),
    `reward_auc` (seed → kind of error → AUC) and `verifier_auc` (seed → word or caption → AUC).

    Args:
      path: the file.
      settings: all that decides on the figures but variant and seed, in dicts.

    Raises:
      InputError: the file is not of this kind, or its figures were made with other settings.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self._settings = json.loads(json.dumps(settings, default=str))
        self._read()

    def has(self, variant: Variant, seed: int) -> bool:
        """Whether the file has this variant with this seed."""
        return any(run["variant"] == variant.name and run["seed"] == seed for run in self._content["runs"])

    def figures(self, name: str) -> list[Figures]:
        """The columns of a variant, a dict for each seed; NaN where there was nothing to take a share of."""
        runs = (run for run in self._content["runs"] if run["variant"] == name)
        columns = [column.name for column in COLUMNS]
        return [{c: math.nan if run[c] is None else run[c] for c in columns if c in run} for run in runs]

    @property
    def names(self) -> list[str]:
        """Variants with results, in the order of the table."""
        have = {run["variant"] for run in self._content["runs"]}
        order = [variant.name for variant in VARIANTS]
        return [name for name in dict.fromkeys([*order, *self._content["variants"]]) if name in have]

    @property
    def labels(self) -> dict[str, str]:
        """Variants with results → what the table calls them."""
        return {name: self._content["variants"][name]["label"] for name in self.names}

    def aucs(self, judge: Auc) -> list[Figures]:
        """The reward model's by kind of error, or the verifier's by what is scored, a dict for each seed; NaN where
        there was nothing to tell apart."""
        aucs = self._content[judge].values()
        return [{kind: math.nan if value is None else value for kind, value in auc.items()} for auc in aucs]

    def add(self, variant: Variant, seed: int, figures: Figures) -> None:
        """Adds a variant's figures with one seed, and writes the file."""
        self._read()  # another process may have added something
        if not self.has(variant, seed):
            about = {"variant": variant.name, "seed": seed, "version": vigor_jax.__version__, "commit": commit()}
            self._content["runs"].append(about | dict(figures))
            self._content["variants"][variant.name] = _entry(variant)
        self.write()

    def add_auc(self, judge: Auc, seed: int, auc: Mapping[str, float | None]) -> None:
        """Adds a judge's AUCs of a seed, and writes the file."""
        self._read()
        self._content[judge][str(seed)] = dict(auc)
        self.write()

    def _read(self) -> None:
        self._content: dict[str, Any] = {
            "settings": self._settings,
            "columns": {column.name: column.description for column in COLUMNS},
            "variants": {},
            "runs": [],
            "summary": {},
            **{judge: {} for judge in AUCS},
        }
        if not self.path.exists():
            return
        try:
            found = _checked(json.loads(self.path.read_bytes()))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise InputError(
                f"{self.path} holds no results of this command, and is left as it is; give another file as --json"
            ) from None
        known = {variant.name: _entry(variant) for variant in VARIANTS}
        there, here = (
            {"settings": settings, "variants": {name: _deciding(entry) for name, entry in entries.items()}}
            for settings, entries in ((found["settings"], found["variants"]), (self._settings, known))
        )
        if other := next(_differences(there, here), None):
            key, before, today = other
            raise InputError(
                f"{self.path} holds results with other settings: {key} is {before} there and {today} here; give "
                "another file as --json"
            )
        self._content |= {key: found[key] for key in ("variants", "runs", *AUCS) if key in found}

    def write(self) -> None:
        """Writes the file, all of it or nothing."""
        order = {name: number for number, name in enumerate(self.names)}
        self._content["runs"].sort(key=lambda run: (order[run["variant"]], run["seed"]))
        self._content["summary"] = {name: self._summary(name) for name in self.names}
        content = json.dumps(_without_nan(self._content), indent=1, allow_nan=False)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(self.path) as file:
            file.write(content.encode() + b"\n")

    def _summary(self, name: str) -> dict[str, dict[str, float]]:
        seeds = self.figures(name)
        values = {
            column.name: [figures[column.name] for figures in seeds if column.name in figures] for column in COLUMNS
        }
        return {column: summarize(numbers) for column, numbers in values.items() if numbers}


def summarize(values: Sequence[float]) -> dict[str, float]:
    """Mean, standard deviation (of a sample; NaN of one value) and number of values, without those that are NaN."""
    values = [value for value in values if not math.isnan(value)]
    mean = fmean(values) if values else math.nan
    return {"mean": mean, "std": stdev(values) if len(values) > 1 else math.nan, "seeds": len(values)}


def commit() -> str | None:
    """The commit that the program is at, with "-dirty" behind it if files differ; None where it is no clone."""
    root = Path(vigor_jax.__file__).parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def to_markdown(results: Results) -> str:
    """Means over seeds ± standard deviations, in percent but for words and seconds."""
    head = ["variant", *(column.label for column in COLUMNS)]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for name, label in results.labels.items():
        seeds = results.figures(name)
        cells = []
        for column in COLUMNS:
            measured = summarize([column.factor * figures[column.name] for figures in seeds if column.name in figures])
            spread = "" if math.isnan(measured["std"]) else f" ±{measured['std']:.1f}"
            cells.append(f"{measured['mean']:.1f}{spread}" if measured["seeds"] else "")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    for judge, label in AUCS.items():
        if seeds := results.aucs(judge):
            kinds = {kind: [seed[kind] for seed in seeds if kind in seed] for kind in seeds[0]}
            said = ", ".join(f"{kind} {summarize(values)['mean']:.3f}" for kind, values in kinds.items())
            lines += ["", f"{label}: {said}."]
    return "\n".join(lines)


def plot(results: Results, path: Path) -> None:
    """CHAIR_i against recall, a point for each variant and a bar of a standard deviation each way."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(11, 5.5), dpi=130)
    colors = pyplot.get_cmap("tab20").colors
    for number, (name, label) in enumerate(results.labels.items()):
        recall, chair = (
            summarize([100 * figures[column] for figures in results.figures(name)]) for column in ("recall", "chair_i")
        )
        style = "s" if name == "base" or "control" in label else "o"
        axes.errorbar(
            recall["mean"],
            chair["mean"],
            xerr=recall["std"],
            yerr=chair["std"],
            fmt=style,
            color=colors[number % len(colors)],
            label=label,
        )
    axes.set(xlabel="recall, %", ylabel="CHAIR_i, % (lower is better)", title="Held-out scenes, temperature 0.7")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def _entry(variant: Variant) -> dict[str, Any]:
    """A variant as the file has it."""
    entry = {key: value for key, value in variant._asdict().items() if key != "name"}
    return json.loads(json.dumps(entry, default=dict))


def _deciding(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What decides on a variant's figures; the overrides as one value, for one that is not there differs, too."""
    return {key: entry[key] for key in entry if key not in ("label", "description")} | {
        "overrides": sorted(entry["overrides"].items())
    }


def _checked(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a file, if it is as `Results` writes it.

    Raises:
      ValueError, TypeError, KeyError, AttributeError: it is not.
    """
    variants, runs = content["variants"], content["runs"]
    aucs = [*content["reward_auc"].values(), *content.get("verifier_auc", {}).values()]  # which older files lack
    figures = [run.get(column.name) for run in runs for column in COLUMNS]
    figures += [value for seed in aucs for value in seed.values()]
    if not (
        isinstance(content["settings"], dict)
        and all(isinstance(entry["label"], str) for entry in variants.values())
        and all(isinstance(entry["overrides"], dict) for entry in variants.values())
        and all(run["variant"] in variants and isinstance(run["seed"], int) for run in runs)
        and all(figure is None or isinstance(figure, int | float) for figure in figures)
    ):
        raise TypeError
    return content


def _differences(there: Any, here: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted keys with different values. A key that one of them lacks is of what the other does not know."""
    if isinstance(there, dict) and isinstance(here, dict):
        for name in (name for name in there if name in here):
            yield from _differences(there[name], here[name], f"{key}.{name}" if key else name)
    elif there != here:
        yield key, there, here


def _without_nan(value: Any) -> Any:
    """With null for NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value
