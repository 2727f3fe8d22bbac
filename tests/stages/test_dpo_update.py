"""An update from preferences on shared prefixes against separate conversations, and against the formulas in float64."""

import copy
import dataclasses
import difflib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from tests.inference.test_tree_attention import CONFIG
from tests.tiny_tokenizer import build_tokenizer_dir
from vigor_jax.data.batches.preference_rows import PreferenceEncoder, PreferenceLoader, crop, in_pairs
from vigor_jax.data.images.preprocessing import Preprocessing, load_image, preprocess
from vigor_jax.data.preferences.read import PreferenceRow
from vigor_jax.data.text.conversation import TEMPLATES, encode_responses
from vigor_jax.data.text.instructions import InstructionTokenizer
from vigor_jax.data.text.tokenizer import Tokenizer
from vigor_jax.inference.logprobs import collate_responses, per_token_logps
from vigor_jax.models.vlm import abstract_model, param_paths
from vigor_jax.records import Preference
from vigor_jax.stages.dpo_config import DpoConfig
from vigor_jax.stages.dpo_update import dpo_loss, logps_of
from vigor_jax.training.image_noise import kept

TEMPLATE = TEMPLATES["v1"]
MODEL = dataclasses.replace(
    CONFIG, text=dataclasses.replace(CONFIG.text, vocab_size=600, max_position_embeddings=512), image_token_id=599
)
PREFERENCES = (
    Preference("0.png", "What is it?", ("A red circle.", "A blue dog on a bench."), (1.0, 0.0)),
    Preference("1.png", "And now?", ("Two dogs.", "A cat and a car.", "No."), (2.0, 5.0, 2.0), history=("Hi.", "Yes.")),
    Preference("2.png", "Say.", (" It is a car.", " It is red."), (0.0, 1.0), context="A street.", whole=False),
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.load(build_tokenizer_dir(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    found = []
    for index, preference in enumerate(PREFERENCES):
        Image.fromarray(rng.integers(0, 256, (40, 30, 3)).astype(np.uint8)).save(folder / preference.image)
        found.append(PreferenceRow(preference, folder / preference.image, index, f"index {index}"))
    return found


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(0)
    graphdef, weights = nnx.split(abstract_model(MODEL, scan=True))
    for path, variable in param_paths(weights).items():
        values = rng.standard_normal(variable.get_value().shape, np.float32) * 0.2
        variable.set_value(jnp.asarray(values + path.endswith("scale")))
    return graphdef, weights


def sizes(tokenizer):
    return {
        "tokenizer": tokenizer,
        "template": TEMPLATE,
        "image_token_id": MODEL.image_token_id,
        "num_image_tokens": MODEL.num_image_tokens,
    }


def make_loader(tokenizer, rows, config, references=None):
    encoder = PreferenceEncoder(
        **sizes(tokenizer),
        max_length=400,
        max_positions=512,
        changed_weight=config.changed_weight,
        length_normalized=config.length_normalized,
    )
    return PreferenceLoader(
        data=rows,
        data_file="preferences.json",
        encoder=encoder,
        preprocessing=Preprocessing(size=MODEL.vision.image_size),
        batch_size=len(rows) + 1,  # with a row of padding
        num_responses=max(len(row.preference.responses) for row in rows),
        num_pairs=max(len(row.preference.pairs()) for row in rows),
        bucket=32,
        references=references,
        cropped=config.crop if config.shows_crops else None,
        noised=config.shows_noise,
    )


def invented(tokenizer, rows, with_unseen):
    """What a reference might say of each row."""
    rng, found = np.random.default_rng(7), {}
    for row in rows:
        count = sum(map(len, encoded(tokenizer, row)[1]))
        own, unseen = (rng.standard_normal(count).astype(np.float32) - 5 for _ in range(2))
        found[row.digest()] = own, unseen if with_unseen else unseen[:0]
    return found


def encoded(tokenizer, row):
    preference = row.preference
    return encode_responses(
        tokenizer,
        TEMPLATE,
        question=preference.prompt,
        responses=preference.responses,
        history=preference.history,
        context=preference.context,
        whole=preference.whole,
        image_token_id=MODEL.image_token_id,
        num_image_tokens=MODEL.num_image_tokens,
    )


CONFIGS = {
    "sigmoid": DpoConfig(),
    "smoothed": DpoConfig(label_smoothing=0.2, sft_factor=0.5),
    "ipo": DpoConfig(loss="ipo", length_normalized=True),
    "hinge": DpoConfig(loss="hinge", beta=0.3),
    "changed tokens": DpoConfig(changed_weight=5.0, length_normalized=True),
    "cropped": DpoConfig(image_factor=1.0, anchor_factor=0.7, anchor=0.1),
    "noised": DpoConfig(image_factor=0.5, image_term="noised", pair_factor=0.5),
}


# Formulas of losses are also tested alone, in `training/test_dpo.py`.
MARKS = {name: [pytest.mark.main] for name in ("sigmoid", "changed tokens", "noised")} | {"cropped": []}


@pytest.mark.parametrize("name", [pytest.param(name, marks=MARKS.get(name, [pytest.mark.slow])) for name in CONFIGS])
def test_loss_and_gradients_equal_those_of_separate_rows(name, tokenizer, rows, model):
    config = dataclasses.replace(CONFIGS[name], remat="none")
    graphdef, weights = model
    rows = in_pairs(rows) if config.changed_weight != 1 else rows
    references = invented(tokenizer, rows, config.image_factor > 0)
    made = make_loader(tokenizer, rows, config, references).make(range(len(rows))).rows
    shapes = collate_separately(tokenizer, rows, made)

    def separate(weights):
        return separately(nnx.merge(graphdef, weights), config, rows, references, made, shapes, tokenizer)

    def shared(weights):
        return dpo_loss(nnx.merge(graphdef, weights), made, config)

    (found, sums), found_grads = jax.jit(jax.value_and_grad(shared, has_aux=True))(weights)
    (expected, expected_sums), expected_grads = jax.jit(jax.value_and_grad(separate, has_aux=True))(weights)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    assert float(sums["tokens"]) == sum(len(row.preference.pairs()) for row in rows)
    for key, value in expected_sums.items():
        assert float(sums[key]) == pytest.approx(float(value), rel=1e-5, abs=1e-5), key
    expected_grads = param_paths(expected_grads)
    for path, one in param_paths(found_grads).items():
        # Keys' biases shift all scores of a softmax alike: their gradient is rounding errors.
        other = expected_grads[path.replace("k_proj.bias", "q_proj.bias")]
        difference = np.linalg.norm(one[...] - expected_grads[path][...])
        assert difference <= 1e-5 * np.linalg.norm(other[...]) + 1e-7, path


def collate_separately(tokenizer, rows, made):
    """One conversation a row, with its image, the other image and the noise's key."""
    prompts, responses, local = [], [], []
    for index, row in enumerate(rows):
        prompt, some = encoded(tokenizer, row)
        prompts += [prompt] * len(some)
        responses += some
        local += [index] * len(some)
    images = made.pixels[local, 0]
    batch = collate_responses(prompts, responses, images, num_rows=len(responses), bucket=8)
    other = None if made.other_pixels is None else dataclasses.replace(batch, pixels=made.other_pixels[local])
    keys = None if made.noise_keys is None else made.noise_keys[local]
    return batch, other, keys


def separately(model, config, rows, references, made, shapes, tokenizer):
    """The formulas on one conversation a row, under plain causal attention, written out here."""
    batch, other, keys = shapes
    logps = per_token_logps(model, batch)
    unseen = None
    if other is not None:
        unseen = per_token_logps(model, other)
    elif keys is not None:
        mean, std = np.array(MODEL.vision.image_mean), np.array(MODEL.vision.image_std)
        share = kept(config.noise_step)
        seen = (batch.pixels / 255.0 - mean) / std
        noise = jnp.stack([jax.random.normal(jnp.asarray(key), seen.shape[1:]) for key in keys])
        gray = ((share**0.5 * seen + (1 - share) ** 0.5 * noise) * std + mean) * 255
        width = batch.response_mask.shape[1]
        at = np.minimum(batch.prompt_lengths[:, None] - 1 + np.arange(width), batch.token_ids.shape[1] - 1)

        def scores(pixels):
            hidden = model(batch.token_ids, pixels)
            return model.language_model.logits(jnp.take_along_axis(hidden, at[..., None], axis=1))

        guesses = jnp.argmax(scores(gray), -1)
        clean = jax.nn.log_softmax(scores(batch.pixels), -1)
        unseen = jnp.take_along_axis(clean, guesses[..., None], axis=-1)[..., 0]

    loss, first = 0.0, 0
    sums = {"accuracy": 0.0, "margin": 0.0, "better_reward": 0.0, "worse_reward": 0.0, "better_logps": 0.0}
    for row in rows:
        some, (own_ref, unseen_ref) = encoded(tokenizer, row)[1], references[row.digest()]
        starts = np.cumsum([0, *map(len, some)])

        def score(index, values, reference, some=some, starts=starts, first=first):
            there = values[first + index, : len(some[index])] - reference[starts[index] : starts[index + 1]]
            weights = np.ones(len(some[index]))
            if config.changed_weight != 1:
                weights = np.where(own_changes(some)[index], config.changed_weight, 1.0)
            return jnp.sum(weights * there) / (weights.sum() if config.length_normalized else 1)

        for better, worse in row.preference.pairs():
            good, bad = score(better, logps, own_ref), score(worse, logps, own_ref)
            loss += config.pair_factor * pair_loss(good - bad, config)
            if config.sft_factor:
                loss += config.sft_factor * -jnp.mean(logps[first + better, : len(some[better])])
            if config.image_factor:
                loss += config.image_factor * pair_loss(good - score(better, unseen, unseen_ref), config)
            if config.anchor_factor:
                loss += config.anchor_factor * jnp.logaddexp(0, -(config.beta * good - config.anchor))
            sums["accuracy"] += good > bad
            sums["margin"] += config.beta * (good - bad)
            sums["better_reward"] += config.beta * good
            sums["worse_reward"] += config.beta * bad
            sums["better_logps"] += jnp.sum(logps[first + better, : len(some[better])])
        first += len(some)
    return loss, sums


def pair_loss(h, config):
    if config.loss == "ipo":
        return (h - 1 / (2 * config.beta)) ** 2
    if config.loss == "hinge":
        return jnp.maximum(0, 1 - config.beta * h)
    e = config.label_smoothing
    return (1 - e) * jnp.logaddexp(0, -config.beta * h) + e * jnp.logaddexp(0, config.beta * h)


def own_changes(some):
    """Tokens of a better and a worse response outside the runs that `difflib` finds in both, by its opcodes."""
    changed = [np.zeros(len(ids), bool) for ids in some]
    for tag, start, end, first, last in difflib.SequenceMatcher(None, *some, autojunk=False).get_opcodes():
        changed[0][start:end] = changed[1][first:last] = tag != "equal"
    return changed


@pytest.mark.main
def test_a_policy_that_is_its_reference_has_no_margin(tokenizer, rows, model):
    graphdef, weights = model
    for name in ("sigmoid", "cropped", "noised"):
        config = CONFIGS[name]
        blank = make_loader(tokenizer, rows, config).make(range(len(rows))).rows
        own, unseen = jax.jit(lambda w, r, c=config: logps_of(nnx.merge(graphdef, w), r, c))(weights, blank)
        made = blank._replace(ref_logps=own, ref_unseen=unseen)
        loss, sums = jax.jit(lambda w, r, c=config: dpo_loss(nnx.merge(graphdef, w), r, c))(weights, made)
        factors = config.pair_factor + config.image_factor
        anchors = config.anchor_factor * np.logaddexp(0, config.anchor)
        assert float(loss) / float(sums["tokens"]) == pytest.approx(np.log(2) * factors + anchors, rel=1e-5)
        assert float(sums["margin"]) == pytest.approx(0, abs=1e-4)


def test_all_ranked_pairs_of_a_row_count_once(tokenizer, rows):
    made = make_loader(tokenizer, rows, DpoConfig()).make(range(len(rows))).rows
    pairs = [
        [(int(b), int(w)) for b, w, is_pair in zip(*each, strict=True) if is_pair]
        for each in zip(made.better, made.worse, made.is_pair, strict=True)
    ]
    assert pairs == [[(0, 1)], [(1, 0), (1, 2)], [(1, 0)], []]


def test_the_noise_of_a_row_is_its_own_wherever_it_stands(tokenizer, rows):
    config = CONFIGS["noised"]
    loader = make_loader(tokenizer, rows, config)
    keys = loader.make(range(3)).rows.noise_keys
    np.testing.assert_array_equal(loader.make([2, 0]).rows.noise_keys[:2], keys[[2, 0]])
    assert len({tuple(key) for key in keys}) == 4
    other = dataclasses.replace(loader, seed=1).make(range(3)).rows.noise_keys
    assert (other != keys).any(axis=1).all()


@pytest.mark.parametrize("most", [0.01, 0.2, 1.0])
def test_crops_are_parts_of_the_image_of_its_proportions(most, rows):
    image = load_image(rows[0].image)
    whole, seen = np.asarray(image), set()
    for digest in (bytes([i] * 8) for i in range(50)):
        part = crop(image, most, digest)
        scale = most**0.5
        assert part.width <= round(scale * image.width)
        assert part.height <= round(scale * image.height)
        assert abs(part.width / image.width - part.height / image.height) <= 0.5 / image.width + 0.5 / image.height
        shown = np.asarray(part)
        windows = np.lib.stride_tricks.sliding_window_view(whole, shown.shape)[:, :, 0]
        assert (windows == shown).all(axis=(-3, -2, -1)).sum() >= 1
        assert preprocess(part, Preprocessing(size=28)).shape == (28, 28, 3)
        assert crop(image, most, digest).tobytes() == part.tobytes()
        seen.add(part.tobytes())
    assert len(seen) > 3  # of different digests, other parts


def test_processes_agree_on_what_is_asked_of_an_image(tokenizer, rows, tmp_path):
    """As wide in all of them, whichever rows they hold; behind a history it is the first question, with the image."""
    reads = copy.copy(tokenizer)
    reads.instructions = InstructionTokenizer(build_tokenizer_dir(tmp_path) / "tokenizer.json", 200)
    preference = dataclasses.replace(rows[0].preference, prompt="What is it? " * 20)
    loader = make_loader(reads, [rows[0]._replace(preference=preference), *rows[1:]], CONFIGS["sigmoid"])
    asked = loader.make(range(3)).rows.responses.instructions
    parts = [
        dataclasses.replace(loader, rows=mine).make(range(3)).rows.responses.instructions for mine in ([0, 3], [1, 2])
    ]
    np.testing.assert_array_equal(np.concatenate(parts), asked[[0, 3, 1, 2]])
    assert asked.shape[-1] > 16
    np.testing.assert_array_equal(asked[:, 0], reads.instruction_ids([preference.prompt, "Hi.", "Say.", ""]))
