"""The stream of a reward model of preferences: each text against a conversation of its own in transformers."""

import dataclasses
import json
import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from tests.pixels import normalize
from tests.stages.sft_world import TINY, finish, spawn_python
from tests.tiny_llava import build_checkpoint
from vigor_jax.data.images.preprocessing import load_image, preprocess
from vigor_jax.data.text.box_text import write_boxes
from vigor_jax.data.text.image_captions import read_captions
from vigor_jax.errors import InputError
from vigor_jax.hf.load import load_model, open_checkpoint
from vigor_jax.hf.reward_head import RewardHead, read_head, write_head
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.parallel.sharding import make_mesh
from vigor_jax.records import ScoreItem, Span
from vigor_jax.rewards.preference_reward import PreferenceReward, make_encoder, signal
from vigor_jax.rewards.preference_reward_config import PreferenceRewardStreamConfig
from vigor_jax.rewards.stream import credit_of
from vigor_jax.rewards.token_rewards import TokenRewardConfig, token_rewards

CONFIG = PreferenceRewardStreamConfig(batch_size=2, max_length=400, bucket=64, question="Good? {captions}")
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. USER: "
)
TEXTS = [
    ("A man is riding a wave. Two dogs sit on the grass.", "One red circle", "One red circle"),
    ("A blue square.", ""),
    (),
    ("A lamp.", "The glass is on the table. " * 6, "A dog.", "A bench. A cat.", "A car is parked. " * 8),
    ("A large wave.",),
]
CAPTIONS = {f"{index}.png": [f"Caption {index}.", "A table."] for index in range(len(TEXTS))}


def make_folder(root: Path) -> Path:
    build_checkpoint(root / "model", TINY)
    rng = np.random.default_rng(1)
    # Weights that add up to rewards of about one, so that 1e-6 is several units in the last place of what is summed.
    head = RewardHead(rng.normal(0, 0.15, TINY.text_width).astype(np.float32), -0.3)
    write_head(head, root / "model" / "reward_head")
    for index in range(len(TEXTS)):
        pixels = rng.integers(0, 256, (*rng.integers(20, 60, 2), 3), np.uint8)
        Image.fromarray(pixels).save(root / f"{index}.png")
    (root / "captions.json").write_text(json.dumps(CAPTIONS))
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return make_folder(tmp_path_factory.mktemp("reward"))


def items_in(root: Path) -> list[ScoreItem]:
    return [
        ScoreItem(f"{index}.png", root / f"{index}.png", f"Question {index}?", texts)
        for index, texts in enumerate(TEXTS)
    ]


def make_stream(root: Path, config=CONFIG, sizes=(1, 1, 1)) -> PreferenceReward:
    mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: int(np.prod(sizes))])
    source = open_checkpoint(root / "model")
    model = load_model(source, mesh=mesh, dtype=jnp.float32, scan=False)
    captions = read_captions(config.captions) if config.captions else None
    encoder = make_encoder(config, source, captions)
    head = read_head(root / "model", TINY.text_width)
    return PreferenceReward(model, head, encoder, source.preprocessing, config, mesh, weights_digest="tiny")


@pytest.fixture(scope="module")
def stream(root):
    return make_stream(root, dataclasses.replace(CONFIG, captions=root / "captions.json"))


@pytest.fixture(scope="module")
def verdicts(root, stream):
    return list(stream.judge(items_in(root)))


def rewards(verdicts) -> list[list[float]]:
    return [[v.signals[0].positive - v.signals[0].negative for v in own] for own in verdicts]


