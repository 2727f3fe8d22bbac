"""Ids and labels against whole-string tokenization by others, as the original LLaVA does it."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import transformers
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.tiny_tokenizer import build_tokenizer_dir
from vigor_jax.data.text.conversation import (
    IGNORE_INDEX,
    TEMPLATES,
    EncodedExample,
    Template,
    Turn,
    encode_example,
    encode_prompt,
    encode_responses,
)
from vigor_jax.data.text.tokenizer import Tokenizer
from vigor_jax.errors import InputError

LLAMA = Path(__file__).resolve().parents[3] / ".." / "shared" / "data" / "tokenizers" / "llama"
IMAGE_ID = 99_999
NUM_IMAGE_TOKENS = 5

USER_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
HUMAN_SYSTEM = USER_SYSTEM.replace("user", "human")

# Human turns written as training data has them once the image is in front.
CONVERSATIONS = {
    "one round": ["<image>\nDescribe the image in detail.", "The image shows a red circle. It is big."],
    "several rounds": [
        "<image>\nWhat is on the table?",
        'Two plates, a fork ("silver") and a glass.',
        "Is there a bicycle?",
        "No.",
        "Why not?\nThink again: 1 + 1?",
        "2, and there is a bicycle after all!",
    ],
    "numbers": [
        "<image>\nAssess the accuracy; return a single number.",
        "1",
        "And now?",
        "0 attribute error",
    ],
    "unicode": ["<image>\nQué ves? 日本 😀", "Un café 👩\u200d🚀 \t tab", "ещё?", "\nA list:\n- 写真\n- ñ\n"],
    "text alone": ["Is there a person?", "Yes, in the middle.", "Where?", "There."],
    "image in the second round": ["Hello!", "Hello.", "<image>\nAnd now?", "A dog sits on the grass."],
    "two images": ["<image>\nFirst.", "A cat.", "<image>\nSecond.", "A dog."],
    "image alone": ["<image>", 'A cat and "a dog"'],
}


@dataclass(frozen=True)
class Vocabulary:
    """Our tokenizer and an independent one for the same vocabulary.

    Attributes:
        ours: The tokenizer under test.
        tokens: Each id of a chunk in which "</s>" is the special token, BOS left out, with the [start, end)
            characters that it stands for.
    """

    ours: Tokenizer
    tokens: Callable[[str], list[tuple[int, tuple[int, int]]]]


@pytest.fixture(scope="module", params=["tiny legacy", "tiny", "llama legacy", "llama"])
def vocabulary(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    folder, is_legacy = tmp_path_factory.mktemp("tokenizer"), request.param.endswith("legacy")
    if request.param.startswith("tiny"):
        build_tokenizer_dir(folder, legacy=is_legacy)
    elif LLAMA.is_dir():
        # A tokenizer.model without settings is a legacy tokenizer.
        name = "tokenizer.model" if is_legacy else "tokenizer.json"
        (folder / name).write_bytes((LLAMA / name).read_bytes())
    else:
        pytest.skip("needs the LLaMA tokenizer")
    ours = Tokenizer.load(folder)
    assert ours.legacy == is_legacy
    if request.param == "llama legacy":
        model = sentencepiece.SentencePieceProcessor(model_file=str(LLAMA / "tokenizer.model"))
        return Vocabulary(ours, lambda chunk: slow_tokens(model, chunk))
    reference = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))

    def fast_tokens(chunk: str) -> list[tuple[int, tuple[int, int]]]:
        encoded = reference(chunk, add_special_tokens=False, return_offsets_mapping=True)
        return list(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True))

    return Vocabulary(ours, fast_tokens)


def slow_tokens(model: sentencepiece.SentencePieceProcessor, chunk: str) -> list[tuple[int, tuple[int, int]]]:
    """As the legacy tokenizer of transformers: each stretch between "</s>" is a separate text."""
    tokens, offset = [], 0
    for index, part in enumerate(chunk.split("</s>")):
        if index:
            tokens.append((2, (offset, offset + 4)))
            offset += 4
        # The character of each byte, the dummy prefix counting as the first; a byte piece is one byte,
        # another as many as it spells.
        owner = [0] * len("▁".encode())
        owner += [n for n, character in enumerate(part.replace(" ", "▁")) for _ in character.encode()]
        start = 0
        for token_id in model.encode(part):
            piece = model.id_to_piece(token_id)
            stop = start + (1 if model.is_byte(token_id) else len(piece.encode()))
            tokens.append((token_id, (offset + owner[start], offset + owner[stop - 1] + 1)))
            start = stop
        assert start in (0, len(owner))
        offset += len(part)
    return tokens


def turns_of(texts: Sequence[str]) -> list[Turn]:
    return [Turn(role, text) for role, text in zip(itertools.cycle(["human", "gpt"]), texts)]


def example_of(
    tokenizer: Tokenizer, template: Template, turns: Sequence[Turn], max_length: int = 10_000
) -> EncodedExample:
    return encode_example(
        tokenizer,
        template,
        turns,
        image_token_id=IMAGE_ID,
        num_image_tokens=NUM_IMAGE_TOKENS,
        max_length=max_length,
    )


def prompt_of(tokenizer: Tokenizer, template: Template, question: str, with_image: bool = True) -> list[int]:
    return encode_prompt(
        tokenizer,
        template,
        question,
        image_token_id=IMAGE_ID,
        num_image_tokens=NUM_IMAGE_TOKENS,
        with_image=with_image,
    )


def written_out(name: str, texts: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """The conversation as one string, and where in it the supervised characters are."""
    if name == "plain":
        return f"<image>{texts[1]}\n", [(len("<image>"), len("<image>") + len(texts[1]) + 1)]
    if name == "v0":
        string, names, ends = HUMAN_SYSTEM + "###", ("Human: ", "Assistant:"), ("###", "###")
    else:
        string = (HUMAN_SYSTEM if name == "llava_v1" else USER_SYSTEM) + " "
        names, ends = ("USER: ", "ASSISTANT:"), (" ", "</s>")
    supervised = []
    for index, text in enumerate(texts):
        string += names[index % 2]
        start = len(string)
        string += (" " if index % 2 else "") + text + ends[index % 2]
        if index % 2:
            supervised.append((start, len(string)))
    return string, supervised


def by_offsets(
    vocabulary: Vocabulary, string: str, supervised: Sequence[tuple[int, int]]
) -> tuple[list[int], list[int]]:
    """The original's rule: split at images, tokenize chunks whole, one BOS; labels by character offsets."""
    ids, labels, offset = [1], [IGNORE_INDEX], 0
    for index, chunk in enumerate(string.split("<image>")):
        if index:
            ids += [IMAGE_ID] * NUM_IMAGE_TOKENS
            labels += [IGNORE_INDEX] * NUM_IMAGE_TOKENS
            offset += len("<image>")
        for token_id, (start, end) in vocabulary.tokens(chunk):
            inside = any(low < offset + end and offset + start < high for low, high in supervised)
            ids.append(token_id)
            labels.append(token_id if inside else IGNORE_INDEX)
        offset += len(chunk)
    return ids, labels


