"""The reward model in one pass an image, and in one conversation a sentence: scoring and training, in one run.

    python -m benchmarks.reward                              about 100M parameters, float32, CPU
    python -m benchmarks.reward --size 7b --dtype bfloat16   on one big GPU, random weights

Both sides have the same random LLaVA, images, descriptions (5 an image, 6 sentences each, about 17 tokens a sentence)
and questions. Scoring, one by one: the plain causal decoder over batches of whole conversations, jitted, the image
encoded once for all of its conversations, and an answer of as many tokens as the other side writes, with a cache. What
both say is compared before anything is timed. Training: the package's own update step, a row an image or a row a
sentence with the image, the same sentences in one update. FLOPs are counted, too, by formula and by XLA.
On a machine shared with others, `--one-core` pins the run to one core and counts the process's own CPU seconds.
"""

import argparse
import dataclasses
import os
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from benchmarks.common import build_peer, describe_machine, port, print_table, sizes
from vigor_jax.data.batches.tree_batches import TreeRows, collate, padded_sizes
from vigor_jax.data.batches.tree_sequences import QUESTIONS, Description, Row, TreeEncoder, answer, asked
from vigor_jax.data.text.conversation import TEMPLATES
from vigor_jax.inference.tree_attention import Answers, answer_places
from vigor_jax.models.attention import attention, masked_attention
from vigor_jax.models.llava import Llava, LlavaConfig
from vigor_jax.models.vlm import param_paths
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.parallel.sharding import make_mesh, to_global
from vigor_jax.records import Span
from vigor_jax.stages.reward_rows import answer_loss
from vigor_jax.training.config import SftConfig
from vigor_jax.training.train_step import (
    abstract_state,
    init_state,
    learning_rate,
    make_optimizer,
    make_train_step,
    partition_params,
    trained_paths,
)

WORDS = (
    "a", "the", "red", "small", "wooden", "bright", "and", "with", "near", "on", "of", "table", "car", "tree", "man",
    "dog", "lamp", "cup", "road", "window",
)  # fmt: skip
VOCAB_SIZE, EOS, GOOD, BAD = 32000, 2, 7, 8
NO_ID = -1  # an answer never ends, so that both sides write the same number of tokens


class Words:
    """A tokenizer of a token for every four letters, about as many as LLaMA's."""

    bos_id, eos_id, pad_id = 1, EOS, 0
    adds_bos, restarts_after_image, images_first = True, True, False

    def instruction_ids(self, texts: list[str]) -> None:
        """None: LLaVA reads no instructions."""

    def encode(self, text: str, *, prefix: bool = True) -> list[int]:
        pieces = [word[i : i + 4] for word in text.split() for i in range(0, len(word), 4)]
        return [{"1": GOOD, "0": BAD}.get(piece, 9 + zlib.crc32(piece.encode()) % (VOCAB_SIZE - 9)) for piece in pieces]


def make_descriptions(rng: np.random.Generator, candidates: int, sentences: int) -> list[Description]:
    """Made up, every third sentence wrong."""
    descriptions = []
    for candidate in range(candidates):
        text, spans = "", []
        for _ in range(sentences):
            start = len(text) + bool(text)
            text = f"{text} {' '.join(rng.choice(WORDS, int(rng.integers(9, 18))))}.".strip()
            spans.append(Span(start, len(text)))
        answers = tuple(answer(("object",) if i % 3 == 2 else ()) for i in range(sentences))
        descriptions.append(Description(candidate, text, tuple(spans), asked(sentences, "sentence"), answers))
    return descriptions


@dataclasses.dataclass(frozen=True)
class Image:
    """One image and its descriptions as rows: of questions, and to learn from; together and one by one."""

    together: Row
    singles: list[Row]
    learn_together: Row
    learn_singles: list[Row]
    pixels: np.ndarray


