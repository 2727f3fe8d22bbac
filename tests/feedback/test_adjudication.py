"""Several people's judgments as one."""

from tests.feedback.annotations import annotation, judgments, random_annotations
from vigor_jax.feedback.adjudication import adjudicate

TEXT = "A red car. A dog."


def said(first, second=(), **others):
    return annotation(TEXT, first, second, **others)


def test_one_person_is_believed():
    found = random_annotations(50)
    together = adjudicate(judgments(*(("1", each) for each in found)))
    assert together == (found, [])


def test_the_majority_decides_whether_a_sentence_is_wrong_and_then_how():
    people = judgments(
        ("1", said(["object"])), ("2", said(["attribute:color", "object"])), ("3", said([])), ("4", said(["object"]))
    )  # fmt: skip
    (together,), undecided = adjudicate(people)
    assert together == said(["object"])
    assert not undecided


def test_three_people_with_three_kinds_agree_that_it_is_wrong_and_not_on_how():
    people = judgments(("1", said(["object"])), ("2", said(["location"])), ("3", said([])))
    none, (undecided,) = adjudicate(people)
    assert not none
    assert (undecided.what, undecided.sentence, undecided.text) == ("kinds", 1, "A red car.")
    assert undecided.votes == {"1": "object", "2": "location", "3": "no error"}


def test_even_votes_decide_nothing():
    none, (undecided,) = adjudicate(judgments(("1", said([])), ("2", said(["object"]))))
    assert not none
    assert (undecided.what, undecided.is_left_out) == ("error", True)


def test_an_even_vote_on_creativity_leaves_the_description():
    (together,), (undecided,) = adjudicate(judgments(("1", said(["creative"])), ("2", said([]))))
    assert together == said([])
    assert (undecided.what, undecided.is_left_out) == ("creative", False)


def test_weights():
    people = judgments(("1", said([])), ("2", said(["object"])), ("3", said(["object"])))
    assert adjudicate(people).annotations == [said(["object"])]
    assert adjudicate(people, {"1": 3}).annotations == [said([])]
    assert adjudicate(people, {"1": 2}).undecided[0].what == "error"
    assert adjudicate(people, {"2": 0, "3": 0}).annotations == [said([])]
    assert adjudicate(people, {"1": 0, "2": 0, "3": 0}) == ([], [])


def test_attributes_details_and_what_is_missing():
    people = judgments(
        ("1", said(["attribute:color"], detail=2, missing=("a Tree",))),
        ("2", said(["attribute:color"], detail=4, missing=("a tree", "a bus"))),
        ("3", said(["attribute"], detail=5)),
    )
    (together,), _ = adjudicate(people)
    assert together == said(["attribute:color"], detail=4, missing=("a Tree", "a bus"))
    even = judgments(("1", said(["attribute:color"], detail=2)), ("2", said(["attribute:size"], detail=3)))
    assert adjudicate(even).annotations == [said(["attribute"], detail=2)]


def test_other_sentences_are_not_compared():
    whole = annotation("A red car", [])
    other = annotation("A red car", [])
    other = type(other)(other.image, other.description, (other.sentences[0], other.sentences[0]))
    none, (undecided,) = adjudicate(judgments(("1", whole), ("2", other)))
    assert not none
    assert undecided.what == "sentences"
