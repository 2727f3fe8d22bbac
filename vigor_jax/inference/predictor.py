"""Asks a model about images and keeps each answer as a JSON line; what is answered already is not asked again.

A line has `image`, `prompt`, `text`, `mean_logprob`, `num_tokens` and `finish_reason`, and `candidate` where several
are drawn. The settings are kept next to the lines, in `NAME.jsonl.settings.json`, and must stay the same. After a kill
the same command writes the same texts; `mean_logprob` can differ in its last digits, since answers are then computed in
other batches.
"""

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from tqdm import tqdm

import vigor_jax
from vigor_jax import fingerprint
from vigor_jax.disk import naming
from vigor_jax.errors import InputError
from vigor_jax.hf.hub import origin
from vigor_jax.hf.load import Checkpoint
from vigor_jax.inference.policy import Policy
from vigor_jax.inference.sampler import Completion
from vigor_jax.inference.sampling_config import SamplingConfig
from vigor_jax.json_fields import parse_json
from vigor_jax.parallel.processes import is_first
from vigor_jax.records import ImageFile
from vigor_jax.run_lock import RunLock

# Of the settings, what tells which model made a file, and does not decide on what is in it.
INFORMATION = frozenset(("versions",))
# Errors where nothing can be written, but what is complete can be read.
_NOTHING_WRITTEN = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT)
# What files of earlier versions do not say.
_NEWER = frozenset(("protocol", "prompt"))


class Question(NamedTuple):
    """What is asked about an image.

    Attributes:
      image: its name, such as the path below a folder; empty where there is none.
      path: its file, or what reads it from a shard; None where there is none.
      prompt: the words.
    """

    image: str
    path: ImageFile | None
    prompt: str


