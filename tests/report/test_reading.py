"""Records to distributions and to what the gallery shows, against what the records say one by one."""

import json
import shutil

import numpy as np
import pytest

from tests.report.synthetic import draw_demo, write_records
from vigor_jax.data.records import store
from vigor_jax.records import Candidate, Selection, Signal, Span, Target, Verdict
from vigor_jax.report.examples import DISAGREE, HALLUCINATED, MAX_BOXES
from vigor_jax.report.reading import image_names, read_records
from vigor_jax.rewards.sentences import split_sentences

STREAMS = ("detector", "reward_model")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    demo = draw_demo(run / "images", 24)
    texts = {("00003.png", 1): "", ("00004.png", 0): "A 🐕 dog. Two 🐈🐈 hearts can be seen."}
    write_records(run, demo, texts=texts)
    return run


@pytest.fixture(scope="module")
def records(run):
    return read_records(str(run), image_names(str(run)))


def all_of(run, name, record_type):
    return list(store.read_parts(run / name, record_type))


def test_distributions_are_those_of_the_records(run, records):
    candidates = all_of(run, "candidates", Candidate)
    selections = {each.image: each for each in all_of(run, "selections", Selection)}
    chosen = [selections[each.image].candidate == each.candidate for each in candidates]
    assert records.groups == 24
    assert records.terms == STREAMS
    np.testing.assert_array_equal(records.words, [len(each.text.split()) for each in candidates])
    np.testing.assert_array_equal(records.chosen, chosen)
    np.testing.assert_allclose(
        records.penalties, [selections[each.image].penalties[each.candidate] for each in candidates], rtol=1e-12
    )
    np.testing.assert_array_equal(
        records.target_words, [len(each.text.split()) for each in all_of(run, "targets", Target)]
    )
    for stream in STREAMS:
        verdicts = all_of(run, f"verdicts/{stream}", Verdict)
        np.testing.assert_allclose(records.negatives[stream], [each.negative for each in verdicts], rtol=1e-12)
        scores = [(signal.score, own) for each, own in zip(verdicts, chosen, strict=True) for signal in each.signals]
        np.testing.assert_array_equal(records.scores[stream], [score for score, _ in scores])
        np.testing.assert_array_equal(records.score_chosen[stream], [own for _, own in scores])


def test_examples_say_what_the_records_say(run, records):
    verdicts = {
        (stream, each.image, each.candidate): each
        for stream in STREAMS
        for each in all_of(run, f"verdicts/{stream}", Verdict)
    }
    selections = {each.image: each for each in all_of(run, "selections", Selection)}
    candidates = {(each.image, each.candidate): each for each in all_of(run, "candidates", Candidate)}
    assert [example["name"] for example in records.examples] == sorted(selections)
    for example in records.examples:
        selection = selections[example["name"]]
        assert (example["chosen"], example["decided"]) == (selection.candidate, selection.decided_by)
        assert example["dropped"] == [[*each.span, each.reason] for each in selection.dropped]
        np.testing.assert_allclose(example["terms"], selection.stream_penalties, rtol=1e-3)
        for number, shown in enumerate(example["candidates"]):
            text = candidates[example["name"], number].text
            assert shown["text"] == text
            assert np.cumsum(shown["sentences"]).tolist() == [place for span in split_sentences(text) for place in span]
            for column, stream in enumerate(STREAMS):
                signals = verdicts[stream, example["name"], number].signals
                assert len(signals) == len(shown["signals"][column])
                at = 0
                for signal, (index, *steps) in zip(signals, shown["signals"][column], strict=True):
                    places = np.cumsum([at, *steps])[1:].tolist()
                    at = places[-1]
                    label, score, is_bad, is_absent, boxes, *kind = example["things"][index]
                    assert kind == ([signal.kind] if signal.kind else [])
                    assert places == [place for span in signal.spans for place in span]
                    assert (label, is_absent) == (signal.label, signal.absent)
                    assert is_bad == (signal.absent or signal.negative > signal.positive)
                    assert score / 100 == pytest.approx(signal.score, abs=0.00501)
                    np.testing.assert_allclose(np.array(boxes) / 1000, signal.boxes_xyxy, atol=0.00051)


def write_one(run, text, **streams):
    """One candidate of one image, with the signals of each stream."""
    store.write_part(run / "candidates", 0, 1, [Candidate("a.png", "?", 0, text, (), -1.0, "stop")], Candidate)
    for stream, signals in streams.items():
        store.write_part(run / "verdicts" / stream, 0, 1, [Verdict("a.png", 0, stream, signals)], Verdict)


TEXT = "A dog barks. A cat sleeps."
DOG, CAT, FIRST, SECOND = Span(2, 5), Span(15, 18), Span(0, 12), Span(13, 26)


