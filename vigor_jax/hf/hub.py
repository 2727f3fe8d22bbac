"""Models by their name on the Hugging Face Hub, see `detector_bridge.hub`; its refusals as those of this package."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from detector_bridge import hub
from detector_bridge.errors import InputError as BridgeError
from detector_bridge.hub import is_id as is_id
from detector_bridge.hub import is_snapshot as is_snapshot
from detector_bridge.hub import origin as origin
from vigor_jax.errors import InputError


def local_directory(name: str | Path) -> Path:
    """The folder of a model: itself, or the one in the Hub's cache, which then has all but the weights.

    Args:
      name: a folder, or `ORG/NAME` or `ORG/NAME@REVISION` on the Hub; the folder wins where both exist.

    Raises:
      InputError: it cannot be fetched and is not in the cache.
    """
    with _as_input_error():
        return hub.local_directory(name)


def fetch_weights(directory: Path) -> None:
    """Completes what `local_directory` returned; does nothing to other folders.

    Raises:
      InputError: it cannot.
    """
    with _as_input_error():
        hub.fetch_weights(directory)


def pinned(name: str | Path) -> str | Path:
    """`ORG/NAME@COMMIT` for a name on the Hub, with the commit that it stands for today; anything else as it is.

    Raises:
      InputError: as `local_directory`.
    """
    return origin(local_directory(name)) if is_id(name) else name


@contextlib.contextmanager
def _as_input_error() -> Iterator[None]:
    try:
        yield
    except BridgeError as error:
        raise InputError(str(error)) from None
