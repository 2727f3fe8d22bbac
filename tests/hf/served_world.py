"""Checkpoints of every kind, their exports, and what we ask: for tests of what is served."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
import transformers

from tests.data.text.test_tokenizer import edit, train_sentencepiece
from tests.hf.served import picture
from tests.hf.test_round_trip import build_original
from tests.tiny_llava import Tiny, build_checkpoint
from tests.tiny_tokenizer import build_tokenizer_dir
from vigor_jax.data.images.preprocessing import preprocess
from vigor_jax.data.text.conversation import IGNORE_INDEX, TEMPLATES, Turn, encode_example, encode_prompt
from vigor_jax.hf.load import Checkpoint, load_model
from vigor_jax.inference.sampler import Request, Sampler
from vigor_jax.inference.sampling_config import SamplingConfig
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.parallel.sharding import make_mesh

TINY = Tiny()
SMALL = Tiny(image_token_id=420, vocab_size=448)  # for a vocabulary that sentencepiece trained
FLAGS = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
TEMPLATE_NAMES = ("v1", "llava_v1", "v0", "plain")

# One question a conversation; words of the tiny vocabulary, and characters that are none.
QUESTIONS = (
    "What is it?",
    "<image>",
    "Is there a dog?\n<image>",
    " the table ",
    "Compare <image> with <image>, please.",
    "<box> or a <box>?\n  Deux cafés: é",
)
ROUNDS = (
    ("What is it?", "A cat and a <box>.", "Why?", "It is there.", "And now?"),
    ("Is there a dog?", "No", "<image>\nAnd there?", "Yes, in the middle.\n", "Where is it?"),
)


def original(directory: Path, *, legacy: bool, model: bool = False, spare_rows: int = 0) -> Path:
    """A checkpoint of the original code, with a tokenizer.model or a tokenizer.json."""
    tiny = SMALL if model else TINY
    build_original(directory, tiny, tower_inside=True)
    if model:
        (directory / "tokenizer.json").unlink()
        train_sentencepiece(directory / "tokenizer.model")
    else:
        built = build_tokenizer_dir(directory.with_name(f"{directory.name}-tokenizer"), legacy=legacy)
        content = json.loads((built / "tokenizer.json").read_text())
        added = [token for token in content["added_tokens"] if token["id"] < tiny.image_token_id]
        (directory / "tokenizer.json").write_text(json.dumps(content | {"added_tokens": added}))
        shutil.rmtree(built)
    edit(directory, "tokenizer_config.json", legacy=legacy)
    # transformers before 4.49 has nothing that pads.
    edit(directory, "config.json", image_aspect_ratio="square")
    if spare_rows:
        add_rows(directory, spare_rows)
    return directory


def add_rows(directory: Path, count: int) -> None:
    """Rows of the embeddings that no token has."""
    import torch

    tensors = torch.load(directory / "pytorch_model.bin", weights_only=True)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.cat([tensors[name], torch.randn(count, tensors[name].shape[1]).half() * 0.1])
    torch.save(tensors, directory / "pytorch_model.bin")
    size = json.loads((directory / "config.json").read_text())["vocab_size"]
    edit(directory, "config.json", vocab_size=size + count)


def llava_hf(directory: Path, *, legacy: bool, model: bool = False, box: dict[str, bool] | None = None) -> Path:
    """A llava-hf checkpoint; `box` are the flags of a token that somebody added."""
    tiny = SMALL if model else TINY
    build_checkpoint(directory, tiny)
    build_tokenizer_dir(directory, legacy=legacy)
    if model:
        for name in ("tokenizer.json", "special_tokens_map.json"):
            (directory / name).unlink()
        train_sentencepiece(directory / "tokenizer.model")
        names = ("<unk>", "<s>", "</s>")
        decoder = {str(index): {"content": name, **FLAGS} for index, name in enumerate(names)}
        for index, name in enumerate(("<image>", "<pad>"), start=tiny.image_token_id):
            decoder[str(index)] = {"content": name, **FLAGS}
        edit(directory, "tokenizer_config.json", added_tokens_decoder=decoder)
    if box is not None:
        add_box(directory, box)
    return directory


def add_box(directory: Path, flags: dict[str, bool]) -> None:
    """Adds the token "<box>" after all others."""
    content = json.loads((directory / "tokenizer.json").read_text())
    token = {"content": "<box>", **FLAGS, "special": False, **flags}
    token_id = content["added_tokens"][-1]["id"] + 1
    edit(directory, "tokenizer.json", added_tokens=[*content["added_tokens"], {"id": token_id, **token}])
    decoder = json.loads((directory / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    edit(directory, "tokenizer_config.json", added_tokens_decoder={**decoder, str(token_id): token})


def saved_by_transformers(directory: Path) -> Path:
    """A llava-hf checkpoint whose processor the installed transformers saved, with its own list of tokens."""
    llava_hf(directory, legacy=False)
    processor = transformers.AutoProcessor.from_pretrained(directory)
    processor.tokenizer.add_tokens([tokenizers.AddedToken("<box>", special=False)])
    processor.tokenizer.add_special_tokens({"additional_special_tokens": ["<im_patch>"]})
    for path in directory.iterdir():
        if path.name.startswith(("tokenizer", "special", "preprocessor", "processor")):
            path.unlink()
    processor.save_pretrained(directory)
    return directory


SOURCES: dict[str, Callable[[Path], Path]] = {
    "original, tokenizer.model, legacy": lambda d: original(d, legacy=True, model=True),
    "original, tokenizer.model, not legacy": lambda d: original(d, legacy=False, model=True),
    "original, tokenizer.json, legacy": lambda d: original(d, legacy=True),
    "original, tokenizer.json, not legacy": lambda d: original(d, legacy=False),
    "original, spare rows": lambda d: original(d, legacy=False, spare_rows=5),
    "llava-hf, legacy": lambda d: llava_hf(d, legacy=True),
    "llava-hf, not legacy": lambda d: llava_hf(d, legacy=False),
    "llava-hf, tokenizer.model, legacy": lambda d: llava_hf(d, legacy=True, model=True),
    "llava-hf, tokenizer.model, not legacy": lambda d: llava_hf(d, legacy=False, model=True),
    "llava-hf, added token, legacy": lambda d: llava_hf(d, legacy=True, box={"normalized": True}),
    "llava-hf, added token, not legacy": lambda d: llava_hf(d, legacy=False, box={"rstrip": True}),
    "saved by transformers": saved_by_transformers,
}


@dataclasses.dataclass(frozen=True)
class Asked:
    """What we ask: messages, their text, and the ids that this package makes of them."""

    messages: list[dict[str, Any]]
    text: str
    ids: list[int]


def asked(checkpoint: Checkpoint, name: str, image_token_id: int) -> list[Asked]:
    """Every question alone, and conversations of several rounds, as a template writes them.

    The text is written down here, independently of the package's chat template.
    """
    template = TEMPLATES[name]
    sizes = {"image_token_id": image_token_id, "num_image_tokens": checkpoint.config.num_image_tokens}
    found = []
    for question in QUESTIONS:
        if name == "plain":
            text = "<image>" * max(question.count("<image>"), 1)
        else:
            first = question if question.count("<image>") == 2 else in_front(question)
            text = f"{template.system}{template.question_header}{first}{template.answer_header}"
        ids = encode_prompt(checkpoint.tokenizer, template, question, **sizes)
        found.append(Asked([{"role": "user", "content": content_of(question)}], text, ids))
    for texts in ROUNDS if name != "plain" else ():
        turns = [
            Turn(("human", "gpt")[i % 2], text) for i, text in enumerate([f"<image>\n{texts[0]}", *texts[1:], "x"])
        ]
        example = encode_example(checkpoint.tokenizer, template, turns, max_length=10_000, **sizes)
        answer = np.flatnonzero(np.diff((example.labels != IGNORE_INDEX).astype(int), prepend=0) == 1)[-1]
        end = template.stop or "</s>"
        text = template.system
        for i in range(0, len(turns), 2):
            text += template.question_header + turns[i].text + template.answer_header
            text += f" {turns[i + 1].text}{end}" if i < len(turns) - 2 else ""
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": texts[0]}]}]
        messages += [
            {"role": ("user", "assistant")[i % 2], "content": content if i % 2 else content_of(content, alone=False)}
            for i, content in enumerate(texts[1:], start=1)
        ]
        found.append(Asked(messages, text, example.token_ids[:answer].tolist()))
    return found


def in_front(question: str) -> str:
    """One image in front of the words."""
    return f"<image>\n{question.replace('<image>', '').strip()}".strip()


def content_of(question: str, *, alone: bool = True) -> list[dict[str, str]]:
    """A question as parts, an image first if it places none."""
    parts = [{"type": "image"}] if alone and "<image>" not in question else []
    for index, words in enumerate(question.split("<image>")):
        parts += [{"type": "image"}] * bool(index)
        parts += [{"type": "text", "text": words}] * bool(words)
    return parts


def job_of(out: Path, prompts: list[Asked], *, num_new_tokens: int = 0, never: list[int] | None = None) -> dict:
    """What `served.serve` takes."""
    return {
        "directory": str(out),
        "texts": [prompt.text for prompt in prompts],
        "conversations": [prompt.messages for prompt in prompts],
        "num_new_tokens": num_new_tokens,
        "never": never or [],
    }


def greedy(checkpoint: Checkpoint, prompts: list[Asked], num_new_tokens: int) -> list[list[int]]:
    """What our model answers to the prompts that have one picture."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    model = load_model(checkpoint, mesh=mesh, dtype=jnp.float32, scan=False)
    config = SamplingConfig(temperature=0, max_new_tokens=num_new_tokens, num_candidates=1)
    pixels = preprocess(picture(0), checkpoint.preprocessing)
    requests = [Request("0", prompt.ids, pixels, str(index)) for index, prompt in enumerate(prompts)]
    completions = Sampler(model, checkpoint.tokenizer, config, mesh, None).generate(requests)
    return [list(found[0].token_ids) for found in completions]


def with_image_id(prompts: list[Asked], before: Checkpoint, after: Checkpoint) -> list[Asked]:
    """The same prompts for a checkpoint in which images have another id."""
    ids = {before.config.image_token_id: after.config.image_token_id}
    return [dataclasses.replace(prompt, ids=[ids.get(i, i) for i in prompt.ids]) for prompt in prompts]


def never_said(checkpoint: Checkpoint) -> list[int]:
    """Ids that no answer of ours holds: images, padding, and rows that no token has."""
    spare = range(checkpoint.tokenizer.vocab_size, checkpoint.config.text.vocab_size)
    return sorted({checkpoint.config.image_token_id, checkpoint.tokenizer.pad_id, *spare})
