"""Every shipped config parses, and what a command refuses it refuses in one line with exit code 2."""

import dataclasses
import json
import re
import subprocess
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vigor_jax import cli, evaluate, train
from vigor_jax.caption import CaptionCommand
from vigor_jax.config import TrainConfig
from vigor_jax.demo.config import DemoOptions, demo_config
from vigor_jax.errors import InputError
from vigor_jax.evaluation.commands.evaluated_model_config import EvaluatedModelConfig
from vigor_jax.export import ExportCommand
from vigor_jax.models.lora_config import LoraConfig

pytestmark = pytest.mark.versions  # of jsonargparse

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "vigor_jax" / "demo" / "demo.yaml"
CONFIGS = [*sorted((ROOT / "configs").glob("*.yaml")), DEMO]
PODS = sorted((ROOT / "configs" / "pods").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_config_parses_and_names_its_command(path):
    config = cli.parse(TrainConfig, ["--config", str(path)], description="")
    assert config.run.stages
    assert path.read_text().startswith("# python -m vigor_jax.train")


def test_there_are_configs():
    assert CONFIGS
    assert PODS


@pytest.mark.parametrize("pod", PODS, ids=lambda path: path.name)
def test_pods_are_added_to_a_config(pod):
    path = str(ROOT / "configs" / "vigor_all_7b.yaml")
    alone = cli.parse(TrainConfig, ["--config", path], description="")
    both = cli.parse(TrainConfig, ["--config", path, "--config", str(pod)], description="")
    assert both.inference_mesh.tensor == 4
    assert both.sample.images == alone.sample.images
    assert both.sft == alone.sft  # what is learned does not depend on the pod


def test_dump_reads_back(tmp_path):
    path = str(ROOT / "configs" / "sft.yaml")
    config = cli.parse(
        TrainConfig, ["--config", path, "--sft.freeze", "vision_tower,language_model.norm"], description=""
    )
    assert config.sft.freeze == ("vision_tower", "language_model.norm")
    assert config.sft.lora is None
    assert "lora" not in cli.dump(config)  # as in versions without it
    (tmp_path / "config.yaml").write_text(cli.dump(config))
    assert cli.parse(TrainConfig, ["--config", str(tmp_path / "config.yaml")], description="") == config


def test_a_section_that_may_be_left_out(tmp_path):
    given = [*BASE, "--sft.lora.rank", "8", "--sft.lora.target", "language_model", "vision_tower", "--sft.epochs", "2"]
    config = cli.parse(TrainConfig, given, description="")
    assert config.sft.lora == LoraConfig(rank=8, target=("language_model", "vision_tower"))
    assert config.sft.epochs == 2
    (tmp_path / "config.yaml").write_text(cli.dump(config))
    again = ["--config", str(tmp_path / "config.yaml")]
    assert cli.parse(TrainConfig, again, description="") == config
    assert cli.parse(TrainConfig, [*again, "--sft.lora.alpha", "3"], description="").sft.lora.rank == 8
    assert cli.parse(TrainConfig, [*again, "--sft.lora", "null"], description="").sft.lora is None
    assert cli.parse(TrainConfig, [*BASE, "--sft.lora", "{}"], description="").sft.lora == LoraConfig()


def test_command_line_wins_over_file_and_later_over_earlier(tmp_path):
    (tmp_path / "c.yaml").write_text("run: {dir: a}\nmodel: {path: b}\nsft: {epochs: 3, learning_rate: 1e-4}\n")
    arguments = ["--config", str(tmp_path / "c.yaml"), "--sft.epochs", "4", "--run.stages", "export,sft"]
    config = cli.parse(TrainConfig, arguments, description="")
    assert (config.sft.epochs, config.sft.learning_rate) == (4, 1e-4)
    assert config.run.stages == ("export", "sft")
    assert config.run.dir == Path("a")


HELPED = (TrainConfig, DemoOptions, CaptionCommand, ExportCommand, EvaluatedModelConfig)
EVALUATIONS = tuple(evaluate.command_class(name) for name in evaluate.COMMANDS)
BASE = ["--run.dir", "r", "--model.path", "m"]
REFUSED = {
    "abbreviated": ([*BASE, "--sft.epoch=3"], "unknown key sft.epoch; the nearest known one is sft.epochs"),
    "abbreviated, apart": ([*BASE, "--sft.epoch", "3"], "unknown key sft.epoch; the nearest known one is sft.epochs"),
    "abbreviated section": ([*BASE, "--model.pa=m"], "unknown key model.pa; "),
    "abbreviated config": ([*BASE, "--conf=x.yaml"], "unknown key conf; "),
    "unknown key": ([*BASE, "--sft.learning_rte", "3"], "unknown key sft.learning_rte; the nearest known one"),
    "unknown section": ([*BASE, "--sfft.epochs", "3"], "the nearest known one is sft.epochs"),
    "wrong type": ([*BASE, "--sft.epochs", "many"], "many"),
    "out of range": ([*BASE, "--sft.epochs", "0"], "epochs: expected at least 1, got 0"),
    "unknown stage": ([*BASE, "--run.stages", "sft,expor"], "expor"),
    "no stage": ([*BASE, "--run.stages", "[]"], "at least one stage"),
    "missing value": (["--run.dir", "r"], "model.path"),
    "no such file": (["--config", "nowhere.yaml"], "nowhere.yaml"),
    "unknown option of a section that may be left out": (
        [*BASE, "--sft.lora.rnk", "3"], "unknown key sft.lora.rnk; the nearest known one is sft.lora.rank",
    ),
    "the same as a whole": ([*BASE, '--sft.lora={"rnk": 3}'], "unknown key sft.lora.rnk; the nearest known one is"),
    "wrong type in it": ([*BASE, "--sft.lora.rank", "x"], 'Parser key "sft.lora.rank": Expected a <class \'int\'>'),
    "out of range in it": ([*BASE, "--sft.lora.rank", "0"], "lora.rank: expected at least 1, got 0"),
    "a value in its place": ([*BASE, "--sft.lora", "3"], "sft.lora has options, such as --sft.lora.rank; give one"),
    "unknown remat": ([*BASE, "--sft.remat", "some"], "remat: expected one of none, dots, full"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_refused_in_one_line(what):
    arguments, message = REFUSED[what]
    with pytest.raises(InputError) as error:
        cli.parse(TrainConfig, arguments, description="")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sft: {epochz: 3}", "unknown key sft.epochz; the nearest known one is sft.epochs"),
        ("trane: 3", "unknown key trane"),
        ("sft: [", "parsing"),
        ("sft: {epochs: many}", "many"),
        ("sft: {lora: {rnk: 3}}", "unknown key sft.lora.rnk; the nearest known one is sft.lora.rank"),
        ("sft: {lora: {rank: many}}", 'Parser key "sft.lora.rank": Expected a <class'),
        ("only words", "only words"),
    ],
)
@pytest.mark.parametrize(
    "spelling", ["--config {}", "--config={}", "--config {good} --config {}", "--config {} --config {good}"]
)
def test_bad_file_is_named(tmp_path, text, message, spelling):
    """However it is given, and before or after a good one."""
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    arguments = spelling.format(path, good=ROOT / "configs" / "sft.yaml").split(" ")
    with pytest.raises(InputError) as error:
        cli.parse(TrainConfig, arguments, description="")
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_where_the_config_of_the_demo_is_now_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"there is no file configs/demo\.yaml") as error:
        cli.parse(TrainConfig, ["--config", "configs/demo.yaml"], description="")
    (named,) = (Path(word.rstrip(",")) for word in str(error.value).split() if word.startswith("/"))
    assert cli.parse(TrainConfig, ["--config", str(named)], description="") == demo_config()


