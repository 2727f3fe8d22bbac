"""What a reward model is asked behind a response: how good the response is (LLaVA-RLHF, section 2).

The question is a further round of the conversation, and its answer is given but for the number, which the model's head
says in place of a word: " USER: How good ... ASSISTANT: Its quality is</s>". The words are ours. Weights that have
learned other words, as LLaVA-RLHF's own reward models have, need these: an option gives them.
"""

import dataclasses
from collections.abc import Sequence

from vigor_jax.data.text.conversation import Template
from vigor_jax.data.text.tokenizer import Tokenizer
from vigor_jax.errors import InputError

# In a question: where captions of the image stand, and where the assistant's answer begins.
PLACEHOLDER, ANSWER = "{captions}", "{answer}"
# Asks nothing: the response's own last token is judged.
NOTHING = "none"

_QUESTION = (
    "How good was your last response? It should say only what the image shows, answer what was asked, read well, and "
    f"be no longer than it needs to be. {PLACEHOLDER}"
)
_ANSWER = "Its quality is"
_CAPTIONS = "People have described the image like this, and what the response says must agree with it:\n"


@dataclasses.dataclass(frozen=True)
class QualityQuestion:
    """A question behind a response.

    Attributes:
        question: its words; `PLACEHOLDER` in it is where captions of the image stand, if there are any.
        answer: how the answer begins.
    """

    question: str = _QUESTION
    answer: str = _ANSWER

    def token_ids(self, tokenizer: Tokenizer, template: Template, captions: Sequence[str] = ()) -> list[int]:
        """What continues a response that has ended; it ends as an answer does.

        Args:
            tokenizer: the model's own.
            template: conversation format.
            captions: of the image; the model is told them.

        Raises:
            InputError: the format asks no questions.
        """
        if template.is_caption_only:
            raise InputError(f"the caption-only format asks no questions; give question {NOTHING}")
        if captions:
            question = self.question.replace(PLACEHOLDER, _told(captions))
        else:
            question = self.question.replace(f" {PLACEHOLDER}", "").replace(PLACEHOLDER, "")
        text = f"{template.question_header}{question}{template.answer_header} {self.answer}"
        if template.stop is not None:
            return tokenizer.encode(text + template.stop, prefix=False)
        # The space behind the token that has ended the response is LLaVA-RLHF's.
        return [*tokenizer.encode(f" {text}", prefix=tokenizer.legacy), tokenizer.eos_id]


def find_question(question: str, *, with_captions: bool, section: str) -> QualityQuestion | None:
    """What an option asks for; None if nothing is asked.

    Args:
        question: "" for ours, "none" for no question; what stands behind `ANSWER` begins the answer.
        with_captions: whether the model is told captions.
        section: of the config, for the message.

    Raises:
        InputError: there are captions, and the question has no place for them.
    """
    if with_captions and question and PLACEHOLDER not in question:
        raise InputError(
            f"{section}.question: expected {PLACEHOLDER} where the captions of the image stand, for captions are "
            f"given; got {question[:60]!r}"
        )
    if question == NOTHING:
        return None
    words, _, answer = question.partition(ANSWER)
    return QualityQuestion(words.rstrip() or _QUESTION, answer.strip() or _ANSWER)


def _told(captions: Sequence[str]) -> str:
    return _CAPTIONS + "".join(f"  - {caption}\n" for caption in captions)
