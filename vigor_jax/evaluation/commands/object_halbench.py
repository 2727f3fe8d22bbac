"""The options of Object HalBench, and how answers and a judge's lists of objects become figures."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from vigor_jax.errors import InputError
from vigor_jax.evaluation.answer_matching import Asked, read_answers
from vigor_jax.evaluation.benchmarks import chair
from vigor_jax.evaluation.benchmarks import object_halbench as halbench
from vigor_jax.evaluation.benchmarks.object_halbench import CheckedAnswer, HalbenchQuestion, Table
from vigor_jax.evaluation.benchmarks.object_halbench_words import (
    WordReader,
    entities,
    nltk_tagged,
    read_table,
    spacy_tagged,
)
from vigor_jax.evaluation.commands.hallucination import AnswersQuestions
from vigor_jax.evaluation.commands.judged import judging, rule
from vigor_jax.evaluation.halbench_metrics import halbench_metrics
from vigor_jax.evaluation.judge.client import JudgeConfig, JudgeRequest
from vigor_jax.evaluation.judge.judge import Judge, spending
from vigor_jax.evaluation.judge.prompt import fill, read_prompt
from vigor_jax.evaluation.metrics import Metrics
from vigor_jax.evaluation.protocol import Protocol, file_version, read_protocol
from vigor_jax.evaluation.wording import as_kept
from vigor_jax.records import ImageFile

Extraction = Literal["judge", "words", "entities"]
# Of spaCy, which the published scripts read the judge's objects with.
PIPELINE = "en_core_web_trf"
PARSERS = ("judge", "judge-without-negations")


@dataclasses.dataclass(frozen=True)
class ObjectHalbenchCommand:
    """Object HalBench: which objects that detailed descriptions of 300 images mention are not there?

    Attributes:
      out: gets `metrics.json`, `answers.json` with what was found in each answer, and with a judge `replies.jsonl`.
      questions: obj_halbench_300_with_image.jsonl, whose pictures may be in it.
      objects: COCO's instances and captions of the images' splits.
      synonyms: RLHF-V's synonyms_refine.txt, or CHAIR's table.
      answers: saved answers; or give a model.
      protocol: how answers are counted: "rlhf-v", "sentinel", or a YAML file (docs/evaluation.md).
      extraction: who finds the objects of an answer: the "judge", as published; the table's "words" in the text, as the
        script without a judge; or our own list of "entities". By default the judge if there is one, else words.
      judge: the model that lists objects, gpt-3.5-turbo in the script.
      pipeline: spaCy's pipeline that reads the judge's objects, in the script en_core_web_trf; by default NLTK does.
      prompt: a file with the words that the judge is asked in, such as the published ones; by default our own.
      system: name of the model, which the judge's replies are kept under.
    """

    out: Path
    questions: Path
    objects: tuple[Path, ...]
    synonyms: Path
    answers: tuple[Path, ...] = ()
    protocol: str = "rlhf-v"
    extraction: Extraction | None = None
    judge: JudgeConfig | None = None
    pipeline: str | None = None
    prompt: Path | None = None
    system: str = ""

    def metrics(self, model: AnswersQuestions | None) -> Metrics:
        """Reads answers, or asks for them, and finds their objects."""
        protocol = read_protocol(self.protocol, "object-halbench")
        if protocol.parser not in PARSERS:
            raise InputError(
                f"protocol {protocol.name}: expected a parser of {', '.join(PARSERS)}, got {protocol.parser!r}"
            )
        extraction = self.extraction or ("judge" if self.judge else "words")
        if extraction == "judge" and self.judge is None:
            raise InputError(
                "object-halbench: --extraction judge needs a judge; give --judge.model, or another --extraction"
            )
        if self.pipeline and extraction != "judge":
            raise InputError(
                f"object-halbench: --pipeline reads a judge's objects, got --extraction {extraction}; leave it out"
            )
        table = read_table(self.synonyms, all_pairs=protocol.parser == "judge")
        known = chair.read_annotations(self.objects)
        questions = halbench.read_questions(self.questions, known.images)
        answers, extra, protocol = self._answered(model, questions, protocol)
        present = self._present(known, {one.image for one in questions}, table)
        kept = list(zip(questions, answers, strict=True))
        found: Metrics
        if extraction == "judge":
            assert self.judge
            lists, found, protocol = self._judged(self.judge, questions, answers, protocol)
            kept = [pair for pair, objects in zip(kept, lists, strict=True) if objects is not None]
            tagged = spacy_tagged(self.pipeline) if self.pipeline else nltk_tagged()
            named = self.pipeline or "NLTK"
            words = [halbench.nouns(objects, table, tagged) for objects in lists if objects is not None]
        else:
            words, named, found = self._read(extraction, [answer for _, answer in kept], protocol, table), "NLTK", {}
        checked = [
            halbench.check(
                question.image, own, present[question.image], table, len(self._counted(answer, protocol).split(" "))
            )
            for (question, answer), own in zip(kept, words, strict=True)
        ]
        self._write(checked, kept)
        protocol = protocol.used(
            parser=self._parser(extraction, named, protocol),
            table=file_version(self.synonyms),
            images={"number": len({one.image for one in questions})},
        )
        return {
            **halbench_metrics(checked),
            "extraction": extraction,
            "nouns": named,
            "names": str(self.synonyms),
            "protocol": protocol.stored(),
            **({"extra_answers": extra} if extra else {}),
            **found,
        }

    def _parser(self, extraction: str, named: str, protocol: Protocol) -> str | None:
        """How objects were found, in the protocol's words where it was so."""
        if (extraction, named) == ("judge", PIPELINE):
            return protocol.parser
        how = extraction if extraction == "words" else f"{extraction}, nouns by {named}"
        return how if protocol.parser == "judge" else f"{how}, without negations"

    def _answered(
        self, model: AnswersQuestions | None, questions: Sequence[HalbenchQuestion], protocol: Protocol
    ) -> tuple[list[str], int, Protocol]:
        if model:
            asked = [(one.image, protocol.ask(one.question)) for one in questions]
            answers = model.answer("object-halbench", asked, self._pictures(questions, model), protocol=protocol)
            return [halbench.said(answer) for answer in answers], 0, model.asking(protocol)
        if not self.answers:
            raise InputError("object-halbench: give either --answers, or --model and --images")
        matched = read_answers(self.answers, [Asked((one.id,), one.image, one.question) for one in questions])
        return (
            [halbench.said(answer) for answer in matched.texts],
            len(matched.extra),
            as_kept(protocol, self.answers),
        )

    def _pictures(self, questions: Sequence[HalbenchQuestion], model: AnswersQuestions) -> dict[str, ImageFile]:
        """Image → file: those of the questions' file, else of --images."""
        paths: dict[str, ImageFile] = {}
        for one in questions:
            if one.content is not None:
                path = paths[one.image] = self.out / "images" / one.image
                if not path.exists() or path.stat().st_size != len(one.content):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(one.content)
            elif one.image in model.images:
                paths[one.image] = model.images[one.image]
        return paths

    def _present(self, known: chair.Annotations, images: set[str], table: Table) -> dict[str, frozenset[str]]:
        """Image → its objects, by the annotations and by the captions that people wrote."""
        read = WordReader(table)
        present = {}
        for image in images:
            names = known.objects.get(image, ())
            if unknown := [name for name in names if name not in table.names]:
                raise InputError(f"{self.synonyms}: the table has no line for {unknown[0]!r} of image {image}; add it")
            written = (read.objects(caption) for caption in known.captions.get(image, ()))
            present[image] = frozenset({table.names[name] for name in names}.union(*written))
        return present

    def _judged(
        self, config: JudgeConfig, questions: Sequence[HalbenchQuestion], answers: Sequence[str], protocol: Protocol
    ) -> tuple[list[list[str] | None], Metrics, Protocol]:
        """The objects of each answer; None where no reply could be read."""
        prompt = read_prompt(self.prompt, halbench.PLACES) if self.prompt else halbench.PROMPT
        long = [place for place, answer in enumerate(answers) if len(answer.split()) >= halbench.LEAST_WORDS]
        requests = [
            JudgeRequest(
                "object-halbench",
                questions[place].id,
                fill(prompt, {"question": questions[place].question, "answer": answers[place]}),
                (self.system,),
            )
            for place in long
        ]
        results = Judge(config, self.out / "replies.jsonl").ask_all(requests, halbench.parse_objects, desc="objects")
        malformed = [result for result in results if result.value is None]
        if results and len(malformed) == len(results):
            said = results[0].replies[-1].text[:80]
            raise InputError(f"Object HalBench: no reply of {config.model} is a list of objects; the first is {said!r}")
        lists: list[list[str] | None] = [[] for _ in answers]
        for place, result in zip(long, results, strict=True):
            lists[place] = result.value
        told = {"prompt": str(self.prompt or "ours"), **judging(config, malformed, spending(results, config))}
        return lists, told, protocol.used(judge=rule(config, prompt, self.prompt))

    def _read(self, extraction: str, answers: Sequence[str], protocol: Protocol, table: Table) -> list[list[str]]:
        texts = [self._counted(answer, protocol) for answer in answers]
        if extraction == "words":
            read: Callable[[str], list[str]] = WordReader(table)
            return [read(text) for text in texts]
        find, tagged = entities(), nltk_tagged()
        return [halbench.nouns(find(text), table, tagged) for text in texts]

    def _counted(self, answer: str, protocol: Protocol) -> str:
        text = protocol.read(answer)
        return halbench.without_negations(text) if protocol.parser == "judge-without-negations" else text

    def _write(self, checked: Sequence[CheckedAnswer], kept: Sequence[tuple[HalbenchQuestion, str]]) -> None:
        details = [
            {
                "id": question.id,
                "image": question.image,
                "text": answer,
                "words": list(one.words),
                "objects": list(one.objects),
                "hallucinated": list(one.hallucinated),
            }
            for one, (question, answer) in zip(checked, kept, strict=True)
        ]
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "answers.json").write_text(json.dumps(details, indent=1, ensure_ascii=False) + "\n", "utf-8")
