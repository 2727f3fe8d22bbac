"""The tokenizer against sentencepiece and transformers, and every way in which its files can be wrong."""

import functools
import io
import itertools
import json
import operator
import os
import pickle
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny_tokenizer import SENTENCES, build_tokenizer_dir
from vigor_jax.data.text.tokenizer import Tokenizer
from vigor_jax.errors import InputError

LLAMA = Path(__file__).resolve().parents[3] / ".." / "shared" / "data" / "tokenizers" / "llama"
needs_llama = pytest.mark.skipif(not LLAMA.is_dir(), reason="needs the LLaMA tokenizer")

SNIPPETS = (
    " ",
    "  ",
    "\n",
    "\t",
    "▁",
    "=",
    "--",
    "the",
    "ing",
    "1",
    "23",
    "é",
    "e\u0301",
    "日本",
    "😀",
    "👩\u200d🚀",
)
SPELLED_OUT = ("</s>", "<s>", "<unk>", "<image>", "<pad>", "<0x0A>", "\x00", "###")
TEXTS = st.lists(
    st.sampled_from(SNIPPETS + SPELLED_OUT) | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    max_size=12,
).map("".join)


@pytest.fixture(scope="module", params=[True, False], ids=["legacy", "not legacy"])
def tiny_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tokenizer_dir(tmp_path_factory.mktemp("tiny"), legacy=request.param)


def train_sentencepiece(path: Path, **options: object) -> sentencepiece.SentencePieceProcessor:
    """A small model of LLaMA's kind, trained by sentencepiece itself, written to `path`."""
    llama = {
        "model_type": "bpe",
        "vocab_size": 420,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "character_coverage": 0.999,
    }
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_writer=model, minloglevel=2, **(llama | options)
    )
    path.write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


@pytest.fixture(scope="module", params=["trained here", "llama"])
def sentencepiece_pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, sentencepiece.SentencePieceProcessor]:
    """Our reading of a tokenizer.model next to sentencepiece's own."""
    folder = tmp_path_factory.mktemp("model")
    path = folder / "tokenizer.model"
    if request.param == "llama":
        if not LLAMA.is_dir():
            pytest.skip("needs the LLaMA tokenizer")
        path.write_bytes((LLAMA / "tokenizer.model").read_bytes())
        reference = sentencepiece.SentencePieceProcessor(model_file=str(path))
    else:
        reference = train_sentencepiece(path)
    return Tokenizer.load(folder), reference


def edit(folder: Path, name: str, **changes: object) -> None:
    path = folder / name
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(content | changes), encoding="utf-8")


def load_error(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        Tokenizer.load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- ids


@settings(max_examples=400, deadline=None)
@given(text=TEXTS)
def test_tokenizer_model_equals_sentencepiece(
    sentencepiece_pair: tuple[Tokenizer, sentencepiece.SentencePieceProcessor], text: str
) -> None:
    ours, reference = sentencepiece_pair
    assert ours.encode(text) == reference.encode(text)


def test_runs_of_one_character_equal_sentencepiece(
    sentencepiece_pair: tuple[Tokenizer, sentencepiece.SentencePieceProcessor],
) -> None:
    ours, reference = sentencepiece_pair
    for character in " =-*#.a\n":
        for length in range(1, 70):
            text = f"x{character * length}y"
            assert ours.encode(text) == reference.encode(text), (character, length)


@needs_llama
@settings(max_examples=300, deadline=None)
@given(text=TEXTS)
def test_llama_json_equals_sentencepiece(
    llama: Tokenizer, llama_model: sentencepiece.SentencePieceProcessor, text: str
) -> None:
    # The Metaspace of a tokenizer.json leaves a leading space alone where sentencepiece adds another, and
    # this file, unlike sentencepiece, merges spaces with each other before it merges them with a word.
    text = re.sub("[ ▁]+", " ", text).lstrip()
    assert llama.encode(text) == llama_model.encode(text)


@pytest.fixture(scope="module")
def llama() -> Tokenizer:
    return Tokenizer.load(LLAMA)


@pytest.fixture(scope="module")
def llama_model() -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(LLAMA / "tokenizer.model"))


