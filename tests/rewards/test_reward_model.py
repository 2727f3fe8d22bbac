"""One pass over all sentences against one conversation a sentence: ours, and transformers'.

As a program, `python -m tests.rewards.test_reward_model JOB`, it judges on several devices for the tests here.
"""

import dataclasses
import json
import sys
from itertools import chain
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from PIL import Image

from tests.pixels import normalize
from tests.stages.sft_world import finish, spawn_python
from tests.tiny_llava import Tiny, build_model, write_processor
from vigor_jax.data.images.preprocessing import load_image, preprocess
from vigor_jax.data.text.box_text import write_boxes
from vigor_jax.errors import InputError
from vigor_jax.hf.load import load_model, open_checkpoint
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.parallel.sharding import make_mesh
from vigor_jax.records import ScoreItem, Span
from vigor_jax.rewards import reward_model
from vigor_jax.rewards.reward_model import RewardModel
from vigor_jax.rewards.reward_model_config import RewardModelConfig
from vigor_jax.rewards.sentences import split_sentences
from vigor_jax.rewards.stream import credit_of

CONFIG = RewardModelConfig(batch_size=2, max_length=640, bucket=64, answer_tokens=6)
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. USER: "
)
QUESTION = (
    "Assess the accuracy of the last sentence in the following description of this image, and return a single number."
)
WHOLE = "Assess the accuracy of the following description of this image, and return a single number."
CLOSE = 1e-5
# Each text by its sentences, with the white space before them.
TEXTS = [
    [["A man is riding a wave.", " Two dogs sit on the grass.", " A car is parked."], ["One red circle"]],
    [[], ["A blue square.", "\nThe traffic light is red."], ["Café 猫 🚲 on the table.", "  No, there is not."]],
    [[], []],
    [["Yes."], ["The glass is on the table.", " The fork is red!"], ["A dog."], ["A bench.", " A cat."], ["A bus."]],
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A random model that likes digits, names of errors and the end of an answer, so that answers differ in length."""
    directory = tmp_path_factory.mktemp("model")
    write_processor(directory, Tiny())
    model = build_model(Tiny(), seed=5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    liked = [tokenizer.eos_token_id, *tokenizer.convert_tokens_to_ids(["1", "0", "▁object", "▁attribute"])]
    with torch.no_grad():
        for token_id in liked:
            model.lm_head.weight[token_id] *= 3
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def source(checkpoint):
    return open_checkpoint(checkpoint)


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    return make_items(tmp_path_factory.mktemp("images"))


def make_items(folder: Path) -> list[ScoreItem]:
    rng = np.random.default_rng(0)
    items = []
    for index, texts in enumerate(TEXTS):
        path = folder / f"{index}.png"
        Image.fromarray(rng.integers(0, 256, (*rng.integers(20, 60, 2), 3), np.uint8)).save(path)
        items.append(ScoreItem(path.name, path, "Describe.", tuple("".join(sentences) for sentences in texts)))
    return items


def make_judge(source, config=CONFIG, sizes=(1, 1, 1), *, scan=False) -> RewardModel:
    mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: int(np.prod(sizes))])
    model = load_model(source, mesh=mesh, dtype=jnp.float32, scan=scan)
    return RewardModel(model, source.tokenizer, source.preprocessing, config, mesh, weights_digest="tiny")


@pytest.fixture(scope="module")
def judge(source):
    return make_judge(source)


@pytest.fixture(scope="module")
def verdicts(judge, items):
    return list(judge.judge(items))


def test_nothing_goes_to_the_device_unasked(judge, items, verdicts):
    with jax.transfer_guard("disallow"):
        assert list(judge.judge(items)) == verdicts


def test_boxes_are_not_judged(judge, items, verdicts):
    """A caption with boxes is judged as the one without them, and the signals point into it."""
    box = (0.25, 0.3, 0.58, 1.0)
    boxed, whole = [], []
    for item in items:
        ends = [[span.end for span in split_sentences(text)] for text in item.texts]
        places = [[(Span(end, end), box) for end in own if end > 3] for own in ends]
        texts = tuple(write_boxes(text, own) for text, own in zip(item.texts, places, strict=True))
        boxed.append(item._replace(texts=texts))
        whole += texts
    assert sum(map(str.count, whole, ["["] * len(whole))) > 8
    found = list(judge.judge(boxed))
    assert [s.label for s in signals(found)] == [s.label for s in signals(verdicts)]
    assert [s.score for s in signals(found)] == [s.score for s in signals(verdicts)]
    for item, own in zip(boxed, found, strict=True):
        spans = [[span for signal in verdict.signals for span in signal.spans] for verdict in own]
        assert spans == [split_sentences(text) for text in item.texts]


def prompt_ids(source, sentences: list[str], question: str = QUESTION) -> list[int]:
    """The conversation up to the answer, written out."""
    encode = source.tokenizer.encode
    ids = [source.tokenizer.bos_id, *encode(SYSTEM), *[source.config.image_token_id] * source.config.num_image_tokens]
    ids += encode("\n" + question)
    for index, sentence in enumerate(sentences):
        ids += encode(sentence if index else "\n" + sentence, prefix=False)
    good, bad = (encode(f" {digit}", prefix=False) for digit in "10")
    assert good[:-1] == bad[:-1]
    return [*ids, *encode(" ASSISTANT:", prefix=False), *good[:-1]]


def questions(whole: bool = False):
    """(item, candidate, sentences up to the one in question) in the order of the signals."""
    for item, texts in enumerate(TEXTS):
        for candidate, sentences in enumerate(texts):
            for count in range(len(sentences) if whole and sentences else 1, len(sentences) + 1):
                yield item, candidate, sentences[:count]


def signals(verdicts) -> list:
    return [signal for verdict in chain(*verdicts) for signal in verdict.signals]


def greedy(forward, source, ids: list[int], num_tokens: int) -> tuple[float, str]:
    """p(good) and the answer, a whole forward pass for every token. `forward` gives the scores of the next one."""
    tokenizer = source.tokenizer
    good, bad = (tokenizer.encode(f" {digit}", prefix=False)[-1] for digit in "10")
    forbidden = [source.config.image_token_id, tokenizer.pad_id, *range(tokenizer.vocab_size, 576)]
    scores = forward(ids).astype(np.float64)
    p_good = np.exp(scores[good]) / (np.exp(scores[good]) + np.exp(scores[bad]))
    taken: list[int] = []
    while len(taken) < num_tokens and tokenizer.eos_id not in taken:
        scores = forward(ids + taken)
        scores[forbidden] = -np.inf
        taken.append(int(scores.argmax()))
    return p_good, tokenizer.decode(taken).strip()


@pytest.fixture(scope="module")
def transformers_forward(checkpoint, source, items):
    torch.set_num_threads(1)
    model = transformers.LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()

    def make(item: int):
        pixels = preprocess(load_image(items[item].path), source.preprocessing)
        pixel_values = torch.tensor(normalize(pixels, source.preprocessing).transpose(2, 0, 1)[None])

        @torch.inference_mode()
        def forward(ids):
            return model(input_ids=torch.tensor([ids]), pixel_values=pixel_values).logits[0, -1].numpy().copy()

        return forward

    return make


def assert_one_by_one(found, source, forward, whole=False):
    asked = list(questions(whole))
    assert len(found) == len(asked)
    for signal, (item, _, sentences) in zip(found, asked, strict=True):
        ids = prompt_ids(source, sentences, WHOLE if whole else QUESTION)
        p_good, label = greedy(forward(item), source, ids, CONFIG.answer_tokens)
        assert abs(signal.score - p_good) <= CLOSE
        assert signal.label == label
        assert signal.positive == signal.score
        assert abs(signal.negative - (1 - p_good)) <= CLOSE


def test_equals_transformers_one_by_one(verdicts, source, transformers_forward):
    assert_one_by_one(signals(verdicts), source, transformers_forward)


def test_equals_our_plain_forward(verdicts, source, items):
    """The model's usual causal path, no tree in sight."""
    model = load_model(source, mesh=make_mesh(MeshConfig(), jax.devices()[:1]), dtype=jnp.float32, scan=False)
    graphdef, weights = nnx.split(model)

    @jax.jit
    def scores(weights, token_ids, pixels, last):
        model = nnx.merge(graphdef, weights)
        return model.language_model.logits(model(token_ids, pixels)[0, last])

    def make(item: int):
        pixels = preprocess(load_image(items[item].path), source.preprocessing)[None, None]

        def forward(ids):
            padded = np.zeros((1, 256), np.int32)
            padded[0, : len(ids)] = ids
            return np.array(scores(weights, padded, pixels, len(ids) - 1))

        return forward

    assert_one_by_one(signals(verdicts), source, make)


def test_answers_differ(verdicts):
    """Or the tests above would see little."""
    found = signals(verdicts)
    assert len({signal.label for signal in found}) >= 5
    assert len({len(signal.label) for signal in found}) >= 3
    assert np.ptp([signal.score for signal in found]) > 0.5


def test_signals_stand_in_their_sentences(verdicts, items):
    for group, item, texts in zip(verdicts, items, TEXTS, strict=True):
        assert [verdict.candidate for verdict in group] == list(range(len(texts)))
        for verdict, text, sentences in zip(group, item.texts, texts, strict=True):
            assert (verdict.image, verdict.stream) == (item.image, "reward_model")
            spans = [signal.spans for signal in verdict.signals]
            assert [text[start:end] for ((start, end),) in spans] == [sentence.strip() for sentence in sentences]


def assert_same(found, expected):
    assert [len(group) for group in found] == [len(group) for group in expected]
    for one, other in zip(chain(*found), chain(*expected), strict=True):
        assert dataclasses.replace(one, signals=()) == dataclasses.replace(other, signals=())
        assert [signal.label for signal in one.signals] == [signal.label for signal in other.signals]
        assert [signal.spans for signal in one.signals] == [signal.spans for signal in other.signals]
        np.testing.assert_allclose(
            [signal.score for signal in one.signals], [signal.score for signal in other.signals], atol=CLOSE
        )


@pytest.mark.parametrize("change", [{"batch_size": 1}, {"batch_size": 3, "bucket": 7}, {"max_length": 145}])
def test_batches_and_splits_change_nothing(source, items, verdicts, change, monkeypatch):
    read = []
    monkeypatch.setattr(reward_model, "load_image", lambda path: read.append(path.name) or load_image(path))
    assert_same(list(make_judge(source, dataclasses.replace(CONFIG, **change)).judge(items)), verdicts)
    assert "2.png" not in read  # nobody says anything of it
    rows = len(read)
    assert rows > 4 if "max_length" in change else rows == 3


def test_stacked_layers_judge_alike(source, items, verdicts):
    """As on a TPU."""
    assert_same(list(make_judge(source, scan=True).judge(items)), verdicts)


def test_candidates_do_not_see_each_other(judge, items, verdicts):
    alone = [
        [dataclasses.replace(verdict, candidate=index)]
        for item in items
        for index, text in enumerate(item.texts)
        for (verdict,) in judge.judge([item._replace(texts=(text,))])
    ]
    assert_same([[*chain(*alone)]], [[*chain(*verdicts)]])


def test_holistic(source, items, transformers_forward):
    other = make_judge(source, dataclasses.replace(CONFIG, per="description"))
    assert credit_of(other) == "response"
    found = list(other.judge(items))
    assert_one_by_one(signals(found), source, transformers_forward, whole=True)
    spans = [signal.spans for signal in signals(found)]
    texts = [text for item in items for text in item.texts if text]
    assert spans == [(Span(0, len(text)),) for text in texts]


def test_decoded_badness(source, items, verdicts):
    decoded = signals(make_judge(source, dataclasses.replace(CONFIG, badness="decoded")).judge(items))
    for signal, other in zip(decoded, signals(verdicts), strict=True):
        assert (signal.label, signal.positive) == (other.label, float(other.label.startswith("1")))
        assert signal.negative == 1 - signal.positive
        assert abs(signal.score - other.score) <= CLOSE
    assert {signal.positive for signal in decoded} == {0.0, 1.0}


def test_compiles_once_for_equal_shapes(source, items):
    judge = make_judge(source)
    for _ in judge.judge([items[0]] * 9):
        pass
    assert judge.compilations == 1


def test_reads_ahead_and_no_further(judge, items):
    asked = []

    def stream():
        for index in range(20):
            asked.append(index)
            yield items[0]

    results = judge.judge(stream())
    next(results)
    assert len(asked) <= 3 * CONFIG.batch_size


def test_digest(source, judge):
    def digest(**change):
        return make_judge(source, dataclasses.replace(CONFIG, **change)).digest

    assert digest(batch_size=4, max_length=512, bucket=32) == judge.digest
    others = [{"badness": "decoded"}, {"per": "description"}, {"question": "True?"}, {"answer_tokens": 7}]
    assert len({judge.digest, *(digest(**change) for change in others)}) == 1 + len(others)


def test_template_with_stop_words(source, items):
    (found, *_) = make_judge(source, dataclasses.replace(CONFIG, template="v0")).judge(items[:1])
    assert all("###" not in signal.label for verdict in found for signal in verdict.signals)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"template": "v7"}, "template: expected one of .*'v7'"),
        ({"template": "plain"}, "template: the caption-only format asks no questions"),
    ],
)
def test_bad_settings(source, change, message):
    with pytest.raises(InputError, match=message):
        make_judge(source, dataclasses.replace(CONFIG, **change))


