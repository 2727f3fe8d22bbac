"""Fine-tuning speed: ours and transformers + torch, the same weights, batches and machine, in one run.

    python -m benchmarks.sft                              about 100M parameters, float32, CPU
    python -m benchmarks.sft --size 7b --dtype bfloat16   on one big GPU, random weights
    python -m benchmarks.sft --pack 4 --batch-size 8      packed rows and padded ones

Both sides train projector and language model with AdamW, clip the gradient and leave the tower alone. They get the same
batches, each padded the way its own trainer pads: to the longest row (peer), to a multiple of the bucket (ours). Speed
is tokens without padding a second; the runs alternate, and the median is printed.

With `--pack`, the first side is ours with this many examples a row; next to it stand ours padded to the longest row and
to the bucket; captions are as long as `CAPTION_LENGTHS` says. There is the less to gain the more of an example is alike
in all of them: 576 image tokens at 336 pixels, 256 at 224 (LLaVA v1.0), 64 at 112, none in text-only examples.
"""

import argparse
import dataclasses
import itertools
import resource
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from benchmarks.common import build_peer, describe_machine, our_config, peer_config, port, print_table, sizes
from vigor_jax.data.batches.loader import Rows
from vigor_jax.data.batches.packing import pack, pack_tokens
from vigor_jax.data.text.conversation import IGNORE_INDEX, EncodedExample
from vigor_jax.models.clip import normalize
from vigor_jax.models.llava import Llava, LlavaConfig
from vigor_jax.models.vlm import param_paths
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.parallel.sharding import make_mesh, to_global
from vigor_jax.training.config import SftConfig
from vigor_jax.training.flops import peak_flops, train_flops
from vigor_jax.training.train_step import (
    abstract_state,
    init_state,
    learning_rate,
    make_optimizer,
    make_train_step,
    partition_params,
    trained_paths,
)

FROZEN = "vision_tower"
STEPS_IN_ALL = 1000  # of the schedule; the benchmark runs a few

