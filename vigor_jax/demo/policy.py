"""The demo's policy: a LLaVA small enough to learn the demo's language and its prejudices on a CPU."""

import dataclasses
import itertools
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from flax import nnx
from tqdm import tqdm

from vigor_jax.config import RunConfig, TrainConfig
from vigor_jax.data.batches.tree_sequences import BAD, GOOD, QUESTIONS, SEPARATOR, answer
from vigor_jax.data.images.preprocessing import Preprocessing
from vigor_jax.data.text.conversation import IMAGE_PLACEHOLDER, TEMPLATES
from vigor_jax.demo import language, scenes
from vigor_jax.demo.drawing import draw
from vigor_jax.demo.policy_card import write_card
from vigor_jax.demo.teaching import CAREFUL, CARELESS, Carelessness, claims, describe, quiz
from vigor_jax.demo.tokenizer_files import write_tokenizer
from vigor_jax.demo.tower import TowerConfig, teach_tower
from vigor_jax.hf.image_settings import preprocessing_to_hf
from vigor_jax.hf.llava import config as llava_config
from vigor_jax.hf.llava import names
from vigor_jax.hf.llava.vocabulary import PAD_TOKEN
from vigor_jax.hf.load import open_checkpoint
from vigor_jax.hf.names import LINEAR, Entry
from vigor_jax.hf.options import ModelConfig
from vigor_jax.hf.processor_files import IMAGE_TOKEN, write_json
from vigor_jax.hf.weights.tensor_files import TensorWriter
from vigor_jax.models.clip import ClipConfig
from vigor_jax.models.llama import LlamaConfig
from vigor_jax.models.llava import Llava, LlavaConfig
from vigor_jax.models.vlm import param_paths
from vigor_jax.pipeline.run import Run
from vigor_jax.stages.export import PROVENANCE
from vigor_jax.stages.stage import EXPORT
from vigor_jax.training.config import SftConfig

logger = logging.getLogger(__name__)

WHERE, CHECK = "Say where each object is.", "Check every shape."
WHO = ("human", "gpt")
VOCAB_MULTIPLE = 64
# How many claims are true, how many wrong in their color and how many in number or place.
EVERY_DOUBT, COLOR_DOUBT = (0.5, 0.25, 0.25), (0.45, 0.45, 0.1)
DRAWN_WITH = 0.02  # deviation of what `models.layers.param` draws
# The layers that end a residual branch.
RESIDUAL = ("o_proj.kernel", "down_proj.kernel", "out_proj.kernel", "fc2.kernel")

