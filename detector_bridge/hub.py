"""Models by their name on the Hugging Face Hub: `ORG/NAME` or `ORG/NAME@REVISION`, fetched into the common cache.

A model comes in two steps, for a model that cannot be used should not cost gigabytes: `local_directory` fetches what
describes it, `fetch_weights` its weights. What is in the cache is not fetched again.
"""

import contextlib
import fcntl
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

from detector_bridge.errors import InputError

log = logging.getLogger(__name__)

# A revision is a branch, such as `refs/pr/1`, a tag or a commit.
_ID = re.compile(r"(?P<repo>[A-Za-z0-9_][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?", re.ASCII)
_SNAPSHOT = re.compile(
    r".*/models--(?P<org>[^/]+?)--(?P<name>[^/]+)/snapshots/(?P<commit>[0-9a-f]{40})/(?P<folder>vision_tower/)?"
)

# Where an original LLaVA of ours has its tower, and InstructBLIP its second tokenizer.
_FOLDERS = ("", "vision_tower/", "qformer_tokenizer/")
# All that is read of a model but its weights; those of the last line say what a folder is that cannot be used, and how
# a model of ours was trained, and are the small head of a reward model.
_SETTINGS = (
    *("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json"),
    *("adapter_config.json", "vigor_jax.json", "reward_head"),
)
_WEIGHTS, _INDEX = ("model.safetensors", "pytorch_model.bin"), ".index.json"
_ADAPTERS, _WITH_ADAPTER = ("adapter_model.safetensors", "adapter_model.bin"), "non_lora_trainables.bin"


def is_id(name: str | Path) -> bool:
    """Whether this names a model on the Hub. A folder or a file that exists never does, and a `Path` is always one."""
    if isinstance(name, Path) or name.startswith("~") or os.path.lexists(name):
        return False
    return _ID.fullmatch(name) is not None


def local_directory(name: str | Path) -> Path:
    """The folder of a model, which need not have its weights yet; see `fetch_weights`.

    Args:
      name: a folder, or `ORG/NAME` or `ORG/NAME@REVISION` on the Hub; the folder wins where both exist.

    Returns:
      The folder itself, whether it exists or not; or the one in the cache.

    Raises:
      InputError: the Hub has no such model or revision, does not let this user in, or cannot be reached, and the cache
        does not have it; or the cache cannot be written.
    """
    if not is_id(name):
        return Path(name).expanduser()
    repo, revision = _split(str(name))
    wanted = [folder + file for folder in _FOLDERS for file in _SETTINGS]
    with _explaining(str(name)), _one_at_a_time(repo):
        return _download(repo, revision, wanted)


def fetch_weights(directory: Path) -> None:
    """Completes what `local_directory` returned; does nothing to other folders.

    Of several formats one is fetched: safetensors where there are any.

    Raises:
      InputError: as `local_directory`, or the disk has no room, or the model has no weights that are read.
    """
    if (found := _snapshot(directory)) is None:
        return
    repo, commit, folder = f"{found['org']}/{found['name']}", found["commit"], found["folder"] or ""
    name = f"{repo}@{commit}"
    with _one_at_a_time(repo):
        if (wanted := _weights(directory, _listed(directory))) and not _missing(directory, wanted):
            return
        with _explaining(name):
            sizes = _sizes(repo, commit, folder)
            if (first := _first(sizes)) and first.endswith(_INDEX):
                _download(repo, commit, [folder + first])
            if not (wanted := _weights(directory, sizes)):
                raise InputError(
                    f"{name} has no weights that are read (expected {' or '.join(_WEIGHTS)}, or shards of either); "
                    "give a model in the layout of transformers"
                )
            _check_room(name, sum(sizes.get(file, 0) for file in _missing(directory, wanted)))
            _download(repo, commit, sorted(folder + file for file in wanted))
            if missing := _missing(directory, wanted):  # the Hub went away, and early versions say nothing
                raise InputError(
                    f"{name}: of its weights {len(missing)} files could not be fetched, {missing[0]} first; give the "
                    "same command again where the Hub can be reached"
                )


def whole_model(name: str | Path) -> Path:
    """As `local_directory`, with the weights."""
    directory = local_directory(name)
    fetch_weights(directory)
    return directory


def is_snapshot(directory: Path) -> bool:
    """Whether this is a model in the cache of the Hub."""
    return _snapshot(directory) is not None


def origin(directory: Path) -> str:
    """Where a model came from: `ORG/NAME@COMMIT` of a folder in the cache, the path of any other."""
    found = _snapshot(directory)
    return f"{found['org']}/{found['name']}@{found['commit']}" if found else str(directory)


def short_name(directory: Path) -> str:
    """As `origin`, but the last part of a path."""
    return origin(directory) if is_snapshot(directory) else directory.name


def _split(name: str) -> tuple[str, str]:
    found = _ID.fullmatch(name)
    assert found is not None
    return found["repo"], found["revision"] or "main"


def _snapshot(directory: Path) -> re.Match[str] | None:
    return _SNAPSHOT.fullmatch(f"{directory.absolute().as_posix()}/")


