"""In which words benchmarks are asked: in their own, or with what LLaVA-1.5's evaluation and lmms-eval add.

| benchmark                | paper                                          | llava-1.5             |
| ------------------------ | ---------------------------------------------- | --------------------- |
| pope, gqa, amber         | the question alone                             | + SHORT               |
| mme                      | the question with its "Please answer yes ..."  | without that, + SHORT |
| seed, mmbench, scienceqa | the question and its options                   | + CHOICE              |
| mmvet                    | the question alone                             | the same              |
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from vigor_jax.errors import InputError

ProtocolName = Literal["paper", "llava-1.5"]

SHORT = "Answer the question using a single word or phrase."
CHOICE = "Answer with the option's letter from the given choices directly."
SUFFIXES = (SHORT, CHOICE)
MME_SUFFIX = "Please answer yes or no."

_LLAVA = dict.fromkeys(("pope", "amber", "mme", "gqa"), SHORT) | dict.fromkeys(("seed", "mmbench", "scienceqa"), CHOICE)


@dataclass(frozen=True)
class Wording:
    """What a model was asked in addition to the question; stands in `metrics.json` as `protocol`.

    Attributes:
        name: "paper", "llava-1.5", or "own" for other words.
        suffix: What follows the question and its options, on its own line; empty: nothing.
    """

    name: str
    suffix: str

    def ask(self, question: str) -> str:
        """All that a model is asked."""
        if self.name == "llava-1.5":
            question = question.removesuffix(MME_SUFFIX).rstrip()
        return f"{question}\n{self.suffix}" if self.suffix else question

    def stored(self) -> dict[str, Any]:
        """For `metrics.json`."""
        return asdict(self)


def wording(benchmark: str, protocol: ProtocolName, suffix: str | None = None) -> Wording:
    """The words that the options `--protocol` and `--prompt_suffix` ask for.

    Args:
        benchmark: As in the table above.
        protocol: Whose words.
        suffix: Other words than the protocol's.

    Raises:
        InputError: The suffix has nothing but white space in it.
    """
    if suffix is None:
        return Wording(protocol, _LLAVA.get(benchmark, "") if protocol == "llava-1.5" else "")
    if suffix and not suffix.strip():
        raise InputError("--prompt_suffix: expected words, got white space; give '' for none")
    return _named(benchmark, suffix.strip())


def wording_seen(benchmark: str, declared: Wording, asked: Iterable[tuple[str, str | None]]) -> Wording:
    """The words that saved answers say their questions were asked in.

    Args:
        benchmark: As in the table above.
        declared: What holds if they do not say, or not all the same.
        asked: Of each answer, the question with its options, and all that the model was asked.
    """
    ends = {_end(body, said) for body, said in asked}
    end = ends.pop() if len(ends) == 1 else None
    return declared if end is None or end == declared.suffix else _named(benchmark, end)


def _named(benchmark: str, suffix: str) -> Wording:
    known = {_LLAVA.get(benchmark, ""): "llava-1.5", "": "paper"}
    return Wording(known.get(suffix, "own"), suffix)


def _end(body: str, said: str | None) -> str | None:
    """What follows a question."""
    if said is None:
        return None
    words, text = (" ".join(one.replace("<image>", " ").split()) for one in (body, said))
    start = text.casefold().find(words.casefold())
    return None if start < 0 else text[start + len(words) :].strip().removeprefix(MME_SUFFIX).strip()
