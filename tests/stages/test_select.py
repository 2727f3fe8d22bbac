"""Selection on small runs on disk, against a re-computation in plain Python; resumption, processes, controls."""

import dataclasses
import json
import math
import random
import shutil
import statistics
import threading

import numpy as np
import pytest
from PIL import Image

from vigor_jax.data.batches.examples import scan_examples
from vigor_jax.data.records import store
from vigor_jax.errors import InputError
from vigor_jax.records import Candidate, Edit, Selection, Signal, Span, Target, Verdict
from vigor_jax.rewards.fusion import FusionConfig
from vigor_jax.rewards.refine import refine
from vigor_jax.rewards.sentences import split_sentences
from vigor_jax.stages.select import select
from vigor_jax.stages.select_config import SelectConfig

STREAMS = ("detector", "reward_model")
PARTS = 3
THINGS = ("cat", "dog", "cup", "lamp")


def make_candidates(draw, part):
    """A few images, some with one candidate, one of them asked twice."""
    records = []
    for image in range(5):
        for prompt in ("Describe this image.", "What is there?")[: 1 + (image == 3)]:
            for number in range((4, 1, 5)[image % 3]):
                things = draw.choices(THINGS, k=draw.randint(1, 4))
                text = " ".join(f"There is a {draw.choice(['red ', ''])}{thing}." for thing in things)
                logprob = draw.choice([-1.0, -0.5])
                records.append(Candidate(f"p{part}/{image}.png", prompt, number, text, (3, 2), logprob, "stop"))
    return records


def make_verdict(draw, candidate, stream):
    signals = []
    for sentence in split_sentences(candidate.text):
        words = candidate.text[slice(*sentence)]
        thing = next(thing for thing in THINGS if thing in words)
        if stream == "detector":
            start = sentence.start + words.index(thing)
            absent = draw.random() < 0.4
            span = Span(start, start + len(thing))
            signals.append(Signal(thing, (span,), float(absent), float(not absent), 0.25, absent))
        else:
            good = draw.choice([0.25, 0.5, 1.0])
            signals.append(Signal("1", (sentence,), 1 - good, good, good))
    return Verdict(candidate.image, candidate.candidate, stream, tuple(signals))


def make_run(folder, seed=0):
    """Candidates and verdicts on disk; returns them."""
    draw = random.Random(seed)
    run = [make_candidates(draw, part) for part in range(PARTS)]
    verdicts = {stream: [[make_verdict(draw, each, stream) for each in part] for part in run] for stream in STREAMS}
    for index, part in enumerate(run):
        store.write_part(folder / "candidates", index, PARTS, part, Candidate)
        for stream in STREAMS:
            records = verdicts[stream][index]
            store.write_part(folder / "verdicts" / stream, index, PARTS, records, Verdict, {"digest": f"of {stream}"})
    candidates = [each for part in run for each in part]
    return candidates, {stream: [each for part in parts for each in part] for stream, parts in verdicts.items()}


@pytest.fixture
def run_dir(request, tmp_path, monkeypatch):
    """A run whose images lie across the borders of row groups, unless another size of them is asked for."""
    monkeypatch.setattr(store, "ROWS_PER_GROUP", getattr(request, "param", 4))
    make_run(tmp_path / "run")
    return tmp_path / "run"


def read(folder):
    """The inputs of a run, flat: candidates, and verdicts by stream."""
    candidates = list(store.read_parts(folder / "candidates", Candidate))
    return candidates, {stream: list(store.read_parts(folder / "verdicts" / stream, Verdict)) for stream in STREAMS}


def contents(folder):
    """Bytes of all that a selection writes."""
    names = ("selections", "targets", "targets.json", "summary.json")
    paths = [path for name in names for path in ([folder / name] if "." in name else (folder / name).iterdir())]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def recompute(candidates, verdicts, config):
    """Per image and prompt: its rows, their penalties, the chosen row and what is left of its text."""
    per = [1.0] * len(candidates)
    if config.per == "sentence":
        per = [float(len(split_sentences(each.text))) for each in candidates]

    def terms(kind):
        columns = [[getattr(v, kind) / n for v, n in zip(verdicts[s], per, strict=True)] for s in STREAMS]
        weights = [config.weights.get(stream, 1.0) for stream in STREAMS]
        spreads = [statistics.pvariance(column) for column in columns]
        return [
            [w * value / spread for w, value, spread in zip(weights, row, spreads, strict=True)]
            for row in zip(*columns, strict=True)
        ]

    bad, good = terms("negative"), terms("positive")
    gamma = config.gamma if config.rule == "balanced" else 0.0
    groups = {}
    for row, candidate in enumerate(candidates):
        groups.setdefault((candidate.image, candidate.prompt), []).append(row)
    for rows in groups.values():
        penalties = [[b - gamma * g for b, g in zip(bad[row], good[row], strict=True)] for row in rows]
        keys = [
            (round(math.fsum(penalty), 9), -round(math.fsum(good[row]), 9), -candidates[row].mean_logprob, row)
            for row, penalty in zip(rows, penalties, strict=True)
        ]
        chosen = min(keys)[-1]
        yield rows, penalties, chosen, refine(candidates[chosen].text, [verdicts[stream][chosen] for stream in STREAMS])


