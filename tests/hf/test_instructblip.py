"""InstructBLIP on disk: transformers' folders in and out bit for bit, LAVIS's files, tokens, pictures and refusals."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

import vigor_jax as vj
from tests.hf.test_round_trip import assert_same, through_jax, weights
from tests.pixels import normalize
from tests.tiny_instructblip import FOLDER, IMAGE_TOKEN_ID, TinyBlip, build_checkpoint, to_lavis
from vigor_jax.config import RunConfig, TrainConfig
from vigor_jax.data.images.preprocessing import load_image, preprocess
from vigor_jax.data.text.conversation import IGNORE_INDEX, TEMPLATES, Turn, encode_example, encode_prompt
from vigor_jax.errors import InputError
from vigor_jax.hf.export import export_checkpoint
from vigor_jax.hf.load import load_model, open_checkpoint
from vigor_jax.hf.options import ModelConfig
from vigor_jax.inference.sampler import Request, Sampler, SamplingConfig
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.parallel.sharding import make_mesh
from vigor_jax.pipeline.run import Run

ROOT = Path(__file__).resolve().parents[2]
PHOTOS = ROOT.parent / "shared" / "data" / "photos"
PYTHON_4 = Path(os.environ.get("VIGOR_DETECTOR_PYTHON", ROOT / ".venv-detector" / "bin" / "python"))
# LAVIS fixes 16 heads of the tower and 12 of the Q-Former.
LAVIS = TinyBlip(vision_width=32, vision_heads=16, width=24, qformer_heads=12)
PROMPTS = ["What is on the table?", "Describe the image in detail.", "Is there a </s> dog?"]


def zero_key_biases(directory: Path) -> Path:
    path = directory / "model.safetensors"
    tensors = load_file(path)
    for name, value in tensors.items():
        if name.endswith("qkv.bias"):
            value[len(value) // 3 : 2 * len(value) // 3] = 0
    save_file(tensors, path, {"format": "pt"})
    return directory


def lavis(directory: Path) -> Path:
    source = zero_key_biases(build_checkpoint(directory.with_name("for_lavis"), LAVIS))
    return to_lavis(source, directory)


SOURCES = {
    "instructblip": lambda d: build_checkpoint(d, TinyBlip()),
    "legacy": lambda d: build_checkpoint(d, TinyBlip(legacy=True, tied=True)),
    "lavis": lavis,
}


@pytest.fixture(
    scope="module",
    params=[
        "instructblip",
        pytest.param("legacy", marks=pytest.mark.slow),
        pytest.param("lavis", marks=[pytest.mark.slow, pytest.mark.main]),
    ],
)
def source(request, tmp_path_factory):
    return request.param, SOURCES[request.param](tmp_path_factory.mktemp("blip") / request.param)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return build_checkpoint(tmp_path_factory.mktemp("plain") / "model")


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "a.png"
    Image.fromarray(np.random.default_rng(2).integers(0, 256, (28, 28, 3), np.uint8)).save(path)
    return path


def as_4(directory: Path) -> None:
    """config.json as transformers 4 writes it."""
    path = directory / "config.json"
    config = json.loads(path.read_text())
    for part in (config, config["text_config"], config["vision_config"], config["qformer_config"]):
        if "dtype" in part:
            part["torch_dtype"] = part.pop("dtype")
    config["text_config"]["rope_theta"] = config["text_config"].pop("rope_parameters")["rope_theta"]
    path.write_text(json.dumps(config))


FORMS = [
    ("float32", TinyBlip(), {}, False),
    pytest.param(
        "bfloat16", TinyBlip(tied=True, qkv_bias=False), {"max_shard_size": "60KB"}, True, marks=pytest.mark.slow
    ),
    pytest.param("float16", TinyBlip(frequency=1, layers=2), {"max_shard_size": "60KB"}, True, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("dtype", "tiny", "save", "is_4"), FORMS)
def test_a_folder_goes_through_jax_bit_for_bit(tmp_path, dtype, tiny, save, is_4):
    directory = build_checkpoint(tmp_path / "source", tiny, dtype=getattr(torch, dtype), **save)
    if is_4:
        as_4(directory)
    out = through_jax(directory, tmp_path / "out", scan=not is_4)
    assert_same(weights(directory), weights(out))
    for path in directory.rglob("*"):
        name = path.relative_to(directory)
        if path.is_file() and not name.name.startswith("model") and name.name != "config.json":
            assert (out / name).read_bytes() == path.read_bytes(), name
    assert json.loads((out / "config.json").read_text()) == json.loads((directory / "config.json").read_text())
    assert open_checkpoint(out).config == open_checkpoint(directory).config


def prompt_ids(checkpoint, question: str, template: str = "instructblip") -> list[int]:
    sizes = {
        "image_token_id": checkpoint.config.image_token_id,
        "num_image_tokens": checkpoint.config.num_image_tokens,
    }
    return encode_prompt(checkpoint.tokenizer, TEMPLATES[template], question, **sizes)


def answers(checkpoint, picture: Path, num_tokens: int) -> list[list[int]]:
    """Our greedy captions of one image and several instructions in a batch of two rows."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    model = load_model(checkpoint, mesh=mesh, dtype=jnp.float32, scan=False)
    pixels = preprocess(load_image(picture), checkpoint.preprocessing)
    requests = [Request(prompt, prompt_ids(checkpoint, prompt), pixels, prompt) for prompt in PROMPTS]
    config = SamplingConfig(temperature=0, max_new_tokens=num_tokens, num_candidates=1, batch_size=2)
    return [list(group[0].token_ids) for group in Sampler(model, checkpoint.tokenizer, config, mesh).generate(requests)]


