"""Text to token ids and back: the Rust `tokenizers` library behind a LLaMA-shaped interface.

`transformers` would import torch, which this package never does; `tokenizer.json` alone is enough.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tokenizers

from vigor_jax.data import sentencepiece_json
from vigor_jax.errors import InputError

_METASPACE = "▁"
# LLaMA's names, for a folder whose config files name no special tokens.
_LLAMA_NAMES = {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}


class Tokenizer:
    """A LLaMA-style BPE tokenizer whose `encode` never reads special tokens out of text.

    Attributes:
        bos_id: Id put before every sequence.
        eos_id: Id that ends an answer.
        pad_id: Id of padding; the unknown token's, else `eos_id`, where none is declared.
        vocab_size: Highest id, added tokens included, plus one.
        legacy: Whether text right after a special token gets a dummy "▁" in front when tokenizer.json
            tokenises a whole conversation in one go (transformers' `legacy=True`).
    """

    def __init__(self, content: dict[str, Any], settings: Mapping[str, dict[str, Any]], source: str) -> None:
        """Builds the tokenizer from parsed files; use `Tokenizer.load`.

        Args:
            content: tokenizer.json as parsed.
            settings: The parsed config files by name; those that are absent are empty.
            source: The path that error messages name.
        """
        self._source = source
        tokenizer_config = settings["tokenizer_config.json"]
        declared = tokenizer_config.get("added_tokens_decoder", {})
        extra = {entry["content"]: int(token_id) for token_id, entry in declared.items()}
        self._content = _with_added_tokens(content, settings["added_tokens.json"] | extra, source)
        self._full = _build(self._content, source)
        # Two encoders from one file; neither knows an added token, so "</s>" in a caption stays text.
        self._encoders = {prefix: _build(_text_only(self._content, prefix), source) for prefix in (True, False)}

        vocabulary = self._full.get_vocab()
        self.vocab_size = max(vocabulary.values()) + 1
        self.bos_id = self._required_id("bos", settings)
        self.eos_id = self._required_id("eos", settings)
        unk_id = _special_id("unk", settings, vocabulary)
        pad_id = _special_id("pad", settings, vocabulary)
        self.pad_id = next(token for token in (pad_id, unk_id, self.eos_id) if token is not None)
        flagged = {entry["id"] for entry in self._content["added_tokens"] if entry.get("special")}
        self._skipped = flagged | {self.bos_id, self.eos_id, self.pad_id}
        self.legacy = self._prefixes_after_special()
        self._keeps_length = _keeps_length(self._content)

    @classmethod
    def load(cls, directory: Path) -> "Tokenizer":
        """Loads the tokenizer of a checkpoint folder.

        Reads tokenizer.json, or else builds it from tokenizer.model (LLaMA's sentencepiece BPE). There the
        `legacy` key of tokenizer_config.json chooses the behaviour after special tokens; missing means true,
        as when the checkpoints without that key were trained.

        Args:
            directory: Folder with tokenizer.json or tokenizer.model. Special tokens come from
                tokenizer_config.json, special_tokens_map.json, generation_config.json and config.json, the
                first that names them.

        Raises:
            InputError: No tokenizer in the folder, a file that cannot be read, or no BOS or EOS token.
        """
        directory = Path(directory)
        names = ("tokenizer_config", "special_tokens_map", "added_tokens", "generation_config", "config")
        settings = {f"{name}.json": _read_json(directory / f"{name}.json") for name in names}
        json_path, model_path = directory / "tokenizer.json", directory / "tokenizer.model"
        if json_path.is_file():
            content = _read_json(json_path)
            model = content.get("model")
            if not isinstance(model, dict) or "merges" not in model:
                raise InputError(f"{json_path}: expected a BPE model with merges; use a LLaMA-style tokenizer")
            return cls(content, settings, str(json_path))
        if model_path.is_file():
            legacy = bool(settings["tokenizer_config.json"].get("legacy", True))
            return cls(sentencepiece_json.convert(model_path, legacy=legacy), settings, str(model_path))
        raise InputError(f"{directory}: no tokenizer.json and no tokenizer.model; copy the tokenizer files here")

    def encode(self, text: str, *, prefix: bool = True) -> list[int]:
        """Token ids of `text` as plain text: no BOS, no EOS, and special tokens spelt out in it stay text.

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
            return self._encoders[prefix].encode(text, add_special_tokens=False).ids
        except TypeError as error:
            raise InputError(
                f"text with a lone surrogate (half of a \\u pair) cannot be tokenised: {text[:40]!a}; "
                "repair its encoding"
            ) from error

    def most_tokens(self, text: str) -> int | None:
        """A number of tokens that `text` never exceeds, alone or as a part of a text, without tokenizing it.

        Each token of a LLaMA-style tokenizer stands for at least one byte of the text, or for the "▁" in front of it.
        None where the tokenizer normalizes text in any other way than writing "▁" for a space.
        """
        return len(text.encode()) + 1 if self._keeps_length else None

    def digest(self) -> str:
        """SHA-256 of all that decides on token ids and on text made of them; layout and order of files play no part."""
        ids = [self.bos_id, self.eos_id, self.pad_id, self.legacy]
        return hashlib.sha256(json.dumps([self._content, ids], sort_keys=True).encode()).hexdigest()

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids` without special tokens and without the leading dummy space.

        Ids that are no token, such as label padding or the spare rows of an embedding matrix, are dropped.
        """
        kept = [token_id for token_id in map(int, ids) if token_id >= 0 and token_id not in self._skipped]
        return self._full.decode(kept, skip_special_tokens=False)

    def token_to_id(self, token: str) -> int | None:
        """Id of one exact token such as "<image>" or "▁yes"; None if there is none."""
        return self._full.token_to_id(token)

    def to_json(self, added_tokens: Mapping[str, int] | None = None) -> str:
        """The content of a tokenizer.json that transformers loads.

        Args:
            added_tokens: Special tokens to append, such as {"<image>": 32000}; the ids must follow on from
                `vocab_size` without a gap.

        Raises:
            InputError: An id of `added_tokens` does not follow on, or its token has another id already.
        """
        content = _with_added_tokens(self._content, added_tokens or {}, self._source)
        _build(content, self._source)
        return json.dumps(content, ensure_ascii=False, indent=1)

    def _required_id(self, name: str, settings: Mapping[str, dict[str, Any]]) -> int:
        token_id = _special_id(name, settings, self._full.get_vocab())
        if token_id is None:
            raise InputError(f"{self._source}: no {name} token is declared; add {name}_token to tokenizer_config.json")
        return token_id

    def _prefixes_after_special(self) -> bool:
        """Asks the whole tokenizer: is there a "▁" before the text that follows EOS?"""
        eos = self._full.id_to_token(self.eos_id)
        tokens = self._full.encode(f"a{eos}b", add_special_tokens=False).tokens
        return eos in tokens[:-1] and tokens[tokens.index(eos) + 1].startswith(_METASPACE)


def _read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}); download or copy the file again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(content).__name__}; copy the file again")
    return content


def _build(content: dict[str, Any], source: str) -> tokenizers.Tokenizer:
    """The Rust tokenizer of a tokenizer.json, every added token checked to have the id it declares."""
    try:
        built = tokenizers.Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # The library raises bare Exception for whatever it cannot parse.
        raise InputError(f"{source}: not a usable tokenizer ({error}); download or copy the file again") from error
    for entry in content["added_tokens"]:
        token, declared = entry["content"], entry["id"]
        if built.token_to_id(token) != declared:
            raise InputError(
                f"{source}: added token {token!r} is declared with id {declared} but gets "
                f"{built.token_to_id(token)}; ids of added tokens must follow the vocabulary without a gap"
            )
    return built


def _with_added_tokens(content: dict[str, Any], tokens: Mapping[str, int], source: str) -> dict[str, Any]:
    """`content` with the special tokens that it lacks, and without padding and truncation."""
    entries = list(content.get("added_tokens") or [])
    known = {entry.get("content"): entry.get("id") for entry in entries}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    for token, token_id in sorted(tokens.items(), key=lambda item: item[1]):
        if token not in known:
            entries.append({"id": token_id, "content": token, **flags})
        elif known[token] != token_id:
            raise InputError(
                f"{source}: added token {token!r} cannot get id {token_id}, it has {known[token]}; "
                "use the tokenizer files of one checkpoint"
            )
    return {**content, "added_tokens": entries, "padding": None, "truncation": None}


def _text_only(content: dict[str, Any], prefix: bool) -> dict[str, Any]:
    """`content` such that no special token comes out of text, with or without the dummy "▁" in front."""
    model = content["model"]
    special = {entry["content"] for entry in content["added_tokens"]}
    # Some converters leave merges that spell a special token, which would read it out of text after all.
    merges = [pair for pair in model["merges"] if _merged(pair) not in special]
    changed = {**content, "model": {**model, "merges": merges}, "added_tokens": [], "post_processor": None}
    if not prefix:
        for part in ("normalizer", "pre_tokenizer"):
            changed[part] = _without_prefix(content.get(part))
    return changed


def _keeps_length(content: dict[str, Any]) -> bool:
    """Whether nothing happens to a text before BPE but "▁" for each space and one more in front."""

    def steps(part: dict[str, Any] | None) -> list[dict[str, Any]]:
        inner = None if part is None else part.get("normalizers", part.get("pretokenizers", [part]))
        return [] if inner is None else inner

    space = {"type": "Replace", "pattern": {"String": " "}, "content": _METASPACE}
    is_plain = all(
        step in (space, {"type": "Prepend", "prepend": _METASPACE}) for step in steps(content.get("normalizer"))
    )
    splits = [step["type"] for step in steps(content.get("pre_tokenizer"))]
    only_one = splits == [] if steps(content.get("normalizer")) else splits == ["Metaspace"]
    return is_plain and only_one and _METASPACE in content["model"]["vocab"]


def _merged(pair: str | list[str]) -> str:
    """The piece that a merge makes; files before tokenizers 0.20 write the pair as "left right"."""
    return pair.replace(" ", "") if isinstance(pair, str) else "".join(pair)


def _without_prefix(part: dict[str, Any] | None) -> dict[str, Any] | None:
    """A normalizer or pre-tokenizer of tokenizer.json that puts nothing in front of the text."""
    if part is None or part["type"] == "Prepend":
        return None
    changed = dict(part)
    for steps in ("normalizers", "pretokenizers"):
        if steps in part:
            changed[steps] = [kept for step in part[steps] if (kept := _without_prefix(step)) is not None]
    if part["type"] == "Metaspace":
        changed["prepend_scheme"] = "never"
    return changed


def _special_id(name: str, settings: Mapping[str, dict[str, Any]], vocabulary: Mapping[str, int]) -> int | None:
    """Id of the "bos", "eos", "unk" or "pad" token: as the first file that names it says, else LLaMA's."""
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        token = settings[file].get(f"{name}_token")
        content = token.get("content") if isinstance(token, dict) else token
        if isinstance(content, str) and content in vocabulary:
            return vocabulary[content]
    config = settings["config.json"]
    for values in (settings["generation_config.json"], config, config.get("text_config") or {}):
        token_id = values.get(f"{name}_token_id")
        if isinstance(token_id, list) and token_id:
            token_id = token_id[0]
        # The first LLaMA conversions wrote -1 for "no padding".
        if isinstance(token_id, int) and token_id >= 0:
            return token_id
    return vocabulary.get(_LLAMA_NAMES.get(name, ""))
