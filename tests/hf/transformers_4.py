"""Run by the second environment's interpreter: what transformers 4 makes of a checkpoint directory, as JSON."""

import json
import sys

import numpy as np
import PIL.Image
import torch
import transformers

directory, resaved = sys.argv[1:]
model, info = transformers.LlavaForConditionalGeneration.from_pretrained(
    directory, torch_dtype=torch.float32, output_loading_info=True
)
processor = transformers.AutoProcessor.from_pretrained(directory)
image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
inputs = processor(images=image, text="USER: <image>\nWhat is there? ASSISTANT:", return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits
tokens = model.generate(**inputs, max_new_tokens=12, do_sample=False)
model.save_pretrained(resaved)
print(
    json.dumps(
        {
            "version": transformers.__version__,
            "problems": [info["missing_keys"], info["unexpected_keys"], info["mismatched_keys"]],
            "input_ids": inputs["input_ids"].tolist(),
            "logits": logits.tolist(),
            "tokens": tokens.tolist(),
        },
        default=list,
    )
)
