"""What the demo's detector learns from: drawn scenes, prompts about them, and which words are true of which object."""

import dataclasses
import string
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from vigor_jax.demo.detector_files import IMAGE_MEAN, IMAGE_STD, MAX_TOKENS, SPECIAL_IDS, VOCAB_SIZE, make_tokenizer
from vigor_jax.demo.drawing import box_xyxy, draw
from vigor_jax.demo.scenes import COLORS, IMAGE_SIZE, MAX_OBJECTS, SHAPES, Scene, make_scene

CLS, SEP, DOT = (SPECIAL_IDS[name] for name in ("[CLS]", "[SEP]", "."))
MAX_PHRASES = 12
# That a prompt also holds a word that means nothing here.
FOREIGN_CHANCE = 0.2
# Of a prompt's phrases these shares have a color, one prompt in three each.
COLORED_SHARES = (0.0, 0.4, 0.8)


class Phrase(NamedTuple):
    """A color or "", and a shape or another word."""

    color: str
    noun: str

    @property
    def text(self) -> str:
        return f"{self.color} {self.noun}".strip()

    def means(self, thing: "Phrase") -> bool:
        """Whether it is true of an object that has this color and shape."""
        return self.noun == thing.noun and self.color in ("", thing.color)


class Pictures(NamedTuple):
    """N scenes.

    Attributes:
      pixels: [N, 3, H, W] uint8.
      things: what each of their objects is.
      boxes: of each scene's objects [M, 4] float32: center x, y, width, height, relative to the picture.
    """

    pixels: np.ndarray
    things: list[list[Phrase]]
    boxes: list[np.ndarray]


class Batch(NamedTuple):
    """Prompts about B pictures.

    Attributes:
      input_ids: [B, T] int64, 0 beyond a prompt's end.
      boxes: [B, M, 4] float32, 0 where there is no object.
      targets: [B, M, T] bool: the tokens of all phrases that are true of an object; none where it was not asked for.
    """

    input_ids: np.ndarray
    boxes: np.ndarray
    targets: np.ndarray


def write_lessons(path: Path, num_steps: int, batch_size: int, num_pictures: int, rng: np.random.Generator) -> None:
    """Draws pictures and makes the prompts of every update; writes what `detector_bridge.miniature` reads."""
    pictures, tokenizer = draw_pictures(num_pictures, rng), make_tokenizer()
    rows = (num_steps, batch_size)
    indices = np.zeros(rows, np.int32)
    input_ids = np.zeros((*rows, MAX_TOKENS), np.int16)
    boxes = np.zeros((*rows, MAX_OBJECTS, 4), np.float32)
    targets = np.zeros((*rows, MAX_OBJECTS, MAX_TOKENS), bool)
    for step in tqdm(range(num_steps), desc="prompts", unit="step", dynamic_ncols=True):
        indices[step] = rng.integers(num_pictures, size=batch_size)
        batch = make_batch(pictures, indices[step], tokenizer, rng)
        num_objects, num_tokens = batch.targets.shape[1:]
        input_ids[step, :, :num_tokens] = batch.input_ids
        boxes[step, :, :num_objects] = batch.boxes
        targets[step, :, :num_objects, :num_tokens] = batch.targets
    np.savez(
        path, pictures=pictures.pixels, indices=indices, input_ids=input_ids, boxes=boxes, targets=targets,
        image_mean=IMAGE_MEAN, image_std=IMAGE_STD, vocab_size=VOCAB_SIZE,
    )  # fmt: skip


