"""Which files a checkpoint in several files consists of: what an index names, or all of a set without one."""

import json
import re
from pathlib import Path

from vigor_jax.errors import InputError, some
from vigor_jax.hf.weights.stored_tensor import damaged
from vigor_jax.json_fields import check_file


def shards_without_index(directory: Path, stem: str, suffix: str) -> list[Path]:
    """All of STEM-00001-of-0000N.SUFFIX and so on, in their order; none if there is no such file.

    Raises:
        InputError: some are missing, or there are two sets of them.
    """
    pattern = re.compile(rf"{re.escape(stem)}-(\d+)-of-(\d+)\.{suffix}")
    found = {path: pattern.fullmatch(path.name) for path in directory.glob(f"{stem}-*.{suffix}")}
    numbers = {(int(match[2]), int(match[1])): path for path, match in found.items() if match}
    counts = sorted({count for count, _ in numbers})
    if len(counts) > 1:
        raise InputError(
            f"{directory} holds shards of {' and of '.join(map(str, counts))} files and no index: keep those of one"
            " checkpoint"
        )
    missing = [str(k) for count in counts for k in range(1, min(count, 10_000) + 1) if (count, k) not in numbers]
    if missing:
        raise InputError(
            f"{directory} holds {len(numbers)} of {counts[0]} shards and no index; missing are the numbers"
            f" {some(missing)}: download them"
        )
    return [numbers[key] for key in sorted(numbers)]


def read_weight_map(index: Path) -> dict[str, str]:
    """Reads {tensor: shard} from an index file.

    Raises:
        InputError: it cannot be read, is no index, or names a file outside its directory.
    """
    try:
        check_file(index)
        weight_map = json.loads(index.read_bytes())["weight_map"]
        names = [*weight_map, *weight_map.values()]
    except InputError:  # a ValueError too
        raise
    except OSError as error:
        raise InputError(f"{index} cannot be read ({error.strerror}): give a readable checkpoint") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise damaged(index, "is no index of shards (a JSON object with a weight_map)") from error
    if not weight_map or not all(isinstance(name, str) for name in names):
        raise damaged(index, "has a weight_map that is empty or does not map tensors to files")
    outside = [file for file in weight_map.values() if Path(file).name != file]
    if outside:
        raise InputError(f"{index} names the shard {outside[0]!r}: shards must lie in the directory of the index")
    return weight_map