def asked(python: Path | str, jobs: list[dict], resaved: Path | None = None) -> list[dict]:
    program = Path(__file__).with_name("instructblip_program.py")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    arguments = [str(python), str(program), json.dumps(jobs), *([str(resaved)] if resaved else [])]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def job_of(out: Path, picture: Path, num_tokens: int) -> dict:
    checkpoint = open_checkpoint(out)
    tokenizer, rows = checkpoint.tokenizer, checkpoint.config.text.vocab_size
    never = [checkpoint.config.image_token_id, tokenizer.pad_id, *range(tokenizer.vocab_size, rows)]
    return {
        "directory": str(out), "image": str(picture), "prompts": PROMPTS, "never": never, "num_tokens": num_tokens,
    }  # fmt: skip


def check_answers(found: dict, checkpoint, again, ours: list[list[int]]) -> None:
    assert found["problems"] == [[], [], []]
    for row, prompt, tokens in zip(found["rows"], PROMPTS, ours, strict=True):
        if "</s>" not in prompt:  # which is text here, and a token there
            assert row["ids"] == prompt_ids(again, prompt)
            assert row["tokens"][: len(tokens)] == tokens
        words = checkpoint.tokenizer.instruction_ids([prompt])[0]
        assert row["words"] == [token for token in words.tolist() if token >= 0]


def test_an_export_is_asked_and_answers_as_here(source, picture, tmp_path):
    """Ids, instructions and greedy captions of transformers 5 equal ours, whatever the model came from."""
    kind, directory = source
    checkpoint = open_checkpoint(directory)
    assert checkpoint.tokenizer.images_first
    assert prompt_ids(checkpoint, PROMPTS[0])[:5] == [checkpoint.config.image_token_id] * 4 + [2]
    out = tmp_path / "out"
    export_checkpoint(checkpoint, {}, out)
    again = open_checkpoint(out)
    assert (again.config.image_token_id, again.tokenizer.pad_id) == (
        (509, 510) if kind == "instructblip" else (510, 509)
    )
    ours = answers(checkpoint, picture, 12)
    assert len({tuple(each) for each in ours}) > 1
    (found,) = asked(sys.executable, [job_of(out, picture, 12)])
    check_answers(found, checkpoint, again, ours)
    # And what is opened again says the same.
    assert again.tokenizer.images_first
    assert again.preprocessing.stretch == (28, 28)


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON_4.exists(), reason="NOT TESTED: transformers 4; make it with scripts/detector_env.sh")
def test_transformers_4_answers_alike_and_what_it_saves_loads_here(source, picture, tmp_path):
    checkpoint = open_checkpoint(source[1])
    out = tmp_path / "out"
    export_checkpoint(checkpoint, {}, out)
    job = job_of(out, picture, 12)
    (four,) = asked(PYTHON_4, [job], tmp_path / "resaved")
    (five,) = asked(sys.executable, [job], tmp_path / "resaved_5")
    assert four["version"].startswith("4.")
    check_answers(four, checkpoint, open_checkpoint(out), answers(checkpoint, picture, 12))
    for prompt, old, new in zip(PROMPTS, four["rows"], five["rows"], strict=True):
        assert old["words"] == new["words"]
        if "</s>" in prompt:  # a token there, and what each version puts behind it differs
            continue
        assert (old["ids"], old["tokens"]) == (new["ids"], new["tokens"])
        logits = np.asarray(new["logits"])
        assert np.abs(np.asarray(old["logits"]) - logits).max() <= 2e-4 * logits.std()
    before = open_checkpoint(out)
    for name in ("resaved", "resaved_5"):
        after = open_checkpoint(tmp_path / name)
        assert after.config == before.config
        assert prompt_ids(after, PROMPTS[0]) == prompt_ids(before, PROMPTS[0])
        assert (after.tokenizer.instruction_ids(PROMPTS) == before.tokenizer.instruction_ids(PROMPTS)).all()
        for tensor, stored in before.tensors.items():
            np.testing.assert_array_equal(after.tensors[tensor].read(), stored.read())


