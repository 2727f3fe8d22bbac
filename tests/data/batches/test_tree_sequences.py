"""Rows of branches: each path reads like its conversation, nothing is lost in splitting or padding."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny_tokenizer import build_tokenizer_dir
from vigor_jax.data.batches.tree_batches import collate, padded_sizes
from vigor_jax.data.batches.tree_sequences import (
    QUESTIONS,
    Description,
    Row,
    TreeEncoder,
    answer,
    asked,
)
from vigor_jax.data.text.conversation import IGNORE_INDEX, TEMPLATES, Turn, encode_example
from vigor_jax.data.text.tokenizer import Tokenizer
from vigor_jax.errors import InputError
from vigor_jax.inference.tree_attention import visible
from vigor_jax.records import Span
from vigor_jax.rewards.sentences import split_sentences

IMAGE, NUM_IMAGE_TOKENS = 509, 4
WORDS = ("a", "red", "café", "猫", "dog!", "Dr.", "sits.", "1", "\n", "the", "wave.", "🚲")
TEXT = st.lists(st.sampled_from(WORDS), max_size=25).map(" ".join)


@pytest.fixture(scope="module", params=[True, False], ids=["legacy", "not legacy"])
def tokenizer(request, tmp_path_factory):
    return Tokenizer.load(build_tokenizer_dir(tmp_path_factory.mktemp("tokenizer"), legacy=request.param))


def make_encoder(tokenizer, *, template="v1", max_length=2048, max_position=2048) -> TreeEncoder:
    return TreeEncoder(
        tokenizer,
        TEMPLATES[template],
        QUESTIONS["sentence"],
        image_token_id=IMAGE,
        num_image_tokens=NUM_IMAGE_TOKENS,
        max_length=max_length,
        max_position=max_position,
    )


def describe(candidate: int, text: str, answers: list[str] | None = None) -> Description:
    spans = tuple(split_sentences(text))
    return Description(candidate, text, spans, asked(len(spans), "sentence"), answers and tuple(answers))


def encode(encoder, *descriptions) -> Row:
    (sequence,) = encoder.sequences("a.jpg", Path("a.jpg"), descriptions)
    return encoder.row(sequence)


def paths(row: Row) -> list[np.ndarray]:
    """What the last token of each branch sees: the tokens from the first to this one, in order of their positions."""
    ends = np.flatnonzero(np.append(np.diff(row.positions) <= 0, True))
    return [np.flatnonzero(sees) for sees in np.asarray(visible(row.positions[None], ends[None]))[0]]


def test_a_row_written_out(tokenizer):
    encoder = make_encoder(tokenizer)
    row = encode(encoder, describe(0, "A dog. A cat."), describe(1, "A car."))
    prefix, branch = len(encoder.prefix), len(encoder.header) + len(encoder.shared)
    first, second = (len(tokenizer.encode(text, prefix=False)) for text in ("\nA dog.", " A cat."))
    car = len(tokenizer.encode("\nA car.", prefix=False))
    starts = [(0, prefix), (prefix, first), (prefix + first, branch), (prefix + first, second)]
    starts += [(prefix + first + second, branch), (prefix, car), (prefix + car, branch)]
    assert row.positions.tolist() == [start + i for start, length in starts for i in range(length)]
    ends = np.cumsum([length for _, length in starts]) - 1
    assert row.places.tolist() == ends[[2, 4, 6]].tolist()
    assert set(row.targets) == {IGNORE_INDEX}
    assert row.weights.tolist() == [1, 1, 1]


@pytest.mark.parametrize("template", ["v1", "v0", "llava_v1"])
def test_paths_are_conversations(tokenizer, template):
    """Where tokens do not merge over the seams, a path is what LLaVA itself would write."""
    encoder = make_encoder(tokenizer, template=template)
    text, answers = "A dog.\nA cat.", ["0 object", "1"]
    row = encode(encoder, describe(0, text, answers))
    for indices, said, right in zip(paths(row), ("A dog.", text), answers, strict=True):
        turns = (Turn("human", f"<image>\n{QUESTIONS['sentence']}\n{said}"), Turn("gpt", right))
        whole = encode_example(
            tokenizer,
            TEMPLATES[template],
            turns,
            image_token_id=IMAGE,
            num_image_tokens=NUM_IMAGE_TOKENS,
            max_length=999,
        )
        assert row.token_ids[indices].tolist() == whole.token_ids[:-1].tolist()
        assert row.positions[indices].tolist() == list(range(len(indices)))
        learned = np.isin(row.places, indices)
        assert row.targets[learned].tolist() == whole.labels[whole.labels != IGNORE_INDEX].tolist()
        supervised = np.flatnonzero(whole.labels != IGNORE_INDEX)
        assert row.positions[row.places[learned]].tolist() == (supervised - 1).tolist()


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXT, min_size=1, max_size=4))
def test_paths_spell_their_sentences(tokenizer, texts):
    descriptions = [describe(i, text) for i, text in enumerate(texts) if split_sentences(text)]
    encoder = make_encoder(tokenizer)
    sequences = encoder.sequences("a.jpg", Path("a.jpg"), descriptions)
    assert len(sequences) == bool(descriptions)
    for sequence in sequences:
        row = encoder.row(sequence)
        prefix = len(encoder.prefix)
        assert row.token_ids[:prefix].tolist() == encoder.prefix
        questions = iter(paths(row))
        for description in sequence.descriptions:
            for span in description.spans:
                ids = row.token_ids[next(questions)].tolist()
                said = description.text[description.spans[0].start : span.end]
                spelled = tokenizer.decode([tokenizer.token_to_id("a"), *ids[prefix:]])
                assert spelled.rstrip() == f"a\n{said} ASSISTANT:"
        assert not list(questions)


def test_spans_with_space_and_text_before(tokenizer):
    """Annotated sentences may come with the space around them; it changes nothing."""
    text = "  A dog. \n A cat. "
    tight = Description(0, text, (Span(2, 8), Span(11, 17)), (0, 1))
    loose = Description(0, text, (Span(0, 9), Span(9, 18)), (0, 1))
    one, other = (encode(make_encoder(tokenizer), description) for description in (tight, loose))
    assert one.token_ids.tolist() == other.token_ids.tolist()


def test_the_answer_is_read_where_answers_part(tokenizer):
    encoder = make_encoder(tokenizer)
    good, bad = encoder.answer_ids("1"), encoder.answer_ids("0 object attribute")
    shared = len(encoder.shared)
    assert good == [*encoder.shared, encoder.good_id, tokenizer.eos_id]
    assert bad[: shared + 1] == [*encoder.shared, encoder.bad_id]
    assert tokenizer.decode(bad).strip() == "0 object attribute"


def test_answer():
    assert answer(()) == "1"
    assert answer({"conjecture", "object"}) == "0 object conjecture"
    assert answer(["location", "attribute", "relationship"]) == "0 attribute relationship location"


def test_splits_by_candidate(tokenizer):
    descriptions = [describe(i, "A dog sits. " * (1 + i % 3)) for i in range(9)]
    lengths = []
    for most in (150, 200, 400, 3000):
        encoder = make_encoder(tokenizer, max_length=most)
        sequences = encoder.sequences("a.jpg", Path("a.jpg"), descriptions)
        assert [d for sequence in sequences for d in sequence.descriptions] == descriptions
        sizes = [len(encoder.row(sequence).token_ids) for sequence in sequences]
        assert max(sizes) <= most
        for sequence, size, following in zip(sequences, sizes, sequences[1:], strict=False):  # the next one did not fit
            added = sequence._replace(descriptions=(*sequence.descriptions, following.descriptions[0]))
            assert size < len(encoder.row(added).token_ids) > most
        lengths.append(len(sequences))
    assert lengths[0] > lengths[1] > lengths[-1] == 1


@pytest.mark.parametrize("answers", [None, ["0 object"] * 3])
def test_limits_are_exact(tokenizer, answers):
    description = describe(3, "A dog. A cat. A car.", answers)
    row = encode(make_encoder(tokenizer), description)
    length, depth = len(row.token_ids), int(row.positions.max()) + 1
    encode(make_encoder(tokenizer, max_length=length, max_position=depth), description)
    message = rf"a\.jpg: candidate 3 needs {length} tokens .* raise max_length \({length - 1}\) or shorten the text"
    with pytest.raises(InputError, match=message):
        encode(make_encoder(tokenizer, max_length=length - 1), description)
    with pytest.raises(InputError, match=rf"candidate 3 needs {depth} tokens .* has {depth - 1} positions; shorten"):
        encode(make_encoder(tokenizer, max_position=depth - 1), description)


def test_answers_must_begin_like_one_of_the_two(tokenizer):
    with pytest.raises(InputError, match=r"a\.jpg: candidate 2: .* '1' or '0', got 'good'"):
        encode(make_encoder(tokenizer), describe(2, "A dog.", ["good"]))


def test_caption_only_template(tokenizer):
    with pytest.raises(InputError, match="asks no questions"):
        make_encoder(tokenizer, template="plain")


def test_collate(tokenizer):
    encoder = make_encoder(tokenizer)
    rows = [encode(encoder, describe(0, "A dog.", ["1"])), encode(encoder, describe(0, "A cat. A car."))]
    length, places = padded_sizes(rows, 32)
    assert length == -(-len(rows[1].token_ids) // 32) * 32
    pixels = np.zeros((3, 1, 2, 2, 3), np.uint8)
    batch = collate([rows[0], None, rows[1]], length, places, 7, pixels)
    for index, row in ((0, rows[0]), (2, rows[1])):
        for padded, values, fill in (
            (batch.token_ids, row.token_ids, 7),
            (batch.positions, row.positions, 0),
            (batch.places, row.places, 0),
            (batch.targets, row.targets, IGNORE_INDEX),
            (batch.weights, row.weights, 0),
        ):
            assert padded[index, : len(values)].tolist() == values.tolist()
            assert set(padded[index, len(values) :]) <= {fill}
    assert not batch.positions[1].any()
    assert not batch.weights[1].any()
    assert batch.pixels is pixels