class Predictor:
    """A model that answers questions; its weights are loaded when the first answer is wanted.

    Args:
      checkpoint: the checkpoint.
      template: the conversation format that the model was trained with.
      mesh: all devices of all processes.
      dtype: type to compute in; by default float32 if the checkpoint is stored so, else bfloat16.

    Raises:
      InputError: the type needs another kind of device.
    """

    def __init__(self, checkpoint: Checkpoint, template: str | None, mesh: Mesh, *, dtype: str | None = None) -> None:
        self._policy = Policy(checkpoint, mesh, template=template, dtype=dtype)

    def answer(
        self,
        questions: Sequence[Question],
        out: Path,
        sampling: SamplingConfig,
        *,
        desc: str = "",
        settings: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Adds the answers that `out` does not have yet, in the order of the questions.

        Args:
          questions: no two with the same image and words.
          out: JSON lines.
          sampling: how answers are drawn.
          desc: what the progress bar says.
          settings: what else must stay the same while `out` grows.

        Raises:
          InputError: an image cannot be read, `out` was written with other settings, or another process writes it.
        """
        with _lock(out) if is_first() else contextlib.nullcontext():
            self._answer(questions, out, sampling, desc=desc, settings=settings)

    def _answer(
        self,
        questions: Sequence[Question],
        out: Path,
        sampling: SamplingConfig,
        *,
        desc: str,
        settings: Mapping[str, Any],
    ) -> None:
        is_writer = is_first()
        done = _resume(out, {**settings, **self._settings(sampling)}, sampling.num_candidates) if is_writer else set()
        wanted = np.array([(question.image, question.prompt) not in done for question in questions], bool)
        if jax.process_count() > 1:  # only the writer need see the file
            wanted = multihost_utils.broadcast_one_to_all(wanted)
        todo = [question for question, is_wanted in zip(questions, wanted, strict=True) if is_wanted]
        with tqdm(
            total=len(questions),
            initial=len(questions) - len(todo),
            unit="answer",
            desc=desc or None,
            dynamic_ncols=True,
            disable=not is_writer,
        ) as bar:
            if not todo:
                return
            completions = self._complete(todo, sampling)
            if not is_writer:
                for _ in completions:
                    pass
                multihost_utils.sync_global_devices(str(out))  # what is written exists for all
                return
            with naming(out), out.open("ab") as file:
                for question, found in zip(todo, completions, strict=True):
                    # One write a question, so that what a kill can leave half-written is the last one at most.
                    file.write("".join(_line(completion, question.prompt, len(found)) for completion in found).encode())
                    file.flush()
                    bar.update()
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(str(out))

    def ask(
        self,
        questions: Sequence[Question],
        out: Path,
        sampling: SamplingConfig,
        *,
        desc: str = "",
        settings: Mapping[str, Any] = MappingProxyType({}),
    ) -> list[str]:
        """The texts that answer, one each, of questions of which some may be the same; the rest as `answer`."""
        self.answer(list(dict.fromkeys(questions)), out, sampling, desc=desc, settings=settings)
        texts = {(line["image"], line["prompt"]): line["text"] for line in read_answers(out)}
        return [texts[question.image, question.prompt] for question in questions]

    def _complete(self, questions: Sequence[Question], sampling: SamplingConfig) -> Iterator[list[Completion]]:
        for prompt, with_image in {(question.prompt, question.path is not None) for question in questions}:
            self._policy.prompt_ids(prompt, with_image=with_image)  # refused before the first answer, if it is
        requests = (self._policy.request(question.image, question.path, question.prompt) for question in questions)
        return self._policy.sample(requests, sampling)

    def _settings(self, sampling: SamplingConfig) -> dict[str, Any]:
        """What decides on the answers, by the names of the options."""
        return {
            "model": origin(self._policy.checkpoint.directory.resolve()),
            **({"adapter": adapter.origin} if (adapter := self._policy.checkpoint.adapter) else {}),
            "weights": self._policy.checkpoint.digest()[:16],
            "template": self._policy.template_name,
            "dtype": self._policy.dtype,
            **fingerprint.of(sampling, "sampling"),
            "versions": {"vigor_jax": vigor_jax.__version__, "jax": jax.__version__},
        }


def read_answers(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of answers."""
    # Not splitlines: inside JSON strings the other characters that it splits at are ordinary text.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _line(completion: Completion, prompt: str, num_candidates: int) -> str:
    record = {
        "image": completion.image_id,
        "prompt": prompt,
        **({"candidate": completion.candidate} if num_candidates > 1 else {}),
        "text": completion.text,
        "mean_logprob": completion.mean_logprob,
        "num_tokens": len(completion.token_ids),
        "finish_reason": completion.finish_reason,
    }
    return json.dumps(record, ensure_ascii=False) + "\n"


@contextlib.contextmanager
def _lock(out: Path) -> Iterator[None]:
    """Keeps other processes from writing a file; where nothing can be written there is no need."""
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(RunLock(out.parent, file=out.name))
        except OSError as error:
            if error.errno not in _NOTHING_WRITTEN:
                raise
        yield


def _resume(out: Path, settings: Mapping[str, Any], num_candidates: int) -> set[tuple[str, str]]:
    """Image and prompt of the answers that are complete; what a kill left behind them is cut off.

    The settings are written before the first answer, and must be the same ever after.
    """
    settings_file = out.with_name(out.name + ".settings.json")
    if not out.exists() or not out.stat().st_size:
        with naming(settings_file):
            out.parent.mkdir(parents=True, exist_ok=True)
            settings_file.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        return set()
    if not settings_file.exists():
        raise InputError(
            f"{out} exists and was not written by this command ({settings_file.name} is missing); choose another --out"
        )
    try:
        before = parse_json(settings_file.read_bytes(), settings_file)
    except InputError:
        raise InputError(
            f"{settings_file} is damaged, it should hold the settings of {out.name}; choose another --out"
        ) from None
    told = {key: value for key, value in before.items() if key in settings and key not in INFORMATION}
    asked = {key: value for key, value in settings.items() if key not in INFORMATION | (_NEWER - before.keys())}
    if changed := [*map(str, fingerprint.differences(told, asked))]:
        raise InputError(f"{out} was made with {'; '.join(changed)}; choose another --out")

    done, end, offset = set(), 0, 0
    lines = out.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        offset += len(line)
        try:
            record = json.loads(line)
            key = (str(record["image"]), str(record["prompt"]))
        except (ValueError, KeyError, TypeError):
            if number < len(lines):
                raise InputError(f"{out}:{number}: expected an answer as JSON; fix or remove the line") from None
            break
        if line.endswith(b"\n") and number % num_candidates == 0:
            done.add(key)
            end = offset
    if end < out.stat().st_size:
        os.truncate(out, end)
    return done
