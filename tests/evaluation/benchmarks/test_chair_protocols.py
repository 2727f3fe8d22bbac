"""The same captions by two protocols of CHAIR: the figures of the authors' script and those of OPERA's."""

import json
from pathlib import Path

import pytest

from vigor_jax.errors import InputError
from vigor_jax.evaluate import main
from vigor_jax.evaluation.benchmarks.lemmas import LemmaSynonyms
from vigor_jax.evaluation.nltk_data import need
from vigor_jax.evaluation.protocol import read_protocol

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
REAL_TABLE, REAL_CAPTIONS = DATA / "chair" / "synonyms.txt", DATA / "captions" / "llava13b_coco_captions.jsonl"
TABLE = "person, man, woman\ndog, puppy\nchair, seat, stool\ntoilet\nskis, ski\nbench\ntraffic light, stop light\n"
PRESENT = {"a.jpg": ["person", "chair"], "b.jpg": ["dog"], "c.jpg": ["skis", "person"]}
CAPTIONS = {
    "a.jpg": "A man is seated there. Two dogs stand near the bench and a",
    "b.jpg": "A woman skis behind puppies. A stop light.",
    "c.jpg": "Skis on the seat of a toilet. There is a dog near the wom",
}
# What a tagger and WordNet say of these words; all others are their own lemmas.
TAGS = {"seated": "VBN", "is": "VBZ", "skis": "VBZ", "stand": "VBP"}
LEMMAS = {
    ("seated", "v"): "seat", ("skis", "v"): "ski", ("skis", "n"): "ski", ("dogs", "n"): "dog",
    ("puppies", "n"): "puppy",
}  # fmt: skip
SINGULARS = {"dogs": "dog", "puppies": "puppy", "skis": "ski"}


def is_installed():
    try:
        need(("averaged_perceptron_tagger_eng", "wordnet"), "")
    except InputError:
        return False
    return REAL_TABLE.exists()


def script(captions, present, table, base_forms):
    """compute_chair of both scripts, which differ in the base forms of words (and in what they are given)."""
    rows = [line.strip().split(", ") for line in table.splitlines()]
    synonym = {name: row[0] for row in rows for name in row}
    double = {name: name for name in synonym if len(name.split()) == 2 and name == name.strip()}
    animals = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub")
    double |= {"home plate": "home plate", "train track": "train track", "motor bike": "motor bike"}
    double |= {f"{age} {animal}": animal for age in ("baby", "adult") for animal in animals}
    double |= {"passenger jet": "jet", "passenger train": "train", "bow tie": "tie", "toilet seat": "toilet"}
    wrong_captions = wrong = total = truth = found = 0
    for image, caption in captions.items():
        words, joined = base_forms(caption.lower()), []
        while words:
            pair = " ".join(words[:2])
            joined.append(double.get(pair, words[0]))
            words = words[2 if pair in double else 1 :]
        if "toilet" in joined and "seat" in joined:
            joined = [word for word in joined if word != "seat"]
        objects = [synonym[word] for word in joined if word in synonym]
        bad = sum(name not in present[image] for name in objects)
        wrong_captions, wrong, total = wrong_captions + bool(bad), wrong + bad, total + len(objects)
        truth, found = truth + len(set(present[image])), found + len(set(objects) & set(present[image]))
    return {"chair_i": wrong / total, "chair_s": wrong_captions / len(captions), "recall": found / truth}


def cut(caption):
    """The lines that OPERA's script has commented out, and issue 30 asks for."""
    return caption[: caption.rfind(".") + 1]


def words(text):
    return text.replace(".", " . ").split()


def singulars(text):
    return [SINGULARS.get(word, word) for word in words(text)]


def lemmas(text):
    parts = {"V": "v", "N": "n"}
    tagged = [(word, TAGS.get(word, "NN")) for word in words(text)]
    return [LEMMAS.get((word, parts[tag[0]]), word) for word, tag in tagged]


@pytest.fixture
def files(tmp_path):
    (tmp_path / "synonyms.txt").write_text(TABLE)
    (tmp_path / "objects.json").write_text(json.dumps(PRESENT))
    records = [{"image": image, "text": text} for image, text in CAPTIONS.items()]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    return tmp_path


