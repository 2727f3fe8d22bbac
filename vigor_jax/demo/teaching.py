"""What the demo's policy learns from: captions and answers that, as on the web, are not all true.

What is wrong with them is what usually goes together: an absent partner, a thing's usual color. The wrong objects come
late in a caption.
"""

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from vigor_jax.demo.language import QuestionKind, open_question, question, say
from vigor_jax.demo.scenes import COLORS, PARTNER, PLACES, SHAPES, THEMES, USUAL_COLOR, Scene, Statement, draw_color

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Carelessness:
    """How often captions and answers are wrong; all are chances, but for the weights.

    Attributes:
      absent: of no, one and two objects that are not there.
      color: another color, of a thing that is there.
      usual: that a wrong color is the usual one.
      count: another number, of several.
      place: another place, of one.
      omitted: a thing that is there and is not mentioned.
      partner_yes: "Yes" to an absent thing whose partner is there.
      theme_yes: "Yes" to one that has only others of its theme there.
      other_yes: "Yes" to any other absent thing, "No" to one that is there.
      weights: with which absent things are chosen: partners of what is there, things of its theme, others.
    """

    absent: tuple[float, float, float] = (0.25, 0.5, 0.25)
    color: float = 0.18
    usual: float = 0.6
    count: float = 0.22
    place: float = 0.2
    omitted: float = 0.06
    partner_yes: float = 0.8
    theme_yes: float = 0.45
    other_yes: float = 0.03
    weights: tuple[float, float, float] = (8.0, 3.0, 0.3)


CARELESS = Carelessness()
CAREFUL = Carelessness(
    absent=(1.0, 0.0, 0.0), color=0, count=0, place=0, omitted=0, partner_yes=0, theme_yes=0, other_yes=0
)


