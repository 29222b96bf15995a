"""SmolVLM2: tiles with text between, on a laptop.

python docs/examples/smolvlm.py                                   # a small random model
python docs/examples/smolvlm.py --model HuggingFaceTB/SmolVLM2-256M-Video-Instruct --image photo.jpg
"""

import argparse
from importlib.resources import files
from typing import Any

import torch
from PIL import Image
from transformers import (
    LlamaConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessorPil,
)

import secateur as sc


def small(picture: Image.Image) -> tuple[Any, dict[str, torch.Tensor]]:
    """A model of this family with random weights, and a prompt: the picture, then nine words."""
    torch.manual_seed(0)
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": 56,
        "patch_size": 7,
    }
    text = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=128,
        pad_token_id=0,
    )
    config = SmolVLMConfig(vision_config=vision, text_config=text, image_token_id=4)
    model = SmolVLMForConditionalGeneration(config)
    prepare = SmolVLMImageProcessorPil(
        size={"longest_edge": 112}, max_image_size={"longest_edge": 56}
    )
    visual = dict(prepare(images=picture, return_tensors="pt"))
    tile = [5, 6, *[model.config.image_token_id] * 16]  # a mark, the tile's place, the tile
    words = torch.randint(20, 100, (1, 10))
    placed = torch.tensor([[*tile * visual["pixel_values"].shape[1], 5]])
    ids = torch.cat([words[:, :1], placed, words[:, 1:]], dim=1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **visual}
    return model.eval(), inputs


def real(name: str, picture: Image.Image, question: str) -> tuple[Any, Any, Any]:
    """A checkpoint, its processor and the same prompt in its own template."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(name, dtype="auto", device_map="auto")
    processor = AutoProcessor.from_pretrained(name)
    content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    return model, processor, inputs.to(model.device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model")
    parser.add_argument("--image", default=files("secateur") / "data" / "coffee.jpg")
    parser.add_argument("--question", default="What is on the table?")
    parser.add_argument("--keep", type=float, default=0.25)
    parser.add_argument("--picture", help="where to save a picture of what was kept")
    chosen = parser.parse_args()
    with Image.open(chosen.image) as opened:
        picture = opened.convert("RGB")
    processor = None
    if chosen.model:
        model, processor, inputs = real(chosen.model, picture, chosen.question)
    else:
        model, inputs = small(picture)
    with sc.attach(model, sc.TopK(keep=chosen.keep), processor) as att:
        out = model.generate(**inputs, max_new_tokens=20, do_sample=False)
    new = out[0, inputs["input_ids"].shape[1] :]
    print(processor.decode(new, skip_special_tokens=True) if processor else new.tolist())
    print(att.last)
    if chosen.picture:
        whole = len(att.last.pictures[0]) - 1  # the last, after the tiles
        att.last.overlay(picture, part=whole).save(chosen.picture)


if __name__ == "__main__":
    main()
