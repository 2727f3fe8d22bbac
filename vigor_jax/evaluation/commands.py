"""The benchmarks' options, and how answers, saved or asked for, become figures."""

import dataclasses
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from vigor_jax.errors import InputError
from vigor_jax.evaluation import chair, mme, pope
from vigor_jax.evaluation.json_records import read_records
from vigor_jax.evaluation.metrics import Metrics, chair_metrics, mme_metrics, pope_metrics
from vigor_jax.evaluation.pope_build import SPLITS, build_questions
from vigor_jax.evaluation.synonyms import Synonyms
from vigor_jax.records import ImageFile


class Asks(Protocol):
    """A model that answers questions, see `vigor_jax.asking.Asker`."""

    @property
    def images(self) -> Mapping[str, ImageFile]:
        """Name → image, of all there are."""

    def ask(
        self, name: str, asked: Sequence[tuple[str, str]], paths: Mapping[str, ImageFile] | None = None
    ) -> list[str]:
        """The answers to questions about images; `name` is of the file that they are kept in."""


@dataclasses.dataclass(frozen=True)
class PopeCommand:
    """POPE: is the model's yes and no to what is there right?

    Attributes:
      out: gets `metrics.json`.
      questions: files of questions, such as the three of the benchmark.
      answers: a file of answers to each file of questions, in the same order; or give a model.
    """

    out: Path
    questions: tuple[Path, ...]
    answers: tuple[Path, ...] = ()

    def metrics(self, asker: Asks | None) -> Metrics:
        """Reads answers, or asks."""
        if asker is None and len(self.answers) != len(self.questions):
            raise InputError(
                f"--answers: expected a file for each of {len(self.questions)} files of questions, in their order, got "
                f"{len(self.answers)}; or give --model and --images"
            )
        splits = {}
        for index, path in enumerate(self.questions):
            questions = pope.read_questions(path)
            if path.stem in splits:
                raise InputError(f"--questions: two files are called {path.stem}; give them different names")
            if asker:
                asked = [(question.image, question.text) for question in questions]
                texts = asker.ask(f"pope-{path.stem}", asked)
            else:
                texts = pope.read_answers(self.answers[index], questions)
            splits[path.stem] = questions, texts
        return pope_metrics(splits)


@dataclasses.dataclass(frozen=True)
class PopeQuestionsCommand:
    """Questions like POPE's for other images, in its three kinds.

    Attributes:
      out: gets `random.json`, `popular.json` and `adversarial.json`.
      objects: what is in the images: JSON {image: [object, ...]}, or COCO's instances; several files add to each other.
      limit: asks about so many images, drawn by the seed (the benchmark: 500); how often objects go together is counted
        over all. 0 asks about all.
      per_image: questions an image, even.
      at_least: asks only about images with so many objects (the benchmark: more than 3).
      seed: of what is chosen at random.
    """

    out: Path
    objects: tuple[Path, ...]
    limit: int = 500
    per_image: int = 6
    at_least: int = 4
    seed: int = 0

    def metrics(self, asker: Asks | None) -> Metrics:
        """Writes the questions; the figures are their numbers."""
        if asker:
            raise InputError("pope-questions asks no model; give its files to `pope --questions`")
        known = chair.read_objects(self.objects).objects
        able = [image for image in sorted(known) if len(known[image]) >= self.at_least]
        chosen = sorted(random.Random(self.seed).sample(able, min(self.limit or len(able), len(able))))
        if not chosen:
            raise InputError(f"--at_least: none of {len(known)} images has {self.at_least} objects; give less")
        self.out.mkdir(parents=True, exist_ok=True)
        found: Metrics = {"images": len(chosen)}
        for split in SPLITS:
            questions = build_questions(
                {image: known[image] for image in chosen},
                split,
                per_image=self.per_image,
                seed=self.seed,
                statistics=known,
            )
            pope.write_questions(self.out / f"{split}.json", questions)
            found[split] = {"questions": len(questions), "yes": sum(q.label == "yes" for q in questions)}
        return found