@pytest.mark.parametrize(
    ("name", "texts"),
    [(name, texts) for name in ("v0", "v1", "llava_v1") for texts in CONVERSATIONS.values()]
    # Captions of an image, one round each.
    + [("plain", texts[:2]) for texts in CONVERSATIONS.values() if "<image>" in texts[0]],
)
def test_equals_whole_string_tokenization(vocabulary: Vocabulary, name: str, texts: list[str]) -> None:
    ids, labels = by_offsets(vocabulary, *written_out(name, texts))
    ours = example_of(vocabulary.ours, TEMPLATES[name], turns_of(texts))
    assert ours.token_ids.tolist() == ids
    assert ours.labels.tolist() == labels
    assert ours.token_ids.dtype == ours.labels.dtype == np.int32


# ---- the original's own arithmetic, with sentencepiece alone


def slow_ids(model: sentencepiece.SentencePieceProcessor, legacy: bool, text: str) -> list[int]:
    """What the tokenizer of LLaVA's days gives: BOS, then each stretch between "</s>" by sentencepiece."""
    ids = [1]
    for index, part in enumerate(text.split("</s>")):
        ids += [2] if index else []
        if index == 0 or legacy:
            ids += model.encode(part)
        elif part:
            # A sentinel takes the dummy prefix upon itself.
            sentinel = model.encode("<unk>")
            ids += model.encode(f"<unk>{part}")[len(sentinel) :]
    return ids


