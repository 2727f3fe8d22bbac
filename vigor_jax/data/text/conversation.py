"""Conversations as LLaVA writes them: prompt templates, token ids, and labels on the assistant's words only.

Ids are put together from pieces (text, images, end-of-sequence tokens) whose tokens never merge with one
another, so a label mask needs no re-tokenizing, and the prompt that asks a question is always the beginning
of the example that teaches its answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vigor_jax.data.text.tokenizer import Tokenizer
from vigor_jax.errors import InputError

IGNORE_INDEX = -100
IMAGE_PLACEHOLDER = "<image>"


@dataclass(frozen=True)
class Turn:
    """One utterance; `role` is spelled as in LLaVA's data files."""

    role: Literal["human", "gpt"]
    text: str


@dataclass(frozen=True)
class Template:
    """How one conversation format is written.

    A round is `question_header + question + answer_header + " " + answer + end`, all rounds after `system`.

    Attributes:
        system: Text before the first round, its separator included.
        question_header: Text before a question.
        answer_header: Text before an answer, without the space that follows; a prompt for generation ends
            here.
        stop: Text that ends an answer, to be cut from what is generated; None if the EOS token does.
        is_caption_only: Whether examples are an image and its caption, which follows the image directly, and the words
            of a question are left out.
    """

    system: str
    question_header: str
    answer_header: str
    stop: str | None
    is_caption_only: bool = False


@dataclass(frozen=True)
class EncodedExample:
    """One training example.

    Attributes:
        token_ids: int32 [T].
        labels: int32 [T], the id at its own position (not shifted) where the loss counts, else
            `IGNORE_INDEX`.
    """

    token_ids: np.ndarray
    labels: np.ndarray


def _system(person: str) -> str:
    return (
        f"A chat between a curious {person} and an artificial intelligence assistant. "
        f"The assistant gives helpful, detailed, and polite answers to the {person}'s questions."
    )


_VICUNA_V1 = Template(_system("user") + " ", "USER: ", " ASSISTANT:", stop=None)
# LLaVA v1.0.1 trained v0 with other separators ("### Human: ...\n") than it asked with; this is how it asked.
_LLAVA_V0 = Template(_system("human") + "###", "Human: ", "###Assistant:", stop="###")

TEMPLATES: dict[str, Template] = {
    "v0": _LLAVA_V0,
    "llava_v0": _LLAVA_V0,
    "v1": _VICUNA_V1,
    "vicuna_v1": _VICUNA_V1,
    "llava_v1": Template(_system("human") + " ", "USER: ", " ASSISTANT:", stop=None),
    "plain": Template("", "", "", stop="\n", is_caption_only=True),
    "instructblip": Template("", "", "", stop=None),
}
"""By the names that LLaVA gives them; "v0" is "llava_v0" and "v1" is "vicuna_v1". "instructblip" has nothing around the
words of a question and of its answer, as InstructBLIP was trained."""
DEFAULT_TEMPLATE = "v1"


def find_template(name: str | None) -> Template:
    """A conversation format by its name; LLaVA-1.5's where none is given."""
    return TEMPLATES[name or DEFAULT_TEMPLATE]


def check_template(name: str | None, option: str) -> None:
    """Raises InputError if there is no such conversation format; none need be given.

    Args:
        name: A key of `TEMPLATES`.
        option: What gives it, for the message.
    """
    if name is not None and name not in TEMPLATES:
        raise InputError(f"{option}: expected one of {', '.join(TEMPLATES)}, got {name!r}")


def encode_prompt(
    tokenizer: Tokenizer,
    template: Template,
    question: str,
    *,
    image_token_id: int,
    num_image_tokens: int,
    with_image: bool = True,
    history: Sequence[str] = (),
    context: str = "",
) -> list[int]:
    """Token ids that ask for an answer to `question`.

    Args:
        tokenizer: The policy's tokenizer.
        template: One of `TEMPLATES`. The caption-only "plain" asks by the image alone and leaves the question
            out.
        question: The words of the user. The image comes first; a single "<image>" anywhere in the question is
            moved there, as LLaVA does in training, and several stay where they are. Where the tokenizer says
            `images_first`, the one image comes before BOS, and a question may not have several.
        image_token_id: Id that stands for one image feature.
        num_image_tokens: Image features an image has; each "<image>" becomes that many ids.
        with_image: Whether there is an image.
        history: Earlier questions and answers in alternation, question first; the image comes before the first.
        context: How the answer begins, in separate tokens: what continues it brings the space before it.

    Returns:
        Ids from BOS to the colon after the assistant's name (no space), or to the image where `template` is
        "plain"; or to the end of `context`.

    Raises:
        InputError: `with_image` is false and the question has an "<image>" or `template` is "plain"; or this has a
            history; or there are several images for a model that takes one.
    """
    writer = _Writer(tokenizer, image_token_id, num_image_tokens)
    _add_prompt(writer, template, question, history, context, with_image=with_image)
    return writer.token_ids