FUSIONS = (
    FusionConfig(),
    FusionConfig(per="sentence", weights={"detector": 0.5}),
    FusionConfig(rule="balanced", gamma=0.5),
)


@pytest.mark.parametrize("run_dir", [4096, 4, 1], ids="rows_per_group={}".format, indirect=True)
@pytest.mark.parametrize("fusion", FUSIONS, ids=["paper", "per sentence", "balanced"])
def test_selections_are_those_of_plain_python(run_dir, fusion):
    summary = select(SelectConfig(fusion=fusion), run_dir, streams=STREAMS)
    candidates, verdicts = read(run_dir)
    selections = list(store.read_parts(run_dir / "selections", Selection))
    expected = list(recompute(candidates, verdicts, fusion))
    targets = []
    for selection, (rows, penalties, chosen, refined) in zip(selections, expected, strict=True):
        candidate = candidates[chosen]
        assert (selection.image, selection.prompt) == (candidate.image, candidate.prompt)
        assert (selection.candidate, selection.text) == (candidate.candidate, candidate.text)
        assert (selection.refined, selection.dropped) == (refined.text, refined.dropped)
        assert bool(selection.reason) == (not refined.text)
        np.testing.assert_allclose(selection.stream_penalties, penalties, rtol=1e-12)
        np.testing.assert_allclose(selection.penalties, [sum(each) for each in penalties], rtol=1e-12, atol=1e-12)
        assert selection.words == tuple(len(candidates[row].text.split()) for row in rows)
        assert selection.mentions == tuple(tuple(len(verdicts[s][row].signals) for s in STREAMS) for row in rows)
        kept = len(split_sentences(refined.text))  # each sentence is one mention of each stream
        assert selection.refined_mentions == (kept, kept)
        if refined.text:
            targets.append(Target(candidate.image, candidate.prompt, refined.text))
    assert list(store.read_parts(run_dir / "targets", Target)) == targets
    assert 0 < len(targets) < len(selections)  # both kinds were looked at
    assert {"only", "penalty"} <= {selection.decided_by for selection in selections}

    def mean(values):
        return pytest.approx(statistics.fmean(values))

    chosen = [candidates[chosen] for _, _, chosen, _ in expected]
    assert (summary.images, summary.candidates, summary.targets) == (len(expected), len(candidates), len(targets))
    everyone = {"candidates": candidates, "chosen": chosen, "targets": targets}
    assert summary.words == {
        kind: mean([len(each.text.split()) for each in records]) for kind, records in everyone.items()
    }
    mentions = {kind: mean([len(split_sentences(each.text)) for each in group]) for kind, group in everyone.items()}
    assert summary.mentions == dict.fromkeys(STREAMS, mentions)
    reason = "every sentence mentions something that is not there"
    assert summary.dropped == {reason: pytest.approx(1 - len(targets) / len(expected))}
    totals = sorted(math.fsum(each) for _, penalties, _, _ in expected for each in penalties)
    lowest, *quartiles, highest = summary.penalties["candidates"]
    assert (lowest, highest) == (pytest.approx(totals[0]), pytest.approx(totals[-1]))
    assert quartiles == pytest.approx(statistics.quantiles(totals, n=4, method="inclusive"))
    assert sum(summary.decided_by.values()) == len(expected)
    assert sum(summary.decisive_stream.values()) == summary.decided_by["penalty"]
    assert json.loads((run_dir / "summary.json").read_text()) == json.loads(json.dumps(dataclasses.asdict(summary)))


def test_the_table_is_printed(run_dir, capsys):
    summary = select(SelectConfig(), run_dir, streams=STREAMS)
    assert capsys.readouterr().out == summary.table() + "\n"
    first, *lines = summary.table().splitlines()
    assert first == f"{summary.images} images, {summary.candidates} candidates, {summary.targets} targets"
    (words,) = (line for line in lines if line.startswith("words"))
    assert words.split()[1:] == [f"{summary.words[kind]:.2f}" for kind in ("candidates", "chosen", "targets")]


def test_targets_json_is_what_training_reads(run_dir, tmp_path):
    select(SelectConfig(), run_dir, streams=STREAMS)
    targets = list(store.read_parts(run_dir / "targets", Target))
    for target in targets:
        path = tmp_path / "images" / target.image
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(path)
    examples = scan_examples(run_dir / "targets.json", tmp_path / "images").examples
    assert [
        (example.image.relative_to(tmp_path / "images").as_posix(), [turn.text for turn in example.turns])
        for example in examples
    ] == [(target.image, [f"<image>\n{target.prompt}", target.text]) for target in targets]


