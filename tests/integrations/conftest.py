"""Every model family small, with random weights, and prompts as its own processor makes them."""

from __future__ import annotations

import string
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="attachments need PyTorch")
transformers = pytest.importorskip("transformers", reason="attachments need transformers")

from PIL import Image  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402

import secateur as sc  # noqa: E402

transformers.logging.set_verbosity_error()
torch.set_num_threads(2)

WORDS = (
    "a an the what is in on of how many color does this picture show count red green blue left "
    "right dog cat car tree sky man woman stop sign USER ASSISTANT : ? . , you are helpful "
    "assistant user system describe compare both and"
).split()
SPECIAL = [
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    "<image>",
    "<video>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
CHAT = (
    "{% for m in messages %}{{ m['role'].upper() + ' : ' }}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}{{ '<image> ' }}{% elif c['type'] == 'video' %}{{ '<video> ' }}"
    "{% else %}{{ c['text'] + ' ' }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT :' }}{% endif %}"
)
CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|> system you are helpful <|im_end|> "
    "{% endif %}{% for m in messages %}<|im_start|> {{ m['role'] }} {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_start|> <|image_pad|> <|vision_end|> "
    "{% elif c['type'] == 'video' %}<|vision_start|> <|video_pad|> <|vision_end|> "
    "{% else %}{{ c['text'] }} {% endif %}{% endfor %}<|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant{% endif %}"
)


def tokenizer(marks: Sequence[str] = (), **special: str) -> Any:
    """A word-level tokenizer of the words above, a letter where it knows no word, then `marks`."""
    listed = [*SPECIAL, *WORDS, *string.ascii_lowercase, *string.digits, *marks]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(listed))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", **special
    )
    made.add_special_tokens({"additional_special_tokens": [*SPECIAL[4:], *marks]})
    made.padding_side = "left"
    return made


def picture(seed: int, height: int, width: int) -> Image.Image:
    """Noise over a gradient, different for every seed."""
    random = np.random.default_rng(seed)
    ramp = np.linspace(0, 120, width)[None, :, None] + np.zeros((height, 1, 3))
    noise = random.integers(0, 136, (height, width, 3))
    return Image.fromarray((ramp + noise).astype(np.uint8))


def seeded(model: Any) -> Any:
    """Weights large enough that layers and positions matter."""
    generator = torch.Generator().manual_seed(7)
    for name, weight in model.named_parameters():
        if weight.ndim >= 2:
            scale = 0.9 / weight[0].numel() ** 0.5 if "embed_tokens" not in name else 1.0
            weight.data = scale * torch.randn(weight.shape, generator=generator)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.eval()


@dataclass
class Case:
    """A family: how to build its model and its prompts."""

    name: ClassVar[str]
    layers: ClassVar[int] = 4
    videos: ClassVar[bool] = False
    variant: ClassVar[bool] = False
    """Whether it differs from another only by class: its tests are slow ones."""
    cuttable: ClassVar[bool] = True
    """Whether methods that shorten caches can cut between the layers of its decoder."""
    image_mark: ClassVar[str] = "<image>"
    sizes: ClassVar[tuple[tuple[int, int], ...]] = ((32, 32),)

    def build(self, **config: Any) -> Any:
        raise NotImplementedError

    def processor(self) -> Any:
        raise NotImplementedError

    def model(self, attention: str = "sdpa", **config: Any) -> Any:
        torch.manual_seed(0)
        made = seeded(self.build(**config))
        made.set_attn_implementation(attention)
        return made

    def text(self, words: str, images: int = 1, videos: int = 0) -> str:
        content = [{"type": "image"}] * images + [{"type": "video"}] * videos
        message = [{"role": "user", "content": [*content, {"type": "text", "text": words}]}]
        return self.processor().apply_chat_template(message, add_generation_prompt=True)

    def standing(self, model: Any, ids: Any) -> Any:
        """True at the tokens of images."""
        return ids == model.config.image_token_id

    def images(self, count: int, seed: int = 0) -> list[Image.Image]:
        return [picture(seed + n, *self.sizes[(seed + n) % len(self.sizes)]) for n in range(count)]

    def inputs(
        self,
        words: tuple[str, ...] = ("what is in this picture ?",),
        images: tuple[int, ...] = (1,),
        seed: int = 0,
        side: str = "left",
        **more: Any,
    ) -> dict[str, Any]:
        """Inputs of a batch: for each prompt its words and how many images it has."""
        processor = self.processor()
        processor.tokenizer.padding_side = side
        texts = [self.text(each, count) for each, count in zip(words, images, strict=True)]
        pictures = self.images(sum(images), seed)
        made = processor(
            text=texts, images=pictures or None, return_tensors="pt", padding=True, **more
        )
        return dict(made)


