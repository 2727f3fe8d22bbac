"""Phrases: the entity list, and nouns by a tagger of our own making (always) and NLTK's (where it is installed)."""

import json
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import nltk
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rewards.taught_tagger import write_tagger
from vigor_jax.errors import InputError
from vigor_jax.records import Span
from vigor_jax.rewards.language.tagger import cached_tag, load_tagger
from vigor_jax.rewards.phrases import EntityPhrases, NounPhrases, Phrase, PhrasesConfig, make_phrases
from vigor_jax.rewards.sentences import split_sentences

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
CAPTIONS = SHARED / "captions" / "llava13b_coco_captions.jsonl"
NAME = "averaged_perceptron_tagger_eng"

# caption, number of sentences, nouns, COCO's categories
HARD = (
    (
        "A traffic light hangs over the city street, and two fire hydrants stand below it.",
        1,
        "traffic light, city street, fire hydrant",
        "traffic light, fire hydrant",
    ),
    (
        "Three children's bicycles lean against a brick wall.",
        1,
        "child, bicycle, brick wall",
        "person, bicycle",
    ),
    (
        "Women and men are riding skis down the snowy slopes.",
        1,
        "woman, man, ski, slope",
        "person, skis",
    ),
    (
        "The man, wearing glasses and jeans, is cutting a pizza with scissors.",
        1,
        "man, glasses, jeans, pizza, scissors",
        "person, pizza, scissors",
    ),
    (
        "Mr. Smith holds a remote control, i.e. the TV remote control. A hot dog lies on his plate.",
        2,
        "remote control, tv remote control, hot dog, plate",
        "remote, tv, hot dog",
    ),
    (
        '"A dog!" says the boy. The dog\'s leash is red.',
        2,
        "dog, boy, leash",
        "dog, person",
    ),
    (
        "Objects on the table:\n- wine glasses\n- knives\n- a teddy bear",
        4,
        "table, wine glass, knife, teddy bear",
        "dining table, wine glass, knife, teddy bear",
    ),
    (
        "A black-and-white cat sits next to a well-lit bookshelf 😀",
        1,
        "cat, bookshelf",
        "cat",
    ),
    (
        "A group of people and a variety of fruits appear in the foreground of the image.",
        1,
        "person, fruit",
        "person",
    ),
    (
        "Surfboards lie on the beach.\n\nUmbrellas line the shore",
        2,
        "surfboard, beach, umbrella, shore",
        "surfboard, umbrella",
    ),
    (
        "A beach scene with a kitchen area in the background.",
        1,
        "beach, kitchen",
        "",
    ),
    (
        "A couple of sheep and a herd of cattle graze in a grassy field.",
        1,
        "sheep, cattle, field",
        "sheep, cow",
    ),
    (
        "The trash can be seen near the trash can.",
        1,
        "trash, trash can",
        "",
    ),
    (
        "People are waiting to board the bus at the bus stop.",
        1,
        "person, bus, bus stop",
        "person, bus",
    ),
    (
        "A Delta airplane is parked at O'Hare, near a baggage truck.",
        1,
        "airplane, baggage truck",
        "airplane, truck",
    ),
    (
        "He smiles for the camera, holding a camera in his left hand.",
        1,
        "camera, hand",
        "",
    ),
    (
        "In the center of the scene, there is a clock tower; its clock reads 3.30 p.m. Birds fly above the tower.",
        2,
        "clock tower, clock, bird, tower",
        "clock, bird",
    ),
    (
        "It appears to be a sunny day, and there is a sense of calm.",
        1,
        "",
        "",
    ),
    (
        "The children’s toys don’t fit in the toy box, so a stuffed animal sits on the side table.",
        1,
        "child, toy, toy box, stuffed animal, side table",
        "person, dining table",
    ),
    (
        "Buses, taxis, dishes, leaves, potatoes and tennis balls",
        1,
        "bus, taxi, dish, leaf, potato, tennis ball",
        "bus, car, sports ball",
    ),
)

