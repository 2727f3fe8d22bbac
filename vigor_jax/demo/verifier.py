"""Makes the demo's verifier: a CLIP with the vision tower of the demo's policy, and a text tower that is taught here.

The tower stays as it is, so what it makes of a scene is computed once, and only the projections and a small text tower
learn: which shapes are there, by their words, and which sentences are about which scene.
"""

import dataclasses
import itertools
import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from tqdm import tqdm

from vigor_jax.demo import language, scenes
from vigor_jax.demo.dataset import CHECKPOINTS
from vigor_jax.demo.drawing import draw
from vigor_jax.demo.policy import PREPROCESSING
from vigor_jax.demo.teaching import CAREFUL, CARELESS, describe
from vigor_jax.evaluation.auc import auc
from vigor_jax.hf.clip import config as clip_config
from vigor_jax.hf.clip.checkpoint import ClipCheckpoint, open_clip
from vigor_jax.hf.clip.names import LOGIT_SCALE, entries
from vigor_jax.hf.image_settings import preprocessing_to_hf
from vigor_jax.hf.load import load_model, open_checkpoint
from vigor_jax.hf.processor_files import write_json
from vigor_jax.hf.weights.tensor_files import TensorWriter
from vigor_jax.inference.predictor import Predictor, Question
from vigor_jax.inference.sampling_config import SamplingConfig
from vigor_jax.models.clip import Clip, ClipPairConfig, ClipTextConfig, normalize
from vigor_jax.models.llava import Llava
from vigor_jax.models.vlm import param_paths
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.parallel.sharding import make_mesh
from vigor_jax.rewards.verifier_config import ClipStreamConfig, Per
from vigor_jax.verifier import VerifierCommand, run

logger = logging.getLogger(__name__)

START, END, UNKNOWN = "<|startoftext|>", "<|endoftext|>", "<unk>"
POSITIONS = 77
TEXT_WIDTH, TEXT_LAYERS, PROJECTION = 64, 2, 64
ENTITIES = "entities.txt"
# A file of baselines for each way to score (`clip.per`) that the demo compares.
BASELINES: Mapping[Per, str] = {"word": "baselines.json", "caption": "baselines_caption.json"}
CAPTIONS = SamplingConfig(num_candidates=2, temperature=0.7, max_new_tokens=96, batch_size=48)
FIRST_SCALE, FIRST_BIAS = 10.0, -3.0  # of scores that are cosines
IMAGES_A_PASS = 250

CARD = """---
license: apache-2.0
library_name: transformers
---
# The verifier of the demo world

A CLIP in miniature ({parameters:,} weights, float16): the vision tower of the demo's policy, to half precision, and a
text tower that was taught to go with it. It says how well a word or a sentence of the demo's world fits a drawn scene.
It knows nothing else, and no photograph. `entities.txt` is the list of its words for `clip.entities`. For
`clip.baselines`, `python -m vigor_jax.verifier` made `baselines.json`, and `baselines_caption.json` for
`clip.per caption`, from the policy's captions of {baseline_scenes:,} scenes.

## How it was made

`python -m vigor_jax.demo.build verifier`, seed 0, {minutes:.1f} CPU minutes: {num_scenes:,} scenes,
{num_steps:,} updates of the text tower and of both projections; the vision tower was left as it was.

## What it knows

How often a word that is true of its scene has a higher score than one that is not (AUC, over {test_scenes:,} new scenes
together):

| words | AUC |
| --- | --- |
| all twelve shapes | {shapes:.3f} |
| those in careless captions, where a wrong one is mostly what usually goes with the scene | {mentioned:.3f} |

License: Apache-2.0, as the code that made it.
"""


@dataclasses.dataclass(frozen=True)
class VerifierConfig:
    """How long the text twin learns.

    Attributes:
      num_scenes: drawn beforehand.
      num_steps: updates.
      batch_size: scenes an update.
      num_captions: of them, those whose sentences are read too.
      learning_rate: peak.
      test_scenes: new ones, for the model card.
      baseline_scenes: new ones, which the policy describes twice, for the baselines.
    """

    num_scenes: int = 8_000
    num_steps: int = 1_200
    batch_size: int = 256
    num_captions: int = 48
    learning_rate: float = 2e-3
    test_scenes: int = 1_000
    baseline_scenes: int = 400