class LlavaCase(Case):
    name = "llava"

    def build(self, **config):
        vision = transformers.CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=32,
            patch_size=8,
            projection_dim=24,
        )
        text = transformers.LlamaConfig(
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=self.layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=128,
            max_position_embeddings=2048,
            **config,
        )
        return transformers.LlavaForConditionalGeneration(
            transformers.LlavaConfig(
                vision_config=vision, text_config=text, image_token_id=4, image_seq_length=16
            )
        )

    def processor(self):
        images = transformers.CLIPImageProcessorPil(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        )
        return transformers.LlavaProcessor(
            image_processor=images,
            tokenizer=tokenizer(bos_token="<s>"),
            patch_size=8,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=CHAT,
        )


class QwenProcessor:
    """The image processor and tokenizer of Qwen; its own processor needs torchvision for videos."""

    chat_template = CHATML

    def __init__(self, patch: int, **how: Any) -> None:
        self.image_processor = (
            transformers.models.qwen2_vl.image_processing_pil_qwen2_vl.Qwen2VLImageProcessorPil(
                patch_size=patch,
                merge_size=2,
                temporal_patch_size=2,
                size={"shortest_edge": 16, "longest_edge": 4096},
                **how,
            )
        )
        self.tokenizer = tokenizer()
        self.tokenizer.chat_template = CHATML

    def apply_chat_template(self, messages: Any, **how: Any) -> Any:
        return self.tokenizer.apply_chat_template(messages, **{"tokenize": False, **how})

    def __call__(self, text, images=None, padding=True, return_tensors="pt", videos=None):
        found = {}
        counts = {"<|image_pad|>": [], "<|video_pad|>": []}
        if images:
            seen = self.image_processor(images=images, return_tensors="pt")
            found |= dict(seen)
            counts["<|image_pad|>"] = (seen["image_grid_thw"].prod(-1) // 4).tolist()
        if videos is not None:
            found |= videos
            counts["<|video_pad|>"] = (videos["video_grid_thw"].prod(-1) // 4).tolist()
        filled = []
        for each in text:
            for mark, sizes in counts.items():
                while f" {mark} " in each and sizes:
                    each = each.replace(f" {mark} ", " " + f"{mark}! " * sizes.pop(0), 1)
                each = each.replace(f"{mark}!", mark)
            filled.append(each)
        out = self.tokenizer(filled, padding=padding, return_tensors="pt")
        ids = out["input_ids"]
        kinds = (ids == 10).int() + 2 * (ids == 11).int()
        return {
            "input_ids": ids,
            "attention_mask": out["attention_mask"],
            "mm_token_type_ids": kinds,
            **found,
        }


class Qwen25Case(Case):
    name = "qwen2_5_vl"
    videos = True
    sizes = ((32, 48), (40, 24), (24, 64))
    patch = 4

    def processor(self):
        return QwenProcessor(self.patch)

    def text_config(self):
        return {
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": self.layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 128,
            "max_position_embeddings": 2048,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [2, 3, 3],
            },
        }

    def tokens(self):
        return {
            "image_token_id": 10,
            "video_token_id": 11,
            "vision_start_token_id": 8,
            "vision_end_token_id": 9,
        }

    def build(self, **config):
        vision = {
            "depth": 4,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 4,
            "patch_size": self.patch,
            "window_size": 16,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [1, 3],
        }
        return transformers.Qwen2_5_VLForConditionalGeneration(
            transformers.Qwen2_5_VLConfig(
                vision_config=vision, text_config={**self.text_config(), **config}, **self.tokens()
            )
        )

    def video(
        self, words: str = "what is this ?", frames: int = 3, seed: int = 0
    ) -> dict[str, Any]:
        """A prompt with one video, whose frames are pairs of pictures."""
        processor = self.processor()
        pictures = [
            processor.image_processor(images=[picture(seed + n, 32, 24)], return_tensors="pt")
            for n in range(frames)
        ]
        grid = pictures[0]["image_grid_thw"].clone()
        grid[:, 0] = frames
        videos = {
            "pixel_values_videos": torch.cat([each["pixel_values"] for each in pictures]),
            "video_grid_thw": grid,
        }
        text = self.text(words, images=0, videos=1)
        return self.framed(processor, text, videos)

    def framed(self, processor, text, videos):
        return processor(text=[text], videos=videos)


class Qwen2Case(Qwen25Case):
    name = "qwen2_vl"

    def build(self, **config):
        vision = {
            "depth": 4,
            "embed_dim": 32,
            "hidden_size": 64,
            "mlp_ratio": 2,
            "num_heads": 4,
            "patch_size": self.patch,
        }
        return transformers.Qwen2VLForConditionalGeneration(
            transformers.Qwen2VLConfig(
                vision_config=vision, text_config={**self.text_config(), **config}, **self.tokens()
            )
        )


class Qwen3Case(Qwen25Case):
    name = "qwen3_vl"
    layers = 5

    def processor(self):
        return QwenProcessor(self.patch, image_mean=[0.5] * 3, image_std=[0.5] * 3)

    def build(self, **config):
        vision = {
            "depth": 4,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 4,
            "patch_size": self.patch,
            "out_hidden_size": 64,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1, 2],
        }
        text = {**self.text_config(), "head_dim": 16, **config}
        text["rope_parameters"] = {**text["rope_parameters"], "mrope_interleaved": True}
        return transformers.Qwen3VLForConditionalGeneration(
            transformers.Qwen3VLConfig(vision_config=vision, text_config=text, **self.tokens())
        )

    def framed(self, processor, text, videos):
        """Every frame between its own marks, with its time before it."""
        frames, height, width = videos["video_grid_thw"][0].tolist()
        tokens = "<|video_pad|> " * (height * width // 4)
        one = [f"{n} <|vision_start|> {tokens}<|vision_end|> " for n in range(frames)]
        text = text.replace("<|vision_start|> <|video_pad|> <|vision_end|> ", "".join(one))
        made = processor(text=[text])
        return {**made, **videos}


MIXTURE = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}


