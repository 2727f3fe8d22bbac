"""Where a sentence says that something is not there, and how far that reaches."""

from collections.abc import Callable

from vigor_jax.rewards.language.clause import ABOUT, NEGATIONS, Clause
from vigor_jax.rewards.language.words import listed
from vigor_jax.rewards.mentions import Factuality

Mark = Callable[[int, int, Factuality], None]  # of the words from one place to another

_NO_DENIAL = frozenset(
    [
        "longer",
        "doubt",
        "matter",
        "wonder",
        "problem",
        "problems",
        "way",
        "means",
        "less",
        "fewer",
        "sooner",
        "later",
        "idea",
        "question",
        "questions",
        "time",
        "better",
        "worse",
        "different",
        "stranger",
        "ordinary",
        ",",
        ".",
        ":",
        "!",
    ]
)
_OTHER = listed("other")
_NOT_WITHOUT = frozenset(["doubt", "question", "hesitation", "fail", "exception"])
_NOT_ANY = frozenset(("any", "a", "an", "single"))
# "not only a dog", "not many people", "not far from a house", "not all of the cars"
_NOT_STOPS = listed("not stops")
_NOT_PASSED = listed("not passed")
# Verbs whose bare object is denied with them: "does not have wheels". True: they speak of the picture or its viewer.
_HAVE = dict.fromkeys(
    listed("have"),
    False,
) | dict.fromkeys(
    listed("show"),
    True,
)  # fmt: skip
_SHOWN = listed("shown")
_PICTURE = listed("picture")
_LONGEST_HEADING = 10  # words and marks, such as those of "1. **Main subject**"
_LACKS = listed("lacks")
_PLENTY = frozenset(["shortage", "lack", "absence", "dearth", "scarcity"])


def _no(clause: Clause, place: int, mark: Mark) -> None:
    following, before = clause.word(place + 1), clause.tag(place - 1)
    if following == "one":
        _nobody(clause, place, mark)
        return
    # "a no parking sign"; "No. 7"; "no two dogs are alike"; "no longer"
    is_number = following[:1].isdigit() or clause.tag(place + 1) == "CD"
    if before in ("DT", "PRP$") or following in _NO_DENIAL or not following or is_number:
        return
    if following in _PLENTY:
        mark(place + 1, place + 2, Factuality.QUOTED)
        return
    _deny_list(clause, place + 1, _holder(clause, place), mark)
    _object_of_nobody(clause, place + 1, mark)


def _holder(clause: Clause, place: int) -> Factuality:
    """Whether "no" denies a thing of the picture, or of something in it: "with no lid", "the man has no hat"."""
    before = clause.word(place - 1)
    if before == "with":
        return Factuality.DENIED_HERE
    if before in ("have", "has", "had", "having") or (before in _HAVE and not _HAVE[before]):
        return Factuality.DENIED if _about_picture(clause, place - 1) else Factuality.DENIED_HERE
    return Factuality.DENIED


def _about_picture(clause: Clause, verb: int) -> bool:
    subject = clause.words[clause.clause_start(verb) : verb]
    return bool({"image", "picture", "photo", "photograph", "scene"} & set(subject))


def _deny_list(clause: Clause, start: int, factuality: Factuality, mark: Mark) -> int:
    """Denies a list of things; those "other" than what was named are only supposed. Returns its end."""
    while clause.tag(start) in ("DT", "PRP$", "CD") or clause.word(start) == "single":
        start += 1
    end = clause.noun_list(start)
    if _OTHER & set(clause.words[start:end]) or _has_exception(clause):
        mark(start, end, Factuality.SUPPOSED)
        return end
    if factuality is Factuality.DENIED and _is_restricted(clause, end):
        factuality = Factuality.DENIED_HERE
    mark(start, end, factuality)
    for at in range(start, end):
        if clause.words[at] in ABOUT and clause.word(at + 1) == "of":
            mark(at, at + 1, Factuality.QUOTED)
    return end


def _has_exception(clause: Clause) -> bool:
    """Whether one of what is denied is there: "apart from a cat, there are no animals"."""
    return any(
        word in ("besides", "except", "excepting", "excluding")
        or (word, clause.word(place + 1)) in (("apart", "from"), ("aside", "from"), ("other", "than"))
        for place, word in enumerate(clause.words)
    )


