"""The plugin as lmms-eval drives it: with lmms-eval's classes where it is installed, else with stand-ins for three."""

import dataclasses
import importlib
import importlib.util
import sys
import types

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from tests.tiny_llava import Tiny, build_checkpoint
from vigor_jax.errors import InputError

HAS_LMMS_EVAL = importlib.util.find_spec("lmms_eval") is not None
WORDS = ("What is this?", "Describe the picture in a few words.", "Is there a dog?", "No picture here.")


def stand_ins():
    """`lmms`, `Instance` and `ModelManifest` as far as a model sees them in lmms-eval 0.7.3."""

    class Lmms:
        def __init__(self):
            self.task_dict = {}

        @classmethod
        def create_from_arg_string(cls, text, additional=None):
            pairs = (pair.split("=", 1) for pair in text.split(","))
            given = {key: int(value) if value.isnumeric() else value for key, value in pairs}
            return cls(**given, **{key: value for key, value in (additional or {}).items() if value is not None})

    @dataclasses.dataclass(frozen=True)
    class ModelManifest:
        model_id: str
        simple_class_path: str | None = None

    @dataclasses.dataclass
    class Instance:
        request_type: str
        arguments: tuple
        idx: int
        metadata: dict

        @property
        def args(self):
            return self.arguments

    names = {
        "lmms_eval.api.model": {"lmms": Lmms},
        "lmms_eval.api.instance": {"Instance": Instance},
        "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
    }
    modules = {name: types.ModuleType(name) for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.models", *names)}
    for name, contents in names.items():
        vars(modules[name]).update(contents)
    return modules


@pytest.fixture(scope="module")
def plugin():
    with pytest.MonkeyPatch.context() as patch:
        if not HAS_LMMS_EVAL:
            for name, module in stand_ins().items():
                patch.setitem(sys.modules, name, module)
        patch.delitem(sys.modules, "vigor_jax.lmms_eval_plugin", raising=False)
        yield importlib.import_module("vigor_jax.lmms_eval_plugin")
        sys.modules.pop("vigor_jax.lmms_eval_plugin", None)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return build_checkpoint(tmp_path_factory.mktemp("lmms") / "model", Tiny())


@pytest.fixture(scope="module")
def docs():
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)) for _ in range(3)]
    return [{"image": picture, "question": words} for picture, words in zip([*pictures, None], WORDS, strict=True)]


@pytest.fixture(scope="module")
def model(plugin, checkpoint, docs):
    arguments = {"batch_size": 3, "max_batch_size": None, "device": "cpu"}
    made = plugin.VigorJax.create_from_arg_string(f"pretrained={checkpoint},max_new_tokens=12", arguments)
    made.task_dict["tiny"] = {"test": docs}
    return made


def visual(doc):
    return [] if doc["image"] is None else [doc["image"]]


def instances(plugin, arguments):
    found = []
    for number, (context, second, doc_id) in enumerate(arguments):
        metadata = {"task": "tiny", "doc_id": doc_id, "repeats": 1}
        found.append(
            plugin.Instance("generate_until", (context, second, visual, doc_id, "tiny", "test"), number, metadata)
        )
    return found


def reference(checkpoint, doc, words, answer=None, num=12):
    """What transformers answers, and with an answer given its mean loss and whether it is the greedy one."""
    llava = transformers.LlavaForConditionalGeneration.from_pretrained(checkpoint).eval()
    processor = transformers.AutoProcessor.from_pretrained(checkpoint)
    place = "" if doc["image"] is None else "<image>\n"
    system = (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions. "
    )
    prompt = f"{system}USER: {place}{words} ASSISTANT:"
    images = {} if doc["image"] is None else {"images": doc["image"]}
    inputs = processor(text=prompt, **images, return_tensors="pt")
    length = inputs["input_ids"].shape[1]
    if answer is None:
        # Ids that are no words: an image's place, padding, and what fills the embeddings up.
        tokenizer, rows = processor.tokenizer, llava.config.text_config.vocab_size
        no_words = [*range(len(tokenizer), rows), llava.config.image_token_id, tokenizer.pad_token_id]
        settings = {"max_new_tokens": num, "do_sample": False, "suppress_tokens": sorted({*no_words} - {None})}
        with torch.no_grad():
            found = llava.generate(**inputs, **settings)[0, length:]
        return processor.tokenizer.decode(found, skip_special_tokens=True).strip()
    inputs = processor(text=f"{prompt} {answer}</s>", **images, return_tensors="pt")
    ids = inputs["input_ids"][0]
    with torch.no_grad():
        logits = llava(**inputs).logits[0, length - 1 : -1].double()
    targets = ids[length:]
    loss = torch.nn.functional.cross_entropy(logits, targets)
    return float(loss), bool((logits.argmax(-1) == targets).all())


