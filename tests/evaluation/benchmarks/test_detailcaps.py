"""DetailCaps and CAPTURE against their definition, worked out again here, with graphs from files and from a judge."""

import itertools
import json
import random
import re

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from tests.evaluation.judge.chat_server import ChatServer, Say
from vigor_jax.errors import InputError
from vigor_jax.evaluate import main
from vigor_jax.evaluation.benchmarks import capture, detailcaps
from vigor_jax.evaluation.benchmarks.capture import Graph
from vigor_jax.evaluation.benchmarks.claim_graphs import ClaimGraphs
from vigor_jax.evaluation.judge.judge import MalformedReplyError
from vigor_jax.evaluation.nltk_data import need

WORDS = ("car", "red car", "automobile", "sky", "blue sky", "tree", "plant", "street", "road", "a", "", "cars", "wood")
SYNONYMS = [
    ("car", "automobile", "motorcar"),
    ("street", "road"),
    ("tree", "plant"),
    ("red", "scarlet"),
    ("on", "upon"),
]
VALUES = ("red", "scarlet", "blue", "wood", "tall", "")
BETWEEN = ("on", "upon", "next to", "in")


def synonyms(word):
    return frozenset(one for group in SYNONYMS if word in group for one in group)


def embedding(text):
    """Any numbers, the same for the same text; some are far apart, some are opposite."""
    vector = np.random.default_rng(sum(map(ord, text)) % 97).normal(size=6)
    return vector / np.linalg.norm(vector)


def encode(texts):
    return np.stack([embedding(text) for text in texts])


def has_nltk_data():
    try:
        need(("averaged_perceptron_tagger_eng", "wordnet"), "")
    except InputError:
        return False
    return True


NEEDS_DATA = pytest.mark.skipif(not has_nltk_data(), reason="NLTK's data are not installed")


def random_graph(rng):
    objects = rng.sample(WORDS, rng.choice([0, 1, 3, 8]))
    attributes = {
        name: tuple(rng.sample(VALUES, rng.randint(1, 3))) for name in rng.sample(WORDS, rng.choice([0, 2, 4]))
    }
    every = list(itertools.product(WORDS, BETWEEN, WORDS))
    return Graph(tuple(objects), attributes, tuple(rng.sample(every, rng.choice([0, 0, 2, 6]))))


def figures_by_definition(candidate, reference, *, by_synonyms, soft):
    """compute_f_score of the published script, by indices, in Python's own numbers."""
    eps = 1e-6

    def similar(one, other):
        if one in other or other in one:
            return True
        one, other = synonyms("_".join(one.split())), synonyms("_".join(other.split()))
        return len(one & other) / (len(one | other) + eps) > 0

    def matched(cands, refs, fits, text):
        used_cands, used_refs = set(), set()
        for rule in (lambda a, b: a == b, fits) if by_synonyms else (lambda a, b: a == b,):
            for i, j in itertools.product(range(len(cands)), range(len(refs))):
                if i not in used_cands and j not in used_refs and rule(cands[i], refs[j]):
                    used_cands.add(i)
                    used_refs.add(j)
        left = [text(one) for i, one in enumerate(cands) if i not in used_cands]
        free = [text(one) for j, one in enumerate(refs) if j not in used_refs]
        total = len(used_cands)
        if not (soft and left and free):
            return total, total
        table = [[float(embedding(one) @ embedding(other)) for other in free] for one in left]
        return total + sum(map(max, table)), total + sum(map(max, zip(*table, strict=True)))

    def all_similar(one, other):
        return all(similar(a, b) for a, b in zip(one, other, strict=True))

    flat = [[value for values in one.attributes.values() for value in values] for one in (candidate, reference)]
    found, weighed = [], 0.0
    for cands, refs, fits, text, weight in (
        (candidate.objects, reference.objects, similar, str, 0.5),
        (*flat, similar, str, 0.5),
        (candidate.relations, reference.relations, all_similar, " ".join, 0.2),
    ):
        cand_match, ref_match = matched(cands, refs, fits, text)
        precision, recall = cand_match / (len(cands) + eps), ref_match / (len(refs) + eps)
        f1 = 2 * precision * recall / (precision + recall + eps)
        found += [precision, recall, f1]
        weighed += weight * f1
    return [weighed / 1.2, *found]


