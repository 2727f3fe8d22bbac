import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigor_jax.evaluation.benchmarks.answer_letters import normalize, parse_letter, parse_letter_strict

FOUR = ("a dog", "a cat", "two birds", "None of these.")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"), ("b", "B"), ("B.", "B"), ("(B)", "B"), (" (b) ", "B"), ("B)", "B"), ("[B]", "B"), ("**B**", "B"),
        ("`B`", "B"), ('"B"', "B"), ("B\n", "B"), ("A", "A"), ("a", "A"), ("A?", "A"), ("Ｂ", "B"), ("（Ｂ）", "B"),
        ("Ⓑ", "B"), ("The answer is B", "B"), ("The answer is B.", "B"), ("the answer is (b).", "B"),
        ("Answer: B, because A is wrong", "B"), ("Answer: (B)", "B"), ("ANSWER: B", "B"), ("**Answer:** B", "B"),
        ("Answer：B", "B"), ("The correct option is C, not D", "C"), ("Option C", "C"), ("the answer is option d", "D"),
        ("My choice: 'C'", "C"), ("The answer is A because it barks", "A"), ("The answer is A.", "A"),
        ("Answer: A\nAnswer: A", "A"), ("B. a cat", "B"), ("(B) a cat", "B"), ("b) a cat", "B"), ("B: a cat", "B"),
        ("B.a cat", "B"), ("B. I am sure that A. is wrong", "B"), ("Sure!\nC. two birds", "C"), ("a cat", "B"),
        ("A CAT.", "B"), ("a dog", "A"), ("A dog", "A"), ("None of these", "D"), ("I think B", "B"),
        ("It must be C, I think", "C"), (r"\boxed{D}", "D"), ("not A but B", "B"), ("It is B，a cat", "B"),
        ("C\nThere is a dog, as in A, and a cat, as in B.", "C"), ("A is correct", "A"), ("I choose A.", "A"),
        ("B - a cat", "B"), ("The best answer is: option (B).", "B"), ("Answer:\n\nB", "B"), ("A\u00a0", "A"),
    ],
)  # fmt: skip
def test_letters_are_read(text, letter):
    assert parse_letter(text, FOUR) == letter


@pytest.mark.parametrize(
    "text",
    [
        "", " ", ".", "E", "(E)", "The answer is E", "AB", "A B", "A or B", "The answer is A or B", "Answer: A, B",
        "A. a dog\nB. a cat\nC. two birds\nD. None", "Option A is wrong, option B is right", "A big dog", "a bird",
        "The answer is a horse", "Answer: A horse stands there", "I do not know", "the cat", "В", "Б", "犬", "🐕", "1",
        "The answer is not B", "Beta", "B's", "vitamin-", "a cat or a dog", "d'accord",
    ],
)  # fmt: skip
def test_what_names_no_letter_is_none(text):
    assert parse_letter(text, FOUR) is None


@given(letter=st.sampled_from("ABCD"), text=st.text(max_size=30))
def test_letters_under_any_words(letter, text):
    assert parse_letter(text, FOUR) in {None, *"ABCD"}
    assert parse_letter(text, ()) is None
    assert parse_letter(f"{letter}\t", FOUR) == letter
    assert parse_letter(f"({letter.lower()}).", FOUR) == letter
    if letter in "CD":
        assert parse_letter(f"The answer is {letter}.", FOUR[:2]) is None


PIECES = st.sampled_from(
    ["A", "B", "C", "Z", "b", ". ", ".", " ", "The answer is ", "the answer is ", "\n", "犬", "dog"]
)


@given(st.lists(PIECES, max_size=6).map("".join))
def test_strict_letters_are_those_of_the_script(text):
    """What LLaVA's script for ScienceQA does, step by step."""
    options, named, rest = ["A", "B", "C", "D", "E"], [], text
    while "The answer is " in rest:
        rest = rest.partition("The answer is ")[2]
        if len(rest) > 1 and "A" <= rest[0] <= "Z" and rest[1] != "\n":
            named.append(rest[0])
            rest = rest[2:]  # what follows the letter belongs to the match
    if text in options:
        expected = text
    elif len(text) >= 3 and text[0] in options and text[1] == "." and text[2] == " ":
        expected = text[0]
    else:
        expected = named[0] if len(named) == 1 else None
    assert parse_letter_strict(text, FOUR[:3]) == (expected if expected in ("A", "B", "C") else None)


@pytest.mark.parametrize(
    ("answer", "plain"),
    [
        ("Yes.", "yes"),
        (" no ", "no"),
        ("T-shirt", "t-shirt"),
        ("dog..", "dog"),
        ("", ""),
        ("Élan", "élan"),
        ("a. ", "a"),
    ],
)
def test_short_answers_are_compared_plainly(answer, plain):
    assert normalize(answer) == plain
