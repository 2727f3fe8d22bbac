"""Phrases as people write them, and words that the text encoder does not know."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector_bridge import detector_pb2 as pb
from detector_bridge.backends.transformers import TransformersBackend
from detector_bridge.messages import Answer, Request, UnknownWord
from detector_bridge.prompts import split_phrases
from tests.detector_bridge.sidecar import ROOT, encode, picture
from tests.detector_bridge.test_server import ask
from tests.detector_bridge.tiny_detector import WORDS


@pytest.fixture(scope="module")
def backend(model):
    return TransformersBackend.load(model)


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("dog", ("dog",)),
        ("dog, traffic light", ("dog", "traffic light")),
        ("cat . dog .", ("cat", "dog")),
        ("cat . dog", ("cat", "dog")),
        (". cat . hot dog . ", ("cat", "hot dog")),
        ("a cat. a remote control.", ("a cat", "a remote control")),
        ("cat.dog.", ("cat", "dog")),
        ("cat .dog ..", ("cat", "dog")),
        ("cat . dog, bird", ("cat", "dog", "bird")),
        ("cat; dog\nbird", ("cat", "dog", "bird")),
        ("dog? cat?", ("dog", "cat")),
        ("3.5 inch disk, no. 5", ("3.5 inch disk", "no", "5")),
        ("T-shirt , 'stop' sign", ("T-shirt", "'stop' sign")),
        # A mistake that the server names.
        ("dog, .", ("dog", ".")),
        ("dog,", ("dog", "")),
        ("", ("",)),
        (" . ", (".",)),
    ],
)
def test_splitting(text, phrases):
    assert split_phrases(text) == phrases
    assert Request(b"", text).phrases == phrases
    assert Request(b"", (text,)).phrases == (text,)  # what is a tuple already is left alone


@given(st.lists(st.sampled_from([*WORDS, "hot dog", "traffic light"]), min_size=1), st.sampled_from([",", ", ", " . "]))
def test_any_list_is_split_as_it_was_joined(phrases, between):
    assert split_phrases(between.join(phrases)) == tuple(phrases)


def command(served, image, phrases):
    arguments = [sys.executable, "-m", "detector_bridge.client", "--address", served.address, "--image", str(image)]
    return subprocess.run([*arguments, "--phrases", phrases], cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_the_command_takes_both_spellings(served, tmp_path):
    image = tmp_path / "photo.png"
    picture(0).save(image)
    with_commas, with_dots = command(served, image, "cat, hot dog"), command(served, image, "cat . hot dog .")
    assert with_commas.returncode == with_dots.returncode == 0
    assert with_commas.stdout == with_dots.stdout
    assert [line.split("  ")[0] for line in with_dots.stdout.splitlines()[2:] if line[0] != " "] == ["cat", "hot dog"]


def test_unknown_words_are_told_phrase_by_phrase(served):
    phrases = ("dog", "Zebu dog", "red 犬", "dogs", "hot-dog", "café", "emoji 🐕 dog", "zebu.dog")
    (answer,) = ask(served.address, [Request(encode(picture(0)), phrases)])
    assert isinstance(answer, Answer)
    assert [found.phrase for found in answer.detections] == list(phrases)
    zebu = UnknownWord("zebu", ("z", "##e", "##b", "##u"))
    assert [found.unknown_words for found in answer.detections] == [
        (),
        (zebu,),
        (UnknownWord("犬", ("[UNK]",)),),
        (UnknownWord("dogs", ("dog", "##s")),),
        (),
        (UnknownWord("café", ("c", "##a", "##f", "##e")),),
        (UnknownWord("emoji", ("e", "##m", "##o", "##j", "##i")), UnknownWord("🐕", ("[UNK]",))),
        (zebu,),
    ]
    assert str(zebu) == "zebu (read as z ##e ##b ##u)"
    assert [word.is_lost for found in answer.detections for word in found.unknown_words] == [
        False, True, False, False, False, True, False,
    ]  # fmt: skip


@given(st.lists(st.sampled_from([*WORDS, "-", "5"]), min_size=1, max_size=6), st.text("qxz", min_size=2, max_size=8))
def test_a_word_is_unknown_exactly_if_the_vocabulary_lacks_it(backend, words, strange):
    assert backend.unknown_words(" ".join(words)) == []
    ((word, pieces),) = backend.unknown_words(" ".join([*words, strange]))
    assert word == strange
    assert "".join(pieces).replace("##", "") == strange


def test_the_command_names_unknown_words(served, tmp_path):
    image = tmp_path / "photo.png"
    picture(0).save(image)
    done = command(served, image, "dog, zebu, red 犬")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for phrase, told in (
        ("zebu", "not in the text encoder's vocabulary: zebu (read as z ##e ##b ##u)"),
        ("red 犬", "not known to the text encoder, take another word: 犬 (read as [UNK])"),
    ):
        start = next(i for i, line in enumerate(lines) if line.startswith(phrase + " "))
        assert told == next(line for line in lines[start + 1 :] if "text encoder" in line).strip()
    assert done.stdout.count("text encoder") == 2


def test_old_clients_and_servers_understand_each_other():
    """New fields have numbers that were free; what an old side wrote is read as before."""
    numbers = {field.name: field.number for field in pb.PhraseDetections.DESCRIPTOR.fields}
    assert numbers == {"phrase": 1, "present": 2, "score": 3, "boxes": 4, "unknown_words": 5}
    assert pb.InfoReply.DESCRIPTOR.fields_by_name["formats"].number == 10
    assert [value.number for value in pb.ErrorCode.DESCRIPTOR.values] == list(range(10))
