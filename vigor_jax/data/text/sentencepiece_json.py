"""The tokenizer.json that says what a LLaMA tokenizer.model (sentencepiece BPE) says."""

from pathlib import Path
from typing import Any

from vigor_jax.errors import InputError
from vigor_jax.json_fields import check_file

_SPACE = "▁"
# Numbers of sentencepiece's model format.
_BPE = 2
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6


def convert(path: Path, *, legacy: bool) -> dict[str, Any]:
    """Reads a sentencepiece BPE model and writes it as the content of a tokenizer.json.

    Args:
        path: tokenizer.model.
        legacy: Whether text after a special token gets a dummy "▁" (a Prepend normalizer) or only text at the
            very start does (a Metaspace pre-tokenizer), which is how transformers writes the two.

    Returns:
        The parsed content of the equivalent tokenizer.json; BOS is added in front of a whole text.

    Raises:
        InputError: The sentencepiece package is missing, the file is corrupt, or it is no BPE model of
            LLaMA's kind.
    """
    try:
        from sentencepiece import sentencepiece_model_pb2
    except ImportError as error:
        raise InputError(
            f"{path}: reading tokenizer.model without a tokenizer.json needs the sentencepiece package; "
            "run: pip install vigor-jax[sentencepiece]"
        ) from error
    model = sentencepiece_model_pb2.ModelProto()
    check_file(path)
    try:
        model.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf's DecodeError
        raise InputError(f"{path}: not a sentencepiece model; download or copy the file again") from error
    pieces = model.pieces
    if not pieces:
        raise InputError(f"{path}: a sentencepiece model without pieces; download or copy the file again")
    normalizer = model.normalizer_spec
    is_llama_kind = (
        model.trainer_spec.model_type == _BPE
        and model.trainer_spec.byte_fallback
        and normalizer.add_dummy_prefix
        and not normalizer.remove_extra_whitespaces
        and not normalizer.precompiled_charsmap
        and all(piece.type != _USER_DEFINED for piece in pieces)
    )
    if not is_llama_kind:
        raise InputError(
            f"{path}: expected a sentencepiece model of LLaMA's kind (BPE, byte fallback, dummy prefix, "
            "identity normalization, no user-defined pieces); bring a tokenizer.json instead"
        )
    special = [index for index, piece in enumerate(pieces) if piece.type in (_UNKNOWN, _CONTROL)]
    unk = next((piece.piece for piece in pieces if piece.type == _UNKNOWN), None)
    if unk is None:
        raise InputError(f"{path}: a sentencepiece model without an unknown token; download or copy the file again")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_special_token(index, pieces[index].piece) for index in special],
        "normalizer": _legacy_normalizer() if legacy else None,
        "pre_tokenizer": None if legacy else _metaspace(),
        "post_processor": _bos_in_front(model.trainer_spec.bos_id, pieces),
        "decoder": _decoder(),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unk,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece.piece: index for index, piece in enumerate(pieces)},
            "merges": _merges({piece.piece: piece.score for piece in pieces if piece.type == _NORMAL}),
        },
    }


def _merges(scores: dict[str, float]) -> list[list[str]]:
    """Every way to make a piece of two pieces, in the order in which sentencepiece would prefer them.

    sentencepiece merges the best-scored piece first and, among equals, the leftmost pair. LLaMA gives all
    runs of spaces one score, so that a run grows from its left end: among equals the longer left part comes
    first.
    """
    ranked = [
        (-score, -cut, piece[:cut], piece[cut:])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    return [[left, right] for _, _, left, right in sorted(ranked, key=lambda merge: merge[:2])]


def _special_token(token_id: int, content: str) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": token_id, "content": content, **flags}


def _legacy_normalizer() -> dict[str, Any]:
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    return {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": _SPACE}, replace]}


def _metaspace() -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": "first", "split": False}


def _bos_in_front(bos_id: int, pieces: Any) -> dict[str, Any] | None:
    if bos_id < 0:
        return None
    bos = pieces[bos_id].piece
    parts = [[{"SpecialToken": {"id": bos, "type_id": i}}, {"Sequence": {"id": "AB"[i], "type_id": i}}] for i in (0, 1)]
    special = {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}}
    return {
        "type": "TemplateProcessing",
        "single": parts[0],
        "pair": parts[0] + parts[1],
        "special_tokens": special,
    }


def _decoder() -> dict[str, Any]:
    steps = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    return {"type": "Sequence", "decoders": steps}
