"""A family that the package does not know, given as one model file, its names and config, and one row of the table."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from tests.hf.toy_family import VOCAB_SIZE, WORDS_FILE, ToyFamily, build_toy
from tests.pixels import normalize
from vigor_jax.data.batches.tree_batches import TreeLoader
from vigor_jax.data.batches.tree_sequences import Description, TreeEncoder
from vigor_jax.data.images.preprocessing import load_image, preprocess
from vigor_jax.data.text.conversation import IGNORE_INDEX, TEMPLATES, Turn, encode_example, encode_prompt
from vigor_jax.errors import InputError
from vigor_jax.hf.export import export_checkpoint
from vigor_jax.hf.families import FAMILIES
from vigor_jax.hf.load import load_model, open_checkpoint
from vigor_jax.hf.options import ExportConfig
from vigor_jax.hf.weights.tensor_files import TensorReader
from vigor_jax.inference.policy import Policy
from vigor_jax.inference.sampler import Request, Sampler, SamplingConfig
from vigor_jax.inference.tree_attention import answer_places, hidden_states_at
from vigor_jax.models.vlm import PARTS
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.parallel.sharding import make_mesh
from vigor_jax.plan.planning import model_config
from vigor_jax.records import Span
from vigor_jax.stages.export import export
from vigor_jax.stages.sft import SftConfig, sft
from vigor_jax.training.checkpoint import restore_params_only
from vigor_jax.training.flops import train_flops

ROOT = Path(__file__).resolve().parents[2]
QUESTIONS = ("What is in the picture?", "Name every color", "Describe it", "")
LENGTH = 192
# [CLS] 0, [SEP] 1, [UNK] 2, then the words in their order.
IDS = ([0, 3, 4, 5, 6, 7, 8, 1], [0, 9, 10, 11, 1], [0, 12, 13, 1], [0, 1])


@pytest.fixture(autouse=True, scope="module")
def row():
    """The row of the table that a new family needs."""
    FAMILIES["toy_vlm"] = ToyFamily()
    yield
    del FAMILIES["toy_vlm"]


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    directory = tmp_path_factory.mktemp("toy") / "model"
    return directory, build_toy(directory)


@pytest.fixture(scope="module")
def checkpoint(toy, row):
    return open_checkpoint(toy[0])


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="module")
def model(checkpoint, mesh):
    return load_model(checkpoint, mesh=mesh, dtype=jnp.float32, scan=False)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(1)
    for index in range(4):
        Image.fromarray(rng.integers(0, 256, (28, 28, 3), np.uint8)).save(folder / f"{index}.png")
    return folder


def features_by_numpy(tensors, pixel_values, ids):
    """The toy's image features [3, D] from the tensors on disk."""
    patches = pixel_values.reshape(4, 7, 4, 7, 3).transpose(0, 2, 4, 1, 3).reshape(16, -1)
    x = patches @ tensors["eyes.patches.weight"].reshape(24, -1).T
    for i in range(2):
        x = x + np.tanh(x @ tensors[f"eyes.blocks.{i}.fc.weight"].T + tensors[f"eyes.blocks.{i}.fc.bias"])
    queries = tensors["asking.queries"] + tensors["asking.words"][ids].sum(0)
    looks = np.exp(queries @ x.T - (queries @ x.T).max(-1, keepdims=True))
    looks /= looks.sum(-1, keepdims=True)
    return (queries + looks @ x) @ tensors["asking.out.weight"].T + tensors["asking.out.bias"]


def test_opens_and_its_features_are_those_of_the_tensors_and_the_instruction(toy, checkpoint, model, pictures):
    assert (checkpoint.layout, checkpoint.config.num_image_tokens) == ("toy", 3)
    assert model_config(toy[0]) is not None
    pixels = preprocess(load_image(pictures / "0.png"), checkpoint.preprocessing)
    instructions = checkpoint.tokenizer.instruction_ids(QUESTIONS)
    for row, ids in zip(instructions, IDS, strict=True):
        assert row.tolist() == ids + [-1] * (16 - len(ids))
    found = np.asarray(model.encode_images(np.stack([pixels] * 4), instructions))
    for features, ids in zip(found, IDS, strict=True):
        expected = features_by_numpy(toy[1], normalize(pixels, checkpoint.preprocessing), ids)
        np.testing.assert_allclose(features, expected, rtol=2e-4, atol=2e-4)
    assert np.abs(found[0] - found[1]).max() > 0.1


