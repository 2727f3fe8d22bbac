"""Pairs of responses on small runs on disk, against the definition; what the stage refuses, and what it counts."""

import dataclasses
import itertools
import json
import shutil
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.stages.test_select import PARTS, STREAMS, make_run
from vigor_jax.config import RunConfig, TrainConfig
from vigor_jax.data.records import store
from vigor_jax.errors import InputError, StaleError
from vigor_jax.hf.options import ModelConfig
from vigor_jax.inference.sampling_config import SamplingConfig
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.pipeline.rounds import of_round
from vigor_jax.pipeline.table import make_stages
from vigor_jax.records import Candidate, Dropped, Preference, Repaired, Selection, Signal, Span, Verdict
from vigor_jax.rewards.detector_config import DetectionConfig
from vigor_jax.rewards.reward_model_config import RewardModelConfig
from vigor_jax.stages.pair import PairStage
from vigor_jax.stages.pair_config import PairConfig
from vigor_jax.stages.pair_records import Pairing
from vigor_jax.stages.pair_responses import pair_image
from vigor_jax.stages.sample_config import SampleConfig
from vigor_jax.stages.score import ScoreStage
from vigor_jax.stages.score_config import ScoreConfig
from vigor_jax.stages.select import select
from vigor_jax.stages.select_config import SelectConfig
from vigor_jax.stages.stage import RunContext


class Steps:
    """What a run gives to a stage."""

    def begin(self, result):
        pass

    def mark(self, result):
        return "settings"

    def barrier(self, name):
        pass


def stage_of(config):
    score = ScoreStage(ScoreConfig(STREAMS), DetectionConfig(), RewardModelConfig(), None)
    return PairStage(config, SampleConfig(), score)


def pair(run_dir, **settings):
    """Runs the stage; the preferences and what became of each image."""
    mesh = MeshConfig()
    context = RunContext(run_dir, str(run_dir), ModelConfig(Path("m")), None, mesh, mesh)  # which it does not open
    stage_of(PairConfig(**settings)).run(context, Steps())
    found = list(store.read_parts(run_dir / "preferences", Preference))
    rows = pq.read_table(run_dir / "preferences.parquet").to_pylist()
    assert [(row["image"], tuple(row["responses"]), tuple(row["ratings"])) for row in rows] == [
        (each.image, each.responses, each.ratings) for each in found
    ]
    return found, list(store.read_parts(run_dir / "pairing", Pairing))


@pytest.fixture
def run_dir(tmp_path):
    """With selections, some of whose sentences were dropped."""
    make_run(tmp_path / "run")
    select(SelectConfig(), tmp_path / "run", streams=STREAMS)
    return tmp_path / "run"


def read(run_dir):
    """Each selection with the texts of its candidates."""
    candidates = store.read_parts(run_dir / "candidates", Candidate)
    for selection in store.read_parts(run_dir / "selections", Selection):
        yield selection, [next(candidates).text for _ in selection.penalties]


def ratio(one, other):
    lengths = len(one.split()), len(other.split())
    return min(lengths) / max(lengths)


@pytest.mark.parametrize("chosen", ["refined", "best"])
@pytest.mark.parametrize("margin", [0.0, 2.0])
@pytest.mark.parametrize("lengths", [0.0, 0.75])
@pytest.mark.parametrize("per_image", [1, 3])
def test_the_worst_candidates_are_rejected(run_dir, chosen, margin, lengths, per_image):
    """By the definition, over all subsets of the other candidates."""
    found, _ = pair(run_dir, chosen=chosen, margin=margin, match_lengths=lengths, per_image=per_image)
    by_image = {key: list(own) for key, own in itertools.groupby(found, lambda each: (each.image, each.prompt))}
    seen = Counter()
    for selection, texts in read(run_dir):
        own = by_image.get((selection.image, selection.prompt), [])
        good = selection.refined if chosen == "refined" else selection.text
        least = selection.penalties[selection.candidate]
        fits = {  # of equal texts, which have equal words but not always equal verdicts, the worst
            text: max(p for p, each in zip(selection.penalties, texts, strict=True) if each == text) for text in texts
        }
        fits = {
            text: penalty
            for text, penalty in fits.items()
            if text != good and penalty - least > 1e-9 and penalty - least >= margin and ratio(text, good) >= lengths
        }
        if chosen == "refined" and selection.reason:
            fits = {}
        assert {each.responses[0] for each in own} <= {good}
        rejected = [each.responses[1] for each in own]
        assert len(rejected) == len(set(rejected)) == min(per_image, len(fits))
        assert set(rejected) <= set(fits)
        left = set(fits) - set(rejected)
        order = {text: -ratio(text, good) if lengths else -fits[text] for text in fits}  # the first ones are taken
        assert all(order[one] <= order[other] for one in rejected for other in left)
        assert {each.ratings for each in own} <= {(1.0, 0.0)}
        assert all(each.whole and not each.context for each in own)
        seen[min(len(fits), 4)] += 1
    assert len(seen) > 1


