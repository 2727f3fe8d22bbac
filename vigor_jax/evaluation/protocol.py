"""By which protocol a benchmark is run: what a model is asked, how it answers, and how the answers are read.

A protocol is a YAML file: one of `protocols/BENCHMARK.NAME.yaml`, or a user's. What a file does not say (null) is not
fixed by it. The digest stands for all that changes a figure, so that figures with different digests do not compare.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml  # type: ignore[import-untyped]

from vigor_jax import fingerprint
from vigor_jax.errors import InputError, nearest

FOLDER = Path(__file__).parent / "protocols"
OWN = "own"

DIGEST_LENGTH = 16


@dataclass(frozen=True)
class SamplingRule:
    """How each token is chosen.

    Attributes:
        temperature: 0: the most likely token.
        top_p: 1 is off.
        top_k: 0 is off.
        num_beams: More than 1 is a search that this package does not have; a model is then asked without it, and
            `departures` says so.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    num_beams: int = 1


@dataclass(frozen=True)
class ImageRule:
    """Which images are asked about.

    Attributes:
        number: How many.
        source: "COCO val2014".
    """

    number: int | None = None
    source: str | None = None


@dataclass(frozen=True)
class JudgeRule:
    """Which model judges.

    Attributes:
        model: Its name.
        prompt: Which words it is asked in: "published", or "ours-" or "file-" and the start of the words' SHA-256.
    """

    model: str | None = None
    prompt: str | None = None


@dataclass(frozen=True)
class Protocol:
    """A protocol; None is what it does not fix.

    Attributes:
        name: Of the file, or "own" for what is in none.
        benchmark: What it is a protocol of; the name of a layout for those of `evaluate questions`.
        title: One line for people.
        source: Paper or repository, and what in it says so.
        date: Of the source, as "2023-11".
        prompt: What a description is asked for with.
        suffix: What follows a question and its options; empty: nothing.
        joint: Between a question and its suffix.
        removed: What a question ends in and is left out.
        template: The conversation format; None: the model's.
        sampling: How tokens are chosen.
        max_new_tokens: Where an answer is cut.
        sentences: "whole", or "finished": what follows the last full stop of a description is left out.
        images: Which.
        parser: How answers are read, as their benchmark calls it.
        table: Which table of words the parser has, the start of its SHA-256.
        judge: Which model judges.
        notes: What a reader should know, such as what the source does not say.
        departures: Where a result was made otherwise.
    """

    name: str
    benchmark: str
    title: str = ""
    source: str = ""
    date: str | None = None
    prompt: str | None = None
    suffix: str = ""
    joint: str = "\n"
    removed: str = ""
    template: str | None = None
    sampling: SamplingRule | None = None
    max_new_tokens: int | None = None
    sentences: Literal["whole", "finished"] = "whole"
    images: ImageRule = field(default_factory=ImageRule)
    parser: str | None = None
    table: str | None = None
    judge: JudgeRule = field(default_factory=JudgeRule)
    notes: tuple[str, ...] = ()
    departures: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """16 hexadecimal digits of all that changes a figure; names, sources and notes do not."""
        told = ("name", "title", "source", "date", "notes", "departures")
        return fingerprint.digest(_stated(self, but=told))[:DIGEST_LENGTH]

    def ask(self, question: str) -> str:
        """All that a model is asked."""
        if self.removed:
            question = question.removesuffix(self.removed).rstrip()
        return f"{question}{self.joint}{self.suffix}" if self.suffix else question

    def read(self, text: str) -> str:
        """What counts of a description."""
        return text[: text.rfind(".") + 1] if self.sentences == "finished" else text

    def used(self, **values: Any) -> "Protocol":
        """The protocol as a result was made, with what differs from it under `departures`.

        Args:
            **values: Fields, those of `sampling`, `images` and `judge` as mappings; None is not known.
        """
        departures, changed = list(self.departures), dict[str, Any]()
        for key, value in values.items():
            before = getattr(self, key)
            if isinstance(value, Mapping):
                kind: Any = {"sampling": SamplingRule, "images": ImageRule, "judge": JudgeRule}[key]
                known = {name: one for name, one in value.items() if one is not None}
                departures += _differences(key, before, known)
                changed[key] = dataclasses.replace(before or kind(), **known)
            elif value is not None:
                if before is not None and before != value:
                    departures.append(f"{key} {value!r}, not {before!r}")
                changed[key] = value
        return dataclasses.replace(self, **changed, departures=tuple(departures))

    def stored(self) -> dict[str, Any]:
        """For `metrics.json`."""
        told = {"name": self.name, "suffix": self.suffix, "digest": self.digest, "title": self.title}
        return {**told, **({"departures": list(self.departures)} if self.departures else {})}


def _stated(part: Any, but: Collection[str] = ()) -> dict[str, Any]:
    """What differs from the defaults, so that a field that is added one day leaves the digests of today as they are."""
    found: dict[str, Any] = {}
    for one in dataclasses.fields(part):
        value = getattr(part, one.name)
        if dataclasses.is_dataclass(value):
            value = {"given": True, **_stated(value)} if one.name == "sampling" else _stated(value) or None
        if one.name not in but and value not in (None, one.default):
            found[one.name] = value
    return found


