"""Protocols: the files that come with the package, a user's, their digests, and figures that do not mix."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from vigor_jax.errors import InputError
from vigor_jax.evaluation.answer_sampling import AnswerSampling, by_protocol, told_by
from vigor_jax.evaluation.metrics import table
from vigor_jax.evaluation.protocol import FOLDER, Protocol, SamplingRule, names, own, read_protocol
from vigor_jax.evaluation.wording import CHOICE, MME_SUFFIX, SHORT, as_kept, choose, requested

PACKAGED = [tuple(path.stem.split(".", 1)) for path in sorted(FOLDER.glob("*.yaml"))]


@pytest.mark.parametrize(("benchmark", "name"), PACKAGED)
def test_each_packaged_protocol_says_where_it_is_from(benchmark: str, name: str) -> None:
    protocol = read_protocol(name, benchmark)
    assert (protocol.name, protocol.benchmark) == (name, benchmark)
    assert protocol.title
    assert protocol.source
    assert protocol.date is not None or protocol.notes
    assert len(protocol.digest) == 16
    int(protocol.digest, 16)
    assert set(protocol.stored()) == {"name", "suffix", "digest", "title"}


def test_the_protocols_that_are_wanted_are_there() -> None:
    assert {("chair", one) for one in ("paper", "opera-64", "opera-512", "lure", "fisao")} <= set(PACKAGED)
    assert {("object-halbench", "rlhf-v"), ("object-halbench", "sentinel"), ("detailcaps", "paper")} <= set(PACKAGED)
    assert names("pope") == ("paper", "llava-1.5", "strict", "vcd")
    assert read_protocol("opera-64", "chair").max_new_tokens == 64
    assert {read_protocol(one, "chair").prompt for one in ("opera-64", "opera-512")} == {
        "Please describe this image in detail."
    }
    assert read_protocol("llava-1.5", "mme").removed == MME_SUFFIX
    assert {read_protocol("llava-1.5", one).suffix for one in ("seed", "mmbench", "scienceqa")} == {CHOICE}
    assert {read_protocol("llava-1.5", one).suffix for one in ("pope", "mme", "gqa", "amber")} == {SHORT}


def test_digests_are_of_what_changes_a_figure() -> None:
    base = read_protocol("opera-64", "chair")
    told = {"name": "x", "title": "x", "source": "x", "date": "x", "notes": ("x",), "departures": ("x",)}
    assert {dataclasses.replace(base, **{key: value}).digest for key, value in told.items()} == {base.digest}
    changes = {
        "benchmark": "x", "prompt": "x", "suffix": "x", "joint": "x", "removed": "x", "template": "v1",
        "sampling": SamplingRule(temperature=1.0), "max_new_tokens": 65, "sentences": "whole", "parser": "singular",
        "table": "x", "images": dataclasses.replace(base.images, number=499),
        "judge": dataclasses.replace(base.judge, model="x"),
    }  # fmt: skip
    assert {*changes, *told} == {one.name for one in dataclasses.fields(Protocol)}
    others = [dataclasses.replace(base, **{key: value}).digest for key, value in changes.items()]
    assert len({base.digest, *others}) == len(changes) + 1
    # Stated as greedy is not the same as not stated.
    assert dataclasses.replace(base, sampling=None).digest != dataclasses.replace(base, sampling=SamplingRule()).digest


def test_digests_stay_as_they_are() -> None:
    """They stand in results of users: one that changes makes their figures incomparable."""
    wanted = {
        ("chair", "opera-64"): "333f5b35dd2d960e",
        ("pope", "paper"): "0d3e1d6e07e6fb55",
        ("object-halbench", "rlhf-v"): "1df60f0763950d81",
    }
    assert {key: read_protocol(key[1], key[0]).digest for key in wanted} == wanted


def test_a_file_of_a_user(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    content = {"benchmark": "chair", "prompt": "Say it.", "max_new_tokens": 9, "sampling": {"top_p": 1}}
    path.write_text(yaml.safe_dump({**content, "title": None}))
    protocol = read_protocol(str(path), "chair")
    assert (protocol.name, protocol.prompt, protocol.max_new_tokens) == ("mine", "Say it.", 9)
    assert protocol.sampling == SamplingRule()
    reordered = tmp_path / "yours.yml"
    reordered.write_text(yaml.safe_dump({"title": "Other", **dict(reversed(content.items()))}))
    assert read_protocol(str(reordered), "chair").digest == protocol.digest


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("benchmark: pope\n", "expected a protocol of chair, got one of pope; protocols do not mix"),
        ("prompt: x\n", "expected the key 'benchmark', got name, prompt"),
        ("benchmark: chair\npromt: x\n", "unknown key 'promt'; the nearest known one is prompt"),
        ("benchmark: chair\nmax_new_tokens: many\n", "expected int under 'max_new_tokens', got 'many'"),
        ("benchmark: chair\nmax_new_tokens: 0\n", "expected max_new_tokens of 1 or more, got 0"),
        ("benchmark: chair\nmax_new_tokens: true\n", "expected int under 'max_new_tokens', got True"),
        ("benchmark: chair\nsampling: {heat: 1}\n", "sampling: unknown key 'heat'"),
        ("benchmark: chair\nsampling: {top_p: 2}\n", "0 < top_p <= 1"),
        ("benchmark: chair\nsampling: {temperature: .nan}\n", "expected a temperature of 0 or more"),
        ("benchmark: chair\nsampling: greedy\n", "expected dict under 'sampling', got 'greedy'"),
        ("benchmark: chair\nsentences: some\n", "expected sentences 'whole' or 'finished', got 'some'"),
        ("- chair\n", "expected a protocol, keys and values"),
        ("benchmark: [\n", "malformed YAML"),
        ("benchmark: chair\ndate: 2024-13-01\n", "malformed YAML (month must be in 1..12); fix it"),
        (None, "cannot read it (FileNotFoundError); check the path"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "p.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError) as error:
        read_protocol(str(path), "chair")
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_name_lists_those_that_are() -> None:
    with pytest.raises(InputError, match=r"paper, fisao, lure, opera-512, opera-64 or a YAML file.*nearest.* opera-64"):
        read_protocol("opera64", "chair")
    with pytest.raises(InputError, match="grounding has no protocols, got 'paper'"):
        read_protocol("paper", "grounding")


def test_what_was_used_fills_what_is_open_and_is_told_where_it_differs() -> None:
    open_one = own("chair").used(prompt="Say.", max_new_tokens=5, images={"number": 3}, parser=None)
    assert (open_one.prompt, open_one.max_new_tokens, open_one.images.number) == ("Say.", 5, 3)
    assert open_one.departures == ()
    stated = read_protocol("opera-64", "chair")
    assert stated.used(images={"number": 500}, parser="lemma").digest == stated.digest
    other = stated.used(images={"number": 20}, sampling={"temperature": 0.0, "num_beams": 5})
    assert other.departures == ("images.number 20, not 500", "sampling.num_beams 5, not 1")
    assert other.stored()["departures"] == list(other.departures)
    assert other.digest != stated.digest


def test_unfinished_sentences() -> None:
    finished, whole = (read_protocol(name, "chair") for name in ("opera-64", "opera-512"))
    assert finished.read("A dog. A cat. And th") == "A dog. A cat."
    assert finished.read("A dog and") == ""
    assert whole.read("A dog. A cat. And th") == "A dog. A cat. And th"


def test_sampling_by_protocol() -> None:
    protocol = read_protocol("vcd", "pope")
    drawn = by_protocol(AnswerSampling(seed=3), protocol)
    assert (drawn.temperature, drawn.max_new_tokens, drawn.seed) == (1.0, 1024, 3)
    assert told_by(protocol, drawn) == protocol
    with pytest.raises(
        InputError, match=r"sampling\.max_new_tokens: protocol vcd of pope has 1024, got 16; leave it out"
    ):
        by_protocol(AnswerSampling(max_new_tokens=16), protocol)
    assert by_protocol(AnswerSampling(max_new_tokens=16), protocol, default=AnswerSampling(max_new_tokens=16)) == (
        dataclasses.replace(drawn, seed=0)
    )
    assert by_protocol(AnswerSampling(max_new_tokens=16), own("pope")) == AnswerSampling(max_new_tokens=16)


def test_a_request_of_the_options_and_of_the_protocol() -> None:
    assert requested(own("chair"), "Say.", "Say.").prompt == "Say."
    protocol = read_protocol("opera-64", "chair")
    assert requested(protocol, "Say.", "Say.") == protocol
    with pytest.raises(
        InputError, match=r"protocol opera-64 of chair asks 'Please describe.*got 'Else\.'; leave it out"
    ):
        requested(protocol, "Else.", "Say.")


def test_answers_that_we_kept_say_how_they_were_drawn(tmp_path: Path) -> None:
    kept = tmp_path / "captions.jsonl"
    assert as_kept(own("chair"), [kept]) == own("chair")
    settings = '{"sampling.temperature": 0.0, "sampling.max_new_tokens": %d, "prompt": "Say."}'
    kept.with_name("captions.jsonl.settings.json").write_text(settings % 7)
    found = as_kept(own("chair"), [kept])
    assert (found.prompt, found.max_new_tokens) == ("Say.", 7)
    assert "max_new_tokens 7, not 64" in as_kept(read_protocol("opera-64", "chair"), [kept]).departures
    other = tmp_path / "more.jsonl"
    other.with_name("more.jsonl.settings.json").write_text(settings % 8)
    assert as_kept(own("chair"), [kept, other]) == own("chair")


def chair_metrics(protocol: Protocol | None) -> dict:
    figures = dict.fromkeys(("chair_i", "chair_first", "chair_s", "recall"), 0.5) | {"words": 9.0}
    return {"chair": figures | ({"protocol": protocol.stored()} if protocol else {})}


def test_figures_of_different_protocols_do_not_stand_side_by_side() -> None:
    one, other = (read_protocol(name, "chair") for name in ("opera-64", "opera-512"))
    with pytest.raises(InputError) as error:
        table({"base": chair_metrics(one), "tuned": chair_metrics(other)})
    assert f"base was measured by protocol opera-64 ({one.digest}) and tuned by opera-512 ({other.digest})" in str(
        error.value
    )
    assert "\n" not in str(error.value)
    fewer = one.used(images={"number": 20})
    with pytest.raises(InputError, match=r"with images\.number 20, not 500"):
        table({"base": chair_metrics(one), "tuned": chair_metrics(fewer)})
    assert table({"base": chair_metrics(one), "tuned": chair_metrics(one)}).count("50.0%") == 8
    assert "50.0%" in table({"old": chair_metrics(None), "new": chair_metrics(one)})


def test_a_column_without_a_row_has_a_dash() -> None:
    lines = table({"a": {}, "b": chair_metrics(None)}).splitlines()
    assert lines[1].split()[-2:] == ["-", "50.0%"]


def test_protocols_of_pope_by_what_follows_the_question() -> None:
    assert choose("pope", "paper", "Please answer this question with one word.").name == "vcd"
    assert choose("pope", "strict", "").parser == "exact"
    assert choose("pope", "strict", "").name == "paper"
    assert read_protocol("vcd", "pope").ask("Is it?") == "Is it? Please answer this question with one word."
