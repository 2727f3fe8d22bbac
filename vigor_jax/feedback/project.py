"""A Label Studio project as a folder: form, tasks, instructions, and how to start."""

import base64
import json
import mimetypes
import random
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias
from urllib.parse import quote

from vigor_jax.data.images.store import Folder, Images
from vigor_jax.data.records.store import write_atomically
from vigor_jax.errors import InputError
from vigor_jax.feedback.form import ATTRIBUTES, KINDS, MOST_DETAIL, RIGHT, hotkeys, label_config
from vigor_jax.feedback.tasks import Description, Json, task_of

Place: TypeAlias = Literal["embed", "local", "url"]
# Label Studio takes 200 MB at once.
_MOST_EMBEDDED = 200_000_000
# For one description, of 15 people who judged 16,000 in three weeks of 40 hours (ViGoR, section 4.2).
_SECONDS = 400


class Project(NamedTuple):
    """What Label Studio needs to know.

    Attributes:
      label_config: the form, XML.
      instructions: for people, HTML.
      tasks: as Label Studio imports them; each has another `key` in its data.
      image_folder: that a server reads images from; None if it need not.
    """

    label_config: str
    instructions: str
    tasks: list[Json]
    image_folder: Path | None = None


def mixed(asked: Sequence[Description], gold: Sequence[Description], *, limit: int, seed: int) -> list[Description]:
    """Descriptions in random order, each once, with all gold ones among them, so that nobody can tell which they are.

    Args:
      asked: what nobody knows.
      gold: what is known.
      limit: most of those that are asked; 0 for all.
      seed: the same order for the same descriptions.
    """
    order = random.Random(seed)
    by_text = {(each.image, each.text): each for each in asked}
    known = {(each.image, each.text): by_text.get((each.image, each.text), each) for each in gold}
    unknown = [each for key, each in by_text.items() if key not in known]
    order.shuffle(unknown)
    found = [*unknown[: limit or None], *known.values()]
    order.shuffle(found)
    return found


def make_project(
    descriptions: Sequence[Description],
    images: Images,
    *,
    attributes: Sequence[str] = ATTRIBUTES,
    place: Place = "embed",
    url: str = "",
) -> Project:
    """A project of descriptions.

    Args:
      descriptions: no two alike.
      images: what they are of.
      attributes: that the form names.
      place: how a browser gets an image: it is in the task ("embed"), the server reads it from its disk ("local"), or
        it is below an address ("url").
      url: that address.

    Raises:
      InputError: images are missing, cannot be read, or are too large to embed.
    """
    names = list(dict.fromkeys(each.image for each in descriptions))
    if missing := images.missing(names):
        raise InputError(
            f"images: {images.place} lacks {len(missing)} of {len(names)} images that are described, {missing[0]!r} "
            "first; give the folder that the descriptions are of"
        )
    folder = None
    if place == "embed":
        addresses = _embedded(names, images)
    elif place == "url":
        addresses = {name: f"{url.rstrip('/')}/{quote(name)}" for name in names}
    else:
        if not isinstance(images, Folder) or not Path(images.place).is_dir():
            raise InputError(
                f"images: a server reads images of a folder, and {images.place} is none; give --images_by embed"
            )
        folder = Path(images.place).resolve()
        addresses = {name: f"/data/local-files/?d={quote(f'{folder.name}/{name}')}" for name in names}
    tasks = [task_of(each, addresses[each.image], attributes) for each in descriptions]
    return Project(label_config(attributes), instructions(attributes), tasks, folder)


def _embedded(names: Sequence[str], images: Images) -> dict[str, str]:
    found, size = {}, 0
    for name in names:
        kind = mimetypes.guess_type(name)[0] or "image/jpeg"
        found[name] = f"data:{kind};base64,{base64.b64encode(images.read(name)).decode()}"
        size += len(found[name])
        if size > _MOST_EMBEDDED:
            raise InputError(
                f"images: {len(names)} images are too large to embed, more than {_MOST_EMBEDDED // 10**6} MB; give "
                "--images_by local or url, or --limit"
            )
    return found


def write_project(folder: Path, project: Project) -> None:
    """Writes label_config.xml, tasks.json, instructions.html and README.md; equal projects give equal bytes.

    Args:
      folder: is made if need be.
      project: is written.
    """
    tasks = ",\n".join(json.dumps(task, ensure_ascii=False) for task in project.tasks)
    page = '<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">\n<title>Instructions</title>\n'
    page += f"<style>{_STYLE}</style>\n"
    files = {
        "label_config.xml": project.label_config,
        "tasks.json": f"[\n{tasks}\n]\n",
        "instructions.html": f"{page}{project.instructions}</html>\n",
        "README.md": _readme(project),
    }
    for name, content in files.items():
        with write_atomically(folder / name) as file:
            file.write(content.encode())


_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:46em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse}td,th{border:1px solid #bbb;padding:.3em .6em;text-align:left;vertical-align:top}"
)

