"""Detectors that err, made of the demo's, and what two of them that must agree are worth.

    python -m vigor_jax.demo.erring --records runs/demo --data runs/demo/data

Of an image and a phrase, the detector's verdict is turned round at random, in all captions alike: a thing that it found
is missed in 8% of the cases, one that it did not find is a false alarm in 5%, with a box anywhere. It also misses 8% of
the other boxes of what it found, and turns round scores of attributes as often. A second detector errs as often, in
other cases. The command compares one that errs with two that agree (`rewards/agreement.py`), by the truth of scenes.
"""

import dataclasses
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

from vigor_jax import cli
from vigor_jax.data.records import store
from vigor_jax.demo.dataset import read_scenes
from vigor_jax.demo.scenes import Scene
from vigor_jax.errors import InputError
from vigor_jax.percent import percent
from vigor_jax.records import PhraseScore, Signal, Verdict
from vigor_jax.rewards.agreement import agree

MISSES, FALSE_ALARMS = 0.08, 0.05
COLUMNS = "right, but punished", "right, not rewarded", "wrong, but rewarded", "wrong, not punished"

Judge: TypeAlias = Callable[[Verdict], Verdict]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; see the module's docstring."""
    parser = cli.Parser("demo.erring", __doc__)
    parser.add_argument("--records", type=Path, required=True, help="folder of a run of the demo, with its verdicts")
    parser.add_argument("--data", type=Path, required=True, help="folder of its scenes")
    parser.add_argument("--seed", type=int, default=0, help="of the errors (0)")
    options = parser.parse_args(arguments)
    verdicts = options.records / "verdicts" / "detector"
    for path in (verdicts, options.data / "scenes.json"):
        if not path.exists():
            raise InputError(f"there is no {path}; give a run of the demo that has scored, and the data that it is of")
    found = list(store.read_parts(verdicts, Verdict))
    scenes = read_scenes(options.data, "unlabeled")
    if missing := next((verdict.image for verdict in found if verdict.image not in scenes), None):
        raise InputError(f"--data {options.data} has no scene of {missing}; give the data that the run is of")
    judges = {"the demo's": lambda verdict: verdict, "one that errs": erring(options.seed)}
    print(f"{'detectors':16}{''.join(f'{name:>24}' for name in COLUMNS)}")
    for name, judge in (judges | {"two that agree": agreeing(options.seed)}).items():
        print(f"{name:16}{''.join(f'{text:>24}' for text in count(map(judge, found), scenes).texts)}")


def erring(seed: int, detector: str = "") -> Judge:
    """A detector that errs; with another name it errs in other cases."""

    def draws(image: str, phrase: str) -> random.Random:
        return random.Random(" ".join(filter(None, (str(seed), detector, image, phrase))))

    def turned(image: str, signal: Signal) -> Signal:
        draw = draws(image, signal.label)
        if draw.random() >= (FALSE_ALARMS if signal.absent else MISSES):
            best, others = signal.boxes_xyxy[:1], signal.boxes_xyxy[1:]
            return dataclasses.replace(
                signal, boxes_xyxy=best + tuple(box for box in others if draw.random() >= MISSES)
            )
        left, top = draw.uniform(0, 0.75), draw.uniform(0, 0.75)
        return dataclasses.replace(
            signal,
            negative=signal.positive,
            positive=signal.negative,
            score=1 - signal.score,
            absent=not signal.absent,
            boxes_xyxy=((left, top, left + 0.25, top + 0.25),) if signal.absent else (),
        )

    def scored(image: str, asked: PhraseScore) -> PhraseScore:
        chance = MISSES if asked.score >= 0.5 else FALSE_ALARMS
        return asked._replace(score=1 - asked.score) if draws(image, asked.phrase).random() < chance else asked

    def judge(verdict: Verdict) -> Verdict:
        return dataclasses.replace(
            verdict,
            signals=tuple(turned(verdict.image, signal) for signal in verdict.signals),
            attributes=tuple(scored(verdict.image, asked) for asked in verdict.attributes),
        )

    return judge


def agreeing(seed: int) -> Judge:
    """What two detectors that err agree on; the first one is `erring(seed)`."""
    first, second = erring(seed), erring(seed, "second")
    return lambda verdict: agree(first(verdict), second(verdict))


def misjudge(verdicts: Path, wrong: Path, judge: Judge) -> None:
    """Copies a detector's verdicts as another one says them."""
    count = store.count_parts(verdicts)
    for part in (part for part in range(count) if not store.has_part(wrong, part, count)):
        records = map(judge, store.read_part(verdicts, part, count, Verdict))
        store.write_part(wrong, part, count, records, Verdict, store.part_metadata(verdicts))


class Mistakes(NamedTuple):
    """Phrases of captions, and what a detector made of them.

    Attributes:
      right: phrases of what is in the scene.
      punished: of these, those that got a penalty: false penalties.
      unrewarded: of these, those that were not found right, punished or not.
      wrong: phrases of what is not in the scene.
      rewarded: of these, those that were found right.
      unpunished: of these, those that got no penalty, rewarded or not: misses.
    """

    right: int
    punished: int
    unrewarded: int
    wrong: int
    rewarded: int
    unpunished: int

    @property
    def texts(self) -> tuple[str, ...]:
        """In the order of `COLUMNS`: how many, of how many, and the share."""
        pairs = (
            *((self.punished, self.right), (self.unrewarded, self.right)),
            *((self.rewarded, self.wrong), (self.unpunished, self.wrong)),
        )
        return tuple(f"{part} of {whole} ({percent(part / max(whole, 1), 1)}%)" for part, whole in pairs)


def count(verdicts: Iterable[Verdict], scenes: Mapping[str, Scene]) -> Mistakes:
    """Compares verdicts on captions of scenes with what is in them; each phrase of a caption counts once."""
    seen: Counter[str] = Counter()
    for verdict in verdicts:
        shapes = {item.shape for item in scenes[verdict.image].objects}
        for signal in verdict.signals:
            kind = "right" if signal.label in shapes else "wrong"
            seen.update([kind, *([f"{kind} rewarded"] if signal.positive else [])])
            seen.update([f"{kind} punished"] if signal.negative else [])
    right, wrong = seen["right"], seen["wrong"]
    return Mistakes(
        right=right,
        punished=seen["right punished"],
        unrewarded=right - seen["right rewarded"],
        wrong=wrong,
        rewarded=seen["wrong rewarded"],
        unpunished=wrong - seen["wrong punished"],
    )


if __name__ == "__main__":
    cli.run(main)
