"""The options of DetailCaps, and how captions become graphs and CAPTURE's figures."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from vigor_jax.errors import InputError, some
from vigor_jax.evaluation.benchmarks import capture, detailcaps
from vigor_jax.evaluation.benchmarks.capture import Encode, Graph
from vigor_jax.evaluation.benchmarks.claim_graphs import ClaimGraphs
from vigor_jax.evaluation.benchmarks.detailcaps import GraphBuilder
from vigor_jax.evaluation.commands.hallucination import AnswersQuestions
from vigor_jax.evaluation.commands.judged import judging, rule
from vigor_jax.evaluation.image_names import first
from vigor_jax.evaluation.json_records import read_records
from vigor_jax.evaluation.judge.client import JudgeConfig, JudgeRequest
from vigor_jax.evaluation.judge.judge import Judge, spending
from vigor_jax.evaluation.judge.prompt import fill, read_prompt
from vigor_jax.evaluation.metrics import Metrics, counted
from vigor_jax.evaluation.protocol import Protocol, file_version, read_protocol
from vigor_jax.evaluation.saved_captions import read_captions, refuse_double
from vigor_jax.evaluation.wording import as_kept, requested

PROMPT = "Describe this image in detail."
Parser = Literal["file", "judge", "claims"]


@dataclasses.dataclass(frozen=True)
class DetailcapsCommand:
    """DetailCaps with CAPTURE: which objects, attributes and relations of reference captions do captions name?

    Attributes:
      out: gets `metrics.json`, `captions.json` with each caption's figures and graph, `phrases.txt` with all that soft
        matching may need an embedding of, and with a judge `replies.jsonl`.
      references: DetailCaps-4870's Parquet file, JSON lines with its columns, or {image: [caption, ...]}.
      captions: saved captions; or give a model.
      protocol: how a model is asked and captions are read: "paper", or a YAML file (docs/evaluation.md).
      parser: who says what captions name: a "file" of graphs, such as those of the authors' parser; a "judge"; or our
        own "claims". By default a file if one is given, else the judge if there is one, else claims.
      graphs: files of graphs of the captions and the references.
      judge: the model that says what captions name.
      prompt: a file with the words that the judge is asked in; by default our own.
      stop_words: objects that do not count: a word a line, or the authors' stop_words.py; by default all count.
      embeddings: JSON lines with `text` and `embedding` for what neither words nor synonyms match; by default such does
        not match at all.
      limit: only this many images, the first by name; 0 takes all.
    """

    out: Path
    references: Path
    captions: Path | None = None
    protocol: str = "paper"
    parser: Parser | None = None
    graphs: tuple[Path, ...] = ()
    judge: JudgeConfig | None = None
    prompt: Path | None = None
    stop_words: Path | None = None
    embeddings: Path | None = None
    limit: int = 0

    def metrics(self, model: AnswersQuestions | None) -> Metrics:
        """Reads captions, or asks for them, and compares what they name with the references."""
        if (model is None) == (self.captions is None):
            raise InputError("detailcaps: give either --captions, or --model and --images")
        protocol = read_protocol(self.protocol, "detailcaps")
        parser = self.parser or ("file" if self.graphs else "judge" if self.judge else "claims")
        if parser == "judge" and self.judge is None:
            raise InputError("detailcaps: --parser judge needs a judge; give --judge.model, or another --parser")
        if parser == "file" and not self.graphs:
            raise InputError("detailcaps: --parser file needs files of graphs; give --graphs, or another --parser")
        references, names = detailcaps.read_references(self.references)
        extra = 0
        if self.captions:
            saved = read_captions([self.captions], names, "references")
            refuse_double(saved)
            every, extra = dict(saved.pairs), len(saved.extra)
            captions = {image: every[image] for image in first(every, self.limit)}
            protocol = as_kept(protocol, [self.captions])
        else:
            assert model
            protocol = requested(protocol, PROMPT, PROMPT)
            images = first(references, self.limit)
            asked = [(image, protocol.prompt or "") for image in images]
            captions = dict(zip(images, model.answer("captions", asked, protocol=protocol), strict=True))
            protocol = model.asking(protocol)
        captions = {image: protocol.read(text) for image, text in captions.items()}
        wanted = [text for image, text in captions.items() for text in (text, *references[image])]
        found, told, protocol = self._parsed(parser, list(dict.fromkeys(wanted)), protocol)
        known = {image: [found[text] for text in references[image] if text in found] for image in captions}
        scored = {
            image: (found[text], known[image]) for image, text in captions.items() if text in found and known[image]
        }
        if not scored:
            raise InputError("detailcaps: no caption has a graph next to one of a reference; see replies.jsonl")
        means = self._means(scored)
        self._write(captions, scored, means)
        counts = {image: np.array([*row, 1]) for image, row in means.items()}
        figures = {name: float(value) for name, value in capture.rates(np.sum(list(counts.values()), 0)).items()}
        return {
            **figures,
            "captions": len(scored),
            "words": float(np.mean([len(captions[image].split()) for image in scored])),
            "parser": parser,
            "soft_matching": str(self.embeddings) if self.embeddings else None,
            "stop_words": str(self.stop_words) if self.stop_words else None,
            **counted(counts, capture.rates),
            "protocol": self._used(protocol, parser, len(scored)).stored(),
            **({"extra_answers": extra} if extra else {}),
            **told,
        }

    def _used(self, protocol: Protocol, parser: str, images: int) -> Protocol:
        lacking = [
            name for name, file in (("soft matching", self.embeddings), ("stop words", self.stop_words)) if file is None
        ]
        how = (protocol.parser or "file") if parser == "file" else parser
        how += f", without {' and '.join(lacking)}" if lacking else ""
        table = file_version(self.stop_words) if self.stop_words else None
        return protocol.used(parser=how, table=table, images={"number": images})

    def _parsed(
        self, parser: str, texts: Sequence[str], protocol: Protocol
    ) -> tuple[Mapping[str, Graph], Metrics, Protocol]:
        """Caption → its graph; without those of which a judge's reply could not be read."""
        stop_words = detailcaps.read_stop_words(self.stop_words) if self.stop_words else frozenset()
        if parser == "claims":
            own = ClaimGraphs(stop_words)
            return {text: own(text) for text in texts}, {}, protocol
        build = GraphBuilder(stop_words)
        if parser == "file":
            graphs = detailcaps.read_graphs(self.graphs, build)
            if gone := [text for text in texts if text not in graphs]:
                raise InputError(
                    f"{', '.join(map(str, self.graphs))}: expected a graph of each of {len(texts)} captions, "
                    f"{len(gone)} are missing, such as that of {gone[0][:60]!r}"
                )
            return graphs, {}, protocol
        assert self.judge
        prompt = read_prompt(self.prompt, detailcaps.PLACES) if self.prompt else detailcaps.PROMPT
        requests = [
            JudgeRequest("detailcaps", str(number), fill(prompt, {"caption": text}))
            for number, text in enumerate(texts)
        ]
        results = Judge(self.judge, self.out / "replies.jsonl").ask_all(
            requests, detailcaps.parse_reply, desc="detailcaps"
        )
        malformed = [result for result in results if result.value is None]
        found = {
            text: build(text, [result.value])
            for text, result in zip(texts, results, strict=True)
            if result.value is not None
        }
        told = {"prompt": str(self.prompt or "ours"), **judging(self.judge, malformed, spending(results, self.judge))}
        return found, told, protocol.used(judge=rule(self.judge, prompt, self.prompt))

    def _means(self, scored: Mapping[str, tuple[Graph, Sequence[Graph]]]) -> dict[str, np.ndarray]:
        phrases = dict.fromkeys(
            phrase for graph, known in scored.values() for one in (graph, *known) for phrase in capture.phrases(one)
        )
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "phrases.txt").write_text("".join(f"{phrase}\n" for phrase in phrases), "utf-8")
        encode = _encoder(self.embeddings, list(phrases), self.out) if self.embeddings else None
        synonyms = detailcaps.wordnet_synonyms()
        return {image: capture.mean_score(*graphs, synonyms, encode) for image, graphs in scored.items()}

    def _write(
        self,
        captions: Mapping[str, str],
        scored: Mapping[str, tuple[Graph, Sequence[Graph]]],
        means: Mapping[str, np.ndarray],
    ) -> None:
        details = [
            {
                "image": image,
                "text": captions[image],
                **dict(zip(capture.FIGURES, means[image].tolist(), strict=True)),
                "graph": dataclasses.asdict(graph),
            }
            for image, (graph, _) in scored.items()
        ]
        text = json.dumps(details, indent=1, ensure_ascii=False) + "\n"
        (self.out / "captions.json").write_text(text, "utf-8")


def _encoder(path: Path, phrases: Sequence[str], out: Path) -> Encode:
    """Looks embeddings up.

    Raises:
        InputError: The file cannot be read, an embedding is none, or a phrase has none.
    """
    table: dict[str, np.ndarray] = {}
    for place, record in read_records(path, {"text": str, "embedding": list}):
        try:
            vector = np.array(record["embedding"], np.float64)
        except (TypeError, ValueError):
            vector = np.zeros(0)
        length = np.linalg.norm(vector) if vector.ndim == 1 else 0.0
        if not np.isfinite(length) or not length:
            raise InputError(f"{place}: expected numbers that are not all 0 under 'embedding'")
        table[record["text"]] = vector / length
    if gone := [phrase for phrase in phrases if phrase not in table]:
        raise InputError(
            f"{path}: expected an embedding of each of {len(phrases)} phrases, {len(gone)} are missing: "
            f"{some(map(repr, gone), 3)}; all are in {out / 'phrases.txt'}"
        )
    if len({len(table[phrase]) for phrase in phrases}) > 1:
        raise InputError(f"{path}: expected embeddings of one size, got several; make them with one model")
    return lambda texts: np.stack([table[text] for text in texts])
