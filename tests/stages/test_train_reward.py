"""Training of the reward model: both forms against plain conversations, resumption, evaluation, and what it learns."""

import dataclasses
import json
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.stages.sft_world import TINY, interrupt
from tests.tiny_llava import build_checkpoint
from vigor_jax.data.batches.loader import Rows
from vigor_jax.data.batches.tree_batches import TreeLoader
from vigor_jax.data.batches.tree_sequences import TreeEncoder, answer
from vigor_jax.data.images.preprocessing import load_image, preprocess
from vigor_jax.data.records.annotations import read_annotations, write_annotations
from vigor_jax.data.text.conversation import IGNORE_INDEX, Turn, encode_example, find_template
from vigor_jax.errors import InputError
from vigor_jax.evaluation.auc import auc
from vigor_jax.hf.load import load_model, open_checkpoint
from vigor_jax.hf.options import ExportConfig
from vigor_jax.models.lora_config import LoraConfig
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.parallel.sharding import make_mesh
from vigor_jax.records import AnnotatedSentence, Annotation, ScoreItem, Span
from vigor_jax.rewards.reward_model import RewardModel
from vigor_jax.rewards.reward_model_config import RewardModelConfig
from vigor_jax.stages import sft as sft_module
from vigor_jax.stages.export import export
from vigor_jax.stages.reward_evaluation import evaluate, table
from vigor_jax.stages.reward_rows import (
    all_errors,
    answer_loss,
    class_weights,
    errors_asked,
    is_held_out,
    make_sequences,
)
from vigor_jax.stages.train_reward import train_reward
from vigor_jax.stages.train_reward_config import TrainRewardConfig
from vigor_jax.training.checkpoint import restore_params_only
from vigor_jax.training.config import SftConfig
from vigor_jax.training.train_step import conversation_loss, merge_params, partition_params

NUM_IMAGES = 32
NUM_CONVERSATIONS = 8
HELD_OUT = 0.25