def encode_responses(
    tokenizer: Tokenizer,
    template: Template,
    question: str,
    responses: Sequence[str],
    *,
    image_token_id: int,
    num_image_tokens: int,
    with_image: bool = True,
    history: Sequence[str] = (),
    context: str = "",
    whole: bool = True,
) -> tuple[list[int], list[list[int]]]:
    """Token ids of a prompt, and of responses that continue it.

    Args:
        tokenizer: as `encode_prompt`, and so are those that are not named here.
        responses: What the model is to say, or not to say; behind a context, each with the space before it.
        whole: The answer ends with the response, so what ends it (`</s>`, "###" or a newline) is a part of it.

    Returns:
        What `encode_prompt` gives, and the ids of each response: together the ids of `encode_example`, where there is
        no context.

    Raises:
        InputError: as `encode_prompt`, or the questions place several images.
    """
    writer = _Writer(tokenizer, image_token_id, num_image_tokens)
    _add_prompt(writer, template, question, history, context, with_image=with_image)
    if (placed := writer.token_ids.count(image_token_id)) != with_image * num_image_tokens:
        raise InputError(f"places {placed // num_image_tokens} images; expected one")
    space = "" if template.is_caption_only or context else " "
    end = (template.stop or "") if whole else ""
    eos = [tokenizer.eos_id] if whole and template.stop is None else []
    return writer.token_ids, [[*writer.ids(space + response + end), *eos] for response in responses]


def _add_prompt(
    writer: "_Writer", template: Template, question: str, history: Sequence[str], context: str, *, with_image: bool
) -> None:
    questions = [*history[::2], question]
    if template.is_caption_only and history:
        raise InputError("the caption-only template asks one question, and there were others before it")
    if not with_image and (placed := [each for each in questions if IMAGE_PLACEHOLDER in each]):
        raise InputError(f"the question {placed[0][:60]!r} places {IMAGE_PLACEHOLDER} but comes without an image")
    if with_image and not any(IMAGE_PLACEHOLDER in each for each in questions):
        questions[0] = f"{IMAGE_PLACEHOLDER}\n{questions[0]}"
    for number, (each, answer) in enumerate(zip(questions, [*history[1::2], None], strict=True)):
        writer.add_prompt(_prompt_text(template, each, is_first=number == 0, with_image=with_image))
        if answer is not None:
            _add_answer(writer, template, answer)
    if context:
        writer.add_text(("" if template.is_caption_only else " ") + context, supervised=False)


def _add_answer(writer: "_Writer", template: Template, answer: str) -> None:
    # A caption follows its image as fresh text; an answer continues the line that names the assistant.
    space = "" if template.is_caption_only else " "
    writer.add_text(space + answer + (template.stop or ""), supervised=True)
    if template.stop is None:
        writer.add_eos()


def encode_example(
    tokenizer: Tokenizer,
    template: Template,
    turns: Sequence[Turn],
    *,
    image_token_id: int,
    num_image_tokens: int,
    max_length: int,
    max_positions: int | None = None,
    with_image: bool = True,
) -> EncodedExample:
    """Token ids and labels of a whole conversation.

    Supervised is each answer with the space before it and what ends it (`</s>`, "###" or a newline): exactly
    what the model has to generate after the prompt of `encode_prompt`. LLaVA v1.0.1 also supervised the first
    two tokens of each later human turn in "v0"; this does not.

    Args:
        tokenizer: The policy's tokenizer.
        template: One of `TEMPLATES`.
        turns: Human and assistant in alternation, human first. "<image>" in a human turn is an image (see
            `encode_prompt`); in an answer it is text.
        image_token_id: Id that stands for one image feature.
        num_image_tokens: Image features an image has; each "<image>" becomes that many ids.
        max_length: Longest example; what is longer loses text at its end.
        max_positions: The model's, which no advice in an error exceeds; None if unknown.
        with_image: Whether "<image>" in human turns stands for an image; without one it is text, as in LLaVA.

    Raises:
        InputError: Roles out of order, an empty answer, or nothing to learn or not all of an image left
            within `max_length`. The message does not name the example: that is for the caller to add.
    """
    check_turns(turns)
    if template.is_caption_only and len(turns) != 2:
        raise InputError(f"the caption-only template takes one question and one answer, got {len(turns)} turns")
    writer = _Writer(tokenizer, image_token_id, num_image_tokens)
    for first in range(0, len(turns), 2):
        question, answer = turns[first].text, turns[first + 1].text
        prompt = _prompt_text(template, question, is_first=first == 0, with_image=with_image)
        if with_image:
            writer.add_prompt(prompt)
        else:
            writer.add_text(prompt, supervised=False)
        _add_answer(writer, template, answer)
    return writer.finish(max_length, max_positions)