def test_it_continues_where_it_stopped(run_dir):
    select(SelectConfig(), run_dir, streams=STREAMS)
    undisturbed = contents(run_dir)
    (run_dir / "selections" / store.part_name(1, PARTS)).unlink()
    (run_dir / "targets" / store.part_name(0, PARTS)).unlink()
    (run_dir / "targets.json").unlink()
    kept = run_dir / "selections" / store.part_name(0, PARTS)
    written = kept.stat().st_mtime_ns
    select(SelectConfig(), run_dir, streams=STREAMS)
    assert contents(run_dir) == undisturbed
    assert kept.stat().st_mtime_ns == written


def test_a_kill_between_parts(run_dir, monkeypatch):
    undisturbed_dir = run_dir.parent / "undisturbed"
    shutil.copytree(run_dir, undisturbed_dir)
    select(SelectConfig(), undisturbed_dir, streams=STREAMS)
    write = store.write_part

    def dying(folder, index, *rest, **seals):
        if index == 1:
            raise KeyboardInterrupt
        write(folder, index, *rest, **seals)

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_part", dying)
        with pytest.raises(KeyboardInterrupt):
            select(SelectConfig(), run_dir, streams=STREAMS)
    assert store.parts_done(run_dir / "selections", PARTS) == {0}
    select(SelectConfig(), run_dir, streams=STREAMS)
    assert contents(run_dir) == contents(undisturbed_dir)


