"""What earlier evaluations wrote, as a card takes it: figures, counts of each image, texts, settings of the answers."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vigor_jax.errors import InputError
from vigor_jax.evaluation.card.figures import FIGURES
from vigor_jax.evaluation.card.texts import count_texts
from vigor_jax.evaluation.image_counts import FILE as COUNTS_FILE
from vigor_jax.evaluation.image_counts import ImageCounts, PartCounts, read_counts
from vigor_jax.json_fields import parse_json

METRICS_FILE = "metrics.json"
UNKNOWN = "unknown protocol"
# What decides on a result of an unknown protocol, as far as its metrics say.
_TOLD = ("protocol", "policy", "prompt", "names", "words_compared", "read")


class Skipped(NamedTuple):
    """A benchmark that is not on the card.

    Attributes:
        name: Of the benchmark, and of the model where only its answers are missing.
        reason: In one line.
    """

    name: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Result:
    """One benchmark of one model.

    Attributes:
        benchmark: As `vigor_jax.evaluate` calls it.
        name: The same, but for "questions" the name of its folder: "seed".
        metrics: What `metrics.json` says.
        counts: Part → image → counts; empty where an older version evaluated.
        texts: Image → counts of `texts.count_texts`.
        settings: How the answers were drawn, as the files next to them say.
    """

    benchmark: str
    name: str
    metrics: Mapping[str, Any]
    counts: PartCounts
    texts: ImageCounts
    settings: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """Of the protocol; empty where the metrics have none."""
        return str(self._protocol.get("digest", ""))

    @property
    def protocol(self) -> str:
        """The protocol's name, for people."""
        name = self._protocol.get("name")
        return f"{name} ({self.digest})" if self.digest else UNKNOWN + (f" ({name})" if name else "")

    @property
    def protocol_notes(self) -> list[str]:
        """What else there is to say of the protocol: its title, and where this result was made otherwise."""
        title, departures = self._protocol.get("title"), self._protocol.get("departures") or []
        return [*([str(title)] if title else []), *(f"otherwise here: {each}" for each in departures)]

    @property
    def protocol_key(self) -> str:
        """What two results share that may stand in one table."""
        return self.digest or json.dumps({key: self.metrics.get(key) for key in _TOLD}, sort_keys=True)

    @property
    def _protocol(self) -> Mapping[str, Any]:
        found = self.metrics.get("protocol")
        return found if isinstance(found, Mapping) else {}


@dataclasses.dataclass(frozen=True)
class System:
    """A model, or a way to use it.

    Attributes:
        name: As the card calls it.
        results: Its benchmarks.
    """

    name: str
    results: Sequence[Result]


def read_systems(folders: Sequence[Path]) -> tuple[list[System], list[Skipped]]:
    """The results in folders, a model each; one folder `evaluation/` of a run has the models base and tuned.

    Args:
        folders: Each holds what `vigor_jax.evaluate` wrote, or folders with that.

    Raises:
        InputError: There is nothing of that, or a file is damaged.
    """
    if len(folders) == 1:
        own = [folders[0] / name for name in ("base", "tuned") if (folders[0] / name / METRICS_FILE).is_file()]
        folders = own or folders
    systems, skipped = [], []
    for name, folder in zip(names_of(folders), folders, strict=True):
        results, left = read_results(folder)
        systems.append(System(name, results))
        skipped += [Skipped(f"{each.name}, {name}", each.reason) for each in left]
    return systems, skipped


def read_results(folder: Path) -> tuple[list[Result], list[Skipped]]:
    """The results in a folder and in the folders in it.

    Raises:
        InputError: There are none, or a file is damaged.
    """
    if not folder.is_dir():
        raise InputError(f"card: {folder} is no directory; name one with the results of vigor_jax.evaluate")
    found: list[Result] = []
    skipped: list[Skipped] = []
    for place in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
        if (place / METRICS_FILE).is_file():
            found += read_folder(place)
        elif any(place.glob("*.jsonl.settings.json")):
            reason = (
                f"{place} has answers, but no {METRICS_FILE}: the evaluation ended early; run it again, it continues"
            )
            skipped.append(Skipped(place.name, reason))
    if not found:
        told = skipped[0].reason if skipped else f"neither {folder} nor a folder in it has a {METRICS_FILE}"
        raise InputError(f"card: {told}")
    return found, skipped


def names_of(folders: Sequence[Path | str]) -> list[str]:
    """Short names that differ: the last part of each path, or as many as it takes."""
    paths = [Path(folder).resolve() if Path(folder).exists() else Path(folder) for folder in folders]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    raise InputError(f"card: expected two different models, got {folders[0]} twice")


def read_folder(folder: Path) -> Iterator[Result]:
    """The results in a folder with `metrics.json`, as a command or a run has written it.

    Raises:
        InputError: A file is damaged, or does not say of which benchmark it is.
    """
    path = folder / METRICS_FILE
    metrics = parse_json(path.read_bytes(), path)
    counts: Mapping[str, PartCounts] = {}
    if (folder / COUNTS_FILE).is_file():
        counts = read_counts(folder / COUNTS_FILE)
    if metrics and metrics.keys() <= (counts or FIGURES).keys():  # of a run, which has several in one file
        for benchmark, own in metrics.items():
            yield _result(folder, benchmark, benchmark, own, counts.get(benchmark, {}))
        return
    benchmark = next(iter(counts), folder.name)
    if len(counts) > 1 or (not counts and benchmark not in FIGURES):
        raise InputError(
            f"{path}: expected the metrics of a benchmark, and {COUNTS_FILE} that says of which; evaluate "
            "again with the same --out, which asks nothing again"
        )
    name = folder.name if benchmark == "questions" else benchmark
    yield _result(folder, benchmark, name, metrics, counts.get(benchmark, {}))


def _result(folder: Path, benchmark: str, name: str, metrics: Mapping[str, Any], counts: PartCounts) -> Result:
    if not isinstance(metrics, Mapping):
        raise InputError(f"{folder / METRICS_FILE}: expected an object under {benchmark!r}; evaluate again")
    if benchmark == "grounding" and "boxed_share" not in metrics:  # the command has both under one name
        benchmark = name = "referring"
    images = counts.get("generative" if benchmark == "amber" else "", {})
    texts = count_texts(folder, name, images)
    return Result(benchmark, name, metrics, counts, texts, _settings(folder, name))


def _settings(folder: Path, name: str) -> dict[str, Any]:
    """The settings of the answers, with all values where files differ."""
    paths = sorted(folder.glob("*.jsonl.settings.json"))
    own = [path for path in paths if path.name.startswith(_ANSWERS.get(name, (name,)))]
    found: dict[str, list[Any]] = {}
    for path in own:
        for key, value in parse_json(path.read_bytes(), path).items():
            if value not in found.setdefault(key, []):
                found[key].append(value)
    return {key: values[0] if len(values) == 1 else values for key, values in found.items()}


# How files of answers begin, where not as the benchmark.
_ANSWERS: Mapping[str, tuple[str, ...]] = {
    "chair": ("captions",),
    "grounding": ("captions",),
    "detailcaps": ("captions",),
    "referring": ("expressions",),
}