SECTIONS = [field.name for field in dataclasses.fields(TrainConfig)]
FOR_THE_DEMO = {field.name for field in dataclasses.fields(DemoOptions)}


def options_of(section: str) -> list[str]:
    """All options of a section, each with its value in the demo."""
    found: list[str] = []

    def add(key: str, value: object) -> None:
        if isinstance(value, dict) and value:
            for name, inner in value.items():
                add(f"{key}.{name}", inner)
        else:
            found.append(f"--{key}={json.dumps(value)}" if not isinstance(value, str) else f"--{key}={value}")

    add(section, json.loads(json.dumps(dataclasses.asdict(demo_config()), default=str))[section])
    return found


# At each gate some of different kinds.
OFTEN = {*sorted(FOR_THE_DEMO)[:1], "model", "ppo"}


@pytest.mark.parametrize(
    "section", [pytest.param(name, marks=[pytest.mark.slow] * (name not in OFTEN)) for name in SECTIONS]
)
def test_the_demo_takes_whole_sections_or_none_of_them(section):
    """An option that is none of the demo's means a run of one's own, even with the value that it has in the demo."""
    options = options_of(section)
    assert options
    if section in FOR_THE_DEMO:
        assert train.parse_arguments(options) == (demo_config(), True)
        assert all(train.parse_arguments([option]) == (demo_config(), True) for option in options[:3])
    else:
        for option in {options[0], options[-1]} - {"--model.path=runs/demo/data/policy"}:
            with pytest.raises(InputError, match=r"model\.path (is|are) missing") as error:
                train.parse_arguments(["--run.dir", "r", option])
            assert "the demo runs; it takes options of run, mesh" in str(error.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--sft.data", "x"],
        ["--sft.data=x"],
        ["--sft", "{data: x}"],
        ["--config", "{sft: {data: x}}"],
        ["--config", "{run: {dir: y}}"],
        ["--config", str(ROOT / "configs" / "pods" / "v5e.yaml")],
        ["--mesh.data", "2", "--sft.epochs", "3"],
    ],
)
def test_a_run_of_ones_own_needs_a_model(arguments):
    with pytest.raises(InputError, match=r"model\.path is missing; give --model\.path"):
        train.parse_arguments([*arguments, "--run.dir", "y"])
    config, is_demo = train.parse_arguments([*arguments, "--run.dir", "y", "--model.path", "m"])
    assert (str(config.model.path), is_demo) == ("m", False)


