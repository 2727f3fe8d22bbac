"""The order, the shapes and the contents of batches, and the errors that come out of its threads."""

import collections
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tiny_tokenizer import build_tokenizer_dir
from vigor_jax.data.batches.examples import scan_examples
from vigor_jax.data.batches.loader import Loader
from vigor_jax.data.images.preprocessing import Preprocessing, load_image, preprocess
from vigor_jax.data.text.conversation import IGNORE_INDEX, TEMPLATES, encode_example
from vigor_jax.data.text.tokenizer import Tokenizer
from vigor_jax.errors import InputError

SIZE = 28
IMAGE = {"image_token_id": 600, "num_image_tokens": 4}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.load(build_tokenizer_dir(tmp_path_factory.mktemp("tokenizer")))


def write_data(root: Path, answers: list[str], *, with_image: bool = True) -> Path:
    rng = np.random.default_rng(0)
    records = []
    for index, answer in enumerate(answers):
        question = "What is on the table?"
        record = {"id": f"e{index}"}
        if with_image and index % 3:  # every third is text only
            Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).save(root / f"{index}.png")
            record["image"], question = f"{index}.png", f"<image>\n{question}"
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        records.append(record | {"conversations": turns})
    path = root / "data.json"
    path.write_text(json.dumps(records))
    return path


def make(root: Path, tokenizer: Tokenizer, num_examples: int = 10, *, with_image: bool = True, **changes) -> Loader:
    answers = [f"There {'is a red circle and ' * (index % 5)}a cat." for index in range(num_examples)]
    path = write_data(root, answers, with_image=with_image)
    settings = {
        "examples": scan_examples(path, root).examples,
        "data_file": path,
        "tokenizer": tokenizer,
        "template": TEMPLATES["v1"],
        "preprocessing": Preprocessing(SIZE),
        "batch_size": 4,
        "epochs": 3,
        "bucket": 8,
        **IMAGE,
    }
    return Loader(**settings | changes)


def assert_same(left, right):
    assert left.ids == right.ids
    assert left.num_tokens == right.num_tokens
    for a, b in zip(left.rows, right.rows, strict=True):
        np.testing.assert_array_equal(a, b)


