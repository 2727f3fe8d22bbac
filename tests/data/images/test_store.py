"""Images are the same wherever they are; what is wrong with a place is said in one line."""

import concurrent.futures
import dataclasses
import io
import os
import tarfile
import uuid
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.images.image_worlds import make_tar, pictures, write_folder, write_parquet, write_tars
from vigor_jax import cli
from vigor_jax.config import TrainConfig
from vigor_jax.data.images import index as image_index
from vigor_jax.data.images import parquet_shards, tar_shards
from vigor_jax.data.images.preprocessing import load_image
from vigor_jax.data.images.store import Folder, StoredImage, open_images
from vigor_jax.errors import InputError
from vigor_jax.report.thumbnails import make_thumbnails

IMAGES = pictures(20)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Indices are made for each test, and not in the home of who runs it."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "vigor_jax" / "images"


@pytest.fixture
def bucket():
    """An empty folder behind a URL."""
    place = f"memory://{uuid.uuid4().hex}"
    yield place
    memory = fsspec.filesystem("memory")
    if memory.exists(place):
        memory.rm(place, recursive=True)


def make_place(what: str, folder: Path, bucket: str) -> str:
    match what:
        case "folder":
            return write_folder(folder, IMAGES)
        case "folder in a bucket":
            return write_folder(bucket, IMAGES)
        case "tars":
            return write_tars(folder, IMAGES)
        case "tars by braces":
            return f"{write_tars(folder, IMAGES)}/{{00000..00003}}.tar"
        case "tars by glob":
            return f"{write_tars(folder, IMAGES)}/000*.tar"
        case "tars deep in a folder":
            write_tars(folder / "train" / "first", IMAGES)
            return str(folder)
        case "tars with Parquet next to them":
            pq.write_table(pa.table({"key": ["1"], "url": ["x"]}), folder / "00000.parquet")
            return write_tars(folder, IMAGES)
        case "one tar":
            (folder / "all.tar").write_bytes(make_tar(IMAGES, prefix="./"))
            return str(folder / "all.tar")
        case "tars in a bucket":
            return write_tars(bucket, IMAGES)
        case "tars in a bucket by braces":
            return f"{write_tars(bucket, IMAGES)}/{{00000..00003}}.tar"
        case "one tar by file://":
            (folder / "all.tar").write_bytes(make_tar(IMAGES))
            return f"file://{folder}/all.tar"
        case "parquet":
            return write_parquet(folder, IMAGES)
        case "one parquet":
            return f"{write_parquet(folder, IMAGES, shards=1)}/00000.parquet"
        case "parquet of datasets":
            return f"{write_parquet(folder, IMAGES, as_struct=True)}/*.parquet"
        case "parquet in a bucket":
            return write_parquet(bucket, IMAGES)
        case "parquet of datasets in a bucket by glob":
            return f"{write_parquet(bucket, IMAGES, as_struct=True)}/*[0-9].parquet"
    raise AssertionError(what)


PLACES = (
    "folder", "folder in a bucket", "tars", "tars by braces", "tars by glob", "tars deep in a folder",
    "tars with Parquet next to them", "one tar", "tars in a bucket", "tars in a bucket by braces", "one tar by file://",
    "parquet", "one parquet", "parquet of datasets", "parquet in a bucket", "parquet of datasets in a bucket by glob",
)  # fmt: skip
SHARDED = [what for what in PLACES if "folder" not in what or "deep" in what]


@pytest.mark.parametrize("what", PLACES)
def test_names_and_bytes_are_the_folders(what, tmp_path, bucket):
    images = open_images(make_place(what, tmp_path, bucket))
    assert list(images) == list(images.names()) == list(IMAGES)
    assert len(images) == len(IMAGES)
    assert {name: images.read(name) for name in images} == IMAGES
    assert all(file.read_bytes() == IMAGES[name] for name, file in images.items())
    assert list(images.names(3, 12)) == list(IMAGES)[3:12]
    assert list(images.names(18, 40)) == list(IMAGES)[18:]
    assert list(images.names(40, 50)) == []
    name = next(iter(images))
    assert load_image(images.file(name)).tobytes() == load_image(IMAGES[name]).tobytes()
    assert name in str(images.file(name))


