"""Wrong values everywhere in config.json and the image processor's settings: one line, or what transformers reads."""

import copy
import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.hf.test_round_trip import build_original
from tests.test_json_fields import NO_FILES, put
from tests.tiny_llava import Tiny, build_checkpoint, build_model
from vigor_jax.errors import InputError
from vigor_jax.hf.llava.config import from_hf
from vigor_jax.hf.load import open_checkpoint
from vigor_jax.hf.options import ModelConfig
from vigor_jax.models.clip import ClipConfig
from vigor_jax.models.llama import LlamaConfig
from vigor_jax.models.llava import LlavaConfig
from vigor_jax.rewards.reward_model_config import RewardModelConfig
from vigor_jax.stages.reward_model_stream import RewardModelJudge

TINY = Tiny()
WRONG = [
    *(None, True, False, 0, 1, -1, 7, 100_000, 2**70, 0.0, 8.5, 1e-300, math.nan, math.inf, -math.inf),
    *("8", "", "null", "a\nb", "\ud800", "x" * 5000, [], [8], [8, 8, 8], [None], {}, {"a": 8}),
]
MANY = 60.0  # seconds; a whole test of several hundred openings


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("settings") / "model", TINY)


@pytest.fixture
def copied(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy whose files are links, so that one of them can be replaced."""
    for path in checkpoint.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


def replace(path: Path, content: Any) -> None:
    path.unlink()
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def refusal(directory: Path) -> str:
    start = time.monotonic()
    with pytest.raises(InputError) as caught:
        open_checkpoint(directory)
    assert time.monotonic() - start < 5  # a second on a machine that does nothing else
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1500
    return message


def check_line(error: InputError, start: str = "") -> None:
    assert "\n" not in str(error)
    assert str(error).startswith(start)


def changed(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """(place, whole object with another value there) for every place at every depth and every wrong value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        for place, other in changed(inner, (*path, key)):
            copied = copy.copy(value)
            copied[key] = other
            yield place, copied
    if path:
        yield from ((path, wrong) for wrong in WRONG)


def as_transformers(config: dict[str, Any]) -> LlavaConfig | None:
    """How transformers' own classes read a config.json; None if they refuse it."""
    try:
        whole = transformers.LlavaConfig.from_dict(copy.deepcopy(config))
    except Exception:
        return None
    vision, text = whole.vision_config, whole.text_config
    layer = whole.vision_feature_layer
    return LlavaConfig(
        vision=ClipConfig(
            hidden_size=vision.hidden_size,
            intermediate_size=vision.intermediate_size,
            num_layers=vision.num_hidden_layers,
            num_heads=vision.num_attention_heads,
            image_size=vision.image_size,
            patch_size=vision.patch_size,
            layer_norm_eps=vision.layer_norm_eps,
            hidden_act=vision.hidden_act,
        ),
        text=LlamaConfig(
            vocab_size=text.vocab_size,
            hidden_size=text.hidden_size,
            intermediate_size=text.intermediate_size,
            num_layers=text.num_hidden_layers,
            num_heads=text.num_attention_heads,
            num_kv_heads=text.num_key_value_heads,
            head_dim=text.head_dim,
            rms_norm_eps=text.rms_norm_eps,
            rope_theta=text.rope_parameters["rope_theta"],
            max_position_embeddings=text.max_position_embeddings,
            tie_word_embeddings=whole.tie_word_embeddings,
        ),
        projector="linear" if whole.projector_hidden_act == "linear" else "mlp2x_gelu",
        feature_layer=layer[0] if isinstance(layer, list) else layer,
        feature_select="full" if whole.vision_feature_select_strategy == "full" else "patch",
        image_token_id=whole.image_token_index,
    )


def check_like_transformers(config: dict[str, Any]) -> bool:
    """Whether it is read; if so, as transformers reads it."""
    try:
        ours = from_hf(config, Path("config.json"))
    except InputError as error:
        check_line(error, "config.json: ")
        return False
    theirs = as_transformers(config)
    if theirs is None:  # it wants a point in 1.0, and no settings of a part that is not LLaVA's
        written = json.loads(json.dumps(config), parse_int=lambda text: int(text))
        for part, key in (("text_config", "rms_norm_eps"), ("vision_config", "layer_norm_eps")):
            written[part][key] = float(written[part][key])
        theirs = as_transformers(written)
    assert ours == theirs
    return True


def plain_config(tiny: Tiny = TINY) -> dict[str, Any]:
    return json.loads(build_model(tiny).config.to_json_string(use_diff=False))


# What transformers refuses for reasons that do not concern the model we make of it.
NOT_OURS = {"dtype", "id2label", "label2id", "num_labels", "problem_type", "transformers_version", "architectures"}


def ours_only(config: dict[str, Any]) -> dict[str, Any]:
    """The keys that we read, and no other, so that transformers refuses for the same keys."""
    text = "model_type hidden_act attention_bias mlp_bias hidden_size num_attention_heads num_key_value_heads head_dim"
    text += " vocab_size intermediate_size num_hidden_layers rms_norm_eps rope_parameters max_position_embeddings"
    text += " tie_word_embeddings"
    vision = "model_type num_channels hidden_size num_attention_heads image_size patch_size intermediate_size"
    vision += " num_hidden_layers layer_norm_eps hidden_act"
    top = "model_type multimodal_projector_bias projector_hidden_act vision_feature_select_strategy image_token_index"
    top += " vision_feature_layer tie_word_embeddings text_config vision_config"
    kept = {key: config[key] for key in top.split()}
    kept["text_config"] = {key: config["text_config"][key] for key in text.split()}
    kept["vision_config"] = {key: config["vision_config"][key] for key in vision.split()}
    return kept


def test_the_valid_config_is_read_like_transformers() -> None:
    assert check_like_transformers(plain_config())
    assert check_like_transformers(ours_only(plain_config()))


@pytest.mark.timeout(2 * MANY)
def test_every_wrong_value_is_refused_or_read_like_transformers() -> None:
    """Every value of config.json, at every depth, replaced by every kind of wrong one."""
    config = ours_only(plain_config())
    read = {True: 0, False: 0}
    for _, other in changed(config):
        read[check_like_transformers(other)] += 1
    assert read[False] > 500, read
    assert read[True] > 30, read


@settings(max_examples=200, deadline=None, database=None)
@given(st.data())
def test_any_json_in_several_places_is_refused_or_read_like_transformers(data: st.DataObject) -> None:
    anything = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=5,
    )
    config = ours_only(plain_config_once())
    for _ in range(data.draw(st.integers(1, 4))):
        part = data.draw(st.sampled_from([config, *(v for v in config.values() if isinstance(v, dict) and v)]))
        part[data.draw(st.sampled_from(sorted(part)))] = data.draw(
            anything | st.integers(1, 16) | st.sampled_from(WRONG)
        )
    try:
        from_hf(config, Path("config.json"))
    except InputError as error:
        check_line(error)