def test_lavis_becomes_what_transformers_has_of_the_same_weights(tmp_path):
    directory = lavis(tmp_path / "lavis")
    out = through_jax(directory, tmp_path / "out")
    before, after = weights(tmp_path / "for_lavis"), weights(out)
    assert before.keys() == after.keys()
    for name, value in before.items():
        rows = slice(IMAGE_TOKEN_ID) if name.endswith(("embed_tokens.weight", "lm_head.weight")) else slice(None)
        assert torch.equal(after[name][rows], value[rows]), name
    assert len(after["language_model.lm_head.weight"]) == 512
    saved, made = (transformers.InstructBlipConfig.from_pretrained(each) for each in (tmp_path / "for_lavis", out))
    for part in ("vision_config", "qformer_config"):
        for key, value in getattr(saved, part).to_dict().items():
            if key not in ("dtype", "torch_dtype", "_name_or_path", "transformers_version"):
                assert getattr(getattr(made, part), key) == value, key


def test_lavis_may_have_all_in_one_file_and_a_block_too_many(tmp_path):
    directory = lavis(tmp_path / "lavis")
    config = open_checkpoint(directory).config
    before = open_checkpoint(directory).digest()
    files = [directory / name for name in ("instruct_blip_vicuna7b_trimmed.pth", "eva_vit_g.pth")]
    rest, tower = (torch.load(path, weights_only=True) for path in files)
    last = {name.replace("blocks.2.", "blocks.39."): value for name, value in tower.items() if "blocks.2." in name}
    torch.save(tower | last, files[1])
    assert open_checkpoint(directory).config == config
    files[1].unlink()
    inside = {f"visual_encoder.{name}": value for name, value in tower.items() if name != "head.weight"}
    torch.save({"model": rest["model"] | inside}, files[0])
    assert open_checkpoint(directory).config == config
    assert open_checkpoint(directory).digest() == before


def test_a_legacy_folder_reads_images_where_no_text_is(tmp_path):
    """Without an image token, features stand in front of the text, as transformers put them before 4.46."""
    checkpoint = open_checkpoint(build_checkpoint(tmp_path / "legacy", TinyBlip(legacy=True)))
    assert checkpoint.config.image_token_id == checkpoint.config.text.vocab_size == 510
    new = open_checkpoint(build_checkpoint(tmp_path / "new", TinyBlip()))
    old_ids, new_ids = (prompt_ids(each, PROMPTS[0]) for each in (checkpoint, new))
    assert old_ids[4:] == new_ids[4:]
    out = tmp_path / "out"
    export_checkpoint(checkpoint, {}, out)
    before, after = weights(tmp_path / "legacy"), weights(out)
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(after[name][: len(value)], value), name
    assert json.loads((out / "processor_config.json").read_text())["num_query_tokens"] == 4


