"""DetailCaps-4870's files, and graphs of what captions say, from a file or from a judge.

The authors parse captions with a model (flan-t5-base-VG-factual-sg). Its graphs are taken from files; or a judge says
what a caption has. Both are merged over sentences, cut to nouns that are among the caption's words, and cleared of
words that name nothing visible, as the authors' script does.
"""

import ast
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from vigor_jax.errors import InputError
from vigor_jax.evaluation.benchmarks.captions import read_named_references
from vigor_jax.evaluation.benchmarks.capture import Graph, Relation
from vigor_jax.evaluation.benchmarks.synonyms import tokens
from vigor_jax.evaluation.image_names import ImageNames
from vigor_jax.evaluation.json_records import parse_lines, parse_list, read_text, short
from vigor_jax.evaluation.judge.judge import MalformedReplyError
from vigor_jax.evaluation.nltk_data import need

PROMPT = """\
Say what this description of a picture names: its objects with their attributes, and how they relate to each other.

Description: {caption}

Reply with one JSON object and nothing else:
{"entities": [{"head": "car", "attributes": ["red"]}, {"head": "street", "attributes": []}],
 "relations": [{"subject": 0, "relation": "on", "object": 1}]}
Heads are nouns without their attributes; subject and object are places in the list of entities, from 0. List only what
the description names.
"""
PLACES = ("caption",)
# A row of the dataset: among its keys, and not among texts, is one of its columns.
_ROW = re.compile(r'\{("[^"]*": *"(?:[^"\\]|\\.)*", *)*"GT_Caption_\w+" *:')
COLUMNS = ("GT_Caption_GPT4O", "GT_Caption_GPT4V", "GT_Caption_Gemini15Pro")


def read_references(path: Path) -> tuple[dict[str, list[str]], ImageNames]:
    """Image → reference captions, from DetailCaps-4870 (Parquet, or JSON lines with its columns), or as
    `captions.read_named_references`.

    Raises:
        InputError: The file cannot be read or is none of these.
    """
    if path.suffix == ".parquet":
        return _of_rows(_parquet(path), path)
    text = read_text(path).lstrip()
    if text.startswith("["):
        return _of_rows([row for _, row in parse_list(text, path)], path)
    if _ROW.match(text):
        return _of_rows([row for _, row in parse_lines(text, path)], path)
    return read_named_references(path)


