"""AMBER against its definition, on files as the benchmark has them, with NLTK's own code on small data."""

import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import nltk
import numpy as np
import pytest

from tests.evaluation.spoken import write
from vigor_jax.errors import InputError
from vigor_jax.evaluate import main
from vigor_jax.evaluation.benchmarks import amber
from vigor_jax.evaluation.benchmarks.amber import AmberImage, AmberQuestion, Words
from vigor_jax.evaluation.benchmarks.amber_files import read_amber
from vigor_jax.evaluation.benchmarks.amber_nouns import NounReader, same_words, similar_words
from vigor_jax.evaluation.benchmarks.first_word import read_answer
from vigor_jax.evaluation.commands.amber import AmberCommand
from vigor_jax.evaluation.metrics import amber_metrics
from vigor_jax.evaluation.protocol import read_protocol

TAGGER = Path(amber.__file__).parents[2] / "demo" / "checkpoints" / "tagger"
ASSOCIATIONS = {
    "dog": ["puppy"], "cat": [], "person": ["man", "woman", "people"], "grass": ["ground", "lawn"],
    "road": ["path", "ground"], "floor": ["ground"], "table": ["desk"], "cup": [],
}  # fmt: skip
WORDS = Words({name: tuple(words) for name, words in ASSOCIATIONS.items()}, frozenset({"path", "light"}))
TYPES = {
    "discriminative-hallucination": "existence", "discriminative-attribute-state": "state",
    "discriminative-attribute-number": "number", "discriminative-attribute-action": "action",
    "discriminative-relation": "relation", "relation": "relation",
}  # fmt: skip
SAID = ["Yes", "No", "yes", "no", "Yes.", "No, there is none.", "", "Maybe", "Nobody", "** no **", "No\nway"]


def load(path: Path):
    return json.loads(path.read_text())


def make_benchmark(folder: Path, rng: random.Random, images: int = 6, questions: int = 60) -> Path:
    """The benchmark's files, and `answers.json`."""
    annotations, queries, answers = [], [], []
    for number in range(1, images + questions + 1):
        image = f"AMBER_{(number - 1) % images + 1}.jpg"
        if number <= images:
            objects = rng.sample(sorted(ASSOCIATIONS), 5)
            annotations.append({"id": number, "type": "generative", "truth": objects[:3], "hallu": objects[3:]})
            query, said = "Describe this image.", "There is a dog and a cat."
        else:
            truth = rng.choice(["yes", "no"])
            annotations.append({"id": number, "type": rng.choice(list(TYPES)), "truth": truth})
            query, said = f"Is there a dog {number}?", rng.choice(SAID)
        queries.append({"id": number, "image": image, "query": query})
        answers.append({"id": number, "response": said})
    (folder / "query").mkdir(parents=True)
    write(folder / "annotations.json", annotations)
    write(folder / "relation.json", ASSOCIATIONS)
    write(folder / "safe_words.txt", "path\nlight")
    write(folder / "query" / "query_all.json", queries)
    write(folder / "answers.json", answers)
    return folder


def make_nltk_data(folder: Path) -> Path:
    """NLTK's data, small: no abbreviations, the demo's tagger, and WordNet with two nouns."""
    punkt, wordnet = folder / "tokenizers" / "punkt_tab" / "english", folder / "corpora" / "wordnet"
    for each in (punkt, wordnet):
        each.mkdir(parents=True)
    for name in ("collocations.tab", "sent_starters.txt", "abbrev_types.txt", "ortho_context.tab"):
        (punkt / name).touch()
    shutil.copytree(TAGGER, folder / "taggers" / "averaged_perceptron_tagger_eng")
    for kind in ("noun", "verb", "adj", "adv"):
        nouns = [f"{noun} n 1 0 1 0 00000000  \n" for noun in ("moon", "star")] if kind == "noun" else []
        (wordnet / f"index.{kind}").write_text("".join(nouns))
        (wordnet / f"data.{kind}").write_text("  1 WordNet 3.0 Copyright\n")
        (wordnet / f"{kind}.exc").touch()
    for name in ("lexnames", "index.sense"):
        (wordnet / name).touch()
    return folder


