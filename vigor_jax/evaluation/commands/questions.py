"""Options of the benchmarks of questions and of reference captions, and how answers become figures."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from vigor_jax.errors import InputError
from vigor_jax.evaluation.answer_matching import read_answers
from vigor_jax.evaluation.benchmarks import captions, mmvet, question_files, questions
from vigor_jax.evaluation.benchmarks.answer_letters import (
    LetterParser,
    parse_letter,
    parse_letter_alone,
    parse_letter_strict,
)
from vigor_jax.evaluation.benchmarks.mmbench import once, read_mmbench
from vigor_jax.evaluation.benchmarks.question_layouts import (
    is_llava_scienceqa,
    read_gqa,
    read_scienceqa,
    read_scienceqa_llava,
    read_seed,
)
from vigor_jax.evaluation.benchmarks.questions import Question
from vigor_jax.evaluation.commands.hallucination import AnswersQuestions, told
from vigor_jax.evaluation.commands.judged import judging
from vigor_jax.evaluation.image_names import first
from vigor_jax.evaluation.judge.client import JudgeConfig
from vigor_jax.evaluation.judge.judge import Judge
from vigor_jax.evaluation.judge.prompt import read_prompt, version
from vigor_jax.evaluation.metrics import Metrics, counted
from vigor_jax.evaluation.protocol import OWN, Protocol, read_protocol
from vigor_jax.evaluation.saved_captions import read_captions, refuse_double
from vigor_jax.evaluation.wording import as_kept, choose, requested, seen
from vigor_jax.records import ImageFile

CAPTION_PROMPT = "Provide a one-sentence caption for the provided image."

Layout = Literal["seed", "mmbench", "scienceqa", "gqa", "mmvet"]


@dataclasses.dataclass(frozen=True)
class QuestionsCommand:
    """SEED-Bench, MMBench (circular), ScienceQA, GQA and, with a judge, MM-Vet.

    Attributes:
      out: gets `metrics.json`.
      layout: whose file it is.
      questions: that file; of ScienceQA problems.json, or LLaVA's llava_test_CQM-A.json.
      splits: ScienceQA's pid_splits.json, which problems.json needs.
      split: which of ScienceQA's splits.
      part: of SEED-Bench "image", "video" (a frame of each) or "all"; of ScienceQA "image", the questions with an
        image, or "all".
      circular: whether MMBench's options are rotated, and an answer counts only if it is right each time.
      answers: saved answers; or give a model.
      protocol: how a model is asked: "llava-1.5" adds its request for a letter or a short answer, "paper" nothing; or
        a YAML file.
      prompt_suffix: other words that follow each question, such as LLaVA's request in Chinese.
      judge: the model that judges MM-Vet.
      prompt: a file with the words that the judge is asked in, such as the published ones; by default our own.
      system: name of the model, which the judge's replies are kept under.
    """

    out: Path
    layout: Layout
    questions: Path
    splits: Path | None = None
    split: str = "test"
    part: Literal["image", "video", "all"] = "image"
    circular: bool = True
    answers: Path | None = None
    protocol: str = "llava-1.5"
    prompt_suffix: str | None = None
    judge: JudgeConfig | None = None
    prompt: Path | None = None
    system: str = ""

    def metrics(self, model: AnswersQuestions | None) -> Metrics:
        """Reads answers, or asks."""
        words = choose(self.layout, self.protocol, self.prompt_suffix)
        asked, extra = self._read(), 0
        if model:
            asked = [questions.worded(question, words) for question in asked]
            paths: Mapping[str, ImageFile] | None = None
            if self.layout == "mmbench":  # whose file holds the images
                choices = [question for question in asked if isinstance(question, questions.ChoiceQuestion)]
                paths = question_files.write_images(choices, self.out / "images")
            elif self.layout == "seed":  # whose images' names have no endings
                paths = question_files.find_files(asked, model.images)
            pairs = [(question.image or "", question.prompt) for question in asked]
            texts = model.answer(self.layout, pairs, paths, protocol=words)
        elif self.answers:
            known = questions.asked(asked)
            matched = read_answers([self.answers], known)
            said = zip(known, matched.answers, strict=True)
            words = seen(words, [(one.body, answer.question) for one, answer in said])
            texts, extra = matched.texts, len(matched.extra)
        else:
            raise InputError("questions: give either --answers, or --model and --images")
        if self.layout == "mmvet":
            found, words = self._judged(asked, texts, words)
        else:
            found = self._compared(asked, texts)
        return {**found, **told(words, extra)}

    def _read(self) -> list[Question]:
        if self.part == "video" and self.layout != "seed":
            raise InputError(f"--part: only seed has videos, got layout {self.layout}")
        if self.part == "all" and self.layout not in ("seed", "scienceqa"):
            raise InputError(f"--part: seed and scienceqa have parts, got layout {self.layout}")
        if self.layout == "scienceqa":
            text_only = self.part == "all"
            if is_llava_scienceqa(self.questions):
                return list(read_scienceqa_llava(self.questions, text_only=text_only))
            if self.splits is None:
                raise InputError("questions: ScienceQA's problems.json needs --splits, its pid_splits.json")
            return list(read_scienceqa(self.questions, self.splits, self.split, text_only=text_only))
        if self.layout == "seed":
            return list(read_seed(self.questions, self.part))
        if self.layout == "mmbench":
            return list(read_mmbench(self.questions, circular=self.circular))
        return list(read_gqa(self.questions) if self.layout == "gqa" else mmvet.read_mmvet(self.questions))

    def _compared(self, asked: list[Question], texts: list[str]) -> Metrics:
        found = questions.outcomes(asked, texts)
        merged = questions.merge_groups(found)
        metrics = self._figures(asked, texts, parse_letter)
        metrics |= counted(questions.count(merged), questions.rates)
        if self.layout != "gqa":  # which has no letters
            strict = parse_letter_alone if self.layout == "seed" else parse_letter_strict
            metrics["strict"] = self._figures(asked, texts, strict)
        return metrics

    def _figures(self, asked: list[Question], texts: list[str], parser: LetterParser) -> Metrics:
        found = questions.outcomes(asked, texts, parser)
        metrics = dataclasses.asdict(questions.compute_metrics(questions.merge_groups(found)))
        if self.layout == "mmbench" and self.circular:
            choices = [question for question in asked if isinstance(question, questions.ChoiceQuestion)]
            metrics["once"] = questions.compute_metrics([found[place] for place in once(choices)]).accuracy
        return metrics

    def _judged(self, asked: list[Question], texts: list[str], words: Protocol) -> tuple[Metrics, Protocol]:
        if self.judge is None:
            raise InputError("questions: MM-Vet needs a judge, give --judge.model")
        own = [question for question in asked if isinstance(question, questions.OpenQuestion)]
        prompt = read_prompt(self.prompt, mmvet.PLACES) if self.prompt else mmvet.PROMPT
        found = mmvet.score_mmvet(
            own, texts, Judge(self.judge, self.out / "replies.jsonl"), prompt=prompt, system=self.system
        )
        counts = mmvet.count(own, [result.value for result in found.results])
        words = words.used(judge={"model": self.judge.model, "prompt": version(prompt, self.prompt)})
        return {
            "score": found.score,
            "capabilities": found.capabilities,
            "integrations": found.integrations,
            "judged": found.judged,
            **counted(counts, mmvet.rates),
            "prompt": str(self.prompt or "ours"),
            **judging(self.judge, found.malformed, found.spending),
        }, words


@dataclasses.dataclass(frozen=True)
class CaptionsCommand:
    """BLEU, ROUGE-L and CIDEr against reference captions, METEOR and SPICE where Java is, and FiSAO's mean of them.

    Attributes:
      out: gets `metrics.json`.
      references: COCO's captions, or {image: [caption, ...]}.
      captions: saved captions, with `image` or `image_id` and `text` or `caption`; or give a model.
      protocol: how a model is asked: "fisao", or a YAML file; by default, "own", as the other options say.
      prompt: what a model is asked for a caption with, where the protocol does not say.
      limit: only this many images, the first by name; 0 takes all.
    """

    out: Path
    references: Path
    captions: Path | None = None
    protocol: str = OWN
    prompt: str = CAPTION_PROMPT
    limit: int = 0

    def metrics(self, model: AnswersQuestions | None) -> Metrics:
        """Reads captions, or asks for them."""
        references, names = captions.read_named_references(self.references)
        protocol, extra = read_protocol(self.protocol, "captions"), 0
        if model:
            images = first(references, self.limit)
            protocol = requested(protocol, self.prompt, CAPTION_PROMPT)
            asked = [(image, protocol.prompt or "") for image in images]
            texts = dict(zip(images, model.answer("captions", asked, protocol=protocol), strict=True))
            protocol = model.asking(protocol)
        elif self.captions:
            saved = read_captions([self.captions], names, "references")
            refuse_double(saved)
            every, extra = dict(saved.pairs), len(saved.extra)
            texts = {image: every[image] for image in first(every, self.limit)}
            protocol = as_kept(protocol, [self.captions])
        else:
            raise InputError("captions: give either --captions, or --model and --images")
        found = captions.compute_metrics({image: protocol.read(text) for image, text in texts.items()}, references)
        protocol = protocol.used(images={"number": len(texts)}, parser=found.tokenizer)
        figures = [field.name for field in dataclasses.fields(found) if field.name not in ("counts", "left_out")]
        return {
            **{name: getattr(found, name) for name in figures},
            "left_out": dict(found.left_out),
            "protocol": protocol.stored(),
            **({"extra_answers": extra} if extra else {}),
            **counted(found.counts, captions.rates),
        }