def test_each_text_is_judged_as_a_conversation_of_its_own(root, verdicts):
    """The words are written out here; the tokens are those of the pieces, and the numbers are transformers'."""
    source = open_checkpoint(root / "model")
    model = transformers.LlavaForConditionalGeneration.from_pretrained(root / "model").float()
    layer = torch.nn.Linear(TINY.text_width, 1)
    layer.load_state_dict(torch.load(root / "model" / "reward_head", weights_only=True))
    encode, eos = source.tokenizer.encode, source.tokenizer.eos_id
    assert [len(own) for own in verdicts] == [len(texts) for texts in TEXTS]
    for item, own in zip(items_in(root), rewards(verdicts), strict=True):
        first, second = CAPTIONS[item.image]
        told = "People have described the image like this, and what the response says must agree with it:"
        asked = f" USER: Good? {told}\n  - {first}\n  - {second}\n ASSISTANT: Its quality is"
        pixels = normalize(preprocess(load_image(item.path), source.preprocessing)[None], source.preprocessing)
        for text, found in zip(item.texts, own, strict=True):
            ids = [source.tokenizer.bos_id, *encode(SYSTEM)]
            ids += [source.config.image_token_id] * source.config.num_image_tokens
            ids += encode(f"\n{item.prompt} ASSISTANT:", prefix=source.tokenizer.restarts_after_image)
            ids += [*encode(f" {text}", prefix=False), eos, *encode(asked), eos]
            with torch.no_grad():
                given = torch.tensor(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
                state = model.model(input_ids=torch.tensor([ids]), pixel_values=given).last_hidden_state[0, -1]
                assert found == pytest.approx(layer(state).item(), abs=3e-5), text


def test_a_signal_is_about_the_whole_text(verdicts, stream):
    for own, texts in zip(verdicts, TEXTS, strict=True):
        for number, (verdict, text) in enumerate(zip(own, texts, strict=True)):
            (found,) = verdict.signals
            assert (verdict.stream, verdict.candidate) == ("preference_reward", number)
            assert found.spans == ((Span(0, len(text)),) if text else ())
            reward = found.positive - found.negative
            assert found.label == f"reward {reward:.3f}"
            assert found.score == pytest.approx(1 / (1 + math.exp(-reward)), rel=1e-6)
            assert found.negative == pytest.approx(-math.log(found.score), rel=1e-6)
            assert min(found.positive, found.negative) > 0
    assert rewards(verdicts)[0][1] == pytest.approx(rewards(verdicts)[0][2], abs=1e-6)  # the same text twice
    assert np.ptp([reward for own in rewards(verdicts) for reward in own]) > 0.5
    assert credit_of(stream) == "response"


@pytest.mark.parametrize("reward", [-800.0, -1.5, 0.0, 3.0, 800.0])
def test_any_reward_makes_finite_signals(reward):
    found = signal(reward, "A cat.")
    assert 0 <= found.score <= 1
    assert found.positive - found.negative == pytest.approx(reward)
    assert found.positive >= 0 <= found.negative


def test_ppo_is_paid_the_reward_on_the_last_token(verdicts):
    verdict, text = verdicts[0][0], TEXTS[0][0]
    offsets = np.array([(start, min(start + 5, len(text))) for start in range(0, len(text), 5)] + [(len(text),) * 2])
    found = token_rewards(verdict, offsets.astype(np.int32), TokenRewardConfig(), credit="response")
    assert not found[:-1].any()
    assert found[-1] == pytest.approx(rewards(verdicts)[0][0], rel=1e-5)


def test_texts_that_do_not_fit_a_row_are_in_several(root, stream, verdicts):
    small = make_stream(
        root, dataclasses.replace(CONFIG, captions=root / "captions.json", max_length=280, batch_size=3)
    )
    found = list(small.judge(items_in(root)))
    for one, other in zip(rewards(found), rewards(verdicts), strict=True):
        np.testing.assert_allclose(one, other, atol=3e-6)
    assert small.digest == stream.digest


def test_nothing_is_compiled_again(root, stream, verdicts):
    before = stream.compilations
    with jax.transfer_guard("disallow"):
        assert list(stream.judge(items_in(root))) == verdicts
    assert stream.compilations == before


def test_boxes_are_not_judged(root, stream, verdicts):
    item = items_in(root)[1]
    boxed = write_boxes(item.texts[0], [(Span(13, 13), (0.25, 0.3, 0.58, 1.0))])
    ((found,),) = stream.judge([item._replace(texts=(boxed,))])
    assert found.signals[0].score == pytest.approx(verdicts[1][0].signals[0].score, abs=1e-6)
    assert found.signals[0].spans == (Span(0, len(boxed)),)


def test_the_digest_names_what_rewards_depend_on(root, stream):
    def digest(**changes):
        return make_stream(root, dataclasses.replace(CONFIG, captions=root / "captions.json", **changes)).digest

    assert digest(batch_size=5, bucket=128) == stream.digest
    assert digest(question="Is it? {captions}") != stream.digest
    assert digest(template="llava_v1") != stream.digest
    assert make_stream(root).digest != stream.digest


def test_refused_in_one_line(root, stream):
    item = items_in(root)[0]
    for changed, message in (
        (item._replace(image="x.png"), "preference_reward: x.png: image 'x.png' has no captions"),
        (item._replace(texts=("word " * 600,)), r"0\.png: prompt and response have \d+ tokens, and the model has 512"),
        (
            item._replace(texts=("dog " * 100,)),
            r"0\.png: prompt and 1 responses have \d+ tokens, and max_length",
        ),
        (item._replace(path=root / "absent.png"), r"0\.png: .*absent\.png"),
    ):
        with pytest.raises(InputError, match=message) as error:
            list(stream.judge([changed]))
        assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.main
def test_eight_devices_equal_one(root, verdicts, tmp_path):
    command = ["-m", "tests.rewards.test_preference_reward", str(root), str(tmp_path / "out.json")]
    finish(spawn_python(command, devices=8, cache=tmp_path / "cache"))
    for one, other in zip(json.loads((tmp_path / "out.json").read_text()), rewards(verdicts), strict=True):
        np.testing.assert_allclose(one, other, atol=3e-6)


if __name__ == "__main__":
    folder, out = map(Path, sys.argv[1:])
    split = make_stream(folder, dataclasses.replace(CONFIG, captions=folder / "captions.json"), (2, 2, 2))
    out.write_text(json.dumps(rewards(split.judge(items_in(folder)))))