_KEPT: list[str] = []


def plain_config_once() -> dict[str, Any]:
    if not _KEPT:
        _KEPT.append(json.dumps(plain_config()))
    return json.loads(_KEPT[0])


@pytest.mark.slow
@pytest.mark.main
@pytest.mark.timeout(2 * MANY)
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "processor_config.json"])
def test_a_wrong_value_in_a_file_is_one_line_or_changes_nothing(copied: Path, checkpoint: Path, name: str) -> None:
    """Through the files; with another config.json, what opens is the same model and the same preparation of images."""
    valid = open_checkpoint(checkpoint)
    file = json.loads((checkpoint / name).read_text())
    if name == "processor_config.json":
        file = {"image_processor": json.loads((checkpoint / "preprocessor_config.json").read_text())}
    harmless = {"max_position_embeddings", "rms_norm_eps", "layer_norm_eps", "rope_theta", "num_attention_heads"}
    # Of images, what is done as it says, see test_image_settings.py.
    harmless |= {"image_mean", "image_std", "size", "resample", "rescale_factor"}
    harmless |= {"do_resize", "do_rescale", "do_normalize"}
    for place, other in changed(file):
        replace(copied / name, other)
        try:
            source = open_checkpoint(copied)
        except InputError as error:
            check_line(error)
            continue
        if name == "config.json" and not harmless & set(place):
            same = dataclasses.replace(source.config, feature_layer=valid.config.feature_layer)
            assert (same if "vision_feature_layer" in place else source.config) == valid.config, place
            assert source.preprocessing == valid.preprocessing, place


def inside(part: str | None, **values: Any) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        (config[part] if part else config).update(values)

    return change