def _is_restricted(clause: Clause, end: int) -> bool:
    """Whether what follows denied things says where they are not, or which are not: "no dog on the bed"."""
    word, tag = clause.word(end), clause.tag(end)
    while word in ("is", "are", "was", "were", "can", "be", "to", "clearly", "that"):
        end += 1
        word, tag = clause.word(end), clause.tag(end)
    if word in _SHOWN:
        return clause.word(end + 1) in ("in", "on", "at", "within") and not _names_picture(clause, end + 2)
    if word in ("in", "within", "throughout") and _names_picture(clause, end + 1):
        return False
    return tag in ("IN", "TO", "WDT", "WP", "WRB") or tag.startswith("VB")


def _names_picture(clause: Clause, place: int) -> bool:
    """Whether "the image", "this picture", "view" begins there."""
    while clause.word(place) in ("the", "this", "that", "entire", "whole", "given"):
        place += 1
    return clause.word(place) in _PICTURE


def _not(clause: Clause, place: int, mark: Mark) -> None:
    if clause.word(place - 1) in ("or", "if", "whether", "why") or clause.word(place + 1) in _NOT_STOPS:
        return
    at, verb = place + 1, place - 1
    if clause.word(at) == "in" and _names_picture(clause, at + 1):
        _deny_subject(clause, place, Factuality.DENIED, mark)
        return
    while clause.is_verb(at) or clause.word(at) in _NOT_PASSED:
        if clause.word(at) in _SHOWN and clause.word(at) != "there" and clause.word(at - 1) not in ("there", "to"):
            break
        if clause.is_verb(at):
            verb = at
        at += 1
    word, passed = clause.word(at), clause.word(verb)
    if word in _SHOWN:
        _deny_subject(clause, place, Factuality.DENIED, mark)
    elif word in _NOT_ANY:
        if clause.word(at + 1) not in ("lot", "few", "of", "little", "bit"):
            _deny_list(clause, at + 1, _by_verb(clause, place, verb), mark)
    elif word == "one" and clause.word(at + 1) != "of":
        _deny_list(clause, at + 1, _by_verb(clause, place, verb), mark)
    elif (
        passed in _HAVE and verb > place and clause.tag(at).startswith(("NN", "JJ")) and word not in ("enough", "much")
    ):
        _deny_list(clause, at, _by_verb(clause, place, verb), mark)


def _by_verb(clause: Clause, place: int, verb: int) -> Factuality:
    """Whether the verb speaks of the picture ("the image shows no dog") or of something in it ("he holds no dog")."""
    passed = clause.word(verb)
    if passed in _HAVE:
        return Factuality.DENIED if _HAVE[passed] or _about_picture(clause, place) else Factuality.DENIED_HERE
    return Factuality.DENIED if verb <= place else Factuality.DENIED_HERE


def _deny_subject(clause: Clause, place: int, factuality: Factuality, mark: Mark) -> None:
    """Denies the subject of "are not visible": the first nouns of the clause, not those behind a preposition."""
    start = clause.clause_start(place)
    while clause.word(start - 1) in ("and", "or") and clause.is_noun[start - 2]:
        start = clause.clause_start(start - 1)
    while start < place and not clause.is_noun[start]:
        if clause.is_verb(start) or clause.tag(start) == "IN":
            return
        start += 1
    end = start
    while end < place and (
        clause.is_noun[end] or clause.word(end) in ("and", "or", "the", "a", "an", ",") or clause.tag(end) == "POS"
    ):
        end += 1
        if clause.tag(end - 1) == "POS":
            start = end
    mark(start, end, factuality)


def _without(clause: Clause, place: int, mark: Mark) -> None:
    following = clause.word(place + 1)
    if following in ("a", "any"):
        following = clause.word(place + 2)
    if following in _NOT_WITHOUT or clause.word(place - 1) == "not":
        return
    is_certain = clause.word(place + 1) in ("the", "this", "these", "his", "her", "its", "their")
    if is_certain and not {"would", "could", "might"}.isdisjoint(clause.words):
        return  # "without the umbrella she would get wet": she has it
    _deny_list(clause, place + 1, Factuality.DENIED_HERE, mark)


def _neither(clause: Clause, place: int, mark: Mark) -> None:
    if clause.word(place + 1) == "of":
        _nobody(clause, place, mark)
    elif clause.tag(place + 1) in ("DT", "PRP$") and clause.word(place + 1) not in ("a", "an", "any"):
        _object_of_nobody(clause, place + 1, mark)  # "neither the man nor the woman wears a hat"
    elif clause.tag(place + 1) != "IN":
        end = _deny_list(clause, place + 1, Factuality.DENIED, mark)
        _object_of_nobody(clause, end, mark)


def _nor(clause: Clause, place: int, mark: Mark) -> None:
    if clause.is_verb(place + 1):
        at = place + 1
        while clause.is_verb(at) or clause.tag(at) in ("PRP", "EX") or clause.word(at) == "there":
            at += 1
        if clause.word(at) in _NOT_ANY:
            _deny_list(clause, at, Factuality.DENIED, mark)


