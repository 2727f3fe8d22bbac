"""A run directory that nobody trained for: drawn scenes, captions half true, and what two streams would say."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vigor_jax.data.records import store
from vigor_jax.demo.drawing import box_xyxy, draw
from vigor_jax.demo.language import errors, plural, say
from vigor_jax.demo.scenes import COLORS, IMAGE_SIZE, PLACES, SHAPES, Scene, Statement, make_scene
from vigor_jax.evaluation.benchmarks.chair import Reference, check_caption
from vigor_jax.evaluation.benchmarks.mme import MmeQuestion
from vigor_jax.evaluation.benchmarks.pope import PopeQuestion
from vigor_jax.evaluation.benchmarks.synonyms import Synonyms
from vigor_jax.evaluation.image_counts import take_counts, write_counts
from vigor_jax.evaluation.metrics import chair_metrics, mme_metrics, pope_metrics
from vigor_jax.records import Candidate, Rollout, Signal, Span, Verdict
from vigor_jax.rewards.sentences import split_sentences
from vigor_jax.stages.reward_evaluation import evaluate
from vigor_jax.stages.select import select
from vigor_jax.stages.select_config import SelectConfig

PROMPT = "Describe this image in detail."
KINDS = {"object": "object", "color": "attribute", "count": "attribute", "place": "location"}


@dataclasses.dataclass
class DemoScenes:
    """Scenes by image name, and a source of chance."""

    scenes: dict[str, Scene]
    rng: np.random.Generator

    def caption(self, scene: Scene, truth: float, sentences: int) -> tuple[str, list[tuple[str, ...]]]:
        """A number of sentences, each true with a probability, and what is wrong with each."""
        said, wrong = [], []
        for _ in range(sentences):
            statement = scene.statements[self.rng.integers(len(scene.statements))]
            if self.rng.random() > truth:
                statement = Statement(
                    str(self.rng.choice(SHAPES)),
                    str(self.rng.choice(COLORS)),
                    1,
                    str(self.rng.choice(PLACES)),
                )
            said.append(say(statement, int(self.rng.integers(12))))
            wrong.append(tuple(dict.fromkeys(KINDS[kind] for kind in errors(statement, scene))))
        return " ".join(said), wrong


def draw_demo(images: Path, count: int, seed: int = 0) -> DemoScenes:
    """Draws scenes into a folder."""
    rng = np.random.default_rng(seed)
    demo = DemoScenes({f"{number:05d}.png": make_scene(rng) for number in range(count)}, rng)
    images.mkdir(parents=True, exist_ok=True)
    for name, scene in demo.scenes.items():
        draw(scene).save(images / name)
    return demo


def write_records(
    run_dir: Path,
    demo: DemoScenes,
    *,
    candidates: int = 5,
    streams: tuple[str, ...] = ("detector", "reward_model"),
    texts: Mapping[tuple[str, int], str] | None = None,
    parts: int = 2,
    sentences: int = 4,
    selected: bool = True,
) -> None:
    """Candidates, verdicts and, by the stage itself, selections.

    Args:
      run_dir: gets them.
      demo: whose images they describe.
      candidates: of each image.
      streams: which ones judge.
      texts: (image, candidate) → a caption to take in place of a made one.
      parts: of each folder.
      sentences: of each caption, about.
      selected: whether the selection is made.
    """
    names = list(demo.scenes)
    for part, chunk in enumerate(np.array_split(np.array(names), parts)):
        rows: list[Candidate] = []
        verdicts: dict[str, list[Verdict]] = {stream: [] for stream in streams}
        for name in chunk.tolist():
            for number in range(candidates):
                length = max(1, sentences + int(demo.rng.integers(-1, 2)))
                text, wrong = demo.caption(demo.scenes[name], 0.62, length)
                text = (texts or {}).get((name, number), text)
                rows.append(Candidate(name, PROMPT, number, text, (1, 2), -float(demo.rng.uniform(0.3, 1)), "stop"))
                for stream in streams:
                    judged = _detect if stream == "detector" else _reward
                    verdicts[stream].append(Verdict(name, number, stream, judged(demo, name, text, wrong)))
        store.write_part(run_dir / "candidates", part, parts, rows, Candidate)
        for stream in streams:
            store.write_part(run_dir / "verdicts" / stream, part, parts, verdicts[stream], Verdict)
    if selected:
        select(SelectConfig(), run_dir, streams=streams)


def _detect(demo: DemoScenes, name: str, text: str, wrong: list[tuple[str, ...]]) -> tuple[Signal, ...]:
    scene, signals = demo.scenes[name], []
    rng = np.random.default_rng(int(name.split(".")[0]))  # a phrase has one answer an image
    for shape in SHAPES:
        score, spans = float(rng.uniform(0.35, 0.95)), []
        for word in (shape, plural(shape)):
            at = text.find(f" {word}")
            while at >= 0:
                if not text[at + 1 + len(word) : at + 2 + len(word)].isalpha():
                    spans.append(Span(at + 1, at + 1 + len(word)))
                at = text.find(f" {word}", at + 1)
        if not spans:
            continue
        boxes = tuple(
            tuple(edge / IMAGE_SIZE for edge in box_xyxy(item)) for item in scene.objects if item.shape == shape
        )
        absent = not boxes
        score = score if boxes else score / 5
        signals.append(Signal(shape, tuple(sorted(spans)), float(absent), float(not absent), score, absent, boxes))
    return tuple(sorted(signals, key=lambda signal: signal.spans[0]))


def _reward(demo: DemoScenes, name: str, text: str, wrong: list[tuple[str, ...]]) -> tuple[Signal, ...]:
    signals = []
    for number, span in enumerate(split_sentences(text)):
        kinds = wrong[number] if number < len(wrong) else ()
        score = float(demo.rng.beta(2, 5) if kinds else demo.rng.beta(6, 2))
        label = " ".join(("0", *(kinds or ("object",)))) if score < 0.5 else "1"
        signals.append(Signal(label, (span,), 1 - score, score, score))
    return tuple(signals)


def write_evaluation(run_dir: Path, demo: DemoScenes, model: str, truth: float) -> None:
    """`evaluation/MODEL/`, by the functions that the stage uses."""
    folder = run_dir / "evaluation" / model
    folder.mkdir(parents=True, exist_ok=True)
    present = {name: frozenset(item.shape for item in scene.objects) for name, scene in demo.scenes.items()}
    reference = Reference(present, Synonyms.identity(SHAPES))
    captions = {name: demo.caption(scene, truth, 4)[0] for name, scene in demo.scenes.items()}
    lines = [json.dumps({"image": name, "prompt": PROMPT, "text": text}) for name, text in captions.items()]
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")
    splits, questions = {}, []
    for number, (name, scene) in enumerate(demo.scenes.items()):
        there = next(iter(scene.objects)).shape if number % 2 else str(demo.rng.choice(SHAPES))
        label = "yes" if there in present[name] else "no"
        questions.append(PopeQuestion(number, name, f"Is there a {there} in the image?", label))
    for split in ("random", "popular", "adversarial"):
        right = demo.rng.random(len(questions)) < truth + 0.1
        other = {"yes": "no", "no": "yes"}
        answers = [q.label if is_right else other[q.label] for q, is_right in zip(questions, right, strict=True)]
        splits[split] = questions, answers
    mme = {
        "existence": [
            MmeQuestion(q.image, kind, truth_, truth_ if demo.rng.random() < truth else "no")
            for q in questions
            for kind, truth_ in (("first", "yes"), ("second", "no"))
        ]
    }
    metrics = {
        "chair": chair_metrics([check_caption(name, text, reference) for name, text in captions.items()]),
        "pope": pope_metrics(splits),
        "mme": mme_metrics(mme),
    }
    split = {name: take_counts(own) for name, own in metrics.items()}
    (folder / "metrics.json").write_text(json.dumps({name: own for name, (own, _) in split.items()}))
    write_counts(folder / "counts.json", {name: counts for name, (_, counts) in split.items()})


def write_reward_model(run_dir: Path, seed: int = 0) -> None:
    """`metrics/reward_eval.jsonl`, two lines of it and half a third."""
    rng = np.random.default_rng(seed)
    kinds = [(), (), ("object",), ("attribute",), ("location", "object")]
    errors = [kinds[rng.integers(len(kinds))] for _ in range(600)]
    lines = []
    for epoch, sharpness in ((1, 2), (2, 4)):
        p_good = np.array([rng.beta(2, sharpness) if kind else rng.beta(sharpness, 2) for kind in errors])
        lines.append(json.dumps({"step": epoch, "epoch": epoch, **evaluate(p_good, errors)}))
    (run_dir / "metrics").mkdir(parents=True, exist_ok=True)
    (run_dir / "metrics" / "reward_eval.jsonl").write_text("\n".join(lines) + '\n{"step": 3, "ep')


def write_ppo(
    run_dir: Path,
    demo: DemoScenes,
    *,
    iterations: int = 3,
    batch: int = 12,
    candidates: int = 2,
    written: Sequence[int] | None = None,
    texts: Mapping[tuple[int, str, int], str] | None = None,
    metrics: bool = True,
    streams: tuple[str, ...] = ("detector",),
) -> None:
    """`ppo/` and `metrics/ppo.jsonl`: captions get truer, and each word is a token with the space before it.

    Args:
      run_dir: gets them.
      demo: whose images they describe; an iteration takes `batch` of them, and after the last the first ones again.
      iterations: of the run.
      batch: images of an iteration.
      candidates: responses to each image.
      written: iterations of which there is a part, from 1; all by default.
      texts: (iteration, image, candidate) → a response to take in place of a made one.
      metrics: whether there are curves.
      streams: which ones judge.
    """
    names, lines = list(demo.scenes), []
    for iteration in range(1, iterations + 1):
        rollouts = []
        for name in (names[(batch * (iteration - 1) + place) % len(names)] for place in range(batch)):
            for number in range(candidates):
                text, wrong = demo.caption(demo.scenes[name], min(0.5 + iteration / iterations / 2, 0.95), 3)
                text = (texts or {}).get((iteration, name, number), text)
                judged = {"detector": _detect, "reward_model": _reward}
                verdicts = tuple(Verdict(name, number, each, judged[each](demo, name, text, wrong)) for each in streams)
                rollouts.append(make_rollout(name, number, text, verdicts, demo.rng))
        if written is None or iteration in written:
            store.write_part(run_dir / "ppo", iteration - 1, iterations, rollouts, Rollout)
        lengths = [len(each.token_ids) for each in rollouts]
        lines.append(
            {
                "step": iteration, "loss": 0.1, "reward": float(np.mean([sum(each.rewards) for each in rollouts])),
                "rewarded": 0.1, "punished": 0.05 / iteration, "kl": 0.1 * (iteration - 1), "kl_factor": 0.2,
                "clip_share": 0.01 * iteration, "value_clip_share": 0.0, "value_loss": 1 / iteration,
                "explained_variance": 1 - 1 / iteration, "entropy": 1.5, "length": float(np.mean(lengths)),
                "unfinished": 0.25, "empty": 0.0,
            }
        )  # fmt: skip
    if metrics:
        (run_dir / "metrics").mkdir(parents=True, exist_ok=True)
        (run_dir / "metrics" / "ppo.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def make_rollout(
    name: str, number: int, text: str, verdicts: tuple[Verdict, ...], rng: np.random.Generator, prompt: str = PROMPT
) -> Rollout:
    """A response with a token for each word, and one that ends it."""
    spans = [Span(*match.span()) for match in re.finditer(r"\s*\S+", text)] + [Span(len(text), len(text))]
    rewards = [0.0] * len(spans)
    for signal in (signal for verdict in verdicts for signal in verdict.signals):
        start = signal.spans[0].start if signal.spans else len(text)
        rewards[next((i for i, span in enumerate(spans) if span.end > start), -1)] += signal.positive - signal.negative
    noise = rng.normal(size=(4, len(spans)))
    return Rollout(
        image=name, prompt=prompt, candidate=number, text=text, token_ids=tuple(range(len(spans))),
        token_spans=tuple(spans), finish_reason="stop", logprobs=tuple(-abs(noise[0])),
        ref_logprobs=tuple(-abs(noise[1])), values=tuple(noise[2] / 5), rewards=tuple(rewards),
        advantages=tuple(noise[3]), verdicts=verdicts,
    )  # fmt: skip


def write_config(run_dir: Path, images: Path) -> None:
    """As much of a run's config as the report reads."""
    (run_dir / "config.yaml").write_text(f"run:\n  dir: {run_dir}\n  records: null\nsample:\n  images: {images}\n")


def make_run(run_dir: Path, count: int = 60, seed: int = 0, *, truth: float = 0.85, **options) -> DemoScenes:
    """A run with all of its parts."""
    demo = draw_demo(run_dir / "images", count, seed)
    write_records(run_dir, demo, **options)
    write_evaluation(run_dir, demo, "base", 0.55)
    write_evaluation(run_dir, demo, "tuned", truth)
    write_reward_model(run_dir, seed)
    write_config(run_dir, run_dir / "images")
    return demo
