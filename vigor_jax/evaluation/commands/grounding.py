"""Options of the evaluation of boxes, in captions and for referring expressions."""

import dataclasses
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from vigor_jax.errors import InputError
from vigor_jax.evaluation.answer_matching import read_answers
from vigor_jax.evaluation.benchmarks import grounding, referring
from vigor_jax.evaluation.benchmarks.referring import PROMPT, Expression
from vigor_jax.evaluation.benchmarks.referring_files import read_expressions
from vigor_jax.evaluation.benchmarks.synonyms import Synonyms
from vigor_jax.evaluation.box_metrics import grounding_metrics, referring_metrics
from vigor_jax.evaluation.box_overlap import Frame
from vigor_jax.evaluation.commands.hallucination import AnswersQuestions
from vigor_jax.evaluation.image_names import ImageNames, first
from vigor_jax.evaluation.metrics import Metrics
from vigor_jax.evaluation.protocol import own
from vigor_jax.evaluation.saved_captions import read_captions
from vigor_jax.evaluation.wording import as_kept
from vigor_jax.records import ImageFile

Parts: TypeAlias = Mapping[str, Sequence[Expression]]


@dataclasses.dataclass(frozen=True)
class GroundingCommand:
    """Are boxes right at an IoU of 0.5: those in captions, or those that a model gives for referring expressions?

    Attributes:
      out: gets `metrics.json`, and `captions.json` or `expressions.json` with every box and its IoU.
      objects: for captions: COCO's instances with the true boxes; several files add to each other.
      captions: saved captions with boxes; or give a model.
      synonyms: CHAIR's table of names; by default each object's own name and its plural.
      caption_prompt: what a model is asked for a caption with.
      limit: only this many images with captions, the first by name; 0 takes all.
      refs: for expressions: files of RefCOCO, RefCOCO+ or RefCOCOg, refs(unc).p and the like, or JSON lines.
      instances: where the boxes of refs(unc).p are; by default instances.json next to it.
      splits: only these, such as val,testA,testB; by default all but train.
      answers: files of saved answers to the expressions; or give a model.
      prompt: what a model is asked for the box of an {expression}.
      boxes: what the boxes of captions and answers are relative to: the "square" that LLaVA-1.5 pads the image to, or
        the "image".
    """

    out: Path
    objects: tuple[Path, ...] = ()
    captions: Path | None = None
    synonyms: Path | None = None
    caption_prompt: str = "Describe this image in detail."
    limit: int = 0
    refs: tuple[Path, ...] = ()
    instances: Path | None = None
    splits: tuple[str, ...] = ()
    answers: tuple[Path, ...] = ()
    prompt: str = PROMPT
    boxes: Frame = "square"

    def metrics(self, model: AnswersQuestions | None) -> Metrics:
        """Reads captions and answers, or asks for them."""
        if bool(self.objects) == bool(self.refs):
            raise InputError(
                "grounding: give either --objects, COCO's instances for the boxes in captions, or --refs, files of "
                f"referring expressions; got {'both' if self.refs else 'neither'}"
            )
        return self._of_captions(model) if self.objects else self._of_expressions(model)

    def _of_captions(self, model: AnswersQuestions | None) -> Metrics:
        if self.answers:
            raise InputError("grounding: --answers are to --refs; give saved captions as --captions")
        if (model is None) == (self.captions is None):
            raise InputError("grounding: give either --captions, or --model and --images")
        synonyms = Synonyms.read(self.synonyms) if self.synonyms else None
        truth = grounding.read_instances(self.objects, synonyms)
        extra, protocol = 0, own("grounding")
        if self.captions:
            saved = read_captions([self.captions], truth.images, "objects")
            extra = len(saved.extra)
            images = set(first((image for image, _ in saved.pairs), self.limit))
            captions = [(image, text) for image, text in saved.pairs if image in images]
            protocol = as_kept(protocol, [self.captions])
        else:
            assert model
            asked = first(truth.sizes, self.limit)
            paths = _files(model, asked)
            protocol = protocol.used(prompt=self.caption_prompt)
            prompts = [(image, self.caption_prompt) for image in asked]
            captions = list(zip(asked, model.answer("captions", prompts, paths, protocol=protocol), strict=True))
            protocol = model.asking(protocol)
        checked = [grounding.check_boxes(image, text, truth, self.boxes) for image, text in captions]
        details = [
            {"image": image, "text": text, "boxes": [_plain(phrase, right=phrase.is_right) for phrase in one.boxed]}
            for one, (image, text) in zip(checked, captions, strict=True)
        ]
        self._write("captions.json", details)
        return {
            **grounding_metrics(checked),
            "policy": {"limit": self.limit, "prompt": self.caption_prompt if model else None, "boxes": self.boxes},
            "protocol": protocol.used(parser=f"boxes of the {self.boxes}", images={"number": len(checked)}).stored(),
            **({"extra_answers": extra} if extra else {}),
        }

    def _of_expressions(self, model: AnswersQuestions | None) -> Metrics:
        if self.captions:
            raise InputError("grounding: --captions are of --objects; give saved answers as --answers")
        if model is None and not self.answers:
            raise InputError("grounding: give either --answers, or --model and --images")
        referring.check_prompt(self.prompt)
        parts = read_expressions(self.refs, self.splits, self.instances)
        texts, extra = self._ask(model, parts) if model else self._saved(parts)
        located = {part: referring.locate(own, texts[part], self.boxes) for part, own in parts.items()}
        details = [
            {
                "part": part,
                "image": each.expression.image,
                "expression": each.expression.words,
                "truth": each.expression.box,
                "box": each.box,
                "iou": round(each.iou, 4),
            }
            for part, own in located.items()
            for each in own
        ]
        self._write("expressions.json", details)
        return {
            **referring_metrics(located),
            "policy": {"prompt": self.prompt if model else None, "boxes": self.boxes},
            "protocol": own("grounding").used(prompt=self.prompt, parser=f"first box of the {self.boxes}").stored(),
            **({"extra_answers": extra} if extra else {}),
        }

    def _ask(self, model: AnswersQuestions, parts: Parts) -> tuple[dict[str, list[str]], int]:
        paths = _files(model, [each.image for own in parts.values() for each in own])
        questions = {
            part: [(each.image, referring.question(each, self.prompt)) for each in own] for part, own in parts.items()
        }
        return {part: model.answer(f"expressions-{part}", asked, paths) for part, asked in questions.items()}, 0

    def _saved(self, parts: Parts) -> tuple[dict[str, list[str]], int]:
        """Each part's answers, and how many there are to nothing that was asked."""
        asked = {part: referring.asked(own, self.prompt) for part, own in parts.items()}
        if len(self.answers) == 1:
            whole = read_answers(self.answers, [one for own in asked.values() for one in own])
            texts = iter(whole.texts)
            return {part: list(itertools.islice(texts, len(own))) for part, own in asked.items()}, len(whole.extra)
        if len(self.answers) != len(parts):
            raise InputError(
                f"--answers: expected one file for all, or one for each of {', '.join(parts)} in this order, got "
                f"{len(self.answers)}"
            )
        matched = [read_answers([path], own) for path, own in zip(self.answers, asked.values(), strict=True)]
        return dict(zip(parts, (each.texts for each in matched), strict=True)), sum(len(each.extra) for each in matched)

    def _write(self, name: str, details: Sequence[Mapping[str, Any]]) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / name).write_text(json.dumps(details, indent=1, ensure_ascii=False) + "\n", "utf-8")


def _files(model: AnswersQuestions, images: Iterable[str]) -> dict[str, ImageFile]:
    """Image → file, whatever the folder calls it; those that it lacks are left out."""
    names = ImageNames(model.images)
    found = {image: names.find(image) for image in images}
    return {image: model.images[own[0]] for image, own in found.items() if len(own) == 1}


def _plain(phrase: grounding.BoxedPhrase, *, right: bool) -> dict[str, Any]:
    return {**dataclasses.asdict(phrase), "iou": round(phrase.iou, 4), "right": right}