TEXT, VISION = "text_config", "vision_config"
REFUSED = {
    "layers": (
        inside(TEXT, num_hidden_layers=100_000),
        "text_config.num_hidden_layers: expected a whole number from 1",
    ),
    "layers that no file has": (inside(TEXT, num_hidden_layers=1000), "8982 missing"),
    "vision layers": (inside(VISION, num_hidden_layers=10**9), "vision_config.num_hidden_layers: expected"),
    "widths": (inside(TEXT, hidden_size=2**20, num_attention_heads=2**10, head_dim=None), "of another shape"),
    "rope theta NaN": (
        inside(TEXT, rope_parameters=None, rope_theta=math.nan),
        "text_config.rope_theta: expected a number",
    ),
    "rope theta 0": (inside(TEXT, rope_parameters={"rope_theta": 0.0}), "text_config.rope_parameters.rope_theta"),
    "kv heads 0": (
        inside(TEXT, num_key_value_heads=0),
        "text_config.num_key_value_heads: expected a whole number from 1 to 4",
    ),
    "kv heads 3": (inside(TEXT, num_key_value_heads=3), "num_attention_heads by num_key_value_heads must divide"),
    "heads": (inside(TEXT, num_attention_heads=5), "hidden_size by num_attention_heads must divide"),
    "odd head": (inside(TEXT, head_dim=15), "head_dim is 15"),
    "patch 0": (inside(VISION, patch_size=0), "vision_config.patch_size: expected a whole number from 1 to 28, got 0"),
    "patch 13": (inside(VISION, patch_size=13), "image_size by patch_size must divide, got 28 and 13"),
    "patch wider": (inside(VISION, patch_size=56), "vision_config.patch_size"),
    "a string": (
        inside(TEXT, hidden_size="64"),
        "text_config.hidden_size: expected a whole number from 1 to 1048576, got '64'",
    ),
    "a float": (inside(TEXT, hidden_size=64.0), "got 64.0"),
    "null": (inside(TEXT, hidden_size=None), "got null"),
    "a list": (inside(TEXT, hidden_size=[64]), "got a list of 1"),
    "a list for an object": (inside(None, text_config=[]), "text_config: expected an object, got a list of 0"),
    "a string for an object": (inside(None, vision_config="clip"), "vision_config: expected an object, got 'clip'"),
    "eps as text": (
        inside(TEXT, rms_norm_eps="1e-05"),
        "text_config.rms_norm_eps: expected a number from 0 to 1, got '1e-05'",
    ),
    "tied as text": (inside(None, tie_word_embeddings="false"), "tie_word_embeddings: expected true or false"),
    "bias as number": (inside(TEXT, attention_bias=1), "attention_bias 1 is not supported, only false"),
    "two layers": (inside(None, vision_feature_layer=[-2, -5]), "a list of 2 layers and not supported"),
    "layer of layers": (inside(None, vision_feature_layer=[[-2]]), "vision_feature_layer: expected a whole number"),
    "rope kind": (
        inside(TEXT, rope_parameters={"rope_type": ["default"]}),
        "rope_parameters.rope_type: expected a string",
    ),
    "token": (inside(None, image_token_index=-1), "image_token_index: expected a whole number from 0"),
    "model type": (inside(None, model_type=["llava"]), "model_type a list of 1 is not supported, only 'llava'"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_in_one_line_and_soon(copied: Path, checkpoint: Path, what: str) -> None:
    change, fragment = REFUSED[what]
    config = json.loads((checkpoint / "config.json").read_text())
    change(config)
    replace(copied / "config.json", config)
    message = refusal(copied)
    assert fragment in message
    assert str(copied) in message


def set_in(**values: Any) -> Callable[[dict[str, Any]], None]:
    return inside(None, **values)


PROCESSORS = {
    "size as text": set_in(size="28"),
    "size as list": set_in(size=[28]),
    "another edge": set_in(size={"longest_edge": 28}),
    "edge as float": set_in(size={"shortest_edge": 28.0}),
    "edge as text": set_in(size={"shortest_edge": "28"}),
    "edge 0": set_in(size={"shortest_edge": 0}),
    "crop": set_in(crop_size={"height": 28, "width": 14}),
    "crop as text": set_in(crop_size="28"),
    "half a crop": set_in(crop_size={"height": 28}),
    "crop of null": set_in(crop_size={"height": 28, "width": None}),
    "image_mean of two": set_in(image_mean=[0.5, 0.5]),
    "image_mean as text": set_in(image_mean=["0.5", 0.5, 0.5]),
    "image_mean with NaN": set_in(image_mean=[math.nan, 0.5, 0.5]),
    "image_mean as object": set_in(image_mean={"r": 0.5}),
    "image_std with 0": set_in(image_std=[0.0, 0.5, 0.5]),
    "image_std without end": set_in(image_std=[math.inf, 0.5, 0.5]),
    "rescale_factor as text": set_in(rescale_factor="1/255"),
    "rescale_factor NaN": set_in(rescale_factor=math.nan),
    "do_rescale as list": set_in(do_rescale=[True]),
    "do_normalize as text": set_in(do_normalize="true"),
    "do_resize as number": set_in(do_resize=1),
    "do_pad as text": set_in(do_pad="false"),
    "resample as text": set_in(resample="bicubic"),
    "resample as float": set_in(resample=3.0),
    "image_processor_type of another model": set_in(image_processor_type="SiglipImageProcessor"),
    "image_processor_type as number": set_in(image_processor_type=3),
}


@pytest.mark.parametrize("what", PROCESSORS)
@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
def test_processors_refused_in_one_line(copied: Path, checkpoint: Path, what: str, name: str) -> None:
    config = json.loads((checkpoint / "preprocessor_config.json").read_text())
    PROCESSORS[what](config)
    if name == "processor_config.json":
        config = {**json.loads((checkpoint / name).read_text()), "image_processor": config}
    replace(copied / name, config)
    message = refusal(copied)
    key = what.split()[0]
    assert ("size" if key in ("size", "another", "edge", "crop", "half") else key) in message
    assert str(copied / name) in message


def test_the_image_processor_inside_the_processor_is_taken_as_transformers_5_takes_it(copied: Path) -> None:
    config = json.loads((copied / "preprocessor_config.json").read_text())
    inner = {**config, "image_mean": [0.5, 0.25, 0.125]}
    replace(copied / "processor_config.json", {"image_processor": inner})
    theirs = transformers.CLIPImageProcessor.from_pretrained(copied)
    assert open_checkpoint(copied).preprocessing.image_mean == tuple(theirs.image_mean) == (0.5, 0.25, 0.125)
    replace(copied / "processor_config.json", {"image_processor": None})
    assert open_checkpoint(copied).preprocessing.image_mean == tuple(config["image_mean"])


LEGAL = {
    "null where transformers has a default": (
        inside(TEXT, num_key_value_heads=None, head_dim=None, rope_scaling=None, rope_parameters=None),
        {"num_kv_heads": 4},
    ),
    "empty rope": (inside(TEXT, rope_scaling={}, rope_parameters={}, rope_theta=77.0), {"rope_theta": 77.0}),
    "whole number for theta": (inside(TEXT, rope_parameters=None, rope_theta=500), {"rope_theta": 500.0}),
    "theta on top and inside": (
        inside(TEXT, rope_theta=500.0, rope_parameters={"rope_type": "default", "rope_theta": 7.0}),
        {"rope_theta": 7.0},
    ),
    "theta in rope_scaling": (
        inside(
            TEXT,
            rope_theta=500.0,
            rope_scaling={"type": "default", "rope_theta": 9.0},
            rope_parameters={"rope_theta": 7.0},
        ),
        {"rope_theta": 9.0},
    ),
    "kind only": (inside(TEXT, rope_theta=500.0, rope_parameters={"rope_type": "default"}), {"rope_theta": 500.0}),
    "no theta at all": (inside(TEXT, rope_parameters={"rope_type": "default"}), {"rope_theta": 10000.0}),
    "theta null on top": (inside(TEXT, rope_theta=None, rope_parameters={"rope_theta": 7.0}), {"rope_theta": 7.0}),
    "a list of one layer": (inside(None, vision_feature_layer=[-1]), {"feature_layer": -1}),
    "embeddings as features": (inside(None, vision_feature_layer=0), {"feature_layer": 0}),
    "token 0": (inside(None, image_token_index=0), {"image_token_id": 0}),
    "two tokens": (inside(None, image_token_index=5, image_token_id=6), {"image_token_id": 6}),
    "token by the other name": (
        lambda c: c.update(image_token_id=c.pop("image_token_index") - 509),
        {"image_token_id": 0},
    ),
    "no token": (lambda c: c.pop("image_token_index"), {"image_token_id": 32000}),
    "parts null": (inside(None, vision_config=None, text_config=None), {"image_size": 336, "num_layers": 24}),
    "parts empty": (inside(None, vision_config={}, text_config={}), {"image_size": 224, "rms_norm_eps": 1e-6}),
    "tied in the text": (inside(TEXT, tie_word_embeddings=True), {"tie_word_embeddings": True}),
    "eps 0": (inside(VISION, layer_norm_eps=0.0), {"layer_norm_eps": 0.0}),
}


@pytest.mark.parametrize("what", LEGAL)
def test_legal_values_are_read_as_transformers_reads_them(what: str) -> None:
    change, expected = LEGAL[what]
    config = plain_config_once()
    change(config)
    ours = from_hf(config, Path("config.json"))
    assert ours == as_transformers(config)
    flat = dataclasses.asdict(ours.text) | dataclasses.asdict(ours.vision) | vars(ours)
    assert expected.items() <= flat.items()


@pytest.mark.parametrize(
    "theta", [{"rope_theta": 500.0}, {"rope_parameters": {"rope_theta": 7.0}, "rope_theta": 500.0}]
)
def test_original_layout_reads_theta_the_same_way(tmp_path: Path, theta: dict[str, Any]) -> None:
    source = build_original(tmp_path / "llava", TINY, tower_inside=False)
    config = json.loads((source / "config.json").read_text()) | theta
    (source / "config.json").write_text(json.dumps(config))
    expected = transformers.LlamaConfig.from_dict(dict(theta)).rope_parameters["rope_theta"]
    assert open_checkpoint(source).config.text.rope_theta == expected


@pytest.mark.slow
@pytest.mark.timeout(2 * MANY)
@pytest.mark.parametrize("file", [pytest.param("config.json", marks=pytest.mark.main), "clip/config.json"])
def test_every_wrong_value_of_the_original_layout_is_refused_or_harmless(tmp_path: Path, file: str) -> None:
    source = build_original(tmp_path / "llava", TINY, tower_inside=False)
    valid = open_checkpoint(source)
    harmless = {"rms_norm_eps", "layer_norm_eps", "num_attention_heads", "max_position_embeddings"}
    harmless |= {"mm_vision_select_layer", "tie_word_embeddings", "image_aspect_ratio"}
    for place, other in changed(json.loads((source / file).read_text())):
        replace(source / file, other)
        try:
            found = open_checkpoint(source)
        except InputError as error:
            check_line(error)
            continue
        assert place[0] in harmless or (found.config, found.preprocessing) == (valid.config, valid.preprocessing), place


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize(
    "name", ["config.json", "preprocessor_config.json", "processor_config.json", "model.safetensors"]
)
def test_what_is_no_file_is_refused_wherever_it_stands(copied: Path, kind: str, name: str) -> None:
    (copied / name).unlink()
    put(kind, copied / name)
    if kind == "a link to nothing" and name in ("processor_config.json", "model.safetensors"):
        # Nothing by that name: one file is not needed, and instead of the other there may be shards.
        assert name == "processor_config.json" or "model.safetensors" in refusal(copied)
    elif kind == "a link to itself":
        assert name == "processor_config.json" or name in refusal(copied)
    else:
        assert NO_FILES[kind] in refusal(copied)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json", "model.safetensors.index.json"])
def test_a_named_pipe_for_other_weights_is_not_waited_for(copied: Path, name: str) -> None:
    (copied / "model.safetensors").unlink()
    os.mkfifo(copied / name)
    assert "it is a named pipe, expected a file" in refusal(copied)


@pytest.mark.timeout(60)
def test_a_named_pipe_for_a_shard_or_a_projector_is_not_waited_for(tmp_path: Path) -> None:
    source = build_checkpoint(tmp_path / "shards", TINY, max_shard_size="100KB")
    shard = sorted(source.glob("model-*.safetensors"))[1]
    shard.unlink()
    os.mkfifo(shard)
    assert "it is a named pipe" in refusal(source)
    original = build_original(tmp_path / "llava", TINY, tower_inside=False)
    (original / "clip" / "model.safetensors").unlink()
    os.mkfifo(original / "clip" / "model.safetensors")
    assert "it is a named pipe" in refusal(original)


@pytest.mark.parametrize("token", [8, True, ["<image>"], {"content": "<image>"}])
def test_an_image_token_that_is_no_text_is_refused_on_opening(copied: Path, token: Any) -> None:
    settings = json.loads((copied / "processor_config.json").read_text())
    replace(copied / "processor_config.json", settings | {"image_token": token})
    assert "processor_config.json: image_token: expected a string" in refusal(copied)


@pytest.mark.parametrize("training", [[], "x", 8, True])
def test_a_reward_model_whose_provenance_is_damaged_is_refused(copied: Path, training: Any) -> None:
    (copied / "vigor_jax.json").write_text(json.dumps({"training": training}))
    judge = RewardModelJudge(RewardModelConfig(), copied)
    context: Any = SimpleNamespace(
        dir=copied, model=ModelConfig(path=copied), inference_mesh=None, open=lambda name: open_checkpoint(name)
    )
    with pytest.raises(InputError, match=r"vigor_jax.json: training: expected an object"):
        judge.open(context)
