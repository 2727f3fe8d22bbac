"""Label Studio's exports, both kinds, as judgments; what cannot be read is refused by task and person."""

import copy
import json

import pytest

from tests.feedback.annotations import annotation, random_annotations
from vigor_jax.errors import InputError
from vigor_jax.feedback.exports import exported, read_export
from vigor_jax.feedback.form import ATTRIBUTES, KINDS, check_attributes, hotkeys, labels
from vigor_jax.feedback.tasks import Description, results_of, task_of

CAR = annotation("A red car waits. A dog sleeps.", ["attribute:color"], ["object"], detail=4, missing=("a tree",))


def json_of(number, said, who=1, **others):
    """A task as JSON has it, with one person's judgment."""
    task = task_of(Description.of(said), "x.jpg")
    own = {"id": number, "completed_by": who, "result": results_of(said), "was_cancelled": False, "lead_time": 12.5}
    own |= {"created_at": "2026-05-01T10:00:00Z"} | others
    return {"id": number, "data": task["data"], "annotations": [own], "drafts": [], "predictions": []}


def min_of(task):
    """What Label Studio makes of a task's judgments in JSON_MIN, by its own rules: what is single loses its list."""
    for own in task["annotations"]:
        row = dict(task["data"], id=task["id"], annotator=own["completed_by"], annotation_id=own["id"])
        for result in own["result"]:
            row.setdefault(result["from_name"], []).append(result["value"])
        for name, values in row.items():
            if name in ("missing", "note"):
                short = [each["text"][0] if len(each["text"]) == 1 else each for each in values]
                row[name] = short[0] if len(short) == 1 else short
        yield row | {"lead_time": own["lead_time"], "created_at": own["created_at"]}


@pytest.mark.parametrize("kind", ["JSON", "JSON_MIN"])
def test_what_people_said_comes_back(kind):
    said = random_annotations(200)
    assert any(ord(letter) > 0xFFFF for each in said for letter in each.description)
    tasks = json.loads(json.dumps([json_of(number, each) for number, each in enumerate(said)]))
    rows = tasks if kind == "JSON" else [row for task in tasks for row in min_of(task)]
    found = exported(rows, "export.json")
    assert not found.bad
    assert [each.annotation for each in found.judgments] == said
    assert {(each.annotator, each.seconds) for each in found.judgments} == {("1", 12.5)}
    assert [each.task for each in found.judgments] == [str(number) for number in range(200)]


def test_what_was_not_handed_in_is_counted():
    skipped, draft, untouched, fine = (json_of(number, each) for number, each in enumerate(random_annotations(4)))
    skipped["annotations"][0]["was_cancelled"] = True
    draft |= {"annotations": [], "drafts": [{"id": 1, "user": "a", "result": []}]}
    untouched["annotations"] = []
    found = exported([skipped, draft, untouched, fine], "x")
    assert len(found.judgments) == found.total == 1
    assert dict(found.left_out) | {} == {
        "descriptions that a person skipped": 1,
        "drafts that were not handed in": 1,
        "tasks that nobody judged": 1,
        "regions that were drawn smaller than their sentence, and taken": 0,
        "sentences with two wrong attributes, stored without their names": 0,
    }


def region(start, end, *marks):
    return {"from_name": "judgment", "value": {"start": start, "end": end, "labels": list(marks)}}


def test_regions_that_people_changed():
    """A smaller one says which sentence it is about; white space around one is nothing."""
    task = json_of(7, CAR)
    task["annotations"][0]["result"] = [
        region(2, 9, "Attribute: color", "Attribute: size"),
        region(16, 30, "Creative"),
    ]
    found = exported([task], "x")
    first, second = found.judgments[0].annotation.sentences
    assert (first.errors, first.attribute) == (("attribute",), "")
    assert (second.errors, second.creative) == ((), True)
    assert found.left_out["regions that were drawn smaller than their sentence, and taken"] == 1
    assert found.left_out["sentences with two wrong attributes, stored without their names"] == 1


