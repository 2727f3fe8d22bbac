"""Lets reward streams judge candidates: `candidates/` in, `verdicts/STREAM/` out (ViGoR, sections 3.2 and 3.3)."""

import functools
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from vigor_jax import fingerprint
from vigor_jax.data.records.store import (
    join,
    part_count,
    parts_done,
)
from vigor_jax.errors import InputError
from vigor_jax.rewards.claims.clip_attributes import ClipAttributeStream
from vigor_jax.rewards.claims.crops import ClipAttributesConfig
from vigor_jax.rewards.claims.stream import ClaimReader, ClaimsConfig, ClaimStream
from vigor_jax.rewards.clip import ClipStream
from vigor_jax.rewards.detection import DetectorStream
from vigor_jax.rewards.detector_config import DetectionConfig
from vigor_jax.rewards.preference_reward import PreferenceReward
from vigor_jax.rewards.preference_reward_config import PreferenceRewardStreamConfig
from vigor_jax.rewards.reward_model import RewardModel
from vigor_jax.rewards.reward_model_config import RewardModelConfig
from vigor_jax.rewards.stream import RewardStream
from vigor_jax.rewards.verifier_config import ClipStreamConfig
from vigor_jax.stages.clip_attributes_stream import CROPS_PER_IMAGE, ClipAttributesJudge
from vigor_jax.stages.clip_attributes_stream import PROGRAM as CROPS
from vigor_jax.stages.clip_stream import ClipJudge
from vigor_jax.stages.judging import check_digest, score, scoring_ahead, when_all
from vigor_jax.stages.preference_reward_stream import PreferenceRewardJudge
from vigor_jax.stages.programs import Cost, Program, Target, Work
from vigor_jax.stages.reward_model_stream import RewardModelJudge
from vigor_jax.stages.score_config import ScoreConfig, StreamConfig, as_config
from vigor_jax.stages.stage import Lazy, OnPart, Progress, Result, RunContext, Stage
from vigor_jax.stages.streams import in_order, make_stream, needs, stream_class, uses_devices

logger = logging.getLogger(__name__)

# Seconds that a detector has to say which one it is, where nothing else is wanted from it.
GREETING_TIMEOUT = 10.0


