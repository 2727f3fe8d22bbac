"""The benchmarks' options, and how answers, saved or asked for, become figures."""

import dataclasses
import itertools
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol as Interface

from vigor_jax.errors import InputError
from vigor_jax.evaluation.answer_matching import read_answers
from vigor_jax.evaluation.benchmarks import chair, mme, pope
from vigor_jax.evaluation.benchmarks.pope_build import SPLITS, build_questions
from vigor_jax.evaluation.metrics import Metrics, mme_metrics, pope_metrics, warn
from vigor_jax.evaluation.protocol import Protocol
from vigor_jax.evaluation.wording import choose, seen
from vigor_jax.records import ImageFile


class AnswersQuestions(Interface):
    """A model that answers questions, see `vigor_jax.evaluation.commands.evaluated_model.EvaluatedModel`."""

    @property
    def images(self) -> Mapping[str, ImageFile]:
        """Name → image, of all there are."""

    def answer(
        self,
        name: str,
        asked: Sequence[tuple[str, str]],
        paths: Mapping[str, ImageFile] | None = None,
        *,
        protocol: Protocol | None = None,
    ) -> list[str]:
        """The answers to questions about images; `name` is of the file that they are kept in."""

    def asking(self, protocol: Protocol) -> Protocol:
        """The protocol with how this model's answers are drawn, where it does not say."""


@dataclasses.dataclass(frozen=True)
class PopeCommand:
    """POPE: is the model's yes and no to what is there right?

    Attributes:
      out: gets `metrics.json`.
      questions: files of questions, such as the three of the benchmark.
      answers: a file of answers to each file of questions, in the same order, or one to all; or give a model.
      protocol: how a model is asked and its answers are read: "paper", the question alone; "llava-1.5", which adds a
        request for a single word; "strict", read as lmms-eval does; "vcd"; or a YAML file (docs/evaluation.md).
      prompt_suffix: other words that follow each question.
    """

    out: Path
    questions: tuple[Path, ...]
    answers: tuple[Path, ...] = ()
    protocol: str = "paper"
    prompt_suffix: str | None = None

    def metrics(self, model: AnswersQuestions | None) -> Metrics:
        """Reads answers, or asks."""
        words = choose("pope", self.protocol, self.prompt_suffix)
        files: dict[str, list[pope.PopeQuestion]] = {}
        if model is None and len(self.answers) not in (1, len(self.questions)):
            raise InputError(
                f"--answers: expected a file for each of {len(self.questions)} files of questions, in their order, or "
                f"one for all, got {len(self.answers)}; or give --model and --images"
            )
        for path in self.questions:
            if path.stem in files:
                raise InputError(f"--questions: two files are called {path.stem}; give them different names")
            files[path.stem] = pope.read_questions(path)
        if model:
            texts = {
                name: model.answer(f"pope-{name}", [(q.image, words.ask(q.text)) for q in questions], protocol=words)
                for name, questions in files.items()
            }
            extra = 0
        else:
            texts, words, extra = self._saved(files, words)
        answered = {name: (questions, texts[name]) for name, questions in files.items()}
        found = pope_metrics(answered, words.parser or "first-sentence")
        return {**found, **told(words, extra), **warn(pope=found)}

    def _saved(
        self, files: Mapping[str, Sequence[pope.PopeQuestion]], words: Protocol
    ) -> tuple[dict[str, list[str]], Protocol, int]:
        asked = [pope.asked(questions, name) for name, questions in files.items()]
        if len(self.answers) == 1:
            matched = [read_answers(self.answers, [one for part in asked for one in part])]
        else:
            matched = [read_answers([path], part) for path, part in zip(self.answers, asked, strict=True)]
        answers = [answer for part in matched for answer in part.answers]
        questions = [one for part in asked for one in part]
        said = [(one.words, answer.question) for one, answer in zip(questions, answers, strict=True)]
        texts = iter(answer.text for answer in answers)
        return (
            {name: list(itertools.islice(texts, len(part))) for name, part in zip(files, asked, strict=True)},
            seen(words, said),
            sum(len(part.extra) for part in matched),
        )


def told(words: Protocol, extra: int) -> Metrics:
    """What is to be known of the questions and answers, in addition to the figures."""
    return {"protocol": words.stored(), **({"extra_answers": extra} if extra else {})}


@dataclasses.dataclass(frozen=True)
class PopeQuestionsCommand:
    """Questions like POPE's for other images, in its three kinds.

    Attributes:
      out: gets `random.json`, `popular.json` and `adversarial.json`.
      objects: what is in the images: JSON {image: [object, ...]}, or COCO's instances; several files add to each other.
      limit: asks about this many images, drawn by the seed (the benchmark: 500); how often objects go together is
        counted over all. 0 asks about all.
      per_image: questions an image, even.
      at_least: asks only about images with this many objects (the benchmark: more than 3).
      seed: of what is chosen at random.
    """

    out: Path
    objects: tuple[Path, ...]
    limit: int = 500
    per_image: int = 6
    at_least: int = 4
    seed: int = 0

    def metrics(self) -> Metrics:
        """Writes the questions; the figures are their numbers."""
        if self.limit < 0:
            raise InputError(f"--limit: expected 0 for all images, or how many, got {self.limit}")
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
class MmeCommand:
    """MME: two questions an image, fourteen subtasks.

    Attributes:
      out: gets `metrics.json`, and from a model `results/` as the official script reads it.
      data: the benchmark's folder.
      results: folder of answered questions in the official format; or give answers or a model.
      answers: files of saved answers to the questions of `data`; subtasks without an answer are left out.
      protocol: how a model is asked: "paper", the question with its "Please answer yes or no."; "llava-1.5", which
        asks for a single word instead; or a YAML file.
      prompt_suffix: other words that follow each question.
    """

    out: Path
    data: Path | None = None
    results: Path | None = None
    answers: tuple[Path, ...] = ()
    protocol: str = "paper"
    prompt_suffix: str | None = None

    def metrics(self, model: AnswersQuestions | None) -> Metrics:
        """Reads results or answers, or asks."""
        words = choose("mme", self.protocol, self.prompt_suffix)
        if model is None and self.results is not None:
            found = mme_metrics(mme.read_results(self.results))
            return {**found, **told(words, 0), **warn(mme=found)}
        if model is None and not self.answers:
            raise InputError("mme: give either --results, or --data and --model, or --data and --answers")
        if self.data is None:
            raise InputError("mme: give --data, the benchmark's folder")
        subtasks = mme.read_subtasks(self.data, with_images=model is not None)
        results, extra = {}, 0
        if model:
            for subtask, questions in subtasks.items():
                paths = {f"{subtask}/{question.image}": question.path for question in questions if question.path}
                asked = [(f"{subtask}/{q.image}", words.ask(q.question)) for q in questions]
                texts = model.answer(f"mme-{subtask}", asked, paths, protocol=words)
                results[subtask] = mme.answered(questions, texts)
            mme.write_results(self.out / "results", results)
        else:
            results, matched = mme.read_answers(self.answers, subtasks)
            own = [question for questions in results.values() for question in questions]
            said = zip(own, matched.answers, strict=True)
            words = seen(words, [(mme.words(one.question), answer.question) for one, answer in said])
            extra = len(matched.extra)
        found = mme_metrics(results)
        return {**found, **told(words, extra), **warn(mme=found)}
