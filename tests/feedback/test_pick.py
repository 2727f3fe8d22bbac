"""Which descriptions are picked: those that the definitions say, each once; and a project of them."""

import json
from collections import Counter

import pytest

from tests.feedback.annotations import TEXT, annotation, write_run
from vigor_jax.annotate import main
from vigor_jax.data.records.annotations import write_annotations
from vigor_jax.errors import InputError
from vigor_jax.feedback.of_run import Scored
from vigor_jax.feedback.pick import disagreement, pick, read_picks, uncertainty
from vigor_jax.feedback.tasks import Description
from vigor_jax.rewards.sentences import split_sentences


def scored(text, p_good, wrong=(), kinds=(), image="a.jpg"):
    spans = tuple(split_sentences(text))
    expected = annotation(text, *(kinds or [[]] * len(spans))).sentences
    seen = tuple(wrong) or (False,) * len(spans)
    return Scored(Description(image, text, spans, expected), tuple(p_good), seen, has_others=True)


def texts(picks):
    return [each.description for each in picks]


def test_the_least_certain_comes_first():
    pool = [scored(f"A {p}. A cat.", (p, 1.0), image=f"{p}.jpg") for p in (0.1, 0.45, 0.6, 0.99)]
    assert [uncertainty(each) for each in pool] == pytest.approx([0.2, 0.9, 0.8, 0.02])
    assert texts(pick(pool, "uncertain", 3)) == ["A 0.45. A cat.", "A 0.6. A cat.", "A 0.1. A cat."]


def test_the_largest_disagreement_comes_first():
    agree, differ = (
        scored("A cat. A dog.", (0.9, 0.2), (False, True)),
        scored("A cow. A dog.", (0.1, 0.2), (False, False)),
    )
    assert (disagreement(agree), disagreement(differ)) == (pytest.approx(0.15), pytest.approx(0.85))
    assert texts(pick([agree, differ], "disagreement", 1)) == ["A cow. A dog."]


def test_kinds_are_covered():
    common = [scored(f"A cat {n}.", (0.5,), kinds=[["object"]], image=f"{n}.jpg") for n in range(90)]
    rare = [scored(f"A dog {n}.", (0.5,), kinds=[["location"]], image=f"d{n}.jpg") for n in range(5)]
    rare += [scored(f"A cow {n}.", (0.5,), image=f"w{n}.jpg") for n in range(5)]
    found = Counter(each.why for each in pick(common + rare, "coverage", 15))
    assert found == {"coverage: object": 5, "coverage: location": 5, "coverage: none": 5}


def test_texts_images_and_what_is_known_are_picked_once():
    pool = [scored(f"A cat {n % 10}.", (0.5,), image=f"{n % 5}.jpg") for n in range(40)]
    assert len(pick(pool, "random", 40, per_image=9)) == 10
    assert len(pick(pool, "random", 40)) == 5
    known = [("other.jpg", f"A  CAT {n}.") for n in range(8)]
    assert {each.description for each in pick(pool, "random", 40, known=known)} == {"A cat 8.", "A cat 9."}
    assert pick(pool, "random", 3, seed=1) == pick(pool, "random", 3, seed=1) != pick(pool, "random", 3, seed=2)


def test_batches_overlap():
    pool = [scored(f"A cat {n}.", (0.5,), image=f"{n}.jpg") for n in range(100)]
    sizes = Counter(each.batch for each in pick(pool, "random", 100, people=3, overlap=0.1))
    assert sizes == {0: 10, 1: 30, 2: 30, 3: 30}
    assert {each.batch for each in pick(pool, "random", 100, overlap=0.5)} == {1}


def test_what_a_way_needs():
    blind = [scored("A cat.", (None,))]
    with pytest.raises(InputError, match="--by uncertain: the run has no verdicts of a reward model"):
        pick(blind, "uncertain", 1)
    alone = [each._replace(has_others=False) for each in [scored("A cat.", (0.5,))]]
    with pytest.raises(InputError, match="--by disagreement: the run has verdicts of a reward model alone"):
        pick(alone, "disagreement", 1)


def test_the_command(tmp_path, capsys):
    run, images = write_run(tmp_path)
    path = tmp_path / "picks.jsonl"
    command = ["pick", "--run", str(run), "--out", str(path), "--count", "9"]
    main(command)
    assert "2 of 2 descriptions by uncertain; batch 1: 2, for everybody: 0" in capsys.readouterr().out
    assert [(each.image, each.why) for each in read_picks(path)] == [
        ("a.png", "uncertain: 0.200"), ("deep/b 1.png", "uncertain: 0.000"),
    ]  # fmt: skip
    main([*command[:-1], "1", "--by", "disagreement"])
    export = ["export", "--run", str(run), "--images", str(images), "--out", str(tmp_path / "project")]
    main([*export, "--picks", str(path)])
    (task,) = json.loads((tmp_path / "project" / "tasks.json").read_text())
    assert task["data"]["description"] == TEXT
    with pytest.raises(InputError, match=r"--batch: .* has no picks of batch 3; it has 1"):
        main([*export, "--picks", str(path), "--batch", "3"])
    write_annotations(tmp_path / "known.jsonl", [annotation(TEXT, [], [], [], image="x.png")])
    main([*command, "--known", str(tmp_path / "known.jsonl")])
    assert [each.image for each in read_picks(path)] == ["deep/b 1.png"]
    path.write_text(path.read_text().replace("deep", "shallow"))
    with pytest.raises(
        InputError, match=r"1 of 1 picks are no candidates of this run, one of 'shallow/b 1\.png' first"
    ):
        main([*export, "--picks", str(path)])
    path.write_text('{"image": 3}')
    with pytest.raises(InputError, match="expected an object with image, description, batch, why"):
        main([*export, "--picks", str(path)])
    with pytest.raises(InputError, match="--count: expected 1 or more, got 0"):
        main([*command[:-1], "0"])
    with pytest.raises(InputError, match="--overlap: expected a share from 0 to 1, got 2"):
        main([*command, "--overlap", "2"])
