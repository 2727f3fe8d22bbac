"""Selection and the seals of its inputs: damage, exchanged parts, and parts that were made again."""

import dataclasses
import random
import shutil

import pytest

from tests.stages.test_select import PARTS, STREAMS, contents, make_run, make_verdict
from vigor_jax.data.records import store
from vigor_jax.errors import InputError
from vigor_jax.records import Candidate, Target, Verdict
from vigor_jax.stages.select import OtherPartsError, SelectConfig, select

INPUTS = ("candidates", *(f"verdicts/{stream}" for stream in STREAMS))


def seal_verdicts(run_dir):
    """As the stage `score` writes them."""
    for stream in STREAMS:
        folder = run_dir / "verdicts" / stream
        for index in range(PARTS):
            made_of = store.part_seal(run_dir / "candidates", index, PARTS).digest
            records = list(store.read_part(folder, index, PARTS, Verdict))
            metadata = {"digest": f"of {stream}"}
            store.write_part(folder, index, PARTS, records, Verdict, metadata, made_of=made_of)


@pytest.fixture
def run_dir(tmp_path):
    make_run(tmp_path / "run")
    seal_verdicts(tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def done(run_dir):
    select(SelectConfig(), run_dir, streams=STREAMS)
    return run_dir


def sample_again(run_dir, change):
    """Writes part 1 of the candidates again."""
    folder = run_dir / "candidates"
    records = [change(each) for each in store.read_part(folder, 1, PARTS, Candidate)]
    (folder / store.part_name(1, PARTS)).unlink()
    store.write_part(folder, 1, PARTS, records, Candidate)


def other_text(candidate):
    return dataclasses.replace(candidate, text=candidate.text.replace("cat", "dog"))


@pytest.mark.parametrize("name", INPUTS)
def test_no_flipped_bit_changes_a_target(run_dir, tmp_path, name):
    expected = shutil.copytree(run_dir, tmp_path / "expected")
    select(SelectConfig(), expected, streams=STREAMS)
    path = run_dir / name / store.part_name(1, PARTS)
    content = path.read_bytes()
    draw = random.Random(0)
    for _ in range(60):
        place = draw.randrange(8 * len(content))
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        with pytest.raises(InputError) as error:
            select(SelectConfig(), run_dir, streams=STREAMS)
        assert str(path) in str(error.value)
        assert f"run the stage {'sample' if name == 'candidates' else 'score'} again" in str(error.value)
    path.write_bytes(content)
    select(SelectConfig(), run_dir, streams=STREAMS)
    assert contents(run_dir) == contents(expected)


def test_verdicts_on_other_candidates_are_refused(run_dir):
    """Of the same images, so that nothing but the seal tells."""
    sample_again(run_dir, other_text)
    with pytest.raises(InputError, match=r"detector/part-00001\S+: these are verdicts on other candidates than"):
        select(SelectConfig(), run_dir, streams=STREAMS)


def test_the_same_part_made_again_makes_nothing_stale(done):
    before = contents(done)
    sample_again(done, lambda candidate: candidate)
    for folder in ("selections", "targets"):
        (done / folder / store.part_name(2, PARTS)).unlink()
    select(SelectConfig(), done, streams=STREAMS)
    assert contents(done) == before


def test_selections_of_other_parts_are_refused(done):
    """The variances are those of all candidates, so one other part makes all selections stale."""
    sample_again(done, other_text)
    draw = random.Random(5)
    for stream in STREAMS:
        folder = done / "verdicts" / stream
        records = [
            make_verdict(draw, each, stream) for each in store.read_part(done / "candidates", 1, PARTS, Candidate)
        ]
        made_of = store.part_seal(done / "candidates", 1, PARTS).digest
        store.write_part(folder, 1, PARTS, records, Verdict, {"digest": f"of {stream}"}, made_of=made_of)
    with pytest.raises(OtherPartsError, match=r"selections/part-00000\S+ was made of other candidates or verdicts"):
        select(SelectConfig(), done, streams=STREAMS)


@pytest.mark.parametrize("name", ["selections", "targets"])
def test_a_damaged_result_is_named_and_made_again(done, name):
    before = contents(done)
    path = done / name / store.part_name(1, PARTS)
    changed = bytearray(path.read_bytes())
    changed[len(changed) // 3] ^= 4
    path.write_bytes(changed)
    with pytest.raises(InputError, match=rf"{name}/part-00001\S+ the part is damaged.* run the stage select again"):
        select(SelectConfig(), done, streams=STREAMS)
    path.unlink()
    select(SelectConfig(), done, streams=STREAMS)
    assert contents(done) == before


def test_targets_of_other_selections_are_made_again(done, tmp_path):
    other = shutil.copytree(done, tmp_path / "other")
    shutil.rmtree(other / "selections")
    shutil.rmtree(other / "targets")
    select(SelectConfig(refine="none"), other, streams=STREAMS)
    before = contents(done)
    shutil.rmtree(done / "targets")
    shutil.copytree(other / "targets", done / "targets")
    with pytest.raises(InputError, match=r'targets was made with settings\.refine "none", which is now "drop"'):
        select(SelectConfig(), done, streams=STREAMS)
    shutil.rmtree(done / "targets")
    metadata = store.part_metadata(done / "selections")
    for index in range(PARTS):
        records = store.read_part(other / "targets", index, PARTS, Target)
        made_of = store.part_seal(other / "selections", index, PARTS).digest
        store.write_part(done / "targets", index, PARTS, records, Target, metadata, made_of=made_of)
    select(SelectConfig(), done, streams=STREAMS)
    assert contents(done) == before