def _download(repo: str, revision: str, files: Collection[str]) -> Path:
    """Fetches those of the files that there are and the cache lacks."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repo, revision=revision, allow_patterns=list(files)))


def _sizes(repo: str, commit: str, folder: str) -> dict[str, int]:
    """Every file below a folder of a model, with its bytes."""
    from huggingface_hub import HfApi, constants

    found = HfApi().model_info(repo, revision=commit, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    files = [file for file in found.siblings or () if file.rfilename.startswith(folder)]
    return {file.rfilename.removeprefix(folder): file.size or 0 for file in files}


def _listed(directory: Path) -> set[str]:
    return {path.name for path in directory.glob("*")}


def _missing(directory: Path, files: Collection[str]) -> list[str]:
    return sorted(file for file in files if not (directory / file).exists())


def _weights(directory: Path, files: Collection[str]) -> set[str]:
    """The files of one format; the index of its shards is read if it is in `directory`."""
    if first := _first(files):
        return _with_projector({first, *(_shards(directory / first) if first.endswith(_INDEX) else ())}, files)
    for single in _WEIGHTS:
        stem, suffix = single.split(".")
        numbered = {file: re.fullmatch(rf"{stem}-\d+-of-0*(\d+)\.{suffix}", file) for file in files}
        shards = {file: int(match[1]) for file, match in numbered.items() if match}
        if shards and len(shards) >= max(shards.values()):
            return _with_projector(set(shards), files)
    adapter = next((name for name in _ADAPTERS if name in files), None)
    return {adapter, *({_WITH_ADAPTER} & set(files))} if adapter else set()


def _first(files: Collection[str]) -> str | None:
    """The file that is taken where there are several formats: all weights, or the index of their shards."""
    names = [name for single in _WEIGHTS for name in (single, single + _INDEX)]
    return next((name for name in names if name in files), None)


def _with_projector(weights: set[str], files: Collection[str]) -> set[str]:
    """LLaVA's own code may keep the projector apart."""
    return weights | ({"mm_projector.bin"} & set(files))


def _shards(index: Path) -> set[str]:
    try:
        return {str(file) for file in json.loads(index.read_bytes())["weight_map"].values()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return set()  # whoever opens the model says so


def _check_room(name: str, needed: int) -> None:
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    free = shutil.disk_usage(next(place for place in (cache, *cache.absolute().parents) if place.exists())).free
    if free < needed:
        raise InputError(
            f"{name}: its weights need {needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free in {cache}; make room "
            "there, or set HF_HOME to a folder on another disk"
        )


@contextlib.contextmanager
def _one_at_a_time(repo: str) -> Iterator[None]:
    """Has the processes of a machine take turns, so that the first fetches and the others find it in the cache.

    The Hub's own locks lie in the cache, and not all file systems of clusters heed these.
    """
    path = Path(tempfile.gettempdir()) / f"hub-{os.getuid()}-{repo.replace('/', '--')}.lock"
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError:
        yield  # there is still the Hub's own
        return
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("%s: waiting for another process of this machine, which fetches it", repo)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


@contextlib.contextmanager
def _explaining(name: str) -> Iterator[None]:
    """Turns errors of the Hub, of the network and of the disk into one line."""
    from huggingface_hub.errors import HTTPError  # of the library that it is built on: httpx, requests

    try:
        yield
    except InputError:
        raise
    except (HTTPError, OSError, ValueError, RuntimeError) as error:  # each of its versions raises others of these
        raise InputError(" ".join(_explain(error, name).split())) from error


def _explain(error: Exception, name: str) -> str:
    from huggingface_hub import constants, errors

    hub, cache = constants.ENDPOINT, constants.HF_HUB_CACHE
    repo, revision = _split(name)
    token = "a token (hf auth login, or HF_TOKEN)"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo} has no revision {revision!r} at {hub}; after the @ give a branch, a tag or a commit of it"
    if isinstance(error, errors.GatedRepoError):
        return f"{repo} is gated: accept its terms at {hub}/{repo}, and give {token} of the account that did"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{repo} is no folder here, and {hub} has no such model, or it is private: check the name, or give {token} "
            "that may read it"
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        absent = f"{name} is no folder here and not, or not wholly, in the cache {cache}"
        if constants.HF_HUB_OFFLINE:
            return (
                f"{absent}, and HF_HUB_OFFLINE forbids fetching it: unset that, or where there is a network run "
                f"`hf download {repo} --revision {revision}` and bring the cache here"
            )
        return f"{absent}, and {hub} cannot be reached ({_reason(error.__cause__)}): check the network and HF_ENDPOINT"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return (
            f"{name}: its weights are not in the cache {cache}, and HF_HUB_OFFLINE forbids fetching them: unset that, "
            f"or where there is a network run `hf download {repo} --revision {revision}` and bring the cache here"
        )
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code if error.response is not None else None
        if status == 401:
            return f"{name}: {hub} does not know the token that was sent: give {token} that is valid"
        return f"{name}: {hub} refuses ({_reason(error)}): give the same command again later"
    if isinstance(error, errors.HFValidationError):
        return f"{name!r} is no folder here, and no name of a model on the Hub can be so: {_reason(error)}"
    if isinstance(error, OSError) and error.errno:
        place = error.filename or cache
        return f"{name}: {os.strerror(error.errno)}: {place}; make room, or set HF_HOME to a folder that can be written"
    return (
        f"{name}: {hub} cannot be reached or broke off ({_reason(error)}): give the same command again later, which "
        "keeps the files that are complete"
    )


def _reason(error: BaseException | None) -> str:
    """The first line of an error that has words in it, without the number of the request."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] if error else []
    text = re.sub(r" ?\(Request ID: [^)]*\)", "", lines[0]) if lines else ""
    return text.rstrip(".")[:200] or type(error).__name__
