"""The whole way through a real Label Studio: pushed, judged by clicks and by keys, exported, read, nothing twice."""

import json
import subprocess
import sys
import time

import pytest
from PIL import Image

from tests.feedback.annotations import TEXT, annotation, random_annotations, write_run
from tests.feedback.label_studio import EMAIL, PASSWORD, PYTHON, TOKEN, Server, annotate, command, environment
from tests.report.conftest import SIZES, browser
from vigor_jax.data.records.annotations import read_annotations, write_annotations
from vigor_jax.data.records.store import write_part
from vigor_jax.feedback.exports import read_export
from vigor_jax.feedback.form import label_config
from vigor_jax.feedback.judgments import read_judgments
from vigor_jax.feedback.tasks import Description, results_of, task_of
from vigor_jax.records import Candidate

__all__ = ["browser"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        not PYTHON.exists(),
        reason="NOT TESTED: no Label Studio; pip install label-studio==1.23.2 in .venv-label-studio, or set "
        "VIGOR_LABEL_STUDIO to the Python of its environment",
    ),
    pytest.mark.skipif(
        PYTHON.exists()
        and not (PYTHON.parents[1] / "lib" / f"python3.{sys.version_info.minor}" / "site-packages").is_dir(),
        reason="NOT TESTED: Label Studio's environment has another Python, so its SDK cannot be used here",
    ),
]
CATS = 'Two "cats".\nThey 😀 sit.'


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("label-studio"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def pushed(server):
    """A project of two descriptions in the server; its number and the command that made it."""
    folder = server.folder
    run, images = write_run(folder)
    arguments = ("export", "--run", run, "--images", images, "--out", folder / "project", "--images_by", "local",
                 "--title", "cats and cars", "--push", server.address)  # fmt: skip
    done = annotate(*arguments)
    assert done.returncode == 0, done.stderr
    assert "2 tasks added, 0 updated, 0 kept" in done.stdout
    address = next(line.partition(": ")[0] for line in done.stdout.splitlines() if line.startswith("http"))
    return address, arguments


def number_of(address):
    return int(address.rpartition("/")[2])


def tasks_of(server, address):
    """Number, description and counts of each task, as the server has it."""
    program = (
        "print(json.dumps([(t.id, t.data['description'], len(t.annotations), [p.model_version for p in t.predictions]) "
        "for t in client.tasks.list(project=int(sys.argv[1]), fields='all')]))"
    )
    return json.loads(server.python(program, str(number_of(address))))


def test_the_same_push_again_adds_nothing(server, pushed):
    address, arguments = pushed
    before = tasks_of(server, address)
    done = annotate(*arguments)
    assert "0 tasks added, 0 updated, 2 kept" in done.stdout
    assert tasks_of(server, address) == before
    done = annotate(*arguments, "--predictions", "verdicts")
    assert "0 tasks added, 2 updated, 0 kept" in done.stdout
    assert {tuple(versions) for *_, versions in tasks_of(server, address)} == {("verdicts",)}
    done = annotate(*arguments)
    assert "0 tasks added, 2 updated, 0 kept" in done.stdout
    assert tasks_of(server, address) == before
    assert server.python("print(len(list(client.projects.list())))") == "1\n"
    files = [path.read_bytes() for path in (server.folder / "project").iterdir()]
    assert not any(TOKEN.encode() in content for content in files)
    assert TOKEN not in done.stdout + done.stderr


def test_people_judge_and_it_comes_back(server, pushed, browser, tmp_path):
    address, _ = pushed
    car = next(number for number, text, *_ in tasks_of(server, address) if text == TEXT)
    cats = next(number for number, text, *_ in tasks_of(server, address) if text != TEXT)
    context = browser.new_context(viewport=SIZES["wide"])
    context.set_default_timeout(180_000)  # a busy machine takes a minute to show a page
    page = context.new_page()
    page.goto(f"{server.address}/user/login/")
    page.fill("input[name=email]", EMAIL)
    page.fill("input[name=password]", PASSWORD)
    page.click("[type=submit]")
    page.wait_for_url(lambda url: "login" not in url)

    def opened(task):
        page.goto(f"{address}/data?task={task}")
        page.get_by_text("What is wrong with each sentence?").wait_for()
        page.locator(".lsf-outliner-item__title, [class*=outliner-item]").nth(2).wait_for()
        time.sleep(1)

    def text_of(sentence):
        return page.locator("[class*=htx-highlight]").filter(has_text=sentence).first

    # By the mouse: one sentence about a thing that is not there, one wrong color, one creative.
    opened(car)
    for sentence, label in (
        ("A red car waits at the left.", "Attribute: color"),
        ("A dog sleeps.", "Object"),
        ("He may wait for a friend.", "Creative"),
    ):
        text_of(sentence).click()
        page.locator(".lsf-label, [class*=label_]").filter(has_text=label).first.click()
    page.locator("[role=radio][aria-posinset='4']").first.click()
    missing = page.get_by_placeholder("the traffic light")
    missing.fill("a tree")
    missing.press("Enter")
    page.get_by_text("a tree").wait_for()
    page.screenshot(path=tmp_path / "by_mouse.png")
    page.locator("button").filter(has_text="Submit").first.click()
    page.locator("button").filter(has_text="Update").first.wait_for()

    # By keys alone, in a text that has letters beyond 16 bits.
    opened(cats)
    for keys in ("Alt+.", "8", "Alt+.", "1", "c"):
        page.keyboard.press(keys)
        time.sleep(0.5)
    page.screenshot(path=tmp_path / "by_keys.png")
    page.keyboard.press("Control+Enter")
    page.locator("button").filter(has_text="Update").first.wait_for()
    context.close()

    expected = {
        TEXT: annotation(
            TEXT, ["attribute:color"], ["object"], ["creative"], image="a.png", detail=4, missing=("a tree",)
        ),
        CATS: annotation(CATS, ["attribute:count"], ["creative"], image="deep/b 1.png"),
    }
    out = tmp_path / "annotations.jsonl"
    done = annotate("import", "--export", address, "--out", out)
    assert done.returncode == 0, done.stderr
    assert {each.description: each for each in read_annotations(out)} == expected
    assert all(each.seconds > 0 and each.created for each in read_judgments(tmp_path / "annotations.judgments.jsonl"))

    # A second person, who says something else about one sentence.
    other = annotation(TEXT, ["attribute:color"], [], ["creative"], image="a.png", detail=2)
    program = """
user = client.users.create(email="b@example.org", username="b")
client.annotations.create(id=int(sys.argv[1]), result=json.loads(sys.argv[2]), completed_by=user.id, lead_time=20)
print(user.id)
"""
    second = server.python(program, str(car), json.dumps(results_of(other))).strip()
    done = annotate("import", "--export", address, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "3 judgments by 2 people" in done.stdout
    assert list(read_annotations(out)) == [expected[CATS]]
    assert {each.annotator for each in read_judgments(tmp_path / "annotations.judgments.jsonl")} == {"1", second}
    done = annotate("import", "--export", address, "--out", out, "--weight", "1=2")
    assert done.returncode == 0, done.stderr
    found = {each.description: each for each in read_annotations(out)}
    assert found[TEXT].sentences == expected[TEXT].sentences
    before = out.read_bytes(), (tmp_path / "annotations.judgments.jsonl").read_bytes()
    annotate("import", "--export", address, "--out", out, "--weight", "1=2")
    assert (out.read_bytes(), (tmp_path / "annotations.judgments.jsonl").read_bytes()) == before

    # JSON and JSON_MIN as a person downloads them say the same.
    for kind in ("JSON", "JSON_MIN"):
        program = (
            "content = client.projects.exports.download_sync(int(sys.argv[1]), export_type=sys.argv[2])\n"
            "sys.stdout.buffer.write(b''.join(content))"
        )
        export = tmp_path / f"{kind}.json"
        export.write_text(server.python(program, str(number_of(address)), kind))
        copy = tmp_path / kind / "annotations.jsonl"
        done = annotate("import", "--export", export, "--out", copy, "--weight", "1=2")
        assert done.returncode == 0, done.stderr
        assert sorted(copy.read_text().splitlines()) == sorted(out.read_text().splitlines())


def test_what_people_said_comes_back_from_the_server(server, tmp_path):
    """Judgments with all that is hard to store, handed in as the form would, in both exports."""
    said = random_annotations(200)
    tasks = [task_of(Description.of(each), "x.jpg") | {"annotations": [{"result": results_of(each)}]} for each in said]
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    (tmp_path / "form.xml").write_text(label_config())
    program = """
project = client.projects.create(title="random", label_config=open(sys.argv[1]).read())
client.projects.import_tasks(project.id, request=json.load(open(sys.argv[2])))
for kind in ("JSON", "JSON_MIN"):
    content = b"".join(client.projects.exports.download_sync(project.id, export_type=kind))
    open(f"{sys.argv[3]}/{kind}.json", "wb").write(content)
"""
    server.python(program, str(tmp_path / "form.xml"), str(tmp_path / "tasks.json"), str(tmp_path))
    for kind in ("JSON", "JSON_MIN"):
        found = read_export(str(tmp_path / f"{kind}.json"))
        assert not found.bad
        by_image = {each.annotation.image: each.annotation for each in found.judgments}
        assert by_image == {each.image: each for each in said}


def test_a_wrong_token(pushed):
    _, arguments = pushed
    done = annotate(*arguments, token="f" * 40)
    assert done.returncode == 2
    assert "refuses the token in LABEL_STUDIO_API_KEY (Invalid token.)" in done.stderr
    assert "Traceback" not in done.stderr
    assert "f" * 40 not in done.stderr


def test_a_server_that_goes_away_in_the_middle(server, tmp_path):
    count = 450
    candidates = [
        Candidate("a.png", "?", number, f"A cat. There are {number} dogs.", (1,), -0.1, "stop")
        for number in range(count)
    ]
    write_part(tmp_path / "run" / "candidates", 0, 1, candidates, Candidate)
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "a.png")
    arguments = ("export", "--run", tmp_path / "run", "--images", tmp_path / "photos", "--out", tmp_path / "many",
                 "--push", server.address)  # fmt: skip
    with subprocess.Popen(command(*arguments), env=environment(), stderr=subprocess.PIPE, text=True) as process:
        lines = [process.stderr.readline()]
        while "of 450 new tasks" not in lines[-1] and lines[-1]:
            lines.append(process.stderr.readline())
        server.stop()
        rest = process.stderr.read()
    assert process.returncode == 2, lines
    assert "does not answer" in rest
    assert "of 450 new tasks were added; start it" in rest
    assert "Traceback" not in rest
    server.start()
    done = annotate(*arguments)
    assert done.returncode == 0, done.stderr
    address = next(line.partition(": ")[0] for line in done.stdout.splitlines() if line.startswith("http"))
    tasks = tasks_of(server, address)
    assert len(tasks) == count
    assert {text for _, text, *_ in tasks} == {each.text for each in candidates}


def test_another_project_of_that_name_is_left_alone(server, pushed):
    server.python("client.projects.create(title='mine', description='by hand')")
    _, arguments = pushed
    done = annotate(*arguments, "--title", "mine")
    assert done.returncode == 2
    assert "has a project 'mine' that this command did not make; give another --title" in done.stderr


def test_gold_is_not_told_apart_in_the_server(server, pushed, tmp_path):
    _, arguments = pushed
    write_annotations(tmp_path / "gold.jsonl", [annotation("A fox.", ["object"], image="a.png")])
    done = annotate(*arguments, "--title", "with gold", "--gold", tmp_path / "gold.jsonl")
    assert "3 tasks added" in done.stdout, done.stderr