class ScoreStage(Stage):
    """Candidates → verdicts of every stream, a result each.

    Args:
      config: which streams judge.
      detection: the detector, if it does.
      reward_model: how the reward model judges, if it does.
      images: where the images are.
      clip: the verifier, if it does.
      claims: what is read in captions and judged by the detector's boxes, if it is.
      clip_attributes: the CLIP that judges attributes, if it does.
      preference_reward: the reward model of preferences, if it judges.
    """

    name = "score"

    def __init__(
        self,
        config: ScoreConfig,
        detection: DetectionConfig,
        reward_model: RewardModelConfig,
        images: str | None,
        clip: ClipStreamConfig | None = None,
        claims: ClaimsConfig | None = None,
        clip_attributes: ClipAttributesConfig | None = None,
        preference_reward: PreferenceRewardStreamConfig | None = None,
    ) -> None:
        self._clip, self._claims = ClipJudge(clip or ClipStreamConfig()), claims or ClaimsConfig()
        self._crops = ClipAttributesJudge(clip_attributes or ClipAttributesConfig(), self._claims, detection.phrases)
        self._reward_model = RewardModelJudge(reward_model, config.reward_model)
        self._preference_reward = PreferenceRewardJudge(preference_reward or PreferenceRewardStreamConfig())
        self._config, self._detection, self._images = config, detection, images
        given = [as_config(stream) for stream in config.streams]
        self._streams = in_order(given)
        self.streams = {stream_class(each).name: result_name(each) for each in given}
        self._open_streams: dict[str, RewardStream] = {}
        self._opened = ExitStack()
        self._reader: ClaimReader | None = None

    @property
    def has_reward_model(self) -> bool:
        """Whether our reward model judges."""
        return self._has(RewardModel.name)

    @property
    def has_preference_reward(self) -> bool:
        """Whether our reward model of preferences judges."""
        return self._has(PreferenceReward.name)

    @property
    def trained_by(self) -> tuple[str, ...]:
        """The stages of this run that train what judges."""
        return tuple(stage for stream in self._streams.values() for stage in self._trained_by(stream))

    def _has(self, name: str) -> bool:
        return any(stream.path == name for stream in self._streams.values())

    def _trained_by(self, stream: StreamConfig) -> tuple[str, ...]:
        if stream.path == RewardModel.name and self._config.reward_model is None:
            return ("train_reward",)
        if stream.path == PreferenceReward.name and self._preference_reward.is_own:
            return ("train_preference_reward",)
        return ()

    def results(self, context: RunContext) -> list[Result]:
        found = []
        for name, stream in self._streams.items():
            read = (self.streams[needed] for needed in needs(stream_class(stream)))
            after = ("sample", *self._trained_by(stream), *read)
            folder = join(context.records, "verdicts", name)
            settings = Lazy(functools.partial(self._settings, stream, context))
            found.append(Result(result_name(stream), settings, after, (folder,)))
        return found

    def run(self, context: RunContext, progress: Progress) -> None:
        for name, stream in self._streams.items():
            if self._is_scored(name, context):
                self._greet(name, context, progress)
                logger.info("score: all verdicts of %s are there", name)
            else:
                score(
                    self._stream(name, context, progress),
                    context.records,
                    self._image_place(),
                    together=uses_devices(stream_class(stream)),
                    made_with=progress.mark(result_name(stream)),
                    needs=needs(stream_class(stream)),
                    **context.share,
                )
            # Another stream may need all the verdicts. Also where there was nothing to do: others may have had some.
            progress.barrier(f"score, {name}")
        self.release()

    def judges(self, context: RunContext) -> dict[str, RewardStream]:
        """The streams by name, opened, in the order in which they judge: for a stage that scores what it samples.

        They stay open until `release`.
        """
        for name, stream in self._streams.items():
            if name not in self._open_streams:
                self._open_streams[name] = self._open(stream, context)
        return self._open_streams

    def release(self) -> None:
        """Frees the streams: the sidecar's memory is wanted elsewhere."""
        self._open_streams.clear()
        self._reader = None
        self.close()

    def judge_settings(self, context: RunContext) -> dict[str, Any]:
        """All that decides on what the streams say, as far as it is known before they are open."""
        found: dict[str, Any] = {"score.streams": list(self.streams)}
        for stream in self._streams.values():
            found |= self._settings(stream, context)
            if isinstance(digest := getattr(stream_class(stream), "digest", None), str):
                found[f"score.streams.{stream.path}.digest"] = digest
        return found

    @contextmanager
    def ahead(self, context: RunContext, progress: Progress) -> Iterator[OnPart]:
        """Lets the streams that need no accelerator judge parts of candidates while others are sampled.

        A stream that needs others is told of a part when these have judged it.

        Yields what takes (index, count) of a complete part.
        """
        ahead: dict[str, list[OnPart]] = {}  # whom each of them tells of its parts
        for name, stream in self._streams.items():
            found = stream_class(stream)
            if not (uses_devices(found) or self._is_scored(name, context)) and ahead.keys() >= set(needs(found)):
                ahead[name] = []
        with ExitStack() as judging:
            first: list[OnPart] = []
            for name in reversed(ahead):  # so that those who are told are left last
                needed = needs(stream_class(self._streams[name]))
                opened, made_with = self._stream(name, context, progress), progress.mark(self.streams[name])
                begun = scoring_ahead(
                    opened,
                    context.records,
                    self._image_place(),
                    made_with=made_with,
                    needs=needed,
                    then=ahead[name],
                    **context.share,
                )
                follow = judging.enter_context(begun)
                tell = when_all(len(needed), follow)
                for each in needed:
                    ahead[each].append(tell)
                first += [] if needed else [follow]

            def on_part(index: int, count: int) -> None:
                for follow in first:
                    follow(index, count)

            yield on_part

    def close(self) -> None:
        self._opened.close()

    def programs(self, target: Target) -> Iterator[Program]:
        return self.judging_programs(self.name, target)

    def judging_programs(self, stage: str, target: Target) -> Iterator[Program]:
        """What our streams on the devices compile, for whichever stage judges with them."""
        if self.has_reward_model:
            yield self._reward_model.program(stage, target)
        if self.has_preference_reward:
            yield self._preference_reward.program(stage, target)
        if self._has(ClipStream.name):
            yield self._clip.program(stage, target)
        if ClipAttributeStream.name in self._streams:
            yield self._crops.program(stage, target)

    def cost(self, work: Work, programs: Sequence[Cost]) -> tuple[int, float]:
        images = [work.images * (CROPS_PER_IMAGE if each.name == CROPS else 1) for each in programs]
        calls = [math.ceil(number / each.rows) for number, each in zip(images, programs, strict=True)]
        return calls[0], sum(count * each.seconds for count, each in zip(calls, programs, strict=True))

    def _settings(self, stream: StreamConfig, context: RunContext) -> dict[str, Any]:
        if stream.path == DetectorStream.name:
            return fingerprint.of(self._detection, "detection") | self._attribute_settings
        if stream.path == ClaimStream.name:
            phrases = fingerprint.of(self._detection.phrases, "detection.phrases")
            return fingerprint.of(self._claims, "claims") | phrases
        if stream.path == ClipStream.name:
            return self._clip.settings
        if stream.path == ClipAttributeStream.name:
            return self._crops.settings
        if stream.path == PreferenceReward.name:
            return self._preference_reward.settings(context)
        if stream.path == RewardModel.name:
            return self._reward_model.settings(context)
        options = fingerprint.plain(dict(stream.options))
        return {f"score.streams.{stream.path}.{key}": value for key, value in options.items()}

    @property
    def _asks_attributes(self) -> bool:
        return ClaimStream.name in self._streams and "attribute" in self._claims.kinds

    @property
    def _attribute_settings(self) -> dict[str, Any]:
        """Of what the detector is asked for the claims' sake."""
        if not self._asks_attributes:
            return {}
        return {"claims.kinds": list(self._claims.kinds)} | fingerprint.of(self._claims.words, "claims.words")

    def _detector(self, config: DetectionConfig) -> DetectorStream:
        return DetectorStream(config, self._claim_reader() if self._asks_attributes else None)

    def _claim_reader(self) -> ClaimReader:
        """One for the detector and the claims, which read the same captions."""
        self._reader = self._reader or ClaimReader(self._claims, self._detection.phrases)
        return self._reader

    def _stream(self, name: str, context: RunContext, progress: Progress) -> RewardStream:
        """The stream, opened; its verdicts on disk, if any, were made by the same."""
        if name not in self._open_streams:
            stream = self._open(self._streams[name], context)
            self._check_digest(name, stream, context, progress)
            progress.begin(self.streams[name])
            self._open_streams[name] = stream
        return self._open_streams[name]

    def _open(self, stream: StreamConfig, context: RunContext) -> RewardStream:
        opened: Any
        if stream.path == RewardModel.name:
            opened = self._reward_model.open(context)
        elif stream.path == DetectorStream.name:
            opened = self._detector(self._detection)
        elif stream.path == ClaimStream.name:
            opened = ClaimStream(self._claims, self._detection.phrases, self._claim_reader())
        elif stream.path == ClipStream.name:
            opened = self._clip.open(context)
        elif stream.path == ClipAttributeStream.name:
            opened = self._crops.open(context)
        elif stream.path == PreferenceReward.name:
            opened = self._preference_reward.open(context)
        else:
            given = {"mesh": context.inference_mesh} if uses_devices(stream_class(stream)) else {}
            opened = make_stream(stream, **given)
        return self._opened.enter_context(opened) if isinstance(opened, AbstractContextManager) else opened

    def _is_scored(self, name: str, context: RunContext) -> bool:
        count = part_count(join(context.records, "candidates"))
        folder = join(context.records, "verdicts", name)
        return count is not None and len(parts_done(folder, count)) == count

    def _greet(self, name: str, context: RunContext, progress: Progress) -> None:
        """Asks the detector whether it is the one that the verdicts are of; it need not be there any more."""
        if self._streams[name].path != DetectorStream.name:
            return
        stream = self._detector(self._detection.greeted_within(GREETING_TIMEOUT))
        try:
            self._opened.enter_context(stream)
        except InputError as error:
            logger.warning("score: all verdicts of the detector are there; who made them is not asked (%s)", error)
        else:
            self._check_digest(name, stream, context, progress)

    def _check_digest(self, name: str, stream: RewardStream, context: RunContext, progress: Progress) -> None:
        if what := check_digest(stream, context.records):
            progress.make_again(self.streams[name], what)

    def _image_place(self) -> str:
        if self._images is None:
            raise InputError("sample.images is not given; name the folder of images")
        return self._images


def result_name(stream: StreamConfig) -> str:
    """What scoring by one stream is called among the results."""
    return f"score.{stream.path}"
