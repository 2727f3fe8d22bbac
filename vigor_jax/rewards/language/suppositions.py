"""Where a sentence only supposes: what may be, what something is for, what it suggests or looks like."""

from collections.abc import Callable

from vigor_jax.rewards.language.clause import NEGATIONS, Clause
from vigor_jax.rewards.language.words import listed
from vigor_jax.rewards.mentions import Factuality

Mark = Callable[[int, int, Factuality], None]  # of the words from one place to another

_HEDGES = listed("hedges")
_MODALS = listed("modals")
_SEEN = listed("seen")
_GENERIC = listed("generic")
_PURPOSE = listed("purpose")
_GIVES = listed("gives")
_LETS = listed("lets")
_SEEKS = frozenset(["waiting", "looking", "searching", "hoping"])
_SIMILE = frozenset(["shaped", "looks", "look", "looking", "formed"])
_INDEFINITE = ("NN", "NNS", "JJ", "JJR", "JJS", "VBN")


def _hedge(clause: Clause, place: int, mark: Mark) -> None:
    word = clause.word(place)
    if word in ("may", "might", "must", "could") and clause.tag(place).startswith("NN"):
        return
    if word == "likely" and clause.word(place - 1) in ("as", "the"):
        return
    start = _with_subject(clause, place) if word in _MODALS else place
    mark(start, clause.clause_end(place + 1), Factuality.SUPPOSED)


def _with_subject(clause: Clause, place: int) -> int:
    """Where "where visitors can sit" begins: a subject of a modal verb that no article makes a certain one."""
    start = place
    while start and clause.tags[start - 1].startswith(("NN", "JJ")):
        start -= 1
    return start if clause.word(start - 1) in ("where", "so", "that") else place


def _can(clause: Clause, place: int, mark: Mark) -> None:
    if clause.is_noun[place]:
        return  # "the trash can"
    at = place + 1
    while clause.word(at) in ("be", "also", "easily", "then", "clearly", "still") or clause.tag(at) == "RB":
        at += 1
    if clause.word(at) not in _SEEN and clause.tag(at) in ("VB", "VBP", "VBN", "JJ"):  # without a tagger verbs are JJ
        mark(_with_subject(clause, place), clause.clause_end(place), Factuality.SUPPOSED)


def _generic(clause: Clause, place: int, mark: Mark) -> None:
    if clause.tag(place + 1) in ("VBN", "VBD"):
        mark(place, clause.clause_end(place), Factuality.SUPPOSED)


def _for(clause: Clause, place: int, mark: Mark) -> None:
    end = clause.purpose_end(place + 1)
    following = clause.tag(place + 1)
    is_purpose = clause.word(place - 1) in _PURPOSE
    if following == "VBG" and not clause.is_noun[place + 1]:
        mark(place, end, Factuality.SUPPOSED)
        return
    at = place + 1
    while clause.tag(at) in ("DT", "PRP$", "CD"):
        at += 1
    head = at
    while clause.tag(at).startswith(("NN", "JJ", "VBN")) or clause.word(at) in ("or", "and") or clause.tag(at) == "PRP":
        at += 1
    is_definite = clause.word(place + 1) in ("the", "this", "these", "that", "his", "her", "its")
    if clause.tag(at) == "TO" and clause.tag(at + 1) == "VB":
        mark(at if is_definite else head, end, Factuality.SUPPOSED)
    elif not is_definite and (
        clause.word(place - 1) in _SEEKS
        or (following in (*_INDEFINITE, "DT") and (is_purpose or _gives(clause, place)))
    ):
        mark(head, at, Factuality.SUPPOSED)


def _gives(clause: Clause, place: int) -> bool:
    """Whether "for" says whom a place or an opportunity is for: "providing shade for visitors"."""
    start = max(clause.clause_start(place), place - 6)
    return not _GIVES.isdisjoint(clause.words[start:place])


def _lets(clause: Clause, place: int, mark: Mark) -> None:
    end = clause.clause_end(place + 1)
    for at in range(place + 1, min(end, place + 6)):
        if clause.tag(at) == "TO":
            mark(place + 1, end, Factuality.SUPPOSED)
            return


def _purpose(clause: Clause, place: int, mark: Mark) -> None:
    if clause.tag(place + 1) == "TO" and clause.tag(place + 2) == "VB":
        mark(place, clause.purpose_end(place + 1), Factuality.SUPPOSED)


def _as(clause: Clause, place: int, mark: Mark) -> None:
    if clause.word(place + 1) in ("if", "though"):
        mark(place, clause.clause_end(place + 2), Factuality.SUPPOSED)


def _like(clause: Clause, place: int, mark: Mark) -> None:
    if clause.word(place - 1) not in _SIMILE or clause.word(place - 2) in ("what", "it", "this", "image", "scene"):
        return
    start = place + 1
    while clause.tag(start) in ("DT", "PRP$"):
        start += 1
    mark(start, clause.noun_list(start), Factuality.SUPPOSED)


def _similar(clause: Clause, place: int, mark: Mark) -> None:
    """ "similar to a shed", "in the shape of a heart", "the impression of a library"."""
    if clause.word(place + 1) in ("of", "to"):
        start = place + 2
        while clause.tag(start) in ("DT", "PRP$"):
            start += 1
        end = clause.clause_end(start) if clause.word(place) == "impression" else clause.noun_list(start)
        mark(start, end, Factuality.SUPPOSED)


def _appears(clause: Clause, place: int, mark: Mark) -> None:
    """ "appears to be a tour bus or a shuttle"."""
    if clause.word(place + 1) == "to" and clause.word(place + 2) == "be":
        _either(clause, place + 2, mark)


def _either(clause: Clause, place: int, mark: Mark) -> None:
    """ "Either a chef or a waiter": one of them is not there."""
    if not NEGATIONS.isdisjoint(clause.words[clause.clause_start(place) : place]):
        return
    start = place + 1
    if clause.tag(start) in ("DT", "PRP$") and clause.word(start) not in ("both", "neither"):
        start += 1
    end = clause.noun_list(start)
    if "or" in clause.words[start:end]:
        mark(start, end, Factuality.SUPPOSED)


RULES: dict[str, Callable[[Clause, int, Mark], None]] = {
    **dict.fromkeys(_HEDGES, _hedge),
    **dict.fromkeys(_GENERIC, _generic),
    **dict.fromkeys(_LETS, _lets),
    **dict.fromkeys(_PURPOSE, _purpose),
    **dict.fromkeys(("appear", "appears", "seem", "seems"), _appears),
    **dict.fromkeys(("similar", "shape", "impression"), _similar),
    "either": _either,
    "can": _can,
    "for": _for,
    "as": _as,
    "like": _like,
}
