"""Opening models, and judging what a policy says."""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias, get_args

from jax.sharding import Mesh

from vigor_jax.api.options import PathLike, parsed
from vigor_jax.data.images.given import GivenImage, ImageLike, image_files
from vigor_jax.errors import InputError
from vigor_jax.hf.load import Checkpoint, open_checkpoint
from vigor_jax.inference.policy import Policy
from vigor_jax.inference.responses import Response
from vigor_jax.json_fields import Fields, exists
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.parallel.sharding import make_mesh
from vigor_jax.records import PhraseScore, ScoreItem, Signal, Verdict
from vigor_jax.rewards import reward_model
from vigor_jax.rewards.detection import AttributeQuestions, DetectorStream
from vigor_jax.rewards.detector_config import DetectionConfig
from vigor_jax.rewards.phrases import PhrasesConfig
from vigor_jax.rewards.stream import RewardStream
from vigor_jax.stages.export import PROVENANCE

Dtype: TypeAlias = Literal["float32", "bfloat16", "float16"]


def load(
    model: PathLike,
    *,
    template: str | None = None,
    vision_tower: PathLike | None = None,
    adapter: PathLike | None = None,
    dtype: Dtype | None = None,
    int8: bool = False,
    mesh: Mesh | MeshConfig | None = None,
) -> Policy:
    """Opens a checkpoint; its weights are loaded when they are first needed.

    Args:
      model: directory of a checkpoint, or its name on the Hub (docs/checkpoints.md); or one of a LoRA adapter, which
        names its base.
      template: the conversation format that the model was trained with; by default what an export of ours says, else
        "v1" for LLaVA and "instructblip" for InstructBLIP.
      vision_tower: directory, or name on the Hub, of the CLIP tower of an original checkpoint that does not bring it.
      adapter: directory of a LoRA adapter that is put on top of the model, or its name on the Hub (docs/lora.md).
      dtype: type to compute in; by default float32 if the checkpoint is stored so, else bfloat16.
      int8: hold the language model's weights in 8 bits.
      mesh: how the devices are arranged; by default each holds all the weights and takes its part of the batch.

    Raises:
      InputError: the checkpoint cannot be used.
    """
    checkpoint = _open(model, vision_tower, adapter)
    said = _provenance(checkpoint)
    known = said.text("template", None, null=True) if said else None
    return Policy(checkpoint, _mesh(mesh), template=template or known, dtype=_dtype(dtype), int8=int8)


@dataclasses.dataclass(frozen=True)
class Judgment:
    """What a reward stream says of one response; a list of these is a table (`pandas.DataFrame(judgments)`).

    Attributes:
      index: position of the image among those given, from 0.
      image: as in `Response`.
      candidate: index among the responses to this image and prompt, from 0.
      text: the response.
      stream: which one judged: "detector", "reward_model" or "claims".
      negative: 0 or more: the penalty.
      positive: 0 or more: what is right.
      signals: what it says of each phrase or sentence, with its place in the text.
      attributes: what a detector was asked for the claims' sake: "red car", "blue car".
    """

    index: int
    image: str
    candidate: int
    text: str
    stream: str
    negative: float
    positive: float
    signals: tuple[Signal, ...]
    attributes: tuple[PhraseScore, ...] = ()

    @classmethod
    def of(cls, verdict: Verdict, *, index: int, candidate: int, text: str) -> Self:
        """A verdict on one response."""
        return cls(
            index=index,
            image=verdict.image,
            candidate=candidate,
            text=text,
            stream=verdict.stream,
            negative=verdict.negative,
            positive=verdict.positive,
            signals=verdict.signals,
            attributes=verdict.attributes,
        )


ResponsesLike: TypeAlias = str | Response | Sequence[str] | Sequence[Response] | Sequence[Sequence[str]]


