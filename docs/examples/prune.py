"""Attach a method to a model of any family, answer one question, and see what was kept.

python docs/examples/prune.py qwen3_vl                       # a small random model of the family
python docs/examples/prune.py llava --model llava-hf/llava-1.5-7b-hf --image photo.jpg
python docs/examples/prune.py qwen2_5_vl --model Qwen/Qwen2.5-VL-7B-Instruct --method erase
"""

import argparse
from importlib.resources import files
from typing import Any

import torch
import transformers as hf
from PIL import Image

import secateur as sc

CROPS = [[56, 112], [112, 56], [112, 112]]
DECODER = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
}
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 7,
}
QWEN_TOWER = {
    "depth": 4,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 4,
    "out_hidden_size": 64,
}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
IDS = {"image_token_id": 4, "video_token_id": 5}


def llava() -> tuple[Any, Any]:
    vision, text = hf.CLIPVisionConfig(**TOWER), hf.LlamaConfig(**DECODER)
    config = hf.LlavaConfig(vision_config=vision, text_config=text, image_token_id=4)
    square = {"height": 56, "width": 56}
    prepare = hf.CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size=square)
    return hf.LlavaForConditionalGeneration(config), prepare


def llava_next() -> tuple[Any, Any]:
    vision, text = hf.CLIPVisionConfig(**TOWER), hf.LlamaConfig(**DECODER)
    crops = {"image_grid_pinpoints": CROPS}
    config = hf.LlavaNextConfig(vision_config=vision, text_config=text, image_token_id=4, **crops)
    square = {"height": 56, "width": 56}
    prepare = hf.LlavaNextImageProcessorPil(size={"shortest_edge": 56}, crop_size=square, **crops)
    return hf.LlavaNextForConditionalGeneration(config), prepare


def llava_onevision() -> tuple[Any, Any]:
    vision = hf.SiglipVisionConfig(**TOWER, vision_use_head=False)
    text, crops = hf.Qwen2Config(**DECODER), {"image_grid_pinpoints": CROPS}
    config = hf.LlavaOnevisionConfig(vision_config=vision, text_config=text, **IDS, **crops)
    prepare = hf.LlavaOnevisionImageProcessorPil(size={"height": 56, "width": 56}, **crops)
    return hf.LlavaOnevisionForConditionalGeneration(config), prepare


def qwen2_5_vl() -> tuple[Any, Any]:
    vision = {**QWEN_TOWER, "fullatt_block_indexes": [1, 3]}
    text = {**DECODER, "rope_parameters": ROPE}
    config = hf.Qwen2_5_VLConfig(vision_config=vision, text_config=text, **IDS)
    prepare = hf.Qwen2VLImageProcessorPil(size={"shortest_edge": 3136, "longest_edge": 200704})
    return hf.Qwen2_5_VLForConditionalGeneration(config), prepare


def qwen3_vl() -> tuple[Any, Any]:
    deepstack = {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1, 2]}
    vision = {**QWEN_TOWER, **deepstack}
    text = {**DECODER, "head_dim": 16, "rope_parameters": {**ROPE, "mrope_interleaved": True}}
    config = hf.Qwen3VLConfig(vision_config=vision, text_config=text, **IDS)
    halves = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    size = {"shortest_edge": 4096, "longest_edge": 262144}
    prepare = hf.Qwen2VLImageProcessorPil(patch_size=16, size=size, **halves)
    return hf.Qwen3VLForConditionalGeneration(config), prepare


