"""Coefficients against published examples and definitions written another way; figures of people by hand."""

import json
from collections import Counter
from fractions import Fraction

import pytest

from tests.feedback.annotations import annotation, judgments, random_annotations
from vigor_jax.annotate import main
from vigor_jax.data.records.annotations import write_annotations
from vigor_jax.errors import InputError
from vigor_jax.feedback.agreement import alpha, kappa, measure
from vigor_jax.feedback.judgments import write_judgments

# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011): C, four observers of twelve units, with gaps, and
# A, two observers of ten units with two values.
FOUR_OBSERVERS = {"A": "123321412...", "B": "1233224125.3", "C": ".3332342251.", "D": "12332441251."}
TWO_OBSERVERS = {"A": "0100000010", "B": "1110010000"}


def triples(observers):
    return [
        (who, unit, value)
        for who, values in observers.items()
        for unit, value in enumerate(values)
        if value != "."
    ]  # fmt: skip


def exact_alpha(data):
    """From the coincidence matrix, in fractions: 1 - (n - 1) (n - sum o_cc) / (n^2 - sum n_c^2)."""
    units = {}
    for _, unit, value in data:
        units.setdefault(unit, []).append(value)
    totals, alike = Counter(), Fraction(0)
    for values in units.values():
        if len(values) > 1:
            counts = Counter(values)
            totals += counts
            alike += sum(Fraction(count * (count - 1), len(values) - 1) for count in counts.values())
    n = sum(totals.values())
    return 1 - (n - 1) * (n - alike) / Fraction(n * n - sum(count * count for count in totals.values()))


def test_alpha_is_the_published_one():
    """0.743 with gaps and four observers, 0.095 for two observers and two values."""
    for observers, published in ((FOUR_OBSERVERS, 0.743), (TWO_OBSERVERS, 0.095)):
        data = triples(observers)
        found = alpha(data)
        assert round(found, 3) == published
        assert found == pytest.approx(float(exact_alpha(data)), abs=1e-9)


def test_kappa_is_the_published_one():
    """Cohen (1960), table 2: 200 cases in three categories, kappa 0.492."""
    table = ((88, 10, 2), (14, 40, 6), (18, 10, 12))
    pairs = [(row, column) for row in range(3) for column in range(3) for _ in range(table[row][column])]
    assert len(pairs) == 200
    rows, columns = [sum(row) for row in table], [sum(column) for column in zip(*table, strict=True)]
    observed = Fraction(sum(table[i][i] for i in range(3)), 200)
    expected = Fraction(sum(r * c for r, c in zip(rows, columns, strict=True)), 200 * 200)
    exact = (observed - expected) / (1 - expected)
    assert round(kappa(pairs), 3) == 0.492
    assert kappa(pairs) == pytest.approx(float(exact), abs=1e-9)


def test_what_is_undefined_is_none():
    assert alpha([]) is None
    assert alpha([("a", 1, True), ("a", 2, False), ("b", 3, True)]) is None
    assert alpha([("a", 1, True), ("b", 1, True)]) is None
    assert kappa([]) is None
    assert kappa([(True, True)] * 3) is None


def test_people_who_say_the_same_agree_on_everything():
    said = random_annotations(30)
    found = measure(judgments(*((who, each) for each in said for who in "12")), said)
    assert set(found.alpha.values()) == {1.0}
    assert found.pairs["1", "2"][1] == found.alpha
    assert [each.agreement for each in found.people] == [1.0, 1.0]
    assert [set(each.gold_kappa.values()) for each in found.people] == [{1.0}, {1.0}]
    assert found.advice == ()


def test_figures_of_people_by_hand():
    right, wrong = annotation("A cat. A dog.", [], ["object"]), annotation("A cat. A dog.", ["object"], ["object"])
    found = measure(judgments(("1", right), ("2", right), ("10", wrong)), [right])
    one, _, ten = found.people
    assert [each.annotator for each in found.people] == ["1", "2", "10"]
    assert (found.descriptions, found.overlapping, found.sentences) == (1, 1, 2)
    assert (one.share, one.errors, one.seconds) == (pytest.approx(1 / 3), 0.5, 30.0)
    assert (one.shared, one.agreement) == (1, 1.0)  # of the first sentence, the two others say different things
    assert (ten.shared, ten.agreement, ten.kappa["error"]) == (2, 0.5, 0.0)
    assert (ten.gold_missed["error"], ten.gold_invented["error"], ten.gold_missed["location"]) == (0.0, 1.0, None)
    assert found.positives["error"] == 4


