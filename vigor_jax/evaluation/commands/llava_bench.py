"""The options of LLaVA-Bench, and how a judge's scores become figures."""

import dataclasses
from pathlib import Path

import numpy as np

from vigor_jax.errors import InputError
from vigor_jax.evaluation.answer_matching import read_answers
from vigor_jax.evaluation.benchmarks import llava_bench
from vigor_jax.evaluation.commands.hallucination import AnswersQuestions
from vigor_jax.evaluation.commands.judged import judging, rule
from vigor_jax.evaluation.judge.client import JudgeConfig, JudgeRequest
from vigor_jax.evaluation.judge.judge import Judge, spending
from vigor_jax.evaluation.metrics import Metrics, counted
from vigor_jax.evaluation.protocol import file_version, read_protocol
from vigor_jax.evaluation.wording import as_kept


@dataclasses.dataclass(frozen=True)
class LlavaBenchCommand:
    """LLaVA-Bench, in the wild or COCO: each answer is scored next to GPT-4's answer, by a judge.

    Attributes:
      out: gets `metrics.json`, and `replies.jsonl` with all that the judge said.
      questions: questions.jsonl, or qa90_questions.jsonl of COCO.
      context: context.jsonl, or caps_boxes_coco2014_val_80.jsonl of COCO: what the judge is told of the images.
      references: GPT-4's answers: answers_gpt4.jsonl, or qa90_gpt4_answer.jsonl of COCO.
      judge: the model that judges; GPT-4 in the paper.
      answers: saved answers; or give a model.
      protocol: how a model is asked: "paper", or a YAML file (docs/evaluation.md).
      rule: LLaVA's rule.json, which has the published words that the judge is asked in; by default our own.
      system: name of the model, which the judge's replies are kept under.
    """

    out: Path
    questions: Path
    context: Path
    references: Path
    judge: JudgeConfig
    answers: tuple[Path, ...] = ()
    protocol: str = "paper"
    rule: Path | None = None
    system: str = ""

    def metrics(self, model: AnswersQuestions | None) -> Metrics:
        """Reads answers, or asks for them, and has them scored."""
        questions = llava_bench.read_questions(self.questions)
        contexts = llava_bench.read_contexts(self.context, questions)
        rules = llava_bench.read_rules(self.rule) if self.rule else None
        known, extra = llava_bench.asked(questions), 0
        protocol = read_protocol(self.protocol, "llava-bench")
        references = read_answers([self.references], known).texts
        if model:
            prompts = [(one.image, protocol.ask(one.question)) for one in questions]
            answers = model.answer("llava-bench", prompts, protocol=protocol)
            protocol = model.asking(protocol)
        elif self.answers:
            matched = read_answers(self.answers, known)
            answers, extra = matched.texts, len(matched.extra)
            protocol = as_kept(protocol, self.answers)
        else:
            raise InputError("llava-bench: give either --answers, or --model and --images")
        requests = [
            JudgeRequest(
                "llava-bench",
                one.id,
                llava_bench.prompt(one, contexts[one.image], reference, answer, rules),
                (self.system,),
            )
            for one, reference, answer in zip(questions, references, answers, strict=True)
        ]
        judge = Judge(self.judge, self.out / "replies.jsonl")
        results = judge.ask_all(requests, llava_bench.parse_scores, desc="llava-bench")
        scores = [result.value for result in results]
        counts = llava_bench.count(questions, scores)
        if not counts:
            said = results[0].replies[-1].text[:80]
            raise InputError(f"LLaVA-Bench: no reply of {self.judge.model} has two scores; the first is {said!r}")
        total = np.sum(list(counts.values()), axis=0)
        reference, answer, number = total.sum(0)
        malformed = [result for result in results if result.value is None]
        return {
            **{name: float(value) for name, value in llava_bench.rates(total).items()},
            "mean_score": float(answer / number),
            "mean_reference": float(reference / number),
            "words": float(np.mean([len(text.split()) for text in answers])),
            "judged": int(number),
            **counted(counts, llava_bench.rates),
            "prompt": str(self.rule or "ours"),
            "protocol": protocol.used(judge=self._judged()).stored(),
            **({"extra_answers": extra} if extra else {}),
            **judging(self.judge, malformed, spending(results, self.judge)),
        }

    def _judged(self) -> dict[str, str]:
        if self.rule is None:
            return rule(self.judge, llava_bench.PROMPT, None)
        return {"model": self.judge.model, "prompt": f"file-{file_version(self.rule)}"}