@pytest.mark.parametrize("num_processes", [2, 4])
def test_several_processes_make_what_one_makes(run_dir, num_processes):
    alone = run_dir.parent / "alone"
    shutil.copytree(run_dir, alone)
    expected = select(SelectConfig(), alone, streams=STREAMS)
    barrier = threading.Barrier(num_processes, timeout=60)
    results = [None] * num_processes

    def process(index):
        results[index] = select(
            SelectConfig(),
            run_dir,
            streams=STREAMS,
            process_index=index,
            process_count=num_processes,
            barrier=lambda: barrier.wait() and None,
        )

    threads = [threading.Thread(target=process, args=(index,)) for index in range(num_processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] + [None] * (num_processes - 1)
    assert contents(run_dir) == contents(alone)


def test_refinement_can_be_left_out(run_dir):
    summary = select(SelectConfig(refine="none"), run_dir, streams=STREAMS)
    selections = list(store.read_parts(run_dir / "selections", Selection))
    assert all(each.refined == each.text and not each.dropped for each in selections)
    assert (summary.targets, summary.dropped) == (summary.images, {})


def selections_of(run_dir, config):
    """Of a copy of a run."""
    folder = run_dir.parent / "copy"
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("candidates", "verdicts"):
        shutil.copytree(run_dir / name, folder / name)
    select(config, folder, streams=STREAMS)
    return list(store.read_parts(folder / "selections", Selection))


def test_the_random_control(run_dir):
    config = SelectConfig(strategy="random", refine="none")
    first = selections_of(run_dir, config)
    assert selections_of(run_dir, config) == first
    assert selections_of(run_dir, dataclasses.replace(config, seed=1)) != first
    candidates, _ = read(run_dir)
    texts = {(each.image, each.prompt, each.candidate): each.text for each in candidates}
    for each in first:
        assert each.text == each.refined == texts[each.image, each.prompt, each.candidate]
        assert (each.decided_by, each.decisive_stream, each.dropped, each.reason) == ("random", "", (), "")
    drawn = {(each.image, each.prompt): each.candidate for each in first if len(each.words) == 4}
    assert len(set(drawn.values())) > 1  # not one draw for all images
    asked_twice = [(number, drawn.get((image, "What is there?"))) for (image, _), number in drawn.items()]
    assert any(second not in (None, number) for number, second in asked_twice)  # nor one for all prompts of an image
    best = selections_of(run_dir, SelectConfig())
    assert [each.candidate for each in first] != [each.candidate for each in best]
    assert [each.penalties for each in first] == [each.penalties for each in best]


def test_a_random_candidate_may_be_refined(run_dir):
    """The same candidates as without, less the sentences that the verdicts on them say to drop."""
    plain, refined = (selections_of(run_dir, SelectConfig(strategy="random", refine=each)) for each in (False, True))
    _, verdicts = read(run_dir)
    for before, after in zip(plain, refined, strict=True):
        assert (before.image, before.candidate, before.text) == (after.image, after.candidate, after.text)
        own = [v for v in verdicts["detector"] if (v.image, v.candidate) == (after.image, after.candidate)]
        spans = [span for v in own for signal in v.signals if signal.absent for span in signal.spans]
        sentences = split_sentences(after.text)
        expected = [s for s in sentences if any(s.start < end and start < s.end for start, end in spans)]
        if not after.image.endswith("3.png"):  # which is asked twice
            assert [dropped.span for dropped in after.dropped] == expected
    assert any(after.dropped for after in refined)


def test_the_random_control_with_dropped_sentences_matches_in_length(run_dir):
    config = SelectConfig(strategy="random_drop")
    found, best = selections_of(run_dir, config), selections_of(run_dir, SelectConfig())
    assert selections_of(run_dir, config) == found
    dropped = 0
    for each, refined in zip(found, best, strict=True):
        sentences = split_sentences(each.text)
        wanted = len(split_sentences(refined.refined))
        kept = [each.refined[slice(*span)] for span in split_sentences(each.refined)]
        assert len(kept) == min(wanted, len(sentences))
        gone = {item.span for item in each.dropped}
        assert kept == [each.text[slice(*span)] for span in sentences if span not in gone]
        assert {item.reason for item in each.dropped} <= {"left out at random"}
        assert bool(each.reason) == (not kept)
        dropped += len(gone)
    assert dropped
    assert any(refined.dropped != each.dropped for each, refined in zip(found, best, strict=True))


def test_the_random_control_needs_no_streams(run_dir):
    summary = select(SelectConfig(strategy="random"), run_dir, streams=())
    assert (summary.targets, summary.mentions, summary.decided_by) == (18, {}, {"random": 18})
    assert {each.mentions[0] for each in store.read_parts(run_dir / "selections", Selection)} == {()}


def write_one(folder, candidates, verdicts, stream="detector"):
    store.write_part(folder / "candidates", 0, 1, candidates, Candidate)
    store.write_part(folder / "verdicts" / stream, 0, 1, verdicts, Verdict)


def candidate(number=0, text="A cat.", image="a.png", logprob=-1.0):
    return Candidate(image, "Describe.", number, text, (5, 2), logprob, "stop")


def verdict(number=0, negative=0.0, image="a.png", **changes):
    signal = Signal("cat", (Span(2, 5),), negative, 0.0, 0.5, **changes)
    return Verdict(image, number, "detector", (signal,))


def test_images_without_a_target_say_why(tmp_path):
    candidates = [candidate(text="A cat."), candidate(text=" ", image="b.png"), candidate(text="A dog.", image="c.png")]
    verdicts = [
        verdict(negative=1.0, absent=True),
        *(Verdict(image, 0, "detector", ()) for image in ("b.png", "c.png")),
    ]
    write_one(tmp_path, candidates, verdicts)
    summary = select(SelectConfig(), tmp_path, streams=["detector"])
    assert [(each.reason, each.refined) for each in store.read_parts(tmp_path / "selections", Selection)] == [
        ("every sentence mentions something that is not there", ""),
        ("the response is empty", ""),
        ("", "A dog."),
    ]
    assert list(store.read_parts(tmp_path / "targets", Target)) == [Target("c.png", "Describe.", "A dog.")]
    assert summary.dropped == {
        "every sentence mentions something that is not there": pytest.approx(1 / 3),
        "the response is empty": pytest.approx(1 / 3),
    }
    assert summary.words["targets"] == 2


def test_no_target_at_all(tmp_path):
    write_one(tmp_path, [candidate()], [verdict(negative=1.0, absent=True)])
    assert select(SelectConfig(), tmp_path, streams=["detector"]).targets == 0
    assert json.loads((tmp_path / "targets.json").read_text()) == []


def refused(tmp_path, config=None, streams=("detector",)):
    with pytest.raises(InputError) as caught:
        select(config or SelectConfig(), tmp_path, streams=streams)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_streams_are_refused(tmp_path):
    assert refused(tmp_path, streams=()).startswith("select: expected at least one stream")


def test_missing_parts_are_refused(run_dir):
    (run_dir / "verdicts" / "reward_model" / store.part_name(2, PARTS)).unlink()
    message = refused(run_dir, streams=STREAMS)
    assert "verdicts/reward_model: 1 of 3 parts are missing (part-00002-of-00003.parquet)" in message
    shutil.rmtree(run_dir / "candidates")
    assert "candidates: expected parts such as" in refused(run_dir, streams=STREAMS)


def test_another_number_of_parts_is_refused(tmp_path):
    write_one(tmp_path, [candidate()], [verdict()])
    store.write_part(tmp_path / "verdicts" / "own", 0, 2, [verdict()], Verdict)
    store.write_part(tmp_path / "verdicts" / "own", 1, 2, [], Verdict)
    assert "verdicts/own: expected 1 parts" in refused(tmp_path, streams=("detector", "own"))


@pytest.mark.parametrize(
    ("verdicts", "message"),
    [
        ([verdict(), verdict(image="b.png")], "row 1: expected candidate 1 of a.png, as in"),
        ([verdict(1), verdict(0)], "row 0: expected candidate 0 of a.png, as in"),
        ([verdict()], "row 1: expected candidate 1 of a.png, as in"),
        ([verdict(0), verdict(1), verdict(2)], "row 2: expected nothing, as in"),
        ([], "row 0: expected candidate 0 of a.png, as in"),
    ],
    ids=["image", "order", "too few", "too many", "none"],
)
def test_verdicts_on_others_are_refused(tmp_path, verdicts, message):
    write_one(tmp_path, [candidate(0), candidate(1)], verdicts)
    found = refused(tmp_path)
    assert f"part-00000-of-00001.parquet, {message}" in found
    assert found.endswith("score the candidates again")


def test_rows_are_counted_over_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "ROWS_PER_GROUP", 2)
    write_one(tmp_path, [candidate(i) for i in range(5)], [verdict(i) for i in (0, 1, 2, 4, 3)])
    assert "row 3: expected candidate 3 of a.png" in refused(tmp_path)


