import gc
import json
import math
import os
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigor_jax.errors import InputError
from vigor_jax.evaluation.benchmarks import caption_tokens, captions
from vigor_jax.evaluation.bootstrap import bootstrap
from vigor_jax.evaluation.image_names import ImageNames
from vigor_jax.evaluation.saved_captions import read_captions, refuse_double

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "captions" / "llava13b_coco_captions.jsonl"
REFERENCES = {
    "surf.jpg": ["A man riding a wave on top of a surfboard.", "a surfer, on a wave", "The man is on a board"],
    "dogs.jpg": ["Two dogs don't run in the man's yard.", "dogs at play"],
    "bus.jpg": ["a red bus on the street", "the bus", "the bus is red", "A bus: red (and big)"],
    "cat.jpg": ["A cat"],
}
CAPTIONS = {
    "surf.jpg": "A man on a surfboard rides a wave on top of a wave.",
    "dogs.jpg": "Two dogs run in a yard",
    "bus.jpg": "the the the bus is a red bus",
    "cat.jpg": "",
}
WORDS = st.lists(st.sampled_from(["a", "b", "c", "d", "e"]), max_size=9).map(" ".join)


@pytest.fixture
def coco():
    return pytest.importorskip("pycocoevalcap")


def grams(words, n):
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def bleu(said, wanted, order, tiny=1e-15, small=1e-9):
    """Papineni et al. 2002, over the corpus, with the reference closest in length and the shorter of two as close.

    What pycocoevalcap adds to numerators and denominators is nothing of the paper's; it shows where there is no n-gram.
    """
    matched, guessed, length, reference_length = [0] * order, [0] * order, 0, 0
    for image, text in said.items():
        words, references = text.split(), [reference.split() for reference in wanted[image]]
        length += len(words)
        reference_length += sorted((abs(len(words) - len(r)), len(r)) for r in references)[0][1]
        for n in range(1, order + 1):
            allowed = Counter()
            for reference in references:
                allowed |= grams(reference, n)
            matched[n - 1] += (grams(words, n) & allowed).total()
            guessed[n - 1] += grams(words, n).total()
    logs = sum(math.log((m + tiny) / (g + small)) for m, g in zip(matched, guessed, strict=True)) / order
    return math.exp(logs + min(0.0, 1 - (reference_length + small) / (length + tiny)))


def common(a, b):
    """Length of the longest common subsequence."""
    best = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            best[i + 1][j + 1] = best[i][j] + 1 if x == y else max(best[i][j + 1], best[i + 1][j])
    return best[-1][-1]


def rouge(text, references):
    """Lin 2004 with β = 1.2, from the best precision and the best recall."""
    words = text.split()
    if not words:
        return 0.0
    lengths = [(common(words, reference.split()), len(reference.split())) for reference in references]
    precision = max(length / len(words) for length, _ in lengths)
    recall = max(length / of for length, of in lengths)
    return (1 + 1.44) * precision * recall / (recall + 1.44 * precision) if precision and recall else 0.0


def cider(said, wanted):
    """Vedantam et al. 2015, CIDEr-D with σ = 6, as the COCO code has it: lengths are counted in pairs of words."""
    scores = []
    for image, text in said.items():
        total = 0.0
        for n in range(1, 5):
            seen = Counter()
            for references in wanted.values():
                seen.update({gram for reference in references for gram in grams(reference.split(), n)})

            def weigh(words, n=n, seen=seen):
                return {g: c * math.log(len(wanted) / max(1, seen[g])) for g, c in grams(words, n).items()}

            mine = weigh(text.split())
            for reference in wanted[image]:
                other = weigh(reference.split())
                norm = math.sqrt(sum(w * w for w in mine.values())) * math.sqrt(sum(w * w for w in other.values()))
                overlap = sum(min(w, other[g]) * other[g] for g, w in mine.items() if g in other)
                difference = grams(text.split(), 2).total() - grams(reference.split(), 2).total()
                if norm:
                    total += overlap / norm * math.exp(-(difference**2) / 72) / 4 / len(wanted[image])
        scores.append(10 * total)
    return scores


