import json
import re
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from tests.evaluation.judge.chat_server import ChatServer, Say
from vigor_jax.errors import InputError
from vigor_jax.evaluation.benchmarks.preference import make_prompt, rank, shown_order
from vigor_jax.evaluation.benchmarks.ranks import AVERAGE, CRITERIA, aggregate, parse_ranks
from vigor_jax.evaluation.judge.judge import Judge, JudgeConfig, MalformedReplyError

NAMES = ["HL", "CA", "AA", "RA", "RL", "RS", "DL"]


@pytest.fixture
def asking(monkeypatch):
    pytest.importorskip("openai")
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-the-test")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def reply(ranks, **changes):
    return json.dumps({**dict.fromkeys(NAMES, ranks), **changes})


def test_criteria_are_the_columns_of_the_paper():
    assert list(CRITERIA) == NAMES


@pytest.mark.parametrize(
    "text",
    [
        reply([2, 1, 3]),
        f"```json\n{reply([2, 1, 3])}\n```",
        f"Here {{as asked}} it is: {reply([2, 1, 3], why='} not {')} Done.",
        f"{reply([2, 1, 3])}\n{reply([2.0, 1.0, 3.0])}",
        '{"note": {"x": 1}} ' + reply([2, 1, 3]),
    ],
)
def test_replies_are_read(text):
    assert parse_ranks(text, 3) == dict.fromkeys(NAMES, (2.0, 1.0, 3.0))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "nothing"),
        ("[1, 2, 3]", "no object"),
        ("{}", "no criterion"),
        (reply([2, 1, 3])[:-1], "cut short"),
        (reply([2, 1, 3]).replace('"DL": [2, 1, 3]', '"XX": [2, 1, 3]'), "one is missing"),
        (reply([2, 1]), "too few"),
        (reply([2, 1, 3, 4]), "too many"),
        (reply([0, 1, 2]), "from 0"),
        (reply([1, 2, 4]), "beyond"),
        (reply([2, 3, 3]), "no way to number ties"),
        (reply([1, 3, 3.5]), "no ranking"),
        (reply([2, 2, 2.5]), "no ranking"),
        (reply([1, 2, 3], CA=[1, 1, 4]), "one is no ranking"),
        (reply([1, 2, 3], CA=None), "one is null"),
        (reply(["1", "2", "3"]), "strings"),
        (reply([True, 2, 3]), "a bool"),
        (reply([[1], [2], [3]]), "lists"),
        (reply({"1": 1, "2": 2, "3": 3}), "an object"),
        (reply([float("nan")] * 3), "NaN"),
        (reply([1, 2, float("inf")]), "infinity"),
        (reply([1, 2, 3])[:-1] + ', "HL": [3, 2, 1]}', "a key twice"),
        (reply([1, 2, 3]) + reply([3, 2, 1]), "two that differ"),
        (f'{{"ranks": {reply([1, 2, 3])}}}', "not at the top"),
        ('{"a":' * 20000, "nested deeply"),
        (reply([1, 2, 3]).replace("3", "3" * 5000), "a number of 5000 digits"),
    ],
)
def test_what_is_no_full_ranking_is_malformed(text, why):
    with pytest.raises(MalformedReplyError):
        parse_ranks(text, 3)


@given(values=st.lists(st.integers(0, 5), min_size=2, max_size=6))
def test_ties_share_their_places_however_they_are_numbered(values):
    expected = tuple(rankdata(values, "average"))
    for method in ("min", "max", "dense", "average"):
        ranks = rankdata(values, method).tolist()
        assert parse_ranks(reply(ranks), len(values)) == dict.fromkeys(NAMES, expected)
    assert sum(expected) == len(values) * (len(values) + 1) / 2


def test_orders_are_shuffled_and_balanced():
    systems = ["base", "at", "rm", "all"]
    orders = [shown_order(systems, f"{i}.jpg", 0, seed=0) for i in range(2400)]
    seen = {order: orders.count(order) for order in permutations(systems)}
    assert min(seen.values()) > 60  # 100 expected, standard deviation 10
    assert max(seen.values()) < 140
    for i in range(20):
        rounds = [shown_order(systems, f"{i}.jpg", turn, seed=0) for turn in range(8)]
        for block in (rounds[:4], rounds[4:]):
            assert all({order[place] for order in block} == set(systems) for place in range(4))
        assert rounds[0] == shown_order(systems[::-1], f"{i}.jpg", 0, seed=0)
    assert orders[:50] != [shown_order(systems, f"{i}.jpg", 0, seed=1) for i in range(50)]
    # The same on every machine, for saved replies are found by it.
    assert shown_order(systems, "000000000139.jpg", 0, seed=0) == ("all", "rm", "base", "at")


def world(tmp_path, systems=("base", "at", "rm", "all"), num=12):
    """How good each system's description of an image is; ties among them. Images are seen by their bytes."""
    rng = np.random.default_rng(0)
    quality = {
        f"{i}.png": dict(zip(systems, rng.integers(0, 5, len(systems)).tolist(), strict=True)) for i in range(num)
    }
    images = {}
    for name in quality:
        images[name] = tmp_path / name
        images[name].write_bytes(name.encode())
    captions = {
        system: {name: f"The quality is {{{quality[name][system]}}} in {name}." for name in quality}
        for system in systems
    }
    return quality, images, captions


def judge_by_text(text, before):
    """High quality is rank 1 for all criteria but DL, where it is last."""
    found = re.findall(r'<description number="(\d)">\nThe quality is {(\d)} in [0-9]+\.png\.\n</description>', text)
    assert [int(number) for number, _ in found] == list(range(1, len(found) + 1))
    values = np.array([int(value) for _, value in found])
    best = rankdata(-values, "min").tolist()
    return Say(reply(best, DL=rankdata(values, "min").tolist()), usage=(1000, 50))


