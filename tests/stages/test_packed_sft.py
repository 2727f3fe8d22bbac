"""Packed rows change how a batch is computed and nothing else: losses, gradients and runs are those of padded rows."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.stages.sft_world import curve, finish, make_world, spawn, weights
from tests.stages.test_sft_processes import two_processes
from vigor_jax.data.batches.loader import Rows
from vigor_jax.data.batches.packing import pack_tokens
from vigor_jax.data.text.conversation import IGNORE_INDEX, EncodedExample
from vigor_jax.errors import InputError
from vigor_jax.hf.load import load_model, open_checkpoint
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.parallel.sharding import make_mesh
from vigor_jax.stages import sft as sft_module
from vigor_jax.stages.sft import SftConfig, sft
from vigor_jax.training.train_step import conversation_loss, merge_params, partition_params


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world") / "w", examples=40)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="module")
def checkpoint(world):
    return open_checkpoint(world / "model")


@pytest.fixture(scope="module")
def config(world):
    """AdamW as smooth as in `test_sft_processes`, so that rounding is not blown up."""
    return SftConfig(
        data=world / "data.json",
        images=world / "images",
        batch_size=8,
        learning_rate=1e-3,
        warmup_ratio=0.0,
        eps=1e-3,
        max_length=256,
        bucket=128,
        loss_chunk=48,
        save_every=2,
    )


@pytest.fixture(scope="module")
def padded_run(config, checkpoint, mesh, tmp_path_factory):
    """The run that packed ones are compared with."""
    run_dir = tmp_path_factory.mktemp("padded")
    sft(config, checkpoint, run_dir, mesh, dtype=jnp.float32)
    return run_dir


def batches(config, checkpoint, mesh, **change):
    return list(sft_module._loader(dataclasses.replace(config, **change), checkpoint, mesh).batches())


@pytest.mark.parametrize("pack", [2, 4, 8])
def test_packed_batches_hold_the_same_examples(config, checkpoint, mesh, pack):
    is_image = checkpoint.config.image_token_id
    for plain, packed in zip(
        batches(config, checkpoint, mesh), batches(config, checkpoint, mesh, pack=pack), strict=True
    ):
        assert (packed.ids, packed.num_tokens) == (plain.ids, plain.num_tokens)
        rows, expected = packed.rows, {}
        for ids, labels, pixels in zip(plain.rows.token_ids, plain.rows.labels, plain.rows.pixels, strict=True):
            length = (ids != checkpoint.tokenizer.pad_id).sum()
            image = pixels[0].tobytes() if (ids == is_image).any() else None
            expected[ids[:length].tobytes()] = (labels[:length].tobytes(), image)
        assert len(expected) == 8  # no two examples are equal
        assert rows.token_ids.shape[0] == 8 // pack
        assert rows.pixels.shape[1] in (pack, 2 * pack)
        found = {}
        for row in range(8 // pack):
            place = 0
            for segment in range(1, rows.segment_ids[row].max() + 1):
                own = rows.segment_ids[row] == segment
                ids, labels, image = rows.token_ids[row, own], rows.labels[row, own], None
                assert labels[0] == IGNORE_INDEX
                if (ids == is_image).any():
                    image, place = rows.pixels[row, place].tobytes(), place + 1
                found[ids.tobytes()] = (labels.tobytes(), image)
            assert not rows.pixels[row, place:].any()
        assert found == expected


@pytest.fixture(scope="module")
def losses(checkpoint, mesh):
    """Loss, supervised tokens and the gradients of all weights, the tower's too."""
    graphdef, _, weights = partition_params(load_model(checkpoint, mesh=mesh, dtype=jnp.float32), frozenset())

    def loss(weights, rows):
        return conversation_loss(merge_params(graphdef, weights), rows, SftConfig(remat="full", loss_chunk=48))

    compiled = jax.jit(jax.value_and_grad(loss, has_aux=True))
    return lambda rows: compiled(weights, rows)


def assert_equal_gradients(found, expected):
    (loss, tokens), grads = found
    (expected_loss, expected_tokens), expected_grads = expected
    assert tokens == expected_tokens
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-6)
    assert grads.keys() == expected_grads.keys()
    for path, grad in grads.items():
        size = max(np.abs(expected_grads[path]).max(), 0.1)  # the bias of keys has a gradient of 0 but for rounding
        np.testing.assert_allclose(grad, expected_grads[path], atol=2e-5 * size, rtol=0, err_msg=path)


@pytest.mark.slow
def test_loss_and_all_gradients_equal_the_padded_ones(config, checkpoint, mesh, losses):
    """Every fifth example is without an image; 8 a row need more keys than a block of queries has."""
    plain, packed = batches(config, checkpoint, mesh)[0], batches(config, checkpoint, mesh, bucket=16, pack=8)[0]
    assert packed.rows.token_ids.size < plain.rows.token_ids.size
    images = (packed.rows.token_ids == checkpoint.config.image_token_id).sum(1) // checkpoint.config.num_image_tokens
    assert images.sum() < 8
    assert images.max() > 1
    expected = losses(plain.rows)
    assert any(np.abs(grad).max() > 0 for path, grad in expected[1].items() if path.startswith("vision_tower"))
    assert_equal_gradients(losses(packed.rows), expected)


