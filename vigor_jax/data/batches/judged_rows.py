"""Responses with what is asked of their quality behind each: rows of a reward model, one place a response."""

import dataclasses
from collections.abc import Iterator, Sequence

from vigor_jax.data.batches.preference_rows import EncodedPreference, PreferenceRow, check_fits
from vigor_jax.data.batches.response_rows import last_token_row
from vigor_jax.data.text.conversation import Template, encode_responses
from vigor_jax.data.text.image_captions import Captions, captions_of
from vigor_jax.data.text.quality_question import QualityQuestion
from vigor_jax.data.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class JudgedEncoder:
    """Responses to tokens, with the settings of a run. A response is judged as an answer that ends with it.

    Attributes:
        tokenizer: the reward model's tokenizer.
        template: conversation format.
        image_token_id: stands for one image feature.
        num_image_tokens: features of an image.
        max_length: most tokens of a row: the prompt and all responses, with their questions.
        max_positions: of the model: the prompt, one response and its question.
        question: what is asked behind each response; None asks nothing.
        captions: what the model is told of each image; None tells it nothing.
    """

    tokenizer: Tokenizer
    template: Template
    image_token_id: int
    num_image_tokens: int
    max_length: int
    max_positions: int
    question: QualityQuestion | None = None
    captions: Captions | None = None

    def tokens(
        self,
        image: str,
        prompt: str,
        responses: Sequence[str],
        *,
        with_image: bool = True,
        history: Sequence[str] = (),
        context: str = "",
    ) -> tuple[list[int], list[list[int]]]:
        """Ids of the prompt, and of each response with its question.

        Args:
            image: path below the image folder, by which its captions are found.
            prompt: what was asked.
            responses: what was answered.
            with_image: whether there is an image; one without is told no captions.
            history: as `records.Preference`.
            context: the same.

        Raises:
            InputError: the row cannot be written, or its image has no captions. The message does not name the row.
        """
        prompt_ids, found = encode_responses(
            self.tokenizer,
            self.template,
            prompt,
            responses,
            image_token_id=self.image_token_id,
            num_image_tokens=self.num_image_tokens,
            with_image=with_image,
            history=history,
            context=context,
        )
        told = captions_of(self.captions, image) if self.captions is not None and with_image else ()
        asked = self.question.token_ids(self.tokenizer, self.template, told) if self.question else []
        return prompt_ids, [[*ids, *asked] for ids in found]

    def __call__(self, row: PreferenceRow) -> EncodedPreference:
        """A row whose places are the last tokens of the responses, with their questions, in their order.

        Raises:
            InputError: it cannot be written or is too long. The message does not name it.
        """
        preference = row.preference
        prompt, responses = self.tokens(
            preference.image,
            preference.prompt,
            preference.responses,
            with_image=row.image is not None,
            history=preference.history,
            context=preference.context,
        )
        check_fits(prompt, responses, self.max_length, self.max_positions)
        return _row(prompt, responses)

    def rows(self, image: str, prompt: str, responses: Sequence[str]) -> Iterator[tuple[list[int], EncodedPreference]]:
        """As few rows as hold the responses to an image in their order: their indices, and the row.

        Raises:
            InputError: a response is too long. The message does not name the image.
        """
        prompt_ids, found = self.tokens(image, prompt, responses)
        own: list[int] = []
        for index, ids in enumerate(found):
            check_fits(prompt_ids, [ids], self.max_length, self.max_positions)
            if own and len(prompt_ids) + sum(len(found[each]) for each in own) + len(ids) > self.max_length:
                yield own, _row(prompt_ids, [found[each] for each in own])
                own = []
            own.append(index)
        if own:
            yield own, _row(prompt_ids, [found[each] for each in own])


def _row(prompt_ids: Sequence[int], responses: Sequence[Sequence[int]]) -> EncodedPreference:
    return EncodedPreference(last_token_row(prompt_ids, responses), (1,) * len(responses))