def test_the_demo_takes_where_and_on_what_it_runs():
    config, is_demo = train.parse_arguments(["--run.dir", "x", "--run.stages", "sft", "export", "--mesh.fsdp=1"])
    assert is_demo
    assert (config.run.dir, config.run.stages, config.mesh.fsdp) == (Path("x"), ("sft", "export"), 1)
    assert dataclasses.replace(config, run=demo_config().run, mesh=demo_config().mesh) == demo_config()
    assert train.parse_arguments([]) == (demo_config(), True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run.rounds", "0"], "run.rounds: expected at least 1, got 0"),
        (["--run.dri", "x"], "unknown key run.dri; the nearest known one is run.dir"),
        (["--mesh.fsdp", "all"], "all"),
        (["--model", "m"], "model has options, such as --model.path"),
        (["stray"], "unrecognized arguments: stray"),
    ],
)
def test_slips_in_the_options_of_the_demo_are_told_as_such(arguments, message):
    with pytest.raises(InputError) as error:
        train.parse_arguments(arguments)
    assert message in str(error.value)
    assert "missing" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "where_it_is_one"),
    [
        ("train_reward.data", "sft.data"),  # the reward model learns from annotations
        ("train_reward.pack", "sft.pack"),  # its rows hold all the annotations of an image
        ("evaluate.captions.num_candidates", "sample.sampling.num_candidates"),  # a question has one answer
        ("evaluate.answers.num_candidates", "sample.sampling.num_candidates"),
    ],
)
def test_what_has_no_meaning_for_a_section_is_no_option_of_it(key, where_it_is_one):
    assert cli.parse(TrainConfig, [*BASE, f"--{where_it_is_one}", "2"], description="")
    section = key.rpartition(".")[0]
    with pytest.raises(cli.UnknownKeyError, match=rf"unknown key {key}; known ones are {section}\.\w+, ") as error:
        cli.parse(TrainConfig, [*BASE, f"--{key}", "2"], description="")
    assert f"{key}," not in str(error.value)