class Qwen3MoeCase(Qwen3Case):
    name = "qwen3_vl_moe"
    variant = True

    def build(self, **config):
        dense = super().build(**config).config
        text = {**dense.text_config.to_dict(), **MIXTURE}
        text.pop("model_type")
        vision = dense.vision_config.to_dict()
        vision.pop("model_type")
        return transformers.Qwen3VLMoeForConditionalGeneration(
            transformers.Qwen3VLMoeConfig(vision_config=vision, text_config=text, **self.tokens())
        )


class Qwen35Case(Qwen3Case):
    name = "qwen3_5"
    layers = 4
    cuttable = False
    kind = "Qwen3_5"
    mixture: ClassVar[dict[str, int]] = {}

    def build(self, **config):
        vision = {
            "depth": 4,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 4,
            "patch_size": self.patch,
            "out_hidden_size": 64,
            "num_position_embeddings": 64,
        }
        text = {
            **self.text_config(),
            "head_dim": 16,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            **self.mixture,
            **config,
        }
        text["rope_parameters"] = {
            **text["rope_parameters"],
            "mrope_section": [2, 1, 1],
            "mrope_interleaved": True,
            "partial_rotary_factor": 0.5,
        }
        config = getattr(transformers, f"{self.kind}Config")
        return getattr(transformers, f"{self.kind}ForConditionalGeneration")(
            config(vision_config=vision, text_config=text, **self.tokens())
        )


class Qwen35MoeCase(Qwen35Case):
    name = "qwen3_5_moe"
    variant = True
    kind = "Qwen3_5Moe"
    mixture = MIXTURE


