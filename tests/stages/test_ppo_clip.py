"""PPO with the verifier as its stream, through the command, as `configs/fisao_7b.yaml` has it."""

import functools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.rewards import clip_world
from tests.stages.ppo_world import PROMPTS, make_world
from tests.stages.sft_world import finish, spawn_python
from tests.stages.test_ppo import curve, iterations, weights
from tests.tiny_clip import TinyClip
from tests.tiny_clip import build_checkpoint as build_clip
from vigor_jax import train
from vigor_jax.errors import InputError
from vigor_jax.records import Rollout
from vigor_jax.rewards.clip_baselines import make_baselines
from vigor_jax.rewards.verifier import ClipVerifier

SCALE, MARGIN = 250.0, 0.25  # the margin in standard deviations


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A policy, images, a verifier, and as entities the words that the policy's tokens are the beginnings of."""
    root = make_world(tmp_path_factory.mktemp("clip") / "w", images=8)
    build_clip(root / "clip", TinyClip())
    pieces = json.loads((root / "model" / "tokenizer.json").read_text())["model"]["vocab"]
    words = {piece[1:].lower() for piece in pieces if re.fullmatch("▁[A-Za-z]{2,}", piece)}
    (root / "entities.txt").write_text("\n".join(sorted(words)))
    return root


@pytest.fixture(scope="module")
def cosine(world) -> Any:
    """(image, text) → cosine, by transformers alone."""
    model = transformers.CLIPModel.from_pretrained(world / "clip").eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(world / "clip")
    processor = transformers.CLIPImageProcessor.from_pretrained(world / "clip")

    limit = model.config.text_config.max_position_embeddings

    @functools.cache
    @torch.no_grad()
    def of_image(name: str) -> torch.Tensor:
        pixels = processor([Image.open(world / "images" / name)], return_tensors="pt")
        return unit(model.visual_projection(model.vision_model(**pixels).pooler_output[0]))

    @functools.cache
    @torch.no_grad()
    def of_text(text: str) -> torch.Tensor:
        tokens = tokenizer([text], truncation=True, max_length=limit, return_tensors="pt")
        return unit(model.text_projection(model.text_model(**tokens).pooler_output[0]))

    def unit(x: torch.Tensor) -> torch.Tensor:
        return x / x.norm()

    return lambda image, text: float(of_image(image) @ of_text(text))


@pytest.fixture(scope="module")
def baselines(world, cosine) -> dict[str, Path]:
    """By what is scored: a file by which the upper half of what was scored is correct."""
    words = (world / "entities.txt").read_text().split()
    rng, files = np.random.default_rng(0), {}
    for per in ("word", "caption"):
        texts = words if per == "word" else [" ".join(rng.choice(words, 6)) for _ in range(24)]
        found = [cosine(f"{image:02}.png", text) for image in range(8) for text in texts]
        verifier = ClipVerifier(
            clip_world.checkpoint(world), clip_world.config(world, per=per, pad=False), clip_world.mesh()
        )
        middle, files[per] = float(np.median(found)), world / f"{per}.json"
        make_baselines([[(each, each < middle) for each in found]], verifier.made_of).write(files[per])
    return files


def arguments(world: Path, run_dir: Path, baselines: dict[str, Path], per: str = "word", **clip: Any) -> list[str]:
    """A config file with all of it, and the option that names it."""
    settings = {"per": per, "scale": SCALE, "margin": MARGIN, "margin_unit": "std", "pad": "false"} | clip
    config = f"""
run: {{dir: {run_dir}, stages: [ppo, export]}}
model: {{path: {world / "model"}, dtype: float32}}
score: {{streams: [clip]}}
clip:
  model: {world / "clip"}
  baselines: {baselines[per]}
  entities: {world / "entities.txt"}
  batch_size: 4
  {json.dumps(settings)[1:-1].replace('"', "").replace(", ", chr(10) + "  ")}
ppo:
  images: {world / "images"}
  prompts: {list(PROMPTS)}
  batch_size: 8
  epochs: 2
  minibatch: 8
  ppo_epochs: 2
  learning_rate: 3.0e-4
  eps: 1.0e-3
  bucket: 32
  lora: {{rank: 4, alpha: 8}}
  sampling: {{temperature: 1.0, num_candidates: 3, max_new_tokens: 16, batch_size: 8, prompt_bucket: 8}}
"""
    file = run_dir.with_suffix(".yaml")
    file.write_text(config)
    return ["--config", str(file)]