def make_annotation(rng: np.random.Generator, image: str, separator: str) -> Annotation:
    """Sentences of which those with a dog or anything blue are wrong, so that there is something to learn."""
    text, sentences = "", []
    for _ in range(rng.integers(1, 4)):
        color, thing = rng.choice(["red", "blue", "large"]), rng.choice(["cat", "dog", "wave"])
        start = len(text) + len(separator) * bool(text)
        text += separator * bool(text) + f"A {color} {thing}."
        errors = ("object",) * (thing == "dog") + ("attribute",) * (color == "blue")
        attribute = "color" if "attribute" in errors else ""
        sentences.append(AnnotatedSentence(Span(start, len(text)), errors, attribute, False))
    return Annotation(image, text, tuple(sentences), None, ())


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A checkpoint, images, and annotations of one or two descriptions each, those of an image not side by side."""
    root = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    (root / "images").mkdir()
    for index in range(NUM_IMAGES):
        pixels = rng.integers(0, 256, (*rng.integers(20, 50, 2), 3), np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{index}.png")
    images = [f"{index}.png" for step in (1, 3) for index in range(0, NUM_IMAGES, step)]
    # White space that no tokenizer merges with what stands next to it: rows and conversations have the same tokens.
    write_annotations(root / "annotations.jsonl", [make_annotation(rng, image, "\n") for image in images])
    build_checkpoint(root / "model", TINY)
    return root


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="module")
def checkpoint(world):
    return open_checkpoint(world / "model")


@pytest.fixture(scope="module")
def config(world):
    return TrainRewardConfig(
        annotations=world / "annotations.jsonl",
        images=world / "images",
        question="True?",  # short, and all rows have one shape: for the sake of speed
        epochs=6,
        batch_size=4,
        accumulate=2,
        learning_rate=1e-2,
        held_out=HELD_OUT,
        max_length=160,
        bucket=160,
        remat="none",
        save_every=9,
    )


@pytest.fixture(scope="module")
def whole(config, checkpoint, mesh, tmp_path_factory):
    """The directory of a run that nothing disturbed."""
    run_dir = tmp_path_factory.mktemp("whole")
    assert (
        train_reward(config, checkpoint, run_dir, mesh, dtype=jnp.float32) == run_dir / "checkpoints" / "train_reward"
    )
    return run_dir


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def evaluations(run_dir: Path) -> list[dict]:
    return read_lines(run_dir / "metrics" / "reward_eval.jsonl")


def grouped(config) -> dict[str, list[Annotation]]:
    groups: dict[str, list[Annotation]] = {}
    for annotation in read_annotations(config.annotations):
        groups.setdefault(annotation.image, []).append(annotation)
    return groups


def make_encoder(config, checkpoint) -> TreeEncoder:
    return TreeEncoder(
        checkpoint.tokenizer,
        find_template(config.template),
        config.question,
        image_token_id=checkpoint.config.image_token_id,
        num_image_tokens=checkpoint.config.num_image_tokens,
        max_length=config.max_length,
        max_position=512,
    )


def in_rows(config, checkpoint, annotations, class_weight):
    """What `answer_loss` reads, all of it in one batch."""
    encoder = make_encoder(config, checkpoint)
    sequences = make_sequences(annotations, config, encoder, learn=True, weights=class_weight)
    loader = TreeLoader(
        sequences, encoder, checkpoint.tokenizer.pad_id, checkpoint.preprocessing, len(sequences), bucket=160
    )
    return loader.make(range(len(sequences))).rows


def in_conversations(config, checkpoint, annotations, is_good):
    """The good or the bad answers, one conversation each, as LLaVA's own data would have them."""
    token_ids, labels, pixels = [], [], []
    for image, group in annotations.items():
        for annotation in group:
            ends = [sentence.span.end for sentence in annotation.sentences]
            ends = ends if config.per == "sentence" else ends[-1:]
            for end, errors in zip(ends, errors_asked(annotation, config.per), strict=True):
                if is_good == bool(errors):
                    continue
                said = f"<image>\n{config.question}\n{annotation.description[:end]}"
                example = encode_example(
                    checkpoint.tokenizer,
                    find_template(config.template),
                    (Turn("human", said), Turn("gpt", answer(errors))),
                    image_token_id=checkpoint.config.image_token_id,
                    num_image_tokens=checkpoint.config.num_image_tokens,
                    max_length=512,
                )
                room = 96 - len(example.token_ids)
                token_ids.append(np.pad(example.token_ids, (0, room)))
                labels.append(np.pad(example.labels, (0, room), constant_values=IGNORE_INDEX))
                pixels.append(preprocess(load_image(config.images / image), checkpoint.preprocessing)[None])
    spare = NUM_CONVERSATIONS - len(token_ids)  # rows without a label: good and bad ones are computed alike
    return Rows(
        np.stack([*token_ids, *[np.zeros_like(token_ids[0])] * spare]),
        np.stack([*labels, *[np.full_like(labels[0], IGNORE_INDEX)] * spare]),
        np.stack([*pixels, *[np.zeros_like(pixels[0])] * spare]),
    )


@pytest.mark.parametrize(
    ("balance", "per"),
    [
        pytest.param("weighted", "sentence", marks=pytest.mark.main),
        pytest.param("none", "description", marks=pytest.mark.slow),
    ],
)
def test_loss_and_gradient_equal_those_of_conversations(config, checkpoint, mesh, balance, per):
    """Branches, separate rows, and the loss of plain fine-tuning on conversations that were encoded elsewhere."""
    config = dataclasses.replace(config, per=per)
    annotations = dict(list(grouped(config).items())[:4])
    counts = Counter(not errors for errors in all_errors(annotations, per))
    weight = class_weights(counts) if balance == "weighted" else {True: 1.0, False: 1.0}
    assert len(counts) == 2
    model = load_model(checkpoint, mesh=mesh, dtype=jnp.float32)
    trained = {path for path in partition_params(model, frozenset())[2] if not path.startswith("vision_tower")}
    graphdef, params, frozen = partition_params(model, trained)

    def compute(function, config):
        """(rows) → sums of the loss and of what it is summed over, and the gradient of the former."""

        def loss(params, rows):
            return function(merge_params(graphdef, params | frozen), rows, config)

        jitted = jax.jit(jax.value_and_grad(loss, has_aux=True))

        def call(rows):
            (loss, total), grads = jitted(params, rows)
            return loss, total, grads

        return call

    one_kind = compute(conversation_loss, SftConfig(remat=config.remat))
    good, bad = (one_kind(in_conversations(config, checkpoint, annotations, is_good)) for is_good in (True, False))
    loss, total, grads = jax.tree.map(lambda x, y: weight[True] * x + weight[False] * y, good, bad)
    for form in ("branches", "separate"):
        rows = in_rows(dataclasses.replace(config, form=form), checkpoint, annotations, weight)
        assert len(rows.token_ids) == (len(annotations) if form == "branches" else counts.total())
        found, found_total, found_grads = compute(answer_loss, config)(rows)
        assert abs(found_total - total) <= 1e-5 * total
        assert abs(found - loss) <= 1e-5 * loss
        for path, grad in grads.items():
            assert jnp.linalg.norm(found_grads[path] - grad) <= 1e-5 * jnp.linalg.norm(grad), path