def prompt_of(checkpoint, question):
    return encode_prompt(
        checkpoint.tokenizer, TEMPLATES["v1"], question,
        image_token_id=checkpoint.config.image_token_id, num_image_tokens=checkpoint.config.num_image_tokens,
    )  # fmt: skip


def caption(checkpoint, model, mesh, pictures):
    """Greedy captions of each picture and question, all with one image in a batch of three rows."""
    pixels = {path: preprocess(load_image(path), checkpoint.preprocessing) for path in sorted(pictures.iterdir())[:2]}
    requests = [
        Request(str(path), prompt_of(checkpoint, question), pixels[path], question)
        for path in pixels
        for question in QUESTIONS[:3]
    ]
    config = SamplingConfig(temperature=0, max_new_tokens=12, num_candidates=1, batch_size=3)
    found = Sampler(model, checkpoint.tokenizer, config, mesh).generate(requests)
    return requests, [list(group[0].token_ids) for group in found]


@nnx.jit
def forward(model, token_ids, pixels, instructions):
    return model.language_model.logits(model(token_ids, pixels, instructions=instructions))


def plain_scores(model, ids, pixels, instruction):
    """Scores [T, V] by one plain forward, of few shapes, without an instruction if that is empty."""
    padded = np.pad(ids, (0, LENGTH - len(ids)))[None]
    instruction = np.pad(np.array(instruction, np.int32), (0, 16 - len(instruction)), constant_values=-1)
    return np.array(forward(model, padded, pixels[None, None], instruction[None, None]))[0, : len(ids)]


def greedy(checkpoint, model, request, num_tokens):
    """A plain forward of the whole text for each token, without caches."""
    ids, tokenizer = list(request.prompt_ids), checkpoint.tokenizer
    never = [checkpoint.config.image_token_id, tokenizer.pad_id, *range(tokenizer.vocab_size, VOCAB_SIZE)]
    for _ in range(num_tokens):
        scores = plain_scores(model, ids, request.pixels, IDS[QUESTIONS.index(request.prompt)])[-1]
        scores[never] = -np.inf
        ids.append(int(scores.argmax()))
        if ids[-1] == tokenizer.eos_id:
            break
    return ids[len(request.prompt_ids) :]


def test_captions_are_those_of_plain_forwards(checkpoint, model, mesh, pictures):
    requests, captions = caption(checkpoint, model, mesh, pictures)
    assert captions == [greedy(checkpoint, model, request, 12) for request in requests]
    assert len(set(map(tuple, captions))) > 3
    # What is said depends on the instruction as the image's features have it, not on the prompt's words alone.
    other = dataclasses.replace(requests[0], prompt=QUESTIONS[1])
    assert greedy(checkpoint, model, other, 12) != captions[0]


@pytest.mark.slow
@pytest.mark.main
def test_logprobs_of_given_responses_are_those_of_plain_forwards(checkpoint, model, mesh, pictures):
    requests, captions = caption(checkpoint, model, mesh, pictures)
    policy = Policy(checkpoint, mesh, dtype="float32")
    found = policy.response_logps(zip(requests, captions, strict=True), batch_size=4)
    for request, response, logps in zip(requests, captions, found, strict=True):
        ids = [*request.prompt_ids, *response]
        scores = plain_scores(model, ids, request.pixels, IDS[QUESTIONS.index(request.prompt)]).astype(np.float64)
        expected = (scores - np.logaddexp.reduce(scores, -1, keepdims=True))[np.arange(len(ids) - 1), ids[1:]]
        np.testing.assert_allclose(logps, expected[-len(response) :], rtol=0, atol=1e-4)