@pytest.mark.slow
@pytest.mark.main
def test_answers_are_those_of_transformers(plugin, model, checkpoint, docs):
    kwargs = {
        "max_new_tokens": 12,
        "temperature": 0,
        "top_p": None,
        "num_beams": 1,
        "do_sample": False,
        "until": ["\n\n"],
    }
    asked = [(words, dict(kwargs), doc_id) for doc_id, words in enumerate(WORDS)]
    requests = instances(plugin, [asked[i] for i in (2, 0, 3, 1)])
    expected = [reference(checkpoint, docs[i], WORDS[i]) for i in (2, 0, 3, 1)]
    assert model.generate_until(requests) == expected
    assert len(set(expected)) > 1
    assert all(request.args[1] == kwargs for request in requests)  # lmms-eval logs them afterwards


@pytest.mark.slow
@pytest.mark.main
def test_each_request_has_its_own_settings(plugin, model):
    sampled = {"temperature": 1.5, "top_p": 0.9, "max_new_tokens": 2}
    settings = [{"max_new_tokens": 12}, sampled, {}, sampled]
    long, short, default, same = model.generate_until(instances(plugin, [(WORDS[0], kwargs, 0) for kwargs in settings]))
    assert long == default  # the model's own `max_new_tokens` is 12 here
    assert short == same
    assert len(short) < len(long)


@pytest.mark.parametrize("doc_id", [0, 3])
def test_likelihoods_are_those_of_transformers(plugin, model, checkpoint, docs, doc_id):
    answers = ["a dog", "yes"]
    requests = instances(plugin, [(WORDS[doc_id], answers[0], doc_id), (WORDS[doc_id], lambda doc: answers[1], doc_id)])
    for (loss, is_greedy), answer in zip(model.loglikelihood(requests), answers, strict=True):
        expected = reference(checkpoint, docs[doc_id], WORDS[doc_id], answer)
        assert loss == pytest.approx(expected[0], abs=1e-4)
        assert is_greedy == expected[1]
    assert loss > 0


def test_what_it_cannot_do_is_said(plugin, model, docs, checkpoint):
    with pytest.raises(InputError, match="num_beams 1, got 5"):
        model.generate_until(instances(plugin, [(WORDS[0], {"num_beams": 5}, 0)]))
    (request,) = instances(plugin, [(WORDS[0], {}, 0)])
    for found, message in (([docs[0]["image"]] * 2, "got Image, Image"), (["film.mp4"], "got str")):
        request.arguments = (WORDS[0], {}, lambda doc, found=found: found, 0, "tiny", "test")
        with pytest.raises(InputError, match=message):
            model.generate_until([request])
    with pytest.raises(NotImplementedError, match="several rounds"):
        model.generate_until_multi_round([])
    with pytest.raises(InputError, match=r"template: expected one of .* got 'v9'"):
        plugin.VigorJax(str(checkpoint), template="v9")


def test_lmms_eval_finds_the_class(plugin):
    found = plugin.manifest()
    assert found.model_id == "vigor_jax"
    module, name = found.simple_class_path.rsplit(".", 1)
    assert getattr(importlib.import_module(module), name) is plugin.VigorJax
    assert plugin.VigorJax.is_simple
    if HAS_LMMS_EVAL:
        registry = importlib.import_module("lmms_eval.models").MODEL_REGISTRY_V2
        registry.register_manifest(found, overwrite=True)
        assert registry.get_model_class("vigor_jax") is plugin.VigorJax