@pytest.mark.slow
@pytest.mark.main
def test_learns(whole, config):
    lines = evaluations(whole)
    first, last = lines[0], lines[-1]
    assert first["auc"] < last["auc"]
    assert last["auc"] > 0.9
    assert last["accuracy"] > 0.8
    assert all(values["auc"] > 0.9 for values in last["errors"].values())
    curve = read_lines(whole / "metrics" / "train_reward.jsonl")
    assert curve[-1]["loss"] < 0.1 * curve[0]["loss"]


def test_evaluates_each_epoch_on_what_it_does_not_learn(whole, config):
    annotations = grouped(config)
    held_out = {image: group for image, group in annotations.items() if is_held_out(image, HELD_OUT)}
    taught = {image: group for image, group in annotations.items() if image not in held_out}
    assert 2 <= len(held_out) < len(annotations) / 2
    num_steps = len(taught) * config.epochs // config.batch_size
    ends = [-(-len(taught) * epoch // config.batch_size) for epoch in range(1, config.epochs + 1)]
    lines = evaluations(whole)
    assert [line["step"] for line in lines] == sorted({*(end for end in ends if end <= num_steps), num_steps})
    errors, learned = all_errors(held_out, "sentence"), all_errors(taught, "sentence")
    for line in lines:
        assert (line["count"], line["good"]) == (len(errors), errors.count(()))
        assert line["trained"] == {"good": learned.count(()), "bad": len(learned) - learned.count(())}
        assert {kind: values["count"] for kind, values in line["errors"].items()} == Counter(sum(errors, ()))
        assert sum(bin["count"] for bin in line["calibration"]) == len(errors)


def test_is_held_out_by_name():
    names = [f"{index}.jpg" for index in range(4000)]
    chosen = {share: {name for name in names if is_held_out(name, share)} for share in (0, 0.05, 0.5)}
    assert not chosen[0]
    assert abs(len(chosen[0.05]) / 4000 - 0.05) < 0.015
    assert chosen[0.05] < chosen[0.5]


@pytest.mark.slow
def test_a_resumed_run_has_the_same_bits(whole, config, checkpoint, mesh, tmp_path, monkeypatch):
    def run():
        return train_reward(config, checkpoint, tmp_path, mesh, dtype=jnp.float32)

    path = tmp_path / "metrics" / "reward_eval.jsonl"
    first, second, *_ = steps = [line["step"] for line in evaluations(whole)]
    assert first < config.save_every < second
    for after, evaluated in ((first, steps[:1]), (second + 1, steps[:2])):  # before and after the first checkpoint
        interrupt(run, monkeypatch, after=after)
        assert [line["step"] for line in evaluations(tmp_path)] == evaluated
    with path.open("a") as file:
        file.write('{"step": 14, "epo')
    run()
    assert path.read_bytes() == (whole / "metrics" / "reward_eval.jsonl").read_bytes()
    expected = restore_params_only(whole / "checkpoints" / "train_reward")
    for name, value in restore_params_only(tmp_path / "checkpoints" / "train_reward").items():
        np.testing.assert_array_equal(value, expected[name])
    run()  # all is done
    assert path.read_bytes() == (whole / "metrics" / "reward_eval.jsonl").read_bytes()


def judged(trained, config, mesh):
    """What an export says of the images held out: the signals, and what is wrong with each sentence."""
    model = load_model(trained, mesh=mesh, dtype=jnp.float32, scan=False)
    judging = RewardModelConfig(batch_size=2, max_length=160, bucket=160, answer_tokens=8, question=config.question)
    judge = RewardModel(model, trained.tokenizer, trained.preprocessing, judging, mesh, weights_digest="trained")
    held_out = {image: group for image, group in grouped(config).items() if is_held_out(image, HELD_OUT)}
    items = [
        ScoreItem(image, config.images / image, "", tuple(annotation.description for annotation in group))
        for image, group in held_out.items()
    ]
    signals = [signal for verdicts in judge.judge(items) for verdict in verdicts for signal in verdict.signals]
    return signals, all_errors(held_out, "sentence")


@pytest.mark.slow
@pytest.mark.main
def test_the_export_judges_as_the_last_evaluation_did(whole, config, checkpoint, mesh, tmp_path):
    """Training → Hugging Face format → the stream that scores, which finds the sentences by itself."""
    export(ExportConfig(), checkpoint, whole / "checkpoints" / "train_reward", tmp_path / "out", mesh)
    signals, errors = judged(open_checkpoint(tmp_path / "out"), config, mesh)
    found, expected = evaluate(np.array([signal.score for signal in signals]), errors), evaluations(whole)[-1]
    assert found["auc"] == pytest.approx(expected["auc"], abs=1e-2)  # scores that nearly tie may change places
    for one, other in zip(found["calibration"], expected["calibration"], strict=True):
        assert one["count"] == other["count"]
        assert one["p_good"] == pytest.approx(other["p_good"], abs=1e-5)
    right = [signal.label == answer(kinds) for signal, kinds in zip(signals, errors, strict=True)]
    assert np.mean(right) > 0.6  # the strings are learned as well


@pytest.mark.slow
@pytest.mark.main
def test_an_adapter_is_trained_evaluated_exported_and_judges_alike(config, checkpoint, mesh, tmp_path):
    config = dataclasses.replace(config, lora=LoraConfig(rank=8, alpha=16), epochs=2)
    train_reward(config, checkpoint, tmp_path, mesh, dtype=jnp.float32)
    export(ExportConfig(), checkpoint, tmp_path / "checkpoints" / "train_reward", tmp_path / "out", mesh)
    trained = open_checkpoint(tmp_path / "out")
    assert trained.adapter is not None
    signals, errors = judged(trained, config, mesh)
    found, (first, *_, last) = evaluate(np.array([signal.score for signal in signals]), errors), evaluations(tmp_path)
    for one, other in zip(found["calibration"], last["calibration"], strict=True):
        assert one["count"] == other["count"]
        assert one["p_good"] == pytest.approx(other["p_good"], abs=1e-5)
    assert first["calibration"] != last["calibration"]
    curve = read_lines(tmp_path / "metrics" / "train_reward.jsonl")
    assert curve[-1]["loss"] < 0.7 * curve[0]["loss"]


@pytest.mark.slow
@pytest.mark.main
def test_without_held_out_images(config, checkpoint, mesh, tmp_path):
    config = dataclasses.replace(config, held_out=0.0, epochs=1, form="separate", balance="weighted", per="description")
    train_reward(config, checkpoint, tmp_path, mesh, dtype=jnp.float32)
    assert not (tmp_path / "metrics" / "reward_eval.jsonl").exists()
    num_rows = sum(map(len, grouped(config).values()))
    assert len(read_lines(tmp_path / "metrics" / "train_reward.jsonl")) == num_rows // config.batch_size


SCORES = st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0]), st.booleans()), max_size=30)