@needs_llama
def test_llama_facts(llama: Tokenizer) -> None:
    assert (llama.bos_id, llama.eos_id, llama.pad_id, llama.vocab_size) == (1, 2, 0, 32000)
    assert llama.legacy is False
    assert llama.encode("Hello this is a test") == [15043, 445, 338, 263, 1243]
    assert llama.encode("\n") == [29871, 13]
    assert llama.encode("\n", prefix=False) == [13]
    assert llama.encode("USER:") == [3148, 1001, 29901]
    assert llama.encode("USER:", prefix=False) == [11889, 29901]


@settings(max_examples=200, deadline=None)
@given(text=TEXTS)
def test_encode_equals_transformers(tiny_pair: tuple[Tokenizer, object], text: str) -> None:
    ours, reference = tiny_pair
    # transformers reads special tokens out of text, and its own Metaspace keeps a leading space single.
    text = re.sub("</?s>|<unk>|<image>|<pad>", "", text.replace("▁", " ")).lstrip(" ")
    assert ours.encode(text) == reference.encode(text, add_special_tokens=False)


@pytest.fixture(scope="module")
def tiny_pair(tiny_dir: Path) -> tuple[Tokenizer, object]:
    return Tokenizer.load(tiny_dir), transformers.AutoTokenizer.from_pretrained(tiny_dir)


@settings(max_examples=200, deadline=None)
@given(text=TEXTS.map(lambda text: text.replace("▁", "_")))
def test_text_survives_and_holds_no_special_token(tiny_pair: tuple[Tokenizer, object], text: str) -> None:
    tokenizer = tiny_pair[0]
    special = {0, 1, 2, tokenizer.token_to_id("<image>"), tokenizer.token_to_id("<pad>")}
    # As an answer stands after "ASSISTANT:": a space, then the text, without a prefix.
    continued = tokenizer.encode(f" {text}", prefix=False)
    assert not special & set(continued)
    assert tokenizer.decode(continued) == text
    fresh = tokenizer.encode(text.lstrip(" "))
    assert not special & set(fresh)
    assert tokenizer.decode([tokenizer.bos_id, *fresh, tokenizer.eos_id, -100, 10**6]) == text.lstrip(" ")


def test_prefix(tiny_pair: tuple[Tokenizer, object]) -> None:
    tokenizer = tiny_pair[0]
    assert tokenizer.encode("image") == tokenizer.encode(" image", prefix=False)
    assert tokenizer.encode("image") != tokenizer.encode("image", prefix=False)
    assert tokenizer.encode("") == tokenizer.encode("", prefix=False) == []


