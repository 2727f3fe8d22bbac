"""The policy that is shipped: small, loaded by everybody, and the same in transformers."""

import dataclasses
import itertools
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from vigor_jax.data.images.preprocessing import load_image
from vigor_jax.data.text.conversation import TEMPLATES
from vigor_jax.demo.dataset import CHECKPOINTS
from vigor_jax.demo.drawing import draw
from vigor_jax.demo.language import NUMBERS, PROMPTS, errors, parse, plural
from vigor_jax.demo.policy import STEPS, TEXT, VISION, make_model, write_checkpoint
from vigor_jax.demo.scenes import PLACES, SHAPES, Scene, make_scene
from vigor_jax.demo.teaching import describe
from vigor_jax.demo.tower import GROUPS, TowerConfig, name_patches, teach_tower
from vigor_jax.hf.load import open_checkpoint
from vigor_jax.hf.weights.tensor_files import TensorReader
from vigor_jax.inference.predictor import Predictor, Question, read_answers
from vigor_jax.inference.sampling_config import SamplingConfig
from vigor_jax.models.llava import LlavaConfig
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.parallel.sharding import make_mesh

POLICY = CHECKPOINTS / "policy"
GREEDY = SamplingConfig(num_candidates=1, temperature=0.0, max_new_tokens=96, batch_size=24, prompt_bucket=16)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Scene]:
    folder, scenes = tmp_path_factory.mktemp("pictures"), {}
    for number in range(24):
        scene = make_scene(np.random.default_rng([77, number]))
        scenes[folder / f"{number:02}.png"] = scene
        draw(scene).save(folder / f"{number:02}.png")
    return scenes


def caption(model: Path, pictures: dict[Path, Scene], out: Path) -> list[str]:
    predictor = Predictor(open_checkpoint(model), "v1", make_mesh(MeshConfig()))
    predictor.answer([Question(path.name, path, PROMPTS[0]) for path in pictures], out, GREEDY)
    return [line["text"] for line in read_answers(out)]


def test_it_is_small_and_has_all_its_files() -> None:
    reader = TensorReader.open(POLICY)
    assert sum(path.stat().st_size for path in reader.files) <= 8_000_000
    assert {reader.dtype(name).name for name in reader.names()} == {"float32"}
    assert (POLICY / "README.md").read_text(encoding="utf-8").count("vigor_jax.demo.build policy") == 1


@pytest.mark.slow
def test_transformers_writes_the_same_captions(pictures: dict[Path, Scene], tmp_path: Path) -> None:
    """Token for token, greedily, with transformers' own processor and `generate`."""
    model, report = transformers.LlavaForConditionalGeneration.from_pretrained(
        POLICY, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    processor = transformers.AutoProcessor.from_pretrained(POLICY)
    prompt = f"{TEMPLATES['v1'].system}USER: <image>\n{PROMPTS[0]} ASSISTANT:"
    theirs = []
    for path in pictures:
        inputs = processor(images=load_image(path), text=prompt, return_tensors="pt")
        with torch.no_grad():
            ids = model.eval().generate(**inputs, max_new_tokens=96, do_sample=False)
        text = processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        theirs.append(text.strip())
    assert caption(POLICY, pictures, tmp_path / "ours.jsonl") == theirs


def test_it_has_learned_the_demo(pictures: dict[Path, Scene], tmp_path: Path) -> None:
    """Every sentence is one of the demo's, most are true, and it hallucinates."""
    texts = caption(POLICY, pictures, tmp_path / "ours.jsonl")
    said = [
        (sentence.statement, scene)
        for text, scene in zip(texts, pictures.values(), strict=True)
        for sentence in parse(text)
    ]
    found = [errors(statement, scene) for statement, scene in said if statement]
    assert len(found) == len(said)
    assert np.mean([not kinds for kinds in found]) > 0.6


def test_every_word_is_one_token() -> None:
    tokenizer = open_checkpoint(POLICY).tokenizer
    for number in range(50):
        rng = np.random.default_rng(number)
        text = describe(make_scene(rng), rng)
        assert len(tokenizer.encode(text)) == len(text.split()) + text.count(".") + text.count(",")
        assert tokenizer.decode(tokenizer.encode(text)) == text
    for step in STEPS:
        rng = np.random.default_rng(1)
        for lesson in step.lessons(make_scene(rng), rng):
            # The first word of a line has no space before it, and is written otherwise.
            for asked in itertools.chain.from_iterable(asked.split("\n") for asked, _ in lesson):
                assert len(tokenizer.encode(asked)) == len(asked.split()) + sum(asked.count(mark) for mark in ".,?")
    assert tokenizer.decode(tokenizer.encode("Ein Löwe, 42 ☂.")) == "Ein Löwe, 42 ☂."  # bytes spell the rest


@pytest.mark.slow
def test_random_weights_depend_on_the_seed_alone(tmp_path: Path) -> None:
    tower = TowerConfig(num_scenes=60, num_steps=60, batch_size=16)
    for name, seed in (("first", 0), ("second", 0), ("other", 1)):
        write_checkpoint(tmp_path / name, seed, tower)
    first, second, other = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second", "other")
    )
    assert first == second != other


@pytest.mark.slow
def test_the_tower_learns_the_names_of_patches() -> None:
    """From chance to most of them in a few updates, while the language model stays as it is."""
    words = sorted({word for group in GROUPS for word in group})
    token_ids = {word: index for index, word in enumerate(words)}
    config = LlavaConfig(vision=VISION, text=dataclasses.replace(TEXT, vocab_size=64, num_layers=1), feature_layer=-1)
    vocabulary = {f"▁{word}": i for i, word in enumerate([*SHAPES, *map(plural, SHAPES)])}
    model = make_model(config, vocabulary, 0)
    before = [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model.language_model, nnx.Param))]
    right = teach_tower(model, token_ids, 0, TowerConfig(num_scenes=400, num_steps=160, batch_size=16))
    assert right > 0.6  # chance is 0.2, the commonest word of each group 0.5
    after = jax.tree.leaves(nnx.state(model.language_model, nnx.Param))
    assert all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))


def test_patches_are_named_as_the_scene_says() -> None:
    scene = make_scene(np.random.default_rng(5))
    named = name_patches(scene)
    for item in scene.objects:
        row, column = divmod(PLACES.index(item.place), 3)
        for patch in (6 * (2 * row) + 2 * column, 6 * (2 * row + 1) + 2 * column + 1):
            shape, color, number, *_ = (group[index] for group, index in zip(GROUPS, named[patch], strict=True))
            assert (shape, color) == (item.shape, item.color)
            assert NUMBERS.index(number) == len(scene.places(item.shape))
    empty = sum(1 for row in named if GROUPS[0][row[0]] == "no")
    assert empty == 4 * (9 - len(scene.objects))