@given(SCORES)
def test_auc_equals_the_count_of_pairs(items):
    scores, is_good = np.array([s for s, _ in items]), np.array([g for _, g in items], bool)
    pairs = [(good > bad) + 0.5 * (good == bad) for good in scores[is_good] for bad in scores[~is_good]]
    expected = sum(pairs) / len(pairs) if pairs else None
    assert auc(scores, is_good) == (None if expected is None else pytest.approx(expected, abs=1e-12))


def test_evaluation_of_a_few():
    errors = [(), (), (), ("object",), ("object", "location"), ("location",)]
    metrics = evaluate(np.array([0.95, 0.55, 0.2, 0.1, 0.6, 1.0]), errors)
    assert (metrics["count"], metrics["good"], metrics["accuracy"]) == (6, 3, 3 / 6)
    assert metrics["auc"] == pytest.approx(4 / 9)  # 0.95 beats two, 0.55 and 0.2 one each
    assert metrics["errors"] == {
        "object": {"count": 2, "auc": pytest.approx(4 / 6), "accuracy": 1 / 2},
        "location": {"count": 2, "auc": pytest.approx(1 / 6), "accuracy": 0.0},
    }
    filled = {index: bin for index, bin in enumerate(metrics["calibration"]) if bin["count"]}
    assert sorted(filled) == [1, 2, 5, 6, 9]
    assert filled[9] == {"count": 2, "p_good": pytest.approx(0.975), "good": 0.5}
    shown = table({"epoch": 2.0, **metrics})
    assert all(word in shown for word in ("epoch 2", "object", "location", "0.9 - 1.0", "0.975"))


