"""Fine-tuning speed: ours beside transformers + torch, the same weights, batches and machine, in one run.

    python -m benchmarks.sft                              about 100M parameters, float32, CPU
    python -m benchmarks.sft --size 7b --dtype bfloat16   on one big GPU, random weights

Both sides train projector and language model with AdamW, clip the gradient and leave the tower alone. They get the same
batches, each padded the way its own trainer pads: to the longest row (peer), to a multiple of the bucket (ours). Speed
is tokens without padding a second; the runs alternate, and the median is printed.
"""

import argparse
import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from benchmarks.common import build_peer, describe_machine, port, print_table, sizes
from vigor_jax.data.conversation import IGNORE_INDEX
from vigor_jax.data.loader import Rows
from vigor_jax.flops import peak_flops, train_flops
from vigor_jax.models.clip import normalize
from vigor_jax.models.llava import Llava, LlavaConfig, param_paths
from vigor_jax.sharding import MeshConfig, make_mesh, to_global
from vigor_jax.stages.train_step import (
    SftConfig,
    abstract_state,
    init_state,
    learning_rate,
    make_optimizer,
    make_train_step,
    split_params,
    trained_paths,
)

FROZEN = "vision_tower"
STEPS_IN_ALL = 1000  # of the schedule; the benchmark runs a few


@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows without padding, and their images."""

    token_ids: list[np.ndarray]
    labels: list[np.ndarray]
    pixels: np.ndarray

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.token_ids))

    def padded(self, multiple: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        width = -(-max(map(len, self.token_ids)) // multiple) * multiple
        token_ids = np.zeros((len(self.token_ids), width), np.int32)
        labels = np.full_like(token_ids, IGNORE_INDEX)
        mask = np.zeros_like(token_ids, bool)
        for row, (ids, label) in enumerate(zip(self.token_ids, self.labels, strict=True)):
            token_ids[row, : len(ids)], labels[row, : len(ids)], mask[row, : len(ids)] = ids, label, True
        return token_ids, labels, mask


def make_batches(config: LlavaConfig, rows: int, count: int) -> list[Batch]:
    """Conversations of one question and one caption, whose lengths spread as captions of LLaVA do (about 60-160)."""
    rng = np.random.default_rng(0)
    batches = []
    for _ in range(count):
        token_ids, labels = [], []
        for length in np.clip(rng.lognormal(4.6, 0.3, rows), 20, 300).astype(int):
            image = np.full(config.num_image_tokens, config.image_token_id)
            prompt, caption = rng.integers(3, 30000, 50), rng.integers(3, 30000, length)
            ids = np.concatenate([[1], prompt[:35], image, prompt[35:], caption, [2]])
            token_ids.append(ids)
            labels.append(np.where(np.arange(len(ids)) < len(ids) - length - 1, IGNORE_INDEX, ids))
        size = config.vision.image_size
        batches.append(Batch(token_ids, labels, rng.integers(0, 256, (rows, 1, size, size, 3), dtype=np.uint8)))
    return batches


class Ours:
    """The package's own train step."""

    def __init__(self, model: Llava, batch_size: int, dtype: str, remat: str, bucket: int) -> None:
        self.mesh, self.bucket = make_mesh(MeshConfig()), bucket
        config = SftConfig(batch_size=batch_size, remat=remat)
        trained = trained_paths(param_paths(nnx.state(model)).keys(), (FROZEN,))
        graphdef, params, self.frozen = split_params(model, trained)
        self.frozen = {path: weight.astype(dtype) for path, weight in self.frozen.items()}
        optimizer, schedule = make_optimizer(config, STEPS_IN_ALL), learning_rate(config, STEPS_IN_ALL)
        abstract = abstract_state(params, optimizer, self.mesh)
        self.state = init_state(params, optimizer, self.mesh, seed=0)
        self.step = make_train_step(graphdef, abstract, optimizer, schedule, config, jnp.dtype(dtype))

    def __call__(self, batches: list[Batch]) -> float:
        loss = None
        with jax.set_mesh(self.mesh):
            for batch in batches:
                token_ids, labels, _ = batch.padded(self.bucket)
                rows = to_global(Rows(token_ids, labels, batch.pixels), self.mesh)
                self.state, metrics = self.step(self.state, self.frozen, rows)
                loss = metrics["loss"]
        return float(loss)


class Peer:
    """The loop of a transformers user: SDPA, fused AdamW, gradient checkpointing only if ours has it."""

    def __init__(self, model, config: LlavaConfig, device: str, dtype: str, remat: str) -> None:
        self.model, self.config, self.device, self.dtype = model.to(device).train(), config, device, dtype
        for name, weight in model.named_parameters():
            weight.requires_grad_(FROZEN not in name)
        if remat != "none":
            model.gradient_checkpointing_enable()
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(self.weights, lr=2e-5, weight_decay=0.0, fused=True)

    def __call__(self, batches: list[Batch]) -> float:
        loss = None
        for batch in batches:
            token_ids, labels, mask = (torch.tensor(x, device=self.device) for x in batch.padded(1))
            pixel_values = np.array(normalize(jnp.asarray(batch.pixels[:, 0]), self.config.vision))
            pixel_values = torch.tensor(pixel_values.transpose(0, 3, 1, 2), device=self.device)
            with torch.autocast(self.device, torch.bfloat16, enabled=self.dtype == "bfloat16"):
                loss = self.model(
                    input_ids=token_ids.long(), pixel_values=pixel_values, attention_mask=mask, labels=labels.long()
                ).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return loss.item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sizes(), default="100m")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2, help="updates a measurement")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--remat", default="none")
    parser.add_argument("--bucket", type=int, default=128)
    parser.add_argument("--skip-peer", action="store_true", help="where both do not fit beside each other")
    options = parser.parse_args()

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    model = build_peer(options.size)
    llava = port(model)
    config = llava.config
    sides = {"vigor_jax": Ours(llava, options.batch_size, options.dtype, options.remat, options.bucket)}
    del llava
    if not options.skip_peer:
        sides["transformers"] = Peer(model, config, device, options.dtype, options.remat)
    batches = make_batches(config, options.batch_size, options.steps)
    tokens = sum(batch.num_tokens for batch in batches)

    losses = {name: side(batches) for name, side in sides.items()}  # compiles; the same weights, so the same loss
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.repeats):
        for name, side in sides.items():
            start = time.perf_counter()
            side(batches)
            speeds[name].append(tokens / (time.perf_counter() - start))
    print(f"{describe_machine()}; {options.size}, {options.dtype}, batch {options.batch_size}, remat {options.remat}")
    print(f"loss after {options.steps} updates from the same weights: {losses}")
    print_table("tokens/s, padding excluded", speeds)
    peak = peak_flops(jax.devices()[0].device_kind)
    if peak:
        modules = frozenset(("multi_modal_projector", "language_model"))
        flops = train_flops(
            config, modules, rows=options.batch_size, tokens=tokens / options.steps, images=options.batch_size
        )
        rate = np.median(speeds["vigor_jax"]) / (tokens / options.steps) * flops
        print(f"MFU of vigor_jax, padding excluded: {rate / peak:.1%} of {peak / 1e12:.0f} TFLOP/s")


if __name__ == "__main__":
    main()
