"""What the models before and after training are asked: the options."""

import dataclasses
from pathlib import Path

from vigor_jax import fingerprint
from vigor_jax.data.text.conversation import check_template
from vigor_jax.errors import InputError
from vigor_jax.evaluation.answer_sampling import AnswerSampling


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """What the models are asked, and how.

    Attributes:
      images: the images that CHAIR's captions and POPE's questions are about: a folder, tar shards or Parquet
        (docs/images.md).
      objects: what is in each image, which turns CHAIR on: JSON {image: [object, ...]}, or COCO's instances and
        captions; several files add to each other.
      synonyms: CHAIR's table of names; by default the objects' own names and their plurals.
      pope: files of POPE questions.
      mme: MME's folder.
      instances: COCO's instances, which ask whether the boxes in captions are right; of the captions for CHAIR, or of
        captions of these images.
      refs: files of referring expressions, which ask for the box of each: refs(unc).p and the like, with instances.json
        next to it, or JSON lines (docs/evaluation.md).
      prompt: what captions are asked for with.
      template: conversation format; by default `model.template`.
      protocol: how POPE and MME are asked: "paper", "llava-1.5", or another that both have (docs/evaluation.md).
      limit: only this many images for captions, the first by name; 0 takes all that have objects.
      base: whether the model before is asked, too.
      captions: how captions are drawn.
      answers: how answers are.
    """

    images: str | None = None
    objects: tuple[Path, ...] = ()
    synonyms: Path | None = None
    pope: tuple[Path, ...] = ()
    mme: Path | None = None
    instances: tuple[Path, ...] = fingerprint.optional(())
    refs: tuple[Path, ...] = fingerprint.optional(())
    prompt: str = "Describe this image in detail."
    template: str | None = None
    protocol: str = "paper"
    limit: int = 0
    base: bool = True
    captions: AnswerSampling = dataclasses.field(default_factory=AnswerSampling)
    answers: AnswerSampling = dataclasses.field(default_factory=lambda: AnswerSampling(max_new_tokens=16))

    def __post_init__(self) -> None:
        check_template(self.template, "evaluate.template")
        if (self.objects or self.pope or self.instances or self.refs) and self.images is None:
            raise InputError("evaluate.images is not given; name the folder that objects and questions are about")
        if self.limit < 0:
            raise InputError(f"evaluate.limit: expected 0 for all images, or how many, got {self.limit}")
        stems = [path.stem for path in self.pope]
        if again := [stem for stem in stems if stems.count(stem) > 1]:
            raise InputError(f"evaluate.pope: two files are called {again[0]}; give them different names")