# Tokens of LLaVA-13B's descriptions of 2,000 COCO images ("Provide a brief description of the given image."): every
# fortieth of them, the shortest and the longest, by LLaMA's tokenizer.
CAPTION_LENGTHS = (
    57, 71, 78, 83, 87, 90, 92, 95, 98, 100, 103, 105, 107, 109, 111, 112, 114, 115, 116, 118, 120, 121, 122, 124, 125,
    127, 128, 129, 131, 132, 134, 136, 138, 140, 143, 145, 148, 152, 157, 167, 198,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Batch:
    """Examples without padding, and their images; black where there is none."""

    token_ids: list[np.ndarray]
    labels: list[np.ndarray]
    pixels: np.ndarray
    has_image: np.ndarray

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

    def split(self, parts: int) -> "list[Batch]":
        """Equal parts, or nearly so."""
        cuts = [len(self.token_ids) * part // parts for part in range(parts + 1)]
        return [
            Batch(self.token_ids[a:b], self.labels[a:b], self.pixels[a:b], self.has_image[a:b])
            for a, b in itertools.pairwise(cuts)
        ]

    def packed(self, each: int, bucket: int) -> Rows:
        """Rows of `each` examples on the average, as the trainer packs them."""
        encoded = [EncodedExample(*example) for example in zip(self.token_ids, self.labels, strict=True)]
        lengths = [len(ids) for ids in self.token_ids]
        packing = pack(lengths, self.has_image.tolist(), num_rows=len(lengths) // each, bucket=bucket)
        tokens = pack_tokens(encoded, packing.rows, packing.length, pad_id=0)
        pixels = np.zeros((len(packing.rows), packing.places, *self.pixels.shape[2:]), np.uint8)
        for row, examples in enumerate(packing.rows):
            with_image = [example for example in examples if self.has_image[example]]
            pixels[row, : len(with_image)] = self.pixels[with_image, 0]
        return Rows(tokens.token_ids, tokens.labels, pixels, tokens.segment_ids, tokens.positions)


def make_batches(config: LlavaConfig, rows: int, count: int, *, real: bool, text_only: float) -> list[Batch]:
    """Conversations of one question and one caption.

    Args:
        config: of the model.
        rows: examples a batch.
        count: batches.
        real: captions as long as `CAPTION_LENGTHS`; otherwise about 60-160 tokens.
        text_only: share of the examples that have no image.
    """
    rng = np.random.default_rng(0)
    batches = []
    for _ in range(count):
        token_ids, labels = [], []
        if real:
            lengths = np.interp(rng.random(rows), np.linspace(0, 1, len(CAPTION_LENGTHS)), CAPTION_LENGTHS).astype(int)
        else:
            lengths = np.clip(rng.lognormal(4.6, 0.3, rows), 20, 300).astype(int)
        has_image = np.arange(rows) >= round(text_only * rows)
        for length, with_image in zip(lengths, has_image, strict=True):
            image = np.full(with_image * config.num_image_tokens, config.image_token_id)
            prompt, caption = rng.integers(3, 30000, 50), rng.integers(3, 30000, length)
            ids = np.concatenate([[1], prompt[:35], image, prompt[35:], caption, [2]])
            token_ids.append(ids)
            labels.append(np.where(np.arange(len(ids)) < len(ids) - length - 1, IGNORE_INDEX, ids))
        size = config.vision.image_size
        pixels = rng.integers(0, 256, (rows, 1, size, size, 3), dtype=np.uint8)
        pixels[~has_image] = 0
        batches.append(Batch(token_ids, labels, pixels, has_image))
    return batches


class Ours:
    """The package's own train step, on rows of one example or of `each`."""

    def __init__(self, model: Llava, batch_size: int, dtype: str, remat: str, bucket: int, each: int = 1) -> None:
        self.mesh, self.bucket, self.each = make_mesh(MeshConfig()), bucket, each
        config = SftConfig(batch_size=batch_size, remat=remat)
        trained = trained_paths(param_paths(nnx.state(model)).keys(), (FROZEN,))
        graphdef, params, self.frozen = partition_params(model, trained)
        self.frozen = {path: weight.astype(dtype) for path, weight in self.frozen.items()}
        optimizer, schedule = make_optimizer(config, STEPS_IN_ALL), learning_rate(config, STEPS_IN_ALL)
        abstract = abstract_state(params, optimizer, self.mesh)
        self.state = init_state(params, optimizer, self.mesh, seed=0)
        self.step = make_train_step(graphdef, abstract, optimizer, schedule, config, jnp.dtype(dtype))

    def __call__(self, batches: list[Batch]) -> float:
        loss = None
        with jax.set_mesh(self.mesh):
            for batch in batches:
                self.state, metrics = self.step(self.state, self.frozen, to_global(self.rows(batch), self.mesh))
                loss = metrics["loss"]
        return float(loss)

    def rows(self, batch: Batch) -> Rows:
        if self.each > 1:
            return batch.packed(self.each, self.bucket)
        token_ids, labels, _ = batch.padded(self.bucket)
        return Rows(token_ids, labels, batch.pixels)


class Peer:
    """The loop of a transformers user: SDPA, fused AdamW, gradient checkpointing only if ours has it.

    A batch is computed in `parts`, one after the other. Without `masked` no padding mask is made, which SDPA has faster
    kernels for; the rows are padded on the right, so what counts is the same. They are as long as the longest of their
    part, or a `multiple`, where few shapes are wanted.
    """

    def __init__(
        self,
        model,
        config: LlavaConfig,
        device: str,
        dtype: str,
        remat: str,
        *,
        parts: int = 1,
        masked: bool = True,
        multiple: int = 1,
    ) -> None:
        self.model, self.config, self.device, self.dtype = model.to(device).train(), config, device, dtype
        self.parts, self.masked, self.multiple = parts, masked, multiple
        for name, weight in model.named_parameters():
            weight.requires_grad_(FROZEN not in name)
        if remat != "none":
            model.gradient_checkpointing_enable()
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(self.weights, lr=2e-5, weight_decay=0.0, fused=True)

    def __call__(self, batches: list[Batch]) -> float:
        loss = torch.zeros(())
        for batch in batches:
            parts = batch.split(self.parts)
            supervised = [sum(int((labels != IGNORE_INDEX).sum()) for labels in part.labels) for part in parts]
            losses = []
            for part, count in zip(parts, supervised, strict=True):
                losses.append(self.loss(part) * (count / sum(supervised)))
                losses[-1].backward()
            torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            loss = torch.stack([each.detach() for each in losses]).sum()
        return loss.item()

    def loss(self, batch: Batch) -> torch.Tensor:
        token_ids, labels, mask = (torch.tensor(x, device=self.device) for x in batch.padded(self.multiple))
        pixel_values = np.array(normalize(jnp.asarray(batch.pixels[batch.has_image, 0]), self.config.vision))
        pixel_values = torch.tensor(pixel_values.transpose(0, 3, 1, 2), device=self.device)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.dtype == "bfloat16"):
            return self.model(
                input_ids=token_ids.long(),
                pixel_values=pixel_values,
                attention_mask=mask if self.masked else None,
                labels=labels.long(),
            ).loss


def peak_memory() -> None:
    """Prints the most memory that each side's process had, in a separate process, interpreter and libraries included.

    Each begins with its own random weights, so that no process holds the other's.
    """
    for side in ("vigor_jax", "transformers"):
        command = [sys.executable, "-m", "benchmarks.sft", *sys.argv[1:], "--side", side]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        print(f"{side:13} {done.stdout.splitlines()[-1]}", flush=True)


def run_alone(options: argparse.Namespace) -> None:
    """Updates of one side; prints its process's peak."""
    config = our_config(peer_config(options.size, options.image_size))
    batches = make_batches(config, options.batch_size, options.steps, real=False, text_only=options.text_only)
    side: Ours | Peer
    if options.side == "vigor_jax":
        model = Llava(config, rngs=nnx.Rngs(0))
        side = Ours(model, options.batch_size, options.dtype, options.remat, options.bucket)
        del model
    else:
        peer = build_peer(options.size, image_size=options.image_size)
        side = Peer(peer, config, "cpu", options.dtype, options.remat)
    for _ in range(options.repeats):
        loss = side(batches)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{peak:.2f} GiB, loss {loss:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sizes(), default="100m")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2, help="updates a measurement")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--remat", default="none")
    parser.add_argument("--bucket", type=int, default=128)
    parser.add_argument("--pack", type=int, default=1, help="examples a row, compared with rows of one")
    parser.add_argument("--image-size", type=int, default=336, help="pixels; an image has (pixels / 14)² tokens")
    parser.add_argument("--text-only", type=float, default=0.0, help="share of the examples that have no image")
    parser.add_argument("--skip-peer", action="store_true", help="where both do not fit next to each other")
    parser.add_argument("--memory", action="store_true", help="the peak of each side's process instead, on a CPU")
    parser.add_argument("--side", choices=("vigor_jax", "transformers"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.batch_size % options.pack:
        parser.error(f"--pack {options.pack} does not divide --batch-size {options.batch_size}")

    if options.side:
        run_alone(options)
    elif options.memory:
        peak_memory()
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    """Prints the speeds of both sides, which have the same weights."""
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    model = build_peer(options.size, image_size=options.image_size)
    layouts = {"vigor_jax": (options.bucket, 1)}
    if options.pack > 1:
        layouts = {
            f"{options.pack} packed": (options.bucket, options.pack),
            "padded to the longest": (1, 1),
            f"padded to {options.bucket}": (options.bucket, 1),
        }
    sides = {}
    for name, (bucket, each) in layouts.items():
        llava = port(model)
        config = llava.config
        sides[name] = Ours(llava, options.batch_size, options.dtype, options.remat, bucket, each)
        del llava
    if not options.skip_peer:
        sides["transformers"] = Peer(model, config, device, options.dtype, options.remat)
    batches = make_batches(
        config, options.batch_size, options.steps, real=options.pack > 1, text_only=options.text_only
    )
    tokens = sum(batch.num_tokens for batch in batches)
    for name in layouts:
        room = sum(sides[name].rows(batch).token_ids.size for batch in batches)
        print(f"{name}: {1 - tokens / room:.1%} of the rows is padding")

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
        images = sum(batch.has_image.sum() for batch in batches) / options.steps
        flops = train_flops(config, modules, rows=options.batch_size, tokens=tokens / options.steps, images=images)
        first = next(iter(sides))
        rate = np.median(speeds[first]) / (tokens / options.steps) * flops
        print(f"MFU of {first}, padding excluded: {rate / peak:.1%} of {peak / 1e12:.0f} TFLOP/s")


if __name__ == "__main__":
    main()