@pytest.mark.parametrize("what", PLACES)
def test_membership(what, tmp_path, bucket):
    images = open_images(make_place(what, tmp_path, bucket))
    assert all(name in images for name in IMAGES)
    assert not any(name in images for name in ("none.jpg", "001.PNG", "", "more", 7, "000.json"))
    assert images.missing(["gone.jpg", *IMAGES, "more/gone.jpg", "gone.jpg"]) == [
        "gone.jpg", "more/gone.jpg", "gone.jpg",
    ]  # fmt: skip
    with pytest.raises(KeyError):
        images["gone.jpg"]
    with pytest.raises(InputError, match=r"gone\.jpg") as error:
        images.read("gone.jpg")
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"gone\.jpg"):
        load_image(images.file("gone.jpg"))


@pytest.mark.parametrize("what", PLACES)
def test_a_limit_lists_the_first_and_reads_all(what, tmp_path, bucket):
    images = open_images(make_place(what, tmp_path, bucket), limit=7)
    assert list(images) == list(IMAGES)[:7]
    assert len(images) == 7
    assert images.read(list(IMAGES)[9]) == IMAGES[list(IMAGES)[9]]
    assert len(open_images(images.place, limit=1000)) == len(IMAGES)


@pytest.mark.parametrize("what", PLACES)
def test_eight_threads_read_what_one_reads(what, tmp_path, bucket):
    images = open_images(make_place(what, tmp_path, bucket))
    names = [str(name) for name in np.random.default_rng(0).permutation(list(IMAGES) * 12)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(images.read, names)) == [IMAGES[name] for name in names]


def test_images_are_equal_only_to_themselves(tmp_path):
    images = open_images(write_tars(tmp_path, IMAGES))
    assert images != open_images(tmp_path)
    assert len({images.file("001.png"), images.file("001.png"), images.file("002.jpg")}) == 2
    assert isinstance(images.file("001.png"), StoredImage)


def test_a_folder_of_images_stays_a_folder_whatever_lies_next_to_them(tmp_path):
    write_folder(tmp_path / "photos", IMAGES)
    write_tars(tmp_path, {"other.jpg": b"x"})
    images = open_images(tmp_path)
    assert isinstance(images, Folder)
    assert set(images) == {f"photos/{name}" for name in IMAGES}
    assert images.file("x/y.jpg") == tmp_path / "x" / "y.jpg"


def test_one_image_is_called_by_its_file(tmp_path):
    (tmp_path / "one.jpg").write_bytes(b"x")
    images = open_images(tmp_path / "one.jpg")
    assert list(images) == ["one.jpg"]
    assert images.read("one.jpg") == b"x"
    assert images.missing(["one.jpg", "two.jpg"]) == ["two.jpg"]


# The index


@pytest.mark.parametrize("kind", [tar_shards.TarShards, parquet_shards.ParquetShards])
def test_shards_are_looked_into_once(kind, tmp_path, monkeypatch):
    write = write_tars if kind is tar_shards.TarShards else write_parquet
    open_images(write(tmp_path, IMAGES))
    with monkeypatch.context() as patch:
        patch.setattr(kind, "scan", None)
        assert list(open_images(tmp_path)) == list(IMAGES)
        assert list(open_images(f"{tmp_path}/*{'.tar' if 'Tar' in kind.__name__ else '.parquet'}")) == list(IMAGES)
    write(tmp_path, dict(reversed(IMAGES.items())))
    assert list(open_images(tmp_path)) == list(reversed(IMAGES))


@pytest.mark.parametrize("file", ["rows.arrow", "starts.npy", "lookup.npy"])
@pytest.mark.parametrize("content", [None, b"", b"what"])
def test_a_damaged_index_is_made_again(file, content, tmp_path, cache):
    open_images(write_tars(tmp_path, IMAGES))
    (folder,) = cache.iterdir()
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    assert {name: open_images(tmp_path).read(name) for name in IMAGES} == IMAGES


def test_without_a_cache_the_index_is_temporary(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(image_index.tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))
    assert list(open_images(write_tars(tmp_path / "shards", IMAGES))) == list(IMAGES)
    assert (tmp_path / "temporary" / f"cache-{os.getuid()}" / "vigor_jax" / "images").is_dir()


