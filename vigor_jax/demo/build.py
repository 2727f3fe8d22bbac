"""Writes the demo's world to disk: pictures, conversations, the truth, and a checkpoint that knows nothing yet."""

import dataclasses
import itertools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from tqdm import tqdm

from vigor_jax.data.conversation import IMAGE_PLACEHOLDER, TEMPLATES
from vigor_jax.data.images import Preprocessing
from vigor_jax.demo import world
from vigor_jax.demo.tokenizer_files import write_tokenizer
from vigor_jax.errors import InputError
from vigor_jax.hf import config as hf_config
from vigor_jax.hf import names
from vigor_jax.hf.load import open_checkpoint
from vigor_jax.hf.processor_files import IMAGE_TOKEN, PAD_TOKEN, write_json
from vigor_jax.hf.tensor_files import TensorWriter
from vigor_jax.models.clip import ClipConfig
from vigor_jax.models.llama import LlamaConfig
from vigor_jax.models.llava import Llava, LlavaConfig, param_paths

QUESTION = "Describe this image."
# To be raised with every change of what `prepare` writes, so that an old directory is not taken for a new one.
VERSION = 1
VOCAB_MULTIPLE = 64
DRAWN_WITH = 0.02  # deviation of what `models.layers.param` draws
# The layers that end a residual branch.
RESIDUAL = ("o_proj.kernel", "down_proj.kernel", "out_proj.kernel", "fc2.kernel")

# The world's own grey levels in place of CLIP's: paper becomes almost 0, so that objects stand out from the start.
PREPROCESSING = Preprocessing(world.IMAGE_SIZE, image_mean=(0.87, 0.87, 0.87), image_std=(0.6, 0.6, 0.6))
# Patches of half a cell's width: every place looks the same to them, and what is learnt of a shape holds for all.
VISION = ClipConfig(
    hidden_size=128,
    intermediate_size=512,
    num_layers=3,
    num_heads=4,
    image_size=world.IMAGE_SIZE,
    patch_size=world.IMAGE_SIZE // 6,
    image_mean=PREPROCESSING.image_mean,
    image_std=PREPROCESSING.image_std,
)
TEXT = LlamaConfig(
    hidden_size=128,
    intermediate_size=344,
    num_layers=4,
    num_heads=4,
    num_kv_heads=4,
    head_dim=32,
    max_position_embeddings=512,
)


def prepare(directory: Path, *, num_train: int, num_held_out: int, seed: int = 0) -> None:
    """Writes the world; does nothing where it is written already.

    The directory appears under its name when all of it is there: `images/`, `train.json` and `held_out.json`
    (conversations in LLaVA's format), `truth.json` (image → its objects) and `checkpoint/` (llava-hf layout, random
    weights). Everything depends on the seed alone, and a scene on its number, not on how many there are.

    Args:
      directory: where to.
      num_train: scenes to learn from.
      num_held_out: scenes to be tested on.
      seed: of scenes, words and weights.

    Raises:
      InputError: the directory holds something else, such as a world of other sizes.
    """
    wanted = {"version": VERSION, "num_train": num_train, "num_held_out": num_held_out, "seed": seed}
    if directory.exists():
        path = directory / "world.json"
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        if found != wanted:
            what = "something else" if found is None else f"the world {found}"
            raise InputError(f"{directory} holds {what}, expected {wanted}; remove it or choose another directory")
        return
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    truth = write_split(partial, "train", num_train, seed) | write_split(partial, "held_out", num_held_out, seed)
    _write(partial / "truth.json", truth)
    write_checkpoint(partial / "checkpoint", seed)
    write_json(partial / "world.json", wanted)
    os.replace(partial, directory)


def write_split(directory: Path, split: str, count: int, seed: int) -> dict[str, Any]:
    """Writes `images/SPLIT/` and `SPLIT.json`; returns the truth, as `truth.json` has it."""
    (directory / "images" / split).mkdir(parents=True)
    records, truth = [], {}
    for number in tqdm(range(count), desc=f"drawing {split}", unit="scene", dynamic_ncols=True):
        rng = np.random.default_rng([seed, ("train", "held_out").index(split), number])
        scene = world.make_scene(rng)
        image = f"{split}/{number:05d}.png"
        world.draw(scene).save(directory / "images" / image)
        turns = (("human", f"{IMAGE_PLACEHOLDER}\n{QUESTION}"), ("gpt", world.describe(scene, rng)))
        conversation = [{"from": role, "value": text} for role, text in turns]
        records.append({"id": f"{split}-{number:05d}", "image": image, "conversations": conversation})
        truth[image] = [
            {**item.statement._asdict(), "box_xyxy": [round(edge, 2) for edge in item.box_xyxy]}
            for item in scene.objects
        ]
    _write(directory / f"{split}.json", records)
    return truth