def test_the_reward_model_is_asked_about_features_of_its_question(checkpoint, model, pictures):
    """Two sentences in one row of a tree read like two conversations, and like none with another instruction."""
    encoder = TreeEncoder(
        checkpoint.tokenizer, TEMPLATES["v1"], QUESTIONS[1], image_token_id=checkpoint.config.image_token_id,
        num_image_tokens=3, max_length=256, max_position=256,
    )  # fmt: skip
    description = Description(0, "A dog. A cat.", (Span(0, 6), Span(6, 13)), (0, 1))
    sequences = encoder.sequences("0", pictures / "0.png", [description])
    loader = TreeLoader(sequences, encoder, checkpoint.tokenizer.pad_id, checkpoint.preprocessing, batch_size=2)
    (batch,) = loader.in_order()
    rows = batch.rows
    assert rows.instructions.shape == (2, 1, 16)
    found = np.asarray(nnx.jit(lambda model: model.language_model.logits(hidden_states_at(model, rows)))(model))[0]
    answers = nnx.jit(
        lambda model: answer_places(
            model, rows, jnp.arange(VOCAB_SIZE), jnp.ones(VOCAB_SIZE, bool), num_tokens=1, eos_id=2
        )
    )(model)
    np.testing.assert_allclose(answers.scores[0], found, rtol=1e-4, atol=1e-4)
    for place, texts in enumerate((("\nA dog.",), ("\nA dog.", " A cat."))):
        said = [token for text in texts for token in checkpoint.tokenizer.encode(text, prefix=False)]
        ids = [*encoder.prefix, *said, *encoder.header, *encoder.shared]
        right, wrong = (plain_scores(model, ids, rows.pixels[0, 0], IDS[question])[-1] for question in (1, 0))
        np.testing.assert_allclose(found[place], right, rtol=1e-3, atol=1e-3)
        assert np.abs(found[place] - wrong).max() > 0.01


@pytest.mark.slow
def test_loads_sharded(toy, checkpoint, model, mesh, pictures):
    """Four devices, weights split over two axes: the same captions."""
    program = f"""
import json, jax, jax.numpy as jnp
from pathlib import Path
from tests.hf.test_families import FAMILIES, ToyFamily, caption, load_model, make_mesh, MeshConfig, open_checkpoint
from vigor_jax.models.vlm import nnx, param_paths
FAMILIES["toy_vlm"] = ToyFamily()
checkpoint = open_checkpoint(Path({str(toy[0])!r}))
mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=2))
model = load_model(checkpoint, mesh=mesh, dtype=jnp.float32, scan=False)
def copies(value):
    return 4 // len(set(map(str, value.sharding.devices_indices_map(value.shape).values())))
found = {{path: copies(weight.get_value()) for path, weight in param_paths(nnx.state(model)).items()}}
print(json.dumps([found, caption(checkpoint, model, mesh, Path({str(pictures)!r}))[1]]))
"""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "4", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    copies, captions = json.loads(done.stdout.splitlines()[-1])
    assert copies["language_model.layers.0.q_proj.kernel"] == copies["vision_tower.layers.1.fc.kernel"] == 1
    assert copies["multi_modal_projector.words"] == 2
    assert captions == caption(checkpoint, model, mesh, pictures)[1]


def write_data(folder: Path, pictures: Path) -> Path:
    records = []
    for index, question in enumerate((*QUESTIONS[:3], QUESTIONS[0])):
        value = {"id": str(index), "conversations": [{"from": "human", "value": question}]}
        value["conversations"].append({"from": "gpt", "value": "A red circle and a dog." + " It is large." * index})
        if index < 3:
            value["image"] = f"{index}.png"
            value["conversations"][0]["value"] = f"<image>\n{question}"
        records.append(value)
    (folder / "data.json").write_text(json.dumps(records))
    return folder / "data.json"


def mean_loss(checkpoint, model, data, pictures):
    """Of all supervised tokens, each example alone."""
    total, count = 0.0, 0
    for record in json.loads(data.read_text()):
        question, answer = (turn["value"] for turn in record["conversations"])
        example = encode_example(
            checkpoint.tokenizer, TEMPLATES["v1"], (Turn("human", question), Turn("gpt", answer)),
            image_token_id=checkpoint.config.image_token_id, num_image_tokens=3, max_length=256,
            with_image="image" in record,
        )  # fmt: skip
        pixels, instruction = np.zeros((28, 28, 3), np.uint8), []
        if "image" in record:
            pixels = preprocess(load_image(pictures / record["image"]), checkpoint.preprocessing)
            instruction = IDS[int(record["id"])]
        logprobs = np.asarray(jax.nn.log_softmax(plain_scores(model, example.token_ids, pixels, instruction)))
        for place in np.flatnonzero(example.labels[1:] != IGNORE_INDEX):
            total -= logprobs[place, example.labels[place + 1]]
            count += 1
    return total / count