def run(files, protocol, *more):
    options = {"objects": "objects.json", "captions": "captions.jsonl", "synonyms": "synonyms.txt"}
    arguments = [text for key, name in options.items() for text in (f"--{key}", str(files / name))]
    main(["chair", *arguments, "--protocol", protocol, "--out", str(files / protocol), *map(str, more)])
    return json.loads((files / protocol / "metrics.json").read_text())


def test_two_protocols_give_the_figures_of_the_two_scripts(files, monkeypatch):
    monkeypatch.setattr(LemmaSynonyms, "_tag", staticmethod(lambda tokens: [(t, TAGS.get(t, "NN")) for t in tokens]))
    monkeypatch.setattr(LemmaSynonyms, "_lemma", staticmethod(lambda word, part: LEMMAS.get((word, part), word)))
    paper, whole, finished = (run(files, name) for name in ("paper", "opera-512", "opera-64"))
    short = {image: cut(text) for image, text in CAPTIONS.items()}
    for metrics, given, forms in (
        (paper, CAPTIONS, singulars),
        (whole, CAPTIONS, lemmas),
        (finished, short, lemmas),
    ):
        wanted = script(given, PRESENT, TABLE, forms)
        assert {name: metrics[name] for name in wanted} == pytest.approx(wanted, abs=1e-9)
    # The table in docs/evaluation.md.
    figures = [
        (f"{one['chair_i']:.3f}", f"{one['chair_s']:.3f}", f"{one['recall']:.3f}") for one in (paper, whole, finished)
    ]
    assert figures == [("0.700", "1.000", "0.600"), ("0.636", "1.000", "0.800"), ("0.500", "0.667", "0.800")]
    assert len({one["protocol"]["digest"] for one in (paper, whole, finished)}) == 3
    assert finished["protocol"]["departures"] == ["images.number 3, not 500"]
    assert [one["words"] for one in (paper, finished)] == pytest.approx([35 / 3, 20 / 3], abs=1e-9)


def test_a_protocol_and_other_options_do_not_mix(files):
    with pytest.raises(InputError, match="--as_published: protocol opera-64 reads words by their lemma"):
        run(files, "opera-64", "--as_published", "false")
    other = files / "other.yaml"
    other.write_text("benchmark: pope\n")
    with pytest.raises(InputError, match="expected a protocol of chair, got one of pope; protocols do not mix"):
        run(files, "paper", "--protocol", other)
    other.write_text("benchmark: chair\nparser: lemmas\n")
    with pytest.raises(InputError, match="protocol other: expected a parser of singular, lemma, got 'lemmas'"):
        run(files, "paper", "--protocol", other)


def test_options_without_a_protocol_are_told(files):
    metrics = run(files, "own")
    assert metrics["protocol"]["name"] == "own"
    assert metrics["protocol"]["digest"] != read_protocol("paper", "chair").digest
    assert run(files, "own", "--as_published", "false")["protocol"]["digest"] != metrics["protocol"]["digest"]


@pytest.mark.skipif(not is_installed(), reason="NLTK's data or CHAIR's table are not there")
def test_real_captions_by_lemmas():
    """Captions of a model, and what NLTK itself says of each word, with sentences cut by NLTK's rules."""
    import nltk
    from nltk.stem import WordNetLemmatizer

    cut_sentences, cut_words = nltk.tokenize.PunktSentenceTokenizer(), nltk.tokenize.NLTKWordTokenizer()
    lemmatizer = WordNetLemmatizer()

    def base_forms(text):
        tokens = [word for sentence in cut_sentences.tokenize(text) for word in cut_words.tokenize(sentence)]
        parts = {"J": "a", "V": "v", "R": "r"}
        return [lemmatizer.lemmatize(word, parts.get(tag[0], "n")) for word, tag in nltk.pos_tag(tokens)]

    lines = REAL_CAPTIONS.read_text().splitlines()[:60]
    captions = {str(number): json.loads(line)["text"] for number, line in enumerate(lines)}
    synonyms = LemmaSynonyms.read(REAL_TABLE)
    for caption in captions.values():
        present = {"x": ["person"]}
        wanted = script({"x": caption, "y": "person"}, present | {"y": ["person"]}, REAL_TABLE.read_text(), base_forms)
        objects = [mention.object for mention in synonyms.extract(caption)]
        bad = sum(name != "person" for name in objects)
        assert wanted["chair_i"] == pytest.approx(bad / (len(objects) + 1), abs=1e-9)
