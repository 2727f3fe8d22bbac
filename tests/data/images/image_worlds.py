"""The same pictures as a folder, as tar shards in WebDataset's layout and as Parquet, on a disk or in memory."""

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from vigor_jax.data.records.store import join

KINDS = ("tar", "parquet")


def pictures(number: int) -> dict[str, bytes]:
    """Name → file, sorted; some in a folder within the folder."""
    rng, found = np.random.default_rng(0), {}
    for index in range(number):
        file = io.BytesIO()
        pixels = rng.integers(0, 256, (20, 20 + index % 7, 3), np.uint8)
        Image.fromarray(pixels).save(file, "PNG" if index % 2 else "JPEG")
        found[f"{'more/' if index % 3 == 0 else ''}{index:03}.{'png' if index % 2 else 'jpg'}"] = file.getvalue()
    return dict(sorted(found.items()))


def read_folder(folder: Path) -> dict[str, bytes]:
    """The pictures of a folder, as `pictures` gives them."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.*")}
    return {name: files[name].read_bytes() for name in sorted(files)}


def write_folder(place: str | Path, images: Mapping[str, bytes]) -> str:
    for name, content in images.items():
        with fsspec.open(join(place, name), "wb", auto_mkdir=True) as file:
            file.write(content)
    return str(place)


def make_tar(images: Mapping[str, bytes], *, layout: int = tarfile.GNU_FORMAT, prefix: str = "") -> bytes:
    """A shard as WebDataset writes it: the members of a sample, which share their key, stand together."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=layout) as tar:
        for name, content in images.items():
            for member, data in ((name, content), (f"{name.rpartition('.')[0]}.json", b'{"caption": "A cat."}')):
                info = tarfile.TarInfo(prefix + member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def write_tars(place: str | Path, images: Mapping[str, bytes], *, shards: int = 3) -> str:
    """`PLACE/00000.tar`, ...: all pictures in their order, and a shard without any at the end."""
    for index, part in enumerate([*_split(images, shards), {}]):
        with fsspec.open(join(place, f"{index:05}.tar"), "wb", auto_mkdir=True) as file:
            file.write(make_tar(part))
    return str(place)


def write_parquet(
    place: str | Path, images: Mapping[str, bytes], *, shards: int = 3, rows: int = 2, as_struct: bool = False
) -> str:
    """`PLACE/00000.parquet`, ...: bytes next to names, or both in a struct as `datasets` has them."""
    for index, part in enumerate(_split(images, shards)):
        if as_struct:
            cells = [{"bytes": content, "path": name} for name, content in part.items()]
            table = pa.table({"label": [7] * len(part), "image": cells})
            features = {"info": {"features": {"image": {"_type": "Image"}}}}
            table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
        else:
            table = pa.table({"name": pa.array(part, pa.string()), "image": pa.array(part.values(), pa.binary())})
        with fsspec.open(join(place, f"{index:05}.parquet"), "wb", auto_mkdir=True) as file:
            pq.write_table(table, file, row_group_size=rows)
    return str(place)


def write(kind: str, place: str | Path, images: Mapping[str, bytes]) -> str:
    """One of `KINDS`."""
    return {"tar": write_tars, "parquet": write_parquet}[kind](place, images)


def _split(images: Mapping[str, bytes], parts: int) -> list[dict[str, bytes]]:
    items = list(images.items())
    size = -(-len(items) // parts)
    return [dict(items[index * size : (index + 1) * size]) for index in range(parts)]