GLM_MARKS = ["<|image|>", "<|video|>", "<|user|>", "<|assistant|>"] + [
    f"<|{edge}_of_{what}|>" for what in ("image", "video") for edge in ("begin", "end")
]
GLM_CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|> {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|begin_of_image|> <|image|> <|end_of_image|> "
    "{% elif c['type'] == 'video' %}<|begin_of_video|> <|video|> <|end_of_video|> "
    "{% else %}{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


class GlmProcessor(QwenProcessor):
    """GLM-4V's image processor and marks; its own processor needs torchvision for videos."""

    chat_template = GLM_CHAT

    def __init__(self, patch: int) -> None:
        kind = transformers.models.glm4v.image_processing_pil_glm4v.Glm4vImageProcessorPil
        size = {"shortest_edge": 128, "longest_edge": 8192}
        self.image_processor = kind(patch_size=patch, merge_size=2, size=size)
        self.tokenizer = tokenizer(GLM_MARKS)
        self.tokenizer.chat_template = GLM_CHAT

    def __call__(self, text, images=None, padding=True, return_tensors="pt", videos=None):
        found = dict(videos or {})
        frames = []
        if images:
            found |= dict(self.image_processor(images=images, return_tensors="pt"))
        for grid in found.get("video_grid_thw", ()):
            count, size = int(grid[0]), int(grid.prod()) // int(grid[0]) // 4
            image = "<|image|> " * size
            each = [f"<|begin_of_image|> {image}<|end_of_image|> {n} " for n in range(count)]
            frames.append("".join(each))
        sizes = (found["image_grid_thw"].prod(-1) // 4).tolist() if images else []
        filled = []
        for each in text:
            while " <|image|> " in each and sizes:
                each = each.replace(" <|image|> ", " " + "<|image|>! " * sizes.pop(0), 1)
            each = each.replace("<|image|>!", "<|image|>")
            while "<|video|> " in each:
                each = each.replace("<|video|> ", frames.pop(0), 1)
            filled.append(each)
        out = self.tokenizer(filled, padding=padding, return_tensors="pt")
        ids = out["input_ids"]
        image, start, end = self.tokenizer.convert_tokens_to_ids(
            ["<|image|>", "<|begin_of_video|>", "<|end_of_video|>"]
        )
        framed = (ids == start).cumsum(-1) > (ids == end).cumsum(-1)
        kinds = (ids == image).int() * (1 + framed.int())
        return {
            "input_ids": ids,
            "attention_mask": out["attention_mask"],
            "mm_token_type_ids": kinds,
            **found,
        }


class GlmCase(Qwen25Case):
    name = "glm4v"
    kind = "Glm4v"
    kinds: ClassVar[dict[str, str]] = {}
    mixture: ClassVar[dict[str, int]] = {}

    def processor(self):
        return GlmProcessor(self.patch)

    def build(self, **config):
        vision = {
            "depth": 4,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 4,
            "patch_size": self.patch,
            "image_size": 32,
            "out_hidden_size": 64,
            **({"model_type": self.kinds["vision"]} if self.kinds else {}),
        }
        text = {**self.text_config(), **self.mixture, **config}
        text["rope_parameters"] = {
            **text["rope_parameters"],
            "mrope_section": [1, 1, 2],
            "partial_rotary_factor": 0.5,
        }
        if self.kinds:
            text["model_type"] = self.kinds["text"]
        marks = tokenizer(GLM_MARKS)
        tokens = {
            f"{what}_{edge}_token_id": marks.convert_tokens_to_ids(f"<|{mark}_of_{what}|>")
            for what in ("image", "video")
            for edge, mark in (("start", "begin"), ("end", "end"))
        }
        for what in ("image", "video"):
            tokens[f"{what}_token_id"] = marks.convert_tokens_to_ids(f"<|{what}|>")
        config = getattr(transformers, f"{self.kind}Config")
        return getattr(transformers, f"{self.kind}ForConditionalGeneration")(
            config(vision_config=vision, text_config=text, **tokens)
        )


class GlmMoeCase(GlmCase):
    name = "glm4v_moe"
    kind = "Glm4vMoe"
    variant = True
    mixture: ClassVar[dict[str, int]] = {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
    }


class Glm46Case(GlmCase):
    name = "glm46v"
    kind = "Glm46V"
    variant = True
    kinds: ClassVar[dict[str, str]] = {"vision": "glm4v_vision", "text": "glm4v_text"}


class Glm46MoeCase(GlmMoeCase):
    name = "glm46v_moe"
    kind = "Glm46V"
    kinds: ClassVar[dict[str, str]] = {"vision": "glm4v_moe_vision", "text": "glm4v_moe_text"}


PINPOINTS = [[32, 64], [64, 32], [64, 64], [32, 96]]


class LlavaNextCase(LlavaCase):
    name = "llava_next"
    sizes = ((40, 60), (64, 30), (25, 80))

    def build(self, **config):
        base = super().build(**config).config
        return transformers.LlavaNextForConditionalGeneration(
            transformers.LlavaNextConfig(
                vision_config=base.vision_config,
                text_config=base.text_config,
                image_token_id=4,
                image_grid_pinpoints=PINPOINTS,
            )
        )

    def processor(self):
        images = transformers.models.llava_next.image_processing_pil_llava_next
        return transformers.LlavaNextProcessor(
            image_processor=images.LlavaNextImageProcessorPil(
                size={"shortest_edge": 32},
                crop_size={"height": 32, "width": 32},
                image_grid_pinpoints=PINPOINTS,
            ),
            tokenizer=tokenizer(bos_token="<s>"),
            patch_size=8,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=CHAT,
        )


class OneVisionProcessor:
    """LLaVA-OneVision's, without its video side, which needs torchvision."""

    chat_template = CHAT

    def __init__(self) -> None:
        images = transformers.models.llava_onevision.image_processing_pil_llava_onevision
        self.image_processor = images.LlavaOnevisionImageProcessorPil(
            size={"height": 32, "width": 32}, image_grid_pinpoints=PINPOINTS
        )
        self.tokenizer = tokenizer(bos_token="<s>")
        kind = transformers.LlavaOnevisionProcessor
        self.counter = kind.__new__(kind)
        self.counter.image_processor, self.counter.image_token = self.image_processor, "<image>"
        self.counter.num_image_tokens, self.counter.vision_aspect_ratio = 16, "anyres_max_3"
        self.counter.vision_feature_select_strategy = "full"

    def apply_chat_template(self, messages: Any, **how: Any) -> Any:
        how = {"tokenize": False, "chat_template": CHAT, **how}
        return self.tokenizer.apply_chat_template(messages, **how)

    def __call__(self, text, images=None, padding=True, return_tensors="pt"):
        found, counts = {}, []
        if images:
            groups = [each.count("<image>") for each in text]
            starts = np.cumsum([0, *groups])
            nested = [
                images[start : start + n] for start, n in zip(starts, groups, strict=False) if n
            ]
            found = dict(self.image_processor(images=nested, return_tensors="pt"))
            counts = [
                self.counter.replace_image_token(found, n).count("<image>")
                for n in range(len(images))
            ]
        filled = []
        for each in text:
            while "<image> " in each:
                each = each.replace("<image> ", "<image>! " * counts.pop(0), 1)
            filled.append(each.replace("<image>!", "<image>"))
        return {**self.tokenizer(filled, padding=padding, return_tensors="pt"), **found}


class OneVisionCase(LlavaNextCase):
    name = "llava_onevision"
    videos = True
    sizes = ((40, 60), (64, 64), (64, 30), (25, 80))

    def build(self, **config):
        vision = transformers.SiglipVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=32,
            patch_size=8,
            vision_use_head=False,
        )
        text = transformers.Qwen2Config(
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=self.layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=128,
            max_position_embeddings=2048,
            **config,
        )
        return transformers.LlavaOnevisionForConditionalGeneration(
            transformers.LlavaOnevisionConfig(
                vision_config=vision,
                text_config=text,
                image_token_id=4,
                video_token_id=5,
                image_grid_pinpoints=PINPOINTS,
                vision_aspect_ratio="anyres_max_3",
            )
        )

    def processor(self):
        return OneVisionProcessor()

    def video(
        self, words: str = "what is this ?", frames: int = 3, seed: int = 0
    ) -> dict[str, Any]:
        """A prompt with one video."""
        processor = self.processor()
        pictures = [
            processor.image_processor(images=[[picture(seed + n, 32, 32)]], return_tensors="pt")
            for n in range(frames)
        ]
        values = torch.stack([each["pixel_values"][0, 0] for each in pictures])[None]
        text = self.text(words, images=0, videos=1)
        text = text.replace("<video> ", "<video> " * (4 * frames + 1))
        return {**processor(text=[text]), "pixel_values_videos": values}


class InternProcessor:
    """InternVL's tiles; its own processor needs torchvision for videos."""

    chat_template = CHAT

    def __init__(self) -> None:
        images = transformers.models.got_ocr2.image_processing_pil_got_ocr2
        self.image_processor = images.GotOcr2ImageProcessorPil(
            size={"height": 32, "width": 32}, crop_to_patches=True, max_patches=4
        )
        self.tokenizer = tokenizer(bos_token="<s>")

    def apply_chat_template(self, messages: Any, **how: Any) -> Any:
        how = {"tokenize": False, "chat_template": CHAT, **how}
        return self.tokenizer.apply_chat_template(messages, **how)

    def __call__(self, text, images=None, padding=True, return_tensors="pt"):
        found, counts = {}, []
        if images:
            made = self.image_processor(images=images, return_tensors="pt")
            found = {"pixel_values": made["pixel_values"]}
            counts = [int(n) for n in made["num_patches"]]
        filled = []
        for each in text:
            while "<image> " in each:
                tiles = "<image>! " * (16 * counts.pop(0))
                marked = f"<|vision_start|> {tiles}<|vision_end|> "
                each = each.replace("<image> ", marked, 1)
            filled.append(each.replace("<image>!", "<image>"))
        return {**self.tokenizer(filled, padding=padding, return_tensors="pt"), **found}


class InternCase(LlavaCase):
    name = "internvl"
    sizes = ((40, 60), (32, 32), (64, 30), (64, 64))

    def build(self, **config):
        vision = transformers.InternVLVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=32,
            patch_size=4,
            use_qk_norm=True,
            norm_type="rms_norm",
        )
        text = transformers.Qwen2Config(
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=self.layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=128,
            max_position_embeddings=2048,
            **config,
        )
        return transformers.InternVLForConditionalGeneration(
            transformers.InternVLConfig(
                vision_config=vision,
                text_config=text,
                image_token_id=4,
                image_seq_length=16,
                tie_word_embeddings=False,
            )
        )

    def processor(self):
        return InternProcessor()