def slow_image_ids(model: sentencepiece.SentencePieceProcessor, legacy: bool, text: str) -> list[int]:
    first, *rest = (slow_ids(model, legacy, chunk) for chunk in text.split("<image>"))
    return first + [token for chunk in rest for token in [IMAGE_ID, *chunk[1:]]]


@pytest.mark.skipif(not LLAMA.is_dir(), reason="needs the LLaMA tokenizer")
@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("name", ["several rounds", "numbers", "unicode", "one round", "text alone"])
def test_labels_equal_the_lengths_that_llava_adds_up(tmp_path: Path, legacy: bool, name: str) -> None:
    model = sentencepiece.SentencePieceProcessor(model_file=str(LLAMA / "tokenizer.model"))
    string, _ = written_out("v1", CONVERSATIONS[name])
    ids = slow_image_ids(model, legacy, string)
    labels = list(ids)
    # Its mask: the length of each round tokenized again, BOS standing in for the "</s>" that the split
    # removed; the prompt's part is two shorter, for that BOS and the space after the colon.
    position = 1
    labels[:1] = [IGNORE_INDEX]
    for index, round_text in enumerate(string.split("</s>")[:-1]):
        question = round_text.split(" ASSISTANT: ")[0] + " ASSISTANT: "
        shorter = 1 if index and not legacy else 0
        masked = len(slow_image_ids(model, legacy, question)) - 2 - shorter
        labels[position : position + masked] = [IGNORE_INDEX] * masked
        position += len(slow_image_ids(model, legacy, round_text)) - shorter
    assert position == len(ids), "the original would ignore this whole example"

    file = "tokenizer.model" if legacy else "tokenizer.json"
    (tmp_path / file).write_bytes((LLAMA / file).read_bytes())
    ours = encode_example(
        Tokenizer.load(tmp_path),
        TEMPLATES["v1"],
        turns_of(CONVERSATIONS[name]),
        image_token_id=IMAGE_ID,
        num_image_tokens=1,
        max_length=10_000,
    )
    assert ours.token_ids.tolist() == ids
    assert ours.labels.tolist() == labels


@pytest.mark.skipif(not LLAMA.is_dir(), reason="needs the LLaMA tokenizer")
@pytest.mark.parametrize("file", ["tokenizer.model", "tokenizer.json"])
def test_published_ids_around_an_image(tmp_path: Path, file: str) -> None:
    (tmp_path / file).write_bytes((LLAMA / file).read_bytes())
    ids = prompt_of(Tokenizer.load(tmp_path), TEMPLATES["v1"], "What is this?")
    place = ids.index(IMAGE_ID)
    assert ids[place - 4 : place] == [3148, 1001, 29901, 29871]
    assert ids[place : place + NUM_IMAGE_TOKENS] == [IMAGE_ID] * NUM_IMAGE_TOKENS
    assert ids[place + NUM_IMAGE_TOKENS :][:3] == [29871, 13, 5618]
    assert ids[-5:] == [319, 1799, 9047, 13566, 29901]


# ---- prompts for generation


def test_templates() -> None:
    assert TEMPLATES["v0"] is TEMPLATES["llava_v0"]
    assert TEMPLATES["v1"] is TEMPLATES["vicuna_v1"]
    stops = {name: template.stop for name, template in TEMPLATES.items()}
    v1 = dict.fromkeys(["v1", "vicuna_v1", "llava_v1"])
    assert stops == {"v0": "###", "llava_v0": "###", "plain": "\n", "instructblip": None, **v1}


