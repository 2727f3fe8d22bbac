"""Human judgments of descriptions: asks for them in Label Studio, reads them, and says how well people agree.

    python -m vigor_jax.annotate export --run RUN_DIR --images photos/ --out project/ [--push http://localhost:8080]
    python -m vigor_jax.annotate pick --run RUN_DIR --by uncertain --count 250 --out picks.jsonl
    python -m vigor_jax.annotate import --export EXPORT --out annotations.jsonl
    python -m vigor_jax.annotate agreement --judgments annotations.judgments.jsonl [--gold gold.jsonl] [--page FILE]
    python -m vigor_jax.annotate read FILE --out annotations.jsonl [--images photos/]
    python -m vigor_jax.annotate inspect FILE

`export` writes a project that Label Studio imports; with --push it also makes the project in a running server, whose
token is in the environment variable LABEL_STUDIO_API_KEY. `pick` says which descriptions teach most. `import` reads
what people said, from a file of JSON or JSON_MIN or from http://localhost:8080/projects/NUMBER, and writes
annotations.jsonl, which a reward model learns from, and annotations.judgments.jsonl with what each person said.
`agreement` compares these people with each other. `read` makes annotations.jsonl of judgments that others have
published; `inspect` shows what a file of JSON consists of. docs/annotation.md has the rest.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from vigor_jax import cli
from vigor_jax.data.images.store import open_images
from vigor_jax.data.records.annotations import read_annotations, write_annotations
from vigor_jax.data.records.bad_rows import SHOWN, refusal
from vigor_jax.data.records.store import write_atomically
from vigor_jax.errors import InputError, nearest
from vigor_jax.feedback import agreement_text
from vigor_jax.feedback.adjudication import Undecided, adjudicate
from vigor_jax.feedback.agreement import LEAST_ALPHA, LEAST_KAPPA, measure
from vigor_jax.feedback.exports import exported, read_export
from vigor_jax.feedback.form import ATTRIBUTES, check_attributes
from vigor_jax.feedback.judgments import read_judgments, write_judgments
from vigor_jax.feedback.of_run import run_descriptions, scored_descriptions
from vigor_jax.feedback.pick import WAYS, pick, read_picks, write_picks
from vigor_jax.feedback.project import make_project, mixed, write_project
from vigor_jax.feedback.public.layouts import LAYOUTS
from vigor_jax.feedback.public.mapped import FIELDS, read_map
from vigor_jax.feedback.public.parsed import ERRORS, MEANINGS
from vigor_jax.feedback.public.read import read_public
from vigor_jax.feedback.public.structure import inspect
from vigor_jax.feedback.server import is_project, pull, push
from vigor_jax.feedback.tasks import Description


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; see the module's docstring."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    cli.show_progress()
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return
    name, *rest = arguments
    if name not in COMMANDS:
        raise InputError(f"annotate: unknown command {name!r}; {nearest(name, COMMANDS, noun='command', quoted=True)}")
    COMMANDS[name](rest)


def _export(arguments: Sequence[str]) -> None:
    """Writes a project of Label Studio."""
    parser = cli.Parser("annotate export", _export.__doc__)
    parser.add_argument("--run", required=True, metavar="RUN_DIR", help="a run that has sampled descriptions")
    parser.add_argument("--images", required=True, metavar="PLACE", help="what they are of (docs/images.md)")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="gets the project")
    parser.add_argument(
        "--candidates", choices=("all", "chosen"), default="all", help="all, or those that the run selected"
    )
    parser.add_argument("--picks", type=Path, metavar="FILE", help="only these, which annotate pick has written")
    parser.add_argument("--batch", type=int, default=0, help="of the picks: this person's and everybody's; 0 for all")
    parser.add_argument("--limit", type=int, default=0, help="most descriptions, drawn at random; 0 for all")
    parser.add_argument("--seed", type=int, default=0, help="of the random order")
    parser.add_argument("--gold", metavar="FILE", help="annotations.jsonl whose descriptions are mixed in")
    parser.add_argument(
        "--predictions", choices=("none", "verdicts"), default="none",
        help="verdicts: shows what the rewards say, to be corrected; faster, but it biases people",
    )  # fmt: skip
    parser.add_argument(
        "--attributes", type=_words, default=ATTRIBUTES, metavar="A,B", help=f"by default {','.join(ATTRIBUTES)}"
    )
    parser.add_argument(
        "--images_by", choices=("embed", "local", "url"), default="embed",
        help="embed: within the tasks; local: the server reads them from its disk; url: below --images_url",
    )  # fmt: skip
    parser.add_argument("--images_url", default="", metavar="URL", help="where a browser finds the images")
    parser.add_argument("--push", metavar="URL", help="makes the project in this server, or completes it there")
    parser.add_argument("--title", help="of the project in the server; by default the name of --out")
    options = parser.parse_args(arguments)
    if options.limit < 0:
        raise InputError(f"--limit: expected 0 or more, got {options.limit}")
    if (options.images_by == "url") != bool(options.images_url):
        raise InputError("annotate export: --images_by url and --images_url go together; give both, or none")
    check_attributes(options.attributes)
    asked = run_descriptions(
        options.run, chosen=options.candidates == "chosen", verdicts=options.predictions == "verdicts"
    )
    if options.picks:
        asked = _picked(options.picks, options.batch, asked)
    gold = [Description.of(annotation) for annotation in read_annotations(options.gold)] if options.gold else []
    strangers = set(gold) - {each._replace(expected=None) for each in asked}
    if options.predictions == "verdicts" and strangers:
        raise InputError(
            f"--gold: {len(strangers)} descriptions are not candidates of {options.run}, so no verdicts are shown with "
            "them, and people could tell them; give --predictions none"
        )
    descriptions = mixed(asked, gold, limit=options.limit, seed=options.seed)
    if not descriptions:
        raise InputError(f"{options.run}: none of its candidates has a sentence; nothing is to be judged")
    project = make_project(
        descriptions, open_images(options.images),
        attributes=options.attributes, place=options.images_by, url=options.images_url,
    )  # fmt: skip
    write_project(options.out, project)
    sentences = sum(len(each.sentences) for each in descriptions)
    print(f"{options.out}: {len(descriptions)} descriptions, {sentences} sentences; README.md there says how to start")
    if options.push:
        pushed = push(project, options.push, options.title or options.out.resolve().name)
        others = f", {pushed.others} others are there" if pushed.others else ""
        print(f"{pushed.address}: {pushed.added} tasks added, {pushed.updated} updated, {pushed.kept} kept{others}")


def _picked(path: Path, batch: int, asked: Sequence[Description]) -> list[Description]:
    picks = read_picks(path)
    by_text = {(each.image, each.text): each for each in asked}
    if missing := [each for each in picks if (each.image, each.description) not in by_text]:
        raise InputError(
            f"{path}: {len(missing)} of {len(picks)} picks are no candidates of this run, one of {missing[0].image!r} "
            "first; give the run that they were picked from"
        )
    found = [by_text[each.image, each.description] for each in picks if not batch or each.batch in (0, batch)]
    if not found:
        raise InputError(f"--batch: {path} has no picks of batch {batch}; it has {max(each.batch for each in picks)}")
    return found


def _pick(arguments: Sequence[str]) -> None:
    """Says which descriptions to ask people about next."""
    parser = cli.Parser("annotate pick", _pick.__doc__)
    parser.add_argument("--run", required=True, metavar="RUN_DIR", help="a run that has judged its descriptions")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="gets the picks, JSON lines")
    parser.add_argument("--count", required=True, type=int, help="most of them")
    parser.add_argument("--by", choices=WAYS, default="uncertain", help="what teaches most")
    parser.add_argument("--known", action="append", default=[], metavar="FILE", help="annotations.jsonl of before")
    parser.add_argument("--per_image", type=int, default=1, help="most descriptions of one image")
    parser.add_argument("--people", type=int, default=1, help="batches")
    parser.add_argument("--overlap", type=float, default=0.1, help="share that everybody gets, if there are several")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    for name in ("count", "per_image", "people"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name}: expected 1 or more, got {getattr(options, name)}")
    if not 0 <= options.overlap <= 1:
        raise InputError(f"--overlap: expected a share from 0 to 1, got {options.overlap:g}")
    known = [(each.image, each.description) for path in options.known for each in read_annotations(path)]
    scored = scored_descriptions(options.run, verdicts=options.by != "random")
    picks = pick(
        scored, options.by, options.count,
        known=known, per_image=options.per_image, people=options.people, overlap=options.overlap, seed=options.seed,
    )  # fmt: skip
    if not picks:
        raise InputError(f"{options.run}: none of {len(scored)} descriptions is new; nothing is left to pick")
    write_picks(options.out, picks)
    sizes = Counter(each.batch for each in picks)
    told = ", ".join(f"batch {batch}: {sizes[batch]}" for batch in sorted(sizes) if batch)
    print(
        f"{options.out}: {len(picks)} of {len(scored)} descriptions by {options.by}; {told}, for everybody: {sizes[0]}"
    )


def _words(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def _import(arguments: Sequence[str]) -> None:
    """Reads what people said in Label Studio."""
    parser = cli.Parser("annotate import", _import.__doc__)
    parser.add_argument(
        "--export", required=True, metavar="FILE_OR_URL", help="JSON or JSON_MIN, or the address of a project"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="gets the annotations, JSON lines")
    parser.add_argument(
        "--weight", action="append", default=[], type=_weight, metavar="ANNOTATOR=WEIGHT",
        help="of a person's vote, 1 by default and 0 to leave it out; may be given several times",
    )  # fmt: skip
    parser.add_argument("--skip_bad", action="store_true", help="leave out what cannot be used")
    options = parser.parse_args(arguments)
    if options.out.suffix != ".jsonl":
        raise InputError(f"--out: expected a name that ends in .jsonl, got {options.out}; give annotations.jsonl")
    is_pulled = is_project(options.export)
    found = exported(pull(options.export), options.export) if is_pulled else read_export(options.export)
    weights = dict(options.weight)
    people = sorted({judgment.annotator for judgment in found.judgments})
    if strangers := [name for name in weights if name not in people]:
        raise InputError(f"--weight: no judgment is by {strangers[0]!r}; {nearest(strangers[0], people, quoted=True)}")
    if found.bad and not (options.skip_bad and found.judgments):
        fix = "let people correct them, or give --skip_bad to leave them out" if found.judgments else "no other is left"
        raise InputError(refusal(options.export, found.bad, found.total or len(found.bad), fix=fix))
    if not found.judgments:
        told = "; ".join(f"{count} {what}" for what, count in found.left_out.items() if count)
        raise InputError(f"{options.export}: expected judgments, got none ({told or 'it is empty'}); let people judge")
    together = adjudicate(found.judgments, weights)
    judgments = options.out.with_suffix(".judgments.jsonl")
    undecided = options.out.with_suffix(".undecided.jsonl")
    write_judgments(judgments, found.judgments)
    _write_undecided(undecided, together.undecided)
    write_annotations(options.out, together.annotations)
    for row in found.bad[:SHOWN]:
        print(f"left out: {row.label}: {row.reason}")
    if len(found.bad) > SHOWN:
        print(f"left out: {len(found.bad) - SHOWN} more")
    for what, count in found.left_out.items():
        if count:
            print(f"{count} {what}")
    print(f"{judgments}: {len(found.judgments)} judgments by {len(people)} people")
    if together.undecided:
        lost = len({(each.image, each.description) for each in together.undecided if each.is_left_out})
        print(f"{undecided}: {len(together.undecided)} votes decide nothing; {lost} descriptions are left out for it")
    print(f"{options.out}: {len(together.annotations)} descriptions")


def _weight(text: str) -> tuple[str, float]:
    name, _, value = text.rpartition("=")
    try:
        weight = float(value)
    except ValueError:
        weight = -1.0
    if not name or not 0 <= weight < float("inf"):
        raise argparse.ArgumentTypeError(f"expected ANNOTATOR=WEIGHT with a weight of 0 or more, got {text!r}")
    return name, weight


def _write_undecided(path: Path, undecided: Sequence[Undecided]) -> None:
    with write_atomically(path) as file:
        for each in undecided:
            file.write(json.dumps(each._asdict(), ensure_ascii=False).encode() + b"\n")


def _agreement(arguments: Sequence[str]) -> None:
    """Says how well people agree, who should be trained again, and which kinds of error are defined badly."""
    parser = cli.Parser("annotate agreement", _agreement.__doc__)
    parser.add_argument("--judgments", required=True, type=Path, metavar="FILE", help="what import has written")
    parser.add_argument("--gold", metavar="FILE", help="annotations.jsonl of descriptions whose truth is known")
    parser.add_argument("--out", type=Path, metavar="FILE", help="gets all figures, JSON")
    parser.add_argument("--page", type=Path, metavar="FILE", help="gets the tables, HTML")
    parser.add_argument("--least_alpha", type=float, default=LEAST_ALPHA, help="a kind below it is defined badly")
    parser.add_argument("--least_kappa", type=float, default=LEAST_KAPPA, help="a person below it is to be retrained")
    options = parser.parse_args(arguments)
    gold = list(read_annotations(options.gold)) if options.gold else []
    judgments = read_judgments(options.judgments)
    if gold and not {each.key for each in judgments} & {(each.image, each.description) for each in gold}:
        raise InputError(f"--gold: nobody judged any of the {len(gold)} descriptions of {options.gold}")
    found = measure(judgments, gold, least_alpha=options.least_alpha, least_kappa=options.least_kappa)
    if options.out:
        with write_atomically(options.out) as file:
            file.write(json.dumps(agreement_text.record(found), indent=1).encode() + b"\n")
    if options.page:
        with write_atomically(options.page) as file:
            file.write(agreement_text.page(found).encode())
    print(agreement_text.text(found))


def _read(arguments: Sequence[str]) -> None:
    """Reads judgments in a public layout."""
    parser = cli.Parser("annotate read", _read.__doc__)
    parser.add_argument("file", type=Path, metavar="FILE", help="JSON, JSON lines or Parquet, or a folder of these")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="gets the annotations, JSON lines")
    parser.add_argument("--images", metavar="PLACE", help="where the images are; checks that they exist")
    parser.add_argument("--layout", choices=LAYOUTS, help="of the file; by default its keys say it")
    parser.add_argument(
        "--map", action="append", default=[], metavar="FIELD=PATH",
        help=f"where a file of another layout has {', '.join(FIELDS)}; may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--kind", action="append", default=[], type=_meaning, metavar="WORD=MEANING",
        help=f"what a word of the file means: {', '.join(MEANINGS)}; may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--unnamed", choices=ERRORS, default="object", help="the kind of an error of which the file says no kind"
    )
    parser.add_argument("--skip_bad", action="store_true", help="leave out what cannot be used")
    options = parser.parse_args(arguments)
    if options.map and options.layout:
        raise InputError("annotate read: --map describes a layout, and --layout names one; give one of them")
    paths = read_map(options.map) if options.map else {}
    found = read_public(options.file, options.images, options.layout, paths, dict(options.kind), options.unnamed)
    told = [f"{count} {what}" for what, count in found.left_out.most_common()]
    if found.bad and not (options.skip_bad and found.annotations):
        fix = "fix them, or give --skip_bad to leave them out" if found.annotations else "no other row is left"
        raise InputError(refusal(options.file, found.bad, found.total, fix=fix))
    if not found.annotations:
        raise InputError(f"{options.file}: none of {found.total} rows can be used: {'; '.join(told)}")
    write_annotations(options.out, found.annotations)
    sentences = [sentence for annotation in found.annotations for sentence in annotation.sentences]
    wrong = sum(bool(sentence.errors) for sentence in sentences)
    print(f"{options.file}: layout {found.layout}, {found.total} rows")
    for what, count in sorted(found.counts.items()):
        if count:
            print(f"  {what}: {count}")
    for line in told:
        print(f"left out: {line}")
    for row in found.bad[:SHOWN]:
        print(f"left out: {row.label}: {row.reason}")
    if len(found.bad) > SHOWN:
        print(f"left out: {len(found.bad) - SHOWN} more")
    print(f"{options.out}: {len(found.annotations)} descriptions, {len(sentences)} sentences, {wrong} of them wrong")


def _meaning(text: str) -> tuple[str, str]:
    word, equals, meaning = text.rpartition("=")
    if not equals or not word:
        raise argparse.ArgumentTypeError(f"expected WORD=MEANING, got {text!r}")
    return word, meaning


def _inspect(arguments: Sequence[str]) -> None:
    """Shows what a file of JSON consists of, and what each part may be."""
    parser = cli.Parser("annotate inspect", _inspect.__doc__)
    parser.add_argument("file", type=Path, metavar="FILE", help="JSON, JSON lines or Parquet, or a folder of these")
    print(inspect(parser.parse_args(arguments).file))


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "pick": _pick,
    "read": _read,
    "inspect": _inspect,
    "export": _export,
    "import": _import,
    "agreement": _agreement,
}


if __name__ == "__main__":
    cli.run(main)