def check_turns(turns: Sequence[Turn], *, first: int = 0) -> None:
    """Raises InputError unless human and assistant alternate, human first, and every answer has words.

    Args:
        turns: The conversation.
        first: The number of its first turn, for the message.
    """
    for index, turn in enumerate(turns, start=first):
        expected = ("human", "gpt")[(index - first) % 2]
        if turn.role != expected:
            raise InputError(f"turn {index} is from {turn.role!r}, expected {expected!r}: roles alternate, human first")
        if turn.role == "gpt" and not turn.text.strip():
            raise InputError(f"turn {index} is an empty answer; remove the round or the example")
    if not turns or len(turns) % 2:
        raise InputError(f"{len(turns)} turns: expected each question to be followed by its answer")


def _prompt_text(template: Template, question: str, *, is_first: bool, with_image: bool = True) -> str:
    """The text up to where an answer begins, images as placeholders."""
    if template.is_caption_only:
        num_images = question.count(IMAGE_PLACEHOLDER) if with_image else 0
        if num_images == 0:
            raise InputError("the caption-only template needs an image; use another template for text alone")
        return IMAGE_PLACEHOLDER * num_images
    if with_image and question.count(IMAGE_PLACEHOLDER) == 1:
        words = question.replace(IMAGE_PLACEHOLDER, "").strip()
        question = f"{IMAGE_PLACEHOLDER}\n{words}".strip()
    system = template.system if is_first else ""
    return system + template.question_header + question + template.answer_header


class _Writer:
    """Collects the ids and labels of one conversation."""

    def __init__(self, tokenizer: Tokenizer, image_token_id: int, num_image_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._image = [image_token_id] * num_image_tokens
        # Whether the next text starts afresh, that is with LLaMA's dummy "▁".
        self._is_fresh = True
        self.token_ids = [tokenizer.bos_id] if tokenizer.adds_bos else []
        self._supervised = [False] * len(self.token_ids)
        self._images_end = 0

    def add_prompt(self, text: str) -> None:
        if self._tokenizer.images_first:
            text = self._image_to_front(text)
        pieces = text.split(IMAGE_PLACEHOLDER)
        takes_left, takes_right = self._tokenizer.image_strips
        for index, words in enumerate(pieces):
            if index:
                self._extend(self._image, supervised=False)
                self._images_end = len(self.token_ids)
                self._is_fresh = self._tokenizer.restarts_after_image
                words = words.lstrip() if takes_right else words
            if takes_left and index < len(pieces) - 1:
                words = words.rstrip()
            self.add_text(words, supervised=False)

    def _image_to_front(self, text: str) -> str:
        """Puts the image of a text before all tokens, BOS too; returns the text without it, and without the line end
        that LLaVA has behind it."""
        before, placed, after = text.partition(IMAGE_PLACEHOLDER)
        if not placed:
            return text
        if self._images_end or IMAGE_PLACEHOLDER in after:
            raise InputError(f"several {IMAGE_PLACEHOLDER}, and the model takes one image a conversation; keep one")
        self.token_ids[:0] = self._image
        self._supervised[:0] = [False] * len(self._image)
        self._images_end = len(self._image)
        return before + after.removeprefix("\n")

    def add_text(self, text: str, *, supervised: bool) -> None:
        if text:
            self._extend(self.ids(text), supervised)
            self._is_fresh = False

    def ids(self, text: str) -> list[int]:
        """Of a text that would come next."""
        return self._tokenizer.encode(text, prefix=self._is_fresh)

    def add_eos(self) -> None:
        self._extend([self._tokenizer.eos_id], supervised=True)
        self._is_fresh = self._tokenizer.legacy

    def finish(self, max_length: int, max_positions: int | None) -> EncodedExample:
        length, answer_starts = len(self.token_ids), self._supervised.index(True)
        needed = max(self._images_end, answer_starts + 1)
        too_long = max_positions is not None and needed > max_positions
        shorten = f"the model has {max_positions} positions, so shorten the question or remove the example"
        if self._images_end > max_length:
            raise InputError(
                f"the images end at token {self._images_end} of {length} but max_length is {max_length}, "
                f"and images are never cut; {shorten if too_long else f'raise max_length to {needed} or more'}"
            )
        if answer_starts >= max_length:
            raise InputError(
                f"the first answer starts after {answer_starts} of {length} tokens but max_length is {max_length}, "
                f"which leaves nothing to learn; {shorten if too_long else f'raise max_length above {answer_starts}'}"
            )
        token_ids = np.asarray(self.token_ids[:max_length], np.int32)
        labels = np.where(self._supervised[:max_length], token_ids, np.int32(IGNORE_INDEX))
        return EncodedExample(token_ids, labels)

    def _extend(self, ids: list[int], supervised: bool) -> None:
        self.token_ids += ids
        self._supervised += [supervised] * len(ids)