@pytest.mark.parametrize("name", ["v0", "v1", "llava_v1"])
def test_prompt_is_the_string_up_to_the_colon(vocabulary: Vocabulary, name: str) -> None:
    string, supervised = written_out(name, ["<image>\nWhat is there?", "x"])
    ids, _ = by_offsets(vocabulary, string[: supervised[0][0]], [])
    for question in ("What is there?", "<image>\nWhat is there?", " What is there?\n<image>"):
        assert prompt_of(vocabulary.ours, TEMPLATES[name], question) == ids
    string, supervised = written_out(name, [" What is there?", "x"])
    ids, _ = by_offsets(vocabulary, string[: supervised[0][0]], [])
    assert prompt_of(vocabulary.ours, TEMPLATES[name], " What is there?", with_image=False) == ids


def test_plain_prompt_is_the_image(vocabulary: Vocabulary) -> None:
    expected = [1, *[IMAGE_ID] * NUM_IMAGE_TOKENS]
    assert prompt_of(vocabulary.ours, TEMPLATES["plain"], "These words are left out.") == expected


def test_several_images_of_one_question_stay_in_place(vocabulary: Vocabulary) -> None:
    question = "Compare <image> with <image>, please."
    string, supervised = written_out("v1", [question, "x"])
    first, second, third = string[: supervised[0][0]].split("<image>")
    images = [IMAGE_ID] * NUM_IMAGE_TOKENS
    encode = vocabulary.ours.encode
    expected = [1, *encode(first), *images, *encode(second), *images, *encode(third)]
    assert prompt_of(vocabulary.ours, TEMPLATES["v1"], question) == expected


# ---- properties

TEXTS = st.lists(
    st.sampled_from(["A cat", " ", "\n", ".", "#", "###", "</s>", "<s>", "12", "USER: ", " ASSISTANT:", "😀", "é", '"'])
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=6),
    min_size=1,
    max_size=6,
).map("".join)
ANSWERS = TEXTS.filter(str.strip)
ROUNDS = st.lists(st.tuples(TEXTS, st.sampled_from(["", "front", "back", "twice"]), ANSWERS), min_size=1, max_size=3)
PLACED = {"": "{}", "front": "<image>\n{}", "back": "{}\n<image>", "twice": "<image> {}<image>"}


@settings(max_examples=300, deadline=None)
@given(rounds=ROUNDS, name=st.sampled_from(["v0", "v1", "llava_v1", "plain"]), data=st.data())
def test_properties_of_any_conversation(
    vocabulary: Vocabulary, rounds: list[tuple[str, str, str]], name: str, data: st.DataObject
) -> None:
    tokenizer, template = vocabulary.ours, TEMPLATES[name]
    rounds = rounds[:1] if name == "plain" else rounds
    # str.replace, not format: the words may hold braces.
    questions = [PLACED[place].replace("{}", question) for question, place, _ in rounds]
    answers = [answer for _, _, answer in rounds]
    num_images = sum(question.count("<image>") for question in questions)
    assume(num_images or name != "plain")
    turns = turns_of([text for pair in zip(questions, answers, strict=True) for text in pair])
    full = example_of(tokenizer, template, turns)
    ids, labels = full.token_ids, full.labels
    supervised = labels != IGNORE_INDEX

    assert (labels[supervised] == ids[supervised]).all()
    assert not supervised[0]
    assert ids[0] == tokenizer.bos_id
    assert (ids == IMAGE_ID).sum() == num_images * NUM_IMAGE_TOKENS
    assert not supervised[ids == IMAGE_ID].any()
    num_ends = len(rounds) if template.stop is None else 0
    assert (ids == tokenizer.eos_id).sum() == num_ends

    # Each run of labels is one answer and what ends it.
    starts = np.flatnonzero(np.diff(supervised.astype(int), prepend=0) == 1)
    stops = np.flatnonzero(np.diff(supervised.astype(int), append=0) == -1) + 1
    runs = [tokenizer.decode(ids[start:stop]) for start, stop in zip(starts, stops, strict=True)]
    expected = [answer + (template.stop or "") for answer in answers]
    if name == "plain" and not tokenizer.legacy:
        # Metaspace gives text that begins with a space no further one, so decoding takes the real one away.
        runs, expected = [run.lstrip(" ") for run in runs], [text.lstrip(" ") for text in expected]
    assert runs == expected

    # What generation starts from is what training starts from.
    has_image = "<image>" in questions[0]
    prompt = prompt_of(tokenizer, template, questions[0], with_image=has_image)
    assert prompt == ids[: starts[0]].tolist()

    # Cutting loses text at the end, never an image, never the last thing to learn.
    max_length = data.draw(st.integers(1, len(ids) + 2))
    needed = max(starts[0] + 1, np.flatnonzero(ids == IMAGE_ID).max(initial=-1) + 1)
    if max_length < needed:
        with pytest.raises(InputError, match=f"max_length is {max_length}"):
            example_of(tokenizer, template, turns, max_length)
    else:
        cut = example_of(tokenizer, template, turns, max_length)
        assert cut.token_ids.tolist() == ids[:max_length].tolist()
        assert cut.labels.tolist() == labels[:max_length].tolist()