def test_merges_that_spell_a_special_token_are_not_followed(tiny_dir: Path, tmp_path: Path) -> None:
    content = json.loads((tiny_dir / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary, merges = content["model"]["vocab"], content["model"]["merges"]
    # Written as before tokenizers 0.20, which is how such files are found.
    new = ["<", "/", "</", "s>", ">"]
    renamed = dict(zip((f"<0x{byte:02X}>" for byte in range(len(new))), new, strict=True))
    content["model"]["vocab"] = {renamed.get(piece, piece): index for piece, index in vocabulary.items()}
    content["model"]["merges"] = ["< /", "s >", "</ s>", *(" ".join(pair) for pair in merges)]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    tokenizer = Tokenizer.load(tmp_path)
    ids = tokenizer.encode("a</s>b", prefix=False)
    assert tokenizer.eos_id not in ids
    assert tokenizer.token_to_id("</") in ids
    assert tokenizer.decode(tokenizer.encode("a</s>b")) == "a</s>b"


def test_padding_and_truncation_of_the_file_are_not_obeyed(tiny_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((tiny_dir / "tokenizer.json").read_bytes())
    padding = {"strategy": {"Fixed": 64}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0}
    truncation = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    edit(
        tmp_path,
        "tokenizer.json",
        padding=padding | {"pad_type_id": 0, "pad_token": "<unk>"},
        truncation=truncation,
    )
    assert Tokenizer.load(tmp_path).encode(SENTENCES[0]) == Tokenizer.load(tiny_dir).encode(SENTENCES[0])


@pytest.mark.parametrize(
    ("pre_tokenizer", "has_prefix", "is_legacy"),
    [
        ({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": False}, True, True),
        ({"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}, True, True),
        ({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}, True, False),
        ({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": False}, False, False),
    ],
)
def test_other_spellings_of_the_prefix(
    tmp_path: Path, pre_tokenizer: dict[str, object], has_prefix: bool, is_legacy: bool
) -> None:
    bare = Tokenizer.load(build_tokenizer_dir(tmp_path)).encode("image", prefix=False)
    for wrapped in (pre_tokenizer, {"type": "Sequence", "pretokenizers": [pre_tokenizer]}):
        edit(tmp_path, "tokenizer.json", normalizer=None, pre_tokenizer=wrapped)
        tokenizer = Tokenizer.load(tmp_path)
        assert tokenizer.legacy == is_legacy
        assert (tokenizer.encode("image") != tokenizer.encode("image", prefix=False)) == has_prefix
        assert tokenizer.encode("image", prefix=False) == bare


def test_legacy_is_what_transformers_does(tiny_pair: tuple[Tokenizer, object]) -> None:
    ours, reference = tiny_pair
    after = reference.encode("A cat</s>USER", add_special_tokens=False)
    rest = after[after.index(ours.eos_id) + 1 :]
    assert rest == ours.encode("USER", prefix=ours.legacy)
    assert rest != ours.encode("USER", prefix=not ours.legacy)


def test_survives_pickling(tiny_dir: Path) -> None:
    tokenizer = Tokenizer.load(tiny_dir)
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode(SENTENCES[1]) == tokenizer.encode(SENTENCES[1])


# ---- added tokens

BOX_FLAGS = [
    {"normalized": True},
    {"normalized": False},
    {"lstrip": True},
    {"rstrip": True, "normalized": True},
    {"single_word": True},
    {"lstrip": True, "rstrip": True, "special": True},
]
BOX_TEXTS = st.lists(
    st.sampled_from(["<box>", " <box>", "<box> ", "<box2>", " ", "  ", "a cat", "USER: ", "\n", ".", "red", "é"]),
    max_size=9,
).map("".join)


@pytest.fixture(scope="module", params=itertools.product([True, False], range(len(BOX_FLAGS))), ids=str)
def boxes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, object]:
    """A tokenizer to which somebody added "<box>" and "<box2>", and the one of transformers."""
    legacy, number = request.param
    folder = build_tokenizer_dir(tmp_path_factory.mktemp("boxes"), legacy=legacy)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    added = {
        "511": {"content": "<box>", **flags, **BOX_FLAGS[number]},
        "512": {"content": "<box2>", **flags},
    }
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    entries = [{"id": int(token_id), **entry} for token_id, entry in added.items()]
    edit(folder, "tokenizer.json", added_tokens=content["added_tokens"] + entries)
    return Tokenizer.load(folder, whole_prompt=True), transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json")
    )


@settings(max_examples=120, deadline=None)
@given(first=BOX_TEXTS.map(lambda text: f"x{text}"), second=BOX_TEXTS)
def test_added_tokens_are_read_as_transformers_reads_them(
    boxes: tuple[Tokenizer, object], first: str, second: str
) -> None:
    """In text that starts a prompt, and in text that continues after another token."""
    ours, reference = boxes
    assert ours.encode(first) == reference.encode(first, add_special_tokens=False)
    text = f"{first}y<image>z{second}"
    rest = ours.encode(f"z{second}", prefix=ours.restarts_after_image)
    expected = [*ours.encode(f"{first}y"), ours.token_to_id("<image>"), *rest]
    assert reference.encode(text, add_special_tokens=False) == expected


def test_text_that_continues_other_text_holds_its_added_tokens(tmp_path: Path) -> None:
    """An answer continues from "ASSISTANT:"; a token that was matched with the "▁" before it still is."""
    folder = build_tokenizer_dir(tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    edit(folder, "tokenizer.json", added_tokens=[*content["added_tokens"], {"id": 511, "content": "<box>", **flags}])
    tokenizer = Tokenizer.load(folder)
    reference = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    for answer in (" <box>", " a <box> b", " <box> <box>", " a<box>"):
        whole = reference.encode(f"ASSISTANT:{answer}", add_special_tokens=False)
        assert tokenizer.encode("ASSISTANT:") + tokenizer.encode(answer, prefix=False) == whole
    assert tokenizer.decode(tokenizer.encode("a <box>")) in ("a <box>", "a<box>")


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("declared", ["added_tokens.json", "tokenizer_config.json"])
def test_added_tokens_of_a_tokenizer_model(tmp_path: Path, legacy: bool, declared: str) -> None:
    """As the original code's slow tokenizer: cut at added tokens, "▁" after them only if legacy."""
    reference = train_sentencepiece(tmp_path / "tokenizer.model")
    edit(tmp_path, "tokenizer_config.json", legacy=legacy)
    if declared == "added_tokens.json":
        edit(tmp_path, declared, **{"<box>": 420})
    else:
        edit(tmp_path, declared, added_tokens_decoder={"420": {"content": "<box>", "special": False}})
    tokenizer = Tokenizer.load(tmp_path, model_first=True)
    sentinel = len(reference.encode("<unk>"))

    def continued(text: str) -> list[int]:
        return reference.encode(text) if legacy else reference.encode(f"<unk>{text}")[sentinel:]

    for before, after in (("A cat ", " is red"), ("\n", "x"), ("A", "  two"), (" A cat", "")):
        assert tokenizer.encode(f"{before}<box>{after}") == [
            *reference.encode(before), 420, *(continued(after) if after else [])
        ]  # fmt: skip
    assert tokenizer.encode("<box>x") == [*start(reference, legacy), 420, *continued("x")]


def start(reference: sentencepiece.SentencePieceProcessor, legacy: bool) -> list[int]:
    """What stands before an added token at the very start: the dummy "▁" where text gets one however it starts."""
    return [] if legacy else [reference.piece_to_id("▁")]


def test_a_prompt_without_a_beginning_token(tmp_path: Path) -> None:
    edit(build_tokenizer_dir(tmp_path), "tokenizer_config.json", add_bos_token=False)
    assert not Tokenizer.load(tmp_path).adds_bos


def test_a_tokenizer_model_goes_first_for_the_original_code(tmp_path: Path) -> None:
    reference = train_sentencepiece(tmp_path / "tokenizer.model")
    content = json.loads(Tokenizer.load(tmp_path).to_json())
    content["model"]["merges"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    text = "A man is riding a wave."
    assert Tokenizer.load(tmp_path, model_first=True).encode(text) == reference.encode(text)
    assert Tokenizer.load(tmp_path).encode(text) != reference.encode(text)


# ---- special tokens


def test_special_ids(tiny_dir: Path) -> None:
    tokenizer = Tokenizer.load(tiny_dir)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    assert tokenizer.pad_id == tokenizer.token_to_id("<pad>") == tokenizer.vocab_size - 1
    assert tokenizer.token_to_id("<image>") == tokenizer.vocab_size - 2
    assert tokenizer.token_to_id("no such token") is None


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, (1, 2, 0)),
        ({"tokenizer_config.json": {"pad_token": {"content": "</s>"}, "bos_token": "</s>"}}, (2, 2, 2)),
        ({"special_tokens_map.json": {"pad_token": "<pad>", "eos_token": {"content": "<s>"}}}, (1, 1, 510)),
        ({"generation_config.json": {"pad_token_id": 7, "eos_token_id": [5, 6]}}, (1, 5, 7)),
        ({"config.json": {"bos_token_id": 9, "pad_token_id": -1, "eos_token_id": None}}, (9, 2, 0)),
        ({"config.json": {"text_config": {"pad_token_id": 8}}}, (1, 2, 8)),
        ({"config.json": {"pad_token_id": 8}, "generation_config.json": {"pad_token_id": 7}}, (1, 2, 7)),
        ({"tokenizer_config.json": {"pad_token": "absent"}, "config.json": {"pad_token_id": 8}}, (1, 2, 8)),
    ],
)
def test_where_special_ids_come_from(
    tmp_path: Path, files: dict[str, dict[str, object]], expected: tuple[int, int, int]
) -> None:
    build_tokenizer_dir(tmp_path)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / name).unlink()
    for name, content in files.items():
        edit(tmp_path, name, **content)
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.vocab_size == 511
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == expected


def test_padding_falls_back_to_eos_without_unknown_token(tmp_path: Path) -> None:
    build_tokenizer_dir(tmp_path)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / name).unlink()
    text = (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text(text.replace("<unk>", "<reserved>"), encoding="utf-8")
    assert Tokenizer.load(tmp_path).pad_id == 2


@pytest.mark.parametrize("legacy", [None, True, False])
def test_legacy_and_added_tokens_next_to_a_tokenizer_model(tmp_path: Path, legacy: bool | None) -> None:
    train_sentencepiece(tmp_path / "tokenizer.model")
    (tmp_path / "added_tokens.json").write_text('{"<im_patch>": 420}')
    changes = {} if legacy is None else {"legacy": legacy}
    edit(tmp_path, "tokenizer_config.json", added_tokens_decoder={"421": {"content": "<image>"}}, **changes)
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.legacy == (legacy is not False)
    assert (tokenizer.token_to_id("<im_patch>"), tokenizer.token_to_id("<image>")) == (420, 421)
    assert tokenizer.vocab_size == 422


@pytest.mark.parametrize("legacy", [True, False])
def test_json_of_a_tokenizer_model_serves_transformers(tmp_path: Path, legacy: bool) -> None:
    train_sentencepiece(tmp_path / "tokenizer.model")
    edit(tmp_path, "tokenizer_config.json", legacy=legacy)
    tokenizer = Tokenizer.load(tmp_path)
    exported = tmp_path / "tokenizer.json"
    exported.write_text(tokenizer.to_json({"<pad>": 421, "<image>": 420}), encoding="utf-8")
    reference = transformers.PreTrainedTokenizerFast(tokenizer_file=str(exported))
    assert reference.convert_tokens_to_ids(["<image>", "<pad>"]) == [420, 421]
    continued = tokenizer.encode("USER: yes", prefix=legacy)
    assert reference.encode("A cat.</s>USER: yes") == [1, *tokenizer.encode("A cat."), 2, *continued]
    again = Tokenizer.load(tmp_path)
    assert again.vocab_size == 422
    assert again.legacy == legacy
    assert again.encode("A  cat\n") == tokenizer.encode("A  cat\n")


@pytest.mark.parametrize("added", [{"<image>": 512}, {"<image>": 511, "<more>": 513}, {"</s>": 511}])
def test_json_refuses_ids_that_do_not_follow_on(tmp_path: Path, added: dict[str, int]) -> None:
    content = json.loads((build_tokenizer_dir(tmp_path) / "tokenizer.json").read_text(encoding="utf-8"))
    assert len(content["model"]["vocab"]) == 509
    tokenizer = Tokenizer.load(tmp_path)
    with pytest.raises(InputError, match="id 51"):
        tokenizer.to_json(added)


# ---- what can be wrong


def test_no_tokenizer(tmp_path: Path) -> None:
    assert "no tokenizer.json and no tokenizer.model" in load_error(tmp_path)
    assert "no tokenizer.json" in load_error(tmp_path / "absent")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", '{"model": ', "cannot be read as JSON"),
        ("tokenizer.json", b"\xff\xfe\x00", "cannot be read as JSON"),
        ("tokenizer.json", "[1]", "expected a JSON object, got a list"),
        ("tokenizer.json", '{"version": "1.0"}', "expected a BPE model"),
        ("tokenizer.json", '{"model": {"type": "WordPiece", "vocab": {}}}', "expected a BPE model"),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}}', "not a usable"),
        ("tokenizer_config.json", "{", "cannot be read as JSON"),
        ("special_tokens_map.json", "nonsense", "cannot be read as JSON"),
        ("config.json", "", "is empty, expected a JSON object"),
        ("generation_config.json", '"text"', "expected a JSON object, got 'text'"),
    ],
)
def test_corrupt_files(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    build_tokenizer_dir(tmp_path)
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    error = load_error(tmp_path)
    assert message in error
    assert name in error


SETTINGS = (
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("generation_config.json", "config.json"),
)
WRONG = [
    *(None, True, 0, -1, 2**70, 8.5, float("nan"), "8", "", "a\nb", "\ud800", "x" * 500, "<s>"),
    *([], [8], [None], [["a"]], {}, {"a": 8}, {"content": None}, {"content": []}, {"content": "x"}),
]


def places(value: Any, before: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Where the values of a JSON file are; of long lists and objects the first ones."""
    keys = list(value)[:12] if isinstance(value, dict) else range(len(value))[:2] if isinstance(value, list) else ()
    return [before, *(place for key in keys for place in places(value[key], (*before, key)))]


def changed_at(value: Any, place: tuple[str | int, ...], change: object) -> Any:
    if not place:
        return change
    value = json.loads(json.dumps(value))
    inner = functools.reduce(operator.getitem, place[:-1], value)
    inner[place[-1]] = change
    return value


@pytest.mark.slow
@pytest.mark.main
@pytest.mark.parametrize("name", [*SETTINGS, "tokenizer.json"])
def test_a_wrong_value_anywhere_is_one_line_or_harmless(tmp_path: Path, name: str) -> None:
    build_tokenizer_dir(tmp_path)
    (tmp_path / "added_tokens.json").write_text('{"<image>": 509, "<pad>": 510}')
    (tmp_path / "generation_config.json").write_text('{"bos_token_id": 1, "eos_token_id": [2], "pad_token_id": -1}')
    (tmp_path / "config.json").write_text(
        '{"image_token_id": 509, "image_token_index": 509, "eos_token_id": 2, "text_config": {"pad_token_id": 510}}'
    )
    more = {"additional_special_tokens": ["<pad>"], "extra_special_tokens": {"image_token": "<image>"}}
    if name in SETTINGS[:2]:
        edit(tmp_path, name, **more)
    valid = json.loads((tmp_path / name).read_text(encoding="utf-8"))
    messages = []
    for place, wrong in itertools.product(places(valid), WRONG):
        (tmp_path / name).write_text(json.dumps(changed_at(valid, place, wrong)))
        for whole_prompt in (False, True):
            try:
                tokenizer = Tokenizer.load(tmp_path, whole_prompt=whole_prompt)
                assert tokenizer.decode(tokenizer.encode("a dog")) == "a dog" or name == "tokenizer.json"
                tokenizer.check_rows(1 << 12)
            except InputError as error:
                messages.append(str(error))
    assert len(messages) > 10
    assert not [message for message in messages if "\n" in message or len(message) > 500 + len(str(tmp_path))]


@pytest.mark.parametrize("name", [*SETTINGS, "tokenizer.json", "tokenizer.model"])
def test_what_is_no_file_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    build_tokenizer_dir(tmp_path / "whole")
    for kind, make in (("a named pipe", os.mkfifo), ("a directory", Path.mkdir)):
        folder = tmp_path / kind
        shutil.copytree(tmp_path / "whole", folder)
        if name == "tokenizer.model":
            (folder / "tokenizer.json").unlink()
        (folder / name).unlink(missing_ok=True)
        make(folder / name)
        error = load_error(folder)
        assert f"{name} cannot be read: it is {kind}" in error


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("content", ["[" * 200_000, '{"a": 1, "a": 2}', "\ufeff{"])
def test_settings_that_are_no_plain_json(tmp_path: Path, name: str, content: str) -> None:
    (build_tokenizer_dir(tmp_path) / name).write_text(content, encoding="utf-8")
    assert name in load_error(tmp_path)


def test_what_others_write_into_tokenizer_config_is_read(tmp_path: Path) -> None:
    plain = Tokenizer.load(build_tokenizer_dir(tmp_path))
    edit(
        tmp_path,
        "tokenizer_config.json",
        split_special_tokens=False,  # LLaMA-Factory's
        additional_special_tokens=None,
        extra_special_tokens={},
        sp_model_kwargs={},
        legacy=None,
        add_bos_token=None,
    )
    assert Tokenizer.load(tmp_path).digest() == plain.digest()


def test_the_image_token_id_goes_before_the_image_token_index(tmp_path: Path) -> None:
    edit(build_tokenizer_dir(tmp_path), "tokenizer.json", added_tokens=[])
    entry = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    decoder = {str(i): {"content": token, **entry} for i, token in enumerate(("<unk>", "<s>", "</s>"))}
    decoder |= {"509": {"content": "<image>", **entry, "lstrip": True}, "510": {"content": "<pic>", **entry}}
    edit(tmp_path, "tokenizer_config.json", added_tokens_decoder=decoder)
    (tmp_path / "config.json").write_text('{"image_token_index": 509, "image_token_id": 510}')
    assert Tokenizer.load(tmp_path, whole_prompt=True).image_strips == (False, False)
    (tmp_path / "config.json").write_text('{"image_token_index": 509}')
    assert Tokenizer.load(tmp_path, whole_prompt=True).image_strips == (True, False)


@pytest.mark.parametrize("legacy", [None, True])
def test_no_word_about_legacy_means_legacy(tmp_path: Path, legacy: bool | None) -> None:
    train_sentencepiece(tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"legacy": legacy}))
    assert Tokenizer.load(tmp_path).legacy


def test_no_beginning_of_sequence(tmp_path: Path) -> None:
    build_tokenizer_dir(tmp_path)
    for path in tmp_path.iterdir():
        path.write_text(path.read_text(encoding="utf-8").replace("<s>", "<start>"), encoding="utf-8")
    edit(tmp_path, "tokenizer_config.json", bos_token=None)
    edit(tmp_path, "special_tokens_map.json", bos_token=None)
    assert "no bos token" in load_error(tmp_path)


def test_added_tokens_with_a_gap(tmp_path: Path) -> None:
    build_tokenizer_dir(tmp_path)
    entry = {"content": "<late>", "special": True}
    edit(tmp_path, "tokenizer_config.json", added_tokens_decoder={"600": entry})
    assert "'<late>' is declared with id 600" in load_error(tmp_path)


def test_added_token_with_two_ids(tmp_path: Path) -> None:
    build_tokenizer_dir(tmp_path)
    edit(tmp_path, "added_tokens.json", **{"<image>": 700})
    edit(tmp_path, "tokenizer_config.json", added_tokens_decoder={})
    assert "'<image>' cannot get id 700" in load_error(tmp_path)


def test_lone_surrogate(tiny_dir: Path) -> None:
    with pytest.raises(InputError, match="lone surrogate"):
        Tokenizer.load(tiny_dir).encode("half an emoji: \ud83d")


def test_tokenizer_model_without_sentencepiece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    assert "pip install vigor-jax[sentencepiece]" in load_error(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x99 not a model", b"version https://git-lfs.github.com/spec/v1\n"])
def test_corrupt_tokenizer_model(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    assert "download or copy the file again" in load_error(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"model_type": "unigram", "vocab_size": 330},
        {"byte_fallback": False, "vocab_size": 200},
        {"normalization_rule_name": "nmt_nfkc"},
        {"remove_extra_whitespaces": True},
        {"add_dummy_prefix": False},
        {"user_defined_symbols": ["<image>"]},
    ],
)
def test_tokenizer_model_of_another_kind(tmp_path: Path, options: dict[str, object]) -> None:
    train_sentencepiece(tmp_path / "tokenizer.model", **options)
    assert "bring a tokenizer.json instead" in load_error(tmp_path)


@settings(max_examples=200, deadline=None)
@given(text=TEXTS | st.text(max_size=40))
def test_no_text_has_more_tokens_than_it_is_said_to(
    sentencepiece_pair: tuple[Tokenizer, sentencepiece.SentencePieceProcessor], text: str
) -> None:
    most = sentencepiece_pair[0].most_tokens(text)
    assert most is not None
    for prefix in (True, False):
        assert len(sentencepiece_pair[0].encode(text, prefix=prefix)) <= most


@pytest.mark.parametrize("part", [{"type": "NFKC"}, {"type": "Replace", "pattern": {"String": "a"}, "content": "aaa"}])
def test_a_tokenizer_that_lengthens_text_promises_nothing(tmp_path, part):
    path = build_tokenizer_dir(tmp_path) / "tokenizer.json"
    content = json.loads(path.read_text())
    content["normalizer"]["normalizers"].append(part)
    path.write_text(json.dumps(content))
    assert Tokenizer.load(tmp_path).most_tokens("a") is None


def test_the_digest_is_of_what_decides_on_tokens(tmp_path):
    """Layout, order and dates of files play no part; merges, special tokens and normalizers do."""
    folder = build_tokenizer_dir(tmp_path / "a")
    digest = Tokenizer.load(folder).digest()
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(content.items()))))
    before = json.loads((folder / "tokenizer_config.json").read_text())
    edit(folder, "tokenizer_config.json", chat_template="x", padding_side="right")
    assert Tokenizer.load(folder).digest() == digest

    found = {digest}
    for change in (
        {"model": {**content["model"], "merges": content["model"]["merges"][:-1]}},
        {"normalizer": None},
    ):
        path.write_text(json.dumps({**content, **change}))
        found.add(Tokenizer.load(folder).digest())
    path.write_text(json.dumps(content))
    for change in ({"eos_token": "<unk>"}, {"pad_token": "<unk>"}):
        edit(folder, "tokenizer_config.json", **(before | change))
        found.add(Tokenizer.load(folder).digest())
    assert len(found) == 5
