"""The demo's world on disk: the same every time, all of it or nothing, and a checkpoint that everybody loads."""

import filecmp
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from vigor_jax.data.conversation import TEMPLATES, encode_prompt
from vigor_jax.data.examples import read_examples
from vigor_jax.data.images import load_image, preprocess
from vigor_jax.demo import build, world
from vigor_jax.demo.build import QUESTION, prepare
from vigor_jax.errors import InputError
from vigor_jax.hf.load import load_llava, open_checkpoint
from vigor_jax.hf.tensor_files import TensorReader
from vigor_jax.sharding import MeshConfig, make_mesh

SIZES = {"num_train": 6, "num_held_out": 3, "seed": 4}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("demo") / "world"
    prepare(directory, **SIZES)
    return directory


def files(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def test_the_same_seed_writes_the_same_bytes(directory: Path, tmp_path: Path) -> None:
    prepare(tmp_path / "again", **SIZES)
    names = files(directory)
    assert names == files(tmp_path / "again")
    assert {"train.json", "held_out.json", "truth.json", "checkpoint/model.safetensors"} <= set(names)
    _, different, failed = filecmp.cmpfiles(directory, tmp_path / "again", names, shallow=False)
    assert (different, failed) == ([], [])


def test_scenes_do_not_depend_on_how_many_there_are(directory: Path, tmp_path: Path) -> None:
    prepare(tmp_path / "more", **{**SIZES, "num_train": 9})
    less, more = (json.loads((place / "train.json").read_text()) for place in (directory, tmp_path / "more"))
    assert more[:6] == less
    prepare(tmp_path / "other", **{**SIZES, "seed": 5})
    assert json.loads((tmp_path / "other" / "train.json").read_text()) != less


def test_what_is_written_stays(directory: Path) -> None:
    before = {name: (directory / name).stat().st_mtime_ns for name in files(directory)}
    prepare(directory, **SIZES)
    assert {name: (directory / name).stat().st_mtime_ns for name in files(directory)} == before


def test_another_world_is_not_written_over(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds the world .*'num_train': 6.*expected .*'num_train': 7.*remove it"):
        prepare(directory, **{**SIZES, "num_train": 7})
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds something else"):
        prepare(tmp_path, **SIZES)
    assert files(tmp_path) == ["notes.txt"]


def test_an_interrupted_world_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(build, "write_checkpoint", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare(tmp_path / "world", **SIZES)
    assert not (tmp_path / "world").exists()
    prepare(tmp_path / "world", **SIZES)
    assert [path.name for path in tmp_path.iterdir()] == ["world"]


def test_conversations_say_what_is_true(directory: Path) -> None:
    truth = json.loads((directory / "truth.json").read_text())
    assert len(truth) == 9
    for split, count in (("train", 6), ("held_out", 3)):
        examples = read_examples(directory / f"{split}.json", directory / "images")
        assert len(examples) == count
        for example in examples:
            assert example.turns[0].text == f"<image>\n{QUESTION}"
            objects = truth[example.image.relative_to(directory / "images").as_posix()]
            statements = world.parse(example.turns[1].text)
            assert [list(statement) for statement in statements] == [
                [item["shape"], item["colour"], item["place"]] for item in objects
            ]
            with Image.open(example.image) as image:
                saturation = np.array(image.convert("HSV"))[..., 1]
            for item in objects:
                left, top, right, bottom = map(round, item["box_xyxy"])
                saturation[top - 1 : bottom + 1, left - 1 : right + 1] = 0
            assert saturation.max() < 40  # nothing but paper and shadow outside the boxes


def test_no_scene_is_in_both_splits(directory: Path) -> None:
    pictures = [path.read_bytes() for path in (directory / "images").rglob("*.png")]
    assert len(set(pictures)) == len(pictures) == 9


def test_every_word_is_one_token(directory: Path) -> None:
    tokenizer = open_checkpoint(directory / "checkpoint").tokenizer
    for example in read_examples(directory / "train.json", directory / "images"):
        caption = example.turns[1].text
        assert len(tokenizer.encode(caption)) == len(caption.split()) + caption.count(".")
        assert tokenizer.decode(tokenizer.encode(caption)) == caption
    assert tokenizer.decode(tokenizer.encode("Ein Löwe, 42 ☂.")) == "Ein Löwe, 42 ☂."  # bytes spell the rest


def test_the_checkpoint_is_small_and_float32(directory: Path) -> None:
    reader = TensorReader.open(directory / "checkpoint")
    assert {reader.dtype(name).name for name in reader.names()} == {"float32"}
    assert reader.files[0].stat().st_size < 8_000_000


def test_transformers_loads_it_and_agrees(directory: Path) -> None:
    checkpoint = directory / "checkpoint"
    model, report = transformers.LlavaForConditionalGeneration.from_pretrained(checkpoint, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    processor = transformers.AutoProcessor.from_pretrained(checkpoint)

    path = directory / "images" / "held_out" / "00000.png"
    template = TEMPLATES["v1"]
    prompt = f"{template.system}USER: <image>\n{QUESTION} ASSISTANT:"
    inputs = processor(images=load_image(path), text=prompt, return_tensors="pt")
    source = open_checkpoint(checkpoint)
    ids = encode_prompt(
        source.tokenizer,
        template,
        QUESTION,
        image_token_id=source.config.image_token_id,
        num_image_tokens=source.config.num_image_tokens,
    )
    assert inputs["input_ids"][0].tolist() == ids

    ours = load_llava(source, mesh=make_mesh(MeshConfig()), dtype=jnp.float32)
    pixels = preprocess(load_image(path), source.preprocessing)[None, None]
    logits = ours.language_model.logits(ours(np.asarray([ids]), jnp.asarray(pixels)))
    with torch.no_grad():
        expected = model.eval()(**inputs).logits
        generated = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    np.testing.assert_allclose(logits, expected.numpy(), rtol=1e-4, atol=1e-4)
    assert generated.shape[1] > len(ids)
