"""Whether there is anything to learn from each example: all are looked at before the first update, but for pixels."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vigor_jax.data.batches.examples import Example, scan_examples
from vigor_jax.data.records.bad_rows import bad_row, settle
from vigor_jax.data.text.conversation import IMAGE_PLACEHOLDER, EncodedExample, Template, encode_example, encode_prompt
from vigor_jax.data.text.tokenizer import Tokenizer
from vigor_jax.errors import InputError


@dataclass(frozen=True)
class Encoder:
    """Examples to tokens, with the settings of a run.

    Attributes:
        tokenizer: the policy's tokenizer.
        template: conversation format.
        image_token_id: stands for one image feature.
        num_image_tokens: features of an image.
        max_length: longest example in tokens; longer ones lose text at their end.
        max_positions: of the model, which no advice exceeds; None if unknown.
    """

    tokenizer: Tokenizer
    template: Template
    image_token_id: int
    num_image_tokens: int
    max_length: int
    max_positions: int | None = None

    def __call__(self, example: Example) -> EncodedExample:
        """Tokens and labels.

        Raises:
            InputError: nothing could be learned from the example. The message does not name it.
        """
        return encode_example(
            self.tokenizer,
            self.template,
            example.turns,
            image_token_id=self.image_token_id,
            num_image_tokens=self.num_image_tokens,
            max_length=self.max_length,
            max_positions=self.max_positions,
            with_image=example.image is not None,
        )

    def refused(self, examples: Iterable[Example]) -> dict[int, str]:
        """Number → reason, of the examples that cannot be encoded.

        Whether an example can be depends on what stands before its first answer, so most are told by its number of
        bytes, a few by tokenizing that part, and only what then looks too long is encoded to know why.
        """
        reasons: dict[int, str] = {}
        headers = self.tokenizer.most_tokens(
            self.template.system + self.template.question_header + "\n" + self.template.answer_header
        )
        for index, example in enumerate(examples):
            if self._fits(example, headers):
                continue
            try:
                self(example)
            except InputError as error:
                reasons[index] = str(error)
        return reasons

    def _fits(self, example: Example, headers: int | None) -> bool:
        """Whether the first answer, and the image, certainly begin within `max_length`.

        `headers` is the most that the words around a question make, if that is known.
        """
        question, has_image = example.turns[0].text, example.image is not None
        if has_image and IMAGE_PLACEHOLDER not in question:
            return False
        images = 1 + has_image * self.num_image_tokens
        if self.template.is_caption_only:
            return has_image and len(example.turns) == 2 and images < self.max_length
        words = self.tokenizer.most_tokens(question)
        if words is not None and headers is not None and images + headers + words < self.max_length:
            return True
        if not has_image and IMAGE_PLACEHOLDER in question:
            return False
        return len(self._prompt(question, has_image)) < self.max_length

    def _prompt(self, question: str, has_image: bool) -> list[int]:
        return encode_prompt(
            self.tokenizer,
            self.template,
            question,
            image_token_id=self.image_token_id,
            num_image_tokens=self.num_image_tokens,
            with_image=has_image,
        )


def usable_examples(
    path: Path,
    image_folder: str | Path | None,
    encoder: Encoder,
    *,
    skip: bool,
    option: str,
    report: Path,
    writes: bool,
) -> list[Example]:
    """The examples of a file that something can be learned from.

    Args:
        path: of conversations in LLaVA's format.
        image_folder: as `scan_examples` takes it.
        encoder: makes tokens of them.
        skip: as `settle` takes it.
        option: as `settle` takes it.
        report: as `settle` takes it.
        writes: as `settle` takes it.

    Raises:
        InputError: the file cannot be read, or there are others and they may not be left out; names them all.
    """
    examples, bad, total = scan_examples(path, image_folder)
    reasons = encoder.refused(examples)
    for index, reason in reasons.items():
        example = examples[index]
        bad.append(bad_row(path, example.number, example.label, example.name, reason))
    settle(path, bad, total, skip=skip, option=option, report=report, writes=writes)
    return [example for index, example in enumerate(examples) if index not in reasons]
