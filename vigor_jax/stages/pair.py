"""Preferences from a run's own loop: `preferences/`, and all of them in `preferences.parquet` (docs/training.md).

Of whole responses (`stages.pair_responses`) or of next sentences (`stages.pair_sentences`). Both go part by part: a run
that was killed continues with the parts that are missing, and ends with the same bytes.
"""

import dataclasses
import functools
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from flax import nnx
from tqdm import tqdm

from vigor_jax import fingerprint
from vigor_jax.data.preferences.write import write_preferences
from vigor_jax.data.records import store
from vigor_jax.errors import InputError, StaleError
from vigor_jax.inference.policy import Policy
from vigor_jax.models.int8 import quantize_decoder
from vigor_jax.parallel.processes import is_first, together
from vigor_jax.records import Preference
from vigor_jax.rewards.stream import RewardStream
from vigor_jax.stages.pair_config import PairConfig
from vigor_jax.stages.pair_records import Pairing, PairSummary, summarize
from vigor_jax.stages.pair_responses import pair_part
from vigor_jax.stages.pair_sentences import Text, grow
from vigor_jax.stages.programs import Cost, Program, Target, Work, bytes_held, for_inference
from vigor_jax.stages.sample import (
    check_images,
    choose_prompt,
    images_of,
    name_images,
    sampling_cost,
    sampling_programs,
)
from vigor_jax.stages.sample_config import SampleConfig
from vigor_jax.stages.score import ScoreStage
from vigor_jax.stages.stage import PREFERENCES, Lazy, Progress, Result, RunContext, Stage

logger = logging.getLogger(__name__)

NAME = "pair"
PARTS, PAIRING, SUMMARY = "preferences", "pairing", "pairs.json"
# Of a sentence in a caption of a large model, about; for the time that a plan says.
TOKENS_A_SENTENCE = 25


