"""Measures a verifier on captions of images whose objects are known, and writes the baselines that its rewards need.

    python -m vigor_jax.verifier --clip.model openai/clip-vit-large-patch14-336 --captions captions.jsonl \\
        --objects instances_val2014.json --images val2014/ --out baselines.json

Captions are those of `python -m vigor_jax.caption`, or of other tools (docs/evaluation.md); objects are COCO's
instances, or {image: [object, ...]}. It prints the mean scores of correct and of hallucinated words (FiSAO, eq. 7), how
well scores tell them apart (AUC), and which words each margin of eq. 8 would reward and punish.
"""

import dataclasses
import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from vigor_jax import cli
from vigor_jax.data.images.store import Images, open_images
from vigor_jax.disk import naming
from vigor_jax.errors import InputError, some
from vigor_jax.evaluation.auc import auc
from vigor_jax.evaluation.benchmarks.chair import Reference, read_annotations
from vigor_jax.evaluation.benchmarks.synonyms import Synonyms
from vigor_jax.evaluation.image_names import ImageNames
from vigor_jax.evaluation.saved_captions import read_captions
from vigor_jax.hf import hub
from vigor_jax.parallel.config import Compiled, DistributedConfig, MeshConfig
from vigor_jax.records import ScoreItem
from vigor_jax.rewards.clip_baselines import Baselines, MarginUnit, make_baselines, shares, thresholds
from vigor_jax.rewards.verifier_config import ClipStreamConfig

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from vigor_jax.rewards.verifier import ClipVerifier, Scored

logger = logging.getLogger(__name__)

# Margins whose shares are printed after those of the config's margin.
MARGINS: tuple[tuple[float, MarginUnit], ...] = (
    (5, "absolute"), (10, "absolute"), (20, "absolute"),
    (0.5, "std"), (1, "std"),
    (0.5, "quantile"), (0.75, "quantile"),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class VerifierCommand:
    """Options of the command.

    Attributes:
      captions: JSON lines with `image` and `text`, or another layout that is known; several of an image allowed.
      objects: what is in the images: COCO's instances, or {image: [object, ...]}; several files add to each other.
      images: where the images are (docs/images.md).
      out: the baselines, JSON.
      clip: the verifier, as in a run's config; all of it but the margin decides on the baselines.
      synonyms: CHAIR's table of words for objects; by default each object is called by its name.
      mesh: how the devices are arranged.
      distributed: how processes find each other.
      compiled: where compiled programs are kept for the next command: a folder, by default in the user's cache
        (docs/performance.md); off: nowhere.
    """

    captions: tuple[Path, ...]
    objects: tuple[Path, ...]
    images: str
    out: Path
    clip: ClipStreamConfig = dataclasses.field(default_factory=ClipStreamConfig)
    synonyms: Path | None = None
    mesh: MeshConfig = dataclasses.field(default_factory=lambda: MeshConfig(data=-1, fsdp=1))
    distributed: DistributedConfig = dataclasses.field(default_factory=DistributedConfig)
    compiled: Compiled = None


class Word(NamedTuple):
    """A mention of an object whose presence is known.

    Attributes:
      cosine: of the word, or of the sentence or caption that was scored in its place.
      caption: cosine of its whole caption.
      is_wrong: whether the object is not in the image.
    """

    cosine: float
    caption: float
    is_wrong: bool


class Measured(NamedTuple):
    """What a verifier makes of captions.

    Attributes:
      baselines: for its rewards.
      responses: the mentions in each caption.
      unknown: how many words are none of the annotated objects.
    """

    baselines: Baselines
    responses: Sequence[Sequence[Word]]
    unknown: int

    def auc(self, score: Literal["cosine", "caption"]) -> float | None:
        """How often a score is higher for a correct mention than for a hallucinated one; None without either."""
        words = [word for own in self.responses for word in own]
        is_right = np.array([not word.is_wrong for word in words])
        return auc(np.array([getattr(word, score) for word in words]), is_right)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; see the module's docstring."""
    cli.show_progress()
    command = cli.parse(VerifierCommand, arguments, description=__doc__ or "")
    from vigor_jax.parallel.compilation_cache import keep_compiled  # JAX, which --help need not wait for
    from vigor_jax.parallel.processes import is_first
    from vigor_jax.parallel.sharding import join_processes

    join_processes(command.distributed)
    keep_compiled(command.compiled)
    report = run(command)
    if is_first():
        print(report)


def run(command: VerifierCommand) -> str:
    """Scores the captions, writes the baselines, and returns the figures for people.

    Raises:
      InputError: as `measure`, or `out` is no place for a file.
    """
    from vigor_jax.parallel.processes import is_first, together
    from vigor_jax.parallel.sharding import make_mesh

    together(lambda: _check_out(command.out) if is_first() else None)  # now rather than after hours
    mesh = make_mesh(command.mesh)
    found = measure(command.captions, command.objects, command.images, command.clip, mesh, synonyms=command.synonyms)
    if is_first():
        with naming(command.out):
            found.baselines.write(command.out)
    return describe(found, command.clip)


def _check_out(out: Path) -> None:
    """Makes the folder of a file that is to be written."""
    if out.is_dir():
        raise InputError(f"verifier: --out {out} is a directory; name a file in it, such as {out / 'baselines.json'}")
    with naming(out):
        out.parent.mkdir(parents=True, exist_ok=True)


def measure(
    captions: Sequence[Path],
    objects: Sequence[Path],
    images: str,
    config: ClipStreamConfig,
    mesh: "Mesh",
    *,
    synonyms: Path | None = None,
) -> Measured:
    """Scores captions; all but the mesh is as in `VerifierCommand`.

    Raises:
      InputError: a file cannot be used, an image is missing, no word is known, or no word is correct or hallucinated.
    """
    if config.model is None:
        raise InputError("--clip.model is not given; name a CLIP, such as openai/clip-vit-large-patch14-336")
    table = Synonyms.read(synonyms) if synonyms else None
    annotations = read_annotations(objects, table)
    said = read_captions(captions, annotations.images, "objects")
    reference = annotations.reference(table, images={image for image, _ in said.pairs})
    from vigor_jax.hf.clip.checkpoint import open_clip
    from vigor_jax.rewards.verifier import ClipVerifier

    items = list(_items(said.pairs, open_images(images)))
    checkpoint = open_clip(config.model)
    verifier = ClipVerifier(checkpoint, config, mesh)
    responses, unknown = _responses(items, verifier, config, reference)
    for per in dict.fromkeys(("caption", config.per)):
        verifier.tell_cut(per)
    if not any(responses):
        raise InputError(
            f"verifier: of the object words of {len(responses)} captions none is an object of "
            f"{some(map(str, objects), 3)}; give --clip.entities and --synonyms that go with these objects"
        )
    made_of = verifier.made_of | {
        "model": checkpoint.origin if hub.is_snapshot(checkpoint.directory) else checkpoint.directory.name,
        "captions": _digest(captions),
        "objects": _digest(objects),
        "images": len(items),
        "captions_read": len(responses),
    }
    baselines = make_baselines([[(word.cosine, word.is_wrong) for word in own] for own in responses], made_of)
    return Measured(baselines, responses, unknown)


def _items(pairs: Iterable[tuple[str, str]], images: Images) -> Iterator[ScoreItem]:
    """The captions of each image together.

    Raises:
      InputError: an image is missing.
    """
    texts: dict[str, list[str]] = {}
    for image, text in pairs:
        texts.setdefault(image, []).append(text)
    names = ImageNames(images)
    found = {image: names.find(image) for image in texts}
    if missing := [image for image, own in found.items() if len(own) != 1]:
        raise InputError(
            f"images: {images.place} lacks {len(missing)} of {len(texts)} images that have captions, {missing[0]!r} "
            "first; give the folder that the captions are of"
        )
    for image, own in texts.items():
        yield ScoreItem(image, images.file(found[image][0]), "", tuple(own))


def _responses(
    items: Sequence[ScoreItem], verifier: "ClipVerifier", config: ClipStreamConfig, reference: Reference
) -> tuple[list[list[Word]], int]:
    """The known words of each caption; and how many words are none of the annotated objects."""
    responses, unknown = [], 0
    passes = (verifier.score(items, per) for per in dict.fromkeys(("word", "caption", config.per)))
    for item, *found in zip(tqdm(items, desc="verifier", unit="image", dynamic_ncols=True), *passes, strict=True):
        present = reference.objects[item.image]
        for words, whole, own in zip(found[0], found[1], found[-1], strict=True):
            known = []
            for word in words:
                name = reference.synonyms.canonical(word.label) or reference.synonyms.canonical(word.category)
                if name is None:
                    unknown += len(word.spans)
                    continue
                known += [
                    (span.start, Word(_cosine(span.start, word, own, config), whole[0].cosine, name not in present))
                    for span in word.spans
                ]
            responses.append([word for _, word in sorted(known, key=lambda each: each[0])])
    return responses, unknown


def _cosine(place: int, word: "Scored", own: Sequence["Scored"], config: ClipStreamConfig) -> float:
    """A word's own cosine, or that of the sentence or caption that it stands in."""
    if config.per == "word":
        return word.cosine
    return next(each.cosine for each in own if any(span.start <= place < span.end for span in each.spans))


def _digest(paths: Iterable[Path]) -> str:
    return hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in paths)).hexdigest()