@pytest.fixture(scope="module")
def words_run(world, baselines, tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("words") / "run"
    train.main(arguments(world, run_dir, baselines))
    return run_dir


def eq_8(cosine: float, baselines: Path) -> float:
    """N(s) beyond the margins, else 0; from the file alone."""
    sides = json.loads(baselines.read_text())
    right, wrong = sides["correct"], sides["hallucinated"]
    score = SCALE * cosine
    rewarded = SCALE * (right["mean"] + MARGIN * right["std"])
    punished = SCALE * (wrong["mean"] - MARGIN * wrong["std"])
    highest = SCALE * max(side["quantiles"][-1] for side in (right, wrong))
    lowest = SCALE * min(side["quantiles"][0] for side in (right, wrong))
    if score >= rewarded:
        return min((score - rewarded) / (highest - rewarded), 1.0)
    return -min((punished - score) / (punished - lowest), 1.0) if score <= punished else 0.0


def all_rollouts(run_dir: Path) -> list[Rollout]:
    return [rollout for some in iterations(run_dir) for rollout in some]


@pytest.mark.slow
@pytest.mark.main
def test_words_are_paid_by_eq_8(words_run, baselines, cosine):
    """On the tokens of their first place, which share it; as transformers and the file of the baselines say."""
    rewards = []
    for rollout in all_rollouts(words_run):
        (verdict,) = rollout.verdicts
        expected = np.zeros(len(rollout.token_ids))
        for signal in verdict.signals:
            found = cosine(rollout.image, signal.label)
            assert signal.score == pytest.approx(min(max(found, 0.0), 1.0), abs=1e-5)
            rewards.append(eq_8(found, baselines["word"]))
            first = signal.spans[0]
            inside = [
                number for number, own in enumerate(rollout.token_spans)
                if max(own.start, first.start) < min(own.end, first.end)
            ]  # fmt: skip
            expected[inside] += rewards[-1] / len(inside)
        np.testing.assert_allclose(rollout.rewards, expected, atol=2e-4)
    assert len(rewards) > 10
    assert min(rewards) < 0 < max(rewards)
    assert 0 in rewards
    assert (words_run / "export" / "adapter_config.json").exists()
    assert all(line["sampling_gap"] < 1e-5 for line in curve(words_run))


@pytest.mark.slow
def test_a_caption_is_paid_at_its_end(world, baselines, cosine, tmp_path):
    """The control: one score for all of it."""
    train.main(arguments(world, tmp_path / "run", baselines, "caption"))
    rewards = []
    for rollout in all_rollouts(tmp_path / "run"):
        assert not any(rollout.rewards[:-1])
        expected = eq_8(cosine(rollout.image, rollout.text), baselines["caption"]) if rollout.text else 0.0
        assert rollout.rewards[-1] == pytest.approx(expected, abs=2e-4)
        rewards.append(expected)
    assert min(rewards) < 0 < max(rewards)


@pytest.mark.slow
def test_eight_devices_equal_one(world, baselines, words_run, tmp_path):
    """The verifier's rows, the sampler's and the learner's split over different axes."""
    meshes = ["--mesh.data", "2", "--mesh.fsdp", "2", "--mesh.tensor", "2"]
    meshes += ["--inference_mesh.data", "4", "--inference_mesh.fsdp", "1", "--inference_mesh.tensor", "2"]
    command = ["-m", "vigor_jax.train", *arguments(world, tmp_path / "run", baselines), *meshes]
    finish(spawn_python(command, devices=8, cache=tmp_path / "cache"))
    for got, expected in zip(all_rollouts(tmp_path / "run"), all_rollouts(words_run), strict=True):
        assert (got.image, got.candidate, got.token_ids) == (expected.image, expected.candidate, expected.token_ids)
        assert [each.label for each in got.verdicts[0].signals] == [each.label for each in expected.verdicts[0].signals]
        for name in ("rewards", "logprobs", "ref_logprobs", "values", "advantages"):
            np.testing.assert_allclose(getattr(got, name), getattr(expected, name), atol=2e-4, err_msg=name)
    final = weights(words_run)
    for path, value in weights(tmp_path / "run").items():
        np.testing.assert_allclose(value, final[path], atol=1e-5, rtol=0, err_msg=path)


# What is refused


def refused(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        train.main(arguments)
    assert "\n" not in str(error.value)


def test_a_verifier_without_projections(world, baselines, tmp_path):
    """Before anything is sampled."""
    part = shutil.copytree(world / "clip", tmp_path / "part")
    tensors = load_file(part / "model.safetensors")
    towers = {name: tensor for name, tensor in tensors.items() if "projection" not in name}
    save_file(towers, part / "model.safetensors", {"format": "pt"})
    given = [*arguments(world, tmp_path / "run", baselines), "--clip.model", str(part)]
    refused(given, r"clip\.model: .*part.* has no visual_projection and no text_projection: it holds a part of a CLIP")
    assert not (tmp_path / "run" / "ppo").exists()


NOTHING = (
    r"ppo: iteration 1: \d+ responses are empty, and none of the \d+ tokens of 24 responses has a reward: "
    r"rewarded 0\.0%, punished 0\.0%; "
)


@pytest.mark.slow
def test_no_word_is_known(world, baselines, tmp_path):
    """A policy that never says what the list has."""
    (tmp_path / "entities.txt").write_text("zebra crossing\nkangaroo\n")
    config = clip_world.config(world, entities=tmp_path / "entities.txt", pad=False)
    made_of = ClipVerifier(clip_world.checkpoint(world), config, clip_world.mesh()).made_of
    make_baselines([[(0.3, False), (0.2, False), (0.1, True), (0.0, True)]], made_of).write(tmp_path / "b.json")
    given = arguments(world, tmp_path / "run", {"word": tmp_path / "b.json"})
    advice = "give --clip.entities a list with words that they use"
    refused([*given, "--clip.entities", str(tmp_path / "entities.txt")], NOTHING + advice)
    assert not list((tmp_path / "run").glob("ppo/*"))


@pytest.mark.slow
def test_a_margin_that_leaves_no_token_rewarded(world, baselines, tmp_path):
    given = arguments(world, tmp_path / "run", baselines, margin=1000, margin_unit="absolute")
    refused(given, NOTHING + r"lower --clip\.margin \(now 1000\)")
    assert not list((tmp_path / "run").glob("ppo/*"))
