"""Says what a file of preferences holds, and writes it in another form.

    python -m vigor_jax.preferences FILE [--images PLACE] [--form FORM]
    python -m vigor_jax.preferences FILE [--images PLACE] --out preferences.parquet --as own

FILE is JSON, JSON lines or Parquet, or a folder of these, in one of the forms of docs/preferences.md; its keys say
which, or --form does. PLACE is where the images are (docs/images.md), unless they are in the file itself.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from vigor_jax import cli
from vigor_jax.data.preferences.embedded import EmbeddedImage
from vigor_jax.data.preferences.forms import FORMS
from vigor_jax.data.preferences.read import PreferenceRow, Scan, scan_preferences
from vigor_jax.data.preferences.unpack import unpack_images
from vigor_jax.data.preferences.write import WRITERS, Located
from vigor_jax.data.records.bad_rows import SHOWN, refusal
from vigor_jax.errors import InputError
from vigor_jax.percent import percent

_SHOWN_LETTERS = 200  # of an example's text


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; see the module's docstring."""
    parser = cli.Parser("preferences", __doc__)
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--images", metavar="PLACE", help="where the images are (docs/images.md)")
    parser.add_argument("--form", choices=FORMS, help="what the file is; by default its keys say it")
    parser.add_argument("--out", type=Path, metavar="FILE", help="written in the form of --as")
    parser.add_argument("--as", dest="out_form", choices=WRITERS, help="the form of --out")
    parser.add_argument(
        "--images_out", type=Path, metavar="FOLDER",
        help="gets images that are in FILE itself, where the form of --out names images",
    )  # fmt: skip
    parser.add_argument("--skip_bad", action="store_true", help="leave bad rows out of --out")
    options = parser.parse_args(arguments)
    if bool(options.out) != bool(options.out_form):
        raise InputError("preferences: --out and --as go together; give both, or none")
    if options.out:
        _check_out(options.file, options.out, options.out_form)
    cli.show_progress()
    scan = scan_preferences(options.file, options.images, options.form)
    print(describe(options.file, scan))
    if options.out:
        if scan.bad and (not options.skip_bad or not scan.rows):
            fix = "fix them, or give --skip_bad to leave them out" if scan.rows else "no other row is left"
            raise InputError(refusal(options.file, scan.bad, scan.total, fix=fix))
        written = convert(scan, options.out, options.out_form, options.images_out)
        print(
            f"{options.out}: {written} {'preferences' if options.out_form == 'own' else 'pairs'} as {options.out_form}"
        )


def _check_out(file: Path, out: Path, form: str) -> None:
    suffixes = {"own": (".parquet",), "rlaif_v": (".parquet",), "sentinel": (".jsonl",), "trl": (".parquet", ".jsonl")}
    if out.suffix not in suffixes[form]:
        raise InputError(f"--out: expected a name that ends in {' or '.join(suffixes[form])} for {form}, got {out}")
    if out.resolve() == file.resolve():
        raise InputError(f"--out: {out} is the file that is read; choose another name")


def convert(scan: Scan, out: Path, form: str, images_out: Path | None = None) -> int:
    """Writes the rows that can be used in a form.

    Args:
      scan: of a file.
      out: is written.
      form: one of `WRITERS`.
      images_out: gets images that are in the file itself; None to leave them there.

    Returns:
      how many rows were written.

    Raises:
      InputError: the form cannot hold a row, or names images that are in the file itself and have no folder to go to.
    """
    located: Iterator[Located] = ((row.preference, row.image) for row in scan.rows)
    if images_out is not None:
        located = unpack_images(located, images_out)
    elif out.suffix != ".parquet" or form == "own":
        embedded = sum(isinstance(row.image, EmbeddedImage) for row in scan.rows)
        if embedded:
            raise InputError(
                f"--as {form}: {out.name} names images, and {embedded} are in the file that is read; give a folder for "
                "them by --images_out"
            )
    WRITERS[form](out, located)
    return len(scan.rows) if form == "own" else sum(len(row.preference.pairs()) for row in scan.rows)


def describe(file: Path, scan: Scan) -> str:
    """What a file holds, for people."""
    pairs = [(row, pair) for row in scan.rows for pair in row.preference.pairs()]
    lines = [f"{file}: form {scan.form}, {scan.total} rows, {len(scan.rows)} can be used, {len(pairs)} pairs"]
    if scan.skipped:
        lines.append("left out: " + ", ".join(f"{count} {what}" for what, count in sorted(scan.skipped.items())))
    if scan.bad:
        lines.append(f"bad rows: {len(scan.bad)}")
        lines += [f"  {row.label}: {row.reason}" for row in scan.bad[:SHOWN]]
        lines += [f"  and {len(scan.bad) - SHOWN} more"] if len(scan.bad) > SHOWN else []
    if not pairs:
        return "\n".join(lines)
    kinds = Counter(
        "in the file itself" if isinstance(row.image, EmbeddedImage) else "in the image folder" if row.image else "none"
        for row in scan.rows
    )
    lines.append("images: " + ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items())))
    chosen, rejected = ([_words(row, pair[side]) for row, pair in pairs] for side in (0, 1))
    shorter = sum(one < other for one, other in zip(chosen, rejected, strict=True))
    equal = sum(one == other for one, other in zip(chosen, rejected, strict=True))
    lines.append(
        f"words: {sum(chosen) / len(pairs):.1f} chosen, {sum(rejected) / len(pairs):.1f} rejected; the chosen one is "
        f"shorter in {percent(shorter / len(pairs), 1)}% of the pairs, of equal length in "
        f"{percent(equal / len(pairs), 1)}%"
    )
    return "\n".join([*lines, *_example(*pairs[0])])


def _words(row: PreferenceRow, index: int) -> int:
    return len(row.preference.responses[index].split())


def _example(row: PreferenceRow, pair: tuple[int, int]) -> list[str]:
    preference = row.preference
    better, worse = (preference.responses[index] for index in pair)
    told = {
        "image": preference.image,
        "history": " / ".join(preference.history),
        "question": preference.prompt,
        "context": preference.context,
        "chosen": better,
        "rejected": worse,
    }
    return [f"for example {row.label}:", *(f"  {key}: {_shortened(text)}" for key, text in told.items() if text)]


def _shortened(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= _SHOWN_LETTERS else f"{words[:_SHOWN_LETTERS]}..."


if __name__ == "__main__":
    cli.run(main)