@pytest.mark.slow
@pytest.mark.parametrize("pack", [1, pytest.param(2, marks=pytest.mark.main)])
def test_trains_exports_and_opens_again_bit_for_bit(toy, checkpoint, model, mesh, pictures, tmp_path, pack):
    config = SftConfig(
        data=write_data(tmp_path, pictures), images=str(pictures), batch_size=4, pack=pack, learning_rate=1e-2,
        warmup_ratio=0.0, max_length=256, freeze=("vision_tower", "language_model.layers"),
    )  # fmt: skip
    checkpoints = sft(config, checkpoint, tmp_path / "run", mesh, dtype=jnp.float32)
    (line,) = (json.loads(text) for text in (tmp_path / "run/metrics/sft.jsonl").read_text().splitlines())
    assert line["loss"] == pytest.approx(mean_loss(checkpoint, model, config.data, pictures), rel=1e-5)

    export(ExportConfig(), checkpoint, checkpoints, tmp_path / "out", mesh)
    params = restore_params_only(checkpoints)
    after = read_tensors(tmp_path / "out")
    before = {ToyFamily().canonical_name(name): value for name, value in toy[1].items()}
    assert after.keys() == before.keys()
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    untrained = ("eyes.", "language_model.model.layers.")
    assert changed == {name for name in before if not name.startswith(untrained)}
    np.testing.assert_array_equal(after["asking.out.weight"], np.asarray(params["multi_modal_projector.out.kernel"]).T)

    tuned = open_checkpoint(tmp_path / "out")
    assert tuned.config == checkpoint.config
    assert tuned.tokenizer.digest() == checkpoint.tokenizer.digest()
    assert (tmp_path / "out" / WORDS_FILE).read_bytes() == (toy[0] / WORDS_FILE).read_bytes()
    export_checkpoint(tuned, {}, tmp_path / "again")
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir() if path.is_file()}
        for name in ("out", "again")
    )
    del first["vigor_jax.json"]
    assert first == second


def read_tensors(directory: Path) -> dict[str, np.ndarray]:
    reader = TensorReader.open(directory)
    return {name: reader.read(name) for name in reader.names()}


def test_instructions_decide_on_the_tokenizer_that_a_run_is_known_by(toy, checkpoint, tmp_path):
    other = tmp_path / "other"
    build_toy(other)
    path = other / WORDS_FILE
    path.write_text(path.read_text().replace('"every"', '"each"'))
    assert open_checkpoint(other).tokenizer.digest() != checkpoint.tokenizer.digest()


@pytest.mark.parametrize("content", ["{", "[]", None])
def test_a_damaged_tokenizer_of_instructions_is_one_line(tmp_path, content):
    build_toy(tmp_path / "toy")
    path = tmp_path / "toy" / WORDS_FILE
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(InputError, match=f"{WORDS_FILE}: ") as caught:
        open_checkpoint(tmp_path / "toy")
    assert "\n" not in str(caught.value)


def test_flops_follow_what_is_trained(checkpoint):
    forward = checkpoint.config.forward_flops(rows=2, tokens=50, images=2)
    assert set(forward) == set(PARTS)
    sizes = {"rows": 2, "tokens": 50, "images": 2}
    assert train_flops(checkpoint.config, set(), **sizes) == sum(forward.values())
    assert train_flops(checkpoint.config, set(PARTS), **sizes) == 3 * sum(forward.values())


def test_a_layout_of_another_family_is_refused_before_anything_is_written(checkpoint, tmp_path):
    with pytest.raises(InputError, match="can be written as toy, got 'llava-hf'"):
        export_checkpoint(checkpoint, {}, tmp_path / "out", layout="llava-hf")
    assert not list(tmp_path.iterdir())


def test_an_unknown_family_is_one_line_that_lists_the_known_ones(toy, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "blip_2"}))
    known = " or ".join(f"'{name}'" for name in ("llava", "llava_llama", "instructblip", "toy_vlm"))
    with pytest.raises(InputError, match=f"model_type 'blip_2' is not supported, only {known}$"):
        open_checkpoint(tmp_path)