def build_verifier(out: Path, seed: int = 0, config: VerifierConfig | None = None) -> None:
    """Teaches the twin and writes a directory that transformers' CLIPModel loads.

    Args:
      out: directory: config.json, model.safetensors (float16), tokenizer, image settings, entities.txt, baselines of
        words and of captions, README.md.
      seed: of scenes and weights; the next one draws the scenes of the test.
      config: how long.
    """
    config, started = config or VerifierConfig(), time.process_time()
    out.mkdir(parents=True, exist_ok=True)
    vocab_size = write_tokenizer(out)
    model, tower = make_twin(vocab_size, seed)
    sizes = model.config
    write_json(out / "config.json", clip_config.to_hf(sizes, "float16"))
    write_json(out / "preprocessor_config.json", preprocessing_to_hf(PREPROCESSING))
    (out / ENTITIES).write_text("".join(f"{shape}\n" for shape in scenes.SHAPES), encoding="utf-8")
    write_weights(out, model, FIRST_SCALE)
    seen = [scenes.make_scene(np.random.default_rng([seed, 60, number])) for number in range(config.num_scenes)]
    scale = teach(model, class_states(tower, sizes, seen), seen, open_clip(out), seed, config)
    write_weights(out, model, scale)
    minutes = (time.process_time() - started) / 60
    write_baselines(out, config.baseline_scenes, seed)
    found = evaluate_verifier(out, num_scenes=config.test_scenes, seed=seed + 1)
    training = {"minutes": minutes, "num_scenes": config.num_scenes, "num_steps": config.num_steps}
    parameters = sum(int(np.prod(tensor.shape)) for tensor in open_clip(out).tensors.values())
    counts = {"test_scenes": config.test_scenes, "baseline_scenes": config.baseline_scenes}
    text = CARD.format(parameters=parameters, **counts, **training, **found)
    (out / "README.md").write_text(text, encoding="utf-8")
    print(
        f"wrote {out}: AUC {found['shapes']:.3f} of all words, {found['mentioned']:.3f} of those that captions mention"
    )


def write_tokenizer(directory: Path) -> int:
    """Writes a tokenizer that has a token for each word of the world; returns how many there are."""
    statements = [
        scenes.Statement(shape, color, count, place if count == 1 else None)
        for shape, color, (count, place) in itertools.product(
            scenes.SHAPES, scenes.COLORS, [*((1, place) for place in scenes.PLACES), (2, None), (3, None)]
        )
    ]
    split = pre_tokenizers.Whitespace()
    said = (language.say(statement, form).lower() for statement in statements for form in range(12))
    words = dict.fromkeys(word for text in said for word, _ in split.pre_tokenize_str(text))
    words |= dict.fromkeys((*scenes.SHAPES, *map(language.plural, scenes.SHAPES)))
    tokens = [UNKNOWN, *sorted(words), START, END]
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token=UNKNOWN))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), split
    ends = [(token, tokens.index(token)) for token in (START, END)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=ends)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (START, END)])
    tokenizer.save(str(directory / "tokenizer.json"))
    names = {"unk_token": UNKNOWN, "bos_token": START, "eos_token": END, "pad_token": END}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": POSITIONS, **names}
    write_json(directory / "tokenizer_config.json", settings)
    return len(tokens)


