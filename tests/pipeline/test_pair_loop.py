"""The stage `pair` by the command, in real processes, with a model that writes sentences: killed, divided, changed."""

import json
import random
import shutil
import signal
import socket
import time
from pathlib import Path

import jax
import pytest

from tests.pipeline.loop_world import PROMPT, ROOT, finish, options, start
from tests.stages.pair_streams import Things
from vigor_jax.data.records.store import read_parts
from vigor_jax.hf.load import open_checkpoint
from vigor_jax.inference.policy import Policy
from vigor_jax.inference.sampling_config import SamplingConfig
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.parallel.sharding import make_mesh
from vigor_jax.records import Preference, ScoreItem
from vigor_jax.rewards.repetitions import repetitions
from vigor_jax.rewards.sentences import split_sentences
from vigor_jax.stages.pair_records import Pairing
from vigor_jax.stages.pair_sentences import step_seed

pytestmark = pytest.mark.slow

STREAMS = [f"{ROOT / 'tests/stages/pair_streams.py'}:{name}" for name in ("Things", "Follower", "Together")]
SAMPLING = {"num_candidates": 6, "max_new_tokens": 32, "temperature": 1.0}


@pytest.fixture(scope="module")
def world(taught_world):
    return taught_world


def command(world, run_dir, **changes):
    """Of a run that makes pairs of sentences; `__` in the name of a change stands for a dot."""
    values = {
        "run.dir": run_dir,
        "run.stages": "pair",
        "model.path": world / "model",
        "model.dtype": "float32",
        "sample.images": world / "images",
        "sample.prompts": f"[{PROMPT}]",
        "sample.images_per_part": 3,
        "score.streams": json.dumps(STREAMS),
        "pair.kind": "sentences",
        "pair.max_sentences": 5,
        "pair.sampling.batch_size": 2,
    }
    values |= {f"pair.sampling.{name}": value for name, value in SAMPLING.items()}
    return options(values | {name.replace("__", "."): value for name, value in changes.items()})


def artifacts(run_dir):
    names = ("preferences.parquet", "pairs.json")
    files = [*run_dir.glob("*/*.parquet"), *(run_dir / name for name in names)]
    return {path.relative_to(run_dir).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def undisturbed(world, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("undisturbed")
    finish(start(world, command(world, run_dir)))
    assert len(artifacts(run_dir)) == 2 * 4 + 2
    return run_dir


@pytest.fixture
def copy(undisturbed, tmp_path):
    return shutil.copytree(undisturbed, tmp_path / "run")


def refusal(world, arguments):
    errors = finish(start(world, arguments), code=2)
    (line,) = (line for line in errors.splitlines() if line.startswith("error: "))
    assert "Traceback" not in errors
    return line


def reference(world, image):
    """One image alone, from the definition: whole samples, cut afterwards; each sentence judged in its text."""
    policy = Policy(open_checkpoint(world / "model"), make_mesh(MeshConfig(), jax.devices()[:1]), dtype="float32")
    path, sampling = world / "images" / image, SamplingConfig(**SAMPLING)
    text, pairs = "", []
    for step in range(5):
        request = policy.request(image, path, PROMPT, context=text)
        completions = next(policy.sample([request], sampling, seed=step_seed(0, step)))
        options = {}
        for completion in completions:
            written = policy.continuation(text, completion.token_ids)
            spans = split_sentences(written)
            continues = len(spans) > 1
            if not spans or not (continues or completion.finish_reason == "stop"):
                continue
            sentence = written[: spans[0][1]]
            if not any(map(str.isalnum, sentence)) or "\ufffd" in sentence:
                continue
            if repetitions(text + sentence) and repetitions(text + sentence)[-1].end == len(text + sentence):
                continue
            options[sentence] = options.get(sentence, False) or continues
        right, wrong, unknown = [], [], []
        for sentence in options:
            (first,) = next(Things().judge([ScoreItem(image, path, PROMPT, (text + sentence,))]))
            own = [each for each in first.signals if any(span.end > len(text) for span in each.spans)]
            is_even = len(text + sentence) % 2 == 0
            said = {each.label for each in first.signals if each.spans[0].end <= len(text)}
            says_news = is_even or any(each.positive and each.label not in said for each in own)
            bad = sum(each.negative for each in own)
            good = 1.5 * sum(each.positive for each in own) + is_even
            (wrong if bad else right if says_news else unknown).append((good, 1.5 * bad, sentence))
        best = [max(right, key=lambda each: each[0])] if right else unknown[:1]
        if right and wrong:
            pairs.append((text, best[0][2], max(wrong, key=lambda each: each[1])[2]))
        if not best:
            break
        text += best[0][2]
        if not options[best[0][2]]:
            break
    return text, pairs


@pytest.mark.main
def test_texts_and_pairs_are_those_of_a_plain_loop(world, undisturbed):
    pairings = list(read_parts(undisturbed / "pairing", Pairing))
    preferences = list(read_parts(undisturbed / "preferences", Preference))
    assert [each.image for each in pairings] == sorted(path.name for path in (world / "images").iterdir())
    for pairing in pairings:
        text, pairs = reference(world, pairing.image)
        own = [(each.context, *each.responses) for each in preferences if each.image == pairing.image]
        assert (pairing.text, own) == (text, pairs)
        assert "".join(pairing.text[slice(*span)] for span in pairing.sentences) == pairing.text
    assert len(preferences) >= 3  # how many depends on the processor's rounding
    assert any(each.context for each in preferences)
    assert max(len(pairing.sentences) for pairing in pairings) > 1
    summary = json.loads((undisturbed / "pairs.json").read_text())
    assert (summary["images"], summary["preferences"]) == (12, len(preferences))
    assert sum(summary["ended"].values()) == 12


@pytest.mark.main
def test_kills_change_no_byte(world, undisturbed, tmp_path):
    moments, run_dir = random.Random(0), tmp_path / "run"
    for parts in (1, 2):  # of four
        process = start(world, command(world, run_dir))
        while len(list(run_dir.glob("preferences/part-*"))) < parts:
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.2))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    finish(start(world, command(world, run_dir)))
    assert artifacts(run_dir) == artifacts(undisturbed)