def describe(found: Measured, config: ClipStreamConfig) -> str:
    """The figures for people."""
    baselines, responses, unknown = found
    right, wrong, scale = baselines.correct, baselines.hallucinated, config.scale
    words = [word for own in responses for word in own]
    left_out = f"; {unknown:,} more are none of the objects that are known" if unknown else ""
    lines = [
        f"{len(words):,} mentions of objects in {len(responses):,} captions: {right.words:,} correct, {wrong.words:,} "
        f"hallucinated{left_out}",
        f"mu_c {scale * right.mean:.2f}, mu_h {scale * wrong.mean:.2f}; standard deviations {scale * right.std:.2f} "
        f"and {scale * wrong.std:.2f}; scores from {scale * baselines.lowest:.2f} to {scale * baselines.highest:.2f}",
        f"AUC of correct against hallucinated mentions: {found.auc('cosine'):.3f} by the score of the "
        f"{config.per}, {found.auc('caption'):.3f} by that of the whole caption",
        "what a margin would do:",
        f"  {'':16} {'rewarded from':>13} {'correct':>8} {'wrong':>6}  {'punished to':>11} {'correct':>8} {'wrong':>6}",
    ]
    own = (config.margin, config.margin_unit)
    for margin, unit in dict.fromkeys((own, *MARGINS)):
        label = f"{unit} {margin:g}" + (" *" if (margin, unit) == own else "")
        try:
            limits = thresholds(baselines, scale, margin, unit, config.margin_sign if (margin, unit) == own else "+")
        except InputError:
            lines.append(f"  {label:16} rewards and punishes the same scores")
            continue
        given = shares(baselines, limits, scale)
        lines.append(
            f"  {label:16} {limits.reward:13.2f} {given.correct_rewarded:8.1%} {given.hallucinated_rewarded:6.1%}  "
            f"{limits.punish:11.2f} {given.correct_punished:8.1%} {given.hallucinated_punished:6.1%}"
        )
    lines.append("  * --clip.margin and --clip.margin_unit as given")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main)
