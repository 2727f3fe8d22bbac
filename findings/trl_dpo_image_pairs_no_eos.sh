#!/usr/bin/env bash
# TRL: DPOTrainer ends plain-text preference pairs with the tokenizer's EOS, but not the same pairs once they have an image, so from those a model never learns where to stop.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q trl==1.16.0 transformers==5.24.0 torch==2.13.0 datasets==5.2.0 pillow==13.0.0
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PROGRAM'
import logging
import warnings

import datasets
import PIL.Image
import tokenizers
import torch
import transformers
import trl
from datasets import Dataset, Image, List

print("trl", trl.__version__, "transformers", transformers.__version__, "torch", torch.__version__)
print("behavior: the same pairs are trained with an EOS without images and without one with images")
logging.disable(logging.WARNING)
warnings.simplefilter("ignore")
datasets.disable_progress_bars()

# A LLaVA of a few thousand weights, and a tokenizer of eight words.
words = ["<unk>", "<s>", "</s>", "<pad>", "<image>", "describe", "red", "blue"]
split = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
split.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=split,
    unk_token="<unk>",
    bos_token="<s>",
    eos_token="</s>",
    pad_token="<pad>",
    additional_special_tokens=["<image>"],
)
size = {"height": 28, "width": 28}
processor = transformers.LlavaProcessor(
    image_processor=transformers.CLIPImageProcessor(size=size, crop_size=size),
    tokenizer=tokenizer,
    patch_size=14,
    vision_feature_select_strategy="default",
    num_additional_image_tokens=1,
    image_token="<image>",
)
shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
config = transformers.LlavaConfig(
    vision_config=transformers.CLIPVisionConfig(**shape, image_size=28, patch_size=14),
    text_config=transformers.LlamaConfig(
        **shape, num_key_value_heads=2, vocab_size=len(words), bos_token_id=1, eos_token_id=2, pad_token_id=3
    ),
    image_token_index=4,
)
text = {"prompt": "describe ", "chosen": "red", "rejected": "blue"}
data = {
    "without images": Dataset.from_list([text]),
    "with an image": Dataset.from_list(
        [text | {"prompt": "<image> describe ", "images": [PIL.Image.new("RGB", (28, 28))]}]
    ).cast_column("images", List(Image())),
}
ends = {}
for name, pairs in data.items():
    trainer = trl.DPOTrainer(
        model=transformers.LlavaForConditionalGeneration(config),
        ref_model=transformers.LlavaForConditionalGeneration(config),
        args=trl.DPOConfig(
            output_dir="out", per_device_train_batch_size=1, max_length=None, report_to="none", use_cpu=True, bf16=False
        ),
        train_dataset=pairs,
        processing_class=processor,
    )
    (batch,) = trainer.get_train_dataloader()
    trained = [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["completion_mask"])]
    print(f"{name}: chosen and rejected that are trained: {[tokenizer.convert_ids_to_tokens(ids) for ids in trained]}")
    ends[name] = [ids[-1] == tokenizer.eos_token_id for ids in trained]
raise SystemExit(ends != {"without images": [True, True], "with an image": [False, False]})
PROGRAM
