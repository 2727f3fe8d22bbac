"""Refinement: exactly the sentences with absent things go, and nothing else changes."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigor_jax.errors import InputError
from vigor_jax.records import Dropped, Edit, Repaired, Signal, Span, Verdict
from vigor_jax.rewards.refine import keep_sentences, refine
from vigor_jax.rewards.sentences import split_sentences

CAR = (
    "The photo shows a vintage blue car parked on a brick road. Its chrome bumper shines in the sun. "
    "A person with an umbrella is walking past the car. Behind the car there is a low stone wall."
)


def signal(text, phrase, *, absent=True, score=0.1):
    """A signal on every place where a phrase stands."""
    starts = [i for i in range(len(text)) if text.startswith(phrase, i)]
    assert starts, f"{phrase} is not in the text"
    spans = tuple(Span(start, start + len(phrase)) for start in starts)
    return Signal(phrase, spans, float(absent), float(not absent), score, absent)


def verdict(*signals, stream="detector"):
    return Verdict("a.jpg", 2, stream, signals)


def test_a_car_on_a_brick_road_and_a_person_who_is_not_there():
    found = [signal(CAR, phrase, absent=False, score=0.8) for phrase in ("car", "brick road", "bumper", "umbrella")]
    refined = refine(CAR, [verdict(*found, signal(CAR, "person"))])
    assert refined.text == (
        "The photo shows a vintage blue car parked on a brick road. Its chrome bumper shines in the sun. "
        "Behind the car there is a low stone wall."
    )
    (dropped,) = refined.dropped
    assert CAR[slice(*dropped.span)] == "A person with an umbrella is walking past the car."
    assert dropped.reason == 'mentions "person", which is not there (0.10)'


def test_penalties_alone_drop_nothing():
    """A sentence that the reward model dislikes costs a penalty, but only what is absent is left out."""
    disliked = Signal("0 conjecture", (Span(0, 57),), 0.9, 0.1, 0.1)
    assert refine(CAR, [verdict(disliked, stream="reward_model")]).text == CAR


def test_several_things_and_streams_in_one_sentence():
    first = verdict(signal(CAR, "person"), signal(CAR, "umbrella", score=0.2))
    second = verdict(signal(CAR, "person"), stream="own")
    (dropped,) = refine(CAR, [first, second]).dropped
    assert dropped.reason == (
        'mentions "person", which is not there (0.10); mentions "umbrella", which is not there (0.20)'
    )


def test_a_thing_that_is_mentioned_in_several_sentences():
    refined = refine(CAR, [verdict(signal(CAR, "car"))])
    assert refined.text == "Its chrome bumper shines in the sun."
    assert len(refined.dropped) == 3


def test_a_span_over_several_sentences():
    whole = Signal("0", (Span(CAR.index("chrome"), CAR.index("umbrella")),), 1.0, 0.0, 0.0, True)
    refined = refine(CAR, [verdict(whole)])
    assert refined.text == (
        "The photo shows a vintage blue car parked on a brick road. Behind the car there is a low stone wall."
    )


def test_a_span_that_ends_where_a_sentence_begins_leaves_that_one():
    text = "A cat. A dog."
    assert refine(text, [verdict(Signal("cat", (Span(0, 7),), 1.0, 0.0, 0.0, True))]).text == "A dog."


@pytest.mark.parametrize(
    ("text", "absent", "expected"),
    [
        ("A cat.\n\nA dog.  A bird.", "cat", "A dog.  A bird."),
        ("A cat.\n\nA dog.  A bird.", "dog", "A cat.\n\nA bird."),
        ("A cat.  A dog.\n\nA bird.", "dog", "A cat.\n\nA bird."),
        ("A cat.  A dog.\tA bird.", "dog", "A cat. A bird."),
        ("A cat.\nA dog.\n\nA bird.", "dog", "A cat.\n\nA bird."),
        (" A cat.  A dog.\n", "bird, absent elsewhere", "A cat.  A dog."),
        ("A cat.  A dog. ", "dog", "A cat."),
        ("No end", "end", ""),
        ("A cat.\n\nA cat.", "cat", ""),
        ("", "cat", ""),
    ],
)
def test_spacing(text, absent, expected):
    signals = [signal(text, absent)] if absent in text else []
    assert refine(text, [verdict(*signals)]).text == expected


@pytest.mark.parametrize("span", [Span(0, 7), Span(-1, 2), Span(3, 2)])
def test_a_span_outside_the_text_is_refused(span):
    with pytest.raises(InputError, match=r"detector on a\.jpg, candidate 2: 'cat' is at characters .* of a text of 6"):
        refine("A cat.", [verdict(Signal("cat", (span,), 1.0, 0.0, 0.1, True))])


def test_what_only_continues_goes_with_it():
    refined = refine(CAR, [verdict(signal(CAR, "vintage"))], drop_continuations=True)
    assert (
        refined.text == "A person with an umbrella is walking past the car. Behind the car there is a low stone wall."
    )
    assert [each.reason for each in refined.dropped] == [
        'mentions "vintage", which is not there (0.10)',
        "continues a sentence that was left out",
    ]
    assert refine(CAR, [verdict(signal(CAR, "vintage"))]).text.startswith("Its chrome bumper")
    assert refine(CAR, [verdict(signal(CAR, "person"))], drop_continuations=True).text.count(".") == 3


@pytest.mark.parametrize(
    ("text", "absent", "expected"),
    [
        ("A dog runs. It is wet. They bark. A cat sits.", "dog", "A cat sits."),
        ("A dog runs. It is wet.", "dog", ""),
        ("A dog runs.\n\nIt is wet.\n\nA cat sits.", "dog", "A cat sits."),
        ("A dog runs. It is a sunny day.", "dog", "It is a sunny day."),
        ("A cat sits. A dog runs. It is wet. The sky is blue.", "dog", "A cat sits. The sky is blue."),
        ("A cat sits. It is wet. A dog runs.", "dog", "A cat sits. It is wet."),
        ("No one is here. It is wet.", "bird", "No one is here. It is wet."),
    ],
)
def test_continuations(text, absent, expected):
    signals = [signal(text, absent)] if absent in text else []
    assert refine(text, [verdict(*signals)], drop_continuations=True).text == expected


def test_a_sentence_that_is_already_there_is_kept_once():
    text = "A cat sits. A dog runs. A cat sits!\n\nA dog runs. A bird sings."
    refined = refine(text, [], drop_repetitions=True)
    assert refined.text == "A cat sits. A dog runs.\n\nA bird sings."
    assert {each.reason for each in refined.dropped} == {"repeats an earlier sentence"}
    assert refine(text, []).text == text
    refined = refine(text, [verdict(signal(text, "dog"))], drop_repetitions=True)
    assert refined.text == "A cat sits.\n\nA bird sings."
    assert [each.reason.split()[0] for each in refined.dropped] == ["mentions", "repeats", "mentions"]


def test_the_first_copy_that_is_left_is_kept():
    text = "A dog runs. It is wet. A cat sits. It is wet."
    refined = refine(text, [verdict(signal(text, "dog"))], drop_continuations=True, drop_repetitions=True)
    assert refined.text == "A cat sits. It is wet."


def test_what_is_denied_and_is_there():
    text = "There is no person. A dog runs."
    denied = Signal("person", (Span(12, 18),), 1.0, 0.0, 0.71, absent=True, denied=True)
    (dropped,) = refine(text, [verdict(denied)]).dropped
    assert dropped.reason == 'says that there is no "person", and there is (0.71)'


TEXTS = st.lists(
    st.tuples(
        st.sampled_from(["A cat sits.", "Mr. Lee waves!", "Is it red?", "no end"]), st.sampled_from([" ", "\n\n"])
    ),
    max_size=6,
).map(lambda pairs: "".join(sentence + gap for sentence, gap in pairs))


@given(TEXTS, st.data())
def test_what_is_dropped_is_what_spans_touch(text, data):
    ends = st.lists(st.integers(0, len(text)), min_size=2, max_size=2, unique=True).map(sorted)
    spans = data.draw(st.lists(ends.map(lambda pair: Span(*pair)), max_size=4)) if text else []
    refined = refine(text, [verdict(Signal("thing", tuple(spans), 1.0, 0.0, 0.0, True))])
    absent = {i for span in spans for i in range(*span)}
    sentences = split_sentences(text)
    gone = [sentence for sentence in sentences if absent.intersection(range(*sentence))]
    assert refined.dropped == tuple(Dropped(span, 'mentions "thing", which is not there (0.00)') for span in gone)
    kept = [text[slice(*sentence)] for sentence in sentences if sentence not in gone]
    assert refined.text.split() == " ".join(kept).split()
    assert [refined.text[slice(*span)] for span in split_sentences(refined.text)] == kept
    if not gone:
        assert refined.text == text.strip()
    assert refined.text == keep_sentences(text, sentences, [sentence not in gone for sentence in sentences])


PETS = "Two dogs sleep on the left. It is quiet. A red ball lies at the top."


def claim(text, kind, old, new=None, *, absent=True, label=None):
    """A signal on words that a claim stands in, with an edit if it can be repaired."""
    span = Span(text.index(old), text.index(old) + len(old))
    edits = (Edit(span, new),) if new is not None else ()
    return Signal(label or old, (span,), float(absent), float(not absent), 0.0, absent, kind=kind, edits=edits)


def test_wrong_claims_drop_their_sentences_or_are_repaired():
    found = verdict(claim(PETS, "number", "Two", "Three", label="dog: two"), claim(PETS, "attribute", "red"))
    dropped = refine(PETS, [found], drop_continuations=True)
    assert dropped.text == ""
    assert [each.reason for each in dropped.dropped] == [
        'claims "dog: two", which is wrong',
        "continues a sentence that was left out",
        'claims "red", which is wrong',
    ]
    repaired = refine(PETS, [found], drop_continuations=True, repair=True)
    assert repaired.text == "Three dogs sleep on the left. It is quiet."
    assert repaired.repaired == (Repaired(Span(0, 3), "Two", "Three", 'claims "dog: two", which is wrong'),)
    assert [PETS[slice(*each.span)] for each in repaired.dropped] == ["A red ball lies at the top."]


@pytest.mark.parametrize("repair", [False, True])
def test_kinds_that_are_not_named_stay(repair):
    found = verdict(claim(PETS, "number", "Two", "Three"), claim(PETS, "attribute", "red"), signal(PETS, "quiet"))
    refined = refine(PETS, [found], repair=repair, claims=("attribute",))
    assert refined.text == "Two dogs sleep on the left."
    assert refined.repaired == ()
    nothing = refine(PETS, [verdict(claim(PETS, "number", "Two", "Three"))], repair=repair, claims=())
    assert (nothing.text, nothing.dropped, nothing.repaired) == (PETS, (), ())


def test_right_claims_change_nothing():
    assert refine(PETS, [verdict(claim(PETS, "number", "Two", absent=False))], repair=True).text == PETS


def test_what_is_repaired_in_a_sentence_that_goes_is_not_told():
    found = verdict(claim(PETS, "number", "Two", "Three"), signal(PETS, "dogs"))
    refined = refine(PETS, [found], repair=True)
    assert refined.text == "It is quiet. A red ball lies at the top."
    assert refined.repaired == ()


def test_repairs_that_contradict_each_other():
    """The first is made; for the other the sentence would have to say something else, so it goes."""
    number = claim(PETS, "number", "Two dogs", "Three dogs")
    same, other = claim(PETS, "number", "Two dogs", "Three dogs"), claim(PETS, "attribute", "dogs", "cats")
    refined = refine(PETS, [verdict(number), verdict(same, stream="own")], repair=True)
    assert refined.text == PETS.replace("Two", "Three")
    assert len(refined.repaired) == 1
    refined = refine(PETS, [verdict(number), verdict(other, stream="own")], repair=True)
    assert refined.text == "It is quiet. A red ball lies at the top."


@pytest.mark.parametrize("span", [Span(0, 70), Span(-1, 2), Span(3, 2)])
def test_a_repair_outside_the_text_is_refused(span):
    wrong = Signal("dog: two", (Span(0, 3),), 1.0, 0.0, 0.0, True, kind="number", edits=(Edit(span, "Three"),))
    with pytest.raises(InputError, match=r"'dog: two' is at characters .* of a text of 68; score"):
        refine(PETS, [verdict(wrong)], repair=True)


@given(TEXTS, st.data())
def test_repairs_replace_their_words_and_nothing_else(text, data):
    words = [Span(*match.span()) for match in re.finditer(r"\w+", text)]
    places = data.draw(st.lists(st.sampled_from(words), max_size=4, unique=True)) if words else []
    new = st.sampled_from(["three", "Blue", "on the right"])
    edits = sorted((Edit(place, data.draw(new)) for place in places), key=lambda edit: edit.span)
    wrong = [Signal("x", (edit.span,), 1.0, 0.0, 0.0, True, kind="place", edits=(edit,)) for edit in edits]
    refined = refine(text, [verdict(*wrong)], repair=True)
    expected = text
    for span, replacement in reversed(edits):
        expected = expected[: span.start] + replacement + expected[span.end :]
    assert refined.text == expected.strip()
    assert refined.dropped == ()
    assert [(each.span, each.old, each.new) for each in refined.repaired] == [
        (span, text[slice(*span)], replacement) for span, replacement in edits
    ]
