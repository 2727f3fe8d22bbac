"""What is long enough to be a response."""

import pytest

from vigor_jax.rewards.content import has_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 0),
        (" \n\t ", 0),
        ("...", 0),
        ("!? - —  ***", 0),
        ("Dog", 1),
        ("Dog.", 1),
        ("- Dog!", 1),
        ("X-ray", 1),
        ("It's", 1),
        ("7", 1),
        ("A dog", 2),
        ("A dog.", 2),
        ("A\xa0dog", 2),
        ("A\n\ndog", 2),
        ("कुत्ता", 1),
        ("एक कुत्ता", 2),
        ("كلب", 1),
        ("개가 있다", 2),
        ("狗", 1),
        ("一只狗", 3),
        ("一只狗。", 3),
        ("イヌ", 2),
    ],
)
def test_words(text, words):
    assert has_words(text, words)
    assert not has_words(text, words + 1)


def test_at_least_none():
    assert has_words("", 0)


def test_scripts_without_spaces_have_no_single_word():
    for sentence in ("สุนัขสีน้ำตาล", "ខ្មែរ", "犬が走っている。"):
        assert has_words(sentence, 4)
