"""The verifier that is shipped: small, with the policy's tower, the same in transformers, and right on new scenes."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from vigor_jax.demo import scenes
from vigor_jax.demo.dataset import CHECKPOINTS
from vigor_jax.demo.drawing import draw
from vigor_jax.demo.language import parse, plural
from vigor_jax.demo.scenes import SHAPES, make_scene
from vigor_jax.demo.teaching import CAREFUL, describe
from vigor_jax.demo.verifier import BASELINES, ENTITIES, VerifierConfig, build_verifier, evaluate_verifier
from vigor_jax.hf.clip.checkpoint import compare_towers, open_clip
from vigor_jax.hf.load import open_checkpoint
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.parallel.sharding import make_mesh
from vigor_jax.records import ScoreItem
from vigor_jax.rewards.clip import ClipStream
from vigor_jax.rewards.clip_baselines import Baselines
from vigor_jax.rewards.entities import EntityPhrases
from vigor_jax.rewards.verifier import ClipVerifier
from vigor_jax.rewards.verifier_config import ClipStreamConfig

VERIFIER = CHECKPOINTS / "verifier"
FLOOR = 0.9


def test_it_is_small_and_has_all_its_files():
    assert sum(path.stat().st_size for path in VERIFIER.iterdir()) <= 2 << 20
    assert {tensor.dtype.name for tensor in open_clip(VERIFIER).tensors.values()} == {"float16"}
    assert (VERIFIER / "README.md").read_text(encoding="utf-8").count("vigor_jax.demo.build verifier") == 1
    assert tuple(dict.fromkeys(EntityPhrases(VERIFIER / ENTITIES).forms.values())) == SHAPES


def test_it_has_the_tower_of_the_policy():
    said = compare_towers(open_clip(VERIFIER), open_checkpoint(CHECKPOINTS / "policy"))
    assert said.startswith("the policy's vision tower has the verifier's weights")


@pytest.mark.parametrize("per", BASELINES)
def test_its_baselines_are_its_own(per):
    """And tell right from wrong: words well, whole captions a little (FiSAO's figure 1)."""
    files = {"model": VERIFIER, "entities": VERIFIER / ENTITIES, "baselines": VERIFIER / BASELINES[per]}
    config = ClipStreamConfig(**files, per=per, margin=0.0)
    baselines = Baselines.read(VERIFIER / BASELINES[per])
    ClipStream(open_clip(VERIFIER), config, make_mesh(MeshConfig()), baselines)
    distance = baselines.correct.mean - baselines.hallucinated.mean
    assert distance > (1.0 if per == "word" else 0.2) * baselines.hallucinated.std
    assert baselines.hallucinated.words > 100


def pictures(count: int, seed: int):
    found = [make_scene(np.random.default_rng([seed, number])) for number in range(count)]
    return found, np.stack([np.asarray(draw(scene)) for scene in found])


def test_transformers_gives_the_same_embeddings():
    _, pixels = pictures(4, 91)
    texts = [*SHAPES, *map(plural, SHAPES), "There is a star in red at the top. We see moons in blue, 2 in all!"]
    clip = open_clip(VERIFIER)
    ours = clip.load(mesh=make_mesh(MeshConfig()), dtype=jnp.float32, scan=False)
    model = transformers.CLIPModel.from_pretrained(VERIFIER, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(VERIFIER)
    values = (pixels / np.float32(255) - np.float32(0.87)) / np.float32(0.6)
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = model(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"],
            pixel_values=torch.tensor(values.transpose(0, 3, 1, 2), dtype=torch.float32),
        )  # fmt: skip
    words = ours.embed_texts(jnp.asarray(clip.tokenizer.rows(texts)))
    assert np.abs(np.asarray(words) - theirs.text_embeds.numpy()).max() < 1e-5
    assert np.abs(np.asarray(ours.embed_images(jnp.asarray(pixels))) - theirs.image_embeds.numpy()).max() < 1e-5


def test_words_that_are_true_score_higher(tmp_path):
    """By the code of every verifier, on scenes that it has not seen: of all shapes, and of those that captions mention
    wrongly, which are mostly what usually goes with the scene."""
    found, _ = pictures(150, 92)
    items = []
    for number, scene in enumerate(found):
        path = tmp_path / f"{number}.png"
        draw(scene).save(path)
        rng = np.random.default_rng([93, number])
        texts = (describe(scene, rng), " ".join(f"A {shape}." for shape in SHAPES), describe(scene, rng, CAREFUL))
        items.append(ScoreItem(path.name, path, "", texts))
    config = ClipStreamConfig(model=VERIFIER, entities=VERIFIER / ENTITIES)
    verifier = ClipVerifier(open_clip(VERIFIER), config, make_mesh(MeshConfig()))
    scores = list(verifier.score(items))
    for text in (0, 1):
        words = [
            (each.cosine, bool(scene.places(each.label)))
            for scene, texts in zip(found, scores, strict=True)
            for each in texts[text]
        ]
        right, wrong = (np.array([cosine for cosine, kind in words if kind is is_true]) for is_true in (True, False))
        assert len(wrong) > 40
        assert (right[:, None] > wrong).mean() > FLOOR
    # Every shape of a careful caption is found, singular or plural.
    for scene, texts, item in zip(found, scores, items, strict=True):
        said = {sentence.statement.shape for sentence in parse(item.texts[2])}
        assert {each.label for each in texts[2]} == said <= {each.shape for each in scene.objects}


def test_sentences_fit_their_own_scenes():
    """Better than half of the other scenes', on average."""
    found, pixels = pictures(60, 94)
    clip = open_clip(VERIFIER)
    model = clip.load(mesh=make_mesh(MeshConfig()), dtype=jnp.float32, scan=False)
    texts = [describe(scene, np.random.default_rng([95, n]), CAREFUL) for n, scene in enumerate(found)]
    points = np.asarray(model.embed_images(jnp.asarray(pixels)))
    table = points @ np.asarray(model.embed_texts(jnp.asarray(clip.tokenizer.rows(texts)))).T
    own = np.diag(table)
    assert (own[:, None] > table).mean() > 0.8


@pytest.mark.slow
def test_it_learns(tmp_path):
    """The same steps, few of them: from chance to better than chance."""
    short = VerifierConfig(
        num_scenes=600, num_steps=300, batch_size=64, num_captions=8, test_scenes=100, baseline_scenes=20
    )
    build_verifier(tmp_path / "taught", 0, short)
    build_verifier(tmp_path / "untaught", 0, dataclasses.replace(short, num_steps=1, learning_rate=0.0))
    after, before = (evaluate_verifier(tmp_path / name, num_scenes=100, seed=5) for name in ("taught", "untaught"))
    assert after["shapes"] > 0.75
    assert after["shapes"] > before["shapes"] + 0.2
    assert set(scenes.SHAPES) <= set((tmp_path / "taught" / ENTITIES).read_text().split())