@pytest.mark.parametrize("command", [*HELPED, *EVALUATIONS], ids=lambda one: one.__name__)
def test_help_says_what_every_option_means(command, capsys):
    """Also those that a class inherits, and those within sections; each in the words of its docstring."""
    with pytest.raises(SystemExit):
        cli.parse(command, ["--help"], description="")
    shown = re.split(r"\n  (?=--)", capsys.readouterr().out)
    told = {entry.split()[0]: " ".join(entry.split()) for entry in shown[1:]}
    for key, kind in cli._keys(command).items():
        if not dataclasses.is_dataclass(kind):
            words = re.sub(r"\((required, )?type: .*", "", told[f"--{key}"]).split()
            assert len(words) > 3, f"--{key} {words}"


# Values of which every option takes at least one, by its type.
VALUES: dict[Any, tuple[Any, ...]] = {
    bool: (False, True),
    int: (0, 1, 2, 4, 6, 1000),
    float: (0.0, 0.1, 0.5, 2.0),
    str: ("http://localhost", "v0", "none", "llava", "a {}"),
    Path: (Path("some"), Path("other")),
    type(None): (None,),
}
COMMANDS = (*HELPED, *EVALUATIONS)


def schemas(schema: Any) -> Iterator[Any]:
    """A dataclass of options and those within it."""
    yield schema
    for hint in typing.get_type_hints(schema).values():
        for part in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(part):
                yield from schemas(part)


def values(hint: Any) -> list[Any]:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return list(parts)
    if origin in (typing.Union, types.UnionType):
        return [value for part in parts for value in values(part)]
    if origin is tuple:
        return [()] + [(value,) for value in values(parts[0])]
    if dataclasses.is_dataclass(hint):
        return [filled(hint)]
    return list(VALUES.get(hint, ({}, {"some": 1.0})))


def filled(schema: Any, **given: Any) -> Any:
    """A config with its defaults, and values in place of those it lacks."""
    hints = typing.get_type_hints(schema)
    lacking = [field.name for field in dataclasses.fields(schema) if field.default is field.default_factory]
    return schema(**{name: values(hints[name])[0] for name in lacking} | given)


@pytest.mark.parametrize(
    "schema", list(dict.fromkeys(one for command in COMMANDS for one in schemas(command))), ids=lambda one: one.__name__
)
def test_no_option_is_there_only_to_be_refused(schema):
    """Each takes at least one other value than its default, alone or where others are given that it needs."""
    all_hints = typing.get_type_hints(schema)
    hints = {field.name: all_hints[field.name] for field in dataclasses.fields(schema)}
    choices = {name: values(hint) for name, hint in hints.items() if typing.get_origin(hint) is typing.Literal}
    needed = [
        {},
        {name: "v0" for name, hint in hints.items() if hint == str | None},
        *({name: value} for name, some in choices.items() for value in some),
    ]

    def is_taken(**given: Any) -> bool:
        try:
            filled(schema, **given)
        except InputError:
            return False
        return True

    for name, hint in hints.items():
        others = [value for value in values(hint) if value != getattr(filled(schema), name)]
        is_option = not dataclasses.is_dataclass(hint)
        assert not is_option or any(is_taken(**some | {name: o}) for some in needed for o in others), name


@pytest.mark.slow
@pytest.mark.main
def test_exit_codes():
    """A real process: 2 and one line for the user's mistake, 0 for help."""
    command = [sys.executable, "-m", "vigor_jax.train"]
    bad = subprocess.run([*command, *BASE, "--sft.epochz", "3"], capture_output=True, text=True)
    assert bad.returncode == 2
    assert len(bad.stderr.splitlines()) == 1
    assert bad.stderr.startswith("error: ")
    good = subprocess.run([*command, "--help"], capture_output=True, text=True)
    assert good.returncode == 0
    assert "--sft.learning_rate" in good.stdout
    assert "Without a config and a model it runs the demo" in " ".join(good.stdout.split())
