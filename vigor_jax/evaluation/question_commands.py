"""Options of the benchmarks of questions and of reference captions, and how answers become figures."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from vigor_jax.errors import InputError
from vigor_jax.evaluation import captions, mmvet, question_files, questions
from vigor_jax.evaluation.bootstrap import bootstrap
from vigor_jax.evaluation.commands import Asks
from vigor_jax.evaluation.judge import Judge
from vigor_jax.evaluation.judge_client import JudgeConfig
from vigor_jax.evaluation.judge_prompt import read_prompt
from vigor_jax.evaluation.judged_commands import judging
from vigor_jax.evaluation.metrics import Metrics
from vigor_jax.evaluation.mmbench import once, read_mmbench
from vigor_jax.evaluation.question_layouts import read_gqa, read_scienceqa, read_scienceqa_llava, read_seed
from vigor_jax.evaluation.questions import Question
from vigor_jax.records import ImageFile

Layout = Literal["seed", "mmbench", "scienceqa", "gqa", "mmvet"]


@dataclasses.dataclass(frozen=True)
class QuestionsCommand:
    """SEED-Bench, MMBench (circular), ScienceQA, GQA and, with a judge, MM-Vet.

    Attributes:
      out: gets `metrics.json`.
      layout: whose file it is.
      questions: that file; of ScienceQA problems.json, or LLaVA's file in JSON lines.
      splits: ScienceQA's pid_splits.json.
      answers: saved answers; or give a model.
      judge: who judges MM-Vet.
      prompt: a file with the words that the judge is asked in, such as the published ones; by default our own.
    """

    out: Path
    layout: Layout
    questions: Path
    splits: Path | None = None
    answers: Path | None = None
    judge: JudgeConfig | None = None
    prompt: Path | None = None

    def metrics(self, asker: Asks | None) -> Metrics:
        """Reads answers, or asks."""
        asked = self._read()
        if asker:
            paths: Mapping[str, ImageFile] | None = None
            if self.layout == "mmbench":  # whose file holds the images
                choices = [question for question in asked if isinstance(question, questions.ChoiceQuestion)]
                paths = question_files.write_images(choices, self.out / "images")
            elif self.layout == "seed":  # whose images' names have no endings
                paths = question_files.find_files(asked, asker.images)
            texts = asker.ask(self.layout, [(question.image or "", question.prompt) for question in asked], paths)
        elif self.answers:
            texts = question_files.read_answers(self.answers, asked)
        else:
            raise InputError("questions: give either --answers, or --model and --images")
        if self.layout == "mmvet":
            return self._judged(asked, texts)
        found = questions.outcomes(asked, texts)
        merged = questions.merge_groups(found)
        metrics = dataclasses.asdict(questions.score(merged))
        metrics["intervals"] = bootstrap(np.array(list(questions.count(merged).values())), questions.rates)
        if self.layout == "mmbench":
            choices = [question for question in asked if isinstance(question, questions.ChoiceQuestion)]
            metrics["once"] = questions.score([found[place] for place in once(choices)]).accuracy
        return metrics

    def _read(self) -> list[Question]:
        if self.layout == "scienceqa":
            if self.questions.suffix == ".jsonl":
                return list(read_scienceqa_llava(self.questions))
            if self.splits is None:
                raise InputError("questions: ScienceQA's problems.json needs --splits, its pid_splits.json")
            return list(read_scienceqa(self.questions, self.splits))
        readers = {"seed": read_seed, "mmbench": read_mmbench, "gqa": read_gqa, "mmvet": mmvet.read_mmvet}
        return list(readers[self.layout](self.questions))  # type: ignore[operator]

    def _judged(self, asked: list[Question], texts: list[str]) -> Metrics:
        if self.judge is None:
            raise InputError("questions: MM-Vet needs a judge, give --judge.model")
        own = [question for question in asked if isinstance(question, questions.OpenQuestion)]
        prompt = read_prompt(self.prompt, mmvet.PLACES) if self.prompt else mmvet.PROMPT
        found = mmvet.score_mmvet(own, texts, Judge(self.judge, self.out / "replies.jsonl"), prompt=prompt)
        counts = mmvet.count(own, [verdict.value for verdict in found.verdicts])
        return {
            "score": found.score,
            "capabilities": found.capabilities,
            "integrations": found.integrations,
            "judged": found.judged,
            "intervals": bootstrap(np.array(list(counts.values())), mmvet.rates),
            "prompt": str(self.prompt or "ours"),
            **judging(self.judge, found.malformed, found.spending),
        }


@dataclasses.dataclass(frozen=True)
class CaptionsCommand:
    """BLEU, ROUGE-L and CIDEr against reference captions, METEOR and SPICE where Java is, and FiSAO's mean of them.

    Attributes:
      out: gets `metrics.json`.
      references: COCO's captions, or {image: [caption, ...]}.
      captions: JSON lines with `image` and `text`; or give a model.
      prompt: what a model is asked for a caption with.
      limit: only so many images, the first by name; 0 takes all.
    """

    out: Path
    references: Path
    captions: Path | None = None
    prompt: str = "Provide a one-sentence caption for the provided image."
    limit: int = 0

    def metrics(self, asker: Asks | None) -> Metrics:
        """Reads captions, or asks for them."""
        references = captions.read_references(self.references)
        if asker:
            images = sorted(references)[: self.limit or None]
            texts = dict(zip(images, asker.ask("captions", [(i, self.prompt) for i in images]), strict=True))
        elif self.captions:
            texts = dict(list(captions.read_captions(self.captions).items())[: self.limit or None])
        else:
            raise InputError("captions: give either --captions, or --model and --images")
        found = captions.score(texts, references)
        names = [field.name for field in dataclasses.fields(found) if field.name not in ("counts", "left_out")]
        return {
            **{name: getattr(found, name) for name in names},
            "left_out": dict(found.left_out),
            "intervals": bootstrap(np.array(list(found.counts.values())), captions.rates),
        }
