"""The right color in place of a wrong one: "a red car" → "an orange car"."""

from collections.abc import Mapping

from vigor_jax.records import Edit
from vigor_jax.rewards.claims.attributes import attributed_phrases
from vigor_jax.rewards.claims.claim import Attribute
from vigor_jax.rewards.claims.judge import JudgeConfig
from vigor_jax.rewards.claims.rewording import Wording
from vigor_jax.rewards.language.claim_words import AttributeWords
from vigor_jax.rewards.language.words import article

COLOR = "color"


def reword_color(
    wording: Wording, scores: Mapping[str, float], words: AttributeWords, config: JudgeConfig
) -> tuple[Edit, ...]:
    """What makes a wrong claim of color right; () where that is not sure, or if it names several colors."""
    claim = wording.claim
    assert isinstance(claim.value, Attribute)
    if claim.value.kind != COLOR or " and " in claim.value.value:
        return ()
    asked, rivals = attributed_phrases(claim, words)
    known = sorted(((scores[rival], rival) for rival in rivals if rival in scores), reverse=True)
    if not known or asked not in scores:
        return ()
    (best, phrase), *others = known
    second = max([scores[asked], *(score for score, _ in others)])
    if best < config.least_attribute or best - second < config.attribute_margin:
        return ()
    new = phrase.removesuffix(asked.removeprefix(claim.value.value)).strip()
    edits = [wording.edit(wording.start, wording.end, new)]
    if wording.sentence.word(wording.start - 1) in ("a", "an"):
        before = wording.start - 1
        if article(new) != wording.sentence.word(before):
            edits.insert(0, wording.edit(before, wording.start, article(new)))
    return tuple(edits)