class PairStage(Stage):
    """Candidates and their selection, or images → preferences.

    Args:
      config: settings.
      sample: the images, what is asked about them, and how many are in a part.
      score: opens the streams that judge.
    """

    name = NAME

    def __init__(self, config: PairConfig, sample: SampleConfig, score: ScoreStage) -> None:
        self._config, self._sample, self._score = config, sample, score

    @property
    def _of_sentences(self) -> bool:
        return self._config.kind == "sentences"

    def results(self, context: RunContext) -> list[Result]:
        outputs = tuple(store.join(context.records, name) for name in (PAIRING, PARTS, PREFERENCES, SUMMARY))
        if not self._of_sentences:
            return [Result(self.name, self._config.settings(), ("select",), outputs)]
        settings = Lazy(functools.partial(self._settings, context))
        return [Result(self.name, settings, self._score.trained_by, outputs)]

    def _settings(self, context: RunContext) -> dict[str, Any]:
        asked = fingerprint.of(self._sample, "sample")
        asked = {key: value for key, value in asked.items() if not key.startswith("sample.sampling.")}
        return context.model_settings | self._config.settings() | asked | self._score.judge_settings(context)

    def changed(self, context: RunContext) -> str:
        if not self._of_sentences:  # the selections say so
            return ""
        return check_images(images_of(self._sample), context.records, PARTS)

    def run(self, context: RunContext, progress: Progress) -> None:
        if self._of_sentences:
            self._pair_sentences(context, progress)
        else:
            self._pair_responses(context, progress)
        progress.barrier("preferences")
        together(functools.partial(self._finish, context.records) if is_first() else lambda: None)

    def _pair_responses(self, context: RunContext, progress: Progress) -> None:
        records, streams = context.records, tuple(self._score.streams)
        selections = store.join(records, "selections")
        if (count := store.part_count(selections)) is None:
            raise InputError(
                f"pair.kind responses compares candidates by what select says, and there is no {selections}; add "
                "select to run.stages, or give pair.kind sentences"
            )
        store.count_parts(selections)
        done = _parts_done(records, count)
        made_of = [_made_of(records, index, count, streams) for index in range(count)]
        for index, seal in store.inspect_parts(store.join(records, PAIRING)).seals.items():
            if seal.made_of not in ("", made_of[index]):
                what = (
                    f"{store.join(records, PAIRING, seal.part)} was made of other selections than those that are there"
                )
                raise StaleError(what, "put those back")
        progress.begin(self.name)
        for index in range(jax.process_index(), count, jax.process_count()):
            if index not in done:
                found = list(pair_part(self._config, records, index, count, streams))
                pairings = [pairing for pairing, _ in found]
                preferences = [preference for _, some in found for preference in some]
                made_with = progress.mark(self.name)
                _write(records, index, count, pairings, preferences, made_with=made_with, made_of=made_of[index])

    def _pair_sentences(self, context: RunContext, progress: Progress) -> None:
        images, size, records = images_of(self._sample), self._sample.images_per_part, context.records
        count = -(-len(images) // size)
        done = _parts_done(records, count)
        todo = [index for index in range(count) if index not in done]
        if not todo:
            logger.info("pair: all %d parts are there", count)
            return
        judges = self._score.judges(context)
        metadata = {"images": name_images(images), "streams": json.dumps(_digests(judges))}
        before = store.part_metadata(store.join(records, PARTS)).get("streams", metadata["streams"])
        if what := next(fingerprint.differences(json.loads(before), _digests(judges)), None):
            raise StaleError(f"{store.join(records, PARTS)} was judged by {what}", "go back to that stream")
        progress.begin(self.name)
        policy = Policy(
            context.checkpoint,
            context.inference_mesh,
            template=self._sample.template,
            dtype=context.dtype,
            int8=self._sample.int8,
        )
        num_done = sum(min(size, len(images) - index * size) for index in done)
        with tqdm(
            total=len(images), initial=num_done, unit="image", desc="pair", dynamic_ncols=True, disable=not is_first()
        ) as bar:
            for index in todo:
                texts = [
                    Text(name, images.file(name), choose_prompt(self._sample.prompts, self._config.sampling.seed, name))
                    for name in images.names(index * size, (index + 1) * size)
                ]
                grow(self._config, policy, judges, texts, bar.update)
                if index % jax.process_count() == jax.process_index():
                    pairings = [text.pairing() for text in texts]
                    preferences = [preference for text in texts for preference in text.preferences]
                    made_with = progress.mark(self.name)
                    _write(records, index, count, pairings, preferences, metadata, made_with=made_with)
        self._score.release()

    def _finish(self, records: str) -> PairSummary:
        """Writes all that is made of the parts.

        Raises:
          InputError: there is no preference at all.
        """
        folder = store.join(records, PARTS)
        pairings = store.read_parts(store.join(records, PAIRING), Pairing)
        summary = summarize(pairings, store.read_parts(folder, Preference))
        with store.write_atomically(store.join(records, SUMMARY)) as file:
            file.write(json.dumps(dataclasses.asdict(summary), indent=2, ensure_ascii=False).encode() + b"\n")
        print(summary.table())
        if not summary.preferences:
            reasons = ", ".join(f"{number} x {reason}" for reason, number in summary.left_out.items()) or "no images"
            raise InputError(f"pair: none of {summary.images} images gave a pair ({reasons}); {self._advice(summary)}")
        write_preferences(store.join(records, PREFERENCES), store.read_parts(folder, Preference))
        return summary

    def _advice(self, summary: PairSummary) -> str:
        config = self._config
        if config.match_lengths and "lengths" in summary.left_out:
            return "lower pair.match_lengths"
        if self._of_sentences:
            hint = "" if config.wrong == "negative" else ", or pair.wrong negative for streams that never say absent"
            return f"sample more or more varied sentences (pair.sampling.num_candidates, temperature){hint}"
        if config.margin and "margin" in summary.left_out:
            return "lower pair.margin"
        return "sample more candidates (sample.sampling.num_candidates), or give another pair.rejected"

    def programs(self, target: Target) -> Iterator[Program]:
        """Of sentences: the sampler behind the longest text that may be continued, and the streams on the devices."""
        if not self._of_sentences:
            return
        sampling, sizes = self._config.sampling, target.sizes
        abstract = for_inference(target.model, target.dtype, target.inference_mesh, target.adapter)
        if self._sample.int8:
            abstract = quantize_decoder(abstract)
        judges = list(self._score.judging_programs(self.name, target))
        longest = sizes.prompt + (self._config.max_sentences - 1) * sampling.max_new_tokens
        room = target.model.text.max_position_embeddings - sampling.max_new_tokens
        response = max(sizes.response, sampling.max_new_tokens)
        prefix = dataclasses.replace(sizes, prompt=max(sizes.prompt, min(longest, room)), response=response)
        others = sum(judge.held for judge in judges)
        yield from sampling_programs(
            self.name, sampling, abstract, dataclasses.replace(target, sizes=prefix), held_by_others=others
        )
        resident = others + bytes_held(nnx.state(abstract))
        for judge in judges:
            yield dataclasses.replace(judge, held_by_others=judge.held_by_others + resident - judge.held)

    def cost(self, work: Work, programs: Sequence[Cost]) -> tuple[int, float]:
        """A step for each sentence of an answer and the one that finds its end, each as long as the longest."""
        steps = min(self._config.max_sentences, -(-work.answer // TOKENS_A_SENTENCE) + 1)
        judges = [each for each in programs if each.name not in ("prefill", "decode")]
        calls, seconds = sampling_cost(self._config.sampling, work.images, work, programs)
        seconds += sum(-(-work.images // each.rows) * each.seconds for each in judges)
        return steps * calls, steps * seconds


def _write(
    records: str,
    index: int,
    count: int,
    pairings: Sequence[Pairing],
    preferences: Sequence[Preference],
    metadata: Mapping[str, str] | None = None,
    *,
    made_with: str,
    made_of: str = "",
) -> None:
    """A part of both folders; the preferences last, which say that it is complete."""
    folder, seals = store.join(records, PAIRING), {"made_with": made_with}
    store.write_part(folder, index, count, pairings, Pairing, metadata or {}, **seals, made_of=made_of)
    digest = store.part_seal(folder, index, count).digest
    folder = store.join(records, PARTS)
    store.write_part(folder, index, count, preferences, Preference, metadata or {}, **seals, made_of=digest)


def _parts_done(records: str, count: int) -> set[int]:
    return store.parts_done(store.join(records, PARTS), count) & store.parts_done(store.join(records, PAIRING), count)


def _made_of(records: str, index: int, count: int, streams: Sequence[str]) -> str:
    """Names the parts that a part is made of."""
    folders = ["candidates", "selections", *(f"verdicts/{name}" for name in streams)]
    digests = [store.part_seal(store.join(records, folder), index, count).digest for folder in folders]
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def _digests(judges: Mapping[str, RewardStream]) -> dict[str, str]:
    return {name: judge.digest for name, judge in judges.items()}