def owner(noun, objects, similar=None):
    """The first object that a word is for, other words first; of similar words if `similar` says so."""
    fits = similar or (lambda one, other: one == other)
    names = [(word, name) for name in objects for word in ASSOCIATIONS[name]] + [(name, name) for name in objects]
    return next((name for word, name in names if fits(noun, word)), None)


@pytest.mark.parametrize("seed", range(4))
def test_descriptions_by_definition(seed):
    """500 descriptions, of words for what is there, for what is not, for neither, and of nearly the same words."""
    rng = random.Random(seed)
    pool = [*sorted(WORDS.known), "path", "light", "moon"]
    group = {word: rng.randrange(7) for word in pool}

    def similar(one, other):
        return one == other or group[one] == group[other]

    for same in (similar, same_words):
        checked, sums = [], np.zeros(9)
        for number in range(125):
            objects = rng.sample(sorted(ASSOCIATIONS), rng.randint(3, 6))
            image = AmberImage(number, f"{number}.jpg", "Describe.", tuple(objects[:2]), tuple(objects[2:]))
            nouns = rng.choices(pool, k=rng.randint(0, 8))
            text = " ".join(nouns)
            one = amber.check_description(image, text, nouns, WORDS, same)
            checked.append(one)
            known = [noun for noun in nouns if noun in WORDS.known]
            there = {noun: owner(noun, image.truth) for noun in known if noun not in WORDS.safe}
            other = [noun for noun, name in there.items() if name is None]
            near = {noun: owner(noun, image.truth, same) for noun in other}
            wrong = [noun for noun in known if noun in other and near[noun] is None]
            covered = {name for name in (*there.values(), *near.values()) if name}
            hits = [owner(noun, image.hallucinations, how) for noun in other for how in (None, same)]
            likely = {name for name in hits if name}
            assert [n for n, absent in zip(one.nouns, one.hallucinated, strict=True) if absent] == wrong
            sums += [
                1,
                bool(wrong),
                len(known),
                len(wrong),
                2,
                len(covered),
                len(image.hallucinations),
                len(likely),
                len(nouns),
            ]
        counts = np.array(list(amber.count_descriptions(checked).values()))
        np.testing.assert_array_equal(counts.sum(0), sums)
        found = amber.description_rates(counts.sum(0))
        expected = {
            "chair": sums[3] / sums[2], "cover": sums[5] / sums[4], "hal": sums[1] / sums[0],
            "cog": sums[7] / sums[6], "words": sums[8] / sums[0],
        }  # fmt: skip
        assert {name: float(value) for name, value in found.items()} == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("strict", [False, True])
def test_answers_by_definition(strict):
    rng = random.Random(1)
    questions = [
        AmberQuestion(i, f"{i % 40}.jpg", "?", rng.choice(amber.KINDS), rng.choice(["yes", "no"])) for i in range(500)
    ]
    answers = [rng.choice(SAID) for _ in questions]
    lenient = {
        "Yes": "yes",
        "No": "no",
        "yes": "yes",
        "no": "no",
        "Yes.": "yes",
        "No, there is none.": "no",
        "No\nway": "no",
    }
    read = {"Yes": "yes", "No": "no"} if strict else lenient
    metrics = amber_metrics([], questions, answers)
    yes = sum(read.get(a) == "yes" for a in answers)
    assert (metrics["strict"] if strict else metrics)["discriminative"]["yes_ratio"] == yes / 500
    for table, kinds in amber.TABLES.items():
        own = [(q.truth, read.get(a)) for q, a in zip(questions, answers, strict=True) if q.kind in kinds]
        right = sum(truth == said for truth, said in own)
        found_no = sum(truth == said == "no" for truth, said in own)
        precision = found_no / sum(said == "no" for _, said in own)
        recall = found_no / sum(truth == "no" for truth, _ in own)
        expected = {
            "accuracy": right / len(own), "precision": precision, "recall": recall,
            "f1": 2 * precision * recall / (precision + recall),
        }  # fmt: skip
        found = metrics["strict"][table] if strict else metrics[table]
        assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-9)


