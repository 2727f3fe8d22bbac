"""What is asked of a response's quality: against tokens of the whole conversation, and what is refused."""

from pathlib import Path

import pytest
import transformers

from tests.tiny_tokenizer import build_tokenizer_dir
from vigor_jax.data.text.conversation import TEMPLATES, encode_responses
from vigor_jax.data.text.quality_question import NOTHING, QualityQuestion, find_question
from vigor_jax.data.text.tokenizer import Tokenizer
from vigor_jax.errors import InputError

V1 = TEMPLATES["v1"]
CAPTIONS = ("A man rides a wave.", "A surfer in the ocean.")
LLAMA = Path(__file__).resolve().parents[4] / "shared" / "data" / "tokenizers" / "llama"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer_dir(directory)
    return directory


def text_of(tokenizer, ids) -> str:
    return tokenizer.decode(ids)


def test_captions_are_told_where_there_are_some(folder):
    tokenizer = Tokenizer.load(folder)
    plain, told = (
        text_of(tokenizer, QualityQuestion().token_ids(tokenizer, V1, captions)) for captions in ((), CAPTIONS)
    )
    assert plain.strip().startswith("USER: How good was your last response?")
    assert plain.strip().endswith("than it needs to be. ASSISTANT: Its quality is")
    assert "agree with it:\n  - A man rides a wave.\n  - A surfer in the ocean.\n ASSISTANT: Its quality is" in told
    assert told.startswith(plain[: plain.index(" ASSISTANT")])


def whole_text(question: str) -> str:
    said = "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    said += "detailed, and polite answers to the user's questions. USER: What is it? ASSISTANT: A red cat.</s>"
    return f"{said} USER: {question} ASSISTANT: Its quality is</s>"


def ours(tokenizer, question: str) -> list[int]:
    prompt, (response,) = encode_responses(
        tokenizer, V1, "What is it?", ["A red cat."], image_token_id=-1, num_image_tokens=1, with_image=False
    )
    found = find_question(question, with_captions=False, section="s")
    return [*prompt, *response, *found.token_ids(tokenizer, V1)]


def test_tokens_are_those_of_the_whole_conversation(folder):
    reference = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    assert ours(Tokenizer.load(folder), "Is it good?") == reference(whole_text("Is it good?"))["input_ids"]


@pytest.mark.skipif(not LLAMA.exists(), reason="LLaMA's tokenizer is not here")
def test_tokens_of_llama():
    reference = transformers.PreTrainedTokenizerFast(tokenizer_file=str(LLAMA / "tokenizer.json"))
    assert ours(Tokenizer.load(LLAMA), "Is it good?") == reference(whole_text("Is it good?"))["input_ids"]


def test_a_format_that_ends_answers_with_words(folder):
    tokenizer = Tokenizer.load(folder)
    ids = QualityQuestion("Good?", "It is").token_ids(tokenizer, TEMPLATES["v0"])
    assert text_of(tokenizer, ids).strip() == "Human: Good?###Assistant: It is###"
    with pytest.raises(InputError, match="the caption-only format asks no questions; give question none"):
        QualityQuestion().token_ids(tokenizer, TEMPLATES["plain"])


def test_what_an_option_asks_for():
    assert find_question(NOTHING, with_captions=False, section="s") is None
    assert find_question("", with_captions=True, section="s") == QualityQuestion()
    own = find_question("Good? {captions}", with_captions=True, section="s")
    assert own == QualityQuestion("Good? {captions}")
    assert find_question("Good?{answer} It is", with_captions=False, section="s") == QualityQuestion("Good?", "It is")
    for question in ("Good?", NOTHING):
        with pytest.raises(InputError, match=r"s\.question: expected \{captions\} where the captions") as error:
            find_question(question, with_captions=True, section="s")
        assert "\n" not in str(error.value)
