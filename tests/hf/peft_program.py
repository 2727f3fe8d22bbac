"""Run by an interpreter that has PEFT: what it makes of adapters on their base, as JSON.

python peft_program.py BASE '[ADAPTER, ...]'
"""

import json
import sys
import warnings

import numpy as np
import peft
import torch
import transformers


def logits_with(base: str, adapter: str | None) -> tuple[list, list[str]]:
    """Logits of a fixed prompt and picture, and what PEFT says it missed or did not know."""
    model = transformers.LlavaForConditionalGeneration.from_pretrained(base, torch_dtype=torch.float32)
    problems: list[str] = []
    if adapter is not None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = peft.PeftModel.from_pretrained(model, adapter)
        words = ("missing", "unexpected", "ignored", "not found")
        problems = [str(each.message) for each in caught if any(word in str(each.message).lower() for word in words)]
    image, edge = 509, model.config.vision_config.image_size
    ids = torch.tensor([[1, *[image] * 4, *range(10, 30)]])
    rng = np.random.default_rng(0)
    pixels = torch.tensor(rng.normal(size=(1, 3, edge, edge)), dtype=torch.float32)
    with torch.no_grad():
        return model.eval()(input_ids=ids, pixel_values=pixels).logits.tolist(), problems


if __name__ == "__main__":
    base, adapters = sys.argv[1], json.loads(sys.argv[2])
    found = [logits_with(base, adapter) for adapter in adapters]
    print(json.dumps({"version": transformers.__version__, "found": found}))
