"""Object HalBench against its definition, worked out again here, and through a judge on a server."""

import base64
import json
import random
import re
from typing import ClassVar

import numpy as np
import pytest

from tests.evaluation.judge.chat_server import ChatServer, Say
from vigor_jax.errors import InputError
from vigor_jax.evaluate import main
from vigor_jax.evaluation.benchmarks import object_halbench as halbench
from vigor_jax.evaluation.benchmarks.object_halbench import Table
from vigor_jax.evaluation.benchmarks.object_halbench_words import CHAIR_PAIRS, WordReader, entities, read_table
from vigor_jax.evaluation.commands import object_halbench as command
from vigor_jax.evaluation.halbench_metrics import halbench_metrics
from vigor_jax.evaluation.image_names import ImageNames
from vigor_jax.evaluation.judge.judge import MalformedReplyError
from vigor_jax.evaluation.nltk_data import need
from vigor_jax.evaluation.protocol import read_protocol

SYNONYMS = """\
person, man, woman, rider
dog, puppy
tie, bow, bow tie
toilet, potty
chair, seat, stool
dining table, table
traffic light, stop light
wine glass
cake,  cheesecake
"""
# Singular → plural; no data of NLTK's are needed for these.
PLURALS = {"dogs": "dog", "men": "man", "puppies": "puppy", "lights": "light", "glasses": "glass", "seats": "seat"}
VERBS = ("red", "old", "the", "of", "and", "big")


def noun(word):
    return PLURALS.get(word, word)


def tagged(phrase):
    """Base forms and tags of a phrase, as a tagger would give them."""
    return [(noun(word), "JJ" if word in VERBS or word == "a" else "NN") for word in phrase.split()]


def has_wordnet():
    try:
        need(("averaged_perceptron_tagger_eng", "wordnet"), "")
    except InputError:
        return False
    return True


@pytest.fixture(scope="module")
def synonyms(tmp_path_factory):
    path = tmp_path_factory.mktemp("halbench") / "synonyms_refine.txt"
    path.write_text(SYNONYMS)
    return path


def figures_by_definition(answers):
    """RLHF-V's overall_metrics, in Python's own numbers: answers are (objects listed, present, text)."""
    synonym = {name.strip(): line.split(", ")[0] for line in SYNONYMS.splitlines() for name in line.split(", ")}
    double = {name: name for name in synonym if len(name.split()) >= 2}
    double |= {"home plate": "home plate", "train track": "train track"}
    animals = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub")
    double |= {f"{age} {animal}": animal for age in ("baby", "adult") for animal in animals}
    double |= {f"passenger {vehicle}": vehicle for vehicle in ("jet", "train")}
    double |= {"bow tie": "tie", "toilet seat": "toilet", "wine glas": "wine glass"}
    caps = coco_caps = wrong_caps = wrong = total = truth = covered = length = 0
    for listed, present, text in answers:
        names = []
        for thing in listed:
            tokens = tagged(f"a {thing}")
            words, pairs, place = [word for word, _ in tokens], [], 0
            while place < len(words):
                if " ".join(words[place : place + 2]) in double:
                    pairs.append(double[" ".join(words[place : place + 2])])
                    place += 1
                place += 1
            if not pairs:
                runs = "".join(f" {word}" if tag == "NN" else "\n" for word, tag in tokens).split("\n")
                pairs = [run.strip() for run in runs if run.strip()]
            names += [name for name in pairs if name not in names]
        names = list(dict.fromkeys(names))
        if "toilet" in names and "seat" in names:
            names.remove("seat")
        objects = [synonym[name] for name in names if name in synonym]
        bad = sum(name not in present for name in objects)
        caps, coco_caps, wrong_caps = caps + 1, coco_caps + bool(objects), wrong_caps + bool(bad)
        wrong, total, truth = wrong + bad, total + len(objects), truth + len(present)
        covered += len({name for name in objects if name in present})
        length += len(text.strip().split(" "))
    return {
        "chair_s": wrong_caps / caps,
        "chair_s_refine": wrong_caps / coco_caps,
        "chair_i": wrong / total,
        "recall": covered / truth,
        "words": length / caps,
    }


