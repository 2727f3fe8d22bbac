"""Which protocol a command follows: the one that is asked for, or the one that saved answers show."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from vigor_jax.errors import InputError
from vigor_jax.evaluation.protocol import Protocol, names, own, read_protocol
from vigor_jax.json_fields import exists, read_json

# What LLaVA-1.5's evaluation and lmms-eval add to a question, and what MME's questions end in.
SHORT = "Answer the question using a single word or phrase."
CHOICE = "Answer with the option's letter from the given choices directly."
SUFFIXES = (SHORT, CHOICE)
MME_SUFFIX = "Please answer yes or no."


def choose(benchmark: str, name: str, suffix: str | None = None) -> Protocol:
    """The protocol that the options `--protocol` and `--prompt_suffix` ask for.

    Args:
        benchmark: As for `read_protocol`.
        name: The same.
        suffix: Other words after a question than the protocol's.

    Raises:
        InputError: As `read_protocol`, or the suffix has nothing but white space in it.
    """
    protocol = read_protocol(name, benchmark)
    if suffix is None:
        return protocol
    if suffix and not suffix.strip():
        raise InputError("--prompt_suffix: expected words, got white space; give '' for none")
    return _with_suffix(protocol, suffix.strip())


def requested(protocol: Protocol, prompt: str, default: str) -> Protocol:
    """The protocol with what a model is asked for a description with.

    Args:
        protocol: Which may say it.
        prompt: Of the options.
        default: Of options that nobody gave.

    Raises:
        InputError: The option was given and says otherwise than the protocol.
    """
    if protocol.prompt is None:
        return dataclasses.replace(protocol, prompt=prompt)
    if prompt not in (default, protocol.prompt):
        raise InputError(
            f"prompt: protocol {protocol.name} of {protocol.benchmark} asks {protocol.prompt!r}, got {prompt!r}; leave "
            "it out, or choose another protocol"
        )
    return protocol


def seen(declared: Protocol, asked: Iterable[tuple[str, str | None]]) -> Protocol:
    """The protocol whose words saved answers say that their questions were asked in.

    Args:
        declared: What holds if they do not say, or not all the same.
        asked: Of each answer, the question with its options, and all that the model was asked.
    """
    ends = {_end(body, said) for body, said in asked}
    end = ends.pop() if len(ends) == 1 else None
    return declared if end is None or end == declared.suffix else _with_suffix(declared, end)


def as_kept(protocol: Protocol, paths: Iterable[Path]) -> Protocol:
    """The protocol with how saved answers were drawn, where this package has drawn them and its settings say it.

    Args:
        protocol: What holds where they do not say, or not all the same.
        paths: The files of answers; their settings are in NAME.settings.json.

    Raises:
        InputError: Settings cannot be read.
    """
    files = [path.with_name(path.name + ".settings.json") for path in map(Path, paths)]
    if not files or not all(exists(file) for file in files):
        return protocol
    known = []
    for file in files:
        settings = read_json(file)
        drawn = {name: settings.get(f"sampling.{name}") for name in ("temperature", "top_p", "top_k")}
        tokens, prompt = settings.get("sampling.max_new_tokens"), settings.get("prompt")
        known.append({"sampling": {**drawn, "num_beams": 1}, "max_new_tokens": tokens, "prompt": prompt})
    return protocol.used(**known[0]) if all(one == known[0] for one in known) else protocol


def _with_suffix(protocol: Protocol, suffix: str) -> Protocol:
    """The protocol that has a suffix, read as the given one is; of "own" if none has it."""
    if suffix == protocol.suffix:
        return protocol
    for name in names(protocol.benchmark):
        known = read_protocol(name, protocol.benchmark)
        if known.suffix == suffix:
            return dataclasses.replace(known, parser=protocol.parser)
    return dataclasses.replace(own(protocol.benchmark), suffix=suffix, parser=protocol.parser)


def _end(body: str, said: str | None) -> str | None:
    """What follows a question."""
    if said is None:
        return None
    words, text = (" ".join(one.replace("<image>", " ").split()) for one in (body, said))
    start = text.casefold().find(words.casefold())
    return None if start < 0 else text[start + len(words) :].strip().removeprefix(MME_SUFFIX).strip()
