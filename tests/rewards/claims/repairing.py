"""Captions judged and repaired as a stream of claims does it."""

from typing import NamedTuple

from vigor_jax.rewards.claims.attributes import attributed_phrases
from vigor_jax.rewards.claims.claim import Attribute, Relation
from vigor_jax.rewards.claims.find import Claims
from vigor_jax.rewards.claims.judge import Found, JudgeConfig, Truth, judge, judge_attribute
from vigor_jax.rewards.claims.repair import Repairs, WrongClaim, apply_edits
from vigor_jax.rewards.sentences import split_sentences


class Repaired(NamedTuple):
    text: str
    wrong: list
    edits: list


class Repairer:
    """Reads, judges and repairs captions by boxes of phrases and scores of attributed phrases."""

    def __init__(self, nouns, config=None, words=None):
        self.nouns = nouns
        self.claims = Claims(nouns, words)
        self.config = config or JudgeConfig()

    def __call__(self, text, boxes, scores=None, config=None):
        config = config or self.config
        wrong = self.wrong(text, boxes, scores or {}, config)
        edits = Repairs(self.claims, config)(text, split_sentences(text), wrong)
        return Repaired(apply_edits(text, [edit for own in edits for edit in own]), wrong, edits)

    def find(self, text):
        sentences = split_sentences(text)
        return self.claims(text, sentences, self.nouns(text, sentences))

    def wrong(self, text, boxes, scores, config=None):
        """The wrong claims but for relations."""
        found = []
        for claim in self.find(text):
            subject = Found(boxes.get(claim.subject.phrase, []))
            own = {}
            if isinstance(claim.value, Attribute):
                asked, rivals = attributed_phrases(claim, self.claims.attribute_words)
                own = {phrase: scores.get(phrase, 0.0) for phrase in (asked, *rivals)}
                truth = judge_attribute(own[asked], [own[rival] for rival in rivals], config or self.config)
            elif isinstance(claim.value, Relation):
                continue
            else:
                truth = judge(claim, subject, config=config or self.config)
            if truth is Truth.WRONG:
                found.append(WrongClaim(claim, subject, own))
        return found
