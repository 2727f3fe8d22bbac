"""The reward model of preferences: rewards and updates against transformers and torch, evaluation, export."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

import vigor_jax as vj
from tests.pixels import normalize
from tests.stages.preference_world import make_world
from tests.stages.sft_world import interrupt
from vigor_jax.data.batches.preference_rows import PreferenceLoader, PreferenceRow, in_pairs
from vigor_jax.data.batches.response_rows import last_token_row
from vigor_jax.data.batches.tree_batches import collate, padded_sizes
from vigor_jax.data.images.preprocessing import load_image, preprocess
from vigor_jax.data.preferences.read import scan_preferences
from vigor_jax.data.text.image_captions import read_captions
from vigor_jax.errors import InputError
from vigor_jax.hf.load import load_model, open_checkpoint
from vigor_jax.hf.options import ExportConfig
from vigor_jax.hf.reward_head import read_head
from vigor_jax.models.lora_config import LoraConfig
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.parallel.sharding import local_rows, make_mesh
from vigor_jax.records import ScoreItem
from vigor_jax.rewards.preference_reward import PreferenceReward, make_encoder
from vigor_jax.rewards.preference_reward_config import PreferenceRewardStreamConfig
from vigor_jax.stages.export import export
from vigor_jax.stages.preference_reward_config import PreferenceRewardConfig
from vigor_jax.stages.preference_reward_rows import (
    HEAD,
    evaluate,
    is_left_for_evaluation,
    preference_reward_loss,
    rewards_at,
)
from vigor_jax.stages.train_preference_reward import train_preference_reward
from vigor_jax.training.checkpoint import restore_params_only
from vigor_jax.training.heads import Head, with_head
from vigor_jax.training.train_step import abstract_state, init_state, make_optimizer, make_train_step, merge_params
from vigor_jax.training.trainable import load_trainable

QUESTION = "Is it good? {captions}"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return make_world(tmp_path_factory.mktemp("world") / "w")


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="module")
def checkpoint(world):
    return open_checkpoint(world / "model")


@pytest.fixture(scope="module")
def config(world):
    return PreferenceRewardConfig(
        data=world / "preferences.json",
        images=str(world / "images"),
        question=QUESTION,
        epochs=12,
        batch_size=4,
        accumulate=2,
        learning_rate=1e-2,
        held_out=0.25,
        max_length=512,
        bucket=128,
        remat="none",
        save_every=5,
    )


@pytest.fixture(scope="module")
def rows(config):
    return scan_preferences(config.data, config.images).rows


def make_loader(config, checkpoint, rows, mesh, captions=None) -> PreferenceLoader:
    return PreferenceLoader(
        rows, config.data, make_encoder(config, checkpoint, captions), checkpoint.preprocessing, len(rows),
        num_responses=3, num_pairs=3, bucket=config.bucket, rows=local_rows(len(rows), mesh),
    )  # fmt: skip


def opened(config, checkpoint, mesh):
    head = Head.random(HEAD, checkpoint.config.text.hidden_size, 3)
    head = dataclasses.replace(head, bias=0.125)
    return with_head(load_trainable(checkpoint, config, mesh, jnp.float32), head, mesh), head


@pytest.fixture(scope="module")
def reference(world):
    return transformers.LlavaForConditionalGeneration.from_pretrained(world / "model").float()


def last_state(reference, checkpoint, row: PreferenceRow, prompt: list[int], ids: list[int]) -> torch.Tensor:
    """Of one response as a separate conversation."""
    given = {"input_ids": torch.tensor([[*prompt, *ids]])}
    if row.image is not None:
        pixels = preprocess(load_image(row.image), checkpoint.preprocessing)
        normal = normalize(pixels[None], checkpoint.preprocessing).transpose(0, 3, 1, 2)
        given["pixel_values"] = torch.tensor(np.ascontiguousarray(normal))
    return reference.model(**given).last_hidden_state[0, -1]


def compute_rewards(loaded, rows):
    rewards = jax.jit(lambda weights, rows: rewards_at(merge_params(loaded.graphdef, weights), rows))
    return rewards(loaded.params | loaded.frozen, rows)


@pytest.mark.parametrize("told", [False, True])
def test_rewards_are_those_of_each_response_alone(world, config, checkpoint, mesh, rows, reference, told):
    """In transformers: the state at the last token of prompt, response and question, times the head."""
    captions = read_captions(world / "captions.json") if told else None
    own = rows[2:8]  # with and without an image, of two and of three responses
    encoder = make_encoder(config, checkpoint, captions)
    loaded, head = opened(config, checkpoint, mesh)
    batch = make_loader(config, checkpoint, own, mesh, captions).make(range(len(own)))
    found = np.asarray(compute_rewards(loaded, batch.rows.responses))
    count = 0
    for row, rewards in zip(own, found, strict=True):
        preference = row.preference
        prompt, responses = encoder.tokens(
            preference.image, preference.prompt, preference.responses, with_image=row.image is not None
        )
        decoded = checkpoint.tokenizer.decode(responses[0])
        assert ("A table." in decoded) == (told and row.image is not None)
        assert "Its quality is" in decoded
        with torch.no_grad():
            for reward, ids in zip(rewards, responses, strict=False):
                assert ids[-1] == checkpoint.tokenizer.eos_id
                state = last_state(reference, checkpoint, row, prompt, ids).numpy()
                assert reward == pytest.approx(float(state @ head.kernel + head.bias), abs=1e-4)
                count += 1
    assert count > 2 * len(own)
    assert np.ptp(found[:, :2]) > 0.1


def test_two_responses_in_a_row_are_two_rows(config, checkpoint, mesh, rows):
    """Loss and gradient of rows of pairs are those of rows of one response, ranked across rows."""
    own = [row for row in rows if len(row.preference.responses) == 2][:3]
    loaded, _ = opened(config, checkpoint, mesh)
    pairs = make_loader(config, checkpoint, own, mesh).make(range(3)).rows
    encoder, written = make_encoder(config, checkpoint, None), []
    for row in own:
        asked = {"with_image": row.image is not None}
        prompt, responses = encoder.tokens(
            row.preference.image, row.preference.prompt, row.preference.responses, **asked
        )
        written += [last_token_row(prompt, [ids]) for ids in responses]
    pixels = np.repeat(pairs.pixels, 2, axis=0)
    singles = collate(written, *padded_sizes(written, config.bucket), checkpoint.tokenizer.pad_id, pixels)
    assert len(singles.token_ids) == 6

    @jax.value_and_grad
    def apart(params):
        model = merge_params(loaded.graphdef, params | loaded.frozen)
        rewards = rewards_at(model, singles)[:, 0].reshape(3, 2)
        better, worse = (jnp.take_along_axis(rewards, x[:, :1], axis=1) for x in (pairs.better, pairs.worse))
        return jnp.sum(jax.nn.softplus(worse - better)) + 1e-3 * jnp.sum(jnp.abs(better + worse))

    @jax.value_and_grad
    def together(params):
        model = merge_params(loaded.graphdef, params | loaded.frozen)
        return preference_reward_loss(model, pairs, config)[0]

    (loss, grads), (expected, expected_grads) = jax.jit(lambda p: (together(p), apart(p)))(loaded.params)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    for path, grad in expected_grads.items():
        assert jnp.linalg.norm(grads[path] - grad) <= 1e-5 * max(float(jnp.linalg.norm(grad)), 1e-3), path


@pytest.mark.slow
@pytest.mark.main
def test_one_update_is_that_of_torch(config, checkpoint, mesh, rows, reference):
    """Loss, gradient clipping and AdamW on the whole language model and the head, of pairs one after the other."""
    config = dataclasses.replace(
        config, accumulate=1, weight_decay=0.0, warmup_ratio=0.0, freeze=("vision_tower", "multi_modal_projector")
    )
    own = in_pairs([row for row in rows if row.image is not None])[:4]
    encoder = make_encoder(config, checkpoint, None)
    loaded, head = opened(config, checkpoint, mesh)
    layer = torch.nn.Linear(len(head.kernel), 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(head.kernel)[None])
        layer.bias.fill_(head.bias)
    trained = [*reference.model.language_model.parameters(), *layer.parameters()]
    losses = []
    for row in own:
        preference = row.preference
        prompt, responses = encoder.tokens(preference.image, preference.prompt, preference.responses)
        high, low = (layer(last_state(reference, checkpoint, row, prompt, ids))[0] for ids in responses)
        losses.append(torch.nn.functional.softplus(low - high) + 1e-3 * (high + low).abs())
    loss = torch.stack(losses).mean()
    grads = torch.autograd.grad(loss, trained)
    for weight, grad in zip(trained, grads, strict=True):
        weight.grad = grad
    torch.nn.utils.clip_grad_norm_(trained, config.max_grad_norm)
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, eps=1e-4, weight_decay=0.0)
    before = {name: each.detach().clone() for name, each in reference.model.language_model.named_parameters()}
    optimizer.step()

    config = dataclasses.replace(config, eps=1e-4, batch_size=4)
    batch = make_loader(config, checkpoint, own, mesh).make(range(4)).rows
    steps = make_optimizer(config, 1000)
    with jax.set_mesh(mesh):
        abstract = abstract_state(loaded.params, steps, mesh)
        state = init_state(loaded.params, steps, mesh, 0)
        schedule = lambda step: config.learning_rate  # noqa: E731
        update = make_train_step(
            loaded.graphdef, abstract, steps, schedule, config, jnp.float32, preference_reward_loss
        )
        state, metrics = update(state, loaded.frozen, batch)
    assert float(metrics["loss"]) == pytest.approx(loss.item(), abs=1e-5)
    np.testing.assert_allclose(state.params[f"{HEAD}.kernel"], layer.weight.detach().numpy()[0], atol=2e-5)
    assert float(state.params[f"{HEAD}.bias"]) == pytest.approx(layer.bias.item(), abs=2e-5)
    after = reference.model.language_model.layers[1].self_attn.q_proj.weight.detach().numpy().T
    np.testing.assert_allclose(state.params["language_model.layers.q_proj.kernel"][1], after, atol=2e-5)
    with torch.no_grad():
        for name, each in reference.model.language_model.named_parameters():
            each.copy_(before[name])


@pytest.fixture(scope="module")
def whole(config, checkpoint, mesh, tmp_path_factory):
    """The directory of a run that nothing disturbed."""
    run_dir = tmp_path_factory.mktemp("whole")
    made = train_preference_reward(config, checkpoint, run_dir, mesh, dtype=jnp.float32)
    assert made == run_dir / "checkpoints" / "train_preference_reward"
    return run_dir


def evaluations(run_dir: Path) -> list[dict]:
    path = run_dir / "metrics" / "preference_reward_eval.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.main
def test_it_learns_and_evaluates_each_epoch_on_what_it_does_not_learn(whole, config, rows):
    held_out = [row for row in rows if is_left_for_evaluation(row, config.held_out)]
    taught = len(rows) - len(held_out)
    assert 2 <= len(held_out) < len(rows) / 2
    lines = evaluations(whole)
    num_steps = taught * config.epochs // config.batch_size
    ends = {-(-taught * epoch // config.batch_size) for epoch in range(1, config.epochs + 1)}
    assert [line["step"] for line in lines] == sorted({*(end for end in ends if end <= num_steps), num_steps})
    for line in lines:
        assert line["rows"] == len(held_out)
        assert line["pairs"] == sum(len(row.preference.pairs()) for row in held_out)
    assert lines[-1]["accuracy"] > 0.8
    assert lines[-1]["margin"] > max(lines[0]["margin"], 0)
    curve = [
        json.loads(line) for line in (whole / "metrics" / "train_preference_reward.jsonl").read_text().splitlines()
    ]
    assert np.mean([line["loss"] for line in curve[-3:]]) < 0.3 * curve[0]["loss"]
    assert curve[0]["tokens"] == config.batch_size
    assert {"accuracy", "margin"} <= curve[0].keys()
    assert curve[-1]["margin"] > curve[0]["margin"]


def test_equal_rewards_count_half(rows):
    three = next(row for row in rows if len(row.preference.responses) == 3)
    two = next(row for row in rows if len(row.preference.responses) == 2)
    equal = evaluate([np.zeros(3)], [two])
    assert (equal["accuracy"], equal["margin"], equal["pairs"]) == (0.5, 0.0, 1)
    perfect = np.array(three.preference.ratings)
    found = evaluate([np.array([*perfect, 99.0]), np.zeros(4)], [three, two])
    assert (found["accuracy"], found["pairs"], found["rows"]) == (3.5 / 4, 4, 2)
    assert found["reward"] == pytest.approx(perfect.sum() / 5)


@pytest.mark.slow
@pytest.mark.main
def test_a_resumed_run_has_the_same_bits(whole, config, checkpoint, mesh, tmp_path, monkeypatch):
    def run():
        return train_preference_reward(config, checkpoint, tmp_path, mesh, dtype=jnp.float32)

    interrupt(run, monkeypatch, after=config.save_every + 2)
    run()
    name = "metrics/preference_reward_eval.jsonl"
    assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()
    expected = restore_params_only(whole / "checkpoints" / "train_preference_reward")
    found = restore_params_only(tmp_path / "checkpoints" / "train_preference_reward")
    assert f"{HEAD}.kernel" in found
    for path, value in found.items():
        np.testing.assert_array_equal(value, expected[path])


def judge_of(folder, config, mesh) -> PreferenceReward:
    trained = open_checkpoint(folder)
    model = load_model(trained, mesh=mesh, dtype=jnp.float32, scan=False)
    judging = PreferenceRewardStreamConfig(batch_size=2, max_length=512, bucket=128, question=QUESTION)
    head = read_head(trained.newest, trained.config.text.hidden_size)
    encoder = make_encoder(judging, trained, None)
    return PreferenceReward(model, head, encoder, trained.preprocessing, judging, mesh, weights_digest="trained")


def judged_by_the_export(folder, config, mesh, rows):
    """The rewards of what was held out with an image, and these rows; most of them are ranked as people did."""
    held_out = [row for row in rows if is_left_for_evaluation(row, config.held_out) and row.image is not None]
    items = [
        ScoreItem(row.preference.image, row.image, row.preference.prompt, row.preference.responses) for row in held_out
    ]
    verdicts = list(judge_of(folder, config, mesh).judge(items))
    rewards = [np.array([v.signals[0].positive - v.signals[0].negative for v in own]) for own in verdicts]
    assert evaluate(rewards, held_out)["accuracy"] > 0.75
    return rewards, held_out


@pytest.mark.slow
@pytest.mark.parametrize("lora", [pytest.param(None, marks=pytest.mark.main), LoraConfig(rank=4, alpha=8)])
def test_the_export_judges_and_torch_reads_its_head(whole, config, checkpoint, mesh, rows, tmp_path, lora, reference):
    run_dir = whole
    if lora:
        run_dir, config = tmp_path, dataclasses.replace(config, lora=lora)
        train_preference_reward(config, checkpoint, run_dir, mesh, dtype=jnp.float32)
    out = tmp_path / "out"
    export(ExportConfig(), checkpoint, run_dir / "checkpoints" / "train_preference_reward", out, mesh, head=HEAD)
    state = torch.load(out / "reward_head", weights_only=True)
    trained = restore_params_only(run_dir / "checkpoints" / "train_preference_reward")
    np.testing.assert_array_equal(state["weight"].numpy(), trained[f"{HEAD}.kernel"][None])
    np.testing.assert_array_equal(state["bias"].numpy(), trained[f"{HEAD}.bias"][None])
    assert (out / "adapter_config.json").exists() == bool(lora)
    rewards, held_out = judged_by_the_export(out, config, mesh, rows)
    # The command does the same with the checkpoint, and takes the head along to where the model is written again.
    again = vj.export(
        run_dir / "checkpoints" / "train_preference_reward", tmp_path / "again", base=checkpoint.directory
    )
    merged = vj.export(again, tmp_path / "merged", layout="llava-hf", base=checkpoint.directory if lora else None)
    for folder in (again, merged):
        head = torch.load(folder / "reward_head", weights_only=True)
        assert all(torch.equal(head[name], state[name]) for name in ("weight", "bias"))
    assert (merged / "config.json").exists()
    if lora:
        return
    # As transformers and torch have it: their model, their head.
    theirs = transformers.LlavaForConditionalGeneration.from_pretrained(out).float()
    layer = torch.nn.Linear(*reversed(state["weight"].shape))
    layer.load_state_dict(state)
    encoder = make_encoder(config, checkpoint, None)
    with torch.no_grad():
        for own, row in zip(rewards, held_out, strict=True):
            preference = row.preference
            prompt, responses = encoder.tokens(preference.image, preference.prompt, preference.responses)
            expected = [layer(last_state(theirs, checkpoint, row, prompt, ids)).item() for ids in responses]
            np.testing.assert_allclose(own, expected, atol=1e-4 * max(1, np.abs(expected).max()))


@pytest.mark.slow
def test_a_reward_model_is_trained_further_with_its_head(whole, config, checkpoint, mesh, tmp_path):
    out = tmp_path / "out"
    export(ExportConfig(), checkpoint, whole / "checkpoints" / "train_preference_reward", out, mesh, head=HEAD)
    config = dataclasses.replace(config, epochs=1, learning_rate=1e-12)
    train_preference_reward(config, open_checkpoint(out), tmp_path / "run", mesh, dtype=jnp.float32)
    before = evaluations(whole)[-1]
    after = evaluations(tmp_path / "run")[-1]
    assert after["margin"] == pytest.approx(before["margin"], rel=1e-4)


def test_the_head_begins_as_torch_does(checkpoint):
    width = 4096
    head = Head.random(HEAD, width, 0)
    bound = 1 / 64
    assert np.abs(head.kernel).max() <= bound
    assert head.kernel.std() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert head.bias == 0
    assert not np.array_equal(head.kernel, Head.random(HEAD, width, 1).kernel)
    torch.manual_seed(0)
    layer = torch.nn.Linear(width, 1)
    assert layer.weight.abs().max().item() <= bound
    assert layer.weight.std().item() == pytest.approx(head.kernel.std(), rel=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"held_out": 1.0}, "held_out: expected 0 to less than 1, got 1.0"),
        ({"regularization": -1.0}, "regularization: expected 0 or more, got -1.0"),
        ({"data": None}, "train_preference_reward.data: no file is given"),
        ({"batch_size": 512}, "preferences x 12 epochs are fewer than one batch of 512; lower batch_size or held_out"),
        ({"template": "plain"}, "the caption-only format asks no questions; give question none"),
        ({"max_length": 60}, "tokens, and max_length is 60; raise it, or remove the row"),
        ({"question": "very " * 300}, "tokens, and the model has 512 positions"),
        ({"captions": Path("absent.json")}, "captions: absent.json cannot be read"),
        ({"captions": Path("absent.json"), "question": "Good?"}, r"question: expected \{captions\} where"),
    ],
)
def test_refused_in_one_line(config, checkpoint, mesh, tmp_path, change, message):
    with pytest.raises(InputError, match=message) as caught:
        train_preference_reward(dataclasses.replace(config, **change), checkpoint, tmp_path, mesh, dtype=jnp.float32)
    assert "\n" not in str(caught.value)


def test_an_image_without_captions_is_told_with_all_others(world, config, checkpoint, mesh, tmp_path):
    captions = json.loads((world / "captions.json").read_text())
    kept = {image: own for image, own in captions.items() if image not in ("02.png", "07.png")}
    (tmp_path / "c.json").write_text(json.dumps(kept))
    config = dataclasses.replace(config, captions=tmp_path / "c.json", epochs=1)
    with pytest.raises(InputError, match="2 of 24 rows cannot be trained on; fix them, or give --train_pref") as caught:
        train_preference_reward(config, checkpoint, tmp_path / "run", mesh, dtype=jnp.float32)
    assert "index 2 (id 'row-2'): image '02.png' has no captions" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_other_captions_are_other_data(world, config, checkpoint, mesh, tmp_path):
    captions = json.loads((world / "captions.json").read_text())
    config = dataclasses.replace(config, captions=tmp_path / "c.json", epochs=1)
    config.captions.write_text(json.dumps(captions))
    train_preference_reward(config, checkpoint, tmp_path / "run", mesh, dtype=jnp.float32)
    config.captions.write_text(json.dumps({image: ["Other."] for image in captions}))
    with pytest.raises(InputError, match=r"was made with data\.captions"):
        train_preference_reward(config, checkpoint, tmp_path / "run", mesh, dtype=jnp.float32)
