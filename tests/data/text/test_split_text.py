"""What each token adds to a text, against decoding every beginning of it."""

import itertools
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny_tokenizer import build_tokenizer_dir
from vigor_jax.data.text.tokenizer import Tokenizer

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
BYTES = 3  # the id of <0x00>, in LLaMA's vocabulary and in ours


def by_beginnings(tokenizer, ids):
    """A token's end is how far what is decoded up to it agrees with the whole text."""
    text, pieces, end = tokenizer.decode(ids), [], 0
    for count in range(1, len(ids) + 1):
        part = tokenizer.decode(ids[:count])
        agreed = 0
        while agreed < min(len(part), len(text)) and part[agreed] == text[agreed]:
            agreed += 1
        last = len(text) if count == len(ids) else max(end, agreed)
        pieces.append(text[end:last])
        end = last
    return pieces


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return Tokenizer.load(build_tokenizer_dir(tmp_path_factory.mktemp("tiny") / "tokenizer"))


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    source = SHARED / "tokenizers" / "llama" / "tokenizer.json"
    if not source.exists():
        pytest.skip("needs ../shared/data/tokenizers")
    return Tokenizer.load(Path(shutil.copy(source, tmp_path_factory.mktemp("llama"))).parent)


def sequences(vocabulary=400):
    """Ids with many bytes, some of which make a character ("é", "€", "😀") or a "�" that is meant; and no ids."""
    spelled = [[BYTES + byte for byte in text.encode()] for text in ("é", "€", "😀", "\ufffd")]
    part = st.sampled_from(spelled) | st.lists(
        st.integers(-2, vocabulary) | st.integers(BYTES, BYTES + 255) | st.sampled_from([0, 1, 2]), max_size=4
    )
    return st.lists(part, max_size=6).map(lambda parts: list(itertools.chain(*parts)))


@settings(deadline=None)
@given(sequences())
def test_any_ids(tiny, ids):
    pieces = tiny.split_text(ids)
    assert pieces == by_beginnings(tiny, ids)
    assert "".join(pieces) == tiny.decode(ids)
    assert len(pieces) == len(ids)


@settings(max_examples=30, deadline=None)
@given(sequences(32000))
def test_any_ids_of_llama(llama, ids):
    assert llama.split_text(ids) == by_beginnings(llama, ids)


@settings(deadline=None)
@given(st.text(st.sampled_from(list("a dog's\n \t.é日😀�▁<>/s")), max_size=30))
def test_any_text(tiny, text):
    ids = [*tiny.encode(text), tiny.eos_id]
    pieces = tiny.split_text(ids)
    assert pieces == by_beginnings(tiny, ids)
    assert pieces[-1] == ""


def test_by_hand(tiny):
    ids = [tiny.bos_id, *tiny.encode("A 😀 dog"), tiny.eos_id]
    pieces = tiny.split_text(ids)
    place = pieces.index("😀")
    assert pieces[place - 3 : place + 1] == ["", "", "", "😀"]
    assert pieces[0] == pieces[-1] == ""
    assert pieces[1] == "A"
    assert tiny.split_text([]) == []


def test_real_captions(llama):
    captions = SHARED / "captions" / "llava13b_coco_captions.jsonl"
    if not captions.exists():
        pytest.skip("needs ../shared/data/captions")
    for line in captions.read_text(encoding="utf-8").splitlines()[::40]:
        text = json.loads(line)["text"]
        ids = [*llama.encode(text), llama.eos_id]
        assert llama.split_text(ids) == by_beginnings(llama, ids)
        assert "".join(llama.split_text(ids)) == text
