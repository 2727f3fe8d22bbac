"""`python -m vigor_jax.preferences`: what it says of a file, what it writes, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.data.preferences.form_files import BAD, BLUE, GOOD, IMAGES, RED, ROWS, embedded, make_images, rated, write
from vigor_jax import preferences
from vigor_jax.data.preferences.forms import FORMS
from vigor_jax.data.preferences.read import scan_preferences
from vigor_jax.errors import InputError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def images(tmp_path):
    return make_images(tmp_path / "images")


def command(*arguments):
    preferences.main(list(map(str, arguments)))


def refused(*arguments):
    with pytest.raises(InputError) as caught:
        command(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("form", FORMS)
def test_what_it_says_of_each_form(form, tmp_path, images, capsys):
    path = write(tmp_path / "f.json", [ROWS[form]])
    command(path, "--images", images)
    told = capsys.readouterr().out
    assert told.startswith(f"{path}: form {form}, 1 rows, 1 can be used, 1 pairs\nimages: in the image folder 1\n")
    assert (
        "words: 4.0 chosen, 7.0 rejected; the chosen one is shorter in 100.0% of the pairs, of equal length in 0.0%"
        in told
    )
    assert GOOD in told.partition("\n  chosen: ")[2].partition("\n")[0]
    assert BAD in told.partition("\n  rejected: ")[2].partition("\n")[0]
    command(path, "--images", images, "--form", form)
    assert capsys.readouterr().out == told


def test_what_is_left_out_and_what_is_wrong(tmp_path, images, capsys):
    vlf = ROWS["vlfeedback"]
    tied = vlf | {"completions": [rated("a", 1, 2, 3), rated("b", 3, 2, 1), rated("c", "N/A", 1, 1)]}
    some = vlf | {"completions": [*vlf["completions"], rated("c", None, 1, 1), rated("word " * 100, 5, 5, 4)]}
    wrong = [vlf | {"prompt": ""}] * 12
    command(write(tmp_path / "f.jsonl", [some, tied, *wrong]), "--images", images)
    told = capsys.readouterr().out
    assert "form vlfeedback, 14 rows, 1 can be used, 3 pairs" in told
    assert "left out: 1 responses whose rating is no number, 1 ties" in told
    assert "bad rows: 12\n  line 3: the question is empty\n" in told
    assert "line 12: the question is empty\n  and 2 more\n" in told
    # Of three pairs (4, 100), (4, 7), (100, 7) the chosen one is shorter in two.
    assert (
        f"words: {108 / 3:.1f} chosen, {114 / 3:.1f} rejected; the chosen one is shorter in 66.7% of the pairs" in told
    )
    assert f"  rejected: {'word ' * 40}...\n" in told


def test_conversions_of_images_by_name(tmp_path, images, capsys):
    path = write(tmp_path / "f.jsonl", [ROWS["sentinel"], ROWS["sentinel"] | {"image_path": IMAGES[1]}])
    expected = [row.preference for row in scan_preferences(path, images).rows]
    for form, name in {"own": "o.parquet", "trl": "t.parquet", "rlaif_v": "r.parquet", "sentinel": "s.jsonl"}.items():
        command(path, "--images", images, "--out", tmp_path / name, "--as", form)
        assert (
            f"{tmp_path / name}: 2 {'preferences' if form == 'own' else 'pairs'} as {form}\n" in capsys.readouterr().out
        )
        scan = scan_preferences(tmp_path / name, images)
        assert (scan.form, [row.preference for row in scan.rows]) == (form, expected)
        assert [row.image.read_bytes() for row in scan.rows] == [RED, BLUE]


def test_conversions_of_images_in_the_file(tmp_path):
    row = {"question": "Q?", "chosen": GOOD, "rejected": BAD, "idx": "7"}
    path = embedded(
        tmp_path / "f.parquet", [row] * 2, [{"bytes": RED, "path": "x.png"}, {"bytes": BLUE, "path": "x.png"}]
    )
    for form, name in {"trl": "t.parquet", "rlaif_v": "r.parquet"}.items():
        command(path, "--out", tmp_path / name, "--as", form)
        assert [row.image.read_bytes() for row in scan_preferences(tmp_path / name, None).rows] == [RED, BLUE]
    for form, name in {"own": "o.parquet", "trl": "t.jsonl", "sentinel": "s.jsonl"}.items():
        told = refused(path, "--out", tmp_path / name, "--as", form)
        assert f"--as {form}: {name} names images, and 2 are in the file that is read; give a folder" in told
        assert not (tmp_path / name).exists()
        command(path, "--out", tmp_path / name, "--as", form, "--images_out", tmp_path / "out")
        rows = scan_preferences(tmp_path / name, tmp_path / "out").rows
        assert [row.image.read_bytes() for row in rows] == [RED, BLUE]
        assert [row.preference.name for row in rows] == ["7", "7"]
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_bad_rows_end_a_conversion_unless_they_may_be_left_out(tmp_path, images):
    trl = ROWS["trl"]
    path = write(tmp_path / "f.json", [trl, trl | {"chosen": BAD}, trl | {"rejected": ""}])
    out = ("--images", images, "--out", tmp_path / "o.parquet", "--as", "own")
    told = refused(path, *out)
    assert (
        "2 of 3 rows cannot be trained on; fix them, or give --skip_bad to leave them out: index 1: two responses"
        in told
    )
    assert not (tmp_path / "o.parquet").exists()
    command(path, *out, "--skip_bad")
    assert pq.read_table(tmp_path / "o.parquet").num_rows == 1
    assert "no other row is left" in refused(write(tmp_path / "g.json", [trl | {"chosen": BAD}]), *out, "--skip_bad")


def test_options_that_do_not_fit(tmp_path, images):
    path = write(tmp_path / "f.jsonl", [ROWS["trl"]])
    assert "--out and --as go together" in refused(path, "--out", tmp_path / "o.parquet")
    assert "--out and --as go together" in refused(path, "--as", "own")
    assert "preferences: argument --as: invalid choice: 'povid'" in refused(path, "--out", "o", "--as", "povid")
    assert "--out: expected a name that ends in .parquet for own, got" in refused(
        path, "--out", "o.json", "--as", "own"
    )
    assert "ends in .parquet or .jsonl for trl" in refused(path, "--out", "o.json", "--as", "trl")
    assert "f.jsonl is the file that is read; choose another name" in refused(path, "--out", path, "--as", "trl")
    assert "unrecognized arguments: --image" in refused(path, "--image", images)
    assert json.loads(path.read_text()) == ROWS["trl"]


def test_the_command(tmp_path):
    """In its own process: exit code 2 and one line on stderr for a wrong file."""
    wrong = write(tmp_path / "g.json", [{"id": "1", "prompt": "Q?", "img_path": "a.png"}])
    command = [sys.executable, "-m", "vigor_jax.preferences", wrong]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: {wrong}: resembles vlfeedback: 'completions' is missing in index 0, which has id, img_path, prompt; "
        "docs/preferences.md shows the forms\n"
    )