def check(metrics, said, wanted):
    for n in range(1, 5):
        assert getattr(metrics, f"bleu_{n}") == pytest.approx(bleu(said, wanted, n), rel=1e-9, abs=1e-12)
    assert metrics.rouge_l == pytest.approx(np.mean([rouge(text, wanted[i]) for i, text in said.items()]), abs=1e-9)
    assert metrics.cider == pytest.approx(np.mean(cider(said, wanted)), abs=1e-9)


def test_figures_follow_their_definitions(coco):
    metrics = captions.compute_metrics(CAPTIONS, {**REFERENCES, "more.jpg": ["not asked for"]}, java=False)
    said = {image: caption_tokens.split(text) for image, text in CAPTIONS.items()}
    wanted = {image: [caption_tokens.split(text) for text in texts] for image, texts in REFERENCES.items()}
    check(metrics, said, wanted)
    assert metrics.bleu_4 == pytest.approx(bleu(said, wanted, 4, tiny=0, small=0), abs=1e-8)
    assert metrics.bleu_4 > 0.1
    assert metrics.cider > 0.5
    assert metrics.cap == pytest.approx(100 * (metrics.bleu_4 + metrics.rouge_l + metrics.cider) / 3, abs=1e-12)
    assert (metrics.meteor, metrics.spice, metrics.cap_table) == (None, None, None)
    assert dict(metrics.left_out) == dict.fromkeys(("meteor", "spice"), "needs Java, which is missing")
    assert metrics.tokenizer == "vigor_jax"
    assert metrics.captions == 4


@given(data=st.lists(st.tuples(WORDS, st.lists(WORDS.filter(bool), min_size=1, max_size=3)), min_size=1, max_size=5))
def test_figures_follow_their_definitions_on_any_words(data):
    pytest.importorskip("pycocoevalcap")
    said = {f"{i}": text for i, (text, _) in enumerate(data)}
    wanted = {f"{i}": references for i, (_, references) in enumerate(data)}
    metrics = captions.compute_metrics(said, wanted, java=False)
    check(metrics, said, wanted)
    # Sums over images are enough for all figures.
    rates = captions.rates(np.sum(list(metrics.counts.values()), axis=0))
    for name in ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider", "cap"):
        assert rates[name] == pytest.approx(getattr(metrics, name), rel=1e-9, abs=1e-12)


def test_intervals(coco):
    metrics = captions.compute_metrics(CAPTIONS, REFERENCES, java=False)
    assert list(metrics.counts) == list(CAPTIONS)
    counts = np.array(list(metrics.counts.values()))
    assert counts.shape == (4, len(captions.COUNTS))
    limits = bootstrap(counts, captions.rates, num=200)
    for name in ("bleu_1", "bleu_4", "rouge_l", "cider", "cap"):
        assert limits[name].low <= getattr(metrics, name) <= limits[name].high
    assert limits["cider"].low < limits["cider"].high
    # The same images twice have the same figures.
    assert captions.rates(2 * counts.sum(0))["bleu_4"] == pytest.approx(metrics.bleu_4, rel=1e-6)


@pytest.mark.parametrize(
    ("printed", "figures"),
    [
        (56.6, (0.7312, 0.5641, 0.4150, 0.2976, 0.2929, 0.5559, 1.1038)),
        (54.8, (0.7149, 0.5487, 0.3734, 0.2788, 0.2835, 0.5398, 1.0969)),
        (50.4, (0.6741, 0.5047, 0.3613, 0.2519, 0.2864, 0.5329, 0.9142)),
        (57.3, (0.7360, 0.5680, 0.4197, 0.3030, 0.2954, 0.5601, 1.1305)),
        (61.2, (0.7925, 0.6259, 0.4681, 0.3407, 0.2811, 0.5774, 1.1970)),
    ],
)
def test_cap_is_that_of_the_tables_of_fisao(printed, figures):
    """Table 1's Cap out of Table 8's figures, both of LLaVA-1.5."""
    names = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor", "rouge_l", "cider")
    found = dict(zip(names, figures, strict=True))
    assert round(captions.cap_table(found), 1) == printed
    assert captions.cap(found) > printed + 5  # so it is not the mean of three that its text names