def _differences(key: str, before: Any, values: Mapping[str, Any]) -> list[str]:
    stated = {} if before is None else dataclasses.asdict(before)
    return [
        f"{key}.{name} {value!r}, not {stated[name]!r}"
        for name, value in values.items()
        if stated.get(name) is not None and stated[name] != value
    ]


def file_version(path: Path) -> str:
    """The start of the SHA-256 of a file that decides on figures, such as a table of words."""
    return fingerprint.content(path)[:8]


def own(benchmark: str) -> Protocol:
    """A protocol that is in no file and fixes nothing."""
    return Protocol(OWN, benchmark, title="settings of this command, in no published protocol")


def names(benchmark: str) -> tuple[str, ...]:
    """The protocols of a benchmark that come with this package; "paper" and "llava-1.5" first."""
    found = (path.stem.partition(".")[2] for path in FOLDER.glob(f"{benchmark}.*.yaml"))
    return tuple(sorted(found, key=lambda name: ({"paper": 0, "llava-1.5": 1}.get(name, 2), name)))


def read_protocol(name: str, benchmark: str) -> Protocol:
    """Reads a protocol.

    Args:
        name: One of `names`, "own", or a YAML file, which ends so.
        benchmark: What it should be a protocol of.

    Raises:
        InputError: There is none of this name, or the file cannot be read or is no protocol of the benchmark.
    """
    if name == OWN:
        return own(benchmark)
    if name.endswith((".yaml", ".yml")):
        return _parse(Path(name), benchmark, Path(name).stem)
    known = names(benchmark)
    if name not in known:
        if not known:
            raise InputError(
                f"--protocol: {benchmark} has no protocols, got {name!r}; give a YAML file, or leave it out"
            )
        raise InputError(
            f"--protocol: expected {', '.join(known)} or a YAML file for {benchmark}, got {name!r}; "
            f"{nearest(name, known)}"
        )
    return _parse(FOLDER / f"{benchmark}.{name}.yaml", benchmark, name)


def _parse(path: Path, benchmark: str, name: str) -> Protocol:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: expected a protocol in UTF-8, cannot read it ({type(error).__name__}); check the path"
        ) from error
    except (yaml.YAMLError, ValueError) as error:  # the latter of an impossible date
        raise InputError(f"{path}: malformed YAML ({' '.join(str(error).split())[:120]}); fix it") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a protocol, keys and values such as 'prompt: ...', got {content!r:.60}")
    protocol: Protocol = _build(Protocol, {"name": name, **content}, str(path))
    if protocol.benchmark != benchmark:
        raise InputError(
            f"{path}: expected a protocol of {benchmark}, got one of {protocol.benchmark}; protocols do not mix"
        )
    return protocol


# Field → what a file may hold there; None is always taken.
_KINDS: Mapping[str, tuple[type, ...]] = {
    "temperature": (int, float), "top_p": (int, float), "top_k": (int,), "num_beams": (int,), "number": (int,),
    "max_new_tokens": (int,), "notes": (list,), "sampling": (dict,), "images": (dict,), "judge": (dict,),
}  # fmt: skip
_PARTS: Mapping[str, type] = {"sampling": SamplingRule, "images": ImageRule, "judge": JudgeRule}


def _build(kind: type, content: Mapping[Any, Any], place: str) -> Any:
    """A dataclass of a mapping, whose keys and values are looked at."""
    known = [one.name for one in dataclasses.fields(kind) if one.name != "departures"]
    values: dict[str, Any] = {}
    for key, value in content.items():
        if key not in known:
            raise InputError(f"{place}: unknown key {key!r}; {nearest(str(key), known)}")
        if value is None:  # as if left out
            continue
        wanted = _KINDS.get(key, (str,))
        if not isinstance(value, wanted) or isinstance(value, bool):
            told = " or ".join(one.__name__ for one in wanted)
            raise InputError(f"{place}: expected {told} under {key!r}, got {value!r:.60}")
        if key in _PARTS:
            values[key] = _build(_PARTS[key], content[key], f"{place}, {key}")
        elif key == "notes":
            values[key] = tuple(str(note) for note in content[key])
        else:
            values[key] = float(content[key]) if key in ("temperature", "top_p") else value
    if missing := [name for name in ("name", "benchmark") if name in known and name not in values]:
        raise InputError(f"{place}: expected the key {missing[0]!r}, got {', '.join(map(str, content)) or 'none'}")
    if values.get("sentences", "whole") not in ("whole", "finished"):
        raise InputError(f"{place}: expected sentences 'whole' or 'finished', got {values['sentences']!r}")
    if not 0 <= values.get("temperature", 0) < math.inf or not 0 < values.get("top_p", 1) <= 1:
        raise InputError(f"{place}: expected a temperature of 0 or more and 0 < top_p <= 1, got {content!r:.80}")
    least = {"max_new_tokens": 1, "num_beams": 1, "top_k": 0, "number": 1}
    for key, low in least.items():
        if key in values and values[key] < low:
            raise InputError(f"{place}: expected {key} of {low} or more, got {values[key]}")
    return kind(**values)