def test_evaluation_without_bad_ones():
    metrics = evaluate(np.array([0.5, 0.7]), [(), ()])
    assert (metrics["auc"], metrics["accuracy"], metrics["errors"]) == (None, 1.0, {})
    assert "0.700" in table({"epoch": 1.0, **metrics})


def test_class_weights():
    weights = class_weights(Counter({True: 6, False: 2}))
    assert 6 * weights[True] == 2 * weights[False] == 4
    assert class_weights(Counter({True: 6})) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"held_out": 1.0}, "held_out: expected 0 to less than 1, got 1.0"),
        ({"annotations": None}, "annotations, images: name the file"),
        ({"batch_size": 3, "accumulate": 1, "images": Path("nowhere")}, "nowhere/0.png does not exist"),
        ({"batch_size": 512}, "rows x 6 epochs are fewer than one batch of 512; lower batch_size or held_out"),
        ({"template": "plain"}, "the caption-only format asks no questions"),
        ({"max_length": 110}, r"candidate \d needs \d+ tokens .* raise max_length \(110\) or shorten the text"),
    ],
)
def test_bad_settings(config, checkpoint, mesh, tmp_path, change, message):
    with pytest.raises(InputError, match=message) as caught:
        train_reward(dataclasses.replace(config, **change), checkpoint, tmp_path, mesh, dtype=jnp.float32)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("image", "text", "error", "message"),
    [
        ("gone.png", "A cat.", "object", "image .*gone.png does not exist; check the image folder"),
        ("0.png", "A cat.", "color", "annotations.jsonl:2, sentence 1: unknown error type 'color'"),
        (
            "0.png",
            "A cat on the table, " * 90 + ".",
            "object",
            "0.png: candidate 1 needs .* the model has 512 positions; shorten",
        ),
        ("torn.png", "A cat.", "object", r"torn\.png: .*"),
    ],
)
def test_bad_annotations(config, checkpoint, mesh, tmp_path, image, text, error, message):
    config = dataclasses.replace(
        config, images=tmp_path, annotations=tmp_path / "annotations.jsonl", held_out=0.0, max_length=4096
    )
    Image.new("RGB", (30, 30)).save(tmp_path / "0.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "0.png").read_bytes()[:40])
    lines = [("0.png", "A dog.", []), (image, text, [error])]
    config.annotations.write_text(
        "".join(
            json.dumps({"image": name, "description": said, "sentences": [{"text": said.strip(), "errors": errors}]})
            + "\n"
            for name, said, errors in lines
        )
    )
    with pytest.raises(InputError, match=message) as caught:
        train_reward(config, checkpoint, tmp_path / "run", mesh, dtype=jnp.float32)
    assert "\n" not in str(caught.value)


def spoil(lines: list[str]) -> dict[int, str]:
    """Makes some annotations useless; line → what is said of it."""
    records = {index: json.loads(lines[index]) for index in (2, 5, 9, 20)}
    records[2]["image"] = "gone.png"
    records[5]["sentences"][0]["errors"] = ["objekt"]
    records[9]["description"] = records[9]["sentences"][0]["text"] = "A cat on the table, " * 90 + "."
    records[9]["sentences"] = [{"text": records[9]["description"], "errors": []}]
    records[20]["description"] += "\ud83d"
    for index, record in records.items():
        lines[index] = json.dumps(record)
    lines[30] = lines[30][:-9]
    return {
        3: "gone.png does not exist; check the image folder",
        6: "sentence 1: unknown error type 'objekt'",
        10: "candidate 0 needs",
        21: "a lone surrogate",
        31: "malformed JSON",
    }


@pytest.mark.slow
@pytest.mark.main
def test_all_bad_annotations_are_told_before_training(config, checkpoint, mesh, tmp_path, caplog):
    lines = config.annotations.read_text().splitlines()
    config = dataclasses.replace(config, annotations=tmp_path / "a.jsonl", max_length=512, epochs=1)
    good = [line for index, line in enumerate(lines) if index not in (2, 5, 9, 20, 30)]
    config.annotations.write_text("\n".join(good))
    train_reward(config, checkpoint, tmp_path / "good", mesh, dtype=jnp.float32)

    expected = spoil(lines)
    config.annotations.write_text("\n".join(lines))
    with pytest.raises(InputError) as caught:
        train_reward(config, checkpoint, tmp_path / "run", mesh, dtype=jnp.float32)
    message = str(caught.value)
    assert message.startswith(f"{config.annotations}: 5 of {len(lines)} rows cannot be trained on; fix them, or give ")
    assert "--train_reward.skip_bad true" in message
    assert "\n" not in message
    for number, reason in expected.items():
        assert f"line {number}" in message
        assert reason in message

    train_reward(dataclasses.replace(config, skip_bad=True), checkpoint, tmp_path / "run", mesh, dtype=jnp.float32)
    assert f"5 of {len(lines)} rows cannot be trained on and are left out" in caplog.text
    report = read_lines(tmp_path / "run" / "bad_annotations.jsonl")
    assert [line["row"] for line in report] == list(expected)
    curves = [read_lines(tmp_path / name / "metrics" / "train_reward.jsonl") for name in ("good", "run")]
    losses, others = ([line["loss"] for line in curve] for curve in curves)
    assert losses == others


@pytest.mark.parametrize("per", ["sentence", "description"])
@pytest.mark.parametrize("form", ["branches", "separate"])
def test_no_advice_that_the_model_cannot_take(config, checkpoint, mesh, tmp_path, form, per):
    """A path longer than the model's positions stays so, whatever `max_length` is."""
    long = "A cat on the table, " * 90 + "."
    line = {"image": "0.png", "description": long, "sentences": [{"text": long, "errors": []}]}
    config = dataclasses.replace(config, annotations=tmp_path / "a.jsonl", form=form, per=per, held_out=0.0)
    config.annotations.write_text(json.dumps(line))
    for max_length in (160, 4096):
        with pytest.raises(InputError, match="the model has 512 positions; shorten the text") as caught:
            train_reward(
                dataclasses.replace(config, max_length=max_length),
                checkpoint,
                tmp_path / "run",
                mesh,
                dtype=jnp.float32,
            )
        assert "raise max_length" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.main
def test_annotations_may_change_where_nothing_was_learned_yet(config, checkpoint, mesh, tmp_path, monkeypatch, caplog):
    """Fixed and removed rows; not where the images that are held out change, or the weights of all answers."""
    lines = config.annotations.read_text().splitlines()
    config = dataclasses.replace(config, annotations=tmp_path / "a.jsonl", epochs=1, save_every=2, batch_size=4)
    config.annotations.write_text("\n".join(lines))

    def run(config=config, name="run"):
        return train_reward(config, checkpoint, tmp_path / name, mesh, dtype=jnp.float32)

    taken = []
    original = sft_module.fine_tune

    def spy(config, checkpoint, run_dir, mesh, batches, data, **how):
        taken[:] = [image for batch in batches.batches(0) for image in batch.ids]
        return original(config, checkpoint, run_dir, mesh, batches, data, **how)

    monkeypatch.setattr("vigor_jax.stages.train_reward.fine_tune", spy)
    interrupt(run, monkeypatch, after=3)
    learned, fixed, removed = taken[0], taken[8], taken[9]

    def changed(image, replacement):
        """Without all descriptions of an image, or with another one in place of the first."""
        found, done = [], False
        for line in lines:
            if json.loads(line)["image"] != image:
                found.append(line)
            elif replacement and not done:
                found.append(json.dumps(json.loads(line) | replacement))
                done = True
        return found

    other = {"description": "A red cat.", "sentences": [{"text": "A red cat.", "errors": []}]}
    held_out = next(image for image in grouped(config) if is_held_out(image, HELD_OUT))
    for image, message in ((learned, "rows that were learned already"), (held_out, "was made with data.held_out")):
        config.annotations.write_text("\n".join(changed(image, other)))
        with pytest.raises(InputError, match=message):
            run()
    lines = changed(fixed, other)
    lines = changed(removed, None)
    config.annotations.write_text("\n".join(lines))
    run()
    assert "2 rows of" in caplog.text
    assert removed not in taken
    assert fixed in taken
    curve = read_lines(tmp_path / "run" / "metrics" / "train_reward.jsonl")
    assert len(curve) == (len(taken) + 1) // 4