def _parquet(path: Path) -> list[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows: list[Any] = pyarrow.parquet.read_table(path, columns=["image", *COLUMNS]).to_pylist()
    except (OSError, pyarrow.ArrowInvalid, KeyError) as error:
        told = " ".join(str(error).split())[:120]
        raise InputError(
            f"{path}: expected DetailCaps-4870 with {', '.join(COLUMNS)}, cannot read it ({told}); check the path"
        ) from error
    return rows


def _of_rows(rows: Iterable[Any], path: Path) -> tuple[dict[str, list[str]], ImageNames]:
    references: dict[str, list[str]] = {}
    for number, row in enumerate(rows, 1):
        texts: list[Any] = [row.get(name) for name in COLUMNS] if isinstance(row, dict) else []
        if not texts or not isinstance(row.get("image"), str) or not all(isinstance(text, str) for text in texts):
            raise InputError(f"{path}, row {number}: expected 'image' and texts under {', '.join(COLUMNS)}")
        references[row["image"]] = texts
    if not references:
        raise InputError(f"{path}: expected DetailCaps-4870's captions, got none")
    return references, ImageNames(references)


class GraphBuilder:
    """Makes one graph of what a parser says of the sentences of a caption, as CAPTURE does.

    Args:
        stop_words: Objects that are left out, such as "background".

    Raises:
        InputError: NLTK's data for it are not installed.
    """

    def __init__(self, stop_words: Collection[str] = ()) -> None:
        need(("averaged_perceptron_tagger_eng", "wordnet"), "detailcaps")
        import nltk
        from nltk.stem import WordNetLemmatizer

        self._tag = nltk.pos_tag
        self._lemma = cache(WordNetLemmatizer().lemmatize)
        self._stop_words = frozenset(stop_words)

    def __call__(self, text: str, sentences: Sequence[Mapping[str, Any]]) -> Graph:
        """A caption's graph.

        Args:
            text: The caption, whose nouns decide which objects count.
            sentences: For each, `entities` with `head` and `attributes`, and `relations` with `subject`, `relation` and
                `object`, where subject and object are places in `entities`; as `check_graph` has looked at them.
        """
        objects: dict[str, None] = {}
        attributes: dict[str, dict[str, None]] = {}
        relations: dict[Relation, None] = {}
        for sentence in sentences:
            heads = [self._lemma(one["head"], "n") for one in sentence["entities"]]
            for head, one in zip(heads, sentence["entities"], strict=True):
                objects[head] = None
                for value in one["attributes"]:
                    if " of" not in (word := self._lemma(value, "a")):
                        attributes.setdefault(head, {})[word] = None
            for one in sentence["relations"]:
                relations[heads[one["subject"]], one["relation"], heads[one["object"]]] = None
        nouns = {self._lemma(word, "n") for word, tag in self._tag(tokens(text, lower=False)) if tag.startswith("NN")}

        def counts(name: str) -> bool:
            return name in nouns or all(part in nouns for part in name.split(" "))

        return Graph(
            tuple(name for name in objects if name not in self._stop_words and counts(name)),
            {name: tuple(values) for name, values in attributes.items() if counts(name)},
            tuple(one for one in relations if counts(one[0]) and counts(one[2])),
        )


def check_graph(content: Any, place: str) -> Mapping[str, Any]:
    """A parser's graph of a sentence, looked at.

    Raises:
        InputError: It is not as `GraphBuilder` takes it; names the place.
    """
    what = f"{place}: expected {{entities: [{{head, attributes}}], relations: [{{subject, relation, object}}]}}"
    if not isinstance(content, dict) or not isinstance(content.get("entities"), list):
        raise InputError(f"{what}, got {short(content)}")
    entities: list[Mapping[str, Any]] = []
    for one in content["entities"]:
        if not isinstance(one, dict) or not isinstance(one.get("head"), str):
            raise InputError(f"{what}, got the entity {short(one)}")
        values = one.get("attributes") or []
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise InputError(f"{what}, got the attributes {short(values)}")
        entities.append({"head": one["head"], "attributes": values})
    relations = content.get("relations") or []
    for one in relations if isinstance(relations, list) else [relations]:
        ends = [one.get("subject"), one.get("object")] if isinstance(one, dict) else [None]
        known = all(type(end) is int and 0 <= end < len(entities) for end in ends)
        if not known or not isinstance(one.get("relation"), str):
            raise InputError(f"{what}, got the relation {short(one)}")
    return {"entities": entities, "relations": relations}


def parse_reply(text: str) -> Mapping[str, Any]:
    """The graph of a judge's reply, which may stand in a code block.

    Raises:
        MalformedReplyError: It has none.
    """
    body = text[text.find("{") : text.rfind("}") + 1]
    try:
        return check_graph(json.loads(body), "reply")
    except (ValueError, RecursionError) as error:
        raise MalformedReplyError("expected a JSON object with entities and relations") from error


def read_graphs(paths: Iterable[Path], build: Callable[[str, Sequence[Mapping[str, Any]]], Graph]) -> dict[str, Graph]:
    """Caption → its graph, from files of a parser: JSON lines or a list.

    A record has the caption under `caption` or `text`, and either `graphs`, a graph for each sentence; or one as
    `entities` and `relations`; or what CAPTURE has made of them, `objects`, `attributes` and `relations`, which stays
    as it is.

    Raises:
        InputError: A file cannot be read, or a record is not as described.
    """
    graphs: dict[str, Graph] = {}
    for path in paths:
        text = read_text(path).strip()
        for place, record in parse_list(text, path) if text.startswith("[") else parse_lines(text, path):
            caption = record.get("caption", record.get("text")) if isinstance(record, dict) else None
            if not isinstance(caption, str):
                raise InputError(f"{place}: expected the caption under 'caption', got {short(record)}")
            if "objects" in record:
                graphs[caption] = _finished(record, place)
                continue
            sentences = record.get("graphs", [record])
            if not isinstance(sentences, list):
                raise InputError(f"{place}: expected a list of graphs under 'graphs', got {short(sentences)}")
            graphs[caption] = build(caption, [check_graph(one, place) for one in sentences])
    return graphs


def _finished(record: Mapping[str, Any], place: str) -> Graph:
    objects, attributes, relations = (record.get(name) or [] for name in ("objects", "attributes", "relations"))
    try:
        graph = Graph(
            tuple(dict.fromkeys(objects)),
            {name: tuple(values) for name, values in dict(attributes).items()},
            tuple(dict.fromkeys((one, how, other) for one, how, other in relations)),
        )
        texts = [*graph.objects, *graph.attributes, *(v for own in graph.attributes.values() for v in own)]
        if not all(isinstance(text, str) for text in (*texts, *(part for one in graph.relations for part in one))):
            raise TypeError("no text")
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{place}: expected objects [name], attributes {{name: [value]}}, relations [[subject, relation, object]] "
            f"({error})"
        ) from error
    return graph


def read_stop_words(path: Path) -> frozenset[str]:
    """Objects that do not count: a word a line, or the list in the authors' `stop_words.py`.

    Raises:
        InputError: The file cannot be read, or has no words.
    """
    text = read_text(path)
    if path.suffix == ".py":
        try:
            lists = [node.value for node in ast.parse(text).body if isinstance(node, ast.Assign)]
            found = frozenset(str(word) for one in lists for word in ast.literal_eval(one))
        except (SyntaxError, ValueError, TypeError) as error:
            raise InputError(f"{path}: expected a list of words, got other Python ({error})") from error
    else:
        found = frozenset(line.strip() for line in text.splitlines() if line.strip())
    if not found:
        raise InputError(f"{path}: expected words, got none; leave --stop_words out if all objects count")
    return found


def wordnet_synonyms() -> Callable[[str], frozenset[str]]:
    """A word → the lemmas of all its synsets.

    Raises:
        InputError: NLTK's WordNet is not installed.
    """
    need(("wordnet",), "detailcaps")
    from nltk.corpus import wordnet

    return cache(lambda word: frozenset(lemma.name() for synset in wordnet.synsets(word) for lemma in synset.lemmas()))