def test_published_figures_have_the_scripts_constants():
    """A quarter of 4 is 25.0 with them, too; one of one is 99.9, since 0.001 is added to what it is divided by."""
    counts = np.array([1, 0, 4, 1, 2, 1, 1, 1, 9])
    assert amber.descriptions_as_published(counts) == {"CHAIR": 25.0, "Cover": 50.0, "Hal": 0.1, "Cog": 99.9}
    one = np.array([1, 0, 0, 1, 0, 0])
    assert amber.answers_as_published(one, "state") == {
        "Accuracy": 100.0, "Precision": 99.9, "Recall": 99.9, "F1": 99.9,
    }  # fmt: skip
    assert amber.answers_as_published(one, "attribute")["Precision"] == 99.7
    hundred = np.array([30, 0, 70, 0, 0, 0])  # of which F1 is 46.154 without a constant
    assert amber.answers_as_published(hundred, "state")["F1"] == 46.2
    assert amber.answers_as_published(hundred, "existence")["F1"] == 46.1


@pytest.mark.parametrize("text", SAID)
def test_an_answer_is_its_first_word(text):
    first = "".join(letter for letter in (text.split() or [""])[0].lower() if letter.isalpha())
    assert read_answer(text) == (first if first in ("yes", "no") else None)


def test_the_command_reads_the_nouns_that_nltk_finds(tmp_path):
    """From the benchmark's files to the figures, in another process, since NLTK keeps what it has once read."""
    folder = make_benchmark(tmp_path / "data", random.Random(0))
    answers = json.loads((folder / "answers.json").read_text())
    for answer in answers[:6]:
        answer["response"] = "There is a star in red. There are two moons."
    write(folder / "answers.json", answers)
    write(folder / "relation.json", {**ASSOCIATIONS, "star": [], "sun": ["moon"]})
    annotations = json.loads((folder / "annotations.json").read_text())
    for annotation in annotations[:6]:
        annotation |= {"truth": ["star", "dog"], "hallu": ["sun"]}
    write(folder / "annotations.json", annotations)
    command = [
        sys.executable,
        "-m",
        "vigor_jax.evaluate",
        "amber",
        "--data",
        str(folder),
        "--out",
        str(tmp_path / "out"),
    ]
    command += ["--answers", str(folder / "answers.json")]
    environment = {**os.environ, "NLTK_DATA": str(make_nltk_data(tmp_path / "nltk_data"))}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    found = metrics["generative"]
    assert [found[name] for name in ("chair", "cover", "hal", "cog", "words")] == [0.5, 0.5, 1, 1, 10]
    assert metrics["published"]["generative"] == {"CHAIR": 50.0, "Cover": 50.0, "Hal": 100.0, "Cog": 100.0}
    assert found["intervals"]["chair"] == [0.5, 0.5]
    details = json.loads((tmp_path / "out" / "descriptions.json").read_text())
    assert {tuple(one["nouns"]) for one in details} == {("star", "moon")}
    assert {tuple(one["hallucinated"]) for one in details} == {("moon",)}
    assert metrics["words_compared"] == "as they are"
    assert metrics["score"] == pytest.approx((1 - 0.5 + metrics["discriminative"]["f1"]) / 2, abs=1e-9)
    assert "say which one you report" in done.stderr
    assert "AMBER CHAIR" in done.stdout


@pytest.mark.parametrize("part", ["discriminative", "existence", "attribute", "relation"])
def test_a_part_asks_for_the_answers_to_it_alone(tmp_path, part):
    folder = make_benchmark(tmp_path / "data", random.Random(3))
    kinds = {one["id"]: TYPES.get(one["type"]) for one in load(folder / "annotations.json")}
    own = [answer for answer in load(folder / "answers.json") if kinds[answer["id"]] in amber.TABLES[part]]
    write(folder / "answers.json", own)
    main(
        [
            "amber",
            "--data",
            str(folder),
            "--part",
            part,
            "--answers",
            str(folder / "answers.json"),
            "--out",
            str(tmp_path),
        ]
    )
    metrics = load(tmp_path / "metrics.json")
    assert set(metrics) & set(amber.TABLES) == {
        name for name, of in amber.TABLES.items() if set(of) & set(amber.TABLES[part])
    }
    assert "generative" not in metrics


class Says:
    """A model with one answer to every query."""

    images: ClassVar[dict] = {}

    def asking(self, protocol):
        return protocol

    def answer(self, name, asked, paths=None, *, protocol=None):
        return ["No" if words.endswith("?") else "There is nothing." for _, words in asked]