# Tagged by hand, in the tokens that the extractor makes of the captions above; enough to teach a tagger these words.
TAGGED = """\
a/DT traffic/NN light/NN hangs/VBZ over/IN the/DT city/NN street/NN ,/, and/CC two/CD fire/NN hydrants/NNS stand/VBP
below/IN it/PRP ./.

three/CD children/NNS 's/POS bicycles/NNS lean/VBP against/IN a/DT brick/NN wall/NN ./.

women/NNS and/CC men/NNS are/VBP riding/VBG skis/NNS down/IN the/DT snowy/JJ slopes/NNS ./.

the/DT man/NN ,/, wearing/VBG glasses/NNS and/CC jeans/NNS ,/, is/VBZ cutting/VBG a/DT pizza/NN with/IN scissors/NNS
./.

mr/NNP ./. Smith/NNP holds/VBZ a/DT remote/JJ control/NN ,/, i.e/FW ./. the/DT TV/NN remote/JJ control/NN ./.

a/DT hot/JJ dog/NN lies/VBZ on/IN his/PRP$ plate/NN ./.

``/`` a/DT dog/NN !/. ''/'' says/VBZ the/DT boy/NN ./.

the/DT dog/NN 's/POS leash/NN is/VBZ red/JJ ./.

objects/NNS on/IN the/DT table/NN :/:

-/: wine/NN glasses/NNS

-/: knives/NNS

-/: a/DT teddy/NN bear/NN

a/DT black-and-white/JJ cat/NN sits/VBZ next/IN to/TO a/DT well-lit/JJ bookshelf/NN 😀/SYM

a/DT group/NN of/IN people/NNS and/CC a/DT variety/NN of/IN fruits/NNS appear/VBP in/IN the/DT foreground/NN of/IN
the/DT image/NN ./.

surfboards/NNS lie/VBP on/IN the/DT beach/NN ./.

umbrellas/NNS line/VBP the/DT shore/NN

a/DT beach/NN scene/NN with/IN a/DT kitchen/NN area/NN in/IN the/DT background/NN ./.

a/DT couple/NN of/IN sheep/NNS and/CC a/DT herd/NN of/IN cattle/NNS graze/VBP in/IN a/DT grassy/JJ field/NN ./.

the/DT trash/NN can/MD be/VB seen/VBN near/IN the/DT trash/NN can/NN ./.

people/NNS are/VBP waiting/VBG to/TO board/VB the/DT bus/NN at/IN the/DT bus/NN stop/NN ./.

a/DT Delta/NNP airplane/NN is/VBZ parked/VBN at/IN O/NNP '/'' Hare/NNP ,/, near/IN a/DT baggage/NN truck/NN ./.

he/PRP smiles/VBZ for/IN the/DT camera/NN ,/, holding/VBG a/DT camera/NN in/IN his/PRP$ left/JJ hand/NN ./.

in/IN the/DT center/NN of/IN the/DT scene/NN ,/, there/EX is/VBZ a/DT clock/NN tower/NN ;/: its/PRP$ clock/NN
reads/VBZ 3.30/CD p.m/RB ./.

birds/NNS fly/VBP above/IN the/DT tower/NN ./.

it/PRP appears/VBZ to/TO be/VB a/DT sunny/JJ day/NN ,/, and/CC there/EX is/VBZ a/DT sense/NN of/IN calm/NN ./.

the/DT children/NNS 's/POS toys/NNS do/VBP n't/RB fit/VB in/IN the/DT toy/NN box/NN ,/, so/IN a/DT stuffed/JJ
animal/NN sits/VBZ on/IN the/DT side/NN table/NN ./.

buses/NNS ,/, taxis/NNS ,/, dishes/NNS ,/, leaves/NNS ,/, potatoes/NNS and/CC tennis/NN balls/NNS

the/DT image/NN features/VBZ a/DT man/NN riding/VBG a/DT wave/NN on/IN a/DT surfboard/NN ./.

a/DT dog/NN and/CC a/DT cat/NN are/VBP sitting/VBG on/IN the/DT couch/NN ./.

there/EX are/VBP several/JJ people/NNS in/IN the/DT scene/NN ,/, and/CC a/DT large/JJ tree/NN ./.

he/PRP is/VBZ holding/VBG a/DT red/JJ umbrella/NN ./.

two/CD horses/NNS graze/VBP in/IN a/DT green/JJ field/NN ./.

a/DT woman/NN wants/VBZ to/TO catch/VB a/DT frisbee/NN ./.

the/DT dining/NN table/NN has/VBZ plates/NNS ,/, forks/NNS and/CC cups/NNS on/IN it/PRP ./.

a/DT London/NNP bus/NN stops/VBZ at/IN the/DT corner/NN of/IN the/DT street/NN ./.

a/DT dog/NN and/CC a/DT clock/NN tower/NN ./.

it/PRP is/VBZ calm/JJ and/CC quiet/JJ ./.

the/DT dogs/NNS sit/VBP in/IN a/DT beach/NN scene/NN ./.
"""


def found(extractor, text):
    phrases = extractor(text, split_sentences(text))
    everywhere = [(*phrase.mentions, *phrase.denied, *phrase.supposed) for phrase in phrases]
    for phrase, places in zip(phrases, everywhere, strict=True):
        for place in places:
            assert sum(s.start <= place.start < place.end <= s.end for s in split_sentences(text)) == 1
        assert len(set(places)) == len(places) > 0
        for kind in (phrase.mentions, phrase.denied, phrase.supposed):
            assert list(kind) == sorted(kind)
    assert list(map(min, everywhere)) == sorted(map(min, everywhere))
    return [phrase.text for phrase in phrases if phrase.mentions]