def test_what_was_dropped_is_the_difference(run_dir):
    found, pairings = pair(run_dir, rejected="unrefined")
    selections = [selection for selection, _ in read(run_dir)]
    changed = [each for each in selections if each.dropped and not each.reason]
    assert [each.responses for each in found] == [(each.refined, each.text) for each in changed]
    assert 2 < len(changed) < len(selections)
    left_out = Counter(count.name for each in pairings for count in each.left_out)
    assert left_out["image without a target"] == sum(bool(each.reason) for each in selections)
    assert left_out["nothing refined"] == sum(not (each.dropped or each.reason) for each in selections)
    shorter, _ = pair(shutil.copytree(run_dir, run_dir.parent / "again"), rejected="unrefined", chosen="refined")
    assert shorter == found


def test_all_candidates_ranked(run_dir):
    found, _ = pair(run_dir, all_ranked=True, margin=1.0)
    images = iter(found)
    for selection, texts in read(run_dir):
        first = {text: index for index, text in reversed(list(enumerate(texts)))}
        ratings = {text: -selection.penalties[index] for text, index in sorted(first.items(), key=lambda e: e[1])}
        spread = max(ratings.values()) - min(ratings.values())
        if spread >= 1.0:
            each = next(images)
            assert dict(zip(each.responses, each.ratings, strict=True)) == ratings
            assert all(each.ratings[one] > each.ratings[other] for one, other in each.pairs())
    assert next(images, None) is None
    assert len({len(each.responses) for each in found}) > 1


def selection(**changes):
    """Of three candidates; the first is the best one, and refined."""
    given = {
        "image": "a.png", "prompt": "?", "candidate": 0, "decided_by": "penalty", "penalties": (1.0, 3.0, 2.0),
        "stream_penalties": (), "text": "A cat. A dog.", "dropped": (Dropped(Span(7, 13), "no dog"),),
        "refined": "A cat.", "reason": "",
    }  # fmt: skip
    return Selection(**given | changes)


TEXTS = ["A cat. A dog.", "A cup. A dog. A hat.", "A lamp."]


