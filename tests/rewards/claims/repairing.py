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

    def __init__(self, nouns, config=None, words=None, phrases=None):
        self.nouns = nouns
        self.phrases = phrases or nouns
        self.claims = Claims(nouns, words)
        self.config = config or JudgeConfig()

    def __call__(self, text, boxes, scores=None, config=None):
        config = config or self.config
        wrong = self.wrong(text, boxes, scores or {}, config)
        edits = Repairs(self.claims, config, self.phrases)(self.read(text), wrong)
        return Repaired(apply_edits(text, [edit for own in edits for edit in own]), wrong, edits)

    def read(self, text):
        sentences = split_sentences(text)
        return self.claims.read(text, sentences, self.phrases(text, sentences))

    def find(self, text):
        return self.read(text).claims

    def wrong(self, text, boxes, scores, config=None):
        """The wrong claims but for relations."""
        found = []
        for claim in self.find(text):
            subject = boxes.get(claim.subject.phrase, [])
            subject = subject if isinstance(subject, Found) else Found(subject)
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


CENTERS = {"left": 0.15, "right": 0.85, "top": 0.15, "bottom": 0.85, "middle": 0.5}


def facts(line):
    """Boxes and scores of "dog 3, cat right top, car left blue": by default in a row, which is in no one place."""
    boxes, scores = {}, {}
    for part in line.split(", "):
        words = part.split()
        number = next((int(word) for word in words if word.isdecimal()), 1)
        places = [word for word in words if word in CENTERS]
        thing = words[0].replace("_", " ")
        x = next((CENTERS[word] for word in places if word in ("left", "right")), 0.5)
        y = next((CENTERS[word] for word in places if word in ("top", "bottom")), 0.5)
        wide = 0.05 if places else 0.9
        boxes[thing] = [
            (x + wide * (i / number - 0.5), y - 0.02, x + wide * ((i + 0.8) / number - 0.5), y + 0.02)
            for i in range(number)
        ]
        for color in words[1:]:
            if color not in CENTERS and not color.isdecimal():
                scores[f"{color} {thing}"] = 0.8
    return boxes, scores