def _nobody(clause: Clause, place: int, mark: Mark) -> None:
    mark(place, place + 1, Factuality.QUOTED)
    _object_of_nobody(clause, place + 1, mark)


def _object_of_nobody(clause: Clause, start: int, mark: Mark) -> None:
    """What those do not have of whom none does: "none of the people are wearing a hat"."""
    end = clause.clause_end(start)
    verb = next((at for at in range(start, end) if clause.is_verb(at) and clause.word(at) not in _SHOWN), end)
    while clause.is_verb(verb + 1):
        verb += 1
    following = clause.word(verb + 1)
    if clause.word(verb) in _HAVE and (following in _NOT_ANY or clause.tag(verb + 1).startswith(("NN", "JJ"))):
        _deny_list(clause, verb + 1, Factuality.DENIED_HERE, mark)


def _zero(clause: Clause, place: int, mark: Mark) -> None:
    _deny_list(clause, place + 1, Factuality.DENIED, mark)


def _lack(clause: Clause, place: int, mark: Mark) -> None:
    word = clause.word(place)
    following = clause.word(place + 1)
    if clause.word(place - 1) in ("no", "not", "n't") or not (
        following == "of" or (word, following) == ("free", "from")
    ):
        return
    mark(place, place + 1, Factuality.QUOTED)
    _deny_list(clause, place + 2, Factuality.DENIED if word in ("absence", "lack") else Factuality.DENIED_HERE, mark)


def _lacks(clause: Clause, place: int, mark: Mark) -> None:
    if clause.word(place - 1) not in ("not", "n't") and clause.word(place + 1) != "in":
        factuality = Factuality.DENIED if _about_picture(clause, place) else Factuality.DENIED_HERE
        _deny_list(clause, place + 1, factuality, mark)


def _absent(clause: Clause, place: int, mark: Mark) -> None:
    if clause.word(place) == "missing" and _has_object(clause, place):
        if clause.tag(place - 1) not in ("DT", "PRP$", "JJ") and clause.word(place - 1) not in ("not", "n't"):
            _deny_list(clause, place + 1, Factuality.DENIED_HERE, mark)
        return
    ends = clause.tag(place + 1) in ("IN", ".", ",", "", "CC") and clause.word(place + 1) != "of"
    if ends and clause.word(place - 1) in ("is", "are", "completely", "entirely"):
        _deny_subject(clause, place - 1, Factuality.DENIED, mark)


def _has_object(clause: Clause, missing: int) -> bool:
    """ "A car missing its bumper", "it is missing teeth"; who is "missing the ball" does not hit it."""
    is_told = clause.word(missing - 1) in ("is", "are", "was", "were", "'s")
    begins = ("DT", "PRP$", "CD", "JJ", "NN") if is_told else ("DT", "PRP$", "CD")
    return clause.tag(missing + 1).startswith(begins) and clause.word(missing + 1) != "the"


def _instead(clause: Clause, place: int, mark: Mark) -> None:
    if clause.word(place + 1) in ("of", "than"):
        start = place + 2
        while clause.tag(start) in ("DT", "PRP$"):
            start += 1
        mark(start, clause.noun_list(start), Factuality.SUPPOSED)


def _hardly(clause: Clause, place: int, mark: Mark) -> None:
    if clause.word(place + 1) == "any":
        mark(place + 2, clause.noun_list(place + 2), Factuality.SUPPOSED)


def _heading(clause: Clause, place: int, mark: Mark) -> None:
    """ "People: none", "Animals: there are no animals": the heading does not say that they are there."""
    if place <= _LONGEST_HEADING and not NEGATIONS.isdisjoint(clause.words[place + 1 :]):
        mark(0, place, Factuality.QUOTED)


RULES: dict[str, Callable[[Clause, int, Mark], None]] = {
    "no": _no,
    ":": _heading,
    **dict.fromkeys(("not", "n't", "cannot"), _not),
    "without": _without,
    "neither": _neither,
    "nor": _nor,
    **dict.fromkeys(("none", "nobody", "noone", "no-one"), _nobody),
    "zero": _zero,
    **dict.fromkeys(_LACKS, _lack),
    **dict.fromkeys(("lacks", "lacking", "lacked"), _lacks),
    **dict.fromkeys(("absent", "missing"), _absent),
    **dict.fromkeys(("instead", "rather"), _instead),
    **dict.fromkeys(("hardly", "barely", "scarcely"), _hardly),
}