@pytest.mark.parametrize("seed", range(4))
def test_figures_by_definition(synonyms, seed):
    """500 answers in all, with plurals, pairs, both halves of pairs, the same thing twice, and none."""
    rng = random.Random(seed)
    table = read_table(synonyms, all_pairs=True)
    pool = [*table.names, *PLURALS, "red dogs", "old puppy and man", "toilet seat", "bow", "baby dog", "home plate",
            "moon", "train track", "big red traffic lights", "wine glasses", "passenger train", "seat of the toilet",
            "wine glas", "cheesecake"]  # fmt: skip
    answers, checked = [], []
    for number in range(125):
        listed = rng.choices(pool, k=rng.choice([0, 0, 1, 3, 9]))
        present = frozenset(rng.sample(sorted(set(table.names.values())), rng.randint(1, 5)))
        text = rng.choice(["", " ", "one  two", "  a longer answer here "])
        answers.append((listed, present, text))
        words = halbench.nouns(listed, table, tagged)
        length = len(halbench.said(text).split(" "))
        checked.append(halbench.check(f"{number % 40}.jpg", words, present, table, length))
    wanted = figures_by_definition(answers)
    found = halbench_metrics(checked)
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-9)
    assert found["answers"] == 125
    for name in wanted:
        low, high = found["intervals"][name]
        assert low <= found[name] <= high


def test_nothing_to_divide_by():
    table = Table({"dog": "dog"}, {})
    found = halbench_metrics([halbench.check("a", [], frozenset(), table, 1)])
    assert [found[name] for name in ("chair_s", "chair_s_refine", "chair_i", "recall")] == [0, 0, 0, 0]


def test_tables_of_both(synonyms):
    whole, chairs = read_table(synonyms, all_pairs=True), read_table(synonyms, all_pairs=False)
    assert whole.names == chairs.names
    assert whole.names["cheesecake"] == "cake"
    assert whole.pairs["dining table"] == "dining table"
    assert "dining table" not in chairs.pairs
    assert {pair for pair in CHAIR_PAIRS if pair != "bow tie"} <= {chairs.pairs[pair] for pair in CHAIR_PAIRS}
    assert whole.pairs["bow tie"] == chairs.pairs["bow tie"] == "tie"


@pytest.mark.parametrize(
    ("reply", "objects"),
    [
        ('["dog", "traffic light"]', ["dog", "traffic light"]),
        ("[]", []),
        ('```json\n["dog"]\n```', ["dog"]),
        ('The objects are:\n["dog"]', ["dog"]),
    ],
)
def test_replies(reply, objects):
    assert halbench.parse_objects(reply) == objects


@pytest.mark.parametrize("reply", ["", "dog, cat", '{"objects": ["dog"]}', "[1]", '["dog"', "[" * 100_000])
def test_malformed_replies(reply):
    with pytest.raises(MalformedReplyError):
        halbench.parse_objects(reply)


def test_sentinel_leaves_denials_out():
    text = "A dog([0, 1]) sits. There is no cat. Cats: there are no cats? There are no birds here. Done."
    assert halbench.without_negations(text) == "A dog sits. Cats: there are no cats? Done."


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"question": "What?"}], "expected COCO's number of the image under 'image_id', got None"),
        ([{"question": "What?", "image_id": 9}], "the objects of image 9 are not known"),
        ([{"question": "What?", "image_id": 5, "image": "?"}], "expected a picture in base64"),
        ([], "got an empty file"),
    ],
)
def test_bad_questions(tmp_path, lines, message):
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputError, match=re.escape(message)):
        halbench.read_questions(path, ImageNames(["COCO_val2014_000000000005.jpg"]))


# The command


