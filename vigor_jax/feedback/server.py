"""A running Label Studio: a project is made or completed there, and read back.

The same push again changes what differs and adds what is missing, so a push that was cut off is continued by the same
command. The token comes from the environment and is never written or told.
"""

import contextlib
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from vigor_jax.errors import InputError
from vigor_jax.feedback.project import Project
from vigor_jax.feedback.tasks import Json

logger = logging.getLogger(__name__)

TOKEN = "LABEL_STUDIO_API_KEY"
_MADE_BY = "Made by python -m vigor_jax.annotate export."
_LONGEST_TITLE = 50
# Of one request.
_MOST_TASKS, _MOST_BYTES = 100, 20_000_000

_PROJECT = re.compile(r"(?P<server>https?://[^/]+(?:/.*)?)/projects/(?P<number>\d+)(?:/.*)?/?(?:\?.*)?")


class Pushed(NamedTuple):
    """What a push did.

    Attributes:
      address: of the project.
      added: tasks.
      updated: tasks whose sentences or verdicts are shown otherwise now.
      kept: tasks that were there.
      others: tasks of the project that are not in what was pushed; they stay.
    """

    address: str
    added: int
    updated: int
    kept: int
    others: int


def push(project: Project, server: str, title: str) -> Pushed:
    """Makes a project in a running server, or brings one that this command made up to date.

    Args:
      project: what it is to hold.
      server: its address.
      title: of the project there; at most 50 letters.

    Raises:
      InputError: the SDK or the token is missing, the server does not answer or refuses, or another project has that
        title.
    """
    server = server.rstrip("/")
    if not title.strip() or len(title) > _LONGEST_TITLE:
        raise InputError(f"title: expected 1 to {_LONGEST_TITLE} letters, got {len(title)}; give --title")
    client = _connect(server)
    with _telling(server, "nothing was added"):
        number = _find(client, server, title, project)
        _update(client, number, project)
        present = _tasks(client, number)
    added = updated = 0
    wanted = {task["data"]["key"]: task for task in project.tasks}
    missing = [task for key, task in wanted.items() if key not in present]
    for batch in _batches(missing):
        with _telling(server, f"{added} of {len(missing)} new tasks were added"):
            client.projects.import_tasks(number, request=batch)
        added += len(batch)
        logger.info("%s: %d of %d new tasks", server, added, len(missing))
    for key, task in wanted.items():
        if key in present and _shown(present[key]) != _shown_by(task):
            with _telling(server, f"{added} tasks were added, {updated} updated"):
                _replace(client, number, present[key], task)
            updated += 1
    if wanted:
        version = next(iter(wanted.values()))["predictions"][0]["model_version"]
        with _telling(server, "all tasks are there"):
            client.projects.update(number, model_version=version, show_collab_predictions=True)
    kept = len(wanted) - added - updated
    return Pushed(f"{server}/projects/{number}", added, updated, kept, len(present.keys() - wanted.keys()))


def is_project(place: str) -> bool:
    """Whether a place is a project of a running server."""
    return _PROJECT.fullmatch(place) is not None


def pull(place: str) -> Any:
    """The export of a project of a running server, as its JSON.

    Args:
      place: its address, as a browser shows it: `http://localhost:8080/projects/3`.

    Raises:
      InputError: as `push`.
    """
    match = _PROJECT.fullmatch(place)
    assert match, place
    client = _connect(match["server"])
    with _telling(match["server"], "nothing was read"):
        return client.projects.exports.as_json(int(match["number"]))


def _connect(server: str) -> Any:
    if not server.startswith(("http://", "https://")):
        raise InputError(f"expected the address of a server such as http://localhost:8080, got {server!r}")
    token = os.environ.get(TOKEN, "").strip()
    if not token:
        raise InputError(
            f"{TOKEN} is not set; copy the token from Account & Settings of {server} into this environment variable"
        )
    try:
        from label_studio_sdk import LabelStudio
    except ImportError as error:
        raise InputError(
            f"the package label-studio-sdk is missing ({error}); pip install 'vigor-jax[annotate]', or import the "
            "project's files by hand as its README.md says"
        ) from error
    with _telling(server, "nothing was added"):
        return LabelStudio(base_url=server, api_key=token)


@contextlib.contextmanager
def _telling(server: str, done: str) -> Iterator[None]:
    """Says in one line what went wrong with a server, and what was done before."""
    from httpx import HTTPError
    from label_studio_sdk.core.api_error import ApiError

    try:
        yield
    except ApiError as error:
        if error.status_code in (401, 403):
            raise InputError(
                f"{server}: refuses the token in {TOKEN} ({_reason(error.body)}); copy it from Account & Settings there"
            ) from None
        raise InputError(f"{server}: status {error.status_code}: {_reason(error.body)}; {done}") from None
    except (HTTPError, json.JSONDecodeError) as error:
        told = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{server}: does not answer ({told}); {done}; start it (label-studio start), and the same command continues"
        ) from None


def _reason(body: Any) -> str:
    """What a server says is wrong, in one line."""
    if isinstance(body, dict):
        errors = body.get("validation_errors")
        body = errors if errors else body.get("detail", body)
    told = " ".join((body if isinstance(body, str) else json.dumps(body, default=str)).split())
    return told if len(told) <= 300 else f"{told[:297]}..."


def _find(client: Any, server: str, title: str, project: Project) -> int:
    """The number of the project, which is made if there is none."""
    for found in client.projects.list(title=title):
        if found.title == title:
            if found.description != _MADE_BY:
                raise InputError(
                    f"{server}: has a project {title!r} that this command did not make; give another --title"
                )
            return int(found.id)
    made = client.projects.create(title=title, description=_MADE_BY, label_config=project.label_config)
    return int(made.id)


def _update(client: Any, number: int, project: Project) -> None:
    client.projects.update(
        number, label_config=project.label_config, expert_instruction=project.instructions, show_instruction=True
    )
    if project.image_folder:
        path = str(project.image_folder)
        if all(storage.path != path for storage in client.import_storage.local.list(project=number)):
            client.import_storage.local.create(project=number, path=path, title="images", use_blob_urls=True)


def _tasks(client: Any, number: int) -> dict[str, Any]:
    """The project's tasks by their keys; those that are not ours have none."""
    tasks = client.tasks.list(project=number, fields="all", page_size=_MOST_TASKS)
    return {task.data["key"]: task for task in tasks if isinstance(task.data, dict) and "key" in task.data}


def _shown(task: Any) -> list[tuple[str, Json]]:
    return [(each.model_version, each.result) for each in task.predictions or []]


def _shown_by(task: Json) -> list[tuple[str, Json]]:
    return [(each["model_version"], each["result"]) for each in task["predictions"]]


def _replace(client: Any, number: int, present: Any, task: Json) -> None:
    """Shows what a task shows, and takes away what was shown; what people have said stays."""
    for each in task["predictions"]:
        client.predictions.create(task=present.id, project=number, **each)
    for old in present.predictions or []:
        client.predictions.delete(old.id)


def _batches(tasks: Sequence[Json]) -> Iterator[list[Json]]:
    batch: list[Json] = []
    size = 0
    for task in tasks:
        weight = len(task["data"]["image"]) + len(task["data"]["description"])
        if batch and (len(batch) == _MOST_TASKS or size + weight > _MOST_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(task)
        size += weight
    if batch:
        yield batch
