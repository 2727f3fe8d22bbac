"""Scoring with a stream that only counts: parts, resumption, division over processes, and judging while sampling."""

import threading
from pathlib import Path

import pytest

from vigor_jax.data.records import store
from vigor_jax.errors import InputError
from vigor_jax.records import Candidate, Signal, Span, Verdict
from vigor_jax.stages.judging import check_digest, score, scoring_ahead
from vigor_jax.stages.score_config import ScoreConfig

PARTS, IMAGES_A_PART, CANDIDATES = 4, 3, 2


class Letters:
    """Holds every letter against a text."""

    name = "letters"
    digest = "d1"

    def __init__(self) -> None:
        self.judged: list[str] = []

    def judge(self, items):
        for item in items:
            self.judged.append(item.image)
            yield [
                Verdict(item.image, i, self.name, (Signal("text", (Span(0, len(text)),), len(text), 0.0, 0.5),))
                for i, text in enumerate(item.texts)
            ]


@pytest.fixture
def records(tmp_path):
    (tmp_path / "images").mkdir()
    for part in range(PARTS):
        store.write_part(tmp_path / "candidates", part, PARTS, candidates(tmp_path, part), Candidate)
    return tmp_path


def candidates(root: Path, part: int) -> list[Candidate]:
    made = []
    for number in range(IMAGES_A_PART):
        image = f"{part}-{number}.png"
        (root / "images" / image).touch()
        made += [Candidate(image, "?", i, "x" * (part + i), (1, 2), -1.0, "stop") for i in range(CANDIDATES)]
    return made


def verdicts(records: Path) -> list[tuple[str, int, float]]:
    found = store.read_parts(records / "verdicts" / "letters", Verdict)
    return [(verdict.image, verdict.candidate, verdict.negative) for verdict in found]


EXPECTED = [(f"{p}-{n}.png", i, p + i) for p in range(PARTS) for n in range(IMAGES_A_PART) for i in range(CANDIDATES)]


def test_every_candidate_gets_its_verdict_and_none_twice(records):
    stream = Letters()
    score(stream, records, records / "images")
    assert verdicts(records) == EXPECTED
    score(stream, records, records / "images")
    assert len(stream.judged) == PARTS * IMAGES_A_PART
    assert store.part_metadata(records / "verdicts" / "letters") == {"digest": "d1"}


def test_only_missing_parts_are_judged(records):
    score(Letters(), records, records / "images")
    (records / "verdicts" / "letters" / store.part_name(2, PARTS)).unlink()
    stream = Letters()
    score(stream, records, records / "images")
    assert stream.judged == ["2-0.png", "2-1.png", "2-2.png"]
    assert verdicts(records) == EXPECTED


@pytest.mark.parametrize("together", [False, True])
def test_processes_share_the_parts(records, together):
    streams = [Letters(), Letters()]
    for index, stream in enumerate(streams):
        score(stream, records, records / "images", process_index=index, process_count=2, together=together)
    assert verdicts(records) == EXPECTED
    apart = {image for stream in streams for image in stream.judged}
    assert len(apart) == PARTS * IMAGES_A_PART
    assert sum(len(stream.judged) for stream in streams) == PARTS * IMAGES_A_PART * (1.5 if together else 1)


def test_ahead_judges_a_part_before_the_next_is_there(tmp_path):
    """The thread's work for part 0 is on disk while part 1 does not exist yet."""
    (tmp_path / "images").mkdir()
    folder = tmp_path / "verdicts" / "letters"
    with scoring_ahead(Letters(), tmp_path, tmp_path / "images") as named:
        for part in range(PARTS):
            store.write_part(tmp_path / "candidates", part, PARTS, candidates(tmp_path, part), Candidate)
            named(part, PARTS)
            done = threading.Event()
            for _ in range(1000):
                if store.has_part(folder, part, PARTS) or done.wait(0.01):
                    break
            assert store.has_part(folder, part, PARTS)
    assert verdicts(tmp_path) == EXPECTED


def test_ahead_leaves_what_is_there_and_what_is_of_others(records):
    score(Letters(), records, records / "images")
    for part in (0, 1):
        (records / "verdicts" / "letters" / store.part_name(part, PARTS)).unlink()
    stream = Letters()
    with scoring_ahead(stream, records, records / "images", process_index=1, process_count=2) as named:
        for part in range(PARTS):
            named(part, PARTS)
    assert stream.judged == ["1-0.png", "1-1.png", "1-2.png"]


def test_ahead_raises_when_it_is_left_and_keeps_what_it_has(records):
    (records / "images" / "2-1.png").unlink()
    ahead = scoring_ahead(Letters(), records, records / "images")
    named = ahead.__enter__()
    for part in range(PARTS):
        named(part, PARTS)
    with pytest.raises(InputError, match=r"2-1\.png has candidates and is gone"):
        ahead.__exit__(None, None, None)
    assert store.parts_done(records / "verdicts" / "letters", PARTS) == {0, 1}


def test_an_interrupted_sampler_waits_for_no_more_than_the_part_under_way(records):
    began, proceed = threading.Event(), threading.Event()

    class Slow(Letters):
        def judge(self, items):
            began.set()
            assert proceed.wait(60)
            return super().judge(items)

    def sample():
        with scoring_ahead(Slow(), records, records / "images") as named:
            for part in range(PARTS):
                named(part, PARTS)
            assert began.wait(60)
            threading.Timer(0.2, proceed.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample()
    assert store.parts_done(records / "verdicts" / "letters", PARTS) == {0}


def test_verdicts_of_another_digest_are_refused(records):
    score(Letters(), records, records / "images")
    other = Letters()
    other.digest = "d2"
    message = check_digest(other, records)
    assert "was made with another letters: its digest was d1, and now it is d2" in message
    with pytest.raises(InputError, match="another letters"):
        score(other, records, records / "images")
    with pytest.raises(InputError, match="another letters"), scoring_ahead(other, records, records / "images"):
        pass
    assert check_digest(Letters(), records) == ""


def test_missing_candidates_are_named(records):
    (records / "candidates" / store.part_name(1, PARTS)).unlink()
    with pytest.raises(InputError, match="1 of 4 parts are missing"):
        score(Letters(), records, records / "images")


def test_remote_records(records):
    folder = "memory://scoring"
    for part in range(2):
        store.write_part(f"{folder}/candidates", part, 2, candidates(records, part), Candidate)
    score(Letters(), folder, records / "images")
    found = store.read_parts(f"{folder}/verdicts/letters", Verdict)
    assert [(verdict.image, verdict.candidate, verdict.negative) for verdict in found] == EXPECTED[:12]
    assert store.part_metadata(f"{folder}/verdicts/letters") == {"digest": "d1"}


@pytest.mark.parametrize(("streams", "message"), [(("detectr",), "expected detector"), (("detector",) * 2, "once")])
def test_bad_streams(streams, message):
    with pytest.raises(InputError, match=message):
        ScoreConfig(streams)