@dataclasses.dataclass(frozen=True)
class ChairCommand:
    """CHAIR: how much of what captions mention is not there?

    Attributes:
      out: gets `metrics.json`, and `captions.json` with what was found in each caption.
      objects: what is in the images: JSON {image: [object, ...]}, or COCO's instances and captions; several files add
        to each other.
      captions: JSON lines with `image` and `text`; or give a model.
      synonyms: CHAIR's table of names; by default each object's own name and its plural.
      as_published: find what the authors' script finds, which misses "bus" and a few more.
      prompt: what a model is asked for a caption with.
      limit: only so many images, the first by name; 0 takes all.
    """

    out: Path
    objects: tuple[Path, ...]
    captions: Path | None = None
    synonyms: Path | None = None
    as_published: bool = True
    prompt: str = "Describe this image in detail."
    limit: int = 0

    def metrics(self, asker: Asks | None) -> Metrics:
        """Reads captions, or asks for them."""
        if (asker is None) == (self.captions is None):
            raise InputError("chair: give either --captions, or --model and --images")
        synonyms = Synonyms.read(self.synonyms, as_published=self.as_published) if self.synonyms else None
        if self.captions:
            records = [record for _, record in read_records(self.captions, {"image": str, "text": str})]
            captions = [(record["image"], record["text"]) for record in records]
            images = list(dict.fromkeys(image for image, _ in captions))[: self.limit or None]
            reference = chair.read_objects(self.objects, synonyms, images=images)
            captions = [(image, text) for image, text in captions if image in set(images)]
        else:
            assert asker
            reference = chair.read_objects(self.objects, synonyms, images=asker.images)
            images = sorted(reference.objects)[: self.limit or None]
            texts = asker.ask("captions", [(image, self.prompt) for image in images])
            captions = list(zip(images, texts, strict=True))
        judged = [chair.judge(image, text, reference) for image, text in captions]
        details = [
            {
                "image": one.image,
                "text": text,
                "mentions": [mention.object for mention in one.mentions],
                "hallucinated": [m.object for m, absent in zip(one.mentions, one.hallucinated, strict=True) if absent],
            }
            for one, (_, text) in zip(judged, captions, strict=True)
        ]
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "captions.json").write_text(json.dumps(details, indent=1, ensure_ascii=False) + "\n", "utf-8")
        how = "as the authors' script finds them" if self.as_published else "blind spots of the script mended"
        return {
            **chair_metrics(judged),
            "names": f"{self.synonyms}, {how}" if self.synonyms else "the objects' own names",
            "policy": {"limit": self.limit, "prompt": self.prompt if asker else None},
        }


@dataclasses.dataclass(frozen=True)
class MmeCommand:
    """MME: two questions an image, fourteen subtasks.

    Attributes:
      out: gets `metrics.json`, and from a model `results/` as the official script reads it.
      data: the benchmark's folder.
      results: folder of answered questions in the official format; or give a model.
    """

    out: Path
    data: Path | None = None
    results: Path | None = None

    def metrics(self, asker: Asks | None) -> Metrics:
        """Reads results, or asks."""
        if asker is None:
            if self.results is None:
                raise InputError("mme: give either --results, or --data and --model")
            return mme_metrics(mme.read_results(self.results))
        if self.data is None:
            raise InputError("mme: give --data, the benchmark's folder")
        results = {}
        for subtask, questions in mme.read_subtasks(self.data).items():
            paths = {f"{subtask}/{question.image}": question.path for question in questions if question.path}
            texts = asker.ask(f"mme-{subtask}", [(f"{subtask}/{q.image}", q.question) for q in questions], paths)
            results[subtask] = mme.answered(questions, texts)
        mme.write_results(self.out / "results", results)
        return mme_metrics(results)
