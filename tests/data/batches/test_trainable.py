"""The look at all examples before training finds those that encoding would refuse, and no others."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny_tokenizer import SENTENCES, build_tokenizer_dir
from vigor_jax.data.batches.examples import Example
from vigor_jax.data.batches.trainable import Encoder
from vigor_jax.data.text.conversation import TEMPLATES, Turn
from vigor_jax.data.text.tokenizer import Tokenizer
from vigor_jax.errors import InputError


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.load(build_tokenizer_dir(tmp_path_factory.mktemp("tokenizer")))


def encoder(tokenizer: Tokenizer, *, template: str = "v1", max_length: int = 120) -> Encoder:
    return Encoder(tokenizer, TEMPLATES[template], 600, 24, max_length, max_positions=512)


WORDS = st.lists(st.sampled_from([*SENTENCES, "", "猫", "<image>", "\n"]), max_size=4).map(" ".join)


@st.composite
def examples(draw):
    rounds = [(draw(WORDS), draw(WORDS) + "!") for _ in range(draw(st.integers(1, 3)))]
    image = draw(st.sampled_from([None, "a.png"]))
    if image:
        place = draw(st.integers(0, len(rounds) - 1))
        rounds = [(question.replace("<image>", ""), answer) for question, answer in rounds]
        question, answer = rounds[place]
        rounds[place] = draw(st.sampled_from([f"<image>\n{question}", f"{question}\n<image>"])), answer
    turns = [Turn(role, text) for each in rounds for role, text in zip(("human", "gpt"), each, strict=True)]
    return Example("e", image, tuple(turns))


@settings(max_examples=300, deadline=None)
@given(st.lists(examples(), max_size=5), st.sampled_from(["v0", "v1", "plain"]), st.integers(20, 260))
def test_finds_what_encoding_refuses(tokenizer, found, template, max_length):
    encode = encoder(tokenizer, template=template, max_length=max_length)
    refused = {}
    for index, example in enumerate(found):
        try:
            encode(example)
        except InputError as error:
            refused[index] = str(error)
    assert encode.refused(found) == refused


def test_most_rows_are_not_tokenized(tokenizer, monkeypatch):
    rows = [Example(f"{index}", None, (Turn("human", "Hi"), Turn("gpt", "A cat. " * 999))) for index in range(9)]
    long = Example("long", None, (Turn("human", "What is on the table? " * 99), Turn("gpt", "A cat.")))
    calls = []
    encode = tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda text, **how: (calls.append(text), encode(text, **how))[1])
    assert list(encoder(tokenizer, max_length=512).refused([*rows, long])) == [9]
    assert calls
    assert not any("A cat. A cat." in text for text in calls)
