r"""Writes one HTML file about one or several runs, which opens from disk and needs nothing else.

    python -m vigor_jax.report RUN_DIR [RUN_DIR ...] [--out FILE] [--images PLACE] [--limit N] [--objects FILE] \
        [--synonyms FILE]

Whatever a run does not have (an evaluation, a second stream, its own reward model) is left out of the page.
"""

from collections.abc import Sequence
from pathlib import Path

from vigor_jax import cli
from vigor_jax.errors import InputError
from vigor_jax.report.build import LIMIT, build_report
from vigor_jax.report.word_scores import ObjectFiles


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; see the module's docstring."""
    parser = cli.Parser("report", __doc__)
    parser.add_argument("run_dirs", type=Path, nargs="+", metavar="RUN_DIR")
    parser.add_argument("--out", type=Path, help="the page; by default RUN_DIR/report/index.html, of the first run")
    parser.add_argument("--images", help="where they are (docs/images.md); by default as the run's config.yaml says")
    parser.add_argument("--limit", type=int, default=LIMIT, help="most images in the gallery, spread evenly")
    parser.add_argument(
        "--objects", type=Path, action="append", metavar="FILE",
        help="what is in the images of PPO: {image: [object, ...]}, or COCO's instances; may be given several times",
    )  # fmt: skip
    parser.add_argument("--synonyms", type=Path, metavar="FILE", help="CHAIR's table of words for these objects")
    options = parser.parse_args(arguments)
    if options.synonyms and not options.objects:
        raise InputError("report: --synonyms goes with --objects; give the file of objects that they are words for")
    objects = ObjectFiles(tuple(options.objects), options.synonyms) if options.objects else None
    cli.show_progress()
    out = options.out or options.run_dirs[0] / "report" / "index.html"
    print(build_report(options.run_dirs, out, options.images, limit=options.limit, objects=objects))


if __name__ == "__main__":
    cli.run(main)
