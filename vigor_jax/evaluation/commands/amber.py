"""The options of AMBER, and how answers, saved or asked for, become figures."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from vigor_jax.errors import InputError
from vigor_jax.evaluation.answer_matching import Asked, read_answers
from vigor_jax.evaluation.benchmarks import amber
from vigor_jax.evaluation.benchmarks.amber import AmberImage, AmberQuestion
from vigor_jax.evaluation.benchmarks.amber_files import Amber, read_amber
from vigor_jax.evaluation.benchmarks.amber_nouns import SIMILARITY, NounReader, same_words, similar_words
from vigor_jax.evaluation.commands.hallucination import AnswersQuestions, told
from vigor_jax.evaluation.metrics import Metrics, amber_metrics, warn
from vigor_jax.evaluation.wording import as_kept, choose, seen

Part = Literal["all", "generative", "discriminative", "existence", "attribute", "relation"]


@dataclasses.dataclass(frozen=True)
class AmberCommand:
    """AMBER: what descriptions say that is not there, and yes or no to existence, attributes and relations.

    Attributes:
      out: gets `metrics.json`, and `descriptions.json` with what was found in each description.
      data: the benchmark's folder `data`, with annotations.json.
      part: descriptions, questions, or some of these.
      answers: files of saved answers; or give a model.
      vectors: spaCy's pipeline that says which words are nearly the same, in the authors' script en_core_web_lg; by
        default words are compared as they are, which finds less.
      protocol: the words that a model is asked questions in: "paper", the question alone, or "llava-1.5", which adds a
        request for a single word.
      prompt_suffix: other words that follow each question, not the request for a description.
    """

    out: Path
    data: Path
    part: Part = "all"
    answers: tuple[Path, ...] = ()
    vectors: str | None = None
    protocol: str = "paper"
    prompt_suffix: str | None = None

    def metrics(self, model: AnswersQuestions | None) -> Metrics:
        """Reads answers, or asks."""
        words = choose("amber", self.protocol, self.prompt_suffix)
        if model is None and not self.answers:
            raise InputError("amber: give either --answers, or --model and --images")
        benchmark = self._part(read_amber(self.data))
        images, questions = benchmark.images, benchmark.questions
        extra = 0
        if model:
            described = [(one.image, one.query) for one in images]
            texts = model.answer("amber-descriptions", described, protocol=words) if images else []
            asked = [(one.image, words.ask(one.query)) for one in questions]
            answers = model.answer("amber-questions", asked, protocol=words) if questions else []
            words = model.asking(words) if images else words
        else:
            matched = read_answers(self.answers, [*map(_asked, images), *map(_asked, questions)])
            texts, answers = matched.texts[: len(images)], matched.texts[len(images) :]
            said = zip(questions, matched.answers[len(images) :], strict=True)
            words = as_kept(words, self.answers) if images else words
            words = seen(words, [(one.query, answer.question) for one, answer in said])
            extra = len(matched.extra)
        checked = self._checked(images, texts, benchmark.words) if images else []
        self._write(checked, texts)
        found = amber_metrics(checked, questions, answers)
        compared = f"{self.vectors}, above {SIMILARITY}" if self.vectors else "as they are"
        return {**found, **({"words_compared": compared} if images else {}), **told(words, extra), **warn(amber=found)}

    def _part(self, whole: Amber) -> Amber:
        kinds = amber.TABLES.get("discriminative" if self.part == "all" else self.part, ())
        images = whole.images if self.part in ("all", "generative") else []
        return whole._replace(images=images, questions=[one for one in whole.questions if one.kind in kinds])

    def _checked(
        self, images: Sequence[AmberImage], texts: Sequence[str], words: amber.Words
    ) -> list[amber.CheckedDescription]:
        nouns, similar = NounReader(), similar_words(self.vectors) if self.vectors else same_words
        return [
            amber.check_description(image, text, nouns(text), words, similar)
            for image, text in zip(images, texts, strict=True)
        ]

    def _write(self, checked: Sequence[amber.CheckedDescription], texts: Sequence[str]) -> None:
        if not checked:
            return
        details: list[dict[str, Any]] = [
            {
                "image": one.image,
                "text": text,
                "nouns": one.nouns,
                "hallucinated": [noun for noun, absent in zip(one.nouns, one.hallucinated, strict=True) if absent],
            }
            for one, text in zip(checked, texts, strict=True)
        ]
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "descriptions.json").write_text(json.dumps(details, indent=1, ensure_ascii=False) + "\n", "utf-8")


def _asked(one: AmberImage | AmberQuestion) -> Asked:
    return Asked((str(one.id),), one.image, one.query)
