"""Which phrases the log names, and how often."""

import logging

import numpy as np
import pytest

from detector_bridge.messages import Detection, UnknownWord
from tests.detector_bridge.sidecar import picture, sidecar
from tests.detector_bridge.tiny_detector import write_transformers
from vigor_jax.records import ScoreItem
from vigor_jax.rewards.detection import DetectorStream
from vigor_jax.rewards.detector_config import DetectionConfig
from vigor_jax.rewards.language.unknown_words import MOST_IN_PIECES, UnknownWords
from vigor_jax.rewards.phrases import PhrasesConfig


def detection(phrase: str, *words: UnknownWord) -> Detection:
    return Detection(phrase, False, 0.0, np.zeros((0, 4), np.float32), np.zeros(0, np.float32), words)


def test_each_phrase_once(caplog):
    lost, in_pieces = UnknownWord("犬", ("[UNK]",)), UnknownWord("zebu", ("ze", "##bu"))
    told = UnknownWords()
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            told.tell([detection("dog"), detection("red 犬", lost), detection("zebu", in_pieces)])
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        (
            "WARNING",
            "detection: 'red 犬' is judged without a word that the text encoder does not know: 犬 (read as [UNK])",
        ),
        ("INFO", "detection: 'zebu' has words that the text encoder reads in pieces: zebu (read as ze ##bu)"),
    ]


def test_words_in_pieces_do_not_fill_the_log(caplog):
    told = UnknownWords()
    with caplog.at_level(logging.INFO):
        told.tell(detection(f"x{i}", UnknownWord(f"x{i}", ("x", f"##{i}"))) for i in range(10 * MOST_IN_PIECES))
        told.tell([detection("犬", UnknownWord("犬", ("[UNK]",)))])
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == MOST_IN_PIECES + 2
    assert "further phrases" in lines[-2]
    assert "犬" in lines[-1]


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, pytest.param(2, marks=pytest.mark.main)])
def test_the_stream_tells(tmp_path, caplog, times):
    path = tmp_path / "picture.png"
    picture(0).save(path)
    entities = tmp_path / "entities.txt"
    entities.write_text("dog\nzebu\n")
    item = ScoreItem(path.name, path, "Describe it.", ("A zebu and a dog.", "The zebu sleeps."))
    with sidecar(write_transformers(tmp_path / "model")) as running, caplog.at_level(logging.INFO):
        phrases = PhrasesConfig(extractor="entities", entities=entities)
        with DetectorStream(DetectionConfig(addresses=(running.address,), phrases=phrases)) as stream:
            assert len(list(stream.judge([item] * times))) == times
    lines = [record.getMessage() for record in caplog.records if "text encoder" in record.getMessage()]
    assert lines == ["detection: 'zebu' has words that the text encoder reads in pieces: zebu (read as z ##e ##b ##u)"]
