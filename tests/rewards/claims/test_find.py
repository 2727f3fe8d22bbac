"""Claims of hard sentences, by a tagger that was taught them (always) and by NLTK's (if it is there); word lists.

The expected claims are what the grammars gave, read through by a person and corrected: they keep what is right, and are
no independent measure of it.
"""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rewards.claims.written import value, written
from tests.rewards.taught_tagger import write_tagger
from tests.rewards.test_phrases import nltk_tagger  # noqa: F401
from vigor_jax.errors import InputError
from vigor_jax.records import Span
from vigor_jax.rewards.claims.attributes import attributed_phrases
from vigor_jax.rewards.claims.claim import Relation
from vigor_jax.rewards.claims.find import Claims, ClaimWordsConfig
from vigor_jax.rewards.language.words import TOKEN
from vigor_jax.rewards.phrases import EntityPhrases, NounPhrases
from vigor_jax.rewards.sentences import split_sentences

LINES = (Path(__file__).parent / "hard_sentences.txt").read_text(encoding="utf-8").split("\n\n")
# sentence, tags, claims
HARD = [(text, tags.split(), [line[2:] for line in claims]) for text, tags, *claims in map(str.splitlines, LINES[1:])]


@pytest.fixture(scope="session")
def taught_tagger(tmp_path_factory):
    """A folder with a tagger of the hard sentences, in NLTK's layout."""
    tagged = []
    for text, tags, _ in HARD:
        words = TOKEN.findall(text)
        words[0] = words[0].lower() if words[0].istitle() else words[0]
        quoted = iter(("``", "''"))
        words = [next(quoted) if word == '"' else word for word in words]
        tagged.append(list(zip(words, tags, strict=True)))
    return write_tagger(tmp_path_factory.mktemp("tagger"), tagged, passes=12)


@pytest.fixture(scope="session")
def taught(taught_tagger):
    return NounPhrases(tagger=taught_tagger)


@pytest.fixture(scope="session", params=["taught_tagger", "nltk_tagger"])
def nouns(request):
    return NounPhrases(tagger=request.getfixturevalue(request.param))


@pytest.fixture(scope="session")
def claims(nouns):
    return Claims(nouns)


def find(claims, phrases, text):
    sentences = split_sentences(text)
    found = claims(text, sentences, phrases(text, sentences))
    for claim in found:
        places = [claim.span, claim.subject.span]
        if isinstance(claim.value, Relation):
            places.append(claim.value.object.span)
        homes = {next(s for s in sentences if s.start <= span.start < span.end <= s.end) for span in places}
        assert len(homes) == 1
        assert text[claim.subject.span.start : claim.subject.span.end].strip()
        assert claim.subject.phrase.split()[-1]
    assert [claim.span for claim in found] == sorted(claim.span for claim in found)
    return found


@pytest.mark.parametrize(("text", "_", "expected"), HARD, ids=[text for text, *_ in HARD])
def test_hard_sentences(nouns, claims, text, _, expected):
    assert written(text, find(claims, nouns, text)) == expected


@settings(deadline=None)
@given(st.lists(st.sampled_from([text for text, *_ in HARD]), max_size=6))
def test_attributes_alone_are_those_of_all_claims(taught, texts):
    claims, text = Claims(taught), " ".join(texts)
    sentences = split_sentences(text)
    phrases = taught(text, sentences)
    expected = [claim for claim in claims(text, sentences, phrases) if claim.kind == "attribute"]
    assert claims.attributes(text, sentences, phrases) == expected


@settings(deadline=None)
@given(st.lists(st.sampled_from([text for text, *_ in HARD]), min_size=1, max_size=6))
def test_what_was_read_before_changes_nothing(taught, taught_tagger, texts):
    """Sentences are kept: where they stand and what stands around them is a part of what is asked."""
    text = " ".join(texts)
    sentences = split_sentences(text)
    new = NounPhrases(tagger=taught_tagger)
    for _ in range(2):
        phrases = taught(text, sentences)
        assert phrases == new(text, sentences)
        assert Claims(taught)(text, sentences, phrases) == Claims(new)(text, sentences, phrases)


def test_there_are_enough_of_them():
    assert len(HARD) >= 60
    kinds = [line.split(" | ")[2] for *_, lines in HARD for line in lines]
    assert sum(1 for kind in kinds if kind[0].isdigit()) >= 15
    assert sum(1 for kind in kinds if ":" in kind) >= 20
    assert sum(1 for *_, lines in HARD if not lines) >= 15


def test_subjects_are_mentions_with_a_head_in_the_singular(nouns, claims):
    text = "A dog sleeps. There are three dogs in the image."
    (claim,) = find(claims, nouns, text)
    assert claim.kind == "number"
    assert claim.span == Span(24, 29)
    assert claim.subject.span == Span(30, 34)
    assert (claim.subject.phrase, claim.subject.head) == ("dog", "dog")
    assert value(claim) == "3-3~"  # for there is another one