def test_batches_hold_the_encoded_examples(tmp_path, tokenizer):
    loader = make(tmp_path, tokenizer)
    by_id = {example.id: example for example in loader.examples}
    assert (loader.num_steps, loader.num_dropped) == (7, 2)
    batches = list(loader.batches())
    assert len(batches) == 7
    for batch in batches:
        assert batch.rows.token_ids.dtype == batch.rows.labels.dtype == np.int32
        assert batch.rows.pixels.shape == (4, 1, SIZE, SIZE, 3)
        assert batch.rows.pixels.dtype == np.uint8
        lengths = []
        for row, name in enumerate(batch.ids):
            example = by_id[name]
            encoded = encode_example(tokenizer, loader.template, example.turns, max_length=2048, **IMAGE)
            length = len(encoded.token_ids)
            lengths.append(length)
            np.testing.assert_array_equal(batch.rows.token_ids[row, :length], encoded.token_ids)
            np.testing.assert_array_equal(batch.rows.labels[row, :length], encoded.labels)
            assert (batch.rows.token_ids[row, length:] == tokenizer.pad_id).all()
            assert (batch.rows.labels[row, length:] == IGNORE_INDEX).all()
            if example.image:
                expected = preprocess(load_image(example.image), loader.preprocessing)
            else:
                expected = np.zeros((SIZE, SIZE, 3))
            np.testing.assert_array_equal(batch.rows.pixels[row, 0], expected)
        assert batch.num_tokens == sum(lengths)
        assert batch.rows.token_ids.shape[1] == -(-max(lengths) // 8) * 8
    assert len({batch.rows.token_ids.shape for batch in batches}) > 1  # buckets really differ


def test_each_epoch_is_a_permutation_of_its_own(tmp_path, tokenizer):
    loader = make(tmp_path, tokenizer, num_examples=8)
    ids = [name for batch in loader.batches() for name in batch.ids]
    epochs = [ids[start : start + 8] for start in (0, 8, 16)]
    assert all(len(set(epoch)) == 8 for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3


def test_order_depends_on_the_seed_only(tmp_path, tokenizer):
    first, again = ([batch.ids for batch in make(tmp_path, tokenizer).batches()] for _ in range(2))
    other = [batch.ids for batch in make(tmp_path, tokenizer, seed=1).batches()]
    assert first == again
    assert first != other


def test_the_order_stays_what_it_was(tmp_path, tokenizer):
    """A fixed order: if this changes, runs begun with an earlier version no longer resume to the same data."""
    assert next(make(tmp_path, tokenizer).batches()).ids == ("e0", "e4", "e6", "e7")


@pytest.mark.parametrize("start", [0, 1, 4, 6, 7])
def test_starting_at_a_step_gives_the_rest(tmp_path, tokenizer, start):
    loader = make(tmp_path, tokenizer)
    rest, resumed = list(loader.batches())[start:], list(loader.batches(start))
    assert len(resumed) == 7 - start
    for left, right in zip(rest, resumed, strict=True):
        assert_same(left, right)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_one_global_batch(tmp_path, tokenizer, processes):
    whole = list(make(tmp_path, tokenizer).batches())
    share = 4 // processes
    parts = [
        list(make(tmp_path, tokenizer, rows=range(p * share, (p + 1) * share)).batches()) for p in range(processes)
    ]
    for batch, *own in zip(whole, *parts, strict=True):
        assert {part.ids for part in own} == {batch.ids}
        assert {part.num_tokens for part in own} == {batch.num_tokens}
        for index, array in enumerate(batch.rows):
            if array is not None:
                np.testing.assert_array_equal(np.concatenate([part.rows[index] for part in own]), array)


def test_a_process_opens_the_images_of_its_rows_only(tmp_path, tokenizer, monkeypatch):
    opened = collections.Counter()
    monkeypatch.setattr(
        "vigor_jax.data.batches.loader.load_image", lambda path: (opened.update([path]), load_image(path))[1]
    )
    loader = make(tmp_path, tokenizer, rows=[1, 3])
    by_id = {example.id: example for example in loader.examples}
    batches = list(loader.batches())
    wanted = [by_id[batch.ids[row]].image for batch in batches for row in (1, 3)]
    assert opened == collections.Counter(path for path in wanted if path)


def test_text_only_data_has_no_image_axis(tmp_path, tokenizer):
    batch = next(make(tmp_path, tokenizer, with_image=False).batches())
    assert batch.rows.pixels.shape == (4, 0, SIZE, SIZE, 3)


def test_long_examples_end_at_max_length(tmp_path, tokenizer):
    loader = make(tmp_path, tokenizer, max_length=110, bucket=16)
    widths = {batch.rows.token_ids.shape[1] for batch in loader.batches()}
    assert max(widths) == 112
    batch = max(loader.batches(), key=lambda batch: batch.rows.token_ids.shape[1])
    assert (batch.rows.token_ids[:, 110:] == tokenizer.pad_id).all()


def test_fewer_examples_than_a_batch(tmp_path, tokenizer):
    with pytest.raises(InputError, match=r"data\.json: 3 examples x 1 epochs are fewer than one batch of 4"):
        make(tmp_path, tokenizer, num_examples=3, epochs=1)


def test_an_example_that_does_not_fit(tmp_path, tokenizer):
    loader = make(tmp_path, tokenizer, max_length=40)
    with pytest.raises(InputError, match=r"data\.json: example 'e\d': .*max_length") as caught:
        list(loader.batches())
    assert type(caught.value) is InputError
    assert "\n" not in str(caught.value)


def test_a_broken_image_in_the_middle(tmp_path, tokenizer):
    """The steps before it come out, then the error itself, not one of the thread pool's."""
    loader = make(tmp_path, tokenizer, epochs=1, num_examples=40)
    ids = [batch.ids for batch in loader.batches()]
    victim = next(name for name in ids[6] if int(name[1:]) % 3)
    (tmp_path / f"{victim[1:]}.png").write_bytes(b"no picture")
    seen = []
    with pytest.raises(InputError, match=rf"data\.json: example '{victim}': .*{victim[1:]}\.png") as caught:
        seen.extend(batch.ids for batch in loader.batches())
    assert type(caught.value) is InputError
    assert "\n" not in str(caught.value)
    assert seen == ids[:6]
