"""Options of the benchmarks that another model judges, and how its replies become figures."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vigor_jax.data.images.store import open_images
from vigor_jax.errors import InputError
from vigor_jax.evaluation.answer_matching import Asked, read_answers
from vigor_jax.evaluation.benchmarks import hallusion, mmhal, preference
from vigor_jax.evaluation.benchmarks.hallusion import HallusionQuestion, Outcome
from vigor_jax.evaluation.benchmarks.mmhal_prompt import PLACES, PROMPT
from vigor_jax.evaluation.commands.hallucination import AnswersQuestions
from vigor_jax.evaluation.hallusion_metrics import hallusion_metrics
from vigor_jax.evaluation.image_names import ImageNames
from vigor_jax.evaluation.judge.client import JudgeConfig, JudgeRequest
from vigor_jax.evaluation.judge.judge import Judge, JudgeResult, spending
from vigor_jax.evaluation.judge.prompt import fill, read_prompt, version
from vigor_jax.evaluation.metrics import Metrics, counted
from vigor_jax.evaluation.protocol import Protocol, read_protocol
from vigor_jax.evaluation.saved_captions import read_captions, refuse_double
from vigor_jax.evaluation.wording import as_kept
from vigor_jax.records import ImageFile


@dataclasses.dataclass(frozen=True)
class MmhalCommand:
    """MMHal-Bench: 96 questions, each answer rated from 0 to 6 by a judge.

    Attributes:
      out: gets `metrics.json`, and `replies.jsonl` with all that the judge said.
      questions: the benchmark's file.
      judge: the model that judges.
      answers: saved answers; or give a model.
      protocol: how a model is asked: "paper", or a YAML file (docs/evaluation.md).
      prompt: a file with the words that the judge is asked in, such as the published ones; by default our own.
      system: name of the model, which the judge's replies are kept under.
    """

    out: Path
    questions: Path
    judge: JudgeConfig
    answers: Path | None = None
    protocol: str = "paper"
    prompt: Path | None = None
    system: str = ""

    def metrics(self, model: AnswersQuestions | None) -> Metrics:
        """Reads answers, or asks for them, and has them judged."""
        protocol = read_protocol(self.protocol, "mmhal")
        questions, extra = mmhal.read_questions(self.questions), 0
        if model:
            paths = {question.image_id: _image(model, question.image_id) for question in questions}
            asked = [(q.image_id, protocol.ask(q.question)) for q in questions]
            answers = model.answer("mmhal", asked, paths, protocol=protocol)
            protocol = model.asking(protocol)
        elif self.answers:
            matched = read_answers([self.answers], mmhal.asked(questions))
            answers, extra = matched.texts, len(matched.extra)
            mmhal.refuse_empty(answers, str(self.answers))
            protocol = as_kept(protocol, [self.answers])
        else:
            raise InputError("mmhal: give either --answers, or --model and --images")
        judge = Judge(self.judge, self.out / "replies.jsonl")
        prompt = read_prompt(self.prompt, PLACES) if self.prompt else PROMPT
        found = mmhal.score_mmhal(questions, answers, judge, prompt=prompt, system=self.system)
        counts = mmhal.count(questions, [result.value for result in found.results])
        return {
            "score": found.score,
            "hallucination_rate": found.hallucination_rate,
            "types": found.types,
            "judged": found.judged,
            **counted(counts, mmhal.rates),
            "prompt": str(self.prompt or "ours"),
            "protocol": protocol.used(judge=rule(self.judge, prompt, self.prompt)).stored(),
            **({"extra_answers": extra} if extra else {}),
            **judging(self.judge, found.malformed, found.spending),
        }


@dataclasses.dataclass(frozen=True)
class HallusionCommand:
    """HallusionBench: the same questions about figures, edited figures and none, by a judge or by yes and no.

    Attributes:
      out: gets `metrics.json`, and with a judge `replies.jsonl` with all that it said.
      questions: HallusionBench.json, the benchmark's file.
      results: the same file with a model's answers under `model_prediction`, as the official script takes it; or give
        answers or a model.
      answers: saved answers to the questions, named CATEGORY_SUBCATEGORY_SET_FIGURE_QUESTION or by image and words.
      judge: the model that says which answers are right, GPT-4 in the official script; without one, the first word of
        an answer does.
      protocol: how a model is asked: "paper", or a YAML file (docs/evaluation.md).
      prompt: a file with the words that the judge is asked in, such as the published ones; by default our own.
      system: name of the model, which the judge's replies are kept under.
    """

    out: Path
    questions: Path | None = None
    results: Path | None = None
    answers: tuple[Path, ...] = ()
    judge: JudgeConfig | None = None
    protocol: str = "paper"
    prompt: Path | None = None
    system: str = ""

    def metrics(self, model: AnswersQuestions | None) -> Metrics:
        """Reads answers, or asks for them, and finds which are right."""
        protocol = read_protocol(self.protocol, "hallusion")
        questions, answers, extra = self._answered(model, protocol)
        if self.judge is None:
            outcomes: list[Outcome | None] = [*map(hallusion.read_outcome, questions, answers)]
            told: Metrics = {"read": "first word", "protocol": protocol.used(parser="first-word").stored()}
        else:
            outcomes, told = self._judged(self.judge, questions, answers, protocol)
            questions = [one for one, outcome in zip(questions, outcomes, strict=True) if outcome]
        found = hallusion_metrics(questions, [outcome for outcome in outcomes if outcome])
        return {**found, **told, **({"extra_answers": extra} if extra else {})}

    def _answered(
        self, model: AnswersQuestions | None, protocol: Protocol
    ) -> tuple[list[HallusionQuestion], list[str], int]:
        if model is None and self.results is not None:
            questions = hallusion.read_questions(self.results)
            if lacking := [one.id for one in questions if one.answer is None]:
                raise InputError(
                    f"{self.results}: expected an answer under 'model_prediction' everywhere, {len(lacking)} questions "
                    f"have none, the first is {lacking[0]}"
                )
            return questions, [one.answer or "" for one in questions], 0
        if self.questions is None or (model is None and not self.answers):
            raise InputError("hallusion: give --results, or --questions and either --answers or --model and --images")
        questions = hallusion.read_questions(self.questions)
        if model is None:
            asked = [Asked((one.id,), one.image, one.question) for one in questions]
            matched = read_answers(self.answers, asked)
            return questions, matched.texts, len(matched.extra)
        below = {"/".join(Path(name).parts[-3:]): name for name in model.images}
        paths = {one.image: model.images[below[one.image]] for one in questions if one.image and one.image in below}
        prompts = [(one.image or "", protocol.ask(one.question)) for one in questions]
        texts = model.answer("hallusion", prompts, paths, protocol=protocol)
        return questions, texts, 0

    def _judged(
        self, config: JudgeConfig, questions: Sequence[HallusionQuestion], answers: Sequence[str], protocol: Protocol
    ) -> tuple[list[Outcome | None], Metrics]:
        prompt = read_prompt(self.prompt, hallusion.PLACES) if self.prompt else hallusion.PROMPT
        requests = [
            JudgeRequest("hallusion", one.id, fill(prompt, hallusion.texts(one, answer)), (self.system,))
            for one, answer in zip(questions, answers, strict=True)
        ]
        results = Judge(config, self.out / "replies.jsonl").ask_all(requests, hallusion.parse_reply, desc="hallusion")
        if all(result.value is None for result in results):
            said = results[0].replies[-1].text[:80]
            raise InputError(f"HallusionBench: no reply of {config.model} is a verdict; the first is {said!r}")
        malformed = [result for result in results if result.value is None]
        told = {
            "prompt": str(self.prompt or "ours"),
            "protocol": protocol.used(judge=rule(config, prompt, self.prompt)).stored(),
            **judging(config, malformed, spending(results, config)),
        }
        return [result.value for result in results], told


@dataclasses.dataclass(frozen=True)
class PreferenceCommand:
    """Ranks of several systems' descriptions on seven criteria, by a judge that sees the image (the paper's Table 1).

    Attributes:
      out: gets `metrics.json`, and `replies.jsonl` with all that the judge said.
      captions: a file of saved captions for each system, as `vigor_jax.caption` writes them; its name without the
        ending is the system's.
      images: where the images are: a folder, tar shards or Parquet (docs/images.md).
      judge: the model that judges.
      instruction: what the descriptions were asked for with.
      repeats: how often each image is judged, each time in another order.
      seed: of the orders.
    """

    out: Path
    captions: tuple[Path, ...]
    images: str
    judge: JudgeConfig
    instruction: str = "Describe this image in detail."
    repeats: int = 1
    seed: int = 0

    def metrics(self) -> Metrics:
        """Has saved descriptions ranked."""
        if len({path.stem for path in self.captions}) < len(self.captions):
            raise InputError("--captions: two files have the same name; systems are called by it")
        opened = open_images(self.images)
        names = ImageNames(opened)
        systems = {}
        for path in self.captions:
            saved = read_captions([path], names, "images")
            refuse_double(saved)
            systems[path.stem] = dict(saved.pairs)
        images = {image: opened.file(image) for captions in systems.values() for image in captions}
        found = preference.rank(
            systems,
            images,
            Judge(self.judge, self.out / "replies.jsonl"),
            instruction=self.instruction,
            repeats=self.repeats,
            seed=self.seed,
        )
        return {
            "ranks": {name: {key: value.mean for key, value in own.items()} for name, own in found.ranks.items()},
            "intervals": {
                name: {key: value.interval for key, value in own.items()} for name, own in found.ranks.items()
            },
            "images": found.images,
            "protocol": self._protocol(found.images).stored(),
            "rankings": found.rankings,
            **judging(self.judge, found.malformed, found.spending),
        }

    def _protocol(self, images: int) -> Protocol:
        used = {"number": images}
        judge = rule(self.judge, preference.PROMPT, None)
        return read_protocol("paper", "preference").used(prompt=self.instruction, images=used, judge=judge)


def _image(model: AnswersQuestions, image_id: str) -> ImageFile:
    """The file whose name starts with an image's id."""
    for name in model.images:
        if Path(name).name.startswith(image_id):
            return model.images[name]
    raise InputError(f"mmhal: no file in --images starts with {image_id}; download the benchmark's images")


def rule(config: JudgeConfig, prompt: str, file: Path | None) -> dict[str, str]:
    """What a protocol says of a judge."""
    return {"model": config.model, "prompt": version(prompt, file)}


def judging(config: JudgeConfig, malformed: Sequence[JudgeResult[Any]], spending: Any) -> Metrics:
    """What is to be known of the judge: what it said that could not be read is shown, not guessed."""
    return {
        "judge": {"model": config.model, "base_url": config.base_url, "temperature": config.temperature},
        "malformed": [
            {"question_id": result.request.question_id, "replies": [reply.text for reply in result.replies]}
            for result in malformed
        ],
        "spending": dataclasses.asdict(spending),
    }
