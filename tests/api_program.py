"""A user's program with every public name, for `mypy --strict`; it is not run."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

import vigor_jax as vj

model = vj.load("llava-1.5-7b-hf", template="v1", dtype="bfloat16", int8=True, mesh=vj.MeshConfig(data=-1, fsdp=1))
reveal_type(model)
policy: vj.Policy = model
picture = Image.new("RGB", (8, 8))
array: npt.NDArray[np.uint8] = np.zeros((4, 4, 3), np.uint8)
images: list[str | bytes | Image.Image | npt.NDArray[np.uint8]] = ["a.jpg", b"...", picture, array]
for each in (array, picture, Path("a.jpg"), b"..."):
    model.generate(each, "What?")
model.generate([Path("a.jpg"), Path("b.jpg")], ["What?", "Who?"])
responses = model.generate(images, "Describe this image.", num_candidates=5, seed=0, temperature=0.7, top_p=0.9)
reveal_type(responses)
first: vj.Response = responses[0]
reveal_type(first.logprobs)
scores = model.logprobs(["a.jpg", "b.jpg"], ["What?", "Who?"], ["A dog.", "A man."])
reveal_type(scores)
one: vj.ResponseLogprobs = scores[0]
scores = model.logprobs(images, None, responses)
scores = model.logprobs("a.jpg", "What?", [[1, 2], [3]])

judge = vj.RewardModel.load("reward-model", mesh=vj.MeshConfig(), batch_size=4)
with vj.Detector(["127.0.0.1:50051"], phrases=vj.PhrasesConfig(extractor="entities"), box_threshold=0.3) as detector:
    found = detector.judge(images, responses)
reveal_type(found)
said = judge.judge("a.jpg", [["A dog.", "A cat."]])
claims = vj.Claims(kinds=["number", "place"], judge={"place_margin": 0.1})
with vj.Detector(model="grounding-dino-tiny", claims=claims) as own:
    said += claims.judge(own.judge(images, responses))
judgment: vj.Judgment = said[0]
signal: vj.Signal = judgment.signals[0]
fused: list[vj.Fused] = vj.fuse(responses, found, said, rule="balanced", weights={"detector": 0.5})
chosen = vj.choose(responses, found, per="sentence")
reveal_type(chosen)
best: vj.Chosen = chosen[0]
refined: vj.Refined = vj.refine(best, found)
whole: vj.Refined = vj.refine("A dog.", said, drop_continuations=True)
sentence: vj.Sentence = vj.sentences("A dog.")[0]
phrase: vj.Phrase = vj.phrases("A dog.")[0]


def train(config: vj.TrainConfig) -> None:
    try:
        tuned = vj.sft(config, sft={"epochs": 2})
        reveal_type(tuned)
        vj.run("configs/vigor_all_7b.yaml", model={"path": tuned})
        vj.run({"model": {"path": tuned}}, run={"dir": "runs/a"})
        vj.export("runs/a/checkpoints/sft", "out", layout="llava-hf", dtype="bfloat16")
    except vj.InputError as error:
        print(error, vj.__version__)
