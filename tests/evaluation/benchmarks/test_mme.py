import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vigor_jax.errors import InputError
from vigor_jax.evaluation.benchmarks import mme
from vigor_jax.evaluation.benchmarks.mme import MmeQuestion

ANSWERS = [
    "Yes", "no", "Yes.", "No, there is not", "Not sure", "There is no dog, but...", "", "I know", "  yes", "\nyes",
    "It is", "Yes\tno", "YES!", "NO", "** no", "ja", "はい", "não", "…no", "n o", "y", "\u0130no", "ye\ts", "no\r\nyes",
]  # fmt: skip
answers = st.sampled_from(ANSWERS) | st.text()
truths = st.sampled_from(["yes", "no"])
images = st.lists(st.tuples(st.tuples(truths, answers), st.tuples(truths, answers)), min_size=1, max_size=4)


def make(pairs, prefix=""):
    return [
        MmeQuestion(f"{prefix}{i}.jpg", f"Is this {k}? Please answer yes or no.", truth, answer)
        for i, pair in enumerate(pairs)
        for k, (truth, answer) in enumerate(pair)
    ]


def said(text):
    """MME's reading: the first four characters in lower case have yes, or else no."""
    for word in ("yes", "no"):
        for start in range(5 - len(word)):
            if text.lower()[start : start + len(word)] == word:
                return word
    return "other"


def figures_by_definition(results):
    rows = [
        (subtask, question.image, said(question.answer) == question.truth, said(question.answer) == "other")
        for subtask, questions in results.items()
        for question in questions
    ]
    frame = pd.DataFrame(rows, columns=["subtask", "image", "right", "other"])
    accuracy = 100 * frame.groupby("subtask")["right"].mean()
    plus = 100 * frame.groupby(["subtask", "image"])["right"].all().groupby("subtask").mean()
    return pd.DataFrame({"accuracy": accuracy, "plus": plus, "other": frame.groupby("subtask")["other"].sum()})


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("Yes.", "yes"),
        ("No, there is not", "no"),
        ("Not sure", "no"),
        ("There is no dog, but...", None),
        ("", None),
        ("I know", None),
        ("know", "no"),
        (" YES", "yes"),
        ("  yes", None),
        ("noyes", "no"),
    ],
)
def test_parser(text, parsed):
    assert mme.parse_answer(text) == parsed


@given(st.text() | answers)
def test_the_parser_is_its_definition(text):
    assert (mme.parse_answer(text) or "other") == said(text)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(mme.SUBTASKS), images, min_size=1))
def test_figures_are_their_definitions(pairs):
    results = {subtask: make(some) for subtask, some in pairs.items()}
    expected = figures_by_definition(results)
    metrics = mme.compute_metrics(results)
    assert list(metrics.subtasks) == [subtask for subtask in mme.SUBTASKS if subtask in results]
    for subtask, got in metrics.subtasks.items():
        row = expected.loc[subtask]
        assert got.accuracy == pytest.approx(row["accuracy"], abs=1e-9)
        assert got.accuracy_plus == pytest.approx(row["plus"], abs=1e-9)
        assert got.score == pytest.approx(row["accuracy"] + row["plus"], abs=1e-9)
        assert got.images * 2 == len(results[subtask])
        assert got.unparsed == row["other"]


@settings(deadline=None, max_examples=30)
@given(st.tuples(*[images] * 14))
def test_sums(pairs):
    results = {subtask: make(some) for subtask, some in zip(mme.SUBTASKS, pairs, strict=True)}
    expected = figures_by_definition(results)[["accuracy", "plus"]].sum(axis=1)
    metrics = mme.compute_metrics(results)
    assert metrics.perception == pytest.approx(sum(expected[name] for name in mme.PERCEPTION), abs=1e-9)
    assert metrics.cognition == pytest.approx(sum(expected[name] for name in mme.COGNITION), abs=1e-9)
    counts, strata = mme.count(results)
    assert counts.shape == (sum(map(len, pairs)), 14, 3)
    assert [mme.SUBTASKS[i] for i in strata] == [name for name, some in results.items() for _ in some[::2]]
    rates = mme.rates(counts.sum(0))
    assert float(rates["perception"]) == metrics.perception
    assert float(rates["OCR"]) == pytest.approx(metrics.subtasks["OCR"].score, abs=1e-9)


def test_a_sum_needs_all_its_subtasks():
    right = make([(("yes", "yes"), ("no", "no"))])
    full = dict.fromkeys(mme.PERCEPTION, right)
    metrics = mme.compute_metrics(full)
    assert (metrics.perception, metrics.cognition) == (2000, None)
    del full["count"]
    assert mme.compute_metrics(full).perception is None


