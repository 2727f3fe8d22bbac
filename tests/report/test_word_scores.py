"""Scores of words against what is in the images: what counts as a word, and how well scores tell."""

import dataclasses
import json
import math

import numpy as np
import pytest

from tests.report.synthetic import make_rollout
from tests.rewards import clip_world
from vigor_jax.errors import InputError
from vigor_jax.records import Signal, Span, Verdict
from vigor_jax.report.word_scores import KnownObjects, ObjectFiles, word_scores
from vigor_jax.rewards.clip import ClipStream
from vigor_jax.verifier import measure

TEXT = "A dog and a cat sit by a car, far from any tree."


def signal(label, score, good=0.0, bad=0.0, places=1, **more):
    return Signal(label, tuple(Span(n, n + 1) for n in range(places)), bad, good, score, **more)


def rollouts(*responses, stream="clip"):
    rng = np.random.default_rng(0)
    return [
        make_rollout(image, 0, TEXT, (Verdict(image, 0, stream, tuple(signals)),), rng) for image, signals in responses
    ]


@pytest.fixture
def files(tmp_path):
    path = tmp_path / "objects.json"
    path.write_text(json.dumps({"1.png": ["dog", "fire hydrant"], "2.png": ["cat"], "3.png": []}))
    return ObjectFiles((path,))


def test_what_is_in_an_image(files):
    known = KnownObjects(files, ["1.png", "3.png", "9.png"])
    assert [name in known for name in ("1.png", "3.png", "9.png")] == [True, True, False]
    words = ("dog", "Dogs", "puppy", "hydrant", "cat", "kitten", "zebra", "0 object", "")
    assert [known.is_there("1.png", word) for word in words] == [True, True, True, True, False, False, *[None] * 3]
    assert known.is_there("3.png", "dog") is False


def test_a_word_of_the_users_own_list_means_its_category(files, tmp_path):
    (tmp_path / "words.txt").write_text("dog, woofer\ncat, mouser\n")
    known = KnownObjects(files._replace(entities=str(tmp_path / "words.txt")), ["1.png"])
    assert [known.is_there("1.png", word) for word in ("woofer", "mouser", "puppy")] == [True, False, None]


def test_a_list_that_is_elsewhere_is_done_without(files, caplog):
    known = KnownObjects(files._replace(entities="nowhere.txt"), ["1.png"])
    assert [known.is_there("1.png", word) for word in ("dog", "puppy")] == [True, None]
    assert "nowhere.txt" in caplog.text


def test_cocos_instances_and_chairs_table(tmp_path):
    coco, table = tmp_path / "instances.json", tmp_path / "synonyms.txt"
    content = {
        "images": [{"id": 9, "file_name": "COCO_val2014_000000000009.jpg"}],
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
        "annotations": [{"image_id": 9, "category_id": 1}],
    }
    coco.write_text(json.dumps(content))
    table.write_text("dog, hound\ncat, tabby\n")
    known = KnownObjects(ObjectFiles((coco,), table), ["train2017/000000000009.jpg"])
    assert [known.is_there("train2017/000000000009.jpg", word) for word in ("hounds", "tabby")] == [True, False]


def test_a_file_that_cannot_be_used_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"^[^\n]*none\.json[^\n]*$"):
        KnownObjects(ObjectFiles((tmp_path / "none.json",)), [])


def test_what_is_counted(files):
    rows = rollouts(
        ("1.png", [signal("dog", 0.9, good=1.0, places=2), signal("cat", 0.2, bad=0.5), signal("tree", 0.4)]),
        ("1.png", [signal("dog", 0.7, denied=True, places=3), signal("whole", 0.5, places=0)]),
        ("9.png", [signal("dog", 0.3, bad=1.0), signal("cat", math.nan)]),
    )
    found = word_scores(rows, "clip", KnownObjects(files, ["1.png", "9.png"]))
    assert found.scores.tolist() == [0.9, 0.9, 0.2, 0.4, 0.5, 0.3]
    assert found.worth.tolist() == [1, 1, -0.5, 0, 0, -1]
    assert found.is_there.tolist() == [1, 1, 0, -1, -1, -1]
    assert found.responses.tolist() == [0, 0, 0, 0, 1, 2]
    assert (found.denied, found.num_images, found.num_known, found.num_responses) == (3, 2, 1, 3)
    unknown = word_scores(rows, "clip", None)
    assert unknown.is_there.tolist() == [-1] * 6
    assert (unknown.num_known, unknown.auc(unknown.caption_scores)) == (0, None)
    assert word_scores(rows, "another", None).scores.size == 0


def whole(label, span, score, **more):
    return Signal(label, (Span(*span),), 0.0, 0.0, score, **more)


