"""What is served is what was trained: transformers' ids and answers from an export against ours from its base."""

import json

import numpy as np
import pytest

from tests.hf.served import serve
from tests.hf.served_world import (
    SOURCES,
    TEMPLATE_NAMES,
    asked,
    greedy,
    job_of,
    llava_hf,
    never_said,
    original,
    with_image_id,
)
from vigor_jax.data.text.conversation import TEMPLATES, encode_prompt
from vigor_jax.hf.chat_template import chat_template
from vigor_jax.hf.export import export_checkpoint
from vigor_jax.hf.load import open_checkpoint

NUM_NEW_TOKENS = 8


@pytest.fixture(scope="module", params=SOURCES)
def checkpoint(request, tmp_path_factory):
    return open_checkpoint(SOURCES[request.param](tmp_path_factory.mktemp("served") / "llava-base"))


@pytest.mark.parametrize("name", TEMPLATE_NAMES)
def test_ids_of_an_export_equal_ours(checkpoint, name, tmp_path):
    export_checkpoint(checkpoint, {}, tmp_path / "out", layout="llava-hf", template=TEMPLATES[name])
    again = open_checkpoint(tmp_path / "out")
    prompts = asked(checkpoint, name, again.config.image_token_id)
    theirs = serve(job_of(tmp_path / "out", prompts))
    assert theirs["chat_texts"] == [prompt.text for prompt in prompts]
    assert theirs["chat_ids"] == [prompt.ids for prompt in prompts]
    assert theirs["text_ids"] == [prompt.ids for prompt in prompts]
    # And the export opens here as the same.
    assert [prompt.ids for prompt in asked(again, name, again.config.image_token_id)] == theirs["text_ids"]


def test_ids_of_a_base_equal_its_own_processors(checkpoint):
    if checkpoint.layout != "llava-hf":
        return
    prompts = asked(checkpoint, "v1", checkpoint.config.image_token_id)
    job = job_of(checkpoint.directory, prompts) | {"conversations": []}
    assert serve(job)["text_ids"] == [prompt.ids for prompt in prompts]


# One base of each kind; their ids, which are all that differs within a kind, are in the fast tests.
MAIN = ("original, tokenizer.model, legacy", "llava-hf, not legacy", "saved by transformers")


@pytest.mark.slow
@pytest.mark.parametrize(
    "checkpoint",
    [pytest.param(name, marks=[pytest.mark.main] if name in MAIN else []) for name in SOURCES],
    indirect=True,
)
def test_greedy_answers_equal_ours(checkpoint, tmp_path):
    export_checkpoint(checkpoint, {}, tmp_path / "out", layout="llava-hf", dtype="float32", template=TEMPLATES["v1"])
    again = open_checkpoint(tmp_path / "out")
    prompts = [p for p in asked(checkpoint, "v1", again.config.image_token_id) if p.text.count("<image>") == 1]
    job = job_of(tmp_path / "out", prompts, num_new_tokens=NUM_NEW_TOKENS, never=never_said(again))
    theirs = serve(job)
    ours = greedy(checkpoint, with_image_id(prompts, again, checkpoint), NUM_NEW_TOKENS)
    assert theirs["answers"] == ours
    assert len({tuple(answer) for answer in ours}) > 1


def test_a_chat_template_refuses_what_was_not_trained():
    import jinja2

    def refuse(message: str) -> None:
        raise ValueError(message)

    def write(name: str, messages: list[dict]) -> str:
        text = chat_template(TEMPLATES[name], eos_token="</s>")
        return jinja2.Environment().from_string(text).render(messages=messages, raise_exception=refuse)

    with pytest.raises(ValueError, match="one system prompt"):
        write("v1", [{"role": "system", "content": "Be brief."}])
    with pytest.raises(ValueError, match="give it one"):
        write("plain", [{"role": "user", "content": "What?"}])
    assert write("plain", [{"role": "user", "content": "a <image>"}, {"role": "assistant", "content": "b"}]) == (
        "<image>b\n"
    )


def test_a_trained_template_replaces_the_bases(tmp_path):
    base = llava_hf(tmp_path / "base", legacy=True)
    (base / "chat_template.jinja").write_text("old")
    (base / "chat_template.json").write_text('{"chat_template": "old"}')
    settings = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": "old"}))
    export_checkpoint(open_checkpoint(base), {}, tmp_path / "kept")
    export_checkpoint(open_checkpoint(base), {}, tmp_path / "new", template=TEMPLATES["v0"])
    written = chat_template(TEMPLATES["v0"], eos_token="</s>")
    for out, expected in (("kept", "old"), ("new", written)):
        assert (tmp_path / out / "chat_template.jinja").read_text() == expected
        for name in ("chat_template.json", "tokenizer_config.json"):
            assert json.loads((tmp_path / out / name).read_text())["chat_template"] == expected


