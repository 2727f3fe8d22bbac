"""Converts GroundingDINO between the original layout and that of transformers, tensors unchanged.

    python -m detector_bridge.convert --model IN --out OUT --layout transformers|groundingdino

The original layout is `groundingdino.pth`, a config .py and `bert-base-uncased/` with BERT's config and tokenizer.
"""

import ast
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers
from torch import Tensor

from detector_bridge.backends.original_layout import TEXT_ENCODERS, OriginalFiles
from detector_bridge.backends.torch_backend import first_line
from detector_bridge.backends.transformers_checkpoint import read_network, weights_of
from detector_bridge.command import Parser
from detector_bridge.errors import InputError
from detector_bridge.tensor_names import tensors_to_original, tensors_to_transformers

SWINS = {
    "swin_T_224_1k": {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7},
    "swin_B_224_22k": {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 7},
    "swin_B_384_22k": {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 12},
    "swin_L_224_22k": {"embed_dim": 192, "depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48], "window_size": 7},
    "swin_L_384_22k": {"embed_dim": 192, "depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48], "window_size": 12},
}
# Original setting, the attributes in transformers that it stands for, and its value in SwinT_OGC.
SETTINGS: tuple[tuple[str, tuple[str, ...], Any], ...] = (
    ("hidden_dim", ("d_model",), 256),
    ("enc_layers", ("encoder_layers",), 6),
    ("dec_layers", ("decoder_layers",), 6),
    ("dim_feedforward", ("encoder_ffn_dim", "decoder_ffn_dim"), 2048),
    ("nheads", ("encoder_attention_heads", "decoder_attention_heads"), 8),
    ("num_queries", ("num_queries",), 900),
    ("query_dim", ("query_dim",), 4),
    ("num_feature_levels", ("num_feature_levels",), 4),
    ("enc_n_points", ("encoder_n_points",), 4),
    ("dec_n_points", ("decoder_n_points",), 4),
    ("two_stage_bbox_embed_share", ("two_stage_bbox_embed_share",), False),
    ("dec_pred_bbox_embed_share", ("decoder_bbox_embed_share",), True),
    ("embed_init_tgt", ("embedding_init_target",), True),
    ("max_text_len", ("max_text_len",), 256),
    ("transformer_activation", ("activation_function",), "relu"),
    ("pe_temperatureH", ("positional_embedding_temperature",), 20),
    ("pe_temperatureW", ("positional_embedding_temperature",), 20),
    ("dropout", ("dropout",), 0.0),
    ("text_dropout", ("text_enhancer_dropout",), 0.0),
    ("fusion_dropout", ("fusion_dropout",), 0.0),
    ("fusion_droppath", ("fusion_droppath",), 0.1),
)
# What transformers cannot express, hence the only values that convert; the rest of the config concerns training.
FIXED = {
    "modelname": "groundingdino",
    "position_embedding": "sine",
    "pre_norm": False,
    "num_patterns": 0,
    "two_stage_type": "standard",
    "use_text_enhancer": True,
    "use_fusion_layer": True,
    "use_text_cross_attention": True,
    "sub_sentence_present": True,
}
TRAINING = {
    "backbone_freeze_keywords": None,
    "two_stage_class_embed_share": False,
    "dn_box_noise_scale": 1.0,
    "dn_label_noise_ratio": 0.5,
    "dn_label_coef": 1.0,
    "dn_bbox_coef": 1.0,
    "dn_labelbook_size": 2000,
    "use_checkpoint": True,
    "use_transformer_ckpt": True,
    "text_encoder_type": "bert-base-uncased",
}
# What the original's Swin has no setting for.
SWIN_FIXED = {
    "patch_size": 4,
    "mlp_ratio": 4.0,
    "qkv_bias": True,
    "hidden_act": "gelu",
    "use_absolute_embeddings": False,
    "layer_norm_eps": 1e-5,
}
PREPROCESSOR = {
    "image_processor_type": "GroundingDinoImageProcessor",
    "processor_class": "GroundingDinoProcessor",
    "format": "coco_detection",
    "do_resize": True,
    "size": {"shortest_edge": 800, "longest_edge": 1333},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "do_pad": True,
}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


def to_transformers(model: Path, out: Path) -> None:
    """Writes the directory that `GroundingDinoForObjectDetection` and `AutoProcessor` load.

    Args:
      model: a .pth in the original layout, or the directory that holds it.
      out: new directory.

    Raises:
      InputError: files are missing, a setting or tensor has no counterpart, or one that the model needs is missing.
    """
    files = OriginalFiles.find(model)
    settings = read_settings(files.config)
    try:
        text_config = transformers.AutoConfig.from_pretrained(files.text_encoder, local_files_only=True)
    except Exception as error:  # libraries raise all kinds for a bad file
        raise InputError(f"no BERT config could be read from {files.text_encoder}: {first_line(error)}") from error
    backbone = settings["backbone"]
    image_size = int(backbone.split("_")[2]) if backbone in SWINS else 224
    stages = [index + 1 for index in settings["return_interm_indices"]]
    config = transformers.GroundingDinoConfig(
        backbone_config={"model_type": "swin", "image_size": image_size, "out_indices": stages, **settings["swin"]},
        text_config=text_config,
        architectures=["GroundingDinoForObjectDetection"],
        **{name: settings[setting] for setting, names, _ in SETTINGS for name in names},
    )
    tensors = tensors_to_transformers(files.read(), config.decoder_bbox_embed_share, files.weights)

    def write(directory: Path) -> None:
        config.save_pretrained(directory)
        safetensors.torch.save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        (directory / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=2))
        _copy_tokenizer(files.text_encoder, directory)
        read_network(directory)

    _write_whole(out, write)


def to_original(model: Path, out: Path) -> None:
    """Writes a directory in the original layout: `groundingdino.pth`, `GroundingDINO.py` and `bert-base-uncased/`.

    A Swin of a size that the original does not name gets a setting `swin` of ours, which our backend understands.

    Args:
      model: directory of a checkpoint that transformers loads.
      out: new directory.

    Raises:
      InputError: files are missing, or a setting or tensor has no counterpart.
    """
    config = read_network(model).config
    settings = original_settings(config, model)
    weights: dict[str, Tensor] = {}
    for path in weights_of(model):
        is_pickle = path.suffix == ".bin"
        weights |= torch.load(path, "cpu", weights_only=True) if is_pickle else safetensors.torch.load_file(path)
    tensors = tensors_to_original(weights, config.decoder_bbox_embed_share, config.decoder_layers, model)

    def write(directory: Path) -> None:
        torch.save({"model": tensors}, directory / "groundingdino.pth")
        lines = [f"{name} = {value!r}\n" for name, value in settings.items()]
        (directory / "GroundingDINO.py").write_text("".join(lines))
        bert = directory / TEXT_ENCODERS[0]
        config.text_config.save_pretrained(bert)
        _copy_tokenizer(model, bert)

    _write_whole(out, write)


def read_settings(config: Path | None) -> dict[str, Any]:
    """The settings of a config .py, which is parsed, never executed; SwinT_OGC's where it is None or silent.

    Raises:
      InputError: the file holds anything but plain assignments, or a setting that transformers cannot express.
    """
    settings = {name: default for name, _, default in SETTINGS} | FIXED
    settings |= {"backbone": "swin_T_224_1k", "return_interm_indices": [1, 2, 3]}
    if config is not None:
        try:
            for statement in ast.parse(config.read_text()).body:
                match statement:
                    case ast.Assign(targets=[ast.Name(id=name)], value=value):
                        settings[name] = ast.literal_eval(value)
                    case _:
                        raise ValueError(f"line {statement.lineno} is no plain assignment")
        except ValueError as error:  # of literal_eval and of decoding too
            raise InputError(f"expected only plain assignments in {config}: {first_line(error)}") from error
        except SyntaxError as error:
            raise InputError(f"{config} is no Python file: {first_line(error)}") from error
    wrong = {name: settings[name] for name, value in FIXED.items() if settings[name] != value}
    if wrong:
        raise InputError(f"transformers knows only {FIXED}, got {wrong} in {config}")
    if "swin" not in settings:
        if settings["backbone"] not in SWINS:
            raise InputError(f"backbone must be one of {', '.join(SWINS)}, got {settings['backbone']!r} in {config}")
        settings["swin"] = SWINS[settings["backbone"]]
    return settings


def original_settings(config: Any, where: Path) -> dict[str, Any]:
    """The settings of the original that describe the same model, with its defaults for training.

    Raises:
      InputError: the model is none that the original can build.
    """
    problems = []
    settings = {"batch_size": 1, **FIXED}
    for setting, names, _ in SETTINGS:
        settings[setting] = getattr(config, names[0])
        if any(getattr(config, name) != settings[setting] for name in names):
            problems.append(f"{' and '.join(names)} differ")
    for name in ("max_text_len", "d_model"):  # which the package has as constants, whatever its config says
        if getattr(config, name) != 256:
            problems.append(f"{name} is {getattr(config, name)}, not 256")
    if config.position_embedding_type != "sine":
        problems.append(f"position_embedding_type is {config.position_embedding_type}, not sine")
    swin = config.backbone_config
    if swin.model_type != "swin":
        raise InputError(f"the original has a Swin backbone, got {swin.model_type} in {where}")
    for name, value in SWIN_FIXED.items():
        if getattr(swin, name) != value:
            problems.append(f"Swin's {name} is {getattr(swin, name)}, not {value}")
    if problems:
        raise InputError(f"the original cannot build the model in {where}: {'; '.join(problems)}")
    sizes = {name: getattr(swin, name) for name in ("embed_dim", "depths", "num_heads", "window_size")}
    sizes = {name: list(value) if isinstance(value, tuple) else value for name, value in sizes.items()}
    known = [name for name, known in SWINS.items() if known == sizes]
    settings |= {"backbone": known[0]} if known else {"backbone": "swin", "swin": sizes}
    settings["return_interm_indices"] = [index - 1 for index in swin.out_indices]
    return settings | TRAINING


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code: 2, with one line on stderr, where what was given is wrong."""
    parser = Parser(prog="python -m detector_bridge.convert", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="directory of a checkpoint, or an original .pth")
    parser.add_argument("--out", type=Path, required=True, help="new directory")
    parser.add_argument("--layout", choices=["transformers", "groundingdino"], required=True, help="what to write")
    try:
        given = parser.parse_args(arguments)
        (to_transformers if given.layout == "transformers" else to_original)(given.model, given.out)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {given.out}")
    return 0


def _write_whole(out: Path, write: Callable[[Path], None]) -> None:
    """Writes a directory next to its place and moves it there when done, so that no half of one remains."""
    if out.exists():
        raise InputError(f"--out must be a new directory, but {out} exists")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        written = Path(scratch) / "out"
        written.mkdir()
        write(written)
        written.rename(out)


def _copy_tokenizer(source: Path, target: Path) -> None:
    """The tokenizer's files, those that exist."""
    names = [name for name in _TOKENIZER_FILES if (source / name).is_file()]
    if not {"tokenizer.json", "vocab.txt"} & set(names):
        raise InputError(f"expected BERT's tokenizer.json or vocab.txt in {source}, found neither")
    for name in names:
        shutil.copyfile(source / name, target / name)


if __name__ == "__main__":
    sys.exit(main())