@pytest.mark.parametrize("seed", range(4))
def test_figures_by_definition(seed):
    """500 captions: empty graphs, empty words, words within words, synonyms that compete, leftovers on both sides."""
    rng = random.Random(seed)
    for number in range(125):
        candidate, references = random_graph(rng), [random_graph(rng) for _ in range(rng.randint(1, 3))]
        if number % 10 == 0:
            references[0] = candidate
        by_synonyms, soft = rng.random() < 0.8, rng.random() < 0.6
        how = (synonyms if by_synonyms else None, encode if soft else None)
        wanted = np.mean(
            [figures_by_definition(candidate, one, by_synonyms=by_synonyms, soft=soft) for one in references], axis=0
        )
        np.testing.assert_allclose(capture.mean_score(candidate, references, *how), wanted, rtol=0, atol=1e-9)


def test_the_mean_is_over_images():
    rows = np.array([[*range(10), 1], [*range(2, 12), 1]], np.float64)
    found = capture.rates(rows.sum(0))
    assert list(found) == list(capture.FIGURES)
    assert [float(value) for value in found.values()] == list(range(1, 11))


REPLY = {
    "entities": [{"head": "car", "attributes": ["red"]}, {"head": "street", "attributes": []}],
    "relations": [{"subject": 0, "relation": "on", "object": 1}],
}


def test_replies():
    assert detailcaps.parse_reply(f"```json\n{json.dumps(REPLY)}\n```") == REPLY
    assert detailcaps.parse_reply('{"entities": [{"head": "car"}]}') == {
        "entities": [{"head": "car", "attributes": []}], "relations": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    "reply",
    [
        "", "a car", "[]", '{"entities": 3}', '{"entities": [{"attributes": []}]}', '{"entities": ["car"]}',
        '{"entities": [{"head": "car", "attributes": "red"}]}', '{"entities": [], "relations": [{"subject": 0}]}',
        '{"entities": [{"head": "car"}], "relations": [{"subject": 0, "relation": "on", "object": 1}]}',
        '{"entities": [{"head": "car"}], "relations": [{"subject": true, "relation": "on", "object": 0}]}',
        '{"entities": [], "relations": "on"}', "{" * 50_000 + "}",
    ],
)  # fmt: skip
def test_malformed_replies(reply):
    with pytest.raises(MalformedReplyError):
        detailcaps.parse_reply(reply)


def test_stop_words_in_both_layouts(tmp_path):
    (tmp_path / "stop_words.py").write_text("stop_words_list = [\n 'background',\n 'living space',\n]\n")
    (tmp_path / "words.txt").write_text("background\n\nliving space\n")
    for name in ("stop_words.py", "words.txt"):
        assert detailcaps.read_stop_words(tmp_path / name) == {"background", "living space"}
    (tmp_path / "bad.py").write_text("words = open('x')\n")
    with pytest.raises(InputError, match="expected a list of words, got other Python"):
        detailcaps.read_stop_words(tmp_path / "bad.py")
    for name, text in (("empty.txt", "\n"), ("other.py", "def words():\n    return ['background']\n")):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match="expected words, got none; leave --stop_words out"):
            detailcaps.read_stop_words(tmp_path / name)


def test_references_in_every_layout(tmp_path):
    rows = [{"image": f"{i}.jpg", **{name: f"{name} {i}." for name in detailcaps.COLUMNS}} for i in range(3)]
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([{**row, "binary": b"x"} for row in rows]), tmp_path / "d.parquet"
    )
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "d.json").write_text(json.dumps(rows))
    plain = {row["image"]: [row[name] for name in detailcaps.COLUMNS] for row in rows}
    (tmp_path / "plain.json").write_text(json.dumps(plain))
    for name in ("d.parquet", "d.jsonl", "d.json", "plain.json"):
        assert detailcaps.read_references(tmp_path / name)[0] == plain
    (tmp_path / "bad.parquet").write_bytes(b"no")
    with pytest.raises(InputError, match="expected DetailCaps-4870 with GT_Caption_GPT4O"):
        detailcaps.read_references(tmp_path / "bad.parquet")
    (tmp_path / "bad.jsonl").write_text(json.dumps({"image": "a", "GT_Caption_GPT4O": "x"}) + "\n")
    with pytest.raises(InputError, match="row 1: expected 'image' and texts"):
        detailcaps.read_references(tmp_path / "bad.jsonl")