@pytest.mark.slow
def test_java_is_used_where_it_is(coco):
    if not caption_tokens.has_java():
        pytest.skip("no Java here")
    metrics = captions.compute_metrics(CAPTIONS, REFERENCES, java_metrics=("meteor",))
    assert metrics.tokenizer == "PTBTokenizer"
    assert 0 < metrics.meteor < 1
    assert metrics.spice is None
    assert dict(metrics.left_out) == {"spice": "not asked for"}
    figures = {name: getattr(metrics, name) for name in ("rouge_l", "cider", "meteor")}
    bleus = [getattr(metrics, f"bleu_{n}") for n in range(1, 5)]
    assert metrics.cap_table == pytest.approx(100 * (sum(figures.values()) + sum(bleus)) / 7, abs=1e-12)
    # These captions have nothing on which the two tokenizers differ.
    ours = captions.compute_metrics(CAPTIONS, REFERENCES, java=False)
    assert ours.cap == pytest.approx(metrics.cap, abs=1e-12)


def test_a_java_metric_that_fails_takes_nothing_along(coco, monkeypatch):
    def fail(name, said, wanted):
        raise OSError("no network")

    monkeypatch.setattr(captions, "_run_java", fail)
    monkeypatch.setattr(captions, "tokenize", lambda texts, java: caption_tokens.tokenize(texts, java=False))
    metrics = captions.compute_metrics(CAPTIONS, REFERENCES, java=True)
    assert dict(metrics.left_out) == dict.fromkeys(("meteor", "spice"), "failed: OSError: no network")
    assert metrics.cider > 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the dead program's pipe
def test_a_java_that_dies_does_not_hang(coco, tmp_path, monkeypatch):
    (tmp_path / "java").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(captions, "tokenize", lambda texts, java: caption_tokens.tokenize(texts, java=False))
    metrics = captions.compute_metrics(CAPTIONS, REFERENCES, java=True, java_metrics=("meteor",))
    assert metrics.left_out["meteor"].startswith("failed: ")
    assert metrics.meteor is None
    gc.collect()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A man, riding a wave.", "a man riding a wave"),
        ("The dogs don't run in the man's yard!", "the dogs do n't run in the man 's yard"),
        ("can't cannot they’ve I'm", "ca n't can not they 've i 'm"),
        ('A "STOP" sign; a well-known one: red...', "a stop sign a well-known one red"),
        ("dash - dash -- dash — dash", "dash dash dash dash"),
        ("at 3:25, 1,000 people (2.5 m)", "at 3:25 1,000 people -lrb- 2.5 m -rrb-"),
        ("50% & #1 $5", "50 % & # 1 $ 5"),
        ("naïve café 犬", "naïve café 犬"),
        ("", ""), (" ... ", ""), ("dogs' toys", "dogs toys"), ("‘quoted’", "quoted"),
    ],
)  # fmt: skip
def test_words(text, words):
    assert caption_tokens.split(text) == words


@given(st.text())
def test_words_are_separated_by_one_space(text):
    found = caption_tokens.split(text)
    assert found == " ".join(found.split())
    assert caption_tokens.tokenize({"i": [text, "a b"]}, java=False)["i"][1] == "a b"