def qwen3_5() -> tuple[Any, Any]:
    vision = {**QWEN_TOWER, "num_position_embeddings": 64}
    sizes = {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
    heads = {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
    rope = {**ROPE, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5}
    text = {**DECODER, **sizes, **heads, "head_dim": 16, "rope_parameters": rope}
    config = hf.Qwen3_5Config(vision_config=vision, text_config=text, **IDS)
    halves = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    size = {"shortest_edge": 4096, "longest_edge": 262144}
    prepare = hf.Qwen2VLImageProcessorPil(patch_size=16, size=size, **halves)
    return hf.Qwen3_5ForConditionalGeneration(config), prepare


def glm() -> tuple[Any, Any]:
    rope = {**ROPE, "mrope_section": [1, 1, 2], "partial_rotary_factor": 0.5}
    vision, text = {**QWEN_TOWER, "image_size": 56}, {**DECODER, "rope_parameters": rope}
    config = hf.Glm4vConfig(vision_config=vision, text_config=text, **IDS)
    prepare = hf.Glm4vImageProcessorPil(size={"shortest_edge": 6272, "longest_edge": 401408})
    return hf.Glm4vForConditionalGeneration(config), prepare


def internvl() -> tuple[Any, Any]:
    vision, text = hf.InternVLVisionConfig(**TOWER), hf.Qwen2Config(**DECODER)
    config = hf.InternVLConfig(vision_config=vision, text_config=text, image_token_id=4)
    square = {"height": 56, "width": 56}
    prepare = hf.GotOcr2ImageProcessorPil(size=square, crop_to_patches=True)
    return hf.InternVLForConditionalGeneration(config), prepare


def smolvlm() -> tuple[Any, Any]:
    text = hf.LlamaConfig(**DECODER, pad_token_id=0)
    config = hf.SmolVLMConfig(vision_config=TOWER, text_config=text, image_token_id=4)
    size = {"size": {"longest_edge": 112}, "max_image_size": {"longest_edge": 56}}
    return hf.SmolVLMForConditionalGeneration(config), hf.SmolVLMImageProcessorPil(**size)


def gemma3() -> tuple[Any, Any]:
    vision = hf.SiglipVisionConfig(**TOWER, vision_use_head=False)
    text = hf.Gemma3TextConfig(**DECODER, head_dim=16)
    config = hf.Gemma3Config(
        vision_config=vision, text_config=text, mm_tokens_per_image=16, image_token_index=4
    )
    prepare = hf.Gemma3ImageProcessorPil(size={"height": 56, "width": 56})
    return hf.Gemma3ForConditionalGeneration(config), prepare


def gemma4() -> tuple[Any, Any]:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, **heads}
    vision |= {"patch_size": 7, "pooling_kernel_size": 2}
    text = {**DECODER, "head_dim": 16, "global_head_dim": 16, "vocab_size_per_layer_input": 128}
    config = hf.Gemma4Config(vision_config=vision, text_config=text, **IDS, audio_token_id=6)
    prepare = hf.Gemma4ImageProcessorPil(patch_size=7, pooling_kernel_size=2, max_soft_tokens=70)
    return hf.Gemma4ForConditionalGeneration(config), prepare


def mistral3() -> tuple[Any, Any]:
    vision = hf.PixtralVisionConfig(**TOWER)
    text = hf.MistralConfig(**DECODER, sliding_window=None)
    config = hf.Mistral3Config(vision_config=vision, text_config=text, image_token_index=4)
    patch = {"height": 14, "width": 14}  # of those that were merged
    prepare = hf.PixtralImageProcessorPil(size={"longest_edge": 112}, patch_size=patch)
    return hf.Mistral3ForConditionalGeneration(config), prepare


SMALL = {
    each.__name__: each
    for each in (
        llava,
        llava_next,
        llava_onevision,
        qwen2_5_vl,
        qwen3_vl,
        qwen3_5,
        glm,
        internvl,
        smolvlm,
        gemma3,
        gemma4,
        mistral3,
    )
}
"""A model of each family with random weights, and what prepares its pictures."""

METHODS = {
    "llava": "eadp",
    "llava_next": "topk",
    "llava_onevision": "divprune",
    "qwen2_5_vl": "erase",
    "qwen3_vl": "eadp",
    "qwen3_5": "divprune",
    "glm": "topk",
    "internvl": "topk",
    "smolvlm": "topk",
    "gemma3": "topk",
    "gemma4": "topk",
    "mistral3": "topk",
}
"""What to attach when nobody says: something that the family shows well."""


def placed(family: str, model: Any, visual: dict[str, torch.Tensor]) -> list[int]:
    """What stands for the picture in the prompt."""
    token = model.config.image_token_id
    if family == "internvl":
        return [token] * 16 * len(visual["pixel_values"])
    if family == "smolvlm":  # a mark, the tile's place, the tile; a mark at the end
        return [5, 6, *[token] * 16] * visual["pixel_values"].shape[1] + [5]
    if family == "mistral3":  # a mark behind each row
        height, width = (int(n) // 14 for n in visual["image_sizes"][0])
        return ([token] * width + [5]) * height
    with torch.no_grad():
        features = model.get_image_features(**visual, return_dict=True).pooler_output[0]
    return [token] * len(features)


def small(family: str, picture: Image.Image) -> tuple[Any, dict[str, torch.Tensor]]:
    """A small model, and a prompt: a word, the picture, then nine words."""
    torch.manual_seed(0)
    model, prepare = SMALL[family]()
    visual = dict(prepare(images=picture, return_tensors="pt"))
    # What a processor would put into the prompt.
    for name in ("num_patches", "num_crops", "num_soft_tokens_per_image"):
        visual.pop(name, None)
    words = torch.randint(20, 100, (1, 10))
    ids = torch.cat(
        [words[:, :1], torch.tensor([placed(family, model, visual)]), words[:, 1:]], dim=1
    )
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **visual}
    types = "token_type_ids" if family == "gemma3" else "mm_token_type_ids"
    if family.startswith(("gemma", "qwen")):
        inputs[types] = (ids == model.config.image_token_id).int()
    return model.eval(), inputs


def real(name: str, picture: Image.Image, question: str) -> tuple[Any, Any, Any]:
    """A checkpoint, its processor and the same prompt in its own template."""
    model = hf.AutoModelForImageTextToText.from_pretrained(name, dtype="auto", device_map="auto")
    processor = hf.AutoProcessor.from_pretrained(name)
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
    parser.add_argument("family", choices=list(SMALL))
    parser.add_argument("--model", help="a checkpoint of the family, else a small random model")
    parser.add_argument("--image", default=files("secateur") / "data" / "coffee.jpg")
    parser.add_argument("--question", default="What is on the table?")
    parser.add_argument("--method", help="one of `secateur methods`")
    parser.add_argument("--keep", type=float, default=0.25)
    parser.add_argument("--picture", help="where to save a picture of what was kept")
    chosen = parser.parse_args()
    with Image.open(chosen.image) as opened:
        picture = opened.convert("RGB")
    processor = None
    if chosen.model:
        model, processor, inputs = real(chosen.model, picture, chosen.question)
    else:
        model, inputs = small(chosen.family, picture)
    # Without text_encoder=(CLIPModel, tokenizer), methods that read the question compare it with
    # tokens in the language model's space; with the tower's own CLIP or SigLIP, in theirs.
    method = sc.method(chosen.method or METHODS[chosen.family], keep=chosen.keep)
    with sc.attach(model, method, processor) as attached:
        out = model.generate(**inputs, max_new_tokens=20, do_sample=False)
    new = out[0, inputs["input_ids"].shape[1] :]
    print(processor.decode(new, skip_special_tokens=True) if processor else new.tolist())
    print(attached.last)
    for number, part in enumerate(attached.last.pictures[0]):
        print(f"part {number}: {part.budget} of {part.kept.size} tokens, grid {part.grid}")
    for after, kept in next(iter(attached.last.inside), ()):
        print(f"after {after} layers {len(kept)} visual tokens were left")
    if chosen.picture:
        attached.last.overlay(picture).save(chosen.picture)


if __name__ == "__main__":
    main()