NONE = {"attributes": []}


@NEEDS_DATA
def test_graphs_are_merged_and_cut_as_published():
    build = detailcaps.GraphBuilder({"background"})
    sentences = [
        {"entities": [{"head": "cars", "attributes": ["red", "made of wood"]}, {"head": "background"} | NONE],
         "relations": [{"subject": 0, "relation": "in front of", "object": 1}]},
        {"entities": [{"head": "car", "attributes": ["taller"]}, {"head": "unicorn", "attributes": ["white"]}],
         "relations": [{"subject": 1, "relation": "on", "object": 0}]},
    ]  # fmt: skip
    graph = build("Two red cars stand in front of a background.", sentences)
    assert graph == Graph(("car",), {"car": ("red", "tall")}, (("car", "in front of", "background"),))


# The command


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Three images with two references each, captions, and finished graphs of all of them."""
    references = {f"{i}.jpg": [f"A red car {i}.", f"A tree on a street {i}."] for i in range(3)}
    captions = {f"{i}.jpg": f"A car on a street {i}." for i in range(3)}
    graph = {
        "red": {"objects": ["car"], "attributes": {"car": ["red"]}, "relations": []},
        "tree": {"objects": ["tree", "street"], "relations": [["tree", "on", "street"]]},
        "said": {"objects": ["car", "street"], "relations": [["car", "on", "street"]]},
    }
    rows = [
        {"caption": text, **graph["said" if "car on" in text else "red" if "red" in text else "tree"]}
        for text in (*captions.values(), *itertools.chain(*references.values()))
    ]
    (tmp_path / "references.json").write_text(json.dumps(references))
    (tmp_path / "captions.jsonl").write_text(
        "".join(json.dumps({"image": image, "caption": text}) + "\n" for image, text in captions.items())
    )
    (tmp_path / "graphs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(detailcaps, "wordnet_synonyms", lambda: synonyms)
    if not has_nltk_data():
        monkeypatch.setattr(detailcaps.GraphBuilder, "__init__", lambda self, stop_words=(): None)
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-the-test")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path


def run(world, *more, out="out"):
    files = ["--references", world / "references.json", "--captions", world / "captions.jsonl", "--out", world / out]
    main([str(one) for one in ("detailcaps", *files, *more)])
    return json.loads((world / out / "metrics.json").read_text())


def test_graphs_of_a_file(world, capsys):
    metrics = run(world, "--graphs", world / "graphs.jsonl")
    said = Graph(("car", "street"), {}, (("car", "on", "street"),))
    others = [Graph(("car",), {"car": ("red",)}), Graph(("tree", "street"), {}, (("tree", "on", "street"),))]
    wanted = np.mean([figures_by_definition(said, one, by_synonyms=True, soft=False) for one in others], axis=0)
    assert [metrics[name] for name in capture.FIGURES] == pytest.approx(wanted.tolist(), abs=1e-9)
    assert (metrics["captions"], metrics["parser"], metrics["soft_matching"]) == (3, "file", None)
    told = metrics["protocol"]["departures"]
    assert "parser 'factual-scene-graph, without soft matching and stop words', not 'factual-scene-graph'" in told
    assert metrics["intervals"]["capture"] == pytest.approx([metrics["capture"]] * 2, abs=1e-9)
    assert "CAPTURE" in capsys.readouterr().out

    # Soft matching: all that may be asked for is written down, and what lacks is named.
    phrases = (world / "out" / "phrases.txt").read_text().splitlines()
    assert {"car", "red", "tree on street"} <= set(phrases)
    lines = [{"text": text, "embedding": (3 * embedding(text)).tolist()} for text in phrases]
    (world / "e.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    soft = run(world, "--graphs", world / "graphs.jsonl", "--embeddings", world / "e.jsonl", out="soft")
    wanted = np.mean([figures_by_definition(said, one, by_synonyms=True, soft=True) for one in others], axis=0)
    assert [soft[name] for name in capture.FIGURES] == pytest.approx(wanted.tolist(), abs=1e-9)
    assert soft["protocol"]["digest"] != metrics["protocol"]["digest"]
    (world / "e.jsonl").write_text(json.dumps(lines[0]) + "\n")
    with pytest.raises(InputError, match=r"expected an embedding of each of \d+ phrases, \d+ are missing"):
        run(world, "--graphs", world / "graphs.jsonl", "--embeddings", world / "e.jsonl")
    (world / "e.jsonl").write_text('{"text": "car", "embedding": [0, 0]}\n')
    with pytest.raises(InputError, match="expected numbers that are not all 0"):
        run(world, "--graphs", world / "graphs.jsonl", "--embeddings", world / "e.jsonl")


def test_what_is_missing_is_said_in_one_line(world, monkeypatch):
    lines = (world / "graphs.jsonl").read_text().splitlines()
    (world / "graphs.jsonl").write_text("\n".join(lines[1:]))
    with pytest.raises(InputError, match=r"expected a graph of each of 9 captions, 1 are missing.*A car on a street 0"):
        run(world, "--graphs", world / "graphs.jsonl")
    with pytest.raises(InputError, match=r"--parser judge needs a judge; give --judge\.model"):
        run(world, "--parser", "judge")
    with pytest.raises(InputError, match="--parser file needs files of graphs; give --graphs"):
        run(world, "--parser", "file")
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(InputError, match="OPENAI_API_KEY"):
        run(world, "--judge.model", "gpt", "--judge.base_url", "http://127.0.0.1:9/v1")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"objects": []}, "expected the caption under 'caption'"),
        ({"caption": "x", "objects": "car", "relations": [["a", "b"]]}, "expected objects [name]"),
        ({"caption": "x", "objects": [1]}, "expected objects [name]"),
        ({"caption": "x", "graphs": 3}, "expected a list of graphs under 'graphs'"),
        ({"caption": "x", "graphs": [{"entities": [{}]}]}, "got the entity {}"),
    ],
)
def test_bad_graphs(world, record, message):
    (world / "bad.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(InputError, match=re.escape(message)):
        run(world, "--graphs", world / "bad.jsonl")


@NEEDS_DATA
def test_a_judge_parses_captions_and_its_replies_are_kept(world):
    pytest.importorskip("openai")

    def respond(text, before):
        if "red car 1" in text:
            return Say("I see a car")
        return Say("again" if before == 0 and "red" in text else json.dumps(REPLY))

    with ChatServer(respond) as server:
        metrics = run(world, "--judge.model", "gpt", "--judge.base_url", server.url)
        asked = server.counts.total()
        assert run(world, "--judge.model", "gpt", "--judge.base_url", server.url)["capture"] == metrics["capture"]
        assert server.counts.total() == asked
    assert (metrics["parser"], metrics["captions"], len(metrics["malformed"])) == ("judge", 3, 1)
    assert any(one.startswith("parser 'judge, without") for one in metrics["protocol"]["departures"])
    with (
        ChatServer(lambda text, before: Say("no")) as server,
        pytest.raises(InputError, match="no caption has a graph"),
    ):
        run(world, "--judge.model", "gpt", "--judge.base_url", server.url, out="none")


@NEEDS_DATA
def test_our_own_claims(world):
    graph = ClaimGraphs({"shelf"})("A red car is on top of a shelf. There is no dog.")
    assert graph.objects == ("car",)
    assert graph.attributes == {"car": ("red",)}
    assert graph.relations == (("car", "on", "shelf"),)
    metrics = run(world)
    assert metrics["parser"] == "claims"
    assert metrics["object_f1"] > 0