def make_images(config: LlavaConfig, count: int, candidates: int, sentences: int) -> list[Image]:
    rng = np.random.default_rng(0)
    encoder = TreeEncoder(
        Words(),  # type: ignore[arg-type]
        TEMPLATES["v1"],
        QUESTIONS["sentence"],
        image_token_id=config.image_token_id,
        num_image_tokens=config.num_image_tokens,
        max_length=config.text.max_position_embeddings,
        max_position=config.text.max_position_embeddings,
    )

    def rows(groups: list[list[Description]]) -> list[Row]:
        return [
            encoder.row(sequence) for group in groups for sequence in encoder.sequences("image", Path("image"), group)
        ]

    images = []
    for _ in range(count):
        learn = make_descriptions(rng, candidates, sentences)
        questions = [dataclasses.replace(description, answers=None) for description in learn]
        (together,), (learn_together,) = rows([questions]), rows([learn])
        edge = config.vision.image_size
        images.append(
            Image(
                together,
                rows([[single] for description in questions for single in one_each(description)]),
                learn_together,
                rows([[single] for description in learn for single in one_each(description)]),
                rng.integers(0, 256, (1, edge, edge, 3), dtype=np.uint8),
            )
        )
    return images


def one_each(description: Description) -> list[Description]:
    """One question each."""
    answers = description.answers
    return [dataclasses.replace(description, asked=(i,), answers=answers and (answers[i],)) for i in description.asked]


def one_pass(model: Llava, rows: TreeRows, scored: np.ndarray, num_tokens: int) -> Answers:
    allowed = jnp.arange(model.config.text.vocab_size) < VOCAB_SIZE
    return answer_places(model, rows, scored, allowed, num_tokens=num_tokens, eos_id=NO_ID)


def one_by_one(
    model: Llava, token_ids: jax.Array, lengths: jax.Array, pixels: jax.Array, scored: np.ndarray, num_tokens: int
) -> Answers:
    """Conversations [B T] about one image: a causal pass that keeps keys and values, then a token at a time."""
    llama, (batch, capacity) = model.language_model, token_ids.shape
    features = jnp.repeat(model.encode_images(pixels), batch, 0)
    positions = jnp.broadcast_to(jnp.arange(capacity), token_ids.shape)
    pad = ((0, 0), (0, num_tokens - 1), (0, 0), (0, 0))

    def attend_and_keep(q: jax.Array, k: jax.Array, v: jax.Array, _: Any) -> tuple[jax.Array, Any]:
        return attention(q, k, v, causal=True), (jnp.pad(k, pad), jnp.pad(v, pad))

    hidden, caches = llama(model.embed(token_ids, features), positions, attend_and_keep)
    logits = llama.logits(jnp.take_along_axis(hidden, lengths[:, None, None] - 1, axis=1))
    first, found = logits, []
    for step in range(num_tokens):
        found.append(jnp.argmax(logits[..., :VOCAB_SIZE], -1))
        if step == num_tokens - 1:
            break
        key = jnp.arange(capacity + num_tokens - 1)
        mask = (key < lengths[:, None]) | ((key >= capacity) & (key <= capacity + step))

        def attend(
            q: jax.Array, k: jax.Array, v: jax.Array, cache: Any, place: int = capacity + step, mask: jax.Array = mask
        ) -> tuple[jax.Array, Any]:
            keys, values = (old.at[:, place].set(new[:, 0]) for old, new in zip(cache, (k, v), strict=True))
            return masked_attention(q, keys, values, mask[:, None]), (keys, values)

        hidden, caches = llama(llama.embed(found[-1]), lengths[:, None] + step, attend, caches)
        logits = llama.logits(hidden)
    return Answers(first[..., scored], jnp.stack(found, -1))