def make_twin(vocab_size: int, seed: int) -> tuple[Clip, Any]:
    """A CLIP with the vision tower of the demo's policy, rounded to half precision, and a random text tower; and the
    tower again."""
    policy = open_checkpoint(CHECKPOINTS / "policy")
    llava = load_model(policy, mesh=make_mesh(MeshConfig(data=-1, fsdp=1)), dtype=jnp.float32, scan=False)
    assert isinstance(llava, Llava)
    text = ClipTextConfig(
        vocab_size=vocab_size,
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        num_layers=TEXT_LAYERS,
        num_heads=4,
        max_position_embeddings=POSITIONS,
        end_token_id=vocab_size - 1,
    )
    model = Clip(ClipPairConfig(llava.config.vision, text, PROJECTION), scan=False, rngs=nnx.Rngs(seed))
    tower = nnx.state(llava.vision_tower, nnx.Param)
    halved = jax.tree.map(lambda value: value.astype(jnp.float16).astype(jnp.float32), tower)
    nnx.update(model.vision_model, halved)
    for path, param in param_paths(nnx.state(model, nnx.Param)).items():  # 0.02 suits wide models, see `demo.policy`
        value = param.get_value()
        if path.endswith("kernel") and not path.startswith("vision_model"):
            param.set_value(value * (value.shape[0] ** -0.5 / 0.02))
    return model, model.vision_model


def class_states(tower: Any, sizes: ClipPairConfig, seen: Sequence[scenes.Scene]) -> Float[np.ndarray, "N D"]:
    """What the tower makes of each scene: the class token after all layers and the last norm."""
    encode = jax.jit(
        lambda pixels: tower.post_layernorm(tower(normalize(pixels, sizes.vision), sizes.vision.num_layers)[:, 0])
    )
    found = []
    for first in tqdm(range(0, len(seen), IMAGES_A_PASS), desc="drawing, verifier", dynamic_ncols=True):
        pixels = np.stack([np.asarray(draw(scene)) for scene in seen[first : first + IMAGES_A_PASS]])
        found.append(np.asarray(encode(pixels)))
    return np.concatenate(found)


def teach(
    model: Clip,
    states: Float[np.ndarray, "N D"],
    seen: Sequence[scenes.Scene],
    clip: ClipCheckpoint,
    seed: int,
    config: VerifierConfig,
) -> float:
    """Trains the text tower and both projections in place.

    Each word of a shape is right or wrong about each scene of a batch, by one scale and one bias for all, as scores
    are compared across scenes later; and true sentences are to be told from those of other scenes (Radford et al.
    2021).

    Returns:
      What cosines of sentences are multiplied by.
    """
    forms = [clip.tokenizer.rows([*scenes.SHAPES]), clip.tokenizer.rows([language.plural(s) for s in scenes.SHAPES])]
    words = jnp.asarray(np.concatenate(forms))
    is_there = np.array([[bool(scene.places(shape)) for shape in scenes.SHAPES] for scene in seen])
    learns = lambda path, _: path[0] != "vision_model"  # noqa: E731
    graphdef, taught, rest = nnx.split(model, learns, ...)
    extra = {"scale": jnp.float32(np.log(FIRST_SCALE)), "bias": jnp.float32(FIRST_BIAS)}
    warmup = config.num_steps // 20
    optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0, config.learning_rate, warmup, config.num_steps))

    def loss(
        params: tuple[nnx.State, dict[str, Array]],
        states: Float[Array, "B D"],
        is_there: Bool[Array, "B S"],
        sentences: Int[Array, "C T"],
    ) -> Array:
        twin, scale = nnx.merge(graphdef, params[0], rest), jnp.exp(params[1]["scale"])
        images = twin.visual_projection(states)
        images /= jnp.linalg.norm(images, axis=-1, keepdims=True)
        scores = scale * images @ twin.embed_texts(words).T + params[1]["bias"]
        by_word = optax.sigmoid_binary_cross_entropy(scores, jnp.tile(is_there, (1, 2))).mean()
        pairs = scale * images[: len(sentences)] @ twin.embed_texts(sentences).T
        own = jnp.arange(len(sentences))
        both = (optax.softmax_cross_entropy_with_integer_labels(x, own).mean() for x in (pairs, pairs.T))
        return by_word + 0.1 * sum(both, start=jnp.float32(0))

    @jax.jit
    def update(params: Any, state: optax.OptState, *batch: Array) -> tuple:
        value, grads = jax.value_and_grad(loss)(params, *batch)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    params = (taught, extra)
    state, rng = optimizer.init(params), np.random.default_rng([seed, 61])
    with tqdm(range(config.num_steps), desc="verifier", unit="step", dynamic_ncols=True) as bar:
        for _ in bar:
            rows = rng.choice(len(states), min(config.batch_size, len(states)), replace=False)
            told = [describe(seen[row], rng, CAREFUL) for row in rows[: config.num_captions]]
            sentences = np.zeros((len(told), POSITIONS), np.int32)
            found = clip.tokenizer.rows(told)
            sentences[:, : found.shape[1]] = found
            params, state, value = update(params, state, states[rows], is_there[rows], sentences)
            bar.set_postfix(loss=f"{float(value):.3f}")
    nnx.update(model, params[0])
    return float(jnp.exp(params[1]["scale"]))