def test_candidates_out_of_order_are_refused(tmp_path):
    write_one(tmp_path, [candidate(0), candidate(2)], [verdict(0), verdict(2)])
    assert "image a.png: expected candidate 1, got 2" in refused(tmp_path)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_signals_that_are_no_penalty_are_refused_by_name(tmp_path, value):
    write_one(tmp_path, [candidate(0), candidate(1)], [verdict(0), verdict(1, negative=value)])
    message = refused(tmp_path)
    assert message.startswith("image a.png, candidate 1, stream detector: expected negative signals that are finite")
    assert f"got {value}" in message
    assert store.part_count(tmp_path / "selections") is None


def test_a_log_probability_that_is_none_is_refused_by_name(tmp_path):
    write_one(tmp_path, [candidate(0), candidate(1, logprob=math.nan)], [verdict(0), verdict(1)])
    assert refused(tmp_path).startswith("image a.png, candidate 1: expected a number as mean_logprob, got nan")


def test_a_span_outside_the_text_is_refused(tmp_path):
    write_one(tmp_path, [candidate(text="A")], [verdict(negative=1.0, absent=True)])
    message = refused(tmp_path)
    assert message.startswith(
        "verdict of detector on a.png, candidate 0: 'cat' is at characters 2 to 5 of a text of 1;"
    )


def test_other_settings_are_refused(run_dir):
    select(SelectConfig(), run_dir, streams=STREAMS)
    before = contents(run_dir)
    message = refused(run_dir, SelectConfig(fusion=FusionConfig(rule="balanced")), STREAMS)
    assert 'selections was made with settings.fusion.rule "paper", which is now "balanced"' in message
    assert "--run.overwrite true" in message
    assert "selections was made with streams" in refused(run_dir, streams=STREAMS[:1])
    for index in range(PARTS):
        records = list(store.read_part(run_dir / "verdicts" / "detector", index, PARTS, Verdict))
        metadata = {"digest": "of another detector"}
        (run_dir / "verdicts" / "detector" / store.part_name(index, PARTS)).unlink()
        store.write_part(run_dir / "verdicts" / "detector", index, PARTS, records, Verdict, metadata)
    message = refused(run_dir, streams=STREAMS)
    assert "was made with made_from" in message
    assert "of another detector" in message
    assert contents(run_dir) == before


def test_an_unknown_weight_is_refused(run_dir):
    message = refused(run_dir, SelectConfig(fusion=FusionConfig(weights={"detektor": 1.0})), STREAMS)
    assert message == "fusion.weights: there is no stream 'detektor'; the nearest stream is detector"


# Responses that say nothing


def signal(text, thing, negative=0.0, positive=1.0, *, absent=False):
    start = text.index(thing)
    return Signal(thing, (Span(start, start + len(thing)),), negative, positive, 0.5, absent)


def detected(number, text, found=(), missed=(), image="a.png"):
    """What a detector says: a signal for each thing."""
    signals = [signal(text, thing) for thing in found]
    signals += [signal(text, thing, 1.0, 0.0, absent=True) for thing in missed]
    return Verdict(image, number, "detector", tuple(signals))


def select_among(folder, candidates, config=None, image="a.png"):
    """The selection among texts, given with what is found and what is missed of each; the first is the likeliest."""
    texts = [candidate(number, text, image, -1.0 - number) for number, (text, *_) in enumerate(candidates)]
    write_one(folder, texts, [detected(number, *each, image=image) for number, each in enumerate(candidates)])
    summary = select(config or SelectConfig(), folder, streams=["detector"])
    (selection,) = store.read_parts(folder / "selections", Selection)
    return selection, summary


REAL = ("A cat sits on a mat. A dog runs. A cup is red.", ("cat", "mat", "cup"), ("dog",))
FUSION_KINDS = [
    FusionConfig(rule=rule, per=per, normalize=normalize)
    for rule in ("paper", "balanced")
    for per in ("caption", "sentence")
    for normalize in ("variance", "std")
]