class SmolProcessor(InternProcessor):
    """SmolVLM's tiles, with a mark and a place before each; its own needs torchvision."""

    def __init__(self) -> None:
        images = transformers.models.smolvlm.image_processing_pil_smolvlm
        self.image_processor = images.SmolVLMImageProcessorPil(
            size={"longest_edge": 64}, max_image_size={"longest_edge": 32}
        )
        self.tokenizer = tokenizer(bos_token="<s>")

    def __call__(self, text, images=None, padding=True, return_tensors="pt"):
        found, layouts = {}, []
        if images:
            groups = np.cumsum([0, *(each.count("<image>") for each in text)])
            nested = [images[start:stop] for start, stop in pairwise(groups)]
            made = self.image_processor(
                images=nested, return_tensors="pt", return_row_col_info=True
            )
            found = {name: made[name] for name in ("pixel_values", "pixel_attention_mask")}
            rows, columns = ([n for own in made[x] for n in own] for x in ("rows", "cols"))
            layouts = list(zip(rows, columns, strict=True))
        filled = []
        for each in text:
            while "<image> " in each:
                each = each.replace("<image> ", self.tiles(*layouts.pop(0)), 1)
            filled.append(each.replace("<image>!", "<image>"))
        return {**self.tokenizer(filled, padding=padding, return_tensors="pt"), **found}

    def tiles(self, rows, columns):
        tile = "<image>! " * 16
        row = f"<|vision_start|> <|im_start|> {tile}" * columns + ", "
        return f"{row * rows}<|vision_start|> <|im_end|> {tile}<|vision_start|> "