@pytest.fixture
def world(tmp_path, synonyms, monkeypatch):
    """Four images with two requests each, their objects, and answers. Base forms are those of `noun` where NLTK's data
    are not installed."""
    images = [f"COCO_val2014_{number:012}.jpg" for number in (5, 6, 7, 8)]
    ids = dict(zip(images, (5, 6, 7, 8), strict=True))
    categories = [{"id": 1, "name": "person"}, {"id": 2, "name": "dog"}]
    instances = {
        "images": [{"id": number, "file_name": name} for name, number in ids.items()],
        "categories": categories,
        "annotations": [{"image_id": number, "category_id": 1 + number % 2} for number in ids.values()],
    }
    captions = {"images": instances["images"], "annotations": [{"image_id": 5, "caption": "The seat of the toilet."}]}
    (tmp_path / "instances.json").write_text(json.dumps(instances))
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    picture = base64.b64encode(b"\xff\xd8 a picture").decode()
    asked = [{"image_id": n, "question": f"Describe {part}.", "image": picture} for n in ids.values() for part in "ab"]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(one) + "\n" for one in asked))
    texts = [
        "A man and a dog sit. There is no table.",
        "Two dogs at a table there.",
        "No.",
        "A man with a tie there.",
    ] * 2
    answers = [
        {"question_id": i, "image_id": one["image_id"], "prompt": one["question"], "text": f"Assistant: {text}"}
        for i, (one, text) in enumerate(zip(asked, texts, strict=True))
    ]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(one) + "\n" for one in answers))
    if not has_wordnet():
        monkeypatch.setattr(WordReader, "_noun", staticmethod(noun))
        monkeypatch.setattr(command, "nltk_tagged", lambda: tagged)
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-the-test")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path


def arguments(world, synonyms, *more, out="out"):
    files = ["--objects", world / "instances.json", world / "captions.json", "--synonyms", synonyms]
    files += ["--questions", world / "questions.jsonl", "--answers", world / "answers.jsonl"]
    return [str(one) for one in ("object-halbench", *files, "--out", world / out, *more)]


def test_words_of_the_table_without_a_judge(world, synonyms, capsys):
    main(arguments(world, synonyms))
    metrics = json.loads((world / "out" / "metrics.json").read_text())
    # person is in images 6 and 8, dog in 5 and 7; answers go two to an image. Image 5 has a toilet, and no chair.
    assert metrics["extraction"] == "words"
    assert (metrics["answers"], metrics["with_objects"], metrics["mentions"], metrics["hallucinated"]) == (8, 6, 14, 8)
    assert metrics["recall"] == pytest.approx(6 / 10, abs=1e-9)
    assert "parser 'words', not 'judge'" in metrics["protocol"]["departures"]
    assert "Object HalBench, mention level" in capsys.readouterr().out
    main(arguments(world, synonyms, "--protocol", "sentinel", out="sentinel"))
    other = json.loads((world / "sentinel" / "metrics.json").read_text())
    assert other["mentions"] == 12  # "There is no table." twice
    assert other["words"] < metrics["words"]
    assert other["protocol"]["digest"] != metrics["protocol"]["digest"]
    details = json.loads((world / "out" / "answers.json").read_text())
    assert details[0]["words"] == ["man", "dog", "table"]
    assert details[0]["hallucinated"] == ["man", "table"]


def test_a_judge_lists_objects_and_its_replies_are_kept(world, synonyms):
    pytest.importorskip("openai")
    listed = {"A man and a dog": '["man", "red dogs"]', "Two dogs": '```json\n["dogs", "table"]\n```'}

    def respond(text, before):
        known = next((reply for start, reply in listed.items() if f"Answer: {start}" in text), None)
        if known is None and before == 0:
            return Say("I see a man")  # asked again
        return Say(known or '["man", "tie"]')

    with ChatServer(respond) as server:
        judge = ["--judge.model", "gpt", "--judge.base_url", server.url]
        main(arguments(world, synonyms, *judge))
        asked = server.counts.total()
        main(arguments(world, synonyms, *judge))
        assert server.counts.total() == asked  # nothing is asked twice
    metrics = json.loads((world / "out" / "metrics.json").read_text())
    assert (metrics["extraction"], metrics["nouns"], metrics["malformed"]) == ("judge", "NLTK", [])
    # "No." is too short to be asked about.
    assert (metrics["answers"], metrics["with_objects"], metrics["mentions"], metrics["hallucinated"]) == (8, 6, 12, 6)
    told = metrics["protocol"]["departures"]
    assert "parser 'judge, nouns by NLTK', not 'judge'" in told
    assert any(one.startswith("judge.prompt 'ours-") for one in told)
    assert "images.number 4, not 300" in told
    assert metrics["protocol"]["name"] == "rlhf-v"


