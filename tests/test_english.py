"""Plain American English in code, help, docs, configs, scripts and tests, as CONTRIBUTING.md asks for."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (
    ".ci", "benchmarks", "configs", "detector_bridge", "docs", "findings", "launch", "scripts", "tests", "vigor_jax",
)  # fmt: skip
# Lists of words and tokenizers have other suffixes.
SUFFIXES = ("", ".cff", ".css", ".html", ".in", ".js", ".md", ".proto", ".py", ".sbatch", ".sh", ".toml", ".yaml")
FILES = sorted(
    path
    for path in (*ROOT.iterdir(), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*")))
    if path.is_file() and path.suffix in SUFFIXES and path != Path(__file__) and not path.name.startswith(".")
)

# Whole words → what to write instead.
INSTEAD = {
    "mend(s|ed|ing)?": "fix",
    "anew": "again",
    "beside": "next to",
    "likewise": "also",
    "struck": "removed, crossed out",
    "dear": "expensive",
    "at hand": "available, present",
    "(go|goes|going|went) on": "continue",
    "so many": "as many, several",
    r"of (its|their) own(?=[.,;:)]|$)": "its own, separate",
    "(behavi|col|endeav|fav|flav|hon|hum|neighb|vap)our[a-z]*": "-or",
    "(un|re)?(cancel|label|level|model|signal|travel)l(ed|er|ing)": "one l",
    "cent(re|res|red|ring)": "center",
    "grey[a-z]*": "gray",
    "(acknowledg|judg)ements?": "-gment",
    "(burn|learn|spel|spoil)t": "-ed",
    "(anal|catal|paral)ys(e|ed|er|es|ing)": "-yze",
    "(analog|catalog)ues?": "-og",
    "licences?": "license",
    "practis(e|ed|es|ing)": "practice",
    "defence|offence": "-ense",
    "amongst|whilst": "among, while",
}
_AVOIDED = {re.compile(rf"\b({pattern})\b", re.IGNORECASE): instead for pattern, instead in INSTEAD.items()}
_ISE = re.compile(r"\b([a-z]+is)(?:e|ed|er|ers|es|ing|ation|ations)\b", re.IGNORECASE)
# These are spelled so in American English, too.
WITH_S = re.compile(
    "(adv|ar|compr|comprom|conc|dev|disgu|exerc|expert|franch|improv|likew|madv|no|otherw|pairw|pract|pra|prec|prem|prom|"
    "ra|rev|r|sunr|superv|surpr|w)is"
)

# File or folder → words of others: captions and what reads them, names of other libraries, old names.
ALLOWED = {
    "CHANGELOG.md": {"normalise"},
    "detector_bridge": {"cancelled"},  # asyncio's
    "vigor_jax/feedback": {"cancelled"},  # Label Studio's
    "tests/feedback": {"cancelled"},
    "tests/evaluation/benchmarks/test_chair.py": {"beside"},
    "tests/plan/test_collectives.py": {"beside"},
    "tests/rewards": {"beside", "colour", "coloured", "grey"},
    "tests/stages/sft_world.py": {"beside"},
    "tests/tiny_tokenizer.py": {"beside"},
    "tests/detector_bridge/test_server.py": {"cancelled"},
    "vigor_jax/rewards": {"beside", "colour", "coloured", "grey"},
}


def mistakes(text: str) -> Iterator[tuple[int, str, str]]:
    """Line, word and advice; names such as `goes_on` and `NormaliseText` are taken apart."""
    for number, line in enumerate(text.splitlines(), 1):
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", line.replace("_", " "))
        for pattern, instead in _AVOIDED.items():
            yield from ((number, found[0], instead) for found in pattern.finditer(words))
        yield from (
            (number, found[0], "-ize") for found in _ISE.finditer(words) if not WITH_S.fullmatch(found[1].lower())
        )


def test_no_avoided_word_and_no_british_spelling() -> None:
    found = []
    for path in FILES:
        name = path.relative_to(ROOT).as_posix()
        allowed = {word for place, words in ALLOWED.items() if f"{name}/".startswith(f"{place}/") for word in words}
        for number, word, instead in mistakes(path.read_text(encoding="utf-8")):
            if word.lower() not in allowed:
                found.append(f"{name}:{number}: {word!r}; write {instead}")
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("def test_it_goes_on_where(self):", ["goes on"]),
        ("It stands beside the table, struck out anew.", ["beside", "struck", "anew"]),
        ("a cache of its own, and the rows of its own part", ["of its own"]),
        ("Colours of unlabelled, normalised grey levels", ["Colours", "unlabelled", "normalised", "grey"]),
        ("class OptimiserState: the neighbour's judgement", ["Optimiser", "neighbour", "judgement"]),
        ("raise noise otherwise; supervised, precise exercises, surprises", []),
        ("hours of labeled color, recommended, besides, ongoing, centered", []),
    ],
)
def test_what_is_found(line: str, words: list[str]) -> None:
    assert sorted(word for _, word, _ in mistakes(line)) == sorted(words)
    assert {number for number, _, _ in mistakes(f"\n{line}\n")} <= {2}


def test_all_is_looked_through() -> None:
    names = {path.relative_to(ROOT).as_posix() for path in FILES}
    assert len(names) > 400
    assert names > {
        "README.md",
        "vigor_jax/cli.py",
        "docs/api.md",
        "configs/sft.yaml",
        "scripts/detector_env.sh",
        ".ci/run",
    }