class SmolCase(InternCase):
    name = "smolvlm"
    kind = "SmolVLM"

    def build(self, **config):
        vision = {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": 32,
            "patch_size": 4,
        }
        text = transformers.LlamaConfig(
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=self.layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=128,
            max_position_embeddings=2048,
            pad_token_id=0,
            **config,
        )
        config = getattr(transformers, f"{self.kind}Config")(
            vision_config=vision, text_config=text, image_token_id=4
        )
        model = getattr(transformers, f"{self.kind}ForConditionalGeneration")(config)
        # The tests find it where the other families have it.
        object.__setattr__(model.model, "language_model", model.model.text_model)
        return model

    def processor(self):
        return SmolProcessor()


class Idefics3Case(SmolCase):
    name = "idefics3"
    kind = "Idefics3"


KINDS = ["sliding_attention", "full_attention"] * 4


class Gemma3Case(LlavaCase):
    name = "gemma3"
    layers = 5  # of which two follow the cuts of tests
    window = 48

    def build(self, **config):
        vision = transformers.SiglipVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=32,
            patch_size=4,
            vision_use_head=False,
        )
        text = transformers.Gemma3TextConfig(
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=self.layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            query_pre_attn_scalar=9,
            vocab_size=128,
            max_position_embeddings=2048,
            sliding_window=self.window,
            layer_types=KINDS[: self.layers],
            tie_word_embeddings=False,
            **config,
        )
        return transformers.Gemma3ForConditionalGeneration(
            transformers.Gemma3Config(
                vision_config=vision,
                text_config=text,
                mm_tokens_per_image=16,
                image_token_index=4,
                boi_token_index=8,
                eoi_token_index=9,
                tie_word_embeddings=False,
            )
        )

    def processor(self):
        images = transformers.models.gemma3.image_processing_pil_gemma3
        marks = {"boi_token": SPECIAL[8], "eoi_token": SPECIAL[9], "image_token": "<image>"}
        return Gemma3Processor(
            image_processor=images.Gemma3ImageProcessorPil(size={"height": 32, "width": 32}),
            tokenizer=tokenizer(bos_token="<s>", extra_special_tokens=marks),
            chat_template=CHAT.replace("<image>", SPECIAL[8]),
            image_seq_length=16,
        )


class Gemma3Processor(transformers.Gemma3Processor):
    """Which wants the pictures of each prompt in a list."""

    def __call__(self, text, images=None, **how):
        if images is not None:
            groups = np.cumsum([0, *(each.count(SPECIAL[8]) for each in text)])
            images = [images[start:stop] for start, stop in pairwise(groups)]
        return super().__call__(text=text, images=images, **how)


class Gemma4Processor(InternProcessor):
    """Gemma 4's images; its own processor needs torchvision for videos."""

    def __init__(self) -> None:
        images = transformers.models.gemma4.image_processing_pil_gemma4
        self.image_processor = images.Gemma4ImageProcessorPil(
            patch_size=4, pooling_kernel_size=2, max_soft_tokens=70, do_resize=False
        )
        self.tokenizer = tokenizer(bos_token="<s>")

    def __call__(self, text, images=None, padding=True, return_tensors="pt"):
        found, counts = {}, []
        if images:
            found = dict(self.image_processor(images=images, return_tensors="pt"))
            counts = [int(n) for n in found.pop("num_soft_tokens_per_image")]
        filled = []
        for each in text:
            while "<image> " in each:
                tokens = "<image>! " * counts.pop(0)
                each = each.replace("<image> ", f"{SPECIAL[8]} {tokens}{SPECIAL[9]} ", 1)
            filled.append(each.replace("<image>!", "<image>"))
        made = dict(self.tokenizer(filled, padding=padding, return_tensors="pt"))
        return {**made, "mm_token_type_ids": (made["input_ids"] == 4).int(), **found}