@pytest.mark.parametrize("fusion", FUSION_KINDS, ids=lambda fusion: f"{fusion.rule} {fusion.per} {fusion.normalize}")
@pytest.mark.parametrize(
    "nothing",
    [
        *("", "\n\n", ".", "Dog.", "- cat -", "!!! ???"),
        *(pytest.param(each, marks=pytest.mark.slow) for each in (" ", "...", "Yes")),
    ],
)
def test_a_response_that_says_nothing_loses(tmp_path, nothing, fusion):
    longer = ("A cat sits. A dog runs. A cup is red.", ("cat",), ("dog", "cup"))
    selection, summary = select_among(tmp_path, [(nothing,), longer], SelectConfig(refine="none", fusion=fusion))
    assert (selection.candidate, selection.decided_by, selection.reason) == (1, "content", "")
    assert selection.has_content == (False, True)
    assert summary.without_content == {"candidates": 1, "chosen": 0}
    assert (summary.targets, summary.decided_by) == (1, {"content": 1})
    selection, _ = select_among(tmp_path / "two", [(nothing,), longer, REAL], SelectConfig(fusion=fusion))
    assert (selection.candidate, selection.decided_by) == (2, "penalty")


def test_words_in_which_nothing_is_judged_lose(tmp_path):
    nothing = ("How very lovely and wonderful this is to behold!",)
    selection, _ = select_among(tmp_path, [nothing, REAL])
    assert (selection.candidate, selection.decided_by, selection.has_content) == (1, "content", (False, True))
    # Where there is nothing else it is as good a target as before.
    selection, summary = select_among(tmp_path / "alone", [nothing])
    assert (selection.refined, selection.reason, selection.has_content) == (nothing[0], "", (True,))
    assert summary.targets == 1


def test_the_silence_of_a_stream_that_only_complains_is_no_lack(tmp_path):
    texts = ["A cat sits on a mat.", "A cat possibly sits."]
    complaint = Verdict("a.png", 1, "hedging", (signal(texts[1], "possibly", 1.0, 0.0),))
    candidates = [candidate(number, text) for number, text in enumerate(texts)]
    write_one(tmp_path, candidates, [Verdict("a.png", 0, "hedging", ()), complaint], "hedging")
    select(SelectConfig(), tmp_path, streams=["hedging"])
    (selection,) = store.read_parts(tmp_path / "selections", Selection)
    assert (selection.candidate, selection.decided_by, selection.has_content) == (0, "penalty", (True, True))


@pytest.mark.parametrize(
    ("texts", "min_words", "reason"),
    [
        (["", ""], 2, "the response is empty"),
        (["", " "], 0, "the response is empty"),
        (["Cat.", "Dog."], 2, "the response has fewer than 2 words"),
        (["A cat sits.", "A cat."], 4, "the response has fewer than 4 words"),
        (["Cat.", "Dog."], 1, ""),
        (["...", "..."], 0, ""),
    ],
)
def test_where_nobody_says_enough_there_is_no_target(tmp_path, texts, min_words, reason):
    selection, summary = select_among(tmp_path, [(text,) for text in texts], SelectConfig(min_words=min_words))
    assert selection.reason == reason
    assert summary.targets == (not reason)
    assert summary.dropped == ({reason: 1.0} if reason else {})
    assert json.loads((tmp_path / "targets.json").read_text()) == [] or not reason


def test_the_least_length_is_a_setting(tmp_path):
    short, long = ("A cat sits.", ("cat",)), ("A cat sits on a mat, and a dog is there.", ("cat",), ("dog",))
    for min_words, number in ((2, 0), (3, 0), (4, 1), (11, 1)):
        selection, _ = select_among(tmp_path / str(min_words), [short, long], SelectConfig(min_words=min_words))
        assert selection.candidate == number
    with pytest.raises(InputError, match=r"select\.min_words: expected 0 or more, got -1"):
        SelectConfig(min_words=-1)


def test_what_refinement_leaves_must_say_enough_too(tmp_path):
    selection, summary = select_among(tmp_path, [("Look! A dog runs there.", (), ("dog",))])
    assert (selection.refined, selection.reason) == ("Look!", "what is left of the response has fewer than 2 words")
    assert summary.targets == 0


def test_short_candidates_are_no_part_of_the_variances(run_dir):
    """A run with an empty candidate in each image chooses as it would without, by the same penalties."""
    with_empty = run_dir.parent / "with_empty"
    for index in range(PARTS):
        candidates = list(store.read_part(run_dir / "candidates", index, PARTS, Candidate))
        verdicts = {s: list(store.read_part(run_dir / "verdicts" / s, index, PARTS, Verdict)) for s in STREAMS}
        rows, judged = [], {stream: [] for stream in STREAMS}
        for row, each in enumerate(candidates):
            rows.append(each)
            for stream in STREAMS:
                judged[stream].append(verdicts[stream][row])
            if row + 1 == len(candidates) or candidates[row + 1].candidate == 0:
                rows.append(dataclasses.replace(each, candidate=each.candidate + 1, text="", mean_logprob=0.0))
                for stream in STREAMS:
                    judged[stream].append(Verdict(each.image, each.candidate + 1, stream, ()))
        store.write_part(with_empty / "candidates", index, PARTS, rows, Candidate)
        for stream in STREAMS:
            store.write_part(with_empty / "verdicts" / stream, index, PARTS, judged[stream], Verdict)
    select(SelectConfig(), run_dir, streams=STREAMS)
    select(SelectConfig(), with_empty, streams=STREAMS)
    pairs = zip(*(store.read_parts(each / "selections", Selection) for each in (run_dir, with_empty)), strict=True)
    for before, after in pairs:
        assert (before.candidate, before.refined) == (after.candidate, after.refined)
        assert after.penalties == (*before.penalties, 0.0)
        assert after.decided_by == ("content" if before.decided_by == "only" else before.decided_by)
    assert (run_dir / "targets.json").read_bytes() == (with_empty / "targets.json").read_bytes()


