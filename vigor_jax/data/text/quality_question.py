"""What a reward model is asked behind a response: how good the response is (LLaVA-RLHF, section 2).

The question is a further round of the conversation, and its answer is given but for the number, which the model's head
says in place of a word: " USER: Please evaluate ... ASSISTANT: Following your definitions, ... is</s>".
"""

import dataclasses
from collections.abc import Sequence

from vigor_jax.data.text.conversation import Template
from vigor_jax.data.text.tokenizer import Tokenizer
from vigor_jax.errors import InputError

# Where captions of the image stand in a question.
PLACEHOLDER = "{captions}"
# Asks nothing: the response's own last token is judged.
NOTHING = "none"

# Letter by letter as in LLaVA-RLHF's prompts/fact_rlhf_reward_prompt.txt and data_utils/constants.py (Apache-2.0), for
# its published reward models have learned them.
_QUESTION = """\
Please evaluate the quality of your last response. There are several dimensions you should consider in your evaluation:

1. Accurate: The AI should provide factual and accurate information from the image, and refrain from making statements \
that are not supported by the image or inconsistent with the image. {captions}
2. Helpful: The AI’s response should precisely serve the user's needs and interests, while grounding the response in \
the image.
3. Language Natural: The AI should employ language that flows smoothly and is free from repetitive or awkward \
constructs.
4. Concise: The AI should efficiently address the task or answer the question, communicating the necessary information \
with brevity and clarity.

A good response should be accurate, helpful, language natural, and concise."""
_ANSWER = "Following your definitions, the quality score of my last response is"
_ANSWER_TO_OTHERS = "The quality score of my last response is"
_CAPTIONS = "Specifically, the AI's response should be fully supported by the combination of the following captions:\n"


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
        question = self.question.replace(PLACEHOLDER, _told(captions))
        if not captions:
            question = self.question.replace(f" {PLACEHOLDER}", "").replace(PLACEHOLDER, "")
        text = f"{template.question_header}{question}{template.answer_header} {self.answer}"
        if template.stop is not None:
            return tokenizer.encode(text + template.stop, prefix=False)
        # The space behind the token that has ended the response is LLaVA-RLHF's.
        return [*tokenizer.encode(f" {text}", prefix=tokenizer.legacy), tokenizer.eos_id]


def find_question(question: str, *, with_captions: bool, section: str) -> QualityQuestion | None:
    """What an option asks for; None if nothing is asked.

    Args:
        question: "" for LLaVA-RLHF's words, "none" for no question.
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
    return QualityQuestion(question, _ANSWER_TO_OTHERS) if question else QualityQuestion()


def _told(captions: Sequence[str]) -> str:
    return _CAPTIONS + "".join(f"  - {caption}\n" for caption in captions)
