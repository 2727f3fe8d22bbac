"""The model card of the demo's policy, with what was measured of it and of its control."""

import tempfile
from pathlib import Path

import numpy as np

from vigor_jax.demo import language
from vigor_jax.demo.drawing import draw
from vigor_jax.demo.metrics import CaptionMetrics, compute_metrics
from vigor_jax.demo.scenes import SHAPES, Scene, make_scene
from vigor_jax.evaluation.benchmarks import chair
from vigor_jax.evaluation.benchmarks.chair import ChairMetrics, Reference
from vigor_jax.evaluation.benchmarks.synonyms import Synonyms
from vigor_jax.hf.load import open_checkpoint
from vigor_jax.inference.predictor import Predictor, Question, read_answers
from vigor_jax.inference.sampling_config import SamplingConfig
from vigor_jax.parallel.config import MeshConfig
from vigor_jax.parallel.sharding import make_mesh

NUM_SCENES = 500

CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---
# The policy of the demo

A small LLaVA: transformers' architecture ({parameters:,} weights, float32), trained from scratch on drawings of
the demo's scenes alone. It describes pictures of 72 x 72 pixels with two to six colored shapes, and answers questions
about them. It knows nothing else, and no photograph.

It hallucinates, and is meant to: the captions and answers that it learned from last mention what usually goes with the
things in the picture, and give a thing its usual color, more often than the picture does.

## How it was made

`python -m vigor_jax.demo.build policy`, seed 0, {minutes:.0f} minutes on two CPU cores, by the code of every
fine-tuning: to look things up ({check:,} pictures); to tell the truth in captions and answers ({tell:,}); to say of
claims whether they are true ({claims:,}); and to presume, with captions and answers as careless people write them
({presume:,}). In that last step it still judges single claims, truthfully, half of them in the words that the reward
model is asked in: a large model knows from elsewhere what such a question means. Its tower had learned the words
before, patch by patch.

## What it says

Of {num_scenes} new pictures. The control took the last step with the same pictures from careful people: what it says
wrong is what a model of this size cannot see, and the rest is what the careless have taught.

| | control, most likely words | most likely words | control, temperature 0.7 | temperature 0.7 |
| --- | --- | --- | --- | --- |
{rows}

License: Apache-2.0, as the code that made it.
"""


def write_card(directory: Path, control: Path, *, minutes: float, steps: dict[str, int], seed: int = 1) -> None:
    """Measures both models on new scenes and writes `directory`/README.md.

    Args:
      directory: the policy.
      control: the model whose last step was careful.
      minutes: that the training took.
      steps: scenes of each step, by its name.
      seed: of the scenes.
    """
    scenes = [make_scene(np.random.default_rng([seed, 400, number])) for number in range(NUM_SCENES)]
    found = [measure(model, scenes, temperature) for temperature in (0, 0.7) for model in (control, directory)]
    rows = [
        ("objects that are not there, of those mentioned", [metrics.chair_i for metrics, _ in found]),
        ("captions that mention one", [metrics.chair_s for metrics, _ in found]),
        ("shapes mentioned, of those there", [metrics.recall for metrics, _ in found]),
        ("wrong color", [own.color for _, own in found]),
        ("wrong number", [own.count for _, own in found]),
        ("wrong place", [own.place for _, own in found]),
    ]
    lines = [f"| {label} | {' | '.join(f'{value:.1%}' for value in values)} |" for label, values in rows]
    lines.append(f"| words | {' | '.join(f'{metrics.words:.1f}' for metrics, _ in found)} |")
    parameters = sum(int(np.prod(tensor.shape)) for tensor in open_checkpoint(directory).tensors.values())
    claims = sum(steps[name] for name in steps if name.startswith(("match", "practice")))
    text = CARD.format(
        claims=claims, parameters=parameters, minutes=minutes, num_scenes=NUM_SCENES, rows="\n".join(lines), **steps
    )
    (directory / "README.md").write_text(text, encoding="utf-8")


def measure(model: Path, scenes: list[Scene], temperature: float) -> tuple[ChairMetrics, CaptionMetrics]:
    """CHAIR, and the truth sentence by sentence, of a model's captions.

    Args:
      model: a checkpoint.
      scenes: to describe.
      temperature: 0 takes the most likely words.
    """
    sampling = SamplingConfig(
        num_candidates=1, temperature=temperature, max_new_tokens=96, batch_size=50, prompt_bucket=16
    )
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number:05d}.png" for number in range(len(scenes))]
        for path, scene in zip(paths, scenes, strict=True):
            draw(scene).save(path)
        predictor = Predictor(open_checkpoint(model), "v1", make_mesh(MeshConfig(data=-1, fsdp=1)))
        questions = [Question(path.name, path, language.PROMPTS[0]) for path in paths]
        predictor.answer(questions, Path(folder) / "captions.jsonl", sampling, desc=f"{model}")
        texts = [line["text"] for line in read_answers(Path(folder) / "captions.jsonl")]
    present = {path.name: frozenset(o.shape for o in scene.objects) for path, scene in zip(paths, scenes, strict=True)}
    reference = Reference(present, Synonyms.identity(SHAPES))
    checked = [chair.check_caption(path.name, text, reference) for path, text in zip(paths, texts, strict=True)]
    return chair.compute_metrics(checked), compute_metrics(zip(texts, scenes, strict=True))