@pytest.mark.parametrize("strategy", ["random", "random_drop"])
def test_controls_draw_among_what_is_long_enough(tmp_path, strategy):
    """Uniformly, and blind to what the streams say."""
    drawn = []
    for number in range(40):
        image = f"{number}.png"
        candidates = [("",), REAL, ("Dog.",), REAL, ("So very lovely!",)]
        selection, _ = select_among(tmp_path / image, candidates, SelectConfig(strategy=strategy), image)
        assert (selection.decided_by, selection.reason) == ("random", "")
        drawn.append(selection.candidate)
    assert set(drawn) == {1, 3, 4}
    selection, _ = select_among(tmp_path / "none", [("",), ("Dog.",)], SelectConfig(strategy=strategy))
    assert selection.reason in ("the response is empty", "the response has fewer than 2 words")


# Sentences that continue


def test_refinement_drops_what_only_continues_and_says_so(tmp_path):
    text = "A cat sits on a mat. A dog runs by. It is black. They play. The sky is blue."
    said = (text, ("cat", "mat", "sky"), ("dog",))
    selection, _ = select_among(tmp_path, [said])
    assert selection.refined == "A cat sits on a mat. The sky is blue."
    assert [each.reason for each in selection.dropped] == [
        'mentions "dog", which is not there (0.50)',
        "continues a sentence that was left out",
        "continues a sentence that was left out",
    ]
    assert selection.refined_mentions == (3,)
    selection, _ = select_among(tmp_path / "kept", [said], SelectConfig(continuations="keep"))
    assert selection.refined == "A cat sits on a mat. It is black. They play. The sky is blue."
    selection, _ = select_among(tmp_path / "random", [said], SelectConfig(strategy="random"))
    assert selection.refined == "A cat sits on a mat. The sky is blue."
    selection, _ = select_among(tmp_path / "control", [said], SelectConfig(strategy="random_drop"))
    assert len(split_sentences(selection.refined)) == 2  # as many as refinement leaves
    selection, _ = select_among(tmp_path / "unrefined", [said], SelectConfig(refine="none"))
    assert selection.refined == text


def test_where_all_the_rest_only_continues_there_is_no_target(tmp_path):
    selection, _ = select_among(tmp_path, [("A dog runs by. It is black.", (), ("dog",))])
    assert (selection.refined, selection.reason) == ("", "refinement leaves no sentence")


# Repetitions


ONCE = SelectConfig(repetitions="once")


def judged_by_model(number, text, scores):
    """What the reward model says: a signal for each sentence."""
    spans = split_sentences(text)
    signals = [Signal("1", (span,), 1 - p, p, p) for span, p in zip(spans, scores, strict=True)]
    return Verdict("a.png", number, "reward_model", tuple(signals))


def select_by_model(folder, candidates, config):
    """Among texts that are given with p(good) of each sentence."""
    texts = [candidate(number, text, logprob=-1.0 + number) for number, (text, _) in enumerate(candidates)]
    judged = [judged_by_model(number, *each) for number, each in enumerate(candidates)]
    write_one(folder, texts, judged, "reward_model")
    summary = select(config, folder, streams=["reward_model"])
    (selection,) = store.read_parts(folder / "selections", Selection)
    return selection, summary


def test_repetitions_are_counted_by_the_summary(tmp_path):
    said = [
        ("A cat sits. A dog runs.", (1.0, 0.5)),
        ("A cat sits. A dog runs. A cat sits! a cat  sits", (1, 0.5, 1, 1)),
    ]
    selection, summary = select_by_model(tmp_path, said, SelectConfig())
    assert selection.repeats == (0, 2)
    assert (selection.candidate, selection.decided_by) == (
        1,
        "positive",
    )  # it says the same, and gains by saying it again
    assert summary.repeating == {"candidates": 1, "chosen": 1}
    assert "repeating a sentence: 1 candidates (50.0%), 1 chosen (100.0%)" in summary.table()
    selection, summary = select_by_model(tmp_path / "once", said, ONCE)
    assert (selection.candidate, selection.decided_by) == (0, "repetition")
    assert summary.repeating == {"candidates": 1, "chosen": 0}