def test_claims_of_names_in_a_list(claims):
    """A list's phrases are subjects as well, in the words of the list."""
    text = "There are three dogs in the image. Three dogs sleep on a sofa while another dog eats."
    found = written(text, find(claims, EntityPhrases(), text))
    assert found == ["three | dog | 3-3~", "Three | dog | 3-3~"]
    text = "The bowl in the center of the scene is blue."
    assert "blue | bowl | color:blue" in written(text, find(claims, EntityPhrases(), text))


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(sorted({word for text, *_ in HARD for word in TOKEN.findall(text)} | {"\n"})), max_size=40)
)
def test_every_span_lies_in_one_sentence(taught, words):
    find(Claims(taught), taught, " ".join(words))


@pytest.mark.parametrize(
    "text", ["It is on the left.", "On the left, there is.", "Two.", "Under.", "Red and", "Two of them."]
)
def test_words_of_claims_without_things(taught, text):
    assert find(Claims(taught), taught, text) == []


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_read(taught, text):
    find(Claims(taught), taught, text)


def test_lists_that_a_user_replaces(taught, tmp_path):
    (tmp_path / "numbers.txt").write_text("[numbers]\nseveral: 5-\n[introductions]\nthere are\n")
    (tmp_path / "attributes.txt").write_text("# Of my own\n[make]\nwooden\nstriped\n")
    config = ClaimWordsConfig(numbers=tmp_path / "numbers.txt", attributes=tmp_path / "attributes.txt")
    text = (
        "There are three dogs in the image. There is only one horse, and several sheep. A white fence, a wooden gate."
    )
    found = written(text, find(Claims(taught, config), taught, text))
    assert found == ["wooden | gate | make:wooden"]  # without its heading "same plural", sheep are no plural
    (tmp_path / "numbers.txt").write_text("[numbers]\nseveral: 5-\n[same plural]\nsheep\n")
    assert written(text, find(Claims(taught, config), taught, text))[0] == "several | sheep | 5-~"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("numbers", "two: 2", r"line 1: expected a heading such as \[numbers\] first, got 'two: 2'"),
        (
            "numbers",
            "[number]\ntwo: 2",
            r"line 1: expected a heading of this list, got \[number\]; the nearest",
        ),
        ("numbers", "[numbers]\n\ntwo", "line 3: expected words, a colon and a number or range"),
        ("numbers", "[numbers]\ntwo: 3-2", "line 2: expected a number from 1, or a range such as"),
        ("numbers", "[numbers]\nno: 0", "line 2: expected a number from 1, or a range such as"),
        ("relations", "[relations]\nnear: by", "line 2: expected one of the relations left, right, above"),
        ("attributes", "[color]\nred\nblue red", "line 3: 'red' is a word for 'red' already; leave out one"),
        ("attributes", "[color]\n~ red", 'line 2: expected a value and other words for it before "~", got none'),
        ("attributes", "(persons)\nman", r"line 1: expected a heading of this list, got \(persons\)"),
        ("places", "[lefts]\nleft", r"line 1: expected a heading of this list, got \[lefts\]; the nearest heading"),
    ],
)
def test_lists_with_mistakes(taught, tmp_path, name, content, message):
    (tmp_path / "list.txt").write_text(content)
    with pytest.raises(InputError, match=rf"list\.txt, {message}"):
        Claims(taught, ClaimWordsConfig(**{name: tmp_path / "list.txt"}))


def test_no_such_list(taught, tmp_path):
    with pytest.raises(InputError, match=r"word list .*none\.txt: expected a text file in UTF-8"):
        Claims(taught, ClaimWordsConfig(places=tmp_path / "none.txt"))


@pytest.mark.parametrize(
    ("text", "asked", "some_rivals", "no_rivals"),
    [
        ("A red car passes.", "red car", {"blue car", "white car"}, {"red car"}),
        ("A metal fence stands there.", "metal fence", {"wood fence"}, {"metal fence", "wood metal fence"}),
        (
            "A black-and-white cow waits.",
            "black and white cow",
            {"brown cow"},
            {"black cow", "white cow", "gray white cow"},
        ),
        ("A silver car passes.", "silver car", {"red car"}, {"gray car", "white car"}),  # they look too much alike
    ],
)
def test_what_to_ask_a_detector(nltk_tagger, text, asked, some_rivals, no_rivals):  # noqa: F811
    nouns = NounPhrases(tagger=nltk_tagger)
    claims = Claims(nouns)
    (claim,) = find(claims, nouns, text)
    phrase, rivals = attributed_phrases(claim, claims.attribute_words)
    assert phrase == asked
    assert some_rivals <= set(rivals)
    assert not no_rivals & set(rivals)