def test_examples_put_the_image_before_bos_and_learn_answers_alone(plain):
    checkpoint = open_checkpoint(plain)
    tokenizer, config = checkpoint.tokenizer, checkpoint.config
    turns = [Turn("human", "<image>\nWhat is it?"), Turn("gpt", "A dog."), Turn("human", "And?"), Turn("gpt", "A cat.")]
    sizes = {"image_token_id": config.image_token_id, "num_image_tokens": 4, "max_length": 99}
    example = encode_example(tokenizer, TEMPLATES["instructblip"], turns, **sizes)
    first = tokenizer.encode("What is it?")
    answer = [*tokenizer.encode("A dog."), 2]
    ids = example.token_ids.tolist()
    assert ids[: 4 + 1 + len(first) + len(answer)] == [509] * 4 + [2] + first + answer
    learned = example.labels != IGNORE_INDEX
    assert not learned[: 5 + len(first)].any()
    assert learned[5 + len(first) :][: len(answer)].all()
    assert learned.sum() == len(answer) + len([*tokenizer.encode(" A cat.", prefix=False), 2])
    v1 = encode_example(tokenizer, TEMPLATES["v1"], turns[:2], **sizes | {"max_length": 200}).token_ids.tolist()
    asked = f"{TEMPLATES['v1'].system}USER: What is it? ASSISTANT:"
    assert v1[: 5 + len(tokenizer.encode(asked))] == [509] * 4 + [2] + tokenizer.encode(asked)
    with pytest.raises(InputError, match="the model takes one image a conversation"):
        encode_example(tokenizer, TEMPLATES["instructblip"], [Turn("human", "<image><image> a"), turns[1]], **sizes)
    later = [*turns[:2], Turn("human", "<image>\nAnd?"), turns[3]]
    with pytest.raises(InputError, match="the model takes one image a conversation"):
        encode_example(tokenizer, TEMPLATES["instructblip"], later, **sizes)


def drawn_pictures(folder: Path) -> list[Path]:
    rng = np.random.default_rng(5)
    for index, shape in enumerate([(40, 50), (31, 200), (500, 333), (28, 28), (7, 9)]):
        Image.fromarray(rng.integers(0, 256, (*shape, 3), np.uint8)).save(folder / f"{index}.png")
    return sorted(folder.glob("*.png"))