@pytest.mark.slow
@pytest.mark.main
def test_rows_without_any_image_next_to_rows_with_some(config, checkpoint, mesh, losses):
    """Packed by hand: examples without images in a separate row, the others in another, padding in a third."""
    plain = batches(config, checkpoint, mesh)[0].rows
    lengths = (plain.token_ids != checkpoint.tokenizer.pad_id).sum(1)
    encoded = [
        EncodedExample(ids[:length], labels[:length])
        for ids, labels, length in zip(plain.token_ids, plain.labels, lengths, strict=True)
    ]
    has_image = (plain.token_ids == checkpoint.config.image_token_id).any(1)
    assert 1 < has_image.sum() < 8
    rows = [np.flatnonzero(~has_image), np.flatnonzero(has_image), []]
    tokens = pack_tokens(encoded, rows, 1024, checkpoint.tokenizer.pad_id)
    pixels = np.full((3, 8, *plain.pixels.shape[2:]), 99, np.uint8)  # whatever is in places without an image
    pixels[1, : len(rows[1])] = plain.pixels[has_image, 0]
    packed = Rows(tokens.token_ids, tokens.labels, pixels, tokens.segment_ids, tokens.positions)
    assert_equal_gradients(losses(packed), losses(plain))


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [{"pack": 4, "loss_chunk": 200}, pytest.param({"pack": 2, "accumulate": 4}, marks=pytest.mark.main)],
    ids=str,
)
def test_a_packed_run_equals_the_padded_one(config, checkpoint, mesh, padded_run, tmp_path, change):
    sft(dataclasses.replace(config, **change), checkpoint, tmp_path, mesh, dtype=jnp.float32)
    assert_equal_runs(tmp_path, padded_run)


def assert_equal_runs(run_dir, reference):
    lines, expected = curve(run_dir), curve(reference)
    assert len(lines) == len(expected) == 5
    assert expected[-1]["loss"] < 0.99 * expected[0]["loss"]  # it learns, so there is something to compare
    for got, line in zip(lines, expected, strict=True):
        for name in ("step", "tokens", "num_tokens", "learning_rate"):
            assert got[name] == line[name]
        for name in ("loss", "grad_norm"):
            assert got[name] == pytest.approx(line[name], rel=1e-5), (got["step"], name)
    final = weights(reference)
    for path, value in weights(run_dir).items():
        np.testing.assert_allclose(value, final[path], atol=1e-5, rtol=0, err_msg=path)


@pytest.mark.main
def test_text_only_data_has_no_images_to_pack(config, checkpoint, mesh, tmp_path):
    records = [record for record in json.loads(config.data.read_text()) if "image" not in record]
    data = tmp_path / "text.json"
    data.write_text(json.dumps(records))
    config = dataclasses.replace(config, data=data, images=None, pack=4)  # 8 examples, one update
    assert batches(config, checkpoint, mesh)[0].rows.pixels.shape[1] == 0
    sft(config, checkpoint, tmp_path, mesh, dtype=jnp.float32)
    assert all(math.isfinite(line["loss"]) for line in curve(tmp_path))


def test_few_shapes_are_compiled(config, checkpoint, mesh):
    """The length alone differs between batches of a run."""
    packed = [batch.rows for batch in batches(config, checkpoint, mesh, pack=4, bucket=64, epochs=10)]
    assert {rows.token_ids.shape[0] for rows in packed} == {2}
    assert len(packed) == 50
    assert len({(rows.token_ids.shape, rows.pixels.shape) for rows in packed}) <= 4


@pytest.mark.slow
def test_sharded_and_in_two_processes(world, config, padded_run, tmp_path):
    """Packed on meshes of four devices, and with each of two processes holding half of the rows."""
    names = ("epochs", "batch_size", "learning_rate", "warmup_ratio", "eps", "max_length", "bucket", "loss_chunk")
    settings = {name: getattr(config, name) for name in names} | {"pack": 2}
    meshes = ((2, 2, 1), (1, 2, 2))
    runs = [{"run_dir": str(tmp_path / str(shape)), "mesh": shape, "sft": settings} for shape in meshes]
    finish(spawn({"world": str(world), "runs": runs}, devices=4, cache=tmp_path / "cache"))
    finish(*two_processes(world, tmp_path / "two", tmp_path / "cache", settings=settings, mesh=(2, 2, 1)))
    for name in (*map(str, meshes), "two"):
        assert_equal_runs(tmp_path / name, padded_run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pack": 0}, "pack: expected at least 1, got 0"),
        ({"batch_size": 8, "pack": 3}, "batch_size 8 does not divide into accumulate 1 parts of rows of pack 3"),
        ({"batch_size": 8, "accumulate": 4, "pack": 4}, "accumulate 4 parts of rows of pack 4 examples; change one"),
    ],
)
def test_settings_that_make_no_sense(change, message):
    with pytest.raises(InputError, match=message) as error:
        SftConfig(**change)
    assert "\n" not in str(error.value)
