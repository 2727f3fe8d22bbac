"""Runs lmms-eval's tasks on this package's engine, as the model `vigor_jax`; docs/lmms_eval.md has the environment.

    lmms-eval eval --model vigor_jax --model_args pretrained=DIR --tasks pope,mme --batch_size 8 --output_path OUT

Only lmms-eval imports this module, and lmms-eval brings torch; nothing else here does. As with lmms-eval's own LLaVA,
`until` is not heeded: it adds a blank line to it unasked, which would cut long answers.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from PIL import Image
from tqdm import tqdm

from vigor_jax.data.images.preprocessing import preprocess
from vigor_jax.data.text.conversation import (
    IGNORE_INDEX,
    IMAGE_PLACEHOLDER,
    Turn,
    encode_example,
)
from vigor_jax.errors import InputError
from vigor_jax.hf.load import open_checkpoint
from vigor_jax.inference.policy import Policy
from vigor_jax.inference.sampler import Request
from vigor_jax.inference.sampling_config import SamplingConfig
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.parallel.sharding import make_mesh


def manifest() -> ModelManifest:
    """What the entry point of the group `lmms_eval.models` gives."""
    return ModelManifest("vigor_jax", simple_class_path=f"{__name__}.VigorJax")


class VigorJax(lmms):
    """A LLaVA checkpoint, on all devices of this process.

    Args:
      pretrained: a llava-hf directory or one of the original LLaVA code, or its name on the Hub (docs/checkpoints.md).
      template: the conversation format that the model was trained with; by default its family's.
      vision_tower: directory, or name on the Hub, of the CLIP tower of an original checkpoint that does not bring it.
      dtype: type to compute in; by default float32 if the checkpoint is stored so, else bfloat16.
      tensor: over how many devices the weights are split.
      batch_size: questions a batch; rounded up to what divides over the devices.
      max_new_tokens: of answers whose task does not say.
      device: ignored, as `max_batch_size`; lmms-eval gives them to every model.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        template: str | None = None,
        vision_tower: str | None = None,
        dtype: str | None = None,
        tensor: int = 1,
        batch_size: int | str = 1,
        max_new_tokens: int = 1024,
        device: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        self._mesh = make_mesh(MeshConfig(data=-1, fsdp=1, tensor=tensor))
        parts = self._mesh.shape["data"]
        self._batch_size, self._max_new_tokens = -(-int(batch_size) // parts) * parts, max_new_tokens
        self._source = checkpoint = open_checkpoint(pretrained, vision_tower)
        self._policy = Policy(checkpoint, self._mesh, template=template, dtype=dtype)
        self._template = self._policy.template
        config = checkpoint.config
        self._sizes: dict[str, Any] = {
            "image_token_id": config.image_token_id,
            "num_image_tokens": config.num_image_tokens,
        }
        self._graphdef, self._weights = nnx.split(self._policy.model)
        self._loss = jax.jit(self._loss_of_answer)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The answers, in the order of the requests."""
        groups: dict[SamplingConfig, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(self._sampling(request.args[1]), []).append(number)
        texts = [""] * len(requests)
        with tqdm(total=len(requests), desc="vigor_jax", unit="answer") as bar:
            for sampling, numbers in groups.items():
                found = self._policy.sample((self._request(requests[number]) for number in numbers), sampling)
                for number, (completion,) in zip(numbers, found, strict=True):
                    texts[number] = completion.text
                    bar.update()
        return texts

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Of each continuation: mean -log p of its tokens, and whether each of them is the most likely one.

        That it is a loss is how lmms-eval's tasks take it, in spite of the method's name: they choose the least.
        """
        return [self._likelihood(request) for request in tqdm(requests, desc="vigor_jax", unit="answer")]

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not there: no task that this model is made for asks twice."""
        raise NotImplementedError("vigor_jax answers one question about one image; leave tasks of several rounds out")

    def _sampling(self, kwargs: dict[str, Any]) -> SamplingConfig:
        if (kwargs.get("num_beams") or 1) > 1:
            raise InputError(f"vigor_jax: expected num_beams 1, got {kwargs['num_beams']}; there is no beam search")
        return SamplingConfig(
            temperature=float(kwargs.get("temperature") or 0.0),
            top_p=float(kwargs.get("top_p") or 1.0),
            top_k=int(kwargs.get("top_k") or 0),
            max_new_tokens=int(kwargs.get("max_new_tokens") or self._max_new_tokens),
            num_candidates=1,
            batch_size=self._batch_size,
        )

    def _request(self, request: Instance) -> Request:
        context, _, _, doc_id, task, split = request.args
        pixels = self._pixels(request)
        ids = self._policy.prompt_ids(context, with_image=pixels is not None)
        return Request(f"{task}/{split}/{doc_id}", ids, pixels, context)

    def _likelihood(self, request: Instance) -> tuple[float, bool]:
        context, target, _, doc_id, task, split = request.args
        answer = target if isinstance(target, str) else target(self.task_dict[task][split][doc_id])
        pixels = self._pixels(request)
        if pixels is not None and IMAGE_PLACEHOLDER not in context:
            context = f"{IMAGE_PLACEHOLDER}\n{context}"
        turns = (Turn("human", context), Turn("gpt", answer.strip()))
        limit, edge = self._source.config.text.max_position_embeddings, self._source.config.vision.image_size
        example = encode_example(self._source.tokenizer, self._template, turns, max_length=limit, **self._sizes)
        padding = (0, -len(example.token_ids) % 64)  # few lengths are ever compiled
        row = (
            np.pad(example.token_ids, padding),
            np.pad(example.labels, padding, constant_values=IGNORE_INDEX),
            np.zeros((1, edge, edge, 3), np.uint8) if pixels is None else pixels[None],
        )
        instructions = self._source.tokenizer.instruction_ids([context])
        with jax.set_mesh(self._mesh):  # every device takes the same row
            arrays = (
                None if x is None else np.repeat(x[None], self._mesh.shape["data"], axis=0)
                for x in (*row, instructions)
            )
            loss, is_greedy = self._loss(self._weights, *arrays)
        return float(loss), bool(is_greedy)

    def _pixels(self, request: Instance) -> np.ndarray | None:
        _, _, doc_to_visual, doc_id, task, split = request.args
        images = doc_to_visual(self.task_dict[task][split][doc_id]) or ()
        if len(images) > 1 or not all(isinstance(image, Image.Image) for image in images):
            kinds = ", ".join(type(image).__name__ for image in images)
            raise InputError(f"{task}: expected at most one picture a question, got {kinds}; leave the task out")
        return preprocess(images[0].convert("RGB"), self._source.preprocessing) if images else None

    def _loss_of_answer(
        self,
        weights: nnx.State,
        token_ids: jax.Array,
        labels: jax.Array,
        pixels: jax.Array,
        instructions: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array]:
        model = nnx.merge(self._graphdef, weights)
        logits = model.language_model.logits(model(token_ids, pixels, instructions=instructions)[0, :-1])
        targets = labels[0, 1:]
        counts = targets != IGNORE_INDEX
        logprobs = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.maximum(targets, 0)[:, None], axis=-1)[:, 0]
        return -jnp.mean(logprobs, where=counts), jnp.all((logits.argmax(-1) == targets) | ~counts)