# A photograph that everybody can imagine, sentences about it, labels, and why.
_SCENE = "a red car stands at the left of a brick road, and one man walks past it with an umbrella; it is not raining"
_EXAMPLES = (
    ("A red car is parked on a brick road.", (RIGHT,), "All of it can be seen."),
    ("A blue car is parked on a brick road.", ("Attribute: color",), "The car is there and has another color."),
    ("Two men walk past the car.", ("Attribute: count",), "A wrong number is an attribute."),
    ("A dog sleeps under the car.", ("Object",), "There is no dog. What is said of it is not judged."),
    ("The car stands at the right of the road.", ("Location",), "The thing is there, its place is wrong."),
    ("The man sits in the car.", ("Relationship",), "Both are there, and what connects them is wrong."),
    ("It must have rained all day.", ("Conjecture",), "A guess that the picture does not support."),
    (
        "He may carry the umbrella because clouds are coming.",
        ("Creative",),
        "A guess that is reasonable and says more than the obvious. It needs no other label.",
    ),
    (
        "A dog and a blue car wait in the rain.",
        ("Object", "Attribute: color", "Conjecture"),
        "Several errors: several labels.",
    ),
)


def instructions(attributes: Sequence[str] = ATTRIBUTES) -> str:
    """What people read before they begin, HTML: what to do, what each label means, worked examples, keys."""
    keys = hotkeys(attributes)
    named = ", ".join(attributes)
    shown = [each for each in _EXAMPLES if set(each[1]) <= keys.keys()]
    rows = "\n".join(
        f"<tr><td>{escape(text)}</td><td><b>{escape(', '.join(marks))}</b></td><td>{escape(why)}</td></tr>"
        for text, marks, why in shown
    )
    listed = "\n".join(
        f"<tr><td><kbd>{escape(key)}</kbd></td><td>{escape(label)}</td></tr>" for label, key in keys.items()
    )
    return f"""<h2>What to do</h2>
<p>You see a picture and a description of it. Judge each sentence by what the picture shows, not by what is likely.
The sentences are marked already: do not draw, move or delete them.</p>
<ol>
<li><kbd>Alt</kbd> + <kbd>.</kbd> goes to the next sentence (or click it).</li>
<li>Press the key of what is wrong with it; press several keys if several things are wrong. The same key again takes it
back. If nothing is wrong, press <kbd>1</kbd>. Every sentence needs a label; a gray one has none yet.</li>
<li>Give the level of detail from 1 to {MOST_DETAIL} stars, and name what an attentive person would have mentioned: one
thing, <kbd>Enter</kbd>, the next thing.</li>
<li><kbd>Ctrl</kbd> + <kbd>Enter</kbd> hands it in. Skip a picture that you cannot judge.</li>
</ol>
<h2>What the labels mean</h2>
<table>
<tr><td><b>{RIGHT}</b></td><td>everything in the sentence is so</td></tr>
<tr><td><b>{KINDS["object"]}</b></td><td>a thing or a person is not in the picture</td></tr>
<tr><td><b>{KINDS["location"]}</b></td><td>the thing is there, but elsewhere in the picture</td></tr>
<tr><td><b>{KINDS["relationship"]}</b></td><td>two things are there, but what connects them is wrong</td></tr>
<tr><td><b>{KINDS["conjecture"]}</b></td><td>a guess that the picture does not support</td></tr>
<tr><td><b>{KINDS["attribute"]}</b></td><td>the thing is there and is different; choose which attribute is wrong
({escape(named)}), or plain "{KINDS["attribute"]}" for another one</td></tr>
<tr><td><b>Creative</b></td><td>a reasonable interpretation that says more than the obvious</td></tr>
</table>
<h2>Examples</h2>
<p>The picture: {_SCENE}.</p>
<table>
<tr><th>sentence</th><th>labels</th><th>why</th></tr>
{rows}
</table>
<h2>Keys</h2>
<table>
{listed}
</table>
"""


def _readme(project: Project) -> str:
    count = len(project.tasks)
    hours = count * _SECONDS / 3600
    variables = ""
    if project.image_folder:
        variables = f"""
   The server reads the images from its disk. Start it with these two variables, and add a Local files storage for
   `{project.image_folder}` in the project's settings (`--push` adds it):

   ```
   export LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true
   export LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={project.image_folder.parent}
   ```
"""
    return f"""# {count} descriptions to judge

About {hours:.0f} hours of work for one person, if a description takes {_SECONDS} seconds. So long it took the people of
ViGoR: 15 of them judged 16,000 in three weeks.

1. `pip install label-studio && label-studio start` in an environment without anything else.
{variables}
2. Create a project. Settings, Labeling Interface, Code: paste `label_config.xml`. General: paste the body of
   `instructions.html`, and show it before labeling. Import: `tasks.json`. Annotation: use predictions to prelabel
   tasks, and choose the version that is there, or else no sentence is marked.

   Or let the command do this: give the same `export` again with `--push http://localhost:8080`, with the token of
   Account & Settings in the environment variable LABEL_STUDIO_API_KEY.
3. Let people judge. Two or more for some descriptions tell how well they agree.
4. Export, JSON (or JSON_MIN), and then:

   ```
   python -m vigor_jax.annotate import --export export.json --out annotations.jsonl
   python -m vigor_jax.annotate agreement --judgments annotations.judgments.jsonl
   ```
"""