def test_equal_hashes_are_told_apart_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(image_index, "hash_name", lambda name: 2**63 + len(name) % 2)
    images = open_images(write_tars(tmp_path, IMAGES))
    assert {name: images.read(name) for name in IMAGES} == IMAGES
    assert images.missing(["x.jpg", "more/x.jpg"]) == ["x.jpg", "more/x.jpg"]


def test_those_who_open_at_once_look_into_shards_once(tmp_path, monkeypatch):
    scanned, scan = [], tar_shards.TarShards.scan
    monkeypatch.setattr(tar_shards.TarShards, "scan", lambda self, file: scanned.append(file.path) or scan(self, file))
    write_tars(tmp_path, IMAGES)
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        assert all(list(images) == list(IMAGES) for images in pool.map(open_images, [tmp_path] * 6))
    assert len(scanned) == len(set(scanned)) == 4


def test_a_failed_scan_leaves_nothing(tmp_path, cache):
    (tmp_path / "a.tar").write_bytes(make_tar(IMAGES)[:3000])
    with pytest.raises(InputError):
        open_images(tmp_path)
    assert list(cache.iterdir()) == []


# Names

NAMES = st.builds(
    lambda parts: f"a{'/'.join(parts)}z.jpg",
    st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), max_size=90), max_size=3),
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(NAMES, st.binary(max_size=9), min_size=1, max_size=12), st.integers(1, 3))
def test_any_names_are_found(tmp_path_factory, members, shards):
    folder = tmp_path_factory.mktemp("names")
    for write in (write_tars, write_parquet):
        images = open_images(write(folder / write.__name__, members, shards=shards))
        assert list(images) == list(members)
        assert {name: images.read(name) for name in members} == members
        others = [f"{name}x" for name in members] + ["\ud800.jpg"]
        assert images.missing([*members, *others]) == others


def test_a_name_in_two_shards_is_refused_or_qualified(tmp_path):
    for shard in ("a/00000.tar", "b/00000.tar", "b/00001.tar"):
        (tmp_path / shard).parent.mkdir(exist_ok=True)
        (tmp_path / shard).write_bytes(make_tar({"0.jpg": shard.encode(), f"{shard[0]}{shard[-5]}.jpg": b"x"}))
    with pytest.raises(InputError, match=r"0\.jpg is in .*a/00000\.tar and in .*b/00000\.tar.*names=shard") as error:
        open_images(tmp_path)
    assert "\n" not in str(error.value)
    images = open_images(f"{tmp_path}#names=shard")
    assert list(images) == [
        "a/00000/0.jpg", "a/00000/a0.jpg", "b/00000/0.jpg", "b/00000/b0.jpg", "b/00001/0.jpg", "b/00001/b1.jpg",
    ]  # fmt: skip
    assert images.read("b/00000/0.jpg") == b"b/00000.tar"
    one = open_images(f"{tmp_path}/a/00000.tar#names=shard")
    assert (list(one), one.read("00000/0.jpg")) == (["00000/0.jpg", "00000/a0.jpg"], b"a/00000.tar")


def test_qualified_names_in_parquet(tmp_path):
    for shard in range(2):
        table = pa.table({"id": [0, 1], "image": [b"%d" % shard, b"x"]})
        pq.write_table(table, tmp_path / f"{shard}.parquet")
    images = open_images(f"{tmp_path}#names=shard")
    assert list(images) == ["0/0", "0/1", "1/0", "1/1"]
    assert images.read("1/0") == b"1"


def test_a_name_twice_in_a_shard_is_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for data in (b"1", b"22"):
            info = tarfile.TarInfo("same.jpg")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with pytest.raises(InputError, match=r"same\.jpg is in .*a\.tar twice"):
        open_images(tmp_path)


# What is wrong with a place


def empty_tar(folder: Path) -> str:
    (folder / "a.tar").write_bytes(make_tar({}))
    return str(folder)


def compressed(folder: Path) -> str:
    with tarfile.open(folder / "a.tar.gz", "w:gz"):
        pass
    return str(folder / "a.tar.gz")