def test_lists_that_cannot_be_read_are_shown_and_left_out(world, synonyms):
    pytest.importorskip("openai")
    with ChatServer(lambda text, before: Say("none" if "Two dogs" in text else '["dog"]')) as server:
        main(arguments(world, synonyms, "--judge.model", "gpt", "--judge.base_url", server.url))
    metrics = json.loads((world / "out" / "metrics.json").read_text())
    assert metrics["answers"] == 6
    assert [one["question_id"] for one in metrics["malformed"]] == ["1", "5"]
    assert [reply for one in metrics["malformed"] for reply in one["replies"]] == ["none"] * 6
    with (
        ChatServer(lambda text, before: Say("none")) as server,
        pytest.raises(InputError, match="no reply of gpt is a"),
    ):
        main(arguments(world, synonyms, "--judge.model", "gpt", "--judge.base_url", server.url, out="none"))


def test_what_is_missing_is_said_in_one_line(world, synonyms, monkeypatch):
    with pytest.raises(InputError, match=r"--extraction judge needs a judge; give --judge\.model"):
        main(arguments(world, synonyms, "--extraction", "judge"))
    with pytest.raises(InputError, match="--pipeline reads a judge's objects, got --extraction words; leave it out"):
        main(arguments(world, synonyms, "--pipeline", "en_core_web_trf"))
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(InputError, match="OPENAI_API_KEY"):
        main(arguments(world, synonyms, "--judge.model", "gpt", "--judge.base_url", "http://127.0.0.1:9/v1"))
    lines = (world / "answers.jsonl").read_text().splitlines()
    (world / "answers.jsonl").write_text("\n".join(lines[:5]))
    with pytest.raises(InputError, match="expected 8 answers, 3 are missing, to question 5, 6, 7"):
        main(arguments(world, synonyms))
    (world / "p.yaml").write_text("benchmark: object-halbench\nparser: guess\n")
    with pytest.raises(InputError, match="expected a parser of judge, judge-without-negations, got 'guess'"):
        main(arguments(world, synonyms, "--protocol", world / "p.yaml"))


def test_a_model_is_shown_the_pictures_of_the_file(world, synonyms):
    class Model:
        images: ClassVar[dict] = {}

        def answer(self, name, asked, paths=None, *, protocol=None):
            assert {path.read_bytes() for path in paths.values()} == {b"\xff\xd8 a picture"}
            assert [words for _, words in asked[:2]] == ["Describe a.", "Describe b."]
            assert protocol.name == "rlhf-v"
            return ["Assistant: A man there with a dog."] * len(asked)

        def asking(self, protocol):
            return protocol.used(max_new_tokens=9)

    options = {"objects": (world / "instances.json",), "synonyms": synonyms, "questions": world / "questions.jsonl"}
    metrics = command.ObjectHalbenchCommand(out=world / "out", **options).metrics(Model())
    assert (metrics["mentions"], metrics["hallucinated"]) == (16, 8)
    assert metrics["protocol"]["digest"] != read_protocol("rlhf-v", "object-halbench").digest


def test_our_own_list_of_entities():
    assert entities()("Two dogs chase a traffic light.")[0] == "dog"


@pytest.mark.skipif(not has_wordnet(), reason="NLTK's data are not installed")
def test_base_forms_by_wordnet(world, synonyms):
    table = read_table(synonyms, all_pairs=True)
    assert WordReader(table)("Men and puppies at traffic lights, wine glasses.") == [
        "men", "and", "puppy", "at", "traffic light", ",", "wine glass", ".",
    ]  # fmt: skip
    main(arguments(world, synonyms, "--extraction", "entities"))
    metrics = json.loads((world / "out" / "metrics.json").read_text())
    assert metrics["extraction"] == "entities"
    assert metrics["mentions"] > 0


def test_the_counts_are_of_images(synonyms):
    table = read_table(synonyms, all_pairs=True)
    one = halbench.check("a", ["dog", "dog"], frozenset({"person"}), table, 3)
    assert np.array_equal(halbench.count([one, one])["a"], [2, 2, 2, 4, 4, 2, 0, 6])