def test_words_are_those_of_java(coco):
    if not caption_tokens.has_java():
        pytest.skip("no Java here")
    texts = {"a": ["ends\u2028of\u0085lines\rin it", "", "the dogs' (big) toys -- they're 5", "can't"], "b": [""]}
    if REAL.exists():
        lines = REAL.read_text().splitlines()[:300]
        texts |= {f"{i}": [json.loads(line)["text"]] for i, line in enumerate(lines)}
    java, ours = caption_tokens.tokenize(texts, java=True), caption_tokens.tokenize(texts, java=False)
    assert {image: words for image, words in java.items() if words != ours[image]} == {}


def test_java_that_loses_captions_is_told(coco, monkeypatch):
    tokenizer = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer")
    monkeypatch.setattr(tokenizer.PTBTokenizer, "tokenize", lambda self, texts: {"a": ["x"]})
    with pytest.raises(InputError, match="fewer captions than it was given"):
        caption_tokens.tokenize({"a": ["x", "y"]}, java=True)

    def fail(self, texts):
        raise FileNotFoundError("java")

    monkeypatch.setattr(tokenizer.PTBTokenizer, "tokenize", fail)
    with pytest.raises(InputError, match="cannot run PTBTokenizer"):
        caption_tokens.tokenize({"a": ["x"]}, java=True)


def test_java_that_does_not_run_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not caption_tokens.has_java()
    (tmp_path / "java").write_text("#!/bin/sh\necho no runtime here >&2\nexit 1\n")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(tmp_path / "java"))
    assert not caption_tokens.has_java()
    (tmp_path / "java").write_text("#!/bin/sh\nexit 0\n")
    assert caption_tokens.has_java()


def test_a_missing_package_is_one_line(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("pycocoevalcap")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    with pytest.raises(InputError, match=r"pip install 'vigor-jax\[captions\]'"):
        captions.compute_metrics(CAPTIONS, REFERENCES, java=False)


def test_references_in_both_layouts(tmp_path):
    path = tmp_path / "captions_val.json"
    images = [{"id": i + 1, "file_name": name} for i, name in enumerate(REFERENCES)]
    annotations = [
        {"id": 10 * i + j, "image_id": i, "caption": text}
        for i, texts in enumerate(REFERENCES.values(), 1)
        for j, text in enumerate(texts)
    ]
    for content in (REFERENCES, {"images": images, "annotations": annotations, "info": {}, "licenses": []}):
        path.write_text(json.dumps(content))
        assert captions.read_named_references(path)[0] == REFERENCES
    for content, message in (
        ([], "got no JSON object"),
        ({}, "got none"),
        ({"a": "text"}, "got no list of captions for image 'a'"),
        ({"a": []}, "got no list of captions for image 'a'"),
        ({"a": [1]}, "got no list of captions for image 'a'"),
        ({"images": images, "annotations": [{"image_id": 99, "caption": "x"}]}, "KeyError\\(99\\)"),
        ({"images": [1], "annotations": []}, "TypeError"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(InputError, match=message):
            captions.read_named_references(path)


def test_captions_are_one_an_image(tmp_path, coco):
    path, names = tmp_path / "captions.jsonl", ImageNames(REFERENCES)

    def read():
        found = read_captions([path], names, "references")
        refuse_double(found)
        return dict(found.pairs)

    lines = [json.dumps({"image": image, "text": text, "prompt": "?"}) + "\n" for image, text in CAPTIONS.items()]
    path.write_text("".join(lines))
    assert read() == CAPTIONS
    path.write_text("".join([*lines, lines[0]]))
    with pytest.raises(InputError, match=r"captions.jsonl:5: .* a second one of surf.jpg, first at .*captions.jsonl:1"):
        read()
    path.write_text("")
    with pytest.raises(InputError, match="got an empty file"):
        read()
    with pytest.raises(InputError, match=r"no reference for image 'x' \(1 lack .* references call .* 'surf.jpg'"):
        captions.compute_metrics({"x": "y"}, REFERENCES)
    with pytest.raises(InputError, match="there is no reference at all"):
        captions.compute_metrics({"x": "y"}, {})
    with pytest.raises(InputError, match="at least one caption"):
        captions.compute_metrics({}, REFERENCES)
