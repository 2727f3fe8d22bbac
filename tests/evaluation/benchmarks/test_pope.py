import json
import random
import re
from collections import Counter
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vigor_jax.errors import InputError
from vigor_jax.evaluation.answer_matching import read_answers
from vigor_jax.evaluation.benchmarks import pope
from vigor_jax.evaluation.benchmarks.pope import PopeQuestion
from vigor_jax.evaluation.benchmarks.pope_build import build_questions
from vigor_jax.evaluation.metrics import pope_metrics

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "pope"
SPLITS = ("random", "popular", "adversarial")

ANSWERS = [
    "Yes.", "yes", "No", "no", "NO", "no.", "No, there is not", "Not sure", "There is no dog, but there is a cat.", "",
    "There is a dog. It is not a cat.", "I do not, think so", "No\nthere", "nothing", "não", "Nein", "Да", "没有。",
    ".no", ",no", "n,o", "No\u00a0dog", " no ", "\tYes \n", "YES", "it isn't", "…no", "no\u2028", "yes no", "\x00",
]  # fmt: skip
texts = (
    st.sampled_from(ANSWERS)
    | st.text()
    | st.lists(st.sampled_from(["No", "no", "not", ",", ".", " ", "yes"])).map("".join)
)


def parse_by_definition(text):
    """The first sentence without commas; No, no or not between spaces is no."""
    first = re.match(r"[^.]*", text).group()
    return "no" if re.search(r"(?:\A| )(?:No|no|not)(?= |\Z)", re.sub(",", "", first)) else "yes"


def metrics_by_definition(labels, predictions):
    counted = Counter(zip(labels, predictions, strict=True))
    tp, fp, tn, fn = (counted[pair] for pair in (("yes", "yes"), ("no", "yes"), ("no", "no"), ("yes", "no")))
    n = len(labels)
    return {
        "accuracy": Fraction(tp + tn, n),
        "precision": Fraction(tp, tp + fp) if tp + fp else Fraction(0),
        "recall": Fraction(tp, tp + fn) if tp + fn else Fraction(0),
        "f1": Fraction(2 * tp, 2 * tp + fp + fn) if tp else Fraction(0),
        "yes_ratio": Fraction(tp + fp, n),
        "tp": tp,
        "fp": fp,
        "tn": tn,
        "fn": fn,
        "unparsed": sum(prediction is None for prediction in predictions),
    }


def make_questions(labels, images=1):
    return [
        PopeQuestion(i, f"{i % images}.jpg", "Is there a dog in the image?", label) for i, label in enumerate(labels, 1)
    ]


@pytest.mark.parametrize(
    ("text", "usual", "strict"),
    [
        ("Yes.", "yes", None),
        ("No, there is not", "no", None),
        ("Not sure", "yes", None),
        ("There is no dog, but a cat", "no", None),
        ("", "yes", None),
        ("no", "no", "no"),
        ("No!", "yes", None),
        ("NO", "yes", "no"),
        ("No\nthere is not", "no", None),
        ("No\nthere", "yes", None),
        (" YES\n", "yes", "yes"),
        ("Yes. There is no cat", "yes", None),
        ("n,o", "no", None),
    ],
)
def test_the_two_parsers(text, usual, strict):
    assert pope.parse_answer(text) == usual
    assert pope.parse_answer_strict(text) == strict


@given(texts)
def test_the_usual_parser_is_its_definition(text):
    assert pope.parse_answer(text) == parse_by_definition(text)


@given(st.lists(st.tuples(st.sampled_from(["yes", "no"]), texts), min_size=1, max_size=40), st.integers(1, 5))
def test_figures_are_their_definitions(pairs, images):
    labels, answers = zip(*pairs, strict=True)
    questions = make_questions(labels, images)
    for parser, by_definition in (
        (pope.parse_answer, parse_by_definition),
        (pope.parse_answer_strict, lambda text: {"yes": "yes", "no": "no"}.get(text.lower().strip())),
    ):
        expected = metrics_by_definition(labels, [by_definition(text) for text in answers])
        got = asdict(pope.compute_metrics(questions, answers, parser))
        assert got == pytest.approx({name: float(value) for name, value in expected.items()}, abs=1e-9)


