"""Both layouts, there and back, and the errors on the way; test_backends.py compares the outputs."""

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from detector_bridge.backends.original_layout import OriginalFiles
from detector_bridge.convert import SWINS, main, original_settings, read_settings, to_original, to_transformers
from detector_bridge.errors import InputError
from detector_bridge.tensor_names import FUSED, NAMES, UNUSED, tensors_to_original, tensors_to_transformers
from tests.detector_bridge.tiny_detector import write_transformers


@pytest.fixture(scope="module", params=[{}, {"depths": (2, 1, 3, 1), "layers": 3, "embed_dim": 16, "swin_heads": 1}])
def checkpoint(request, tmp_path_factory):
    return write_transformers(tmp_path_factory.mktemp("tiny") / "detector", d_model=256, **request.param)


@pytest.fixture(scope="module")
def original(checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("original") / "out"
    to_original(checkpoint, out)
    return out


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert torch.equal(ours[key], theirs[key]), key


@pytest.mark.slow
@pytest.mark.main
def test_there_and_back_is_bit_identical(checkpoint, original, tmp_path):
    to_transformers(original, tmp_path / "back")
    assert_equal(load_file(tmp_path / "back" / "model.safetensors"), load_file(checkpoint / "model.safetensors"))
    before, after = (transformers.AutoConfig.from_pretrained(path) for path in (checkpoint, tmp_path / "back"))
    differing = {
        key
        for key, value in before.to_dict().items()
        if after.to_dict().get(key) != value and key not in ("text_config", "backbone_config")
    }
    assert not differing - {"transformers_version", "dtype", "torch_dtype", "_name_or_path"}
    for part in ("embed_dim", "depths", "num_heads", "window_size", "out_indices"):
        assert list_of(getattr(before.backbone_config, part)) == list_of(getattr(after.backbone_config, part))
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "back")
    assert (
        processor(text="dog.")["input_ids"]
        == transformers.AutoProcessor.from_pretrained(checkpoint)(text="dog.")["input_ids"]
    )
    again = tmp_path / "again"
    to_original(tmp_path / "back", again)
    assert_equal(OriginalFiles.find(again).read(), OriginalFiles.find(original).read())


def list_of(value):
    return list(value) if isinstance(value, tuple) else value


def test_fused_tensors_are_query_key_value_in_this_order(checkpoint, original):
    ours, theirs = load_file(checkpoint / "model.safetensors"), OriginalFiles.find(original).read()
    swin = "model.backbone.conv_encoder.model.encoder.layers.2.blocks.0.attention.self"
    parts = [ours[f"{swin}.{name}.weight"] for name in ("query", "key", "value")]
    assert torch.equal(theirs["backbone.0.layers.2.blocks.0.attn.qkv.weight"], torch.cat(parts))
    parts = [ours[f"model.decoder.layers.1.encoder_attn_text.{name}.bias"] for name in ("query", "key", "value")]
    assert torch.equal(theirs["transformer.decoder.layers.1.ca_text.in_proj_bias"], torch.cat(parts))
    assert torch.equal(
        theirs["backbone.0.norm2.bias"], ours["model.backbone.conv_encoder.model.hidden_states_norms.stage3.bias"]
    )


def test_the_table_is_a_bijection():
    for table in (NAMES, FUSED):
        for side in zip(*table, strict=True):
            assert len(set(side)) == len(table)
    assert all(ours.count("#") == theirs.count("#") for ours, theirs in NAMES + FUSED)


def test_the_original_stores_box_heads_of_all_layers_twice(original):
    tensors = OriginalFiles.find(original).read()
    heads = [key for key in tensors if "bbox_embed.1." in key]
    assert len(heads) == 2 * 6
    for key in heads:
        assert torch.equal(tensors[key], tensors[key.replace("bbox_embed.1.", "bbox_embed.0.")])


def test_wrappers_prefixes_and_unused_tensors_are_left_out(checkpoint, original, tmp_path):
    shutil.copytree(original, tmp_path / "wrapped")
    path = tmp_path / "wrapped" / "groundingdino.pth"
    tensors = torch.load(path, weights_only=True)["model"]
    extra = {
        "bert.pooler.dense.weight": torch.ones(2, 2),
        "bert.embeddings.position_ids": torch.arange(512)[None],
        "label_enc.weight": torch.ones(2, 2),
        "backbone.0.layers.0.blocks.0.attn.relative_position_index": torch.zeros(49, 49, dtype=torch.int64),
    }
    torch.save({"model": {f"module.{key}": value for key, value in (tensors | extra).items()}, "epoch": 3}, path)
    to_transformers(path, tmp_path / "out")
    assert_equal(load_file(tmp_path / "out" / "model.safetensors"), load_file(checkpoint / "model.safetensors"))


