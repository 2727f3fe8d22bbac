"""Run by any version of transformers: what it makes of a folder of InstructBLIP, as JSON lines.

Arguments: a JSON list of jobs, each with `directory`, `image`, `prompts`, `never` (token ids) and `num_tokens`; and
where to save the last one's model and processor again, or nothing.
"""

import json
import sys

import PIL.Image
import torch
import transformers

jobs = json.loads(sys.argv[1])
for job in jobs:
    model, info = transformers.InstructBlipForConditionalGeneration.from_pretrained(
        job["directory"], torch_dtype=torch.float32, output_loading_info=True
    )
    model.eval()
    processor = transformers.InstructBlipProcessor.from_pretrained(job["directory"])
    image = PIL.Image.open(job["image"]).convert("RGB")
    rows = []
    for prompt in job["prompts"]:
        inputs = processor(images=image, text=prompt, return_tensors="pt")
        count = job["num_tokens"]
        options = {"suppress_tokens": job["never"], "max_new_tokens": count, "do_sample": False}
        tokens = model.generate(**inputs, **options, eos_token_id=2, pad_token_id=0)
        with torch.no_grad():
            logits = model(**inputs).logits
        rows.append(
            {
                "ids": inputs["input_ids"][0].tolist(),
                "words": inputs["qformer_input_ids"][0].tolist(),
                "tokens": tokens[0, inputs["input_ids"].shape[1] :].tolist(),
                "logits": logits[0, -1].tolist(),
            }
        )
    problems = [sorted(map(str, info[key])) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")]
    print(json.dumps({"version": transformers.__version__, "problems": problems, "rows": rows}))
if len(sys.argv) > 2:
    model.save_pretrained(sys.argv[2], max_shard_size="60KB")
    processor.save_pretrained(sys.argv[2])