@pytest.mark.parametrize("size", [28, 224])
def test_pictures_are_prepared_as_by_the_slow_processor(tmp_path, size):
    directory = build_checkpoint(tmp_path / "model", TinyBlip(image_size=size, patch_size=size // 4))
    prepared = open_checkpoint(directory).preprocessing
    theirs = transformers.BlipImageProcessorPil.from_pretrained(directory)
    paths = drawn_pictures(tmp_path) + (sorted(PHOTOS.glob("*.jpg")) if size == 224 else [])
    for path in paths:
        image = load_image(path)
        expected = np.asarray(theirs(image)["pixel_values"][0]).transpose(1, 2, 0)
        np.testing.assert_allclose(normalize(preprocess(image, prepared), prepared), expected, atol=1e-6)


@pytest.mark.parametrize("content", ["vocab.txt", "tokenizer.json"])
def test_instructions_are_bert_tokens_of_either_file(plain, tmp_path, content):
    directory = tmp_path / "model"
    shutil.copytree(plain, directory)
    for name in {"vocab.txt", "tokenizer.json"} - {content}:
        (directory / FOLDER / name).unlink()
    theirs = transformers.BertTokenizer.from_pretrained(plain / FOLDER)
    texts = [*PROMPTS, "", "USER: <image>\nTwo Dögs, 3 cats?", "word " * 100]
    rows = open_checkpoint(directory).tokenizer.instruction_ids(texts)
    assert rows.shape[1] == 48  # positions of the Q-Former
    for row, text in zip(rows, texts, strict=True):
        expected = theirs(text.replace("<image>", ""), truncation=True, max_length=48)["input_ids"]
        assert [token for token in row.tolist() if token >= 0] == expected


def edit(directory: Path, **changes) -> None:
    path = directory / "config.json"
    config = json.loads(path.read_text())
    for key, value in changes.items():
        part, _, name = key.partition("__")
        if name:
            config[part][name] = value
        else:
            config[part] = value
    path.write_text(json.dumps(config))


REFUSALS = {
    "t5": ({"text_config__model_type": "t5"}, r"InstructBLIP with Flan-T5 is not supported, only with Vicuna"),
    "opt": ({"text_config__model_type": "opt"}, r"a language model of type 'opt' is not supported"),
    "frequency": (
        {"qformer_config__cross_attention_frequency": 3},
        r"num_hidden_layers by cross_attention_frequency must divide, got 4 and 3",
    ),
    "positions": ({"qformer_config__position_embedding_type": "relative_key"}, r"only 'absolute'"),
    "queries": ({"num_query_tokens": 5}, r"1 of another shape: query_tokens \(expected \[1, 5, 24\]"),
    "activation": ({"vision_config__hidden_act": "relu"}, r"vision_config.hidden_act 'relu' is not supported"),
    "image token": ({"image_token_index": 7}, r"config.json puts images at token 7, the tokenizer's <image> is 509"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_read_is_one_line(plain, tmp_path, case):
    changes, message = REFUSALS[case]
    directory = tmp_path / "model"
    shutil.copytree(plain, directory)
    edit(directory, **changes)
    with pytest.raises(InputError, match=message) as caught:
        open_checkpoint(directory)
    assert "\n" not in str(caught.value)


def test_missing_files_are_one_line(plain, tmp_path):
    directory = tmp_path / "model"
    shutil.copytree(plain, directory)
    shutil.rmtree(directory / FOLDER)
    with pytest.raises(InputError, match=r"qformer_tokenizer/tokenizer.json is missing, with which the Q-Former reads"):
        open_checkpoint(directory)
    vicuna = lavis(tmp_path / "lavis")
    (vicuna / "eva_vit_g.pth").unlink()
    with pytest.raises(
        InputError, match=r"hold no vision_model.embeddings.patch_embedding.weight of 4 axes; an Instruct"
    ):
        open_checkpoint(vicuna)
    shutil.copy(vicuna / "instruct_blip_vicuna7b_trimmed.pth", vicuna / "again.pth")
    with pytest.raises(InputError, match=r"which another .pth there holds too; remove one"):
        open_checkpoint(vicuna)
    (tmp_path / "alone").mkdir()
    shutil.copy(vicuna / "again.pth", tmp_path / "alone" / "instruct_blip_vicuna7b_trimmed.pth")
    with pytest.raises(InputError, match="put it into the folder of its Vicuna and give that"):
        open_checkpoint(tmp_path / "alone")
    for path in vicuna.glob("*.pth"):
        path.unlink()
    with pytest.raises(InputError, match="model_type 'llama' is not supported"):
        open_checkpoint(vicuna)


def test_pictures_of_another_size_are_refused(plain, tmp_path):
    directory = tmp_path / "model"
    shutil.copytree(plain, directory)
    path = directory / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    del settings["size"]  # the class's own default is 384
    path.write_text(json.dumps(settings))
    with pytest.raises(InputError, match="stretches pictures to 384 x 384 pixels and the tower takes 28 x 28"):
        open_checkpoint(directory)
    path.write_text(json.dumps(settings | {"size": {"shortest_edge": 28}}))
    with pytest.raises(InputError, match="size: expected a height and a width, got the keys 'shortest_edge'"):
        open_checkpoint(directory)


def test_the_digest_tells_orders_of_image_and_text_apart(plain):
    tokenizer = open_checkpoint(plain).tokenizer
    digest = tokenizer.digest()
    tokenizer.images_first = False
    assert tokenizer.digest() != digest


def test_sizes_are_those_of_the_config(plain):
    config = open_checkpoint(plain).config
    tiny = TinyBlip()
    found = {name: getattr(config.qformer, name) for name in ("num_layers", "hidden_size", "num_queries", "vocab_size")}
    assert found == {"num_layers": 4, "hidden_size": 24, "num_queries": 4, "vocab_size": 300}
    assert dataclasses.astuple(config.vision)[:6] == (32, 48, 3, 4, 28, 7)
    assert config.num_image_tokens == tiny.num_image_tokens


def test_it_is_asked_in_its_own_format_unless_another_is_given(plain, tmp_path, caplog):
    """Where no format is given, its own; a run that has LLaVA's is told."""
    assert vj.load(plain).template_name == "instructblip"
    assert vj.load(plain, template="v1").template_name == "v1"
    for template, is_told in (("v1", True), ("instructblip", False)):
        caplog.clear()
        model = ModelConfig(plain, dtype="float32", template=template)
        Run(TrainConfig(RunConfig(tmp_path / "run", stages=("export",)), model))
        assert ("give --model.template instructblip" in caplog.text) == is_told