@pytest.mark.main
def test_two_processes_make_what_one_does(world, undisturbed, tmp_path):
    """On the same two devices; on one device the texts are the same."""
    finish(start(world, command(world, tmp_path / "one"), devices=2))
    run_in_two(world, command, tmp_path / "many")
    assert artifacts(tmp_path / "many") == artifacts(tmp_path / "one") == artifacts(undisturbed)


def run_in_two(world, make_command, run_dir, **changes):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    place = {"distributed__coordinator": coordinator, "distributed__num_processes": 2}
    started = [
        start(world, make_command(world, run_dir, distributed__process_id=index, **place, **changes))
        for index in range(2)
    ]
    for process in started:
        finish(process)


def test_a_finished_run_does_nothing(world, copy):
    before = artifacts(copy)
    said = finish(start(world, command(world, copy, pair__margin=3.0, pair__sampling__batch_size=4)))
    assert "pair: all 4 parts are there" in said  # and options of responses play no part
    assert artifacts(copy) == before


def test_changed_settings_are_named(world, copy):
    for changes, what in (
        ({"pair__sampling__seed": 1}, "pair.sampling.seed 0, which is now 1"),
        ({"pair__match_lengths": 0.5}, "pair.match_lengths 0.0, which is now 0.5"),
        ({"sample__prompts": "[What is this?]"}, "sample.prompts"),
        ({"score__streams": json.dumps(STREAMS[:1])}, "score.streams"),
        ({"pair__kind": "responses"}, "pair.kind"),
    ):
        line = refusal(world, command(world, copy, **changes))
        assert what in line
        assert "this makes pair stale" in line
    changes = {"pair__match_lengths": 0.9, "run__overwrite": "true"}
    finish(start(world, command(world, copy, **changes)))
    assert json.loads((copy / "pairs.json").read_text())["left_out"]["lengths"] > 0


def test_an_image_that_is_gone(world, copy, tmp_path):
    shutil.copytree(world / "images", tmp_path / "images")
    image = next(iter(read_parts(copy / "preferences", Preference))).image
    (tmp_path / "images" / image).unlink()
    line = refusal(world, command(world, copy, sample__images=tmp_path / "images"))
    assert f"{image} has preferences in" in line
    assert "--run.overwrite true" in line


def test_another_judge(world, tmp_path):
    """Seen where something is left to do."""
    (tmp_path / "file").write_text("one")
    watched = {"path": f"{ROOT / 'tests/stages/ppo_world.py'}:Watched", "options": {"file": str(tmp_path / "file")}}
    given = {"score__streams": json.dumps([watched])}
    finish(start(world, command(world, tmp_path / "run", **given)))
    before = artifacts(tmp_path / "run")
    (tmp_path / "file").write_text("two")
    finish(start(world, command(world, tmp_path / "run", **given)))
    (tmp_path / "run" / "preferences" / "part-00001-of-00004.parquet").unlink()
    line = refusal(world, command(world, tmp_path / "run", **given))
    assert "preferences was judged by watched " in line
    finish(start(world, command(world, tmp_path / "run", **given, run__overwrite="true")))
    after = artifacts(tmp_path / "run")
    assert after["preferences.parquet"] == before["preferences.parquet"]


def whole(world, run_dir, **changes):
    """Of a run that makes pairs of its candidates."""
    sampling = {f"sample__sampling__{name}": value for name, value in SAMPLING.items()}
    return command(
        world, run_dir, **({"run__stages": "sample,score,select,pair", "pair__kind": "responses"} | sampling | changes)
    )


def test_responses_of_a_run(world, tmp_path):
    finish(start(world, whole(world, tmp_path / "one"), devices=2))
    run_in_two(world, whole, tmp_path / "many")
    assert artifacts(tmp_path / "many") == artifacts(tmp_path / "one")
    found = list(read_parts(tmp_path / "one" / "preferences", Preference))
    assert len(found) >= 3  # how many depends on the processor's rounding
    assert {each.context for each in found} == {""}
    assert all(each.whole for each in found)
    line = refusal(world, whole(world, tmp_path / "one", select__fusion__gamma=2.0))
    assert "this makes select, pair stale" in line
    line = refusal(world, whole(world, tmp_path / "two", run__stages="pair"))
    assert "compares candidates by what select says" in line


def test_no_stream_speaks(world, tmp_path):
    silent = json.dumps([f"{ROOT / 'tests/stages/ppo_world.py'}:Silent"])
    line = refusal(world, command(world, tmp_path / "run", score__streams=silent))
    assert "pair: none of 12 images gave a pair" in line
    assert len(list(Path(tmp_path / "run" / "pairing").glob("part-*"))) == 4  # what was made is there
