"""Descriptions of an image and a question at the end of each sentence, as one sequence of tokens that is a tree.

The reward model is asked of every sentence k of every description (ViGoR, section 3.2):

    SYSTEM USER: <image>\\nQUESTION\\nsentences 1..k ASSISTANT: 1</s>

All that these conversations share is in the row once: the prefix, which ends with the question's words. Each
description is a response that continues the prefix, and each " ASSISTANT: ..." a suffix that continues the response
where its sentence ends, and stands right behind it. Positions continue those of the path, so under the mask of
`inference.tree_attention` each path reads like a separate conversation.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np
from jaxtyping import Int32

from vigor_jax.data.text.box_text import without_boxes
from vigor_jax.data.text.conversation import IGNORE_INDEX, Template
from vigor_jax.data.text.tokenizer import Tokenizer
from vigor_jax.errors import InputError
from vigor_jax.records import ErrorType, ImageFile, Span

Per: TypeAlias = Literal["sentence", "description"]

# What the model is asked and what it answers; `RewardModelConfig.question` may change the first.
QUESTIONS: dict[Per, str] = {
    "sentence": "Assess the accuracy of the last sentence in the following description of this image, and return a "
    "single number.",
    "description": "Assess the accuracy of the following description of this image, and return a single number.",
}
GOOD, BAD = "1", "0"
SEPARATOR = "\n"  # between the question and the description


def answer(errors: Collection[ErrorType]) -> str:
    """What the model is to answer: "1", or "0" and the kinds of error, in the order of `ErrorType`."""
    return " ".join([BAD, *(kind for kind in get_args(ErrorType) if kind in errors)]) if errors else GOOD


def asked(num_sentences: int, per: Per) -> tuple[int, ...]:
    """The sentences at whose end a question stands: all, or the last one."""
    return tuple(range(num_sentences)) if per == "sentence" else (num_sentences - 1,)


@dataclass(frozen=True)
class Description:
    """One text and the sentences of it that are asked about.

    Attributes:
        candidate: its index among the descriptions of the image.
        text: the whole text.
        spans: its sentences, in order.
        asked: indices of the sentences at whose end a question stands, ascending, at least one.
        answers: the right answer to each question, to train on; None to ask.
        weights: of each answer's tokens in the loss; 1 by default.
    """

    candidate: int
    text: str
    spans: tuple[Span, ...]
    asked: tuple[int, ...]
    answers: tuple[str, ...] | None = None
    weights: tuple[float, ...] | None = None


class TreeSequence(NamedTuple):
    """The descriptions of an image that stand in one row.

    Attributes:
        image: its name.
        path: its file, or what reads it from a shard.
        descriptions: at least one.
    """

    image: str
    path: ImageFile
    descriptions: tuple[Description, ...]


@dataclass(frozen=True)
class Row:
    """A sequence as tokens.

    Attributes:
        token_ids: int32 [T].
        positions: int32 [T], of the path that the token belongs to: what continues it follows, at larger ones.
        places: int32 [P], the tokens after which the model is read: the last one before an answer can be told good or
            bad, one a question; or, to train on, the token before each one of the answers.
        targets: int32 [P], the tokens to be learned there; `IGNORE_INDEX` in questions.
        weights: float32 [P].
    """

    token_ids: np.ndarray
    positions: np.ndarray
    places: np.ndarray
    targets: np.ndarray
    weights: np.ndarray


class TreeEncoder:
    """Writes sequences as rows of tokens.

    Each sentence is tokenized on its own, with the white space before it, so that the ids of sentences 1..k are the
    beginning of the ids of the whole text.

    Attributes:
        prefix: ids of what all descriptions share, image included.
        header: ids between a sentence and the answer.
        shared: ids that begin the good and the bad answer alike (LLaMA's "▁" before a digit).
        good_id: where the answers part, the good one continues with this.
        bad_id: and the bad one with this.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: Template,
        question: str,
        *,
        image_token_id: int,
        num_image_tokens: int,
        max_length: int,
        max_position: int,
    ) -> None:
        """Args:
            tokenizer: the reward model's tokenizer.
            template: conversation format; not the caption-only one.
            question: one of `QUESTIONS`, or words of one's own.
            image_token_id: stands for one image feature.
            num_image_tokens: features of an image.
            max_length: most tokens of a row.
            max_position: most tokens of a path, from the system's words to an answer.

        Raises:
            InputError: the template has no questions, or the tokenizer writes the good answer like the bad one.
        """
        if template.is_caption_only:
            raise InputError("template: the caption-only format asks no questions; take another one")
        self._tokenizer, self._template, self._question = tokenizer, template, question
        self._max_length, self._max_position = max_length, max_position
        bos, image = [tokenizer.bos_id] if tokenizer.adds_bos else [], [image_token_id] * num_image_tokens
        header = template.system + template.question_header
        if tokenizer.images_first:
            self.prefix = [*image, *bos, *tokenizer.encode(header + question)]
        else:
            after = tokenizer.encode(f"\n{question}", prefix=tokenizer.restarts_after_image)
            self.prefix = [*bos, *tokenizer.encode(header), *image, *after]
        self.header = tokenizer.encode(template.answer_header, prefix=False)
        good, bad = self.answer_ids(GOOD), self.answer_ids(BAD)
        part = next((i for i, (a, b) in enumerate(zip(good, bad, strict=False)) if a != b), None)
        if part is None:
            raise InputError(f"tokenizer: cannot tell the answers {GOOD!r} and {BAD!r} apart; use LLaVA's tokenizer")
        self.shared, self.good_id, self.bad_id = good[:part], good[part], bad[part]

    def answer_ids(self, text: str) -> list[int]:
        """All that the model has to generate after the assistant's name, with what ends it."""
        end = [self._tokenizer.eos_id] if self._template.stop is None else []
        return self._tokenizer.encode(f" {text}{self._template.stop or ''}", prefix=False) + end

    def instructions(self, num_rows: int) -> Int32[np.ndarray, "B 1 Q"] | None:
        """The question, for each of the rows' images; None for a model that reads none while it looks."""
        ids = self._tokenizer.instruction_ids([self._question])
        return None if ids is None else np.repeat(ids[None], num_rows, axis=0)

    def sequences(self, image: str, path: ImageFile, descriptions: Sequence[Description]) -> list[TreeSequence]:
        """As few sequences as hold the descriptions in their order; a description is never cut.

        Raises:
            InputError: a description is too long on its own.
        """
        sequences: list[TreeSequence] = []
        free = 0
        for description in descriptions:
            length = self.length(image, description)
            if length > free:
                sequences.append(TreeSequence(image, path, ()))
                free = self._max_length - len(self.prefix)
            sequences[-1] = sequences[-1]._replace(descriptions=(*sequences[-1].descriptions, description))
            free -= length
        return sequences

    def length(self, image: str, description: Description) -> int:
        """Tokens that a description adds to a row.

        Raises:
            InputError: it is too long on its own.
        """
        length, depth = self._size(description)
        for found, most, what in (  # the model's positions first, for no max_length helps there
            (depth, self._max_position, "up to the end of an answer, and the model has {} positions;"),
            (len(self.prefix) + length, self._max_length, "with its questions; raise max_length ({}) or"),
        ):
            if found > most:
                raise InputError(
                    f"{image}: candidate {description.candidate} needs {found} tokens {what.format(most)} shorten the "
                    "text"
                )
        return length

    def row(self, sequence: TreeSequence) -> Row:
        """Writes a sequence.

        Raises:
            InputError: an answer does not begin like the good or the bad one.
        """
        writer = _RowWriter()
        writer.add(self.prefix, 0)
        for description in sequence.descriptions:
            position = len(self.prefix)
            for sentence, ids in enumerate(self._segments(description)):
                writer.add(ids, position)
                position += len(ids)
                if sentence not in description.asked:
                    continue
                question = description.asked.index(sentence)
                learned = self._learned(sequence, description, question)
                writer.add([*self.header, *(learned[:-1] or self.shared)], position)
                weight = 1.0 if description.weights is None else description.weights[question]
                writer.supervise(learned or [IGNORE_INDEX], weight)
        return writer.finish()

    def _learned(self, sequence: TreeSequence, description: Description, question: int) -> list[int]:
        """Ids of the right answer; none where there is only a question."""
        if description.answers is None:
            return []
        text = description.answers[question]
        ids = self.answer_ids(text)
        if ids[: len(self.shared)] != self.shared or ids[len(self.shared)] not in (self.good_id, self.bad_id):
            raise InputError(
                f"{sequence.image}: candidate {description.candidate}: expected an answer that begins with {GOOD!r} or "
                f"{BAD!r}, got {text!r}"
            )
        return ids

    def _segments(self, description: Description) -> list[list[int]]:
        """Ids of each sentence up to the last that is asked about; only white space between sentences is kept, and no
        box: whether boxes are right is another question."""
        segments, end = [], None
        for span in description.spans[: description.asked[-1] + 1]:
            sentence = description.text[span.start : span.end]
            start, stop = span.start + len(sentence) - len(sentence.lstrip()), span.start + len(sentence.rstrip())
            before = SEPARATOR if end is None else description.text[end:start]
            words = without_boxes(description.text[start:stop]).strip()
            segments.append(self._tokenizer.encode(before + words, prefix=False))
            end = stop
        return segments

    def _size(self, description: Description) -> tuple[int, int]:
        """Tokens that the description adds to a row, and the length of its longest path."""
        ends = np.cumsum([len(ids) for ids in self._segments(description)])
        answers = description.answers
        suffixes = [
            len(self.header) + len(self.shared if answers is None else self.answer_ids(answers[question])[:-1])
            for question in range(len(description.asked))
        ]
        depths = [ends[sentence] + length for sentence, length in zip(description.asked, suffixes, strict=True)]
        return int(ends[-1]) + sum(suffixes), len(self.prefix) + int(max(depths))


class _RowWriter:
    """Collects the tokens of one row."""

    def __init__(self) -> None:
        self._token_ids: list[int] = []
        self._positions: list[int] = []
        self._supervised: list[tuple[int, int, float]] = []

    def add(self, ids: Sequence[int], position: int) -> None:
        self._token_ids += ids
        self._positions += range(position, position + len(ids))

    def supervise(self, targets: Sequence[int], weight: float) -> None:
        """The last `len(targets)` tokens are those after which `targets` come."""
        first = len(self._token_ids) - len(targets)
        self._supervised += [(first + i, target, weight) for i, target in enumerate(targets)]

    def finish(self) -> Row:
        places, targets, weights = zip(*self._supervised, strict=True)
        return Row(
            np.asarray(self._token_ids, np.int32),
            np.asarray(self._positions, np.int32),
            np.asarray(places, np.int32),
            np.asarray(targets, np.int32),
            np.asarray(weights, np.float32),
        )