# ---- what can be wrong


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(build_tokenizer_dir(tmp_path_factory.mktemp("tiny")))


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "0 turns"),
        ([Turn("gpt", "Hi.")], "turn 0 is from 'gpt', expected 'human'"),
        ([Turn("human", "Hi."), Turn("human", "Hi.")], "turn 1 is from 'human', expected 'gpt'"),
        ([Turn("human", "a"), Turn("gpt", "b"), Turn("gpt", "c")], "turn 2 is from 'gpt', expected 'human'"),
        ([Turn("human", "a"), Turn("gpt", "b"), Turn("human", "c")], "3 turns"),
        ([Turn("human", "a"), Turn("gpt", " \n")], "turn 1 is an empty answer"),
    ],
)
def test_wrong_turns(tokenizer: Tokenizer, turns: list[Turn], message: str) -> None:
    for name in ("v0", "v1", "plain"):
        with pytest.raises(InputError, match=message):
            example_of(tokenizer, TEMPLATES[name], turns)


def test_plain_wants_one_round_and_an_image(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="got 4 turns"):
        example_of(tokenizer, TEMPLATES["plain"], turns_of(["<image>", "a", "b", "c"]))
    with pytest.raises(InputError, match="needs an image"):
        example_of(tokenizer, TEMPLATES["plain"], turns_of(["a", "b"]))
    with pytest.raises(InputError, match="needs an image"):
        prompt_of(tokenizer, TEMPLATES["plain"], "a", with_image=False)


def test_image_placed_without_an_image(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="comes without an image"):
        prompt_of(tokenizer, TEMPLATES["v1"], "<image>\nWhat?", with_image=False)


def test_messages_of_what_does_not_fit(tokenizer: Tokenizer) -> None:
    late_image = turns_of(["Hi.", "Hello.", "<image>\nWhat?", "A cat."])
    full = example_of(tokenizer, TEMPLATES["v1"], late_image)
    images_end = int(np.flatnonzero(full.token_ids == IMAGE_ID).max()) + 1
    with pytest.raises(InputError) as caught:
        example_of(tokenizer, TEMPLATES["v1"], late_image, images_end - 1)
    assert f"raise max_length to {images_end} or more" in str(caught.value)
    assert len(example_of(tokenizer, TEMPLATES["v1"], late_image, images_end).token_ids) == images_end

    long_question = turns_of(["<image>\n" + "What? " * 50, "A cat."])
    full = example_of(tokenizer, TEMPLATES["v1"], long_question)
    start = int(np.flatnonzero(full.labels != IGNORE_INDEX).min())
    with pytest.raises(InputError) as caught:
        example_of(tokenizer, TEMPLATES["v1"], long_question, start)
    assert f"raise max_length above {start}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (example_of(tokenizer, TEMPLATES["v1"], long_question, start + 1).labels != IGNORE_INDEX).sum() == 1