def draw_pictures(count: int, rng: np.random.Generator) -> Pictures:
    """Scenes of the demo and, every other one, scenes in which nothing goes with anything.

    In the latter each object has a shape and its own color, so that neither can be told from what is around.
    """
    pixels = np.empty((count, 3, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    things, boxes = [], []
    for number in tqdm(range(count), desc="drawing", unit="scene", dynamic_ncols=True):
        scene = make_scene(rng)
        if number % 2:
            scene = _shuffled(scene, rng)
        pixels[number] = np.asarray(draw(scene)).transpose(2, 0, 1)
        things.append([Phrase(item.color, item.shape) for item in scene.objects])
        edges = np.array([box_xyxy(item) for item in scene.objects], np.float32).reshape(-1, 2, 2) / IMAGE_SIZE
        boxes.append(np.concatenate([edges.mean(1), edges[:, 1] - edges[:, 0]], axis=1))
    return Pictures(pixels, things, boxes)


def make_phrases(things: Sequence[Phrase], rng: np.random.Generator) -> list[Phrase]:
    """One to twelve phrases about a scene, about half of them true, the others often nearly so."""
    colored = COLORED_SHARES[rng.integers(len(COLORED_SHARES))]
    phrases = []
    for _ in range(rng.integers(1, MAX_PHRASES + 1)):
        thing, other = (things[index] for index in rng.integers(len(things), size=2))
        chance, kind = rng.random(2)
        noun = thing.noun if chance < 0.5 else SHAPES[rng.integers(len(SHAPES))]
        color = ""
        if rng.random() < colored:
            # Its own, that of something else in the picture, or any.
            color = thing.color if kind < 0.5 else other.color if kind < 0.8 else COLORS[rng.integers(len(COLORS))]
        phrases.append(Phrase(color, noun))
    if rng.random() < FOREIGN_CHANCE:
        word = "".join(string.ascii_lowercase[letter] for letter in rng.integers(26, size=rng.integers(3, 7)))
        phrases[rng.integers(len(phrases))] = Phrase("", word)
    return list(dict.fromkeys(phrases))


def make_prompt(
    phrases: Sequence[Phrase], things: Sequence[Phrase], tokenizer: Tokenizer
) -> tuple[list[int], np.ndarray]:
    """Token ids, [CLS] and [SEP] included, and which of them are true of each thing: [M, T] bool."""
    ids, means = [CLS], [np.zeros(len(things), bool)]
    for phrase in phrases:
        own = tokenizer.encode(phrase.text, add_special_tokens=False).ids
        true_of = np.array([phrase.means(thing) for thing in things])
        ids += [*own, DOT]
        means += [true_of] * len(own) + [np.zeros(len(things), bool)]
    return [*ids, SEP], np.stack([*means, np.zeros(len(things), bool)], axis=1)


def make_batch(pictures: Pictures, indices: np.ndarray, tokenizer: Tokenizer, rng: np.random.Generator) -> Batch:
    """Pads new prompts about these pictures to the longest, and their objects to the most."""
    prompts = []
    for index in indices:
        things = pictures.things[index]
        prompts.append(make_prompt(make_phrases(things, rng), things, tokenizer))
    num_tokens = max(len(ids) for ids, _ in prompts)
    num_objects = max(len(means) for _, means in prompts)
    input_ids = np.zeros((len(indices), num_tokens), np.int64)
    boxes = np.zeros((len(indices), num_objects, 4), np.float32)
    targets = np.zeros((len(indices), num_objects, num_tokens), bool)
    for row, (index, (ids, means)) in enumerate(zip(indices, prompts, strict=True)):
        input_ids[row, : len(ids)] = ids
        boxes[row, : len(means)] = pictures.boxes[index]
        targets[row, : len(means), : len(ids)] = means
    return Batch(input_ids, boxes, targets)


def _shuffled(scene: Scene, rng: np.random.Generator) -> Scene:
    shapes, colors = rng.choice(SHAPES, len(scene.objects)), rng.choice(COLORS, len(scene.objects))
    objects = (
        dataclasses.replace(item, shape=str(shape), color=str(color))
        for item, shape, color in zip(scene.objects, shapes, colors, strict=True)
    )
    return dataclasses.replace(scene, objects=tuple(objects))