REFUSED = {
    "unknown choice": ([region(0, 16, "Objct")], "sentence 1 .* unknown choice 'Objct'; the nearest .* 'Object'"),
    "two sentences": ([region(0, 30, "Object")], r"region 0 to 30 .* is over sentences 1 and 2; delete it"),
    "between": ([region(16, 17, "Object")], "over no sentence"),
    "outside": ([region(20, 31, "Object")], "region 20 to 31, which is outside of the 30 letters"),
    "no judgment": ([region(0, 16, "Object"), region(17, 30)], "sentence 2 .'A dog sleeps.'. has no judgment"),
    "deleted": ([region(0, 16, "Object")], "sentence 2 .* has no judgment"),
    "contradiction": ([region(0, 16, "Object", "No error")], "sentence 1 .* both 'No error' and 'Object'"),
    "two regions": ([region(0, 16, "No error"), region(0, 9, "Object")], "both 'No error' and 'Object'"),
    "no numbers": ([region(None, 3, "Object")], "expected a region with start and end"),
    "no labels": ([{"from_name": "judgment", "value": 3}], "expected a region with labels, got 3"),
    "another form": ([{"from_name": "brush", "value": {}}], "has results of brush, which the form lacks"),
    "detail": ([region(0, 16, "Object"), region(17, 30, "Object"), {"from_name": "detail", "value": {"rating": 9}}],
               "level of detail from 1 to 5, got 9"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_results_are_refused(case):
    results, reason = REFUSED[case]
    task = json_of(7, CAR, who=3)
    task["annotations"][0]["result"] = results
    found = exported([task, json_of(8, random_annotations(1)[0])], "export.json")
    assert len(found.judgments) == 1
    (bad,) = found.bad
    assert bad.message.startswith("export.json, task 7, annotator 3: ")
    assert "\n" not in bad.message
    with pytest.raises(InputError, match=reason):
        raise InputError(bad.message)


def test_shifted_offsets_are_refused():
    task = json_of(7, annotation("A 😀 car. A dog.", [], []))
    for result in task["annotations"][0]["result"]:
        result["value"]["start"] += 1
    (bad,) = exported([task], "x").bad
    assert "region 1 to 8 is '" in bad.reason
    assert "but the export says 'A 😀 car.'" in bad.reason


@pytest.mark.parametrize("key", ["description", "image_name", "sentences", "key"])
def test_a_changed_task_is_refused(key):
    task = json_of(7, CAR)
    task["data"][key] = {"sentences": [[0, 16], [17, 29]]}.get(
        key, task["data"][key] + "!" if key != "sentences" else 0
    )
    (bad,) = exported([task], "x").bad
    assert bad.message == "x, task 7: its image, description or sentences were changed after the export; restore them"
    del task["data"][key]
    assert "task 7: is not a task that python -m vigor_jax.annotate export made" in exported([task], "x").bad[0].message


def test_two_judgments_by_one_person_are_refused():
    task, other = json_of(7, CAR, who=3), json_of(9, CAR, who=3)
    task["annotations"].append(copy.deepcopy(task["annotations"][0]) | {"completed_by": 4})
    found = exported([task, other], "x")
    assert [each.annotator for each in found.judgments] == ["4"]
    assert [each.message for each in found.bad] == [
        "x, task 7, 9, annotator 3: judged the same description 2 times; delete all but one in Label Studio"
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot read the export"),
        ("{", "expected Label Studio's export as JSON or JSON_MIN, got no JSON"),
        ('{"a": 1}', "expected a list, as Label Studio exports"),
    ],
)
def test_what_is_no_export_is_refused(tmp_path, content, reason):
    path = tmp_path / "export.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=reason):
        read_export(str(path))


def test_each_label_has_another_key():
    keys = hotkeys(tuple("abcdefghijklmnopqrst"))
    assert len(set(keys.values())) == len(keys) == 1 + len(KINDS) + 20 + 1
    assert list(hotkeys(ATTRIBUTES)) == list(labels(ATTRIBUTES))
    with pytest.raises(InputError, match="each needs a key"):
        check_attributes([str(number) for number in range(30)])
    with pytest.raises(InputError, match="expected each once"):
        check_attributes(["color", "color"])
    with pytest.raises(InputError, match="expected words"):
        check_attributes(["color", ""])


def test_an_attribute_that_the_rewards_see_and_the_form_lacks_is_shown_without_its_name():
    said = annotation("Two cars.", ["attribute:count"])
    shown = Description.of(said)._replace(expected=said.sentences)
    for attributes, label in ((("count",), "Attribute: count"), (("color",), "Attribute")):
        (prediction,) = task_of(shown, "x.jpg", attributes)["predictions"]
        assert prediction["result"][0]["value"]["labels"] == [label]


def test_an_attribute_that_the_form_lacks_is_refused():
    said = annotation("A car.", ["attribute:age"])
    with pytest.raises(InputError, match=r"attribute 'age' is not in the form, which has color.* --attributes"):
        results_of(said)
    assert results_of(said, ("age",))[0]["value"]["labels"] == ["Attribute: age"]