@pytest.mark.parametrize(
    ("settings", "changes", "texts", "pairs", "left_out"),
    [
        ({}, {}, TEXTS, [("A cat.", TEXTS[1])], {}),
        ({"per_image": 5}, {}, TEXTS, [("A cat.", TEXTS[1]), ("A cat.", TEXTS[2])], {}),
        ({"match_lengths": 0.5}, {}, TEXTS, [("A cat.", TEXTS[2])], {"lengths": 1}),
        ({"match_lengths": 0.3, "per_image": 5}, {}, TEXTS, [("A cat.", TEXTS[2]), ("A cat.", TEXTS[1])], {}),
        ({"margin": 1.5}, {}, TEXTS, [("A cat.", TEXTS[1])], {"margin": 1}),
        ({"margin": 2.0}, {}, TEXTS, [("A cat.", TEXTS[1])], {"margin": 1}),
        ({"margin": 2.5}, {}, TEXTS, [], {"margin": 2}),
        ({}, {"penalties": (1.0, 1.0, 0.5)}, TEXTS, [], {"no higher penalty": 2}),
        ({}, {"penalties": (0.3, 0.1 + 0.2, 0.3)}, TEXTS, [], {"no higher penalty": 2}),
        ({}, {}, [TEXTS[0], " A cat. ", "A cat."], [], {"equal texts": 2}),
        ({"per_image": 2}, {}, [TEXTS[0], "A lamp.", "A lamp."], [("A cat.", "A lamp.")], {"equal texts": 1}),
        ({}, {}, [TEXTS[0], " ", TEXTS[2]], [("A cat.", TEXTS[2])], {"empty texts": 1}),
        ({}, {"reason": "none"}, TEXTS, [], {"image without a target": 1}),
        ({"chosen": "best"}, {"reason": "none"}, TEXTS, [(TEXTS[0], TEXTS[1])], {}),
        ({}, {"penalties": (1.0,)}, TEXTS[:1], [], {"image with one candidate": 1}),
        ({"rejected": "unrefined"}, {}, TEXTS, [("A cat.", TEXTS[0])], {}),
        ({"rejected": "unrefined", "match_lengths": 0.8}, {}, TEXTS, [], {"lengths": 1}),
        ({"rejected": "unrefined"}, {"dropped": (), "refined": TEXTS[0]}, TEXTS, [], {"nothing refined": 1}),
        ({"rejected": "unrefined"},
         {"dropped": (), "refined": "A cat. A cow.", "repaired": (Repaired(Span(9, 12), "dog", "cow", ""),)}, TEXTS,
         [("A cat. A cow.", TEXTS[0])], {}),
        ({"chosen": "best"}, {"text": ""}, ["", *TEXTS[1:]], [], {"empty texts": 1}),
        ({"all_ranked": True}, {}, TEXTS, [tuple(TEXTS)], {}),
        ({"all_ranked": True}, {"penalties": (1.0, 3.0, 0.0), "has_content": (True, True, False)}, [*TEXTS[:2], "A."],
         [tuple(TEXTS[:2])], {"candidate without content": 1}),
        ({"all_ranked": True}, {"has_content": (False, True, False)}, TEXTS, [], {"candidate without content": 2}),
        ({"all_ranked": True}, {"penalties": (1.0, 1.0, 1.0)}, TEXTS, [], {"no higher penalty": 1}),
        ({"all_ranked": True, "margin": 9.0}, {}, TEXTS, [], {"margin": 1}),
        ({"all_ranked": True}, {"penalties": (1.0,)}, TEXTS[:1], [], {"image with one candidate": 1}),
        ({"all_ranked": True}, {}, [TEXTS[0]] * 3, [], {"equal texts": 2}),
    ],
)  # fmt: skip
def test_one_image(settings, changes, texts, pairs, left_out):
    pairing, found = pair_image(PairConfig(**settings), selection(**changes), texts, [])
    assert [each.responses for each in found] == pairs
    assert dict(pairing.left_out) == left_out
    assert pairing.pairs == len(pairs)


def test_errors_of_the_rejected_are_counted_by_kind():
    def signals(*pairs):
        return tuple(Signal("x", (Span(0, 1),), *sides, 0.5, kind=kind) for *sides, kind in pairs)

    said = [{"detector": (), "claims": ()}] * 3
    said[1] = {
        "detector": signals((1, 0, ""), (1, 0, ""), (0, 1, "")),
        "claims": signals((2, 0, "number"), (0, 1, "place")),
    }
    verdicts = [{name: Verdict("a.png", i, name, own) for name, own in each.items()} for i, each in enumerate(said)]
    pairing, _ = pair_image(PairConfig(), selection(), TEXTS, verdicts)
    assert dict(pairing.errors) == {"detector": 1, "number": 1}


def test_the_summary(run_dir, capsys):
    found, pairings = pair(run_dir, match_lengths=0.8, per_image=2)
    summary = json.loads((run_dir / "pairs.json").read_text())
    words = [[len(text.split()) for text in each.responses] for each in found]
    assert summary["images"] == len(list(read(run_dir))) == len(pairings)
    assert summary["preferences"] == summary["pairs"] == len(found) > 3
    assert summary["images_with_pairs"] == len({(each.image, each.prompt) for each in found})
    assert summary["words"] == {
        "chosen": sum(own[0] for own in words) / len(words), "rejected": sum(own[1] for own in words) / len(words)
    }  # fmt: skip
    assert summary["left_out"]["lengths"] > 0
    assert summary["errors"].keys() == set(STREAMS)
    printed = capsys.readouterr().out
    assert f"{len(found)} preferences, {len(found)} pairs" in printed
    assert f"left out, lengths: {summary['left_out']['lengths']}" in printed