def write_checkpoint(directory: Path, seed: int) -> None:
    """Writes a LLaVA in llava-hf's layout: the real architecture, a tokenizer that knows the world's words, and
    weights that are random. So unlike in a real run the vision tower, too, must be trained."""
    directory.mkdir()
    tokenizer = write_tokenizer(directory, _texts(), TEXT.max_position_embeddings)
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    config = LlavaConfig(
        vision=VISION,
        text=dataclasses.replace(TEXT, vocab_size=-(-len(vocabulary) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE),
        # The tower is our own, and no layer of it is spare.
        feature_layer=-1,
        image_token_id=vocabulary[IMAGE_TOKEN],
    )
    with TensorWriter(directory) as writer:
        for name, value in random_weights(config, seed).items():
            writer.add(name, value)

    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": vocabulary[PAD_TOKEN]}
    settings = hf_config.to_hf(config, "float32", ids["pad_token_id"])
    settings["text_config"] |= ids
    write_json(directory / "config.json", settings)
    write_json(directory / "generation_config.json", ids)
    write_json(directory / "preprocessor_config.json", hf_config.preprocessing_to_hf(PREPROCESSING))
    write_json(
        directory / "processor_config.json",
        {
            "processor_class": "LlavaProcessor",
            "image_token": IMAGE_TOKEN,
            "patch_size": VISION.patch_size,
            "vision_feature_select_strategy": "default",
            "num_additional_image_tokens": 1,
        },
    )
    open_checkpoint(directory)  # raises if anything does not fit


def random_weights(config: LlavaConfig, seed: int) -> dict[str, np.ndarray]:
    """Float32 tensors by their names on disk, scaled for a narrow model that has a few hundred updates to learn."""
    model = Llava(config, scan=False, rngs=nnx.Rngs(seed))
    params = param_paths(nnx.state(model, nnx.Param))
    tensors = {}
    for entry in names.entries(config):
        value = np.asarray(params[entry.unstacked_path].get_value())
        if deviation := _deviation(entry, value.shape, config):
            value = value * np.float32(deviation / DRAWN_WITH)
        tensors[entry.name] = np.ascontiguousarray(value.transpose(np.argsort(entry.axes)))
    return tensors


def _deviation(entry: names.Entry, shape: tuple[int, ...], config: LlavaConfig) -> float | None:
    """Standard deviation of a random tensor of ours; None for norms and biases, which stay as they are.

    LLaVA's 0.02 everywhere suits its width. In a model of 128 it makes all but the residual stream vanish, and
    nothing but the world's grammar is learnt in the time that this has.
    """
    leaf = entry.path.rsplit(".", 1)[-1]
    if leaf in ("embed_tokens", "position_embedding", "class_embedding"):
        return 0.5
    if leaf == "patch_embedding":
        return 4 * float(np.prod(shape[:-1])) ** -0.5  # pixels deviate by a quarter
    if entry.axes != names.LINEAR:
        return None
    deviation = shape[0] ** -0.5
    if entry.path.endswith(RESIDUAL):  # as in GPT-2: many additions, each the smaller
        tower = config.text if entry.path.startswith("language_model") else config.vision
        deviation *= (2 * tower.num_layers) ** -0.5
    return deviation


def _texts() -> list[str]:
    """Every sentence that the world knows, and what stands around the answers."""
    things = itertools.product(world.SHAPES, world.COLOURS, world.PLACES)
    statements = [world.Statement(*thing) for thing in things]
    sentences = [world.sentence(statement, form) for statement in statements for form in world.SENTENCES]
    around = [(t.system, t.question_header, t.answer_header) for t in TEMPLATES.values()]
    return [*sentences, QUESTION, *itertools.chain.from_iterable(around)]


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