class RewardModel:
    """A model that says of every sentence whether it is true of the image (ViGoR, section 3.2).

    Args:
      stream: the reward stream itself, as the pipeline uses it.
    """

    def __init__(self, stream: reward_model.RewardModel) -> None:
        self.stream = stream

    @classmethod
    def load(
        cls,
        model: PathLike,
        *,
        vision_tower: PathLike | None = None,
        dtype: Dtype | None = None,
        mesh: Mesh | MeshConfig | None = None,
        **settings: Any,
    ) -> Self:
        """Opens a reward model and loads its weights.

        Args:
          model: what the stage `train_reward` exported, or any checkpoint that answers its question.
          vision_tower: as `load` takes it.
          dtype: as `load` takes it.
          mesh: as `load` takes it.
          **settings: fields of `RewardModelConfig`; `template`, `question` and `per` are by default what the model was
            trained with.

        Raises:
          InputError: the checkpoint or a setting cannot be used.
        """
        checkpoint = _open(model, vision_tower)
        trained = _training(checkpoint)
        learned = {name: trained[name] for name in ("template", "question", "per") if trained.get(name) is not None}
        config = parsed(reward_model.RewardModelConfig, {**learned, **settings}, what="RewardModel.load")
        return cls(reward_model.RewardModel.of(Policy(checkpoint, _mesh(mesh), dtype=_dtype(dtype)), config))

    def judge(self, images: ImageLike | Sequence[ImageLike], responses: ResponsesLike) -> list[Judgment]:
        """Judges responses, in their order: one signal for each sentence.

        Args:
          images: as `Policy.generate` takes them.
          responses: what `Policy.generate` returned for these images; or for each image a text, or a list of texts.

        Raises:
          InputError: an argument cannot be used, or an image cannot be read.
        """
        return _judge(self.stream, images, responses)


class Detector:
    """GroundingDINO, which looks for what a response mentions; a context manager that holds the connection.

        with vigor_jax.Detector(["127.0.0.1:50051"]) as detector:
            judgments = detector.judge(images, responses)

    Args:
      addresses: sidecars that serve already: HOST:PORT or unix:PATH, one or a list.
      model: instead of addresses: a checkpoint of a detector, which a sidecar of this process serves.
      phrases: how phrases are found in a text.
      claims: whose attributes are asked for, too: "red car", "blue car".
      **settings: further fields of `DetectionConfig`, such as `box_threshold`, `token_file` or `python`.

    Raises:
      InputError: a setting cannot be used; on entering, if the detector cannot be reached, or what finds phrases lacks
        its files.
    """

    def __init__(
        self,
        addresses: str | Sequence[str] = (),
        *,
        model: PathLike | None = None,
        phrases: PhrasesConfig | None = None,
        claims: AttributeQuestions | None = None,
        **settings: Any,
    ) -> None:
        self._claims = claims
        given = {
            "addresses": [addresses] if isinstance(addresses, str) else list(addresses),
            "model": model,
            "phrases": phrases or PhrasesConfig(),
        }
        self._config = parsed(DetectionConfig, {**given, **settings}, what="Detector")
        self._config.check_given()
        self._stream: DetectorStream | None = None  # while it is entered

    def __enter__(self) -> Self:
        if self._stream is not None:
            raise InputError("Detector: it is connected already")
        self._stream = DetectorStream(self._config, self._claims).__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.__exit__(kind, error, trace)

    def judge(self, images: ImageLike | Sequence[ImageLike], responses: ResponsesLike) -> list[Judgment]:
        """As `RewardModel.judge`: one signal for each phrase."""
        if self._stream is None:
            raise InputError("Detector: it is not connected; judge inside `with Detector(...) as detector:`")
        return _judge(self._stream, images, responses)


def _open(model: PathLike, vision_tower: PathLike | None, adapter: PathLike | None = None) -> Checkpoint:
    if not isinstance(model, str | os.PathLike):
        raise InputError(f"model: expected the directory of a checkpoint, got {type(model).__name__}")
    if not isinstance(vision_tower, str | os.PathLike | None):
        raise InputError(f"vision_tower: expected the directory of a CLIP tower, got {type(vision_tower).__name__}")
    if not isinstance(adapter, str | os.PathLike | None):
        raise InputError(f"adapter: expected the directory of a LoRA adapter, got {type(adapter).__name__}")
    # A name on the Hub is a str, never a Path.
    places = [place if isinstance(place, str | None) else Path(place) for place in (model, vision_tower, adapter)]
    return open_checkpoint(places[0] or "", *places[1:])