def found(label, span):
    return Signal(label, (span,), 0.0, 1.0, 0.8, boxes_xyxy=((0.1, 0.2, 0.3, 0.4),))


def absent(label, span):
    return Signal(label, (span,), 1.0, 0.0, 0.1, absent=True)


def judged(span, p_good):
    return Signal("1" if p_good >= 0.5 else "0 object", (span,), 1 - p_good, p_good, p_good)


@pytest.mark.parametrize(
    ("detector", "reward_model", "flags"),
    [
        ((found("dog", DOG), found("cat", CAT)), (judged(FIRST, 0.9), judged(SECOND, 0.8)), 0),
        ((found("dog", DOG), absent("cat", CAT)), (judged(FIRST, 0.9), judged(SECOND, 0.2)), HALLUCINATED),
        ((found("dog", DOG), absent("cat", CAT)), (judged(FIRST, 0.9), judged(SECOND, 0.8)), HALLUCINATED + DISAGREE),
        ((found("dog", DOG), found("cat", CAT)), (judged(FIRST, 0.1), judged(SECOND, 0.8)), DISAGREE),
        ((found("dog", DOG),), (judged(FIRST, 0.9), judged(SECOND, 0.1)), 0),  # of the second only one says anything
        ((), (), 0),
    ],
)
def test_flags(tmp_path, detector, reward_model, flags):
    write_one(tmp_path, TEXT, detector=detector, reward_model=reward_model)
    (example,) = read_records(str(tmp_path), ["a.png"]).examples
    assert example["candidates"][0]["flags"] == flags


def test_a_custom_stream_counts_by_what_it_holds_against(tmp_path):
    write_one(
        tmp_path,
        TEXT,
        mine=(Signal("too long", (FIRST,), 2.0, 0.5, 0.7),),
        reward_model=(judged(FIRST, 0.9),),
    )
    records = read_records(str(tmp_path), ["a.png"])
    assert records.streams == ("mine", "reward_model")
    assert records.examples[0]["candidates"][0]["flags"] == DISAGREE
    assert records.examples[0]["chosen"] == -1
    assert records.terms == ()
    assert not records.chosen.any()


def test_what_is_unknown_is_neither_good_nor_bad(tmp_path):
    unknown = Signal("cat", (CAT,), 0.0, 0.0, 0.6)
    signals = (found("dog", DOG), unknown)
    for folder, p_good in ((tmp_path / "good", 0.9), (tmp_path / "bad", 0.1)):
        write_one(folder, TEXT, detector=signals, reward_model=(judged(FIRST, 0.9), judged(SECOND, p_good)))
        (example,) = read_records(str(folder), ["a.png"]).examples
        assert [thing[:4] for thing in example["things"][:2]] == [["dog", 80, False, False], ["cat", 60, None, False]]
        assert example["candidates"][0]["flags"] == 0  # of the cat, one stream alone says anything


def test_the_best_boxes_are_kept_inside_the_image(tmp_path):
    boxes = tuple((number / 100, -0.5, 1.5, 0.9) for number in range(MAX_BOXES + 3))
    write_one(tmp_path, TEXT, detector=(Signal("dog", (DOG,), 0.0, 1.0, 0.9, boxes_xyxy=boxes),))
    (thing,) = read_records(str(tmp_path), ["a.png"]).examples[0]["things"]
    assert thing[4] == [[10 * number, 0, 1000, 900] for number in range(MAX_BOXES)]


def test_what_is_no_number_is_left_out_of_json(tmp_path):
    nan = float("nan")
    write_one(tmp_path, TEXT, detector=(Signal("dog", (DOG,), 0.0, 1.0, nan),))
    (example,) = read_records(str(tmp_path), ["a.png"]).examples
    assert example["things"][0][1] is None
    json.dumps(example, allow_nan=False)


def test_only_some_images_are_shown_and_all_are_counted(run):
    records = read_records(str(run), ["00001.png", "00020.png"])
    assert [example["name"] for example in records.examples] == ["00001.png", "00020.png"]
    assert len(records.words) == 24 * 5


def test_without_candidates_there_are_no_records(tmp_path):
    assert image_names(str(tmp_path)) == []
    assert read_records(str(tmp_path), []) is None


def test_a_stream_that_is_half_scored_is_left_out(run, tmp_path, caplog):
    write_records(tmp_path, draw_demo(tmp_path / "images", 6), selected=False)
    shutil.rmtree(tmp_path / "verdicts" / "reward_model")
    store.write_part(tmp_path / "verdicts" / "reward_model", 0, 2, [], Verdict)
    assert read_records(str(tmp_path), []).streams == ("detector",)
    assert "reward_model: has 1 parts where the candidates have 2" in caplog.text