WRONG = {
    "empty shards": (empty_tar, "no member of the shards of .* ends in one of .jpg"),
    "compressed": (compressed, r"expected .tar or .parquet without compression, or images, got .*a\.tar\.gz"),
    "nothing matches": (lambda folder: f"{folder}/*.tar", "nothing matches"),
    "a shard is missing": (lambda folder: f"{write_tars(folder, IMAGES)}/{{00002..00007}}.tar", "00004.tar is not th"),
    "backwards": (lambda folder: f"{folder}/{{7..2}}.tar", r"expected \{LOW..HIGH\}, got \{7..2\}"),
    "unknown option": (lambda folder: f"{write_tars(folder, IMAGES)}#nam=x", "expected image, name, names=VALUE behin"),
    "option without value": (lambda folder: f"{write_tars(folder, IMAGES)}#name", "expected image, name, names=VALUE"),
    "option of Parquet": (lambda folder: f"{write_tars(folder, IMAGES)}#name=x", "the option name is for Parquet"),
    "odd naming": (lambda folder: f"{write_tars(folder, IMAGES)}#names=x", "expected names=shard, got names=x"),
    "unknown scheme": (lambda folder: "nowhere://bucket/x.tar", "nowhere://bucket/x.tar cannot be opened"),
    "empty bucket": (lambda folder: "memory://nobody-wrote-this", "no file below memory://nobody-wrote-this ends in"),
    "no such tar in a bucket": (lambda folder: "memory://nobody/x.tar", "memory://nobody/x.tar is not there"),
    "pattern of other files": (lambda folder: f"{write_folder(folder, IMAGES)}/*.jpg", "expected .tar or .parquet"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_wrong_places_in_one_line(what, tmp_path):
    make, message = WRONG[what]
    with pytest.raises(InputError, match=message) as error:
        open_images(make(tmp_path))
    assert "\n" not in str(error.value)


def test_a_folder_that_is_not_there_complains_when_it_is_listed(tmp_path):
    with pytest.raises(InputError, match="is neither a file nor a folder"):
        list(open_images(tmp_path / "none"))
    with pytest.raises(InputError, match="no file below"):
        len(open_images(tmp_path))
    assert open_images(tmp_path / "none").missing(["a.jpg", "b.jpg"]) == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize("name", ["set#1", "set [2]", "{0..1}", "what*?"])
def test_signs_in_the_name_of_what_is_there_are_part_of_it(name, tmp_path):
    write_tars(tmp_path / name, IMAGES)
    assert list(open_images(tmp_path / name)) == list(IMAGES)
    assert len(open_images(tmp_path / name / "00000.tar")) == 7
    (tmp_path / f"{name}.tar").write_bytes(make_tar(IMAGES))
    assert list(open_images(tmp_path / f"{name}.tar")) == list(IMAGES)


# Through configs


@pytest.mark.parametrize("place", ["gs://b/{00000..00009}.tar", "s3://b/*.parquet#name=id", "d/[0-9].tar", "photos/"])
def test_places_survive_the_command_line_and_yaml(place, tmp_path):
    keys = ("sample", "sft", "train_reward", "evaluate")
    more = [part for key in keys for part in (f"--{key}.images", place)]
    config = cli.parse(TrainConfig, ["--run.dir", "r", "--model.path", "m", *more], description="")
    (tmp_path / "c.yaml").write_text(cli.dump(config))
    again = cli.parse(TrainConfig, ["--config", str(tmp_path / "c.yaml")], description="")
    assert again == config
    assert all(getattr(again, key).images == place for key in keys)
    assert dataclasses.asdict(again.sample)["images"] == place


def test_thumbnails_are_the_folders(tmp_path):
    folder = open_images(write_folder(tmp_path / "folder", IMAGES))
    shards = open_images(write_tars(tmp_path / "shards", IMAGES))
    wanted = make_thumbnails([folder.file(name) for name in IMAGES], 100_000)
    assert all(wanted)
    assert make_thumbnails([shards.file(name) for name in IMAGES], 100_000) == wanted
    assert make_thumbnails([shards.file("gone.jpg"), None], 100_000) == [None, None]