def _dtype(dtype: Any) -> Any:
    if dtype is not None and dtype not in get_args(Dtype):
        raise InputError(f"dtype: expected one of {', '.join(get_args(Dtype))}, got {dtype!r}"[:200])
    return dtype


def _mesh(mesh: Mesh | MeshConfig | None) -> Mesh:
    if not isinstance(mesh, Mesh | MeshConfig | None):
        raise InputError(f"mesh: expected a MeshConfig or a jax.sharding.Mesh, got {mesh!r}"[:200])
    return mesh if isinstance(mesh, Mesh) else make_mesh(mesh or MeshConfig(data=-1, fsdp=1))


def _training(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """What an export of ours says about its training; nothing of other checkpoints."""
    said = _provenance(checkpoint)
    training = said.object("training") if said else None
    return training.values if training else {}


def _provenance(checkpoint: Checkpoint) -> Fields | None:
    """What an export of ours says of itself; of an adapter that does not, what its base says."""
    places = (checkpoint.newest / PROVENANCE, checkpoint.directory / PROVENANCE)
    return next((Fields.read(path) for path in places if exists(path)), None)


def _judge(stream: RewardStream, images: ImageLike | Sequence[ImageLike], responses: ResponsesLike) -> list[Judgment]:
    items = list(_items(image_files(images), responses))
    found = []
    for (index, item, candidates), verdicts in zip(items, stream.judge(item for _, item, _ in items), strict=True):
        for verdict in verdicts:
            candidate, text = candidates[verdict.candidate], item.texts[verdict.candidate]
            found.append(Judgment.of(verdict, index=index, candidate=candidate, text=text))
    return found


def _items(files: Sequence[GivenImage], responses: Any) -> Iterator[tuple[int, ScoreItem, Sequence[int]]]:
    """Images with the responses to each, as a reward stream takes them, and which candidates these are."""
    if isinstance(responses, str | Response):
        responses = [responses]
    if isinstance(responses, Iterator):
        responses = list(responses)
    if not isinstance(responses, Sequence) or not responses:
        got = "none" if isinstance(responses, Sequence) else type(responses).__name__
        raise InputError(f"responses: expected at least one text for each image, or what generate returned; got {got}")
    if all(isinstance(response, Response) for response in responses):
        for index, prompt, own in groups(responses):
            name = own[0].image
            if index >= len(files) or not files[index].is_called(name):
                raise InputError(f"responses: image {index}, {name}, is not among the images; give those of generate")
            item = ScoreItem(name, files[index].file, prompt, tuple(response.text for response in own))
            yield index, item, [response.candidate for response in own]
        return
    if len(responses) != len(files):
        raise InputError(
            f"responses: expected one text or list for each image, got {len(responses)} for {len(files)} images"
        )
    for index, (file, texts) in enumerate(zip(files, responses, strict=True)):
        own_texts = (texts,) if isinstance(texts, str) else texts
        if not isinstance(own_texts, Sequence) or not all(isinstance(text, str) for text in own_texts) or not own_texts:
            raise InputError(f"responses[{index}]: expected a text or a list of texts, got {texts!r}"[:200])
        yield index, ScoreItem(file.name, file.file, "", tuple(own_texts)), range(len(own_texts))


def groups(responses: Sequence[Response]) -> list[tuple[int, str, list[Response]]]:
    """Responses to the same image and prompt; these stand together, and some of the candidates may be left out."""
    found: list[tuple[int, str, list[Response]]] = []
    known: set[int] = set()
    for response in responses:
        # The same question may be asked twice: then a candidate comes again.
        if not found or response.candidate in known or found[-1][:2] != (response.index, response.prompt):
            found.append((response.index, response.prompt, []))
            known = set()
        found[-1][2].append(response)
        known.add(response.candidate)
    return found