def test_a_mean_is_over_splits_and_not_over_questions():
    few = pope.compute_metrics(make_questions(["yes", "no"]), ["yes", "yes"])
    many = pope.compute_metrics(make_questions(["yes"] * 6), ["no"] * 6)
    mean = pope.mean([few, many])
    assert mean.accuracy == 0.25
    assert mean.f1 == pytest.approx(float((Fraction(2, 3) + 0) / 2), abs=1e-9)
    assert (mean.tp, mean.fp, mean.fn) == (0.5, 0.5, 3)


def test_stacked_counts_give_the_same_figures():
    rng = np.random.default_rng(0)
    splits = []
    for images in (3, 4, 5):
        labels = rng.choice(["yes", "no"], 30).tolist()
        splits.append((make_questions(labels, images), rng.choice(ANSWERS, 30).tolist()))
    stacked = pope.stack([pope.count(*split) for split in splits])
    assert stacked.shape == (5, 3, 5)
    expected = asdict(pope.mean([pope.compute_metrics(*split) for split in splits]))
    for name, value in pope.mean_rates(stacked.sum(0)).items():
        assert float(value) == pytest.approx(expected[name], abs=1e-9)


def test_questions_are_read_from_lines_and_from_a_list(tmp_path):
    questions = [
        PopeQuestion(1, "ü.jpg", "Is there a dog in the image?", "yes"),
        PopeQuestion(7, "b\u2028.jpg", "Is there an apple in the image?", "no"),
    ]
    lines, whole = tmp_path / "lines.json", tmp_path / "list.json"
    pope.write_questions(lines, questions)
    whole.write_text(json.dumps([asdict(question) | {"extra": 1} for question in questions], indent=1))
    assert pope.read_questions(lines) == pope.read_questions(whole) == questions
    assert len(lines.read_bytes().splitlines()) == 2


GOOD = '{"question_id": 1, "image": "a", "text": "t", "label": "no"}'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD.replace('"no"', '"No"'), r"q.json:1: expected 'yes' or 'no' under 'label', got 'No'"),
        (f"{GOOD}\n\n{GOOD}", r"q.json:3: question_id 1 is there twice"),
        (GOOD.replace(', "label": "no"', ""), r"q.json:1: .* none called 'label'"),
        (GOOD.replace("1", '"1"'), r"q.json:1: expected an integer under 'question_id', got '1'"),
        (f"{GOOD}\n{{", r"q.json:2: malformed JSON at column 2"),
        (f"[{GOOD}, 3]", r"q.json, item 2: expected an object with question_id, image, text, label, got 3"),
        ("\n", "expected POPE questions, got an empty file"),
    ],
)
def test_bad_questions_are_refused(tmp_path, content, message):
    path = tmp_path / "q.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        pope.read_questions(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"none.json: .*No such file"):
        pope.read_questions(tmp_path / "none.json")
    (tmp_path / "latin.json").write_bytes(b'{"a": "\xfc"}')
    with pytest.raises(InputError, match=r"latin.json: expected a JSON file in UTF-8"):
        pope.read_questions(tmp_path / "latin.json")


def test_answers_belong_to_their_questions(tmp_path):
    questions = make_questions(["yes", "no", "no"])
    path = tmp_path / "a.jsonl"

    def read(*ids):
        path.write_text(
            "".join(json.dumps({"question_id": i, "answer": f"said {i}", "prompt": ""}) + "\n" for i in ids)
        )
        return read_answers([path], pope.asked(questions))

    for ids in ((1, 2, 3), (1, 3, 2), (3, 2, 1)):
        assert read(*ids).texts == ["said 1", "said 2", "said 3"]
    found = read(1, 2, 3, 4)
    assert (found.texts, [one.id for one in found.extra]) == (["said 1", "said 2", "said 3"], ["4"])
    with pytest.raises(InputError, match=r"a.jsonl: expected 3 answers, 1 are missing, to question 3$"):
        read(1, 2)
    with pytest.raises(InputError, match=r"a.jsonl:3: question 2 is answered twice, first at .*a.jsonl:2"):
        read(1, 2, 2, 3)
    with pytest.raises(InputError, match="expected an answer to each of 3 questions, got 2"):
        pope.compute_metrics(questions, ["yes", "no"])


