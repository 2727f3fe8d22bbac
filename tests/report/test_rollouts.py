"""The records of PPO as the page has them: two iterations, examples next to each other, numbers for each token."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from tests.report.synthetic import draw_demo, make_rollout, write_ppo
from vigor_jax.data.records import store
from vigor_jax.errors import InputError
from vigor_jax.records import Rollout, Signal, Span, Verdict
from vigor_jax.report.rollouts import MAX_RESPONSES, MAX_TOKENS, Iteration, Rollouts, pack_examples, pick_examples
from vigor_jax.report.rollouts import read_rollouts as read


def rollout(image, prompt="?", candidate=0, text="A dog barks.", verdicts=()):
    return make_rollout(image, candidate, text, tuple(verdicts), np.random.default_rng(0), prompt)


def two(first, last):
    return Rollouts(9, (Iteration(1, tuple(first)), Iteration(9, tuple(last))))


def names(examples):
    return [[(group[0].image, group[0].prompt) for group in example] for example in examples]


@pytest.mark.parametrize(
    ("written", "kept"), [((1, 2, 3), [1, 3]), ((1, 2), [1, 2]), ((2,), [2]), ((3, 5), [3, 5]), ((), None)]
)
def test_the_first_and_the_last_iteration_that_exist(tmp_path, written, kept):
    write_ppo(tmp_path, draw_demo(tmp_path / "images", 4), iterations=5, batch=2, written=written)
    found = read(str(tmp_path))
    if kept is None:
        assert found is None
        return
    assert (found.total, [each.number for each in found.iterations]) == (5, kept)
    for each in found.iterations:
        assert list(each.rollouts) == list(store.read_part(tmp_path / "ppo", each.number - 1, 5, Rollout))


def test_no_other_part_is_read(tmp_path):
    """Of a thousand iterations it would take minutes."""
    write_ppo(tmp_path, draw_demo(tmp_path / "images", 4), iterations=3, batch=2)
    (tmp_path / "ppo" / "part-00001-of-00003.parquet").write_bytes(b"no parquet")
    assert [each.number for each in read(str(tmp_path)).iterations] == [1, 3]
    (tmp_path / "ppo" / "part-00002-of-00003.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match=r"part-00002-of-00003.parquet[^\n]*$"):
        read(str(tmp_path))


def test_records_that_are_elsewhere(tmp_path):
    rows = [rollout("a.png"), rollout("b.png")]
    for index in (0, 2):
        store.write_part("memory://runs/far/ppo", index, 4, rows, Rollout)
    found = read("memory://runs/far")
    assert [each.number for each in found.iterations] == [1, 3]
    assert list(found.iterations[0].rollouts) == rows


def test_responses_to_a_question_stand_together():
    rows = [rollout("a", "?", 0), rollout("a", "?", 1), rollout("a", "!", 0), rollout("b", "?", 0)]
    rows += [rollout("b", "?", 0), rollout("b", "?", 1)]  # asked again
    groups = Iteration(1, tuple(rows)).groups
    assert [[each.candidate for each in group] for group in groups] == [[0, 1], [0], [0], [0, 1]]
    assert list(itertools.chain(*groups)) == rows


def test_the_same_question_comes_first_then_the_same_image_then_others():
    first = [rollout("a", "1"), rollout("b", "1"), rollout("c", "1"), rollout("d", "1")]
    last = [rollout("e", "2"), rollout("c", "2"), rollout("b", "1"), rollout("f", "1")]
    examples = pick_examples(two(first, last))
    assert names(examples) == [
        [("b", "1"), ("b", "1")],
        [("c", "1"), ("c", "2")],
        [("a", "1"), ("e", "2")],
        [("d", "1"), ("f", "1")],
    ]
    assert names(pick_examples(two(first, last), 1)) == [[("b", "1"), ("b", "1")]]
    assert two(first, last).shared_images == 2


@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_examples_are_spread_over_the_names(count):
    first, last = ([rollout(f"{kind}{n:03}") for n in range(40)] for kind in "ab")
    examples = pick_examples(two(first, last), count)
    assert len(examples) == count
    for side, kind in enumerate("ab"):
        numbers = [int(example[side][0].image.removeprefix(kind)) for example in examples]
        assert numbers == sorted(set(numbers))
        assert numbers[0] == 0
        assert count == 1 or numbers[-1] == 39


def test_one_iteration_stands_alone():
    alone = Rollouts(9, (Iteration(1, (rollout("a"), rollout("b"))),))
    assert names(pick_examples(alone)) == [[("a", "?")], [("b", "?")]]
    assert pick_examples(Rollouts(9, (Iteration(1, ()),))) == []
    assert pick_examples(two([], [rollout("a")])) == []


def test_long_responses_are_fewer():
    long = " ".join(["word"] * 3000)
    rows = [rollout(f"{n:02}", candidate=c, text=long) for n in range(12) for c in range(6)]
    examples = pick_examples(Rollouts(1, (Iteration(1, tuple(rows)),)))
    tokens = [sum(len(one.token_ids) for group in each for one in group[:MAX_RESPONSES]) for each in examples]
    assert sum(tokens) <= MAX_TOKENS < sum(tokens) + tokens[0]
    huge = rollout("a", text=" ".join(["word"] * (MAX_TOKENS + 5)))
    assert len(pick_examples(Rollouts(1, (Iteration(1, (huge,)),)))) == 1


def test_what_is_packed_is_what_the_record_says():
    signals = (
        Signal("dog", (Span(2, 5),), 0.0, 0.5, 0.25),
        Signal("bark", (Span(6, 11), Span(6, 12)), 1.0, 0.0, 0.125, absent=True, denied=True),
        Signal("0", (Span(0, 12),), 1.0, 0.0, math.nan),
        Signal("all", (), 1.0, 0.0, 0.5),
    )
    one = rollout("a", verdicts=[Verdict("a", 0, "clip", signals)])
    one = dataclasses.replace(one, rewards=(0.12345, math.nan, 0.0, -2.0), values=())
    packed = pack_examples(two([one] * 6, [one]), [((one,) * 6, (one,))])
    assert packed["iterations"] == [1, 9]
    ((first, last),) = packed["examples"]
    assert (first["name"], first["more"], len(first["responses"]), last["more"]) == ("a", 2, 4, 0)
    response = first["responses"][0]
    assert (response["text"], response["finish"], response["values"]) == (one.text, "stop", [])
    assert response["rewards"] == [0.123, None, 0.0, -2.0]
    places = list(itertools.accumulate(response["spans"]))
    assert [Span(*pair) for pair in zip(places[::2], places[1::2], strict=True)] == list(one.token_spans)
    assert response["signals"] == [
        ["clip", "dog", 0.25, 0.5, 0.0, 0, 0, 0, 2, 3],
        ["clip", "bark", 0.125, 0.0, 1.0, 1, 1, 0, 6, 5, -5, 6],
        ["clip", "0", None, 0.0, 1.0, 0, 0, 1, 0, 12],
        ["clip", "all", 0.5, 0.0, 1.0, 0, 0, 1],
    ]


def test_the_scale_is_one_for_both_iterations_and_not_of_the_extremes():
    rng = np.random.default_rng(1)
    rows = []
    for size in (1, 3):
        values = tuple(np.append(size * rng.uniform(-1, 1, 999), 1000.0))
        one = dataclasses.replace(rollout("a"), rewards=values, advantages=(0.0,) * 1000)
        rows.append(one)
    scale = pack_examples(two([rows[0]], [rows[1]]), [])["scale"]
    assert 2.5 < scale["rewards"] <= 3
    assert scale["advantages"] == 1  # of nothing but 0, which has no color
