import base64
import csv
import io
import random

import pytest
from PIL import Image

from tests.evaluation.spoken import REQUEST, say
from vigor_jax.errors import InputError
from vigor_jax.evaluation.benchmarks import mmbench, questions
from vigor_jax.evaluation.benchmarks.question_files import write_images


def picture(kind, color):
    file = io.BytesIO()
    Image.new("RGB", (20, 20), color).save(file, kind)
    return file.getvalue()


COLUMNS = [
    "index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source", "l2-category", "comment",
    "split",
]  # fmt: skip
PICTURES = [picture("JPEG", (i * 40, 0, 0)) for i in range(3)] + [picture("PNG", (0, 200, 0))]


def mmbench_rows(num=12):
    rng = random.Random(3)
    rows = []
    for i in range(num):
        options = [f'option "{i}"\t{letter}' for letter in "ABCD"][: 2 + i % 3]
        rows.append(
            {
                "index": 241 + i,
                "question": f"Which one,\n{i}?",
                "hint": ["nan", "", "A hint\nof two lines"][i % 3],
                **dict.fromkeys("ABCD", ["", "nan"][i % 2]),
                **dict(zip("ABCD", options, strict=False)),
                "answer": rng.choice("ABCD"[: len(options)]),
                "category": f"category {i % 2}",
                "image": base64.b64encode(PICTURES[i % 4]).decode() if i < 8 else str(241 + i % 4),
                "source": "x",
                "l2-category": f"broad {i % 3}",
                "comment": "nan",
                "split": "dev",
            }
        )
    return rows


def write_tsv(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(
            file, [name for name in COLUMNS if name in rows[0]], delimiter="\t", lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(rows)
    return path


def rotated(row, shift):
    options = [row[letter] for letter in "ABCD" if row[letter] not in ("", "nan")]
    right = options["ABCD".index(row["answer"])]
    options = options[shift:] + options[:shift]
    moved = dict(zip("ABCD", options, strict=False))
    index = row["index"] + shift * 1_000_000
    return {**row, **moved, "index": index, "answer": "ABCD"[options.index(right)]}


def test_mmbench_reads_what_pandas_reads(tmp_path):
    pandas = pytest.importorskip("pandas")
    path = write_tsv(tmp_path / "mmbench_dev.tsv", mmbench_rows())
    table = pandas.read_table(path)
    found = mmbench.read_mmbench(path, circular=False)
    assert len(found) == len(table) == 12
    for question, (_, row) in zip(found, table.iterrows(), strict=True):
        assert question.options == tuple(row[letter] for letter in "ABCD" if isinstance(row[letter], str))
        assert (question.question_id, question.answer) == (str(row["index"]), row["answer"])
        hint = f"{row['hint']}\n" if isinstance(row["hint"], str) else ""
        options = "".join(f"\n{letter}. {text}" for letter, text in zip("ABCD", question.options, strict=False))
        assert question.prompt == f"{hint}{row['question']}{options}\n{REQUEST}"
        assert question.categories == {"category": (row["category"],), "l2_category": (row["l2-category"],)}
        assert question.group == ""


def test_mmbench_images_become_files(tmp_path):
    found = mmbench.read_mmbench(write_tsv(tmp_path / "mmbench_dev.tsv", mmbench_rows()))
    paths = write_images(found, tmp_path / "images")
    assert list(paths) == [f"{241 + i}.{'png' if i % 4 == 3 else 'jpg'}" for i in range(8)]
    for i, path in enumerate(paths.values()):
        assert path.read_bytes() == PICTURES[i % 4]
        assert Image.open(path).size == (20, 20)
    # The last four only name another's image, and rotations have that of their question.
    assert {question.image for question in found} == set(paths)
    times = {path: path.stat().st_mtime_ns for path in paths.values()}
    assert write_images(found, tmp_path / "images") == paths
    assert {path: path.stat().st_mtime_ns for path in paths.values()} == times
    assert PICTURES[0].hex() not in repr(found[0])


@pytest.mark.parametrize("ready", [True, False], ids=["copies of the file", "copies made here"])
def test_mmbench_counts_who_is_right_each_time(tmp_path, ready):
    rows = mmbench_rows()
    copies = [rotated(row, shift) for row in rows for shift in range(1, 2 + rows.index(row) % 3)]
    path = write_tsv(tmp_path / "m.tsv", rows + copies if ready else rows)
    found = mmbench.read_mmbench(path)
    every = {str(row["index"]): row for row in (*rows, *copies)}
    assert {question.question_id for question in found} == set(every)
    for question in found:
        row = every[question.question_id]
        assert question.answer == row["answer"]
        assert question.options == tuple(row[letter] for letter in "ABCD" if row[letter] not in ("", "nan"))
        assert question.group == str(row["index"] % 1_000_000)

    rng = random.Random(4)
    said = {}
    for question in found:
        text, letter = say(rng, "ABCD"[: len(question.options)])
        is_good = rng.random() < 0.8
        said[question.question_id] = (f"({question.answer})", question.answer) if is_good else (text, letter)
    outcomes = questions.outcomes(found, [said[question.question_id][0] for question in found])
    merged = questions.merge_groups(outcomes)
    right = {
        row["index"]: all(
            said[name][1] == one["answer"] for name, one in every.items() if one["index"] % 1_000_000 == row["index"]
        )
        for row in rows
    }
    assert {int(outcome.question_id): outcome.right for outcome in merged} == right
    assert 0 < sum(right.values()) < len(right)
    metrics = questions.compute_metrics(merged)
    assert metrics.accuracy == pytest.approx(sum(right.values()) / 12, abs=1e-9)
    for k in range(2):
        part = [good for index, good in right.items() if (index - 241) % 2 == k]
        assert metrics.categories["category"][f"category {k}"].accuracy == pytest.approx(sum(part) / 6, abs=1e-9)
    assert sum(count[1] for count in questions.count(merged).values()) == 12
    single = questions.compute_metrics([outcomes[place] for place in mmbench.once(found)])
    first = [said[str(row["index"])][1] == row["answer"] for row in rows]
    assert single.accuracy == pytest.approx(sum(first) / 12, abs=1e-9)


def test_bad_mmbench(tmp_path):
    rows = mmbench_rows(3)
    for changed, message in (
        (
            [{k: v for k, v in row.items() if k != "answer"} for row in rows],
            "no column 'answer'; the test split has no",
        ),
        ([{**rows[0], "answer": "D"}], r"m.tsv:\d+: question 241: expected one of its 2 options \(A to B\) .* got 'D'"),
        ([{**rows[0], "image": "999"}], "expected an image in base64 under 'image' of question 241"),
        ([{**rows[0], "image": "*" * 100}], "expected an image in base64 under 'image' \\("),
        ([{**rows[0], "index": "x"}], "expected a number under 'index', got 'x'"),
        ([{**rows[0], "index": 1_000_241}], "question 241 is only there rotated"),
    ):
        with pytest.raises(InputError, match=message):
            mmbench.read_mmbench(write_tsv(tmp_path / "m.tsv", changed))
    with pytest.raises(InputError, match="cannot read it"):
        mmbench.read_mmbench(tmp_path / "none.tsv")
    before = csv.field_size_limit()
    mmbench.read_mmbench(write_tsv(tmp_path / "m.tsv", rows))
    assert csv.field_size_limit() == before