def test_the_placeholder_is_text_where_there_is_no_image(tokenizer):
    """As LLaVA tokenizes rows without an image."""
    turns = (Turn("human", "What does\n<image>\nmean?"), Turn("gpt", "Nothing."))
    settings = {"image_token_id": 9999, "num_image_tokens": 4, "max_length": 512}
    example = encode_example(tokenizer, TEMPLATES["v1"], turns, with_image=False, **settings)
    assert 9999 not in example.token_ids
    assert "USER: What does\n<image>\nmean? ASSISTANT: Nothing." in tokenizer.decode(example.token_ids)


@pytest.mark.parametrize("with_image", [True, False])
@pytest.mark.parametrize(("positions", "advised"), [(None, True), (512, True), (200, False)])
def test_advice_stays_within_the_models_positions(tokenizer, with_image, positions, advised):
    question = ("<image>\n" if with_image else "") + "What is on the table? " * 30
    settings = {"image_token_id": 9999, "num_image_tokens": 100, "max_length": 64, "max_positions": positions}
    turns = (Turn("human", question), Turn("gpt", "A cat."))
    with pytest.raises(InputError) as caught:
        encode_example(tokenizer, TEMPLATES["v1"], turns, with_image=with_image, **settings)
    assert ("raise max_length" in str(caught.value)) == advised
    assert ("200 positions, so shorten the question" in str(caught.value)) != advised


@pytest.mark.parametrize("template", ["v1", "v0", "llava_v1"])
@pytest.mark.parametrize("with_image", [True, False])
def test_prompt_and_responses_are_the_parts_of_an_example(tokenizer, template, with_image):
    sizes = {"image_token_id": IMAGE_ID, "num_image_tokens": 3, "with_image": with_image}
    history, question, responses = ("What is it?", "A cat."), "Where?", ["On a mat.", "It sleeps on the sofa."]
    chosen = TEMPLATES[template]
    prompt, answers = encode_responses(tokenizer, chosen, question, responses, history=history, **sizes)
    for response, ids in zip(responses, answers, strict=True):
        first = ("<image>\n" if with_image else "") + history[0]
        turns = [Turn("human", first), Turn("gpt", history[1]), Turn("human", question), Turn("gpt", response)]
        example = encode_example(tokenizer, chosen, turns, max_length=1000, **sizes)
        assert [*prompt, *ids] == example.token_ids.tolist()
        learned = example.labels[len(prompt) :]
        assert ids == learned.tolist()  # supervised to the last token


@pytest.mark.parametrize("template", ["v1", "v0", "plain"])
def test_a_context_begins_the_answer_that_its_continuation_ends(tokenizer, template):
    sizes = {"image_token_id": IMAGE_ID, "num_image_tokens": 3}
    chosen, context = TEMPLATES[template], "A cat sits here."
    start = encode_prompt(tokenizer, chosen, "Say.", **sizes)
    prompt, (middle, last) = encode_responses(
        tokenizer, chosen, "Say.", [" It is red.", " It is blue."], context=context, whole=False, **sizes
    )
    assert prompt == encode_prompt(tokenizer, chosen, "Say.", context=context, **sizes)
    assert prompt[: len(start)] == start
    _, (whole,) = encode_responses(tokenizer, chosen, "Say.", [" It is red."], context=context, **sizes)
    assert whole[: len(middle)] == middle
    assert len(whole) > len(middle)
    assert middle != last
    _, (sentence,) = encode_responses(tokenizer, chosen, "Say.", [context], whole=False, **sizes)
    assert prompt == [*start, *sentence]


@pytest.mark.parametrize(("history", "question"), [((), "<image> or <image>?"), (("<image>?", "Yes."), "<image>?")])
def test_responses_are_about_one_image(tokenizer, history, question):
    with pytest.raises(InputError, match=r"^places 2 images; expected one$"):
        encode_responses(
            tokenizer,
            TEMPLATES["v1"],
            question,
            ["A cat."],
            history=history,
            image_token_id=IMAGE_ID,
            num_image_tokens=3,
        )


def test_a_caption_has_no_history(tokenizer):
    with pytest.raises(InputError, match="caption-only template asks one question"):
        encode_responses(
            tokenizer, TEMPLATES["plain"], "b", ["c"], history=("a", "b"), image_token_id=IMAGE_ID, num_image_tokens=3
        )