def test_parts_that_are_there_stay(run_dir):
    pair(run_dir)
    before = {path: path.read_bytes() for path in run_dir.glob("p*/part-*")} | {
        path: path.read_bytes() for path in (run_dir / "preferences.parquet", run_dir / "pairs.json")
    }
    assert len(before) == 2 * PARTS + 2
    for removed in ("preferences", "pairing"):
        (run_dir / removed / store.part_name(1, PARTS)).unlink()
        pair(run_dir)
        assert {path: path.read_bytes() for path in before} == before


def test_other_selections_make_it_stale(run_dir):
    pair(run_dir)
    for name in ("selections", "targets"):
        shutil.rmtree(run_dir / name)
    select(SelectConfig(strategy="random"), run_dir, streams=STREAMS)
    with pytest.raises(StaleError, match="was made of other selections than those that are there; put those back"):
        pair(run_dir)


def test_selections_of_other_candidates(run_dir):
    folder, name = run_dir / "candidates", store.part_name(0, PARTS)
    records = [dataclasses.replace(each, text="Other.") for each in store.read_part(folder, 0, PARTS, Candidate)]
    (folder / name).unlink()
    store.write_part(folder, 0, PARTS, records, Candidate)
    with pytest.raises(InputError, match=r"the selection of image p0/0\.png is of other candidates"):
        pair(run_dir)


def test_without_a_selection(tmp_path):
    make_run(tmp_path)
    with pytest.raises(InputError, match=r"compares candidates by what select says, and there is no .*selections"):
        pair(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"margin": 1e9}, r"none of 18 images gave a pair \(.*margin.*\); lower pair.margin"),
        ({"match_lengths": 1.0, "rejected": "unrefined"}, "lower pair.match_lengths"),
    ],
)
def test_no_pair_at_all(run_dir, settings, message):
    with pytest.raises(InputError, match=message):
        pair(run_dir, **settings)
    assert json.loads((run_dir / "pairs.json").read_text())["preferences"] == 0
    assert not (run_dir / "preferences.parquet").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"margin": -0.5}, "pair.margin: expected a finite number of 0 or more, got -0.5"),
        ({"margin": float("nan")}, "pair.margin: expected a finite number"),
        ({"match_lengths": 1.2}, r"pair.match_lengths: expected 0 \(off\) to 1"),
        ({"per_image": 0}, "pair.per_image: expected at least 1, got 0"),
        ({"per_step": 0}, "pair.per_step: expected at least 1, got 0"),
        ({"max_sentences": 0}, "pair.max_sentences: expected at least 1, got 0"),
        ({"chosen": "best", "rejected": "unrefined"}, "are the same text"),
        ({"all_ranked": True, "match_lengths": 0.5}, "pair.all_ranked takes all candidates"),
        (
            {"kind": "sentences", "sampling": SamplingConfig(num_candidates=1)},
            "pair.sampling.num_candidates: expected 2",
        ),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(InputError, match=message):
        PairConfig(**settings)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"select": SelectConfig(refine="none")}, "^pair.chosen refined: select.refine is none"),
        ({"score": ScoreConfig(()), "pair": PairConfig("sentences")}, "^pair.kind sentences: expected a stream"),
    ],
)
def test_settings_of_stages_that_contradict_each_other(sections, message):
    def config(*stages):
        return TrainConfig(RunConfig(Path("run"), stages), ModelConfig(Path("model")), **sections)

    with pytest.raises(InputError, match=message):
        make_stages(config("pair"))
    assert make_stages(config("sft"))  # where it is not asked for, nothing is wrong


def test_only_options_of_its_kind_count():
    of_sentences, of_responses = (PairConfig(kind).settings().keys() for kind in ("sentences", "responses"))
    assert {key.split(".")[1] for key in of_sentences} == {
        "kind", "match_lengths", "wrong", "per_step", "max_sentences", "sampling"
    }  # fmt: skip
    assert {key.split(".")[1] for key in of_responses} == {
        "kind", "match_lengths", "chosen", "rejected", "margin", "per_image", "all_ranked"
    }  # fmt: skip
    fields = {field.name for field in dataclasses.fields(PairConfig)}
    assert {key.split(".")[1] for key in [*of_sentences, *of_responses]} == fields


def test_rounds_draw_other_sentences():
    whole = TrainConfig(RunConfig(Path("run"), rounds=2), ModelConfig(Path("model")))
    assert [of_round(whole, number).pair.sampling.seed for number in (1, 2)] == [0, 1]