class Gemma4Case(Gemma3Case):
    name = "gemma4"
    layers = 4
    window = 64
    sizes = ((32, 48), (40, 32), (24, 64))

    def build(self, per_layer=0, **config):
        vision = {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 8,
            "patch_size": 4,
            "pooling_kernel_size": 2,
            "position_embedding_size": 32,
        }
        text = {
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_hidden_layers": self.layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "global_head_dim": 32,
            "vocab_size": 128,
            "vocab_size_per_layer_input": 128,
            "hidden_size_per_layer_input": per_layer,
            "num_kv_shared_layers": 2 if per_layer else 0,
            "use_bidirectional_attention": None if per_layer else "vision",
            "max_position_embeddings": 2048,
            "sliding_window": self.window,
            "layer_types": KINDS[: self.layers],
            "tie_word_embeddings": False,
            **config,
        }
        marks = {"image_token_id": 4, "video_token_id": 5, "audio_token_id": 11}
        marks |= {"boi_token_id": 8, "eoi_token_id": 9, "tie_word_embeddings": False}
        return transformers.Gemma4ForConditionalGeneration(
            transformers.Gemma4Config(vision_config=vision, text_config=text, **marks)
        )

    def processor(self):
        return Gemma4Processor()


class SmallGemma4Case(Gemma4Case):
    """As the smaller ones are: layers read each token, the last of them keys of earlier ones."""

    name = "gemma4_small"
    variant = True
    layers = 6
    shared = 3

    def build(self, **config):
        told = {"num_kv_shared_layers": self.shared, **config}
        return super().build(per_layer=8, **told)