def test_heads_that_layers_do_not_share_are_all_kept():
    heads = {f"bbox_embed.{i}.layers.0.bias": torch.full((2,), float(i)) for i in range(3)}
    original = tensors_to_original(heads, False, 3, "here")
    assert len(original) == 6
    assert_equal(tensors_to_transformers(original, False, "here"), heads)


def test_every_unmapped_or_incomplete_tensor_is_named():
    strange = {"transformer.strange.weight": torch.ones(1), "bert2.x": torch.ones(1), "feat_map.bias": torch.ones(1)}
    with pytest.raises(InputError, match=r"unknown: bert2\.x, transformer\.strange\.weight$"):
        tensors_to_transformers(strange, True, "here")
    lone = {"model.strange": torch.ones(1), "model.decoder.layers.0.self_attn.key.bias": torch.ones(1)}
    with pytest.raises(InputError, match=r"unknown: model\.strange; incomplete: transformer.*in_proj_bias$"):
        tensors_to_original(lone, True, 1, "here")
    assert not UNUSED.fullmatch("bert.embeddings.position_embeddings.weight")


def test_a_missing_tensor_fails_and_leaves_nothing_behind(original, tmp_path):
    shutil.copytree(original, tmp_path / "cut")
    path = tmp_path / "cut" / "groundingdino.pth"
    tensors = torch.load(path, weights_only=True)["model"]
    del tensors["transformer.level_embed"], tensors["feat_map.bias"]
    torch.save({"model": tensors}, path)
    with pytest.raises(InputError, match=r"missing: model\.level_embed, model\.text_projection\.bias"):
        to_transformers(tmp_path / "cut", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["cut"]


@pytest.mark.parametrize("name", SWINS)
def test_settings_of_released_sizes_round_trip(name, tmp_path):
    swin = SWINS[name]
    config = transformers.GroundingDinoConfig(
        backbone_config={"model_type": "swin", "out_indices": [2, 3, 4], **swin}, dropout=0.0
    )
    settings = original_settings(config, tmp_path)
    assert settings["backbone"] == name
    path = tmp_path / "config.py"
    path.write_text("".join(f"{key} = {value!r}\n" for key, value in settings.items()))
    assert read_settings(path) == settings | {"swin": swin}
    if name == "swin_T_224_1k":
        default = read_settings(None)
        assert {key: settings[key] for key in default if key != "swin"} == {
            key: value for key, value in default.items() if key != "swin"
        }


def test_a_config_is_read_and_not_run(tmp_path):
    path, proof = tmp_path / "config.py", tmp_path / "ran"
    path.write_text(f"open({str(proof)!r}, 'w')\n")
    with pytest.raises(InputError, match="line 1 is no plain assignment"):
        read_settings(path)
    path.write_text(f"hidden_dim = open({str(proof)!r}, 'w')\n")
    with pytest.raises(InputError, match="only plain assignments"):
        read_settings(path)
    assert not proof.exists()
    for text, message in (
        ("two_stage_type = 'no'\n", "two_stage_type"),
        ("backbone = 'resnet50'\n", "resnet50"),
        ("hidden_dim = \n", "no Python file"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            read_settings(path)


def test_the_command_exits_with_2_and_one_line(checkpoint, original, tmp_path, capsys):
    def run(model, layout, out="new"):
        code = main(["--model", str(model), "--out", str(tmp_path / out), "--layout", layout])
        return code, capsys.readouterr().err

    def copy(source, name):
        return shutil.copytree(source, tmp_path / name)

    two = copy(original, "two")
    (two / "second.pth").write_bytes(b"")
    no_bert = copy(original, "no-bert")
    shutil.rmtree(no_bert / "bert-base-uncased")
    pickled = copy(original, "pickled")
    (pickled / "groundingdino.pth").write_bytes(b"no pickle")
    conv = copy(checkpoint, "longer")
    config = json.loads((conv / "config.json").read_text())
    (conv / "config.json").write_text(json.dumps(config | {"max_text_len": 128}))
    strange = copy(checkpoint, "strange")
    tensors = load_file(strange / "model.safetensors")
    save_file(tensors | {"x": torch.ones(1)}, strange / "model.safetensors", {"format": "pt"})
    (tmp_path / "there").mkdir()
    for (code, error), message in (
        (run(two, "transformers"), "found 2"),
        (run(no_bert, "transformers"), "found neither"),
        (run(pickled, "transformers"), "no weights could be read"),
        (run(tmp_path / "none.pth", "transformers"), "found none"),
        (run(original, "groundingdino"), "model*.safetensors"),
        (run(conv, "groundingdino"), "max_text_len is 128"),
        (run(strange, "groundingdino"), "unexpected: x"),
        (run(checkpoint, "groundingdino", "there"), "exists"),
    ):
        assert code == 2
        assert message in error
        assert error.splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "new").exists()
    assert run(checkpoint, "groundingdino")[0] == 0
    assert (tmp_path / "new" / "groundingdino.pth").exists()
