"""What two detectors do not agree on, in a selection: no penalty, no merit, no silence, and no reason to drop."""

import pytest

from tests.stages.test_select import candidate, signal, write_one
from vigor_jax.data.records import store
from vigor_jax.records import Selection, Verdict
from vigor_jax.rewards.fusion import FusionConfig
from vigor_jax.stages.select import select
from vigor_jax.stages.select_config import SelectConfig

TEXTS = {"right": "A dog runs here.", "unknown": "A lamp stands here.", "wrong": "A cat sits here."}
WORDS = {"right": "dog", "unknown": "lamp", "wrong": "cat"}
WORTH = {"right": (0.0, 1.0), "unknown": (0.0, 0.0), "wrong": (1.0, 0.0)}


def choose(folder, kinds, **fusion):
    """The selection among texts that each state some things."""
    texts = [" ".join(TEXTS[kind] for kind in own) or "Nothing to be told of." for own in kinds]
    verdicts = []
    for number, (own, text) in enumerate(zip(kinds, texts, strict=True)):
        signals = tuple(signal(text, WORDS[kind], *WORTH[kind], absent=kind == "wrong") for kind in own)
        verdicts.append(Verdict("a.png", number, "detector", signals))
    write_one(folder, [candidate(number, text) for number, text in enumerate(texts)], verdicts, "detector")
    select(SelectConfig(fusion=FusionConfig(**fusion)), folder, streams=["detector"])
    (selection,) = store.read_parts(folder / "selections", Selection)
    return selection


@pytest.mark.parametrize("rule", ["paper", "balanced"])
@pytest.mark.parametrize("per", ["caption", "sentence"])
def test_the_unknown_lies_between_right_and_wrong(tmp_path, rule, per):
    found = choose(tmp_path, [("wrong",), ("unknown",), ("right",)], rule=rule, per=per)
    assert found.candidate == 2
    assert found.has_content == (True, True, True)
    assert found.penalties[0] > found.penalties[1] == 0 >= found.penalties[2]
    # Without anything right, the unknown is taken, and kept as it is.
    second = choose(tmp_path / "two", [("wrong", "right"), ("unknown",), ("wrong",), ()], rule="paper", per=per)
    assert (second.candidate, second.decided_by, second.has_content) == (1, "penalty", (True, True, True, False))
    assert (second.refined, second.dropped, second.reason) == (TEXTS["unknown"], (), "")


def test_refinement_drops_what_is_wrong_only(tmp_path):
    found = choose(tmp_path, [("right", "unknown", "wrong"), ("wrong", "wrong")])
    assert (found.candidate, found.refined) == (0, f"{TEXTS['right']} {TEXTS['unknown']}")
    assert found.mentions == ((3,), (2,))
