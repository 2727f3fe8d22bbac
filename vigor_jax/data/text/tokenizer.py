"""Text to token ids and back: the Rust `tokenizers` library behind a LLaMA-shaped interface.

`transformers` would import torch, which this package never does; `tokenizer.json` alone is enough.
"""

import hashlib
import importlib.util
import itertools
import json
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Int32

from vigor_jax.data.text import sentencepiece_json, tokenizer_json
from vigor_jax.data.text.instructions import InstructionTokenizer
from vigor_jax.data.text.tokenizer_json import IMAGE_TOKEN
from vigor_jax.errors import InputError
from vigor_jax.json_fields import Fields, exists, read_json, show

logger = logging.getLogger(__name__)

_SETTINGS = (
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("generation_config.json", "config.json"),
)
_UNREADABLE = "\ufffd"  # stands for bytes that are no character, or not yet
# LLaMA's names, for a folder whose config files name no special tokens.
_LLAMA_NAMES = {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}


class Tokenizer:
    """A LLaMA-style BPE tokenizer whose `encode` never reads control tokens out of text.

    Control tokens are those of the beginning and the end of a sequence, of padding, of the unknown and of images.
    Every other added token, such as a "<box>" that somebody trained with, is read where transformers reads it.

    Attributes:
        bos_id: Id put before every sequence.
        eos_id: Id that ends an answer.
        unk_id: Id of the unknown token; None where none is declared.
        pad_id: Id of padding; the unknown token's, else `eos_id`, where none is declared.
        vocab_size: Highest id, added tokens included, plus one.
        adds_bos: Whether a sequence begins with `bos_id`, which tokenizer_config.json can switch off.
        legacy: Whether text right after a special token gets a dummy "▁" in front when tokenizer.json
            tokenizes a whole conversation in one go (transformers' `legacy=True`).
        restarts_after_image: Whether text right after an image gets a dummy "▁" in front, if any text does.
        image_strips: Whether an image takes the white space on its left and on its right, as "<image>" is
            declared (never so in llava-hf's own checkpoints).
        instructions: Makes the tokens of an instruction for the family's `encode_images`; None for a family that reads
            none there, as LLaVA.
        images_first: Whether the one image of a prompt stands before BOS, as InstructBLIP's does, and not where the
            text has it.
    """

    instructions: InstructionTokenizer | None = None
    images_first: bool = False

    def __init__(
        self,
        content: dict[str, Any],
        settings: Mapping[str, Fields],
        source: str,
        *,
        whole_prompt: bool = False,
        from_model: bool = False,
    ) -> None:
        """Builds the tokenizer from parsed files; use `Tokenizer.load`.

        Args:
            content: tokenizer.json as parsed.
            settings: The config files by name; those that are absent are empty.
            source: The path that error messages name.
            whole_prompt: See `load`.
            from_model: Whether the content is that of a tokenizer.model. There a text that begins with a space gets a
                dummy "▁" in front too.
        """
        self._source = source
        declared = tokenizer_json.with_added_tokens(content, tokenizer_json.declared_tokens(settings), source)
        if from_model:  # transformers cuts the text up at added tokens before sentencepiece sees it
            declared["added_tokens"] = [{**entry, "normalized": False} for entry in declared["added_tokens"]]
        self._full = tokenizer_json.build(declared, source)

        def by_pieces(content: dict[str, Any]) -> dict[str, Any]:
            if whole_prompt:
                return content
            return tokenizer_json.restarting_after_images(content, doubles=from_model)

        self._content = content = by_pieces(declared)
        if content is not declared:
            self._full = tokenizer_json.build(content, source)

        vocabulary = self._full.get_vocab()
        self.vocab_size = max(vocabulary.values()) + 1
        self.bos_id = self._required_id("bos", settings)
        self.eos_id = self._required_id("eos", settings)
        self.unk_id = _special_id("unk", settings, vocabulary)
        pad_id = _special_id("pad", settings, vocabulary)
        self.pad_id = next(token for token in (pad_id, self.unk_id, self.eos_id) if token is not None)
        self.adds_bos = settings["tokenizer_config.json"].boolean("add_bos_token", True, null=True)
        flagged = {entry["id"] for entry in content["added_tokens"] if entry.get("special")}
        self._skipped = flagged | {self.bos_id, self.eos_id, self.pad_id}

        image_id = None
        for key in ("image_token_index", "image_token_id"):  # the second is what transformers takes
            image_id = settings["config.json"].integer(key, image_id, least=0, most=tokenizer_json.MAX_ID)
        image = self.token(image_id) if whole_prompt and image_id is not None else ""
        image = image or IMAGE_TOKEN
        flags = next((entry for entry in content["added_tokens"] if entry["content"] == image and whole_prompt), None)
        self.image_strips = (bool(flags and flags["lstrip"]), bool(flags and flags["rstrip"]))
        self.legacy = tokenizer_json.restarts_after(content, self.token(self.eos_id))
        self.restarts_after_image = (
            not whole_prompt
            or tokenizer_json.restarts_after(content, image)
            or not tokenizer_json.starts_with_prefix(content)
        )
        named = {self.bos_id, self.eos_id, self.pad_id, self.unk_id, vocabulary.get(image), vocabulary.get(IMAGE_TOKEN)}
        self._controls = {self.token(token_id) for token_id in named if token_id is not None} - {""}
        # Two encoders from one file, for text that starts afresh and for text that continues.
        fresh = by_pieces(tokenizer_json.text_only(declared, self._controls))
        self._encoders = {
            prefix: _encoder(fresh if prefix else tokenizer_json.continuing(fresh), source) for prefix in (True, False)
        }
        self._keeps_length = tokenizer_json.keeps_length(content)

    @classmethod
    def load(cls, directory: Path, *, whole_prompt: bool = False, model_first: bool = False) -> "Tokenizer":
        """Loads the tokenizer of a checkpoint folder.

        Reads tokenizer.json, or else builds it from tokenizer.model (LLaMA's sentencepiece BPE). There the
        `legacy` key of tokenizer_config.json chooses the behavior after special tokens; missing means true,
        as when the checkpoints without that key were trained.

        Args:
            directory: Folder with tokenizer.json or tokenizer.model. Special tokens come from
                tokenizer_config.json, special_tokens_map.json, generation_config.json and config.json, the
                first that names them.
            whole_prompt: Whether a prompt with images is one text in which "<image>" is a token, as for the
                processor of a llava-hf checkpoint. Otherwise the text around images is tokenized piece by
                piece, as the original LLaVA code does.
            model_first: Whether to read tokenizer.model even if there is a tokenizer.json, as the original LLaVA
                code does.

        Raises:
            InputError: No tokenizer in the folder, a file that cannot be read, or no BOS or EOS token.
        """
        directory = Path(directory)
        settings = {name: Fields(_read_json(directory / name), directory / name) for name in _SETTINGS}
        json_path, model_path = directory / "tokenizer.json", directory / "tokenizer.model"
        content = _read_json(json_path)
        reads_model = exists(model_path) and (not content or (model_first and _has_sentencepiece(model_path)))
        if reads_model:
            legacy = settings["tokenizer_config.json"].boolean("legacy", True, null=True)
            added = tokenizer_json.listed_tokens(content, str(json_path))
            content = sentencepiece_json.convert(model_path, legacy=legacy)
            content = tokenizer_json.with_added_tokens(content, added, str(json_path))
            return cls(content, settings, str(model_path), whole_prompt=whole_prompt, from_model=True)
        if exists(json_path):
            tokenizer_json.check_parts(content, str(json_path))
            return cls(content, settings, str(json_path), whole_prompt=whole_prompt)
        raise InputError(f"{directory}: no tokenizer.json and no tokenizer.model; copy the tokenizer files here")

    def encode(self, text: str, *, prefix: bool = True) -> list[int]:
        """Token ids of `text` as plain text: no BOS, no EOS, and control tokens spelled out in it stay text.

        Args:
            text: Any text; the empty text has no ids.
            prefix: Whether to put LLaMA's dummy "▁" in front, as for text that starts afresh; without it the
                text continues what precedes it. A tokenizer that knows no such prefix ignores this.

        Raises:
            InputError: `text` holds a lone surrogate, which no tokenizer can represent.
        """
        if not text:
            return []
        try:
            encoder, true_ids = self._encoders[prefix]
            ids = encoder.encode(text, add_special_tokens=False).ids
        except TypeError as error:
            raise InputError(
                f"text with a lone surrogate (half of a \\u pair) cannot be tokenized: {text[:40]!a}; "
                "repair its encoding"
            ) from error
        return [true_ids.get(token_id, token_id) for token_id in ids] if true_ids else ids

    def most_tokens(self, text: str) -> int | None:
        """A number of tokens that `text` never exceeds, alone or as a part of a text, without tokenizing it.

        Each token of a LLaMA-style tokenizer stands for at least one byte of the text, or for the "▁" in front of it.
        None where the tokenizer normalizes text in any other way than writing "▁" for a space.
        """
        return len(text.encode()) + 1 if self._keeps_length else None

    def digest(self) -> str:
        """SHA-256 of all that decides on token ids and on text made of them; layout and order of files play no part."""
        ids: list[Any] = [self.bos_id, self.eos_id, self.pad_id, self.legacy]
        ids += [] if self.instructions is None else [self.instructions.digest()]
        ids += ["images first"] if self.images_first else []
        return hashlib.sha256(json.dumps([self._content, ids], sort_keys=True).encode()).hexdigest()

    def instruction_ids(self, texts: Sequence[str]) -> Int32[np.ndarray, "B Q"] | None:
        """Instructions as `models.vlm.Vlm.encode_images` takes them; None for a family that reads none."""
        return None if self.instructions is None else self.instructions.rows(texts)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids` without special tokens and without the leading dummy space.

        Ids that are no token, such as label padding or the spare rows of an embedding matrix, are dropped.
        """
        kept = [token_id for token_id in map(int, ids) if token_id >= 0 and token_id not in self._skipped]
        return self._full.decode(kept, skip_special_tokens=False)

    def split_text(self, ids: Iterable[int]) -> list[str]:
        """What each token adds to `decode(ids)`: joined, that text.

        A character that several tokens spell, such as the bytes of one that is not in the vocabulary, is added by the
        last of them. Special tokens add nothing.
        """
        ids = list(map(int, ids))
        text = self.decode(ids)
        ends: list[int] = []
        # A decoder looks at neighbors: it strips the first space of all, and reads bytes together. So each token is
        # decoded after those from `anchor` on, of which those from `start` on are what is not sure yet.
        anchor = start = known = 0
        for end in range(1, len(ids) + 1):
            before, now = self.decode(ids[anchor:start]), self.decode(ids[anchor:end])
            if not now.startswith(before):
                anchor = start = known = 0
                before, now = "", self.decode(ids[:end])
            new = now[len(before) :]
            agreed = known + _num_common(new, text[known : known + len(new)])
            ends.append(max(agreed, ends[-1] if ends else 0))
            if new and agreed == known + len(new) and _UNREADABLE not in new:
                anchor, start, known = start, end, agreed
        ends[-1:] = [len(text)] * bool(ends)
        return [text[first:last] for first, last in itertools.pairwise((0, *ends))]

    def token_to_id(self, token: str) -> int | None:
        """Id of one exact token such as "<image>" or "▁yes"; None if there is none."""
        return self._full.token_to_id(token)

    def token(self, token_id: int) -> str:
        """The token of an id, as the vocabulary spells it; empty if there is none."""
        return self._full.id_to_token(token_id) or ""

    def size_without(self, tokens: Collection[str]) -> int:
        """`vocab_size` if these tokens were not there."""
        return max(token_id for token, token_id in self._full.get_vocab().items() if token not in tokens) + 1

    @property
    def added_tokens(self) -> list[dict[str, Any]]:
        """The tokens that are found before any merging, by id, as a tokenizer.json lists them."""
        return [dict(entry) for entry in self._content["added_tokens"]]

    def check_rows(self, rows: int) -> None:
        """Checks that the embeddings have a row for every token that a text can hold.

        A padding token without a row gives way to the unknown token, as in the original code.

        Args:
            rows: of the embeddings.

        Raises:
            InputError: a token has no row.
        """
        if self.pad_id >= rows:
            self.pad_id = self.eos_id if self.unk_id is None else self.unk_id
        read = [(i, token) for token, i in self._full.get_vocab().items() if token not in self._controls]
        read += [(i, self.token(i)) for i in (self.bos_id, self.eos_id)]
        without = min((found for found in read if found[0] >= rows), default=None)
        if without:
            raise InputError(
                f"{self._source}: token {show(without[1])} has id {without[0]}, but config.json's vocab_size is "
                f"{rows}, so it has no embedding; use the tokenizer files that the weights were trained with"
            )

    def to_json(self, added_tokens: Mapping[str, int] | None = None) -> str:
        """The content of a tokenizer.json that transformers loads, and under which it reads a whole prompt, images
        included, as this tokenizer does.

        Args:
            added_tokens: Special tokens to append, such as {"<image>": 32000}; the ids must follow on from
                `vocab_size` without a gap.

        Raises:
            InputError: An id of `added_tokens` does not follow on, or its token has another id already.
        """
        entries = [
            {"id": token_id, "content": token, **tokenizer_json.PLAIN}
            for token, token_id in (added_tokens or {}).items()
        ]
        content = tokenizer_json.with_added_tokens(self._content, entries, self._source)
        tokenizer_json.build(content, self._source)
        return json.dumps(content, ensure_ascii=False, indent=1)

    def _required_id(self, name: str, settings: Mapping[str, Fields]) -> int:
        token_id = _special_id(name, settings, self._full.get_vocab())
        if token_id is None:
            raise InputError(f"{self._source}: no {name} token is declared; add {name}_token to tokenizer_config.json")
        return token_id


def _num_common(one: str, other: str) -> int:
    """How many characters two texts have in common, from the start."""
    if other.startswith(one):
        return len(one)
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _encoder(content: dict[str, Any], source: str) -> tuple[tokenizers.Tokenizer, dict[int, int]]:
    content, true_ids = tokenizer_json.renumbered(content)
    return tokenizer_json.build(content, source), true_ids


def _has_sentencepiece(model_path: Path) -> bool:
    if importlib.util.find_spec("sentencepiece"):
        return True
    logger.warning(
        "%s is not read, for want of the sentencepiece package: runs of spaces may get other tokens than in LLaVA; "
        "run: pip install vigor-jax[sentencepiece]",
        model_path,
    )
    return False


def _read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, empty if nothing has that name; a link to a file that is missing is refused."""
    return read_json(path) if exists(path) or path.is_symlink() else {}


def _special_id(name: str, settings: Mapping[str, Fields], vocabulary: Mapping[str, int]) -> int | None:
    """Id of the "bos", "eos", "unk" or "pad" token: as the first file that names it says, else LLaMA's."""
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        token = tokenizer_json.special_token(settings[file], f"{name}_token")
        if token is not None and token in vocabulary:
            return vocabulary[token]
    config = settings["config.json"]
    for fields in (settings["generation_config.json"], config, config.object("text_config")):
        token_id = _token_id(fields, f"{name}_token_id") if fields else None
        if token_id is not None:
            return token_id
    return vocabulary.get(_LLAMA_NAMES.get(name, ""))


def _token_id(fields: Fields, key: str) -> int | None:
    """The id that a file gives, of several the first; None for none, for which the first LLaMA conversions wrote -1."""
    value = fields.values.get(key)
    if isinstance(value, list) and value:
        fields = Fields({**fields.values, key: value[0]}, fields.path)
    elif value == []:
        return None
    token_id = fields.integer(key, None, least=-1, most=tokenizer_json.MAX_ID, null=True)
    return None if token_id == -1 else token_id