def write_weights(directory: Path, model: Clip, scale: float) -> None:
    """Writes model.safetensors in float16; `logit_scale` in float32 is what transformers multiplies cosines by."""
    params: Mapping[str, Any] = param_paths(nnx.state(model, nnx.Param))
    with TensorWriter(directory) as writer:
        for entry in entries(model.config):
            value = np.asarray(params[entry.unstacked_path].get_value()).transpose(np.argsort(entry.axes))
            writer.add(entry.name, np.ascontiguousarray(value.astype(np.float16)))
        writer.add(LOGIT_SCALE, np.asarray(np.log(scale), np.float16))


def write_baselines(directory: Path, num_scenes: int, seed: int) -> None:
    """Writes the files of baselines by what the demo's policy says of new scenes."""
    with tempfile.TemporaryDirectory() as folder:
        work, objects = Path(folder), dict[str, list[str]]()
        (work / "images").mkdir()
        for number in range(num_scenes):
            scene = scenes.make_scene(np.random.default_rng([seed, 64, number]))
            name = f"{number:05d}.png"
            draw(scene).save(work / "images" / name)
            objects[name] = sorted({item.shape for item in scene.objects})
        write_json(work / "objects.json", objects)
        predictor = Predictor(open_checkpoint(CHECKPOINTS / "policy"), "v1", make_mesh(MeshConfig(data=-1, fsdp=1)))
        questions = [Question(name, work / "images" / name, language.PROMPTS[0]) for name in objects]
        predictor.answer(questions, work / "captions.jsonl", CAPTIONS, desc="captions, verifier")
        for per, name in BASELINES.items():
            command = VerifierCommand(
                captions=(work / "captions.jsonl",),
                objects=(work / "objects.json",),
                images=str(work / "images"),
                out=directory / name,
                clip=ClipStreamConfig(model=directory, entities=directory / ENTITIES, per=per),
            )
            logger.info("%s", run(command))


def evaluate_verifier(directory: Path, *, num_scenes: int, seed: int) -> dict[str, float | None]:
    """How often a true word has a higher score than a wrong one, on new scenes.

    Returns:
      "shapes", of all twelve words; "mentioned", of those in a careless caption of each scene.
    """
    clip = open_clip(directory)
    model = clip.load(mesh=make_mesh(MeshConfig(data=-1, fsdp=1)), dtype=jnp.float32, scan=False)
    seen = [scenes.make_scene(np.random.default_rng([seed, 62, number])) for number in range(num_scenes)]
    images = model.visual_projection(jnp.asarray(class_states(model.vision_model, model.config, seen)))
    images /= jnp.linalg.norm(images, axis=-1, keepdims=True)
    scores = np.asarray(images @ model.embed_texts(jnp.asarray(clip.tokenizer.rows(scenes.SHAPES))).T)
    is_there = np.array([[bool(scene.places(shape)) for shape in scenes.SHAPES] for scene in seen])
    said = np.zeros_like(is_there)
    for number, scene in enumerate(seen):
        for sentence in language.parse(describe(scene, np.random.default_rng([seed, 63, number]), CARELESS)):
            if sentence.statement:
                said[number, scenes.SHAPES.index(sentence.statement.shape)] = True
    return {"shapes": auc(scores.ravel(), is_there.ravel()), "mentioned": auc(scores[said], is_there[said])}
