"""Links in a folder of images, and what is left out of it."""

import json
import logging
import os
import socket
import subprocess
import sys
import uuid
from pathlib import Path

import fsspec
import pytest

from tests.data.images.image_worlds import make_tar, pictures
from vigor_jax.data.images.folders import FolderWalk, count
from vigor_jax.data.images.preprocessing import find_images
from vigor_jax.data.images.store import open_images
from vigor_jax.errors import InputError

PICTURE = next(iter(pictures(1).values()))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def fill(root: Path, tree: dict[str, str | None]) -> Path:
    """Makes files (None) and links (to where), and the folders that they are in; `@` stands for the parent of root."""
    for name, target in tree.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if target is None:
            path.write_bytes(PICTURE)
        else:
            path.symlink_to(target.replace("@", str(root.parent)))
    return root


CASES = {
    "a link out of the folder": (
        {"a.jpg": None, "../else/b.jpg": None, "../else/deep/c.png": None, "out": "@/else"},
        ["a.jpg", "out/b.jpg", "out/deep/c.png"],
        "",
    ),
    "one image and six by links": (
        {"1.jpg": None, **{f"../store/{i}/{i}.jpg": None for i in range(2, 8)}}
        | {f"more{i}": f"@/store/{i}" for i in range(2, 8)},
        ["1.jpg", *(f"more{i}/{i}.jpg" for i in range(2, 8))],
        "",
    ),
    "relative links to files": (
        {"a.jpg": None, "b.jpg": "a.jpg", "c/d.jpg": "../a.jpg"},
        ["a.jpg", "b.jpg", "c/d.jpg"],
        "",
    ),
    "a link to a link": ({"x/a.jpg": None, "y": "x", "z": "y"}, ["x/a.jpg", "y/a.jpg", "z/a.jpg"], ""),
    "a link to a parent": ({"x/a.jpg": None, "x/up": ".."}, ["x/a.jpg"], "1 circular link"),
    "a link to itself": ({"a.jpg": None, "loop": "loop"}, ["a.jpg"], "1 broken link"),
    "a link to where it is": ({"x/a.jpg": None, "x/here": "."}, ["x/a.jpg"], "1 circular link"),
    "a link to what is around the root": ({"a.jpg": None, "up": "@", "../b.jpg": None}, ["a.jpg"], "1 circular link"),
    "a link to /": ({"a.jpg": None, "all": "/"}, ["a.jpg"], "1 circular link"),
    "a way back from outside": (
        {"a.jpg": None, "../else/b.jpg": None, "../else/back": "@/root", "out": "@/else"},
        ["a.jpg", "out/b.jpg"],
        "1 circular link",
    ),
    "folders that link to each other": (
        {"x/a.jpg": None, "y/b.jpg": None, "x/y": "../y", "y/x": "../x"},
        ["x/a.jpg", "x/y/b.jpg", "y/b.jpg", "y/x/a.jpg"],
        "2 circular links",
    ),
    "links to nothing": ({"a.jpg": None, "b.jpg": "gone.jpg", "c": "nowhere"}, ["a.jpg"], "2 broken links"),
    "what is no image": (
        {"a.jpg": None, "b.jp2": None, "c.jp2": None, "d.HEIC": None, "e.txt": None, "README": None},
        ["a.jpg"],
        "2 .jp2, 1 .heic, 1 .txt, 1 suffixless file",
    ),
    "every suffix of the list": (
        {f"{i}{s}": None for i, s in enumerate([".jpg", ".JPEG", ".jfif", ".avif", ".png", ".webp", ".tif", ".mpo"])},
        ["0.jpg", "1.JPEG", "2.jfif", "3.avif", "4.png", "5.webp", "6.tif", "7.mpo"],
        "",
    ),
    "no link at all": (
        {"b.jpg": None, "a/z.jpg": None, ".hidden/c.jpg": None, "a.png": None},
        [".hidden/c.jpg", "a.png", "a/z.jpg", "b.jpg"],
        "",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_names_and_what_is_left_out(case, tmp_path, caplog):
    tree, names, left_out = CASES[case]
    root = fill(tmp_path / "root", tree)
    with caplog.at_level(logging.INFO):
        images = open_images(root)
        assert list(images) == names
    said = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert said == ([f"{root}: {len(names)} image{'s' * (len(names) > 1)}; left out: {left_out}"] if left_out else [])
    assert all(images.read(name) == PICTURE for name in names)
    assert images.missing([*names, "none.jpg"]) == ["none.jpg"]


def test_a_folder_without_images_says_what_it_has(tmp_path):
    root = fill(tmp_path / "root", {"a.jp2": None, "b.jp2": None, "c.jpg": "gone"})
    with pytest.raises(InputError, match=r"no file below .* ends in one of .*; found only 2 \.jp2, 1 broken link$"):
        list(open_images(root))


@pytest.mark.parametrize("place", ["", " ", "\n"])
def test_an_empty_name_is_not_the_working_directory(place, tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="got nothing; is a variable empty"):
        open_images(place)
    assert list(open_images(".")) == ["a.png"]


def test_the_folder_itself_may_be_a_link(tmp_path):
    fill(tmp_path / "root", {"a.jpg": None, "x/b.jpg": None, "x/back": ".."})
    (tmp_path / "link").symlink_to("root")
    assert list(open_images(tmp_path / "link")) == ["a.jpg", "x/b.jpg"]


def test_ten_folders_that_all_link_to_each_other_end(tmp_path):
    """Without a bound there were millions of ways through them."""
    tree: dict[str, str | None] = {}
    for i in range(10):
        tree |= {f"{i}/{i}.jpg": None} | {f"{i}/to{j}": f"../{j}" for j in range(10) if j != i}
    walk = FolderWalk(fill(tmp_path / "root", tree))
    files = sorted(walk)
    assert len(files) == len(set(files)) <= 10 + 90
    assert {str(tmp_path / "root" / f"{i}" / f"{i}.jpg") for i in range(10)} <= set(files)


def test_second_names_are_told(tmp_path, caplog):
    root = fill(tmp_path / "root", {"x/a.jpg": None, "x/b.jpg": None, "y": "x"})
    with caplog.at_level(logging.INFO):
        assert len(find_images(root)) == 4
    assert [record.getMessage() for record in caplog.records] == [f"{root}: links give 2 of its files a second name"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_an_unreadable_folder_is_told(tmp_path, caplog):
    root = fill(tmp_path / "root", {"a.jpg": None, "closed/b.jpg": None})
    (root / "closed").chmod(0)
    try:
        with caplog.at_level(logging.INFO):
            assert list(find_images(root)) == ["a.jpg"]
    finally:
        (root / "closed").chmod(0o755)
    assert "left out: 1 unreadable folder" in caplog.text


def test_what_is_no_file_is_left_out(tmp_path, monkeypatch, caplog):
    root = fill(tmp_path / "root", {"a.jpg": None, "folder.jpg/b.jpg": None})
    os.mkfifo(root / "pipe.jpg")
    monkeypatch.chdir(root)
    with socket.socket(socket.AF_UNIX) as listener, caplog.at_level(logging.INFO):
        listener.bind("socket.png")
        assert list(find_images(root)) == ["a.jpg", "folder.jpg/b.jpg"]
    assert "left out: 2 special files" in caplog.text


@pytest.mark.parametrize("where", ["shards", "shards/*.tar", "shards/{0,1}.tar"])
def test_shards_may_be_links(tmp_path, where):
    store, shards = tmp_path / "store", tmp_path / "shards"
    store.mkdir()
    shards.mkdir()
    found = pictures(4)
    halves = [dict(list(found.items())[:2]), dict(list(found.items())[2:])]
    for i, half in enumerate(halves):
        (store / f"{i}.tar").write_bytes(make_tar(half))
        (shards / f"{i}.tar").symlink_to(store / f"{i}.tar")
    images = open_images(tmp_path / where)
    assert {name: images.read(name) for name in images} == found
    (store / "1.tar").write_bytes(make_tar(halves[0] | halves[1]))  # the link stays as it is
    (store / "0.tar").unlink()
    (shards / "0.tar").unlink()
    images = open_images(tmp_path / where.replace("{0,1}", "1"))
    assert {name: images.read(name) for name in images} == found


def test_shards_in_a_linked_folder(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "shards").mkdir()
    (tmp_path / "store" / "0.tar").write_bytes(make_tar(pictures(3)))
    (tmp_path / "shards" / "train").symlink_to(tmp_path / "store")
    assert len(open_images(tmp_path / "shards")) == 3


def test_a_shard_that_is_a_broken_link_is_named(tmp_path):
    (tmp_path / "0.tar").symlink_to(tmp_path / "gone.tar")
    (tmp_path / "1.tar").write_bytes(make_tar(pictures(3)))
    with pytest.raises(InputError, match=r"0\.tar is not there"):
        open_images(f"{tmp_path}/{{0,1}}.tar")


def test_two_processes_find_the_same_names(tmp_path):
    tree: dict[str, str | None] = {f"../store/{i}/{i}.jpg": None for i in range(6)}
    tree |= {f"../store/{i}/next": f"@/store/{(i + 1) % 6}" for i in range(6)} | {
        f"l{i}": f"@/store/{i}" for i in range(6)
    }
    root = fill(tmp_path / "root", tree)
    program = "import json, sys; from pathlib import Path\n"
    program += "from vigor_jax.data.images.preprocessing import find_images\n"
    program += "print(json.dumps(list(find_images(Path(sys.argv[1])))))"
    done = subprocess.run([sys.executable, "-c", program, root], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == list(find_images(root))


def test_counting():
    assert count({}) == ""
    assert count({".jp2": 1, "broken link": 1, ".txt": 3, "special file": 2}) == (
        "3 .txt, 2 special files, 1 .jp2, 1 broken link"
    )
    many = {f".{i}": 100 - i for i in range(40)}
    assert count(many).startswith("100 .0, 99 .1, ")
    assert count(many).endswith(f", {sum(range(61, 89))} of other kinds")


def test_a_bucket_says_what_it_leaves_out(caplog):
    memory = fsspec.filesystem("memory")
    place = f"/{uuid.uuid4().hex}"
    for name in ("a.jpg", "b.jp2", "deep/c.jp2", "deep/d.avif", "e.json"):
        memory.pipe_file(f"{place}/{name}", PICTURE)
    with caplog.at_level(logging.INFO):
        assert list(open_images(f"memory:/{place}")) == ["a.jpg", "deep/d.avif"]
    assert "2 images; left out: 2 .jp2, 1 .json" in caplog.text
    memory.rm(place, recursive=True)