class PixtralProcessor(InternProcessor):
    """Pixtral's rows of tokens with marks behind; its own processor needs torchvision."""

    patch = 8

    def __init__(self) -> None:
        images = transformers.models.pixtral.image_processing_pil_pixtral
        self.image_processor = images.PixtralImageProcessorPil(
            size={"longest_edge": 64}, patch_size={"height": 8, "width": 8}
        )
        self.tokenizer = tokenizer(bos_token="<s>")

    def __call__(self, text, images=None, padding=True, return_tensors="pt"):
        found, sizes = {}, []
        if images:
            found = dict(self.image_processor(images=images, return_tensors="pt"))
            sizes = found["image_sizes"].tolist()
        filled = []
        for each in text:
            while "<image> " in each:
                height, width = sizes.pop(0)
                row = "<image>! " * (width // self.patch)
                rows = f"{SPECIAL[6]} ".join([row] * (height // self.patch))
                each = each.replace("<image> ", f"{rows}{SPECIAL[7]} ", 1)
            filled.append(each.replace("<image>!", "<image>"))
        return {**self.tokenizer(filled, padding=padding, return_tensors="pt"), **found}


class Mistral3Case(LlavaCase):
    name = "mistral3"
    sizes = ((32, 48), (40, 32), (24, 64))

    def build(self, **config):
        vision = transformers.PixtralVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=64,
            patch_size=4,
        )
        text = transformers.MistralConfig(
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=self.layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=128,
            max_position_embeddings=2048,
            sliding_window=None,
            **config,
        )
        return transformers.Mistral3ForConditionalGeneration(
            transformers.Mistral3Config(
                vision_config=vision,
                text_config=text,
                image_token_index=4,
                tie_word_embeddings=False,
            )
        )

    def processor(self):
        return PixtralProcessor()

    def standing(self, model, ids):
        """Rows end in marks, which are parts of an image too."""
        own = super().standing(model, ids)
        return own | torch.nn.functional.pad(own, (1, 0))[:, :-1]


CASES: dict[str, type[Case]] = {
    case.name: case
    for case in (
        Gemma3Case,
        Gemma4Case,
        SmallGemma4Case,
        InternCase,
        LlavaCase,
        Mistral3Case,
        LlavaNextCase,
        OneVisionCase,
        Qwen2Case,
        Qwen25Case,
        Qwen3Case,
        Qwen3MoeCase,
        Qwen35Case,
        Qwen35MoeCase,
        GlmCase,
        GlmMoeCase,
        Glm46Case,
        Glm46MoeCase,
        SmolCase,
        Idefics3Case,
    )
}


@pytest.fixture(scope="session")
def cases() -> dict[str, type[Case]]:
    """All families by name."""
    return CASES


USUAL = ("llava", "qwen2_5_vl", "qwen3_vl")
"""Families that `make test` looks at; `make test-all` looks at all of them."""


def looked_at(name: str) -> Any:
    """A family as a parameter, marked by when it is looked at."""
    if name in USUAL:
        return name
    mark = pytest.mark.slow if CASES[name].variant else pytest.mark.families
    return pytest.param(name, marks=mark)


@pytest.fixture(scope="session", params=map(looked_at, CASES))
def case(request: pytest.FixtureRequest) -> Case:
    """Each model family in turn."""
    return CASES[request.param]()


@pytest.fixture(scope="session")
def model(case: Case) -> Any:
    """Its model; tests leave it as they found it."""
    return case.model()


@dataclass(frozen=True)
class Second(sc.Method):
    """Keeps tokens by their norm, which needs nothing: any choice will do where choosing is not
    what is tested."""

    name: ClassVar[str] = "second"
    complexity: ClassVar[str] = "N"
    reference: ClassVar[str] = "none"

    @property
    def needs(self):
        return frozenset({"features"})

    def choose(self, tokens, k):
        norms = (tokens.features.float() ** 2).sum(-1)
        return sc.Selection.of(norms.argsort(dim=-1, stable=True)[..., :k], tokens.size)


@pytest.fixture(scope="session")
def by_norm() -> type[sc.Method]:
    """A method that needs nothing but features."""
    return Second


@contextmanager
def decoder_calls(model: Any):
    """What the language model is called with, one dict a call."""
    seen: list[dict[str, Any]] = []
    decoder = model.model.language_model

    def note(_module, args, kwargs, output):
        seen.append(kwargs)

    handle = decoder.register_forward_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


@pytest.fixture(scope="session")
def calls():
    """`with calls(model) as seen` records what the language model is called with."""
    return decoder_calls


def mask_by_hand(model: Any, inputs: dict[str, Any], columns: np.ndarray, new: int = 0) -> Any:
    """The mask of the language model for some columns (B, T) of prompts, and `new` tokens.

    Gemma's, one a kind of layer, are written out: the tokens of an image see each other both
    ways, and windows count the tokens that are there.
    """
    real = torch.nn.functional.pad(torch.from_numpy(columns >= 0), (0, new), value=True)
    if not model.config.model_type.startswith("gemma"):
        return real.long()
    types = inputs.get("token_type_ids", inputs.get("mm_token_type_ids"))
    decoder = model.config.get_text_config()
    if types is None or decoder.use_bidirectional_attention is None:  # the smaller Gemma 4
        types = torch.zeros_like(inputs["input_ids"])
    safe = torch.from_numpy(columns).clamp(min=0)
    image = torch.nn.functional.pad(types.gather(1, safe) == 1, (0, new)) & real
    begins = image & ~torch.nn.functional.pad(image, (1, 0))[:, :-1]
    block = torch.where(image, begins.cumsum(1), 0)
    at = torch.arange(real.shape[1])
    seen = (at[:, None] >= at) | ((block[:, :, None] == block[:, None]) & image[:, None])
    seen = seen & real[:, None]
    near = seen & (at > at[:, None] - decoder.sliding_window)
    itself = torch.eye(len(at), dtype=torch.bool)
    if model.config.model_type == "gemma4":  # both ways within windows only
        seen = (at[:, None] >= at) & real[:, None]
    return {
        "full_attention": (seen | itself)[:, None],
        "sliding_attention": (near | itself)[:, None],
    }


@pytest.fixture(scope="session")
def hand_mask():
    """The language model's mask, written out: (model, inputs, columns, new) -> mask."""
    return mask_by_hand


def fed_by_hand(model: Any, inputs: dict[str, Any], columns: np.ndarray) -> Any:
    """Logits of the stock language model on some columns of what the stock model feeds it.

    Positions are the unpruned prompt's. `columns` (B, T) has -1 at padding.
    """
    with decoder_calls(model) as seen:
        model(**inputs)
    call = dict(seen[0])
    index = torch.from_numpy(columns)
    safe = index.clamp(min=0)
    embeds = call["inputs_embeds"]
    rows, length = embeds.shape[:2]
    position_ids = call.get("position_ids")
    if position_ids is None:
        position_ids = torch.arange(length)[None]
    position_ids = position_ids.expand(*position_ids.shape[:-2], rows, -1)
    short = {
        "inputs_embeds": torch.stack([embeds[row, safe[row]] for row in range(rows)]),
        "attention_mask": mask_by_hand(model, inputs, columns),
        "position_ids": position_ids.gather(-1, safe.expand(*position_ids.shape[:-1], -1)),
    }
    if call.get("per_layer_inputs") is not None:
        each = call["per_layer_inputs"]
        short["per_layer_inputs"] = torch.stack([each[row, safe[row]] for row in range(rows)])
    if call.get("deepstack_visual_embeds") is not None:
        where = call["visual_pos_masks"]
        planes = []
        for plane in call["deepstack_visual_embeds"]:
            laid = torch.zeros_like(embeds)
            laid[where] = plane.to(laid)
            planes.append(torch.stack([laid[row, safe[row]] for row in range(rows)]))
        visual = torch.stack([where[row, safe[row]] for row in range(rows)]) & (index >= 0)
        short["visual_pos_masks"] = visual
        short["deepstack_visual_embeds"] = [plane[visual] for plane in planes]
    out = model.model.language_model(**short, use_cache=True)
    return model.lm_head(out.last_hidden_state)


@pytest.fixture(scope="session")
def by_hand():
    """The stock language model fed by hand: (model, inputs, columns) -> logits."""
    return fed_by_hand