@pytest.mark.parametrize("fusion", FUSION_KINDS, ids=lambda fusion: f"{fusion.rule} {fusion.per} {fusion.normalize}")
@pytest.mark.parametrize("scores", [(1.0, 0.5), (0.9, 0.2), (0.5, 1.0), (0.75, 0.75)])
@pytest.mark.parametrize(
    "again", [(0,), (0, 1), (1, 1, 1), *(pytest.param(each, marks=pytest.mark.slow) for each in ((1,), (0, 0, 0)))]
)
def test_a_candidate_never_gains_by_repeating_itself(tmp_path, fusion, scores, again):
    """Though the model holds what it repeats for likelier, and another candidate stands between the two."""
    sentences = ("A cat sits.", "A dog runs.")
    longer = " ".join([*sentences, *(sentences[i] for i in again)])
    said = [
        (" ".join(sentences), scores),
        (longer, (*scores, *(scores[i] for i in again))),
        ("A cup is red. A lamp is on.", (0.6, 0.6)),
    ]
    selection, _ = select_by_model(tmp_path, said, dataclasses.replace(ONCE, fusion=fusion))
    assert selection.candidate != 1
    assert selection.penalties[0] <= selection.penalties[1] + 1e-9


def test_refinement_keeps_a_repeated_sentence_once(tmp_path):
    text = "A cat sits. A dog runs. A cat sits."
    said = [(text, (1.0, 1.0, 1.0))]
    selection, _ = select_by_model(tmp_path, said, ONCE)
    assert selection.refined == "A cat sits. A dog runs."
    assert [each.reason for each in selection.dropped] == ["repeats an earlier sentence"]
    assert selection.refined_mentions == (2,)
    selection, _ = select_by_model(tmp_path / "counted", said, SelectConfig())
    assert selection.refined == text


@pytest.mark.parametrize("fusion", FUSIONS, ids=["paper", "per sentence", "balanced"])
def test_without_repetitions_it_does_not_matter_how_they_count(tmp_path, fusion):
    texts = ["A cat sits. A dog runs.", "A cup is red.", "A lamp is on. A cat sits."]
    said = [(text, (0.75, 0.5)[: len(split_sentences(text))]) for text in texts]
    config = SelectConfig(fusion=dataclasses.replace(fusion, weights={}))
    counted, _ = select_by_model(tmp_path / "count", said, config)
    once, _ = select_by_model(tmp_path / "once", said, dataclasses.replace(config, repetitions="once"))
    assert counted == once


def claimed(text, words, new=None, kind="number"):
    """A wrong claim of a text, with what makes it right."""
    span = Span(text.index(words), text.index(words) + len(words))
    edits = () if new is None else (Edit(span, new),)
    return Signal(f"dog: {words.lower()}", (span,), 1.0, 0.0, 0.0, True, kind=kind, edits=edits)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "Rain falls a lot."),
        ({"refine": "repair"}, "Three dogs run. Rain falls a lot."),
        ({"refine": "none"}, "Two dogs run. A dog on the left. Rain falls a lot."),
        ({"claims": ()}, "Two dogs run. A dog on the left. Rain falls a lot."),
        ({"claims": ("place",)}, "Two dogs run. Rain falls a lot."),
        ({"refine": "repair", "claims": ("number",)}, "Three dogs run. A dog on the left. Rain falls a lot."),
    ],
)
def test_wrong_claims_in_the_chosen_text(tmp_path, settings, text):
    """Dropped, repaired or kept by their kinds; the record and the target say the same."""
    whole = "Two dogs run. A dog on the left. Rain falls a lot."
    signals = (claimed(whole, "Two", "Three"), claimed(whole, "on the left", kind="place"))
    store.write_part(tmp_path / "candidates", 0, 1, [Candidate("a.png", "?", 0, whole, (2,), -1.0, "stop")], Candidate)
    store.write_part(tmp_path / "verdicts" / "claims", 0, 1, [Verdict("a.png", 0, "claims", signals)], Verdict)
    summary = select(SelectConfig(**settings), tmp_path, streams=("claims",))
    (selection,) = store.read_parts(tmp_path / "selections", Selection)
    assert selection.refined == text
    assert [target.text for target in store.read_parts(tmp_path / "targets", Target)] == [text]
    assert [(each.old, each.new) for each in selection.repaired] == ([("Two", "Three")] if "Three" in text else [])
    assert all(each.reason == 'claims "dog: two", which is wrong' for each in selection.repaired)
    assert summary.repairs == dict.fromkeys(("targets", "repairs"), len(selection.repaired))
    assert ("repaired: 1 targets, 1 repairs" in summary.table()) == bool(selection.repaired)
    assert {each.reason for each in selection.dropped} <= {
        'claims "dog: two", which is wrong',
        'claims "dog: on the left", which is wrong',
    }