@pytest.mark.parametrize("repeats", [1, 3])
def test_ranks_are_mapped_back_whatever_the_order(tmp_path, repeats, asking):
    quality, images, captions = world(tmp_path)
    with ChatServer(judge_by_text) as server:
        judge = Judge(JudgeConfig(server.url, "gpt-v"), tmp_path / "c.jsonl")
        metrics = rank(captions, images, judge, repeats=repeats, instruction="Say {what} you see.")
        again = rank(captions, images, judge, repeats=repeats, instruction="Say {what} you see.")
        assert server.counts.total() == len(images) * repeats
        assert all("Say {what} you see." in text for text in server.counts)
        shown = [body["messages"][0]["content"][1]["image_url"]["url"] for body in server.bodies]
        assert len(set(shown)) == len(images)
    assert metrics.ranks == again.ranks
    assert again.spending.cached.prompt_tokens == metrics.spending.asked.prompt_tokens == 1000 * len(images) * repeats
    assert len({result.request.systems for result in metrics.results}) > 5
    for i, system in enumerate(captions):
        best = np.mean([rankdata([-q for q in by.values()])[i] for by in quality.values()])
        worst = np.mean([rankdata(list(by.values()))[i] for by in quality.values()])
        found = metrics.ranks[system]
        assert [found[name].mean for name in NAMES] == pytest.approx([best] * 6 + [worst], abs=1e-12)
        assert found[AVERAGE].mean == pytest.approx((6 * best + worst) / 7, abs=1e-12)
        assert all(cell.interval.low <= cell.mean <= cell.interval.high for cell in found.values())
    assert (metrics.images, metrics.rankings, metrics.malformed) == (len(images), len(images) * repeats, ())


def test_malformed_rankings_are_left_out_and_shown(tmp_path, asking):
    quality, images, captions = world(tmp_path, systems=("x", "y"))

    def respond(text, before):
        return Say("Description 1 is better.") if "in 3.png" in text else judge_by_text(text, before)

    with ChatServer(respond) as server:
        metrics = rank(captions, images, Judge(JudgeConfig(server.url, "v", max_attempts=2), tmp_path / "c.jsonl"))
        assert server.counts.total() == len(images) + 1
    assert [result.request.question_id for result in metrics.malformed] == ["3.png, round 1"]
    assert metrics.images == metrics.rankings == len(images) - 1
    del quality["3.png"]
    expected = np.mean([rankdata([-q for q in by.values()])[0] for by in quality.values()])
    assert metrics.ranks["x"]["HL"].mean == pytest.approx(expected, abs=1e-12)

    with ChatServer(lambda text, before: Say("No.")) as server:
        judge = Judge(JudgeConfig(server.url, "other", max_attempts=1), tmp_path / "c.jsonl")
        with pytest.raises(InputError, match=r"no reply of other is a ranking; the first is 'No\.'"):
            rank(captions, images, judge)


def test_intervals_equal_a_plain_loop():
    """Two rankings of some images, one of others: a drawn image brings all of its rankings."""
    rng = np.random.default_rng(1)
    rankings = [
        (f"{i}", {name: rng.permutation(3) + 1.0 for name in NAMES}) for i in range(15) for _ in range(1 + i % 2)
    ]
    table = aggregate(["a", "b", "c"], rankings, num=300, seed=5, level=0.8)
    draws = np.random.default_rng(5).multinomial(15, [1 / 15] * 15, size=300)
    for column, name in enumerate(NAMES):
        means = []
        for times in draws:
            drawn = [ranks[name][1] for image, ranks in rankings for _ in range(times[int(image)])]
            means.append(sum(drawn) / len(drawn))
        interval = table["b"][name].interval
        assert interval == pytest.approx(np.quantile(means, [0.1, 0.9]), abs=1e-9), column
        assert table["b"][name].mean == pytest.approx(np.mean([ranks[name][1] for _, ranks in rankings]), abs=1e-12)


def test_intervals_cover_the_truth():
    """95% intervals of a mean rank that is known; of 200, fewer than 180 cover with probability below 0.002."""
    rng = np.random.default_rng(2)
    covered = 0
    for trial in range(200):
        first = rng.random(80) < 0.7  # system 0 is first: its mean rank is 1.3
        rankings = [(str(i), dict.fromkeys(NAMES, (1.0, 2.0) if won else (2.0, 1.0))) for i, won in enumerate(first)]
        interval = aggregate(["a", "b"], rankings, num=200, seed=trial)["a"][AVERAGE].interval
        covered += interval.low <= 1.3 <= interval.high
    assert 180 <= covered < 200


def test_the_prompt():
    prompt = make_prompt(["a {b} dog", "two\ncats"], "Describe.")
    assert '<description number="1">\na {b} dog\n</description>' in prompt
    assert '<description number="2">\ntwo\ncats\n</description>' in prompt
    assert '{"HL": [...], "CA": [...], "AA": [...], "RA": [...], "RL": [...], "RS": [...], "DL": [...]}' in prompt
    assert not re.search(r"(?<!b)\{num|\{criteria", prompt)


def test_bad_input(tmp_path):
    _, images, captions = world(tmp_path, num=2)
    judge = Judge(JudgeConfig(None, "m"), tmp_path / "c.jsonl")
    for given_captions, given_images, repeats in (
        ({"base": captions["base"]}, images, 1),
        (captions, {}, 1),
        (captions, images, 0),
    ):
        with pytest.raises(InputError, match="two systems or more"):
            rank(given_captions, given_images, judge, repeats=repeats)
    del captions["rm"]["1.png"]
    with pytest.raises(InputError, match=r"description of 1\.png by rm, found none"):
        rank(captions, images, judge)