@pytest.fixture(scope="session")
def small_tagger(tmp_path_factory):
    """A folder with a tagger in NLTK's layout."""
    sentences = [[tuple(token.rsplit("/", 1)) for token in line.split()] for line in TAGGED.split("\n\n")]
    return write_tagger(tmp_path_factory.mktemp("tagger"), sentences, passes=10)


@pytest.fixture(scope="session")
def nltk_tagger():
    """The folder of NLTK's own tagger; None if it is where NLTK finds it by itself."""
    folder = SHARED / "nltk_data" / "taggers" / NAME
    if folder.exists():
        return folder
    try:
        nltk.data.find(f"taggers/{NAME}/")
    except LookupError:
        pytest.skip("needs NLTK's tagger")
    return None


@pytest.fixture(scope="session", params=["small_tagger", "nltk_tagger"])
def nouns(request):
    return NounPhrases(tagger=request.getfixturevalue(request.param))


@pytest.fixture(scope="session")
def entities():
    return EntityPhrases()


@pytest.mark.parametrize(("text", "num_sentences", "expected", "_"), HARD)
def test_nouns_of_hard_captions(nouns, text, num_sentences, expected, _):
    assert len(split_sentences(text)) == num_sentences
    assert found(nouns, text) == list(filter(None, expected.split(", ")))


@pytest.mark.parametrize(("text", "_", "__", "expected"), HARD)
def test_entities_of_hard_captions(entities, text, _, __, expected):
    assert found(entities, text) == list(filter(None, expected.split(", ")))


def test_mentions_are_spans_of_the_text(nouns):
    text = "A dog and a clock tower. The dogs sit in a beach scene."
    phrases = {phrase.text: phrase.mentions for phrase in nouns(text, split_sentences(text))}
    assert phrases["dog"] == (Span(2, 5), Span(29, 33))
    assert phrases["clock tower"] == (Span(12, 23),)
    assert [text[slice(*span)] for span in phrases["beach"]] == ["beach"]


def test_entity_mentions(entities):
    text = "Two HOT DOGS.\nThe hot-dog, a deer-like dog, a hot\n dog; hot, dog"
    assert entities(text, split_sentences(text)) == [
        Phrase("hot dog", (Span(4, 12), Span(18, 25))),
        Phrase("dog", (Span(39, 42), Span(51, 54), Span(61, 64))),
    ]
    assert found(entities, "A cat-like animal, hotdogs, cats' toys, scattered") == ["hot dog", "cat"]


@pytest.mark.parametrize("text", ["", " \n", "It is calm and quiet.", "!?"])
def test_no_nouns(nouns, entities, text):
    assert nouns(text, split_sentences(text)) == []
    assert entities(text, split_sentences(text)) == []


def test_only_the_given_sentences_are_read(nouns, entities):
    text = "A dog. A cat."
    second = split_sentences(text)[1:]
    assert nouns(text, second) == entities(text, second) == [Phrase("cat", (Span(9, 12),))]


@given(st.text(st.sampled_from(list("abcdogs .,'-’\"\n😀1AD")), max_size=50) | st.text(max_size=50))
def test_any_text_has_phrases_within_its_sentences(nouns, entities, text):
    found(nouns, text)
    found(entities, text)


def test_own_list_of_non_visual_nouns(small_tagger, tmp_path):
    path = tmp_path / "non_visual.txt"
    path.write_text("# mine\ndog\n-scene  # cut\nthe table\n", encoding="utf-8")
    nouns = NounPhrases(path, small_tagger)
    text = "The dogs, a hot dog, a beach scene, the scene, the image, the table and a table"
    assert found(nouns, text) == ["hot dog", "beach", "image", "table"]
    assert nouns(text, split_sentences(text))[-1].mentions == (Span(74, 79),)


def test_workers_rebuild_the_same_extractor(small_tagger, entities):
    for extractor in (NounPhrases(tagger=small_tagger), entities):
        copy = pickle.loads(pickle.dumps(extractor))
        text = HARD[0][0]
        assert copy(text, split_sentences(text)) == extractor(text, split_sentences(text))


def test_cache_changes_no_tag(nltk_tagger):
    tagger = load_tagger(nltk_tagger)
    tag = cached_tag(tagger)
    sentences = [[token.rsplit("/", 1)[0] for token in line.split()] for line in TAGGED.split("\n\n")]
    for words in sentences * 2:
        assert tag(words) == [found for _, found in tagger.tag(words)]


