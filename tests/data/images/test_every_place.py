"""What takes a folder of images takes shards as well, and writes the same bytes: every stage and command."""

import dataclasses
import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.data.images.image_worlds import KINDS, make_tar, pictures, read_folder, write, write_folder
from tests.pipeline.loop_world import loop
from tests.pipeline.loop_world import make_world as make_loop_world
from tests.stages.sft_world import curve
from tests.stages.sft_world import make_world as make_sft_world
from tests.tiny_llava import Tiny, build_checkpoint
from vigor_jax import caption, train
from vigor_jax.data.images.store import open_images
from vigor_jax.errors import InputError
from vigor_jax.hf.load import open_checkpoint
from vigor_jax.inference.sampling_config import SamplingConfig
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.parallel.sharding import make_mesh
from vigor_jax.records import Signal, Span, Verdict
from vigor_jax.stages import sft as sft_module
from vigor_jax.stages.judging import score
from vigor_jax.stages.sample import check_images, name_images, sample
from vigor_jax.stages.sample_config import SampleConfig
from vigor_jax.stages.sft import SftConfig, sft

IMAGES = pictures(10)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A random checkpoint, and the same pictures as folder, tars and Parquet."""
    root = tmp_path_factory.mktemp("world")
    build_checkpoint(root / "model", Tiny())
    write_folder(root / "folder", IMAGES)
    for kind in KINDS:
        write(kind, root / kind, IMAGES)
    return root


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(), jax.devices()[:1])


def files(folder):
    """All files and what they hold."""
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


class Sizes:
    """Holds an image's size against every text about it: reads the files as a stream of one's own would."""

    name = "sizes"
    digest = "d1"

    def judge(self, items):
        for item in items:
            size = float(len(item.path.read_bytes()))
            signal = Signal("text", (Span(0, 1),), size, 0.0, 0.5)
            yield [Verdict(item.image, i, self.name, (signal,)) for i in range(len(item.texts))]


@pytest.mark.slow
@pytest.mark.main
def test_sampling_and_scoring_write_the_same_records(world, mesh, tmp_path):
    checkpoint = open_checkpoint(world / "model")
    drawn = SamplingConfig(num_candidates=2, max_new_tokens=8, batch_size=2)
    prompts = ("What is there?", "Describe it.")
    for place in ("folder", *KINDS):
        config = SampleConfig(images=str(world / place), prompts=prompts, images_per_part=4, limit=9, sampling=drawn)
        sample(config, checkpoint, tmp_path / place, mesh, dtype=jnp.float32)
        score(Sizes(), tmp_path / place, str(world / place))
        assert check_images(open_images(world / place, limit=9), tmp_path / "folder") == ""
    wanted = files(tmp_path / "folder")
    assert len(wanted) == 6
    assert all(files(tmp_path / kind) == wanted for kind in KINDS)
    assert "10 images" in check_images(open_images(world / "tar"), tmp_path / "folder")
    gone = check_images(open_images(world / "tar", limit=2), tmp_path / "folder")
    assert gone.startswith(f"{sorted(IMAGES)[2]} has candidates in ")
    (tmp_path / "less").mkdir()
    (tmp_path / "less" / "a.tar").write_bytes(make_tar(dict(list(IMAGES.items())[1:])))
    (tmp_path / "folder" / "verdicts" / "sizes" / "part-00000-of-00003.parquet").unlink()
    with pytest.raises(InputError, match=r"score: .*less/001\.png has candidates and is gone"):
        score(Sizes(), tmp_path / "folder", tmp_path / "less")


@pytest.mark.parametrize("number", [0, 1, 4095, 4096, 4097, 8192])
def test_the_name_of_a_set_of_images_is_that_of_one_json_list(number):
    names = [f"é-{index}\n.jpg" for index in range(number)]
    digest = hashlib.sha256(json.dumps(names).encode()).hexdigest()[:12]
    assert name_images(names) == f"{number} images, names {digest}"


@pytest.mark.slow
def test_captions_are_the_same(world, tmp_path):
    for place in ("folder", *KINDS):
        options = ["--model", world / "model", "--images", world / place, "--out", tmp_path / f"{place}.jsonl"]
        more = ["--sampling.max_new_tokens", "8", "--sampling.temperature", "0"]
        caption.main([*map(str, options), *more])
    wanted = (tmp_path / "folder.jsonl").read_bytes()
    assert [json.loads(line)["image"] for line in wanted.splitlines()] == list(IMAGES)
    assert all((tmp_path / f"{kind}.jsonl").read_bytes() == wanted for kind in KINDS)


def test_an_image_that_cannot_be_read_ends_a_run_by_name(world, tmp_path):
    (tmp_path / "a.tar").write_bytes(make_tar({"good.jpg": IMAGES["001.png"], "bad.jpg": b"no image"}))
    options = ["--model", world / "model", "--images", tmp_path, "--out", tmp_path / "out.jsonl"]
    with pytest.raises(InputError, match=r"bad\.jpg: not a readable image") as error:
        caption.main([*map(str, options), "--sampling.max_new_tokens", "4"])
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def sft_world(tmp_path_factory):
    """Conversations and the pictures that they are about as folder, tars and Parquet."""
    world = make_sft_world(tmp_path_factory.mktemp("sft") / "world", examples=12)
    for kind in KINDS:
        write(kind, world / kind, read_folder(world / "images"))
    write("tar", world / "less", dict(list(read_folder(world / "images").items())[1:]))
    return world


@pytest.fixture
def sft_config(sft_world):
    data = sft_world / "data.json"
    return SftConfig(data=data, images=str(sft_world / "images"), batch_size=4, max_length=256, epochs=1)


def test_batches_to_learn_from_are_the_same(sft_world, sft_config, mesh):
    checkpoint = open_checkpoint(sft_world / "model")
    loaders = {
        place: sft_module._loader(dataclasses.replace(sft_config, images=str(sft_world / place)), checkpoint, mesh)
        for place in ("images", *KINDS)
    }
    wanted = list(loaders["images"].batches())
    assert len(wanted) == 3
    for kind in KINDS:
        for batch, expected in zip(loaders[kind].batches(), wanted, strict=True):
            assert batch.ids == expected.ids
            assert all(map(np.array_equal, batch.rows, expected.rows))
    with pytest.raises(InputError, match=r"image .*/less/1\.png does not exist; 1 of 9 images are missing"):
        sft_module._loader(dataclasses.replace(sft_config, images=str(sft_world / "less")), checkpoint, mesh)


@pytest.mark.slow
def test_fine_tuning_is_the_same(sft_world, sft_config, mesh, tmp_path):
    checkpoint, curves = open_checkpoint(sft_world / "model"), {}
    for place in ("images", *KINDS):
        config = dataclasses.replace(sft_config, images=str(sft_world / place))
        sft(config, checkpoint, tmp_path / place, mesh, dtype=jnp.float32)
        curves[place] = curve(tmp_path / place)
    assert len(curves["images"]) == 3
    assert curves["tar"] == curves["parquet"] == curves["images"]


@pytest.mark.slow
def test_the_whole_loop_is_the_same(tmp_path):
    """Both streams, the reward model's training, fine-tuning and evaluation."""
    world = make_loop_world(tmp_path / "world")
    images = read_folder(world / "images")
    objects = {name: ["dog", "cat"] for name in images}
    (world / "objects.json").write_text(json.dumps(objects))
    asked = [
        {"question_id": number, "image": name, "text": "Is there a dog in the image?", "label": "yes"}
        for number, name in enumerate(images)
    ]
    (world / "pope.json").write_text("".join(json.dumps(question) + "\n" for question in asked))
    for place in ("images", *KINDS):
        if place != "images":
            write(place, world / place, images)
        changes = {
            "sample.images": world / place,
            "run.stages": "train_reward,sample,score,select,sft,export,evaluate",
            "evaluate.images": world / place,
            "evaluate.objects": world / "objects.json",
            "evaluate.pope": world / "pope.json",
            "evaluate.captions.max_new_tokens": 12,
        }
        train.main(loop(world, tmp_path / place, **changes))
    wanted = files(tmp_path / "images")
    same = [path for path in wanted if path.parts[0] in ("candidates", "verdicts", "selections", "targets")]
    same += [path for path in wanted if path.suffixes in ([".jsonl"], [".json"]) and path.parts[0] == "evaluation"]
    assert len(same) > 20
    for kind in KINDS:
        found = files(tmp_path / kind)
        assert {path: found[path] for path in same} == {path: wanted[path] for path in same}
        assert (tmp_path / kind / "targets.json").read_bytes() == (tmp_path / "images" / "targets.json").read_bytes()
        assert curve(tmp_path / kind) == curve(tmp_path / "images")