names = st.sampled_from(["dog", "cat", "apple", "oven", "uniform", "hourglass", "traffic light", "bus", "égg", "zebra"])
scenes = st.dictionaries(st.sampled_from([f"{i}.jpg" for i in range(8)]), st.sets(names, max_size=8), min_size=1)


def asked(question):
    return re.fullmatch(r"Is there an? (.+) in the image\?", question.text)[1]


@settings(deadline=None)
@given(scenes, scenes, st.sampled_from(SPLITS), st.sampled_from([2, 4, 6]), st.integers(0, 3), st.booleans())
def test_built_questions(objects, others, split, per_image, seed, own_statistics):
    statistics = objects if own_statistics else others
    vocabulary = {name for present in statistics.values() for name in present}
    pairs = {image: min(per_image // 2, len(present), len(vocabulary - present)) for image, present in objects.items()}
    arguments = {"per_image": per_image, "seed": seed, "statistics": None if own_statistics else others}
    if not any(pairs.values()):
        with pytest.raises(InputError, match="has an object and lacks one"):
            build_questions(objects, split, **arguments)
        return
    questions = build_questions(objects, split, **arguments)
    assert [question.question_id for question in questions] == list(range(1, len(questions) + 1))
    assert [question.label for question in questions] == ["yes", "no"] * sum(pairs.values())
    for image, present in objects.items():
        mine = [question for question in questions if question.image == image]
        assert len(mine) == 2 * pairs[image]
        assert len({question.text for question in mine}) == len(mine)
        used = set()
        for yes, no in zip(mine[::2], mine[1::2], strict=True):
            name, partner = asked(yes), asked(no)
            assert name in present
            assert partner in vocabulary - present - used
            left = sorted(vocabulary - present - used)
            if split == "popular":
                rank = {other: sum(other in scene for scene in statistics.values()) for other in left}
                assert partner == max(left, key=lambda other: (rank[other], -left.index(other)))
            if split == "adversarial":
                rank = {other: sum({other, name} <= set(scene) for scene in statistics.values()) for other in left}
                best = max(left, key=lambda other: (rank[other], -left.index(other)))
                assert partner == best or rank[best] == 0
            used.add(partner)


@pytest.mark.parametrize(
    "text", ["an apple", "a dog", "a uniform", "an hourglass", "an umbrella", "a traffic light", "an X-ray machine"]
)
def test_articles(text):
    name = text.split(" ", 1)[1]
    questions = build_questions({"a": [name], "b": ["dog bed"]}, "popular", per_image=2, seed=0)
    assert [question.text for question in questions[:2]] == [
        f"Is there {text} in the image?",
        "Is there a dog bed in the image?",
    ]


def test_other_images_change_no_question_of_an_image():
    statistics = {str(i): [f"thing{(i * k) % 17}" for k in range(6)] for i in range(30)}
    few = {name: statistics[name] for name in ("3", "5")}
    more = {name: statistics[name] for name in ("9", "3", "1", "5")}
    for split in SPLITS:
        before = build_questions(few, split, seed=1, statistics=statistics)
        after = build_questions(more, split, seed=1, statistics=statistics)
        other_seed = build_questions(few, split, seed=2, statistics=statistics)
        texts = [[(q.image, q.text) for q in questions if q.image in few] for questions in (before, after, other_seed)]
        assert texts[0] == texts[1] != texts[2]
    by_split = [build_questions(more, split, seed=1, statistics=statistics) for split in SPLITS]
    yes = [[(q.image, q.text) for q in questions if q.label == "yes"] for questions in by_split]
    assert yes[0] == yes[1] == yes[2]


def test_chance_differs_between_images_and_decides_where_nothing_occurs_together():
    alone = {str(i): [f"thing{i}"] for i in range(40)}
    by_chance, together = (build_questions(alone, split, per_image=2, seed=0) for split in ("random", "adversarial"))
    assert together == by_chance
    assert len({asked(question) for question in by_chance if question.label == "no"}) > 10
    alike = {str(i): list("abcdefgh") for i in range(20)} | {"rest": ["x", "y", "z"]}
    questions = build_questions(alike, "random", per_image=2, seed=0)
    assert len({asked(question) for question in questions if question.label == "yes"}) > 4


@pytest.mark.parametrize("per_image", [0, 3, -2])
def test_an_odd_number_an_image_is_refused(per_image):
    with pytest.raises(InputError, match="expected an even number"):
        build_questions({"a": ["dog"], "b": ["cat"]}, "random", per_image=per_image, seed=0)


def test_an_unknown_split_is_refused():
    with pytest.raises(InputError, match="got 'rare'"):
        build_questions({"a": ["dog"], "b": ["cat"]}, "rare", seed=0)


@pytest.mark.skipif(not REAL.is_dir(), reason="the benchmark's files are not here")
@pytest.mark.parametrize("split", SPLITS)
def test_the_real_files(split):
    questions = pope.read_questions(REAL / f"coco_pope_{split}.json")
    assert [question.question_id for question in questions] == list(range(1, 3001))
    assert Counter(question.label for question in questions) == {"yes": 1500, "no": 1500}
    assert set(Counter(question.image for question in questions).values()) == {6}
    assert len({question.image for question in questions}) == 500
    rng = np.random.default_rng(len(split))
    answers = rng.choice(ANSWERS, 3000).tolist()
    expected = metrics_by_definition([q.label for q in questions], [parse_by_definition(text) for text in answers])
    got = asdict(pope.compute_metrics(questions, answers))
    assert got == pytest.approx({name: float(value) for name, value in expected.items()}, abs=1e-9)
    # Ours are worded as theirs, but for a slip in one of their files.
    names = {asked(question) for question in questions}
    ours = {build_questions({"a": [name], "b": ["x"]}, "random", per_image=2, seed=0)[0].text for name in names}
    slips = {"Is there an traffic light in the image?"} if split == "random" else set()
    assert {question.text for question in questions} - ours == slips


SAID = ("Yes", "no.", "YES!", "I do not know", "Nothing", "yes and no", "maybe", "", "No, yesterday")


@pytest.mark.parametrize("seed", range(3))
def test_figures_as_vcd_reads_answers(seed):
    """500 answers in all; the loop of eval_pope.py, which looks for the label's word in the answer."""
    rng = random.Random(seed)
    labels = rng.choices(["yes", "no"], k=167)
    texts = rng.choices(SAID, k=167)
    counts = Counter()
    for label, text in zip(labels, texts, strict=True):
        if label == "yes":
            counts["tp" if "yes" in text.lower().strip() else "fn"] += 1
        else:
            counts["tn" if "no" in text.lower().strip() else "fp"] += 1
    questions = [PopeQuestion(i, f"{i % 9}.jpg", "Is it?", label) for i, label in enumerate(labels)]
    found = pope_metrics({"random": (questions, texts)}, "contains")
    precision, recall = counts["tp"] / (counts["tp"] + counts["fp"]), counts["tp"] / (counts["tp"] + counts["fn"])
    wanted = {
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall),
        "accuracy": (counts["tp"] + counts["tn"]) / 167,
        "yes_ratio": (counts["tp"] + counts["fp"]) / 167,
    }
    assert {name: found["random"][name] for name in wanted} == pytest.approx(wanted, abs=1e-9)


def test_the_protocol_says_how_answers_are_read():
    split = {"random": ([PopeQuestion(1, "a.jpg", "Is it?", "yes")], ["Yes."])}
    assert pope_metrics(split)["random"]["accuracy"] == 1
    exact = pope_metrics(split, "exact")
    assert exact["random"]["accuracy"] == exact["strict"]["random"]["accuracy"] == 0
    with pytest.raises(InputError, match="expected a parser of first-sentence, exact, contains, got 'guess'"):
        pope_metrics(split, "guess")
