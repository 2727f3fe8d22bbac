"""What transformers makes of checkpoint directories: the ids that it asks with and the answers; any version runs this.

As a program: `python served.py JOBS` prints one JSON line. JOBS is a JSON file with a list of `Job`s as objects.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
import transformers


def picture(seed: int) -> PIL.Image.Image:
    """A small picture of noise that is not square."""
    return PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8))


def serve(job: dict[str, Any]) -> dict[str, Any]:
    """Args:
    job: `directory`; `texts`, prompts as text; `conversations`, prompts as messages; `never`, ids not to be
        generated; `num_new_tokens`, 0 for ids alone.

    Returns:
      `text_ids` and `chat_ids`, ids of each prompt with its pictures; `chat_texts`; `answers`, ids that are generated
      after each conversation, greedily.
    """
    processor = transformers.AutoProcessor.from_pretrained(job["directory"])
    image_token = processor.image_token

    def encode(text: str) -> Any:
        images = [picture(seed) for seed in range(text.count(image_token))]
        return processor(images=images or None, text=text, return_tensors="pt")

    chat_texts = [processor.apply_chat_template(found, add_generation_prompt=True) for found in job["conversations"]]
    found = {
        "version": transformers.__version__,
        "text_ids": [encode(text)["input_ids"][0].tolist() for text in job["texts"]],
        "chat_ids": [encode(text)["input_ids"][0].tolist() for text in chat_texts],
        "chat_texts": chat_texts,
        "answers": [],
    }
    if job["num_new_tokens"]:
        model = transformers.LlavaForConditionalGeneration.from_pretrained(
            job["directory"], torch_dtype=torch.float32
        ).eval()
        for text in chat_texts:
            inputs = encode(text)
            tokens = model.generate(
                **inputs, do_sample=False, max_new_tokens=job["num_new_tokens"], suppress_tokens=job["never"]
            )
            found["answers"].append(tokens[0, inputs["input_ids"].shape[1] :].tolist())
    return found


if __name__ == "__main__":
    print(json.dumps([serve(job) for job in json.loads(Path(sys.argv[1]).read_text())]))