def test_too_long_a_text_is_named(source, items):
    judge = make_judge(source, dataclasses.replace(CONFIG, max_length=150))
    long = items[0]._replace(texts=("Fine.", "Too long. " * 20))
    with pytest.raises(InputError, match=r"0\.png: candidate 1 needs \d+ tokens .* max_length \(150\)"):
        list(judge.judge([long]))
    judge = make_judge(source, dataclasses.replace(CONFIG, max_length=5000))
    long = items[0]._replace(texts=("Fine.", "Too long. " * 200))
    with pytest.raises(InputError, match=r"0\.png: candidate 1 needs \d+ tokens .* 506 positions"):
        list(judge.judge([long]))


def test_unreadable_image_is_named(judge, items):
    missing = items[0]._replace(path=items[0].path.with_name("no.png"))
    with pytest.raises(InputError, match=r"0\.png: .*no\.png: no such image"):
        list(judge.judge([missing]))


@pytest.mark.slow
def test_same_on_eight_devices(checkpoint, items, verdicts, tmp_path):
    job = {"model": str(checkpoint), "images": str(tmp_path), "out": str(tmp_path / "out.json")}
    job["meshes"] = [(2, 2, 2), (1, 8, 1), (8, 1, 1), (1, 2, 4)]
    finish(
        spawn_python(["-m", "tests.rewards.test_reward_model", json.dumps(job)], devices=8, cache=tmp_path / "cache")
    )
    expected = [[signal.label, signal.score] for signal in signals(verdicts)]
    for found in json.loads((tmp_path / "out.json").read_text()):
        assert [label for label, _ in found] == [label for label, _ in expected]
        np.testing.assert_allclose([p for _, p in found], [p for _, p in expected], atol=CLOSE)


def main() -> None:
    job = json.loads(sys.argv[1])
    source, items = open_checkpoint(Path(job["model"])), make_items(Path(job["images"]))
    config = dataclasses.replace(CONFIG, batch_size=8)
    found = [signals(make_judge(source, config, sizes).judge(items)) for sizes in job["meshes"]]
    results = [[(signal.label, signal.score) for signal in run] for run in found]
    Path(job["out"]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