def world(*, guesses=False, conjectures=False):
    """Four people judge 30 descriptions; maybe the third one guesses, or nobody knows what a conjecture is."""
    said = []
    for number in range(30):
        for who in "1234":
            sure = ["object"] if number % (3 if guesses and who == "3" else 2) else []
            odd = ["conjecture"] if conjectures and (number + int(who)) % 3 == 0 else []
            said.append((who, annotation("A cat. A dog. A fox.", sure, odd, sure, image=f"{number}.jpg")))
    return judgments(*said)


def test_who_and_what_is_bad_is_said():
    assert measure(world()).advice == ()
    (retrain,) = measure(world(guesses=True), least_alpha=-1).advice
    assert retrain.startswith("retrain annotator 3: kappa with the others is ")
    error, define = measure(world(conjectures=True), least_kappa=-1).advice
    assert error.startswith("people agree little on what is wrong at all: alpha is 0.")
    assert define.startswith("define 'conjecture' better, with examples: its alpha is 0.0")
    alone = [judgment for judgment in world() if judgment.annotator == "1"]
    assert measure(alone).advice == (
        "nothing was judged by two people, so nothing says how well they agree; let some be judged twice",
    )


def test_drift():
    right, wrong = ["object"], []
    said = []
    for number in range(50):
        said += [(who, annotation("A cat.", right, image=f"{number}.jpg")) for who in "12"]
        said.append(("3", annotation("A cat.", right if number < 25 else wrong, image=f"{number}.jpg")))
    found = measure(judgments(*said), least_kappa=-1)
    third = found.people[2]
    assert third.halves["agreement"] == (1.0, 0.0)
    assert third.halves["errors"] == (1.0, 0.0)
    (drift,) = [each for each in found.advice if "drifts" in each]
    assert drift.startswith(
        "annotator 3 drifts: like the others on 100% of the sentences in the first half of the work"
    )
    assert drift.endswith("on 0% in the second")


def test_the_command(tmp_path, capsys):
    path = tmp_path / "x.judgments.jsonl"
    write_judgments(path, world())
    gold = [each.annotation for each in world()[:12]]
    write_annotations(tmp_path / "gold.jsonl", [each for number, each in enumerate(gold) if number % 4 == 0])
    command = ["agreement", "--judgments", str(path), "--out", str(tmp_path / "a.json")]
    main([*command, "--gold", str(tmp_path / "gold.jsonl"), "--page", str(tmp_path / "a.html")])
    shown = capsys.readouterr().out
    found = json.loads((tmp_path / "a.json").read_text())
    assert f"{found['alpha']['error']:.3f}" in shown
    page = (tmp_path / "a.html").read_text()
    for title in ("Krippendorff's alpha", "Each person", "Kappa of two people", "Against gold"):
        assert title in shown
        assert title.replace("'", "&#x27;") in page
    assert [each["annotator"] for each in found["annotators"]] == ["1", "2", "3", "4"]
    assert len(found["pairs"]) == 6
    write_annotations(tmp_path / "gold.jsonl", random_annotations(2))
    with pytest.raises(InputError, match="--gold: nobody judged any of the 2 descriptions"):
        main([*command, "--gold", str(tmp_path / "gold.jsonl")])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "line 2: malformed JSON"),
        ('{"annotator": 3}', "line 2: expected an object with annotator and annotation"),
        ('{"annotator": "3", "annotation": {}}', "line 2: expected the keys image, description, sentences"),
        ('{"annotator": "3", "annotation": {}, "seconds": -1}', "line 2: expected a number of seconds or null, got -1"),
        (None, "line 2: annotator 1 judges a description of 'a.jpg' a second time"),
    ],
)
def test_wrong_judgments_are_refused(tmp_path, line, reason):
    path = tmp_path / "x.jsonl"
    write_judgments(path, judgments(("1", annotation("A cat.", []))))
    first = path.read_text()
    path.write_text(first + (first if line is None else line))
    with pytest.raises(InputError, match=reason):
        main(["agreement", "--judgments", str(path)])
    path.write_text("")
    with pytest.raises(InputError, match="expected judgments, got none"):
        main(["agreement", "--judgments", str(path)])