def test_make_phrases(small_tagger):
    assert isinstance(make_phrases(PhrasesConfig("entities")), EntityPhrases)
    assert isinstance(make_phrases(PhrasesConfig(tagger=small_tagger)), NounPhrases)


@pytest.mark.parametrize("line", ["cat,, kitten", "cat,", ", cat", "cat, --"])
def test_malformed_entities_name_their_line(tmp_path, line):
    path = tmp_path / "entities.txt"
    path.write_text(f"# mine\ndog\n{line}\n")
    with pytest.raises(InputError, match=r"entities\.txt, line 3: expected names"):
        EntityPhrases(path)


def test_own_entities(tmp_path):
    path = tmp_path / "entities.txt"
    path.write_text("deer, doe\nwine glass , goblet\n\nglass\ndoe\n")
    text = "Does drink from wine glasses and goblets, not glasses; a deer"
    assert found(EntityPhrases(path), text) == ["deer", "wine glass", "glass"]
    path.write_text("# nothing\n")
    with pytest.raises(InputError, match="expected one category a line"):
        EntityPhrases(path)


def test_files_that_cannot_be_read(tmp_path, small_tagger):
    with pytest.raises(InputError, match="word list"):
        NounPhrases(tmp_path / "missing.txt", small_tagger)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match="UTF-8"):
        EntityPhrases(tmp_path / "latin.txt")
    with pytest.raises(InputError, match=r"weights\.json"):
        NounPhrases(tagger=tmp_path)
    for content in ("{", "[]", "{}", "5"):
        for part in ("weights", "tagdict", "classes"):
            (tmp_path / f"{NAME}.{part}.json").write_text(content)
        with pytest.raises(InputError, match="tagger in"):
            NounPhrases(tagger=tmp_path)


def test_missing_tagger_says_how_to_get_it(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    monkeypatch.setattr(nltk, "download", lambda name, **_: asked.append(name))
    with pytest.raises(InputError, match=f"python -m nltk.downloader {NAME}.*NLTK_DATA.*download") as caught:
        make_phrases(PhrasesConfig())
    assert "\n" not in str(caught.value)
    assert asked == []
    with pytest.raises(InputError, match="could not be downloaded"):
        make_phrases(PhrasesConfig(download=True))
    assert asked == [NAME]


def test_download_with_consent(monkeypatch, tmp_path, small_tagger):
    def download(name, **_):
        (tmp_path / "taggers").mkdir()
        (tmp_path / "taggers" / name).symlink_to(small_tagger)
        return True

    monkeypatch.setattr(nltk.data, "path", [str(tmp_path), str(small_tagger)])
    monkeypatch.setattr(nltk, "download", download)
    assert found(make_phrases(PhrasesConfig(download=True)), "A dog") == ["dog"]


def test_tagger_in_a_zip_on_the_search_path(monkeypatch, tmp_path, small_tagger):
    (tmp_path / "taggers").mkdir()
    with zipfile.ZipFile(tmp_path / "taggers" / f"{NAME}.zip", "w") as archive:
        archive.writestr(f"{NAME}/", "")
        for file in small_tagger.iterdir():
            archive.write(file, f"{NAME}/{file.name}")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    assert found(make_phrases(PhrasesConfig()), "A dog") == ["dog"]


def test_imports_no_framework():
    program = "import sys, vigor_jax.rewards.phrases; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"jax", "torch", "inflect"} & set(done.stdout.split())


@pytest.mark.skipif(not CAPTIONS.exists(), reason="needs ../shared")
@pytest.mark.parametrize(("kinds", "least"), [("asserted", 0.97), ("all", 0.95)])
def test_nouns_of_real_captions_agree_with_a_reader(nltk_tagger, kinds, least):
    texts = [json.loads(line)["text"] for line in CAPTIONS.read_text().splitlines()]
    nouns = NounPhrases(tagger=nltk_tagger)
    lines = (Path(__file__).parent / "expected_phrases.txt").read_text().splitlines()
    right = num_expected = num_found = 0
    for line in lines:
        if line.startswith("#"):
            continue
        number, phrases = line.split("\t")
        text = texts[int(number)]
        if kinds == "asserted":
            expected = {phrase for phrase in phrases.split(", ") if not phrase.startswith("?")}
            got = set(found(nouns, text))
        else:
            expected = {phrase.removeprefix("?") for phrase in phrases.split(", ")}
            got = {phrase.text for phrase in nouns(text, split_sentences(text))}
        right, num_expected, num_found = right + len(expected & got), num_expected + len(expected), num_found + len(got)
    assert num_expected > (380 if kinds == "asserted" else 400)
    assert right / num_found >= least, "precision"
    assert right / num_expected >= least, "recall"
