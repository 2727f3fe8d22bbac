"""The content of a tokenizer.json: how it cuts text at added tokens, and where it puts LLaMA's dummy "▁"."""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import tokenizers

from vigor_jax.errors import InputError
from vigor_jax.json_fields import Fields, show

Json = dict[str, Any]

METASPACE = "▁"
IMAGE_TOKEN = "<image>"
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
MAX_ID = 1 << 30  # as for the sizes in config.json; more rows than any embedding has
PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def build(content: Json, source: str) -> tokenizers.Tokenizer:
    """The Rust tokenizer of a tokenizer.json, every added token checked to have the id it declares.

    Raises:
        InputError: the library cannot read it, or an id of an added token does not follow on.
    """
    try:
        built = tokenizers.Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # The library raises bare Exception for whatever it cannot parse.
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{source}: not a usable tokenizer ({reason}); download or copy the file again") from error
    for entry in content["added_tokens"]:
        token, declared = entry["content"], entry["id"]
        if built.token_to_id(token) != declared:
            raise InputError(
                f"{source}: added token {show(token)} is declared with id {declared} but gets "
                f"{built.token_to_id(token)}; ids of added tokens must follow the vocabulary without a gap"
            )
    return built


def check_parts(content: Json, source: str) -> None:
    """Checks those parts of a tokenizer.json that are used before the library has looked at all of it.

    Raises:
        InputError: it is no BPE model with merges, or one of them has another type than it must have.
    """
    fields = Fields(content, source)
    model = content.get("model")
    if not isinstance(model, dict) or "merges" not in model:
        raise InputError(f"{source}: expected a BPE model with merges; use a LLaMA-style tokenizer")
    # Of a prefix that merges do not have, the library dies.
    Fields(model, source, "model.").choice("continuing_subword_prefix", ("",), "", null=True)
    listed_tokens(content, source)
    for key, several in (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers")):
        if part := fields.object(key):
            _check_step(part, several)


def _check_step(part: Fields, several: str) -> None:
    if not isinstance(part.values.get("type"), str):
        raise InputError(f"{part.place('type')}: expected a string; copy the file from the checkpoint again")
    steps = part.values.get(several, [])
    if not isinstance(steps, list):
        raise part.wrong(several, "a list of objects")
    for step in steps:
        if not isinstance(step, dict):
            raise part.wrong(several, "a list of objects")
        _check_step(Fields(step, part.path, part.place(several).removeprefix(f"{part.path}: ") + "."), several)


def listed_tokens(content: Json, source: str) -> list[Json]:
    """The added tokens of a tokenizer.json, each seen to have an id and a text.

    Raises:
        InputError: one has not.
    """
    fields = Fields(content, source)
    entries = content.get("added_tokens") or []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise fields.wrong("added_tokens", "a list of objects")
    for number, entry in enumerate(entries):
        _check_token(Fields(entry, source, f"added_tokens.{number}."))
        Fields(entry, source, f"added_tokens.{number}.").integer("id", None, least=0, most=MAX_ID)
        if "id" not in entry:
            raise InputError(f"{source}: added_tokens.{number}.id is missing; copy the file from the checkpoint again")
    return entries


def _check_token(entry: Fields) -> str:
    """The text of an added token, whose flags are seen to be true or false."""
    token = entry.text("content", None)
    if token is None:
        raise InputError(f"{entry.place('content')} is missing; copy the file from the checkpoint again")
    for flag in FLAGS:
        entry.boolean(flag, False, null=True)
    return token


def with_added_tokens(content: Json, entries: Collection[Json], source: str) -> Json:
    """`content` with these added tokens too, and without padding and truncation.

    Args:
        content: of a tokenizer.json.
        entries: tokens as a tokenizer.json lists them. The flags of one that is there already are replaced, as
            transformers does with those of tokenizer_config.json.
        source: the path that error messages name.

    Raises:
        InputError: a token is there under another id.
    """
    found = {entry["content"]: entry for entry in listed_tokens(content, source)}
    for entry in sorted(entries, key=lambda entry: entry["id"]):
        token, before = entry["content"], found.get(entry["content"])
        if before is not None and before["id"] != entry["id"]:
            raise InputError(
                f"{source}: added token {show(token)} cannot get id {entry['id']}, it has {before['id']}; "
                "use the tokenizer files of one checkpoint"
            )
        found[token] = entry
    added = sorted(found.values(), key=lambda entry: entry["id"])
    return {**content, "added_tokens": added, "padding": None, "truncation": None}


def text_only(content: Json, controls: Collection[str]) -> Json:
    """`content` for text in which the `controls`, tokens such as "</s>", mean nothing."""
    model = content["model"]
    # Some converters leave merges that spell a special token, which would read it out of text after all.
    spelled = {entry["content"] for entry in content["added_tokens"]}
    merges = [pair for pair in model["merges"] if _merged(pair) not in spelled]
    kept = [entry for entry in content["added_tokens"] if entry["content"] not in controls]
    return {**content, "model": {**model, "merges": merges}, "added_tokens": kept, "post_processor": None}


def continuing(content: Json) -> Json:
    """`content` for text that continues other text, and so gets no dummy "▁" in front."""
    # A token that is looked for in normalized text is looked for in the form that the whole normalizer gives it.
    added = [{**entry, "content": _normalized(content, entry)} for entry in content["added_tokens"]]
    parts = {part: without_prefix(content.get(part)) for part in ("normalizer", "pre_tokenizer")}
    return {**content, **parts, "added_tokens": added}


def renumbered(content: Json) -> tuple[Json, dict[int, int]]:
    """`content` whose added tokens follow the vocabulary, though some before them may be gone, and id → true id of
    those that could not keep theirs."""
    vocabulary = content["model"]["vocab"]
    next_id, entries, true_ids = max(vocabulary.values()) + 1, [], {}
    for entry in content["added_tokens"]:
        given = vocabulary.get(entry["content"], next_id)
        next_id += given == next_id
        entries.append({**entry, "id": given})
        if given != entry["id"]:
            true_ids[given] = entry["id"]
    return {**content, "added_tokens": entries}, true_ids


def without_prefix(part: Json | None) -> Json | None:
    """A normalizer or pre-tokenizer of tokenizer.json that puts nothing in front of the text."""
    if part is None or part["type"] == "Prepend":
        return None
    changed = dict(part)
    for steps in ("normalizers", "pretokenizers"):
        if steps in part:
            changed[steps] = [kept for step in part[steps] if (kept := without_prefix(step)) is not None]
    if part["type"] == "Metaspace":
        changed["prepend_scheme"] = "never"
    return changed


def restarts_after(content: Json, token: str) -> bool:
    """Whether text right after an added token gets a dummy "▁" in front, as text at the very beginning may."""
    for entry in (_entry(content, token), {**_entry(content, token), "normalized": False}):
        tokens = _probe(content, entry, f"a{token}b")
        if token in tokens[:-1]:
            return tokens[tokens.index(token) + 1].startswith(METASPACE)
    return False


def starts_with_prefix(content: Json) -> bool:
    """Whether a text gets a dummy "▁" in front."""
    return _probe(content, _entry(content, IMAGE_TOKEN), "a")[0].startswith(METASPACE)


def restarting_after_images(content: Json, *, doubles: bool) -> Json:
    """A tokenizer.json that reads a whole prompt as the original LLaVA code does, which tokenizes the text before and
    after each image on its own: text after an image gets a dummy "▁", and text after another token does not.

    Only a tokenizer whose dummy "▁" stands at the very beginning of a text alone is changed: the others do that
    already. "▁" is put in front of every stretch between images. Tokens other than the image's must not part two
    stretches, so they are looked for in the normalized text, which is after that.

    Args:
        content: of a tokenizer.json.
        doubles: whether "▁" is also put in front of text that begins with a space, as sentencepiece does, or not, as
            a Metaspace does.
    """
    if not starts_with_prefix(content) or restarts_after(content, IMAGE_TOKEN):
        return content
    entries = [{**entry, "normalized": entry["content"] != IMAGE_TOKEN} for entry in content["added_tokens"]]
    # Before a special token no "▁" is left. Another token needs the "▁" gone from the form that is looked for alone.
    dropped = [f"[ {METASPACE}]"] if not doubles else []
    for entry in entries:
        if entry["content"] != IMAGE_TOKEN:
            whole = doubles and not entry["special"]
            dropped.append(re.escape(entry["content"]) + (r"\z" if whole else ""))
    before = content.get("normalizer")
    steps = before["normalizers"] if before and before["type"] == "Sequence" else [before] if before else []
    pattern = rf"\A{METASPACE}(?={'|'.join(dropped)})"
    steps = [
        *steps,
        {"type": "Prepend", "prepend": METASPACE},
        *([{"type": "Replace", "pattern": {"Regex": pattern}, "content": ""}] if dropped else []),
    ]
    return {
        **content,
        "added_tokens": entries,
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": without_prefix(content.get("pre_tokenizer")),
    }


def declared_tokens(settings: Mapping[str, Fields]) -> list[Json]:
    """The added tokens of tokenizer_config.json and added_tokens.json, as a tokenizer.json lists them.

    Raises:
        InputError: a value that says something about them has another type than it must have.
    """
    config, added = settings["tokenizer_config.json"], settings["added_tokens.json"]
    special = {IMAGE_TOKEN}
    for fields in (config, settings["special_tokens_map.json"]):
        special.update(_special_tokens(fields))
    found = {}
    for token in added.values:
        # What transformers takes a token for whose file says only its id.
        is_special = token in special
        found[token] = {
            "id": added.integer(token, 0, least=0, most=MAX_ID),
            "content": token,
            **PLAIN,
            "special": is_special,
            "normalized": not is_special,
        }
    decoder = config.object("added_tokens_decoder")
    for token_id in decoder.values if decoder else ():
        assert decoder is not None
        entry = decoder.object(token_id)
        if entry is None or not re.fullmatch("[0-9]{1,9}", token_id):
            raise decoder.wrong(token_id, "an id as the key and an object as its value")
        token = _check_token(entry)
        is_special = entry.boolean("special", token in special, null=True)
        flags = {flag: entry.boolean(flag, flag == "normalized" and not is_special, null=True) for flag in FLAGS}
        found[token] = {"id": int(token_id), "content": token, **flags, "special": is_special}
    return list(found.values())


def special_token(fields: Fields, key: str) -> str | None:
    """A token that a settings file names, as a text or as an object with its content; None where it names none.

    Raises:
        InputError: the value is neither.
    """
    value = fields.values.get(key)
    content = value.get("content") if isinstance(value, dict) else value
    if value is not None and not isinstance(content, str):
        raise fields.wrong(key, "a token (a string, or an object with its content) or null")
    return content


def _special_tokens(fields: Fields) -> Iterator[str]:
    """The tokens that a settings file names as special ones."""
    for key, value in fields.values.items():
        if key.endswith("_token") and isinstance(value, str | dict):  # add_bos_token is a switch
            yield special_token(fields, key) or ""
    for key, kinds in (("additional_special_tokens", list), ("extra_special_tokens", list | dict)):
        several = fields.values.get(key)
        if not isinstance(several, kinds | None):
            raise fields.wrong(key, "a list of tokens")
        for token in several.values() if isinstance(several, dict) else several or ():
            content = token.get("content") if isinstance(token, dict) else token
            if not isinstance(content, str):
                raise fields.wrong(key, "a list of tokens (strings, or objects with their content)")
            yield content


def keeps_length(content: Json) -> bool:
    """Whether nothing happens to a text before BPE but "▁" for each space and one more in front."""

    def steps(part: Json | None) -> list[Json]:
        inner = None if part is None else part.get("normalizers", part.get("pretokenizers", [part]))
        return [] if inner is None else inner

    def is_plain(step: Json) -> bool:
        space = {"type": "Replace", "pattern": {"String": " "}, "content": METASPACE}
        # Or `restarting_after_images` wrote it, and it only takes the "▁" in front away.
        pattern = step.get("pattern", {}).get("Regex", "") if step.get("content") == "" else ""
        return step in (space, {"type": "Prepend", "prepend": METASPACE}) or pattern.startswith(rf"\A{METASPACE}(?=")

    splits = [step["type"] for step in steps(content.get("pre_tokenizer"))]
    normalizes = steps(content.get("normalizer"))
    adds_twice = {"type": "Prepend", "prepend": METASPACE} in normalizes and splits != [] and not _only_splits(content)
    is_known = splits in ([], ["Metaspace"]) and (bool(normalizes) or splits == ["Metaspace"])
    return all(map(is_plain, normalizes)) and is_known and not adds_twice and METASPACE in content["model"]["vocab"]


def _only_splits(content: Json) -> bool:
    """Whether the pre-tokenizer puts nothing in front of the text."""
    return without_prefix(content.get("pre_tokenizer")) == content.get("pre_tokenizer")


def _normalized(content: Json, entry: Json) -> str:
    """The form in which an added token is looked for."""
    if not entry["normalized"] or not content.get("normalizer"):
        return entry["content"]
    return _tiny(content, []).normalizer.normalize_str(entry["content"])


def _entry(content: Json, token: str) -> Json:
    found = (entry for entry in content["added_tokens"] if entry["content"] == token)
    return next(found, {"id": 0, "content": token, **PLAIN})


def _probe(content: Json, entry: Json, text: str) -> list[str]:
    return _tiny(content, [entry]).encode(text, add_special_tokens=False).tokens


def _tiny(content: Json, entries: list[Json]) -> tokenizers.Tokenizer:
    """The same rules over a vocabulary of a few letters, which is quick to build."""
    vocabulary = {piece: index for index, piece in enumerate(("?", METASPACE, "a", "b"))}
    model = {"type": "BPE", "unk_token": "?", "vocab": vocabulary, "merges": []}
    entries = [{**entry, "id": len(vocabulary) + index} for index, entry in enumerate(entries)]
    changed = {"added_tokens": entries, "model": model, "post_processor": None, "decoder": None}
    return build({**content, **changed, "padding": None, "truncation": None}, "tokenizer")


def _merged(pair: str | list[str]) -> str:
    """The piece that a merge makes; files before tokenizers 0.20 write the pair as "left right"."""
    return pair.replace(" ", "") if isinstance(pair, str) else "".join(pair)
