"""Curves and figures of PPO: what is there is drawn, and each figure is what the records and metrics say."""

import json

import numpy as np
import pytest

from tests.report.synthetic import draw_demo, write_ppo
from vigor_jax.report import ppo_panels
from vigor_jax.report.rollouts import read_rollouts
from vigor_jax.report.word_scores import KnownObjects, ObjectFiles


def lines(count, **more):
    return [
        {"step": n, "reward": float(n), "kl": -0.5, "unfinished": 0.25} | {k: v[n - 1] for k, v in more.items()}
        for n in range(1, count + 1)
    ]


def test_what_a_run_measures_is_drawn_and_nothing_else():
    titles = [panel.title for panel in ppo_panels.curves({"run": lines(4)})]
    assert titles == ["Reward of a response", "KL from the reference, of a response", "Responses"]
    own = lines(2, value_loss=[1.0, 0.5], rewarded=[0.1, 0.2], punished=[0.0, 0.0])
    both = ppo_panels.curves({"one": lines(4), "other": own})
    panels = {panel.title: panel for panel in both}
    assert set(panels["Reward of a response"].charts) == {"one", "other"}
    assert set(panels["Value loss"].charts) == {"other"}
    assert panels["Tokens with a reward"].legend == {"rewarded": "rewarded", "punished": "punished"}
    assert panels["Responses"].legend == {"one": "unfinished"}
    assert panels["Value loss"].legend == {}
    assert ppo_panels.curves({"run": []}) == []


def test_what_is_no_number_is_left_out():
    odd = lines(5, reward=[1.0, float("nan"), "high", None, 3.0])
    assert ppo_panels.changes({"run": odd})["Reward of a response"] == {"run": "1 → 3"}
    assert ppo_panels.changes({"run": [{"reward": 1.0}, {"step": "x", "reward": 2.0}]}) == {}
    assert len(ppo_panels.curves({"run": odd})) == 3


def test_the_ends_of_each_curve():
    found = ppo_panels.changes({"one": lines(3, punished=[0.5, 0.2, 0.0001]), "other": lines(1)})
    assert found["Reward of a response"] == {"one": "1 → 3", "other": "1"}
    assert found["KL from the reference, of a response"]["one"] == "−0.5 → −0.5"
    assert found["Tokens with a reward: punished"] == {"one": "50.0% → 0.01%"}
    assert found["Responses: unfinished"]["other"] == "25.0%"


@pytest.mark.parametrize(("count", "points"), [(1, 1), (150, 1), (151, 2), (4000, 27)])
def test_how_many_iterations_a_point_stands_for(count, points):
    assert ppo_panels.points_of({"run": lines(count), "short": lines(1)}) == points


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    demo = draw_demo(folder / "images", 24)
    write_ppo(folder, demo, iterations=2, batch=20, streams=("detector", "reward_model"))
    objects = {name: sorted({item.shape for item in scene.objects}) for name, scene in demo.scenes.items()}
    (folder / "objects.json").write_text(json.dumps(objects))
    return read_rollouts(str(folder)), KnownObjects(ObjectFiles((folder / "objects.json",)), list(objects)), objects


def test_correct_and_hallucinated_words_where_the_objects_are_known(kept):
    rollouts, known, objects = kept
    panels, table = ppo_panels.scores({"run": rollouts}, {"run": known})
    assert [panel.title for panel in panels] == [
        "Detector: iteration 1",
        "Detector: iteration 2",
        "Detector: the same by caption, first iteration",
        "Detector: all scores, first and last",
        "Detector: correct words, first and last",
        "Detector: hallucinated words, first and last",
        "Reward model: iteration 1",
        "Reward model: iteration 2",
        "Reward model: all scores, first and last",
    ]
    assert list(panels[0].legend) == ["correct", "hallucinated"]
    assert list(panels[6].legend) == ["rewarded", "punished"]
    (detector, model) = table
    vocabulary = set().union(*objects.values())  # what no image has is no known object
    for each, column in zip(rollouts.iterations, detector.columns, strict=True):
        words = [
            (signal.label in objects[rollout.image], signal.score, signal.label)
            for rollout in each.rollouts
            for signal in rollout.verdicts[0].signals
            for _ in signal.spans
        ]
        known_words = [(is_right, score) for is_right, score, label in words if label in vocabulary]
        right, wrong = ([score for is_right, score in known_words if is_right is kind] for kind in (True, False))
        rows = column.rows
        assert right
        assert wrong
        assert column.iteration == each.number
        assert rows["Words or sentences with a score"] == str(len(words))
        assert rows["Correct words"].split(" ")[0] == str(len(right))
        assert rows["Hallucinated words"].split(" ")[0] == str(len(wrong))
        assert rows["Words for no known object"] == str(len(words) - len(known_words))
        assert rows["Hallucinated: punished"] == "100.0%"
        won = np.mean([(a > b) + (a == b) / 2 for a in right for b in wrong])
        assert rows["AUC by word"] == f"{won:.3f}"
        assert rows["Images whose objects are known"] == "20 of 20"
    assert not any("Correct" in label for column in model.columns for label in column.rows)
    assert set(ppo_panels.labels(table)) == set(detector.columns[0].rows)


def test_without_known_objects_the_streams_opinion_is_shown(kept):
    rollouts, _, _ = kept
    panels, table = ppo_panels.scores({"run": rollouts}, {})
    assert [panel.title for panel in panels][:3] == [
        "Detector: iteration 1",
        "Detector: iteration 2",
        "Detector: all scores, first and last",
    ]
    assert list(panels[0].legend) == ["rewarded", "punished"]
    signals = [s for each in rollouts.iterations[0].rollouts for s in each.verdicts[0].signals for _ in s.spans]
    share = np.mean([signal.positive > signal.negative for signal in signals])
    assert table[0].columns[0].rows["Rewarded"] == f"{100 * share:.1f}%"
    assert "AUC by word" not in ppo_panels.labels(table)


def test_one_iteration_is_compared_with_nothing(kept):
    rollouts, known, _ = kept
    alone = rollouts._replace(iterations=rollouts.iterations[:1])
    panels, table = ppo_panels.scores({"run": alone}, {"run": known})
    assert not [panel.title for panel in panels if "first and last" in panel.title]
    assert [len(each.columns) for each in table] == [1, 1]