def test_an_original_needs_one_more_token_after_an_image(tmp_path):
    """What was served differently: "▁" after the image, which a tokenizer that is not legacy leaves out."""
    checkpoint = open_checkpoint(original(tmp_path / "llava-base", legacy=False, model=True))
    space = checkpoint.tokenizer.token_to_id("▁")
    ids = encode_prompt(checkpoint.tokenizer, TEMPLATES["v1"], "What?", image_token_id=999, num_image_tokens=1)
    assert ids[ids.index(999) + 1] == space
    # A question that is the image alone: the space before "ASSISTANT" and another in front of it.
    ids = encode_prompt(checkpoint.tokenizer, TEMPLATES["v1"], "<image>", image_token_id=999, num_image_tokens=1)
    rest = ids[ids.index(999) + 1 :]
    assert rest == checkpoint.tokenizer.encode(" ASSISTANT:")
    assert len(rest) == len(checkpoint.tokenizer.encode(" ASSISTANT:", prefix=False)) + 1


@pytest.mark.parametrize("layout", ["llava", "llava-hf"])
@pytest.mark.parametrize("rows", [3, 64])
def test_spare_rows_of_an_original_survive(tmp_path, rows, layout):
    checkpoint = open_checkpoint(original(tmp_path / "llava-base", legacy=True, spare_rows=rows))
    export_checkpoint(checkpoint, {}, tmp_path / "llava-out", layout=layout)
    again = open_checkpoint(tmp_path / "llava-out")
    name = "language_model.model.embed_tokens.weight"
    before, after = checkpoint.tensors[name].read(), again.tensors[name].read()
    assert len(after) == (len(before) if layout == "llava" else -(-(509 + max(rows, 2)) // 64) * 64)
    np.testing.assert_array_equal(after[: len(before)], before)
    if layout == "llava-hf":
        assert (again.config.image_token_id, again.tokenizer.pad_id) == (509, 510)


@pytest.mark.parametrize("special", [False, True])
def test_an_added_token_and_its_row_survive_every_layout(tmp_path, special):
    base = open_checkpoint(llava_hf(tmp_path / "base", legacy=True, box={"special": special}))
    box = base.tokenizer.token_to_id("<box>")
    export_checkpoint(base, {}, tmp_path / "llava-out", layout="llava")
    there = open_checkpoint(tmp_path / "llava-out")
    export_checkpoint(there, {}, tmp_path / "back", layout="llava-hf")
    back = open_checkpoint(tmp_path / "back")
    assert there.config.text.vocab_size == there.tokenizer.vocab_size == box + 1
    assert json.loads((tmp_path / "llava-out" / "added_tokens.json").read_text())["<box>"] == box
    row = base.tensors["language_model.lm_head.weight"].read()[box]
    for checkpoint in (there, back):
        assert checkpoint.tokenizer.token_to_id("<box>") == box
        assert checkpoint.tokenizer.encode("a <box> b") == base.tokenizer.encode("a <box> b")
        assert box in checkpoint.tokenizer.encode("a <box> b")
        np.testing.assert_array_equal(checkpoint.tensors["language_model.lm_head.weight"].read()[box], row)
    assert (back.config.image_token_id, back.tokenizer.pad_id) == (base.config.image_token_id, base.tokenizer.pad_id)


@pytest.mark.parametrize(("legacy", "says"), [(True, False), (False, True)])
def test_an_original_layout_that_asks_otherwise_says_so(tmp_path, legacy, says, caplog):
    base = open_checkpoint(llava_hf(tmp_path / "base", legacy=legacy))
    export_checkpoint(base, {}, tmp_path / "llava-out", layout="llava")
    assert ("ask this model otherwise" in caplog.text) == says


def test_a_token_without_a_row_is_refused_at_opening(tmp_path):
    from vigor_jax.errors import InputError

    base = original(tmp_path / "llava-base", legacy=True)
    (base / "added_tokens.json").write_text('{"<box>": 509}')
    with pytest.raises(InputError, match=r"'<box>' has id 509, but config\.json's vocab_size is 509") as error:
        open_checkpoint(base)
    assert "\n" not in str(error.value)
    # Padding needs none: the original code pads with the unknown token.
    (base / "added_tokens.json").write_text('{"[PAD]": 509}')
    settings = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": "[PAD]"}))
    assert open_checkpoint(base).tokenizer.pad_id == 0