class Scoring:
    """Both ways of asking all questions about each image, the compiled programs and what they cost."""

    def __init__(self, model: Llava, images: list[Image], options: argparse.Namespace) -> None:
        self.graphdef, self.weights = nnx.split(model)
        self.images, self.options = images, options
        scored, tokens = np.array([GOOD, BAD]), options.answer_tokens

        def whole(weights: nnx.State, rows: TreeRows) -> Answers:
            return one_pass(nnx.merge(self.graphdef, weights), rows, scored, tokens)

        def single(weights: nnx.State, token_ids: jax.Array, lengths: jax.Array, pixels: jax.Array) -> Answers:
            return one_by_one(nnx.merge(self.graphdef, weights), token_ids, lengths, pixels, scored, tokens)

        self.whole, self.single = jax.jit(whole), jax.jit(single)

    def rows(self, image: Image) -> TreeRows:
        return collate([image.together], *padded_sizes([image.together], self.options.bucket), 0, image.pixels[None])

    def batches(self, image: Image) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Conversations of like lengths together, padded like the rows of the other side."""
        singles, size = image.singles, self.options.conversations
        batches = []
        for start in range(0, len(singles), size):
            part = singles[start : start + size]
            lengths = np.array([len(row.token_ids) for row in part], np.int32)
            token_ids = np.zeros((len(part), -(-lengths.max() // self.options.bucket) * self.options.bucket), np.int32)
            for index, row in enumerate(part):
                token_ids[index, : lengths[index]] = row.token_ids
            batches.append((token_ids, lengths, image.pixels))
        return batches

    def ask_together(self) -> list[Answers]:
        return [jax.device_get(self.whole(self.weights, self.rows(image))) for image in self.images]

    def ask_one_by_one(self) -> list[list[Answers]]:
        return [
            [jax.device_get(self.single(self.weights, *batch)) for batch in self.batches(image)]
            for image in self.images
        ]

    def compare(self) -> tuple[float, bool]:
        """Largest difference of p(good), and whether all answers are the same tokens."""
        difference, same = 0.0, True
        for whole, parts in zip(self.ask_together(), self.ask_one_by_one(), strict=True):
            scores = np.concatenate([part.scores[:, 0] for part in parts])
            count = len(scores)
            p_good = [1 / (1 + np.exp(x[:, 1] - x[:, 0])) for x in (scores, whole.scores[0, :count])]
            difference = max(difference, float(np.abs(p_good[0] - p_good[1]).max()))
            texts = np.concatenate([part.token_ids[:, 0] for part in parts])
            same &= bool((texts == whole.token_ids[0, :count]).all())
        return difference, same

    def flops(self) -> tuple[float, float]:
        """Of all images."""
        together = sum(flops(self.whole, self.weights, self.rows(image)) for image in self.images)
        singles = sum(
            flops(self.single, self.weights, *batch) for image in self.images for batch in self.batches(image)
        )
        return together, singles


class Training:
    """The package's update step, on one form of the rows."""

    def __init__(self, model: Llava, rows: TreeRows, options: argparse.Namespace) -> None:
        self.mesh, self.rows = make_mesh(MeshConfig()), rows
        size = len(rows.token_ids)
        config = SftConfig(batch_size=size, remat=options.remat, accumulate=-(-size // options.rows))
        trained = trained_paths(param_paths(nnx.state(model)).keys(), ("vision_tower",))
        # An update takes its weights over, so each side has its own.
        graphdef, params, frozen = partition_params(nnx.clone(model), trained)
        dtype = jnp.dtype(options.dtype)
        self.frozen = {path: weight.astype(dtype) for path, weight in frozen.items()}
        params = {path: jnp.array(weight, jnp.float32) for path, weight in params.items()}
        optimizer, schedule = make_optimizer(config, 1000), learning_rate(config, 1000)
        abstract = abstract_state(params, optimizer, self.mesh)
        self.state = init_state(params, optimizer, self.mesh, seed=0)
        self.step = make_train_step(graphdef, abstract, optimizer, schedule, config, dtype, answer_loss)

    def __call__(self) -> float:
        with jax.set_mesh(self.mesh):
            self.state, metrics = self.step(self.state, self.frozen, to_global(self.rows, self.mesh))
            return float(metrics["loss"])


def flops(function: Any, *arguments: Any) -> float:
    """Of a jitted function, as XLA counts those of one call; the body of a loop counts once."""
    cost = function.lower(*arguments).compile().cost_analysis()
    return float((cost[0] if isinstance(cost, list) else cost)["flops"])


def forward_flops(config: LlavaConfig, rows: list[Row], images: int, places: int) -> float:
    """Of a forward pass without padding: 2 a weight and token, 4 a width, query and key; head at `places` only."""
    text, vision = config.text, config.vision
    width = text.num_heads * text.head_dim
    layer = text.hidden_size * (2 * width + 2 * text.num_kv_heads * text.head_dim + 3 * text.intermediate_size)
    tokens = sum(len(row.token_ids) for row in rows)
    pairs = sum(len(row.token_ids) ** 2 for row in rows)
    decoder = (
        text.num_layers * (2 * tokens * layer + 4 * pairs * width) + 2 * places * text.hidden_size * text.vocab_size
    )
    inner = vision.hidden_size * (4 * vision.hidden_size + 2 * vision.intermediate_size)
    seen = vision.num_patches + 1
    tower = seen * config.num_vision_layers * (2 * inner + 4 * seen * vision.hidden_size)
    return float(decoder + images * tower)


def measure(what: str, sides: dict[str, Callable[[], Any]], count: int, repeats: int, clock: Any) -> None:
    """Alternating runs of functions that are compiled; prints `count` things a second."""
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            start = clock()
            side()
            speeds[name].append(count / (clock() - start))
    print_table(what, speeds)


def compare_flops(config: LlavaConfig, rows: list[Row], singles: list[Row], images: tuple[int, int]) -> str:
    """Tokens and FLOPs of a forward pass over rows of many questions and rows of one, with that many images each."""
    tokens = [sum(len(row.token_ids) for row in each) for each in (rows, singles)]
    together, apart = (
        forward_flops(config, each, count, sum(len(row.places) for row in each))
        for each, count in zip((rows, singles), images, strict=True)
    )
    return (
        f"without padding {tokens[0]} tokens against {tokens[1]}, {together:.3g} FLOPs forward against {apart:.3g}, "
        f"{apart / together:.1f} times as many"
    )


def measure_scoring(model: Llava, images: list[Image], options: argparse.Namespace, count: int, clock: Any) -> None:
    rows, singles = [image.together for image in images], [row for image in images for row in image.singles]
    print(f"\nscoring: {compare_flops(model.config, rows, singles, (len(images), len(images)))}")
    scoring = Scoring(model, images, options)
    difference, same = scoring.compare()
    print(f"largest difference of p(good): {difference:.1e}; answers {'the same' if same else 'DIFFER'}", flush=True)
    sides: dict[str, Callable[[], Any]] = {"one pass": scoring.ask_together, "one by one": scoring.ask_one_by_one}
    measure("sentences scored/s", sides, count, options.repeats, clock)
    together, apart = scoring.flops()
    print(f"FLOPs of the compiled programs: {together:.3g} and {apart:.3g}, {apart / together:.1f} times (XLA)")


def measure_training(model: Llava, images: list[Image], options: argparse.Namespace, count: int, clock: Any) -> None:
    rows = [image.learn_together for image in images]
    singles = [row for image in images for row in image.learn_singles]
    print(f"\ntraining: {compare_flops(model.config, rows, singles, (len(rows), len(singles)))}")
    pixels = np.stack([image.pixels for image in images])
    sides: dict[str, Callable[[], Any]] = {}
    for name, each in (("branches", rows), ("separate", singles)):
        own_pixels = np.repeat(pixels, len(each) // len(rows), 0)
        sides[name] = Training(model, collate(each, *padded_sizes(each, options.bucket), 0, own_pixels), options)
    losses = {name: side() for name, side in sides.items()}
    print(f"loss before the first update: {losses}", flush=True)
    measure("sentences trained/s", sides, count, options.repeats, clock)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sizes(), default="100m")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--candidates", type=int, default=5)
    parser.add_argument("--sentences", type=int, default=6)
    parser.add_argument("--images", type=int, default=1, help="a measurement")
    parser.add_argument("--answer-tokens", type=int, default=3)
    parser.add_argument("--conversations", type=int, default=6, help="asked at a time, one by one")
    parser.add_argument("--rows", type=int, default=3, help="computed at a time in training; three take about 6 GiB")
    parser.add_argument("--bucket", type=int, default=64)
    parser.add_argument("--remat", default="none")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--parts", nargs="+", choices=("scoring", "training"), default=["scoring", "training"])
    parser.add_argument("--one-core", action="store_true", help="for a machine shared with others")
    options = parser.parse_args()

    clock = time.perf_counter
    if options.one_core:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before JAX makes its threads
        clock = time.process_time

    peer = build_peer(options.size, getattr(torch, options.dtype))
    model = port(peer, scan=False)
    images = make_images(model.config, options.images, options.candidates, options.sentences)
    count = options.images * options.candidates * options.sentences
    num_params = sum(weight.size for weight in jax.tree.leaves(nnx.state(model)))
    print(
        f"{describe_machine()}; {num_params / 1e6:.0f}M parameters, {options.dtype}, {options.images} images, "
        f"{options.candidates} candidates of {options.sentences} sentences each"
        f"{', one core, CPU seconds' if options.one_core else ''}",
        flush=True,
    )
    if "scoring" in options.parts:
        measure_scoring(model, images, options, count, clock)
    if "training" in options.parts:
        del model
        measure_training(port(peer), images, options, count, clock)


if __name__ == "__main__":
    main()
