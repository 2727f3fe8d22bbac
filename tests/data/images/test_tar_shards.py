"""Tar shards: every name and byte that `tarfile` reads, whatever wrote them; and nothing of what is damaged."""

import io
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.images.image_worlds import make_tar, pictures, write_folder
from vigor_jax.data.images.places import list_pattern
from vigor_jax.data.images.preprocessing import find_images
from vigor_jax.data.images.tar_shards import TarShards
from vigor_jax.errors import InputError

LAYOUTS = (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
PARTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=120).filter(
    lambda part: part not in (".", "..")
)
NAMES = st.builds(
    lambda parts, suffix: "/".join(parts) + suffix,
    st.lists(PARTS, min_size=1, max_size=4),
    st.sampled_from([".jpg", ".JPEG", ".png", ".jpg.txt", ".json", ""]),
)
MEMBERS = st.dictionaries(NAMES, st.binary(max_size=1500), max_size=8)


def file_of(path: Path):
    (file,) = list_pattern(str(path))
    return file


def scan(path: Path) -> dict[str, bytes]:
    file, kind = file_of(path), TarShards()
    names, columns = kind.scan(file)
    keys = [name for name, _ in kind.columns]
    return {
        name: kind.read(file, row, name, dict(zip(keys, values, strict=True)))
        for row, (name, *values) in enumerate(zip(names, *columns, strict=True))
    }


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(MEMBERS, st.sampled_from(LAYOUTS))
def test_any_names_and_bytes(tmp_path, members, layout):
    """Unicode, nested, longer than a header holds; images are those that a folder would list."""
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=layout) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    wanted = {}
    with tarfile.open(path) as tar:
        for member in tar:
            if Path(member.name).suffix.lower() in (".jpg", ".jpeg", ".png"):
                wanted[member.name] = tar.extractfile(member).read()
    assert {name: members[name] for name in wanted} == wanted
    assert scan(path) == {name.removeprefix("./").lstrip("/"): content for name, content in wanted.items()}


@pytest.mark.parametrize("layout", ["gnu", "pax", "ustar"])
def test_the_tar_command_gives_the_folders_names(layout, tmp_path):
    folder = tmp_path / "photos"
    write_folder(folder, pictures(6) | {f"{'long-' * 18}/{'é' if layout == 'gnu' else 'e'}.jpg": b"x", "n.txt": b"x"})
    command = ["tar", "--sort=name", f"--format={layout}", "-C", str(folder), "-cf", str(tmp_path / "a.tar"), "."]
    subprocess.run(command, check=True)
    found = scan(tmp_path / "a.tar")
    assert found == {name: path.read_bytes() for name, path in find_images(folder).items()}
    assert len(found) == 7


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_shard_that_is_cut_off_anywhere_is_refused(tmp_path, data):
    whole = make_tar({name: content[:700] for name, content in pictures(3).items()})
    members = len(whole.rstrip(b"\0"))
    end = -(-members // 512) * 512  # where the zeros begin that end the tar
    path = tmp_path / "a.tar"
    path.write_bytes(whole[: data.draw(st.integers(0, end + 511))])
    with pytest.raises(InputError, match=r"a\.tar: (not a whole tar|the tar is cut off)") as error:
        scan(path)
    assert "\n" not in str(error.value)
    path.write_bytes(whole[: data.draw(st.integers(end + 512, len(whole)))])
    assert len(scan(path)) == 3


def test_garbage_within_is_not_taken_for_the_end(tmp_path):
    whole = bytearray(make_tar({"a.jpg": b"a", "b.jpg": b"b"}))
    whole[4 * 512 : 4 * 512 + 10] = b"?" * 10  # the header of the third member
    (tmp_path / "a.tar").write_bytes(whole)
    with pytest.raises(InputError, match=r"cut off or damaged behind a\.jpg"):
        scan(tmp_path / "a.tar")


@pytest.mark.parametrize(
    "change",
    [
        lambda whole: whole[:600],  # cut within
        lambda whole: make_tar({"0.jpg": b"x" * 2000}) + whole,  # moved
        lambda whole: make_tar({"b.jpg": b"y" * 1200}),  # another image in its place
        lambda whole: b"\0" * len(whole),
        lambda whole: b"",
    ],
)
def test_a_shard_that_changes_while_it_is_read_is_refused(change, tmp_path):
    path, kind = tmp_path / "a.tar", TarShards()
    path.write_bytes(make_tar({"a.jpg": b"x" * 1200}))
    file = file_of(path)
    (name,), columns = kind.scan(file)
    values = {key: column[0] for (key, _), column in zip(kind.columns, columns, strict=True)}
    assert kind.read(file, 0, name, values) == b"x" * 1200
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputError, match=r"a\.tar: image a\.jpg .*start again") as error:
        kind.read(file, 0, name, values)
    assert "\n" not in str(error.value)
    path.unlink()
    with pytest.raises(InputError, match=r"a\.tar: image a\.jpg cannot be read"):
        kind.read(file, 0, name, values)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_are_refused(kind, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("a.jpg")
        info.type, info.linkname = kind, "b.jpg"
        tar.addfile(info)
    with pytest.raises(InputError, match=r"a\.jpg is a link or no plain file; make the shard with tar --dereference"):
        scan(tmp_path / "a.tar")


def test_names_that_are_not_utf_8_are_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo("\udce9.jpg"))
    with pytest.raises(InputError, match=r"member name '\\udce9.jpg' is not UTF-8"):
        scan(tmp_path / "a.tar")


def test_a_folder_that_is_called_like_an_image_is_none(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("folder.jpg")
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
    assert scan(tmp_path / "a.tar") == {}


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100, b"\x1f\x8b" + b"x" * 2000])
def test_what_is_no_tar_is_refused(content, tmp_path):
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.tar: not a whole tar file without compression") as error:
        scan(tmp_path / "a.tar")
    assert "\n" not in str(error.value)