def test_a_model_is_asked_in_the_benchmarks_words(tmp_path, monkeypatch):
    folder = make_benchmark(tmp_path / "data", random.Random(5))
    asked = []

    class Model(Says):
        def answer(self, name, questions, paths=None, *, protocol=None):
            asked.extend(questions)
            return super().answer(name, questions)

    command = AmberCommand(tmp_path / "out", folder, part="discriminative")
    metrics = command.metrics(Model())
    whole = read_amber(folder)
    assert asked == [(one.image, one.query) for one in whole.questions]
    assert metrics["discriminative"]["recall"] == 1
    assert metrics["discriminative"]["yes_ratio"] == 0
    assert metrics["protocol"] == read_protocol("paper", "amber").stored()
    assert any("100.0% of the answers are no" in warning for warning in metrics["warnings"])


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "annotations.json",
            lambda c: c[0].pop("truth"),
            r"item 1: expected a list of objects under 'truth', got None",
        ),
        (
            "annotations.json",
            lambda c: c[0].update(hallu=["ufo"]),
            r"item 1: 'ufo' under 'hallu' is not in relation\.json",
        ),
        ("annotations.json", lambda c: c[9].update(truth="perhaps"), r"item 10: expected 'yes' or 'no' under 'truth'"),
        (
            "annotations.json",
            lambda c: c[9].update(type="mood"),
            r"item 10: expected a type of generative, .* got 'mood'",
        ),
        ("annotations.json", lambda c: c[9].update(id=999), r"item 10: id 999 has no query in "),
        ("annotations.json", lambda c: c.clear(), r"expected AMBER's annotations, got none"),
        ("relation.json", lambda c: c.update(dog="puppy"), r"relation\.json: expected \{object: \[word, \.\.\.\]\}"),
        ("query/query_all.json", lambda c: c[3].pop("image"), r"query_all\.json, item 4: expected the keys id, image"),
        ("answers.json", lambda c: c.pop(), r"expected 66 answers, 1 are missing, to question 66"),
        ("answers.json", lambda c: c.append(dict(c[4])), r"question 5 is answered twice"),
    ],
)
def test_what_is_refused(tmp_path, file, change, message):
    folder = make_benchmark(tmp_path / "data", random.Random(0))
    content = load(folder / file)
    change(content)
    write(folder / file, content)
    with pytest.raises(InputError, match=message) as caught:
        main(
            ["amber", "--data", str(folder), "--answers", str(folder / "answers.json"), "--out", str(tmp_path / "out")]
        )
    assert "\n" not in str(caught.value)


def test_vectors_of_spacy(tmp_path):
    """Cosines above 0.8 as numpy has them; a word without a vector is like itself alone."""
    spacy = pytest.importorskip("spacy")
    rng = np.random.default_rng(0)
    vectors = {f"word{i}": rng.normal(size=8) for i in range(30)}
    vectors |= {f"near{i}": vectors[f"word{i}"] + rng.normal(size=8) * 0.5 for i in range(30)}
    pipeline = spacy.blank("en")
    for word, vector in vectors.items():
        pipeline.vocab.set_vector(word, vector.astype(np.float32))
    pipeline.to_disk(tmp_path / "pipeline")
    similar = similar_words(tmp_path / "pipeline")
    pairs = [(one, other) for one in vectors for other in vectors]
    cosines = [
        float(vectors[a] @ vectors[b] / np.linalg.norm(vectors[a]) / np.linalg.norm(vectors[b])) for a, b in pairs
    ]
    assert [similar(*pair) for pair in pairs] == [cosine > 0.8 for cosine in cosines]
    assert 60 < sum(cosine > 0.8 for cosine in cosines) < 200
    assert similar("unknown", "unknown")
    assert not similar("unknown", "word1")


def test_vectors_that_are_not_there(tmp_path):
    reason = "has no pipeline" if importlib.util.find_spec("spacy") else "spaCy is not installed"
    with pytest.raises(InputError, match=f"--vectors: .*{reason}"):
        similar_words("en_core_web_nothing")


def test_what_nltk_lacks_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    with pytest.raises(InputError, match=r"nltk\.downloader punkt_tab averaged_perceptron_tagger_eng wordnet"):
        NounReader()
