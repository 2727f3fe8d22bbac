"""The list of LVIS's categories: the file itself, and what it finds in captions."""

import importlib.util
import json
import os
import re
from pathlib import Path

import nltk
import pytest

from tests.rewards.test_phrases import CAPTIONS, found, nltk_tagger, small_tagger  # noqa: F401 (fixtures)
from vigor_jax.errors import InputError
from vigor_jax.records import Span
from vigor_jax.rewards.entities import COCO, LVIS, EntityPhrases
from vigor_jax.rewards.language.nouns import NounPhrases
from vigor_jax.rewards.language.words import singular
from vigor_jax.rewards.phrases import PhrasesConfig, make_phrases
from vigor_jax.rewards.sentences import split_sentences

ROOT = Path(__file__).resolve().parents[2]
DENIED = ROOT / "scripts" / "entities_denied.txt"


def read(path):
    """Pairs of names and plurals, a category each, without the extractor's reader."""
    lines = [line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    halves = [line.partition(" |") for line in lines if line]
    assert all(bar for _, bar, _ in halves)  # otherwise the rules of English would add plurals
    return [(names.split(", "), plurals.strip().split(", ") if plurals else []) for names, _, plurals in halves]


@pytest.fixture(scope="module")
def categories():
    return read(LVIS)


@pytest.fixture(scope="module")
def lvis(nltk_tagger):  # noqa: F811
    return make_phrases(PhrasesConfig("entities", entities="lvis", tagger=nltk_tagger))


def test_the_list_is_sorted_and_has_each_name_once(categories):
    forms = [form for names, plurals in categories for form in (*names, *plurals)]
    assert len(forms) == len(set(forms))
    lines = [f"{', '.join(names)} | {', '.join(plurals)}".rstrip() for names, plurals in categories]
    assert lines == sorted(lines)
    assert all(re.fullmatch(r"[a-z]+(?:[ -][a-z]+)*", form) for form in forms), "a form that no caption matches"
    assert all(plurals == sorted(plurals) for _, plurals in categories)


def test_the_head_and_the_page_say_how_many(categories):
    counts = (
        f"{len(categories):,} categories",
        f"{sum(len(names) for names, _ in categories):,} names",
        f"{sum(len(plurals) for _, plurals in categories):,} plurals",
    )
    head = LVIS.read_text(encoding="utf-8").split("\n\n")[0]
    assert head.startswith(f"# {', '.join(counts)}\n")
    assert "CC BY 4.0" in head
    page = " ".join((ROOT / "docs" / "rewards.md").read_text(encoding="utf-8").split())
    assert all(count in page for count in counts)
    assert "CC BY 4.0" in page
    assert f"{len(categories):,}" in PhrasesConfig.__doc__


def last_word(form):
    return re.split("[ -]", form)[-1]


def test_each_plural_leads_back(categories):
    """By our rules for singulars, which the list was not made with."""
    wrong = {
        last_word(plural)
        for names, plurals in categories
        for plural in plurals
        if singular(last_word(plural)) not in set(map(last_word, names))
    }
    # Words that detectors know in the plural only, and a brand.
    assert wrong == {"glasses", "headphones", "jeans", "leggings", "sharpies"}


def test_each_plural_leads_back_in_wordnet(categories):
    try:
        nltk.data.find("corpora/wordnet.zip")
    except LookupError:
        pytest.skip("needs WordNet")
    from nltk.corpus import wordnet

    wrong = set()
    for names, plurals in categories:
        ends = set(map(last_word, names))
        known = {end for end in ends if wordnet.synsets(end, "n")}
        for last in map(last_word, plurals):
            if not (known & set(wordnet._morphy(last, "n")) or singular(last) in ends - known):
                wrong.add(last)
    assert wrong == {"syringes"}  # to WordNet's table of exceptions those of a nymph


def test_what_is_denied_is_not_in_the_list(categories):
    denied = [line.partition("#")[0].strip().lower() for line in DENIED.read_text(encoding="utf-8").splitlines()]
    everywhere = {line for line in denied if line and ":" not in line}
    assert len(everywhere) > 150
    assert not everywhere & {form for names, plurals in categories for form in (*names, *plurals)}


def test_coco_is_in_the_list(categories):
    """Every category of COCO by its name, and the other names that are not denied or another category's."""
    firsts = {names[0] for names, _ in categories}
    coco = [line.split(", ") for line in COCO.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert len(coco) == 80
    assert {names[0] for names in coco} <= firsts
    forms = {form for names, plurals in categories for form in (*names, *plurals)}
    assert {name for names in coco for name in names} - forms == {"catcher's mitt"}


def test_every_form_is_found_as_its_category(categories):
    """In the extractor without a tagger; a form in the plural, too."""
    extractor = EntityPhrases(LVIS)
    assert len(extractor.forms) == sum(len(names) + len(plurals) for names, plurals in categories)
    for names, plurals in categories:
        for form in (*names, *plurals):
            assert extractor.forms[form] == names[0]
            (phrase,) = extractor(text := f"Here: {form}.", split_sentences(text))
            assert phrase.text == names[0]
            assert phrase.mentions == (Span(6, 6 + len(form)),)


@pytest.mark.skipif("VIGOR_LVIS" not in os.environ, reason="VIGOR_LVIS names lvis_v1_train_cat_info.json")
def test_the_script_makes_the_list():
    spec = importlib.util.spec_from_file_location("make_entities", ROOT / "scripts" / "make_entities.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    try:
        nltk.data.find("corpora/wordnet.zip")
    except LookupError:
        pytest.skip("needs WordNet")
    lvis = json.loads(Path(os.environ["VIGOR_LVIS"]).read_text(encoding="utf-8"))
    assert script.make(lvis) == LVIS.read_text(encoding="utf-8")


# A caption, the words that mention something, and the categories.
LABELED = (
    ("A cat can be seen on top of the soup cans.", "cat, cans", "cat, can"),
    ("The overall scene shows a man who watches the horses.", "man, horses", "person, horse"),
    ("A watch lies next to the wine glasses.", "watch, wine glasses", "watch, wine glass"),
    ("Two glasses of milk are on the table.", "glasses, milk, table", "glass, milk, table"),
    ("A man is wearing glasses.", "man, glasses", "person, spectacles"),
    ("People wait at the train station and at a bus stop.", "People", "person"),
    ("A plate with pizza slices stands on the desk.", "plate, pizza, desk", "plate, pizza, desk"),
    ("The baseball player swings a baseball bat.", "player, baseball bat", "person, baseball bat"),
    ("An orange cat sleeps near two oranges.", "cat, oranges", "cat, orange"),
    ("A toilet paper dispenser hangs near the sink.", "dispenser, sink", "dispenser, sink"),
    ("Snow covers the benches.", "benches", "bench"),
    ("Tomatoes, sweet potatoes and burritos are on the table.", "Tomatoes, sweet potatoes, burritos, table",
     "tomato, sweet potato, burrito, table"),
    ("A boy in a T-shirt holds a cell phone.", "boy, T-shirt, cell phone", "person, jersey, cell phone"),
    ("She wears two earrings and a ring, with a painting behind her.", "earrings, ring, painting",
     "earring, ring, painting"),
    ("The image is a picture of a leg on a hill, a patch of grass and shades of blue.", "", ""),
    ("A fire truck and a school bus follow the motorcycles.", "fire truck, school bus, motorcycles",
     "fire engine, school bus, motorcycle"),
    ("Gentlemen in suits sit around a table with butter knives.", "Gentlemen, suits, table, butter knives",
     "person, suit, table, knife"),
)  # fmt: skip


@pytest.mark.parametrize(("text", "words", "names"), LABELED, ids=[case[0] for case in LABELED])
def test_labeled_sentences(lvis, text, words, names):
    phrases = lvis(text, split_sentences(text))
    spans = sorted((span, phrase.text) for phrase in phrases for span in phrase.mentions)
    assert ", ".join(text[slice(*span)] for span, _ in spans) == words
    assert ", ".join(name for _, name in spans) == names


def test_claims_are_told_apart(lvis):
    text = "There are no plates, and possibly a mirror. A sign says 'Hats'. A desk stands there."
    phrases = {phrase.text: phrase for phrase in lvis(text, split_sentences(text))}
    assert [name for name, phrase in phrases.items() if phrase.mentions] == ["signboard", "desk"]
    assert phrases["plate"].denied
    assert phrases["mirror"].supposed
    assert "hat" not in phrases


def test_without_nltks_data_the_tagger_decides_too(small_tagger):  # noqa: F811
    """With a tagger of our own making, and a list that has a verb in it."""
    extractor = make_phrases(PhrasesConfig("entities", entities="lvis", tagger=small_tagger))
    assert found(extractor, "The dog can be seen on the bench.") == ["dog", "bench"]
    assert "can" in found(EntityPhrases(LVIS), "The dog can be seen on the bench.")


def test_mentions_in_real_captions(lvis):
    """Against the list alone, on 300 captions: no modal verb is left, and few other mentions go."""
    if not CAPTIONS.exists():
        pytest.skip("needs ../shared/data/captions")
    alone = EntityPhrases(LVIS)
    kept, lost = [], []
    for line in CAPTIONS.read_text(encoding="utf-8").splitlines()[:300]:
        text = json.loads(line)["text"]
        sentences = split_sentences(text)
        spans = {
            span for phrase in lvis(text, sentences) for span in (*phrase.mentions, *phrase.denied, *phrase.supposed)
        }
        for phrase in alone(text, sentences):
            for span in (*phrase.mentions, *phrase.denied, *phrase.supposed):
                (kept if span in spans else lost).append(text[slice(*span)].lower())
                spans.discard(span)
        assert not spans
    assert "can" not in kept
    assert lost.count("can") > 50
    assert len(lost) - lost.count("can") < 0.06 * len(kept)


def test_the_words_of_the_option(tmp_path, monkeypatch, small_tagger):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    text = "A zebu, a mirror and a couch."
    for given, expected in ((None, ["couch"]), ("coco", ["couch"]), (Path("coco"), ["couch"])):
        assert found(make_phrases(PhrasesConfig("entities", entities=given)), text) == expected
    for given in ("lvis", Path("lvis")):
        assert "couch" in make_phrases(PhrasesConfig("entities", entities=given, tagger=small_tagger)).forms
    Path("lvis").write_text("zebu\n")
    assert found(make_phrases(PhrasesConfig("entities", entities="./lvis")), text) == ["zebu"]
    assert found(make_phrases(PhrasesConfig("entities", entities=tmp_path / "lvis")), text) == ["zebu"]
    with pytest.raises(InputError, match=r"expected coco, lvis or a file .* got lvos, which is no file; .* lvis"):
        make_phrases(PhrasesConfig("entities", entities="lvos"))


def test_own_plurals(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text("cherub, putto | cherubim, putti\npelican\n")
    assert found(EntityPhrases(path), "Cherubs, cherubim, putti and pelicans.") == ["cherub", "pelican"]
    assert "cherubs" not in EntityPhrases(path).forms
    path.write_text("pelican |\n")
    assert list(EntityPhrases(path).forms) == ["pelican"]
    path.write_text("pelican | pelicans,\n")
    with pytest.raises(InputError, match="line 1: expected names separated by commas"):
        EntityPhrases(path)


def test_heads_are_nouns_that_end_a_name(nltk_tagger):  # noqa: F811
    nouns = NounPhrases(tagger=nltk_tagger)
    text = "The bus stop and some pizza slices stand near a ring."
    ends = nouns.heads(text, Span(0, len(text)))
    assert {text[:end].split()[-1] for end in ends} >= {"stop", "pizza", "ring."[:-1]}
    assert "bus" not in {text[:end].split()[-1] for end in ends}