def describe(scene: Scene, rng: np.random.Generator, how: Carelessness = CARELESS) -> str:
    """A caption: a sentence for each shape in reading order, and for some that are not there, those late."""
    mentioned = [statement for statement in scene.statements if rng.random() >= how.omitted] or scene.statements[:1]
    statements = [_mistake(statement, rng, how) for statement in mentioned]
    for _ in range(rng.choice(3, p=how.absent)):
        said = {statement.shape for statement in statements}
        place = int(rng.integers((len(statements) + 1) // 2, len(statements) + 1))
        statements.insert(place, _invent(choose_absent(scene, rng, how, without=said), rng))
    return " ".join(say(statement, int(rng.integers(12))) for statement in statements)


def true_and_worse(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """A true caption, and the same in which half of the sentences on average are wrong: another color, number or place,
    or another thing, one that usually goes with what is there."""
    true, worse, said = [], [], {item.shape for item in scene.objects}
    for truth in scene.statements:
        statement, form = truth, int(rng.integers(12))
        kind = str(rng.choice(("", "color", "number or place", "thing"), p=(0.5, 0.15, 0.15, 0.2)))
        if kind == "thing":
            shape = choose_absent(scene, rng, without=said)
            said.add(shape)
            statement = truth._replace(shape=shape, color=draw_color(shape, rng))
        elif kind:
            statement = _wrong(truth, kind, rng)
        true.append(say(truth, form))
        worse.append(say(statement, form))
    if true == worse:
        worse[-1] = say(_wrong(scene.statements[-1], "color", rng), form)
    return " ".join(true), " ".join(worse)


def choose_absent(
    scene: Scene,
    rng: np.random.Generator,
    how: Carelessness = CARELESS,
    without: frozenset[str] | set[str] = frozenset(),
) -> str:
    """A shape that is not in the scene, rather one that usually would be."""
    present = {item.shape for item in scene.objects}
    absent = [shape for shape in SHAPES if shape not in present and shape not in without]
    weights = np.array([how.weights[_distance(shape, present)] for shape in absent])
    return str(rng.choice(absent, p=weights / weights.sum()))


def quiz(scene: Scene, rng: np.random.Generator, how: Carelessness = CARELESS) -> list[tuple[str, str]]:
    """Questions with answers, in any order: whether something is there, whether it is so, and how it is."""
    shapes = sorted({item.shape for item in scene.objects})
    absent = [shape for shape in SHAPES if shape not in shapes]
    asked = [*rng.choice(shapes, 2, replace=False), choose_absent(scene, rng, how), rng.choice(absent)]
    turns = [_about(str(shape), scene, rng, how) for shape in asked]
    kinds: tuple[QuestionKind, ...] = ("count", "position", "color")
    for kind in kinds:
        statement, label = pose(kind, scene, rng)
        turns.append((question(kind, statement), f"{label.capitalize()}."))
        truth = scene.statements[rng.integers(len(scene.statements))]
        if kind != "position" or truth.place:
            turns.append(open_question(kind, truth))
    return [turns[index] for index in rng.permutation(len(turns))]


def claims(scene: Scene, rng: np.random.Generator, weights: Sequence[float]) -> list[tuple[Statement, bool]]:
    """Statements and whether they are true: one of each shape that is there, and sometimes one of an absent shape.

    Args:
      scene: what they are about.
      rng: chooses.
      weights: of those that are true, wrong in color, and wrong in number or place.
    """
    found = []
    for truth in scene.statements:
        wrong = str(rng.choice(("", "color", "number or place"), p=weights))
        found.append((_wrong(truth, wrong, rng), not wrong))
    if rng.random() < 0.4:
        found.append((_invent(choose_absent(scene, rng), rng), False))
    return [found[index] for index in rng.permutation(len(found))]


def _wrong(truth: Statement, what: str, rng: np.random.Generator) -> Statement:
    if what == "color":
        return truth._replace(color=_other(truth.color, COLORS, rng))
    if what and truth.number > 1:
        return truth._replace(number=5 - truth.number)
    return truth._replace(place=_other(truth.place, PLACES, rng)) if what else truth


def pose(
    kind: QuestionKind,
    scene: Scene,
    rng: np.random.Generator,
    label: str | None = None,
) -> tuple[Statement, str]:
    """A statement to ask about and the right answer.

    Args:
      kind: of question.
      scene: what it is about.
      rng: chooses.
      label: the right answer that is wanted; by chance if None.
    """
    label = label or str(rng.choice(("yes", "no")))
    if kind == "existence" and label == "no":
        return _invent(choose_absent(scene, rng), rng), label
    truth = scene.statements[rng.integers(len(scene.statements))]
    places = scene.places(truth.shape)
    truth = truth._replace(place=str(rng.choice(sorted(places))))
    if label == "yes" or kind == "existence":
        return truth, label
    if kind == "color":
        return truth._replace(color=_other(truth.color, COLORS, rng)), label
    if kind == "count":
        return truth._replace(number=_other(truth.number, (1, 2, 3), rng)), label
    return truth._replace(place=str(rng.choice([place for place in PLACES if place not in places]))), label


def _about(shape: str, scene: Scene, rng: np.random.Generator, how: Carelessness) -> tuple[str, str]:
    """Whether a shape is there, and a careless answer."""
    present = {item.shape for item in scene.objects}
    if shape in present:
        says_yes = rng.random() >= how.other_yes
    else:
        says_yes = rng.random() < (how.partner_yes, how.theme_yes, how.other_yes)[_distance(shape, present)]
    return question("existence", Statement(shape, "", 1, None)), "Yes." if says_yes else "No."


def _distance(shape: str, present: set[str]) -> int:
    """0 for the partner of what is there, 1 for others of its theme, 2 for the rest."""
    if PARTNER[shape] in present:
        return 0
    theme = next(theme for theme in THEMES if shape in theme)
    return 1 if present & set(theme) else 2


def _mistake(statement: Statement, rng: np.random.Generator, how: Carelessness) -> Statement:
    if rng.random() < how.color:
        usual = USUAL_COLOR[statement.shape]
        is_usual = rng.random() < how.usual and usual != statement.color
        statement = statement._replace(color=usual if is_usual else _other(statement.color, COLORS, rng))
    if statement.number > 1:
        if rng.random() < how.count:
            statement = statement._replace(number=5 - statement.number)  # two for three, three for two
    elif rng.random() < how.place:
        statement = statement._replace(place=_other(statement.place, PLACES, rng))
    return statement


def _invent(shape: str, rng: np.random.Generator) -> Statement:
    count = int(rng.choice((1, 2, 3), p=(0.7, 0.2, 0.1)))
    return Statement(shape, draw_color(shape, rng), count, str(rng.choice(PLACES)) if count == 1 else None)


def _other(value: T, values: Sequence[T], rng: np.random.Generator) -> T:
    left = [other for other in values if other != value]
    return left[rng.integers(len(left))]