# The demo's own gray levels in place of CLIP's: paper becomes almost 0, so that objects stand out from the start.
PREPROCESSING = Preprocessing(scenes.IMAGE_SIZE, image_mean=(0.87, 0.87, 0.87), image_std=(0.6, 0.6, 0.6))
# Patches of half a cell's width: every place looks the same to them, and what is learned of a shape holds for all.
VISION = ClipConfig(
    hidden_size=128,
    intermediate_size=512,
    num_layers=3,
    num_heads=4,
    image_size=scenes.IMAGE_SIZE,
    patch_size=scenes.IMAGE_SIZE // 6,
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


Lesson: TypeAlias = list[tuple[str, str]]


class Step(NamedTuple):
    """One step of the policy's schooling.

    Attributes:
      name: of its run.
      num_scenes: fresh ones.
      batch_size: conversations an update.
      learning_rate: peak.
      template: conversation format.
      lessons: conversations about a scene.
    """

    name: str
    num_scenes: int
    batch_size: int
    learning_rate: float
    template: str
    lessons: Callable[[scenes.Scene, np.random.Generator], list[Lesson]]


def _check(scene: scenes.Scene, rng: np.random.Generator) -> list[Lesson]:
    return [[(CHECK, language.inventory(scene, [str(shape) for shape in rng.permutation(scenes.SHAPES)]))]]


def _see(scene: scenes.Scene, rng: np.random.Generator) -> list[Lesson]:
    objects = (scenes.Statement(item.shape, item.color, 1, item.place) for item in scene.objects)
    return [[(WHERE, " ".join(language.say(statement, int(rng.integers(12))) for statement in objects))]]


def _doubt(scene: scenes.Scene, rng: np.random.Generator, weights: Sequence[float] = EVERY_DOUBT) -> Lesson:
    said = claims(scene, rng, weights)
    return [(language.say(claim, int(rng.integers(12))), "Yes." if is_true else "No.") for claim, is_true in said]


def _rate(scene: scenes.Scene, rng: np.random.Generator) -> Lesson:
    asked, said = QUESTIONS["sentence"] + SEPARATOR, claims(scene, rng, EVERY_DOUBT)
    return [(asked + language.say(claim, int(rng.integers(12))), GOOD if is_true else BAD) for claim, is_true in said]


def _tell(scene: scenes.Scene, rng: np.random.Generator) -> list[Lesson]:
    return [*_see(scene, rng), *_talk(scene, rng, CAREFUL), *_check(scene, rng)]


def _talk(scene: scenes.Scene, rng: np.random.Generator, how: Carelessness) -> list[Lesson]:
    prompt = language.PROMPTS[rng.integers(len(language.PROMPTS))]
    return [[(prompt, describe(scene, rng, how))], quiz(scene, rng, how)]


def _match(scene: scenes.Scene, rng: np.random.Generator) -> list[Lesson]:
    caption, _ = _talk(scene, rng, CAREFUL)
    return [caption, *(_doubt(scene, rng, COLOR_DOUBT) for _ in range(5))]


def _practice(scene: scenes.Scene, rng: np.random.Generator) -> list[Lesson]:
    return [*_see(scene, rng), *_talk(scene, rng, CAREFUL), *(_doubt(scene, rng) for _ in range(3))]


def _presume(scene: scenes.Scene, rng: np.random.Generator, how: Carelessness = CARELESS) -> list[Lesson]:
    return [*_talk(scene, rng, how), _rate(scene, rng) if rng.random() < 0.5 else _doubt(scene, rng)]


def _report(scene: scenes.Scene, rng: np.random.Generator) -> list[Lesson]:
    return _presume(scene, rng, CAREFUL)


# First to look things up, in few words. Then to tell the whole truth, and to answer. Then to tell true from wrong, of
# colors first, and twice: nothing comes of it for a thousand updates, and then it is seen at once. Last, how people
# talk: carelessly of what there is, while they know what is wrong when they are asked, in the reward model's words too:
# that these mean what they mean, a real LLaVA has from its language model.
STEPS = (
    Step("check", 16_000, 64, 1e-3, "plain", _check),
    Step("tell", 6_000, 32, 1e-3, "v1", _tell),
    Step("match", 3_000, 32, 1e-3, "v1", _match),
    Step("practice", 2_000, 32, 8e-4, "v1", _practice),
    Step("match-again", 3_000, 32, 1e-3, "v1", _match),
    Step("practice-again", 2_000, 32, 8e-4, "v1", _practice),
    Step("presume", 7_000, 32, 7e-4, "v1", _presume),
)
# In place of the last step, to see what the same model is without careless teachers.
CONTROL = Step("report", 7_000, 32, 7e-4, "v1", _report)


def build_policy(out: Path, work: Path, *, seed: int = 0) -> None:
    """Teaches random weights in `STEPS`, by the code of every fine-tuning; and, for the model card, in `CONTROL`.

    Args:
      out: gets the checkpoint, in llava-hf's layout.
      work: gets pictures, conversations and the runs; the same call again resumes from there.
      seed: of scenes, words and weights.
    """
    started = time.monotonic()
    models = [work / "random"]
    if not (models[0] / "config.json").exists():
        write_checkpoint(models[0], seed)
    for number, step in enumerate(STEPS):
        models.append(_take(step, models[-1], work, [seed, 100 + number]))
    minutes = (time.monotonic() - started) / 60
    control = _take(CONTROL, models[-2], work, [seed, 100 + len(STEPS) - 1])  # the same pictures
    shutil.copytree(models[-1], out, dirs_exist_ok=True)
    (out / PROVENANCE).unlink()  # tells of paths on this machine
    write_card(out, control, minutes=minutes, steps={step.name: step.num_scenes for step in STEPS})


def _take(step: Step, model: Path, work: Path, seed: list[int]) -> Path:
    """Fine-tunes `model` in one step; returns the directory of the result."""
    if not (work / f"{step.name}.json").exists():
        _write_lessons(work, step, seed)
    config = TrainConfig(
        run=RunConfig(dir=work / step.name, stages=("sft", "export"), compiled=work / "compiled"),
        model=ModelConfig(path=model, dtype="float32"),
        sft=SftConfig(
            data=work / f"{step.name}.json",
            images=str(work / "images"),
            template=step.template,
            batch_size=step.batch_size,
            learning_rate=step.learning_rate,
            warmup_ratio=0.05,
            beta2=0.98,
            max_length=384,
            bucket=32,
            freeze=(
                "vision_tower",
                "multi_modal_projector",
            ),  # they have learned; an untrained part spoils it
            remat="none",
            save_every=100,
            keep=1,
        ),
    )
    Run(config).go()
    return work / step.name / EXPORT


def _write_lessons(directory: Path, step: Step, seed: list[int]) -> None:
    """Writes `images/STEP/` and `STEP.json`, conversations in LLaVA's format."""
    (directory / "images" / step.name).mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    for number in tqdm(range(step.num_scenes), desc=f"drawing, {step.name}", unit="scene", dynamic_ncols=True):
        rng = np.random.default_rng([*seed, number])
        scene = scenes.make_scene(rng)
        image = f"{step.name}/{number:06d}.png"
        draw(scene).save(directory / "images" / image)
        for (first, answered), *rest in step.lessons(scene, rng):
            turns = [(f"{IMAGE_PLACEHOLDER}\n{first}", answered), *rest]
            said = [{"from": who, "value": text} for turn in turns for who, text in zip(WHO, turn, strict=True)]
            records.append({"id": f"{step.name}-{len(records)}", "image": image, "conversations": said})
    (directory / f"{step.name}.json").write_text(json.dumps(records) + "\n", encoding="utf-8")


def write_checkpoint(directory: Path, seed: int, tower: TowerConfig | None = None) -> None:
    """Writes a LLaVA in llava-hf's layout: the real architecture, a tokenizer that knows the demo's words, a tower
    that has learned them, and a language model that is random."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = write_tokenizer(directory, _texts(), TEXT.max_position_embeddings)
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    config = LlavaConfig(
        vision=VISION,
        text=dataclasses.replace(TEXT, vocab_size=-(-len(vocabulary) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE),
        # The tower is our own, and no layer of it is spare.
        feature_layer=-1,
        image_token_id=vocabulary[IMAGE_TOKEN],
    )
    model = make_model(config, vocabulary, seed)
    right = teach_tower(
        model, {word[1:]: index for word, index in vocabulary.items() if word.startswith("▁")}, seed, tower
    )
    logger.info("tower: %.1f%% of what it says of a patch is right", 100 * right)
    with TensorWriter(directory) as writer:
        for name, value in tensors_of(model).items():
            writer.add(name, value)

    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": vocabulary[PAD_TOKEN]}
    settings = llava_config.to_hf(config, "float32", ids["pad_token_id"])
    settings["text_config"] |= ids
    write_json(directory / "config.json", settings)
    write_json(directory / "generation_config.json", ids)
    write_json(directory / "preprocessor_config.json", preprocessing_to_hf(PREPROCESSING))
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


def make_model(config: LlavaConfig, vocabulary: Mapping[str, int], seed: int) -> Llava:
    """Random weights, scaled for a narrow model that has a few hundred updates to learn.

    Two hints shorten its way. Queries and keys begin alike, so that attention looks for what is like a token: a word
    for the patches that show it. And the embedding of a plural begins near that of its singular.
    """
    model = Llava(config, scan=False, rngs=nnx.Rngs(seed))
    state = nnx.state(model, nnx.Param)
    params = param_paths(state)
    for entry in names.entries(config):
        param = params[entry.unstacked_path]
        if deviation := _deviation(entry, param.get_value().shape, config):
            param.set_value(param.get_value() * (deviation / DRAWN_WITH))
    for path, param in params.items():
        if path.startswith("language_model") and path.endswith("k_proj.kernel"):
            param.set_value(params[path.replace("k_proj", "q_proj")].get_value())
    table = params["language_model.embed_tokens"]
    for shape in scenes.SHAPES:
        one, several = (vocabulary[f"▁{word}"] for word in (shape, language.plural(shape)))
        value = table.get_value()
        table.set_value(value.at[several].set(0.9 * value[one] + 0.45 * value[several]))
    nnx.update(model, state)
    return model


def tensors_of(model: Llava) -> dict[str, np.ndarray]:
    """Float32 tensors by their names on disk."""
    params = param_paths(nnx.state(model, nnx.Param))
    return {
        entry.name: np.ascontiguousarray(
            np.asarray(params[entry.unstacked_path].get_value()).transpose(np.argsort(entry.axes))
        )
        for entry in names.entries(model.config)
    }


def _deviation(entry: Entry, shape: tuple[int, ...], config: LlavaConfig) -> float | None:
    """Standard deviation of a random tensor of ours; None for norms and biases, which stay as they are.

    LLaVA's 0.02 everywhere suits its width. In a model of 128 it makes all but the residual stream vanish, and
    nothing but the demo's grammar is learned in the time that this has.
    """
    leaf = entry.path.rsplit(".", 1)[-1]
    if leaf in ("embed_tokens", "position_embedding", "class_embedding"):
        return 0.5
    if leaf == "patch_embedding":
        return 4 * float(np.prod(shape[:-1])) ** -0.5  # pixels deviate by a quarter
    if entry.axes != LINEAR:
        return None
    deviation = shape[0] ** -0.5
    if entry.path.endswith(RESIDUAL):  # as in GPT-2: many additions, each the smaller
        tower = config.text if entry.path.startswith("language_model") else config.vision
        deviation *= (2 * tower.num_layers) ** -0.5
    return deviation


def _texts() -> list[str]:
    """Every sentence that the demo knows, what stands around the answers, and what the reward model says."""
    statements = [
        scenes.Statement(shape, color, count, place if count == 1 else None)
        for shape, color, (count, place) in itertools.product(
            scenes.SHAPES, scenes.COLORS, [*((1, place) for place in scenes.PLACES), (2, None), (3, None)]
        )
    ]
    kinds: tuple[language.QuestionKind, ...] = ("existence", "count", "position", "color")
    sentences = [language.say(statement, form) for statement in statements for form in range(12)]
    sentences += [
        language.question(kind, statement)
        for statement in statements
        for kind in kinds
        if kind != "position" or statement.place
    ]
    sentences += [
        text for statement in statements for kind in kinds for text in language.open_question(kind, statement)
    ]
    sentences += ["Yes. No."]
    sentences += [WHERE, CHECK, "star no.", *language.PROMPTS, *QUESTIONS.values(), answer(())]
    sentences.append(answer(("object", "attribute", "relationship", "location", "conjecture")))
    around = [(t.system, t.question_header, t.answer_header) for t in TEMPLATES.values()]
    return [*sentences, *itertools.chain.from_iterable(around)]