def test_a_score_of_a_caption_is_that_of_its_words(files):
    """Dog, cat, and a car, which is none of the objects."""
    caption = whole("caption", (0, len(TEXT)), 0.4)
    rows = rollouts(("1.png", [caption]), ("2.png", [dataclasses.replace(caption, score=0.7)]), ("9.png", [caption]))
    known = KnownObjects(files, ["1.png", "2.png", "9.png"])
    found = word_scores(rows, "clip", known)
    assert found.scores.tolist() == [0.4] * 3 + [0.7] * 3 + [0.4] * 3
    assert found.is_there.tolist() == [1, 0, -1, 0, 1, -1, -1, -1, -1]
    assert found.auc(found.scores[found.is_known]) == 0.5
    unknown = word_scores(rows, "clip", None)
    assert unknown.scores.tolist() == [0.4, 0.7, 0.4]  # as they are where nothing tells words apart
    elsewhere = word_scores(rows, "clip", KnownObjects(files._replace(entities="nowhere.txt"), ["1.png"]))
    assert elsewhere.scores.size == 0  # without the list nobody knows the words


def test_a_word_that_is_called_caption_is_a_word(files):
    """A detector may find one under a picture."""
    rows = rollouts(("1.png", [whole("caption", (2, 5), 0.4), whole("dog", (0, len(TEXT)), 0.3)]), stream="detector")
    found = word_scores(rows, "detector", KnownObjects(files, ["1.png"]))
    assert (found.scores.tolist(), found.is_there.tolist()) == ([0.4, 0.3], [-1, 1])


@pytest.mark.parametrize("per", ["word", "sentence", "caption"])
def test_they_are_those_of_the_command_that_measures_a_verifier(tmp_path, per):
    """The same words, scores and truth as `vigor_jax.verifier` finds in the same captions."""
    root = clip_world.make_world(tmp_path)
    items = clip_world.items(root)
    objects = {item.image: ["dog", "cat"] if number % 2 else ["bench"] for number, item in enumerate(items)}
    (root / "objects.json").write_text(json.dumps(objects))
    lines = [json.dumps({"image": item.image, "text": text}) for item in items for text in item.texts]
    (root / "captions.jsonl").write_text("\n".join(lines) + "\n")
    config = clip_world.config(root, per=per, margin=0.0)
    given = (root / "captions.jsonl",), (root / "objects.json",), str(root / "images")
    measured = measure(*given, config, clip_world.mesh())
    limits = dataclasses.replace(
        measured.baselines, hallucinated=dataclasses.replace(measured.baselines.hallucinated, mean=-2.0)
    )
    stream = ClipStream(clip_world.checkpoint(root), config, clip_world.mesh(), limits)
    rng = np.random.default_rng(0)
    rows = [
        make_rollout(item.image, verdict.candidate, item.texts[verdict.candidate], (verdict,), rng)
        for item, verdicts in zip(items, stream.judge(items), strict=True)
        for verdict in verdicts
    ]
    files = ObjectFiles((root / "objects.json",), entities=str(root / "entities.txt"))
    found = word_scores(rows, "clip", KnownObjects(files, list(objects)))
    expected = sorted(
        (number, int(not word.is_wrong), round(min(max(word.cosine, 0.0), 1.0), 6))
        for number, own in enumerate(measured.responses)
        for word in own
    )
    columns = found.responses[found.is_known], found.is_there[found.is_known], found.scores[found.is_known].round(6)
    assert sorted(zip(*(column.tolist() for column in columns), strict=True)) == expected
    assert {truth for _, truth, _ in expected} == {0, 1}
    if per == "word":
        assert int((~found.is_known).sum()) == measured.unknown


def pairs_won(correct, hallucinated):
    return np.mean([(a > b) + (a == b) / 2 for a in correct for b in hallucinated])


def test_auc_is_the_share_of_pairs_in_order(files):
    """By word, and by the mean of the known words of each response; against all pairs one by one."""
    rng = np.random.default_rng(5)
    responses = []
    for _ in range(12):
        labels = rng.choice(["dog", "cat", "tree"], int(rng.integers(0, 6)))
        responses.append(("1.png", [signal(label, round(float(rng.uniform()), 1)) for label in labels]))
    found = word_scores(rollouts(*responses), "clip", KnownObjects(files, ["1.png"]))
    by_word = {"dog": [], "cat": []}
    by_caption = {"dog": [], "cat": []}
    for _, signals in responses:
        own = [each for each in signals if each.label != "tree"]
        for each in own:
            by_word[each.label].append(each.score)
            by_caption[each.label].append(np.mean([other.score for other in own]))
    assert found.auc(found.scores[found.is_known]) == pytest.approx(pairs_won(by_word["dog"], by_word["cat"]))
    assert found.auc(found.caption_scores) == pytest.approx(pairs_won(by_caption["dog"], by_caption["cat"]))