@settings(deadline=None)
@given(pairs=images)
def test_results_survive_their_file(pairs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    results = {"OCR": make(pairs), "scene": make(pairs, "photos of ")}
    mme.write_results(folder, results)
    again = mme.read_results(folder)
    assert again.keys() == results.keys()
    assert mme.compute_metrics(again) == mme.compute_metrics(results)
    # And as the benchmark's own script reads them: the line break stays at the answer.
    with open(folder / "OCR.txt", encoding="utf-8") as file:
        lines = [line.split("\t") for line in file.readlines()]
    assert [len(line) for line in lines] == [4] * len(results["OCR"])
    assert [said(line[3]) for line in lines] == [said(question.answer) for question in results["OCR"]]
    assert {line[2] for line in lines} <= {"Yes", "No"}


def make_benchmark(folder):
    """One subtask in each of the two layouts."""
    with_answers, apart = folder / "color", folder / "posters"
    (apart / "images").mkdir(parents=True)
    (apart / "questions_answers_YN").mkdir()
    with_answers.mkdir()
    for name in ("b", "a"):
        (with_answers / f"{name}.txt").write_text(f"Is {name} red? Please answer yes or no.\tYes\nIs it blue?\tNo")
        (with_answers / f"{name}.jpg").touch()
    (apart / "images" / "tt1.png").touch()
    (apart / "questions_answers_YN" / "tt1.txt").write_text("Is this film old?\tNo\r\nNew?\tYes\r\n\r\n")
    (folder / "eval_tool").mkdir()
    (folder / "eval_tool" / "readme.txt").write_text("How to run it")


def test_both_layouts_are_read(tmp_path):
    make_benchmark(tmp_path)
    subtasks = mme.read_subtasks(tmp_path)
    assert list(subtasks) == ["color", "posters"]
    assert [(q.image, q.question, q.truth) for q in subtasks["color"]] == [
        ("a.jpg", "Is a red? Please answer yes or no.", "yes"),
        ("a.jpg", "Is it blue?", "no"),
        ("b.jpg", "Is b red? Please answer yes or no.", "yes"),
        ("b.jpg", "Is it blue?", "no"),
    ]
    assert [(q.image, q.question, q.truth, q.path) for q in subtasks["posters"]] == [
        ("tt1.png", "Is this film old?", "no", tmp_path / "posters" / "images" / "tt1.png"),
        ("tt1.png", "New?", "yes", tmp_path / "posters" / "images" / "tt1.png"),
    ]
    answered = {name: mme.answered(questions, ["Yes"] * len(questions)) for name, questions in subtasks.items()}
    metrics = mme.compute_metrics(answered)
    assert metrics.subtasks["color"] == mme.SubtaskScore(50, 0, 2, 0)
    assert mme.answered(subtasks["posters"], ["a", "b"])[1].answer == "b"


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda f: (f / "color/a.jpg").unlink(), r"a.txt: expected its image .*a with .jpg"),
        (
            lambda f: (f / "color/a.txt").write_text("One?\tYes\n"),
            r"a.txt: expected two questions about an image, got 1",
        ),
        (
            lambda f: (f / "color/a.txt").write_text("One?\tYes\nTwo? No\n"),
            r"a.txt:2: expected question, answer with tabs",
        ),
        (
            lambda f: (f / "color/a.txt").write_text("One?\tYes\nTwo?\tMaybe\n"),
            r"a.txt:2: expected Yes or No .* 'Maybe'",
        ),
        (lambda f: (f / "color/a.txt").write_bytes(b"\xff\tYes"), r"a.txt: expected a text file in UTF-8"),
    ],
)
def test_bad_benchmarks_are_refused(tmp_path, break_it, message):
    make_benchmark(tmp_path)
    break_it(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        mme.read_subtasks(tmp_path)
    assert "\n" not in str(caught.value)


def test_folders_without_anything_are_refused(tmp_path):
    with pytest.raises(InputError, match="expected MME's folders"):
        mme.read_subtasks(tmp_path)
    with pytest.raises(InputError, match=r"result files such as existence.txt"):
        mme.read_results(tmp_path)


def test_questions_come_in_pairs():
    first, second = make([(("yes", "yes"), ("no", "no"))])
    other = MmeQuestion("other.jpg", "?", "yes", "yes")
    for questions in ([first], [first, other], [first, second, other]):
        with pytest.raises(InputError, match="two questions after one another about each image"):
            mme.compute_metrics({"OCR": questions})
    with pytest.raises(InputError, match="got 'hue'"):
        mme.compute_metrics({"hue": [first, second]})
