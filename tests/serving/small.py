"""Small checkpoints of every family with random weights, and vLLM to serve them."""

from __future__ import annotations

import gc
import json
import string
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torchvision_beside_cpu  # noqa: F401
import transformers
from PIL import Image
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from secateur.integrations.vllm.models import kind_of

WORDS = (
    "a an the what is in on of how many color does this picture show count red green blue left "
    "right dog cat car tree sky man woman stop sign USER ASSISTANT : ? . , both and"
).split()
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "<video>"]
QWEN = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
PADS = ["<|image_pad|>", "<|video_pad|>"]
CHAT = (
    "{% for m in messages %}{{ m['role'].upper() + ' : ' }}{% if m['content'] is string %}"
    "{{ m['content'] + ' ' }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] in ('image', 'image_url') %}{{ '<image> ' }}"
    "{% else %}{{ c['text'] + ' ' }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT :' }}{% endif %}"
)
QWEN_CHAT = CHAT.replace("<image>", "<|vision_start|> <|image_pad|> <|vision_end|>")
PINPOINTS = [[48, 96], [96, 48], [96, 96], [48, 144]]
TOKENS = 36
"""Visual tokens of a picture of the LLaVA towers: 48 pixels in patches of eight."""


def tokenizer(**marks):
    """A word-level tokenizer of the words above, a letter where it knows no word."""
    special = [*SPECIAL, *QWEN, *PADS]
    known = [*special, *WORDS, *(c for c in string.printable if c.strip() and c not in WORDS)]
    model = models.WordLevel({word: n for n, word in enumerate(known)}, unk_token="<unk>")
    core = Tokenizer(model)
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>", "video_token": "<video>", **marks},
    )
    made.add_special_tokens({"additional_special_tokens": [*QWEN, *PADS]})
    return made


def qwen_tokenizer():
    made = tokenizer()
    made.image_token, made.video_token = PADS
    return made


def llama(**more):
    return transformers.LlamaConfig(**language(), **more)


def language():
    return {
        "hidden_size": 128,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "vocab_size": 160,
        "max_position_embeddings": 1024,
    }


def tower(kind):
    shape = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 48,
        "patch_size": 8,
    }
    if kind == "clip":
        return transformers.CLIPVisionConfig(**shape, projection_dim=32)
    return transformers.SiglipVisionConfig(**shape, vision_use_head=False)


def select(kind):
    if kind == "clip":
        return {"vision_feature_select_strategy": "default", "vision_feature_layer": -2}
    return {"vision_feature_select_strategy": "full", "vision_feature_layer": -1}


def llava(kind="clip"):
    config = transformers.LlavaConfig(
        vision_config=tower(kind),
        text_config=llama(),
        image_token_id=4,
        image_token_index=4,
        image_seq_length=TOKENS,
        **select(kind),
    )
    images = transformers.CLIPImageProcessor(
        size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}
    )
    processor = transformers.LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer(),
        patch_size=8,
        vision_feature_select_strategy=select(kind)["vision_feature_select_strategy"],
        num_additional_image_tokens=int(kind == "clip"),
        chat_template=CHAT,
    )
    return transformers.LlavaForConditionalGeneration(config), processor


def llava_next():
    config = transformers.LlavaNextConfig(
        vision_config=tower("clip"),
        text_config=llama(),
        image_token_id=4,
        image_token_index=4,
        image_seq_length=TOKENS,
        image_grid_pinpoints=PINPOINTS,
        **select("clip"),
    )
    processor = transformers.LlavaNextProcessor(
        image_processor=transformers.LlavaNextImageProcessor(
            size={"shortest_edge": 48},
            crop_size={"height": 48, "width": 48},
            image_grid_pinpoints=PINPOINTS,
        ),
        tokenizer=tokenizer(),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    )
    return transformers.LlavaNextForConditionalGeneration(config), processor


def llava_onevision():
    config = transformers.LlavaOnevisionConfig(
        vision_config=tower("siglip"),
        text_config=transformers.Qwen2Config(
            **{name: x for name, x in language().items() if name != "head_dim"}
        ),
        image_token_id=4,
        image_token_index=4,
        video_token_id=5,
        video_token_index=5,
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio="anyres_max_9",
        **select("siglip"),
    )
    size = {"height": 48, "width": 48}
    processor = transformers.LlavaOnevisionProcessor(
        image_processor=transformers.LlavaOnevisionImageProcessor(
            size=size, image_grid_pinpoints=PINPOINTS
        ),
        video_processor=transformers.LlavaOnevisionVideoProcessor(size=size),
        tokenizer=tokenizer(),
        num_image_tokens=TOKENS,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
        chat_template=CHAT,
    )
    return transformers.LlavaOnevisionForConditionalGeneration(config), processor


def internvl():
    vision = transformers.InternVLVisionConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=48,
        patch_size=4,
        use_qk_norm=True,
        norm_type="rms_norm",
    )
    config = transformers.InternVLConfig(
        vision_config=vision,
        text_config=llama(),
        image_token_id=4,
        image_seq_length=TOKENS,
        tie_word_embeddings=False,
    )
    size = {"height": 48, "width": 48}
    marks = {"start_image_token": QWEN[2], "end_image_token": QWEN[3]}
    processor = transformers.InternVLProcessor(
        image_processor=transformers.GotOcr2ImageProcessor(
            size=size, crop_to_patches=True, max_patches=2
        ),
        video_processor=transformers.InternVLVideoProcessor(size=size),
        tokenizer=tokenizer(context_image_token="<image>", **marks),
        image_seq_length=TOKENS,
        chat_template=CHAT,
    )
    return transformers.InternVLForConditionalGeneration(config), processor


IDEFICS = ["<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "\n"]
IDEFICS += [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]


def idefics(kind, splits):
    """Of `kind`, whose processor cuts an image into tiles where it `splits` it."""
    vision = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 48,
        "patch_size": 4,
    }
    text = transformers.LlamaConfig(**{**language(), "vocab_size": 176}, pad_token_id=0)
    config = getattr(transformers, f"{kind}Config")(
        vision_config=vision, text_config=text, image_token_id=4, scale_factor=2
    )
    own = tokenizer()
    own.add_special_tokens({"additional_special_tokens": [*QWEN, *PADS, *IDEFICS]})
    size = {"longest_edge": 96}
    images = getattr(transformers, f"{kind}ImageProcessor")(
        size=size, max_image_size={"longest_edge": 48}, do_image_splitting=splits
    )
    more = {"image_seq_len": TOKENS, "chat_template": CHAT}
    if kind == "SmolVLM":
        more["video_processor"] = transformers.SmolVLMVideoProcessor(
            size=size, max_image_size={"longest_edge": 48}
        )
    processor = getattr(transformers, f"{kind}Processor")(images, own, **more)
    return getattr(transformers, f"{kind}ForConditionalGeneration")(config), processor


def gemma3():
    vision = transformers.SiglipVisionConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=48,
        patch_size=4,
        vision_use_head=False,
    )
    text = transformers.Gemma3TextConfig(
        **language(),
        query_pre_attn_scalar=64,
        sliding_window=48,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        tie_word_embeddings=False,
    )
    config = transformers.Gemma3Config(
        vision_config=vision,
        text_config=text,
        mm_tokens_per_image=TOKENS,
        image_token_index=4,
        boi_token_index=8,
        eoi_token_index=9,
        tie_word_embeddings=False,
    )
    own = tokenizer(boi_token=QWEN[2], eoi_token=QWEN[3])
    own.add_tokens([AddedToken("\n" * n, normalized=False) for n in (1, 2, 3, 4)])
    processor = transformers.Gemma3Processor(
        image_processor=transformers.Gemma3ImageProcessor(size={"height": 48, "width": 48}),
        tokenizer=own,
        chat_template=CHAT.replace("<image>", QWEN[2]),
        image_seq_length=TOKENS,
    )
    return transformers.Gemma3ForConditionalGeneration(config), processor


def gemma4(both_ways=False):
    """As the smaller models are, or the larger ones, whose images are read both ways."""
    vision = transformers.Gemma4VisionConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        patch_size=4,
        pooling_kernel_size=2,
        position_embedding_size=128,
        default_output_length=70,
    )
    text = transformers.Gemma4TextConfig(
        **{**language(), "num_hidden_layers": 4},
        global_head_dim=128,
        sliding_window=48,
        layer_types=["sliding_attention", "full_attention"] * 2,
        vocab_size_per_layer_input=160,
        hidden_size_per_layer_input=0 if both_ways else 16,
        num_kv_shared_layers=0 if both_ways else 2,
        use_bidirectional_attention="vision" if both_ways else None,
        tie_word_embeddings=False,
    )
    marks = {"boi_token": QWEN[2], "eoi_token": QWEN[3], "audio_token": QWEN[0]}
    own = tokenizer(**marks, boa_token=QWEN[0], eoa_token=QWEN[1])
    own.add_special_tokens({"additional_special_tokens": [*QWEN, *PADS, "<|video|>"]})
    config = transformers.Gemma4Config(
        vision_config=vision,
        text_config=text,
        audio_config=None,
        tie_word_embeddings=False,
        image_token_id=4,
        video_token_id=own.convert_tokens_to_ids("<|video|>"),
        audio_token_id=own.convert_tokens_to_ids(QWEN[0]),
        boi_token_id=own.convert_tokens_to_ids(QWEN[2]),
        eoi_token_id=own.convert_tokens_to_ids(QWEN[3]),
    )
    how = {"patch_size": 4, "pooling_kernel_size": 2, "max_soft_tokens": 70}
    processor = transformers.Gemma4Processor(
        feature_extractor=transformers.Gemma4AudioFeatureExtractor(),
        image_processor=transformers.Gemma4ImageProcessor(**how),
        video_processor=transformers.Gemma4VideoProcessor(**how),
        tokenizer=own,
        chat_template=CHAT,
    )
    return transformers.Gemma4ForConditionalGeneration(config), processor


def mistral3():
    vision = transformers.PixtralVisionConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=96,
        patch_size=4,
    )
    config = transformers.Mistral3Config(
        vision_config=vision,
        text_config=transformers.MistralConfig(**language(), sliding_window=None),
        image_token_index=4,
        tie_word_embeddings=False,
    )
    return transformers.Mistral3ForConditionalGeneration(config), rows_processor(4, merge=2)


def rows_processor(patch, merge):
    return transformers.PixtralProcessor(
        image_processor=transformers.PixtralImageProcessor(
            size={"longest_edge": 96}, patch_size={"height": patch, "width": patch}
        ),
        tokenizer=tokenizer(),
        patch_size=patch,
        spatial_merge_size=merge,
        image_token="<image>",
        image_break_token=QWEN[2],
        image_end_token=QWEN[3],
        chat_template=CHAT,
    )


def pixtral():
    vision = transformers.PixtralVisionConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=96,
        patch_size=8,
    )
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config=transformers.MistralConfig(**language(), sliding_window=None),
        image_token_id=4,
        image_token_index=4,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return transformers.LlavaForConditionalGeneration(config), rows_processor(8, merge=1)


QWEN_IDS = {
    "image_token_id": 10,
    "video_token_id": 11,
    "vision_start_token_id": 8,
    "vision_end_token_id": 9,
}
QWEN_VISION = {
    "depth": 4,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_heads": 2,
    "patch_size": 8,
    "out_hidden_size": 128,
}

QWEN3_VISION = {
    **QWEN_VISION,
    "num_position_embeddings": 64,
    "deepstack_visual_indexes": [0, 1, 2],
}


def qwen_text(**rope):
    return {
        **language(),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [8, 12, 12],
            **rope,
        },
    }


def qwen_processor(kind, video, **how):
    size = {"shortest_edge": 256, "longest_edge": 16384}
    # The smallest and the largest number of pixels.
    how = {"patch_size": 8, "merge_size": 2, "temporal_patch_size": 2, "size": size, **how}
    return kind(
        image_processor=transformers.Qwen2VLImageProcessor(**how),
        video_processor=video(**how),
        tokenizer=qwen_tokenizer(),
        chat_template=QWEN_CHAT,
    )


def qwen2_vl():
    vision = {name: QWEN_VISION[name] for name in ("depth", "num_heads", "patch_size")}
    vision |= {"embed_dim": 64, "hidden_size": 128, "mlp_ratio": 2}
    config = transformers.Qwen2VLConfig(vision_config=vision, text_config=qwen_text(), **QWEN_IDS)
    processor = qwen_processor(transformers.Qwen2VLProcessor, transformers.Qwen2VLVideoProcessor)
    return transformers.Qwen2VLForConditionalGeneration(config), processor


def qwen2_5_vl():
    vision = {**QWEN_VISION, "window_size": 32, "fullatt_block_indexes": [1, 3]}
    # transformers lets text go on before the end of a video of many steps, vLLM after it.
    vision["tokens_per_second"] = 1
    config = transformers.Qwen2_5_VLConfig(
        vision_config=vision, text_config=qwen_text(), **QWEN_IDS
    )
    processor = qwen_processor(transformers.Qwen2_5_VLProcessor, transformers.Qwen2VLVideoProcessor)
    return transformers.Qwen2_5_VLForConditionalGeneration(config), processor


def qwen3_processor():
    return qwen_processor(
        transformers.Qwen3VLProcessor,
        transformers.Qwen3VLVideoProcessor,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


def qwen3_vl():
    config = transformers.Qwen3VLConfig(
        vision_config=QWEN3_VISION,
        text_config=qwen_text(mrope_interleaved=True),
        **QWEN_IDS,
    )
    return transformers.Qwen3VLForConditionalGeneration(config), qwen3_processor()


def qwen3_vl_moe():
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96}
    # As checkpoints have it: vLLM reads this, and transformers does so without being told.
    experts["norm_topk_prob"] = True
    config = transformers.Qwen3VLMoeConfig(
        vision_config=QWEN3_VISION,
        text_config={**qwen_text(mrope_interleaved=True), **experts},
        **QWEN_IDS,
    )
    return transformers.Qwen3VLMoeForConditionalGeneration(config), qwen3_processor()


def qwen3_5(kind="Qwen3_5", **mixture):
    linear = {f"linear_{what}_head_dim": 128 for what in ("key", "value")}
    linear |= {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
    text = {
        **qwen_text(mrope_section=[3, 3, 2], mrope_interleaved=True, partial_rotary_factor=0.25),
        **linear,
        "layer_types": ["linear_attention", "linear_attention", "full_attention"],
        **mixture,
    }
    vision = {**QWEN_VISION, "num_position_embeddings": 64}
    config = getattr(transformers, f"{kind}Config")(
        vision_config=vision, text_config=text, **QWEN_IDS
    )
    return getattr(transformers, f"{kind}ForConditionalGeneration")(config), qwen3_processor()


def qwen3_5_moe():
    # All take part: half precision would ask others where two come close.
    experts = {"num_experts": 2, "num_experts_per_tok": 2, "moe_intermediate_size": 96}
    return qwen3_5("Qwen3_5Moe", shared_expert_intermediate_size=96, **experts)


GLM = ["<|begin_of_video|>", "<|video|>", "<|end_of_video|>"]
GLM_IMAGE = ["<|begin_of_image|>", "<|end_of_image|>"]


def glm4v(kind="Glm4v", **mixture):
    own = qwen_tokenizer()
    own.add_special_tokens({"additional_special_tokens": [*QWEN, *PADS, *GLM, *GLM_IMAGE]})
    own.video_token = GLM[1]
    start, video, end = own.convert_tokens_to_ids(GLM)
    first, last = own.convert_tokens_to_ids(GLM_IMAGE)
    marks = {"image_start_token_id": first, "image_end_token_id": last, "image_token_id": 10}
    marks |= {"video_start_token_id": start, "video_end_token_id": end, "video_token_id": video}
    text = {
        **qwen_text(mrope_section=[4, 6, 6], partial_rotary_factor=0.5),
        "vocab_size": 176,
        **mixture,
    }
    config = getattr(transformers, f"{kind}Config")(
        vision_config={**QWEN_VISION, "image_size": 48}, text_config=text, **marks
    )
    size = {"shortest_edge": 512, "longest_edge": 32768}
    how = {"patch_size": 8, "merge_size": 2, "temporal_patch_size": 2, "size": size}
    processor = transformers.Glm4vProcessor(
        image_processor=transformers.Glm4vImageProcessor(**how),
        video_processor=transformers.Glm4vVideoProcessor(**how),
        tokenizer=own,
        chat_template=QWEN_CHAT,
    )
    return getattr(transformers, f"{kind}ForConditionalGeneration")(config), processor


def glm4v_moe():
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96}
    experts |= {"n_shared_experts": 1, "first_k_dense_replace": 1}
    # As checkpoints have it: vLLM asks for it.
    return glm4v("Glm4vMoe", **experts, use_qk_norm=False)


MAKERS = {
    "llava": llava,
    "llava-siglip": lambda: llava("siglip"),
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "internvl": internvl,
    "idefics3": lambda: idefics("Idefics3", splits=False),
    "smolvlm": lambda: idefics("SmolVLM", splits=True),
    "gemma3": gemma3,
    "gemma4": gemma4,
    "gemma4-both-ways": lambda: gemma4(both_ways=True),
    "mistral3": mistral3,
    "pixtral": pixtral,
    "glm4v": glm4v,
    "glm4v_moe": glm4v_moe,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen2_vl": qwen2_vl,
    "qwen3_vl": qwen3_vl,
    "qwen3_vl_moe": qwen3_vl_moe,
    "qwen3_5": qwen3_5,
    "qwen3_5_moe": qwen3_5_moe,
}


UNNESTED = (
    transformers.Gemma4ForConditionalGeneration,
    transformers.InternVLForConditionalGeneration,
    transformers.Mistral3ForConditionalGeneration,
)
"""Models whose towers stand in checkpoints as they are."""


TURNED = (transformers.Qwen3VLMoeForConditionalGeneration,)
"""Models whose experts' weights stand in checkpoints with rows and columns the other way."""


def tower_of(model):
    """The type of a model's vision tower."""
    return model.config.vision_config.model_type


class Checkpoint:
    """A folder that vLLM reads, and the same model and processor in transformers."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        torch.manual_seed(0)
        self.model, self.processor = MAKERS[name]()
        self.model.eval()
        self.kind = kind_of(self.model.config.model_type, tower_of(self.model))
        self.placed = self.kind.startswith(("qwen", "glm"))
        with torch.no_grad():
            for key, weight in self.model.named_parameters():
                if weight.ndim > 1:
                    # Larger than usual, so that answers depend on what is looked at.
                    weight.normal_(0, 1.0 / weight.shape[-1] ** 0.5)
                if key.endswith(("q_proj.weight", "o_proj.weight")) and "vision" not in key:
                    weight.mul_(3.0)
                if "embed_tokens" in key:
                    weight.mul_(2.0)
                weight.copy_(weight.bfloat16())  # as a server in half precision has them
            if self.kind == "gemma4":
                # A mark that it wrote transformers reads as padding, and vLLM as it stands.
                marks = ("image_token_id", "video_token_id", "audio_token_id")
                self.model.lm_head.weight[[getattr(self.model.config, x) for x in marks]] = 0.0
        self.model.generation_config.eos_token_id = None
        self.folder = published(folder, self.model, self.processor)
        if self.kind.startswith("qwen3_5"):
            # Whatever was saved, it is read as a tokenizer that splits words as Qwen3.5's does.
            self.processor.tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder)

    def prompt(self, words: str = "what is in the picture ?", images: int = 1, videos: int = 0):
        if self.kind.startswith("glm"):
            marks = f"{GLM_IMAGE[0]} {PADS[0]} {GLM_IMAGE[1]} " * images
            marks += f"{' '.join(GLM)} " * videos
        elif self.placed:
            marks = f"{QWEN[2]} {PADS[0]} {QWEN[3]} " * images
            marks += f"{QWEN[2]} {PADS[1]} {QWEN[3]} " * videos
        elif self.kind == "gemma3":
            marks = f"{QWEN[2]} and " * images  # line breaks behind two would be one token
        else:
            marks = "<image> " * images + "<video> " * videos
        return f"USER : {marks}{words} ASSISTANT :"


def published(folder: Path, model, processor) -> Path:
    """Save with the names of the published checkpoints, which vLLM reads."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    path = folder / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    renamed = {}
    for name, weight in weights.items():
        plain = isinstance(model, UNNESTED) or tower_of(model) == "pixtral"
        clip = "vision_tower." in name and not plain
        if clip and "vision_tower.vision_model." not in name:
            name = name.replace("vision_tower.", "vision_tower.vision_model.")
        if "mlp.experts." in name and isinstance(model, TURNED):
            weight = weight.transpose(1, 2).contiguous()
        renamed[name] = weight
    safetensors.torch.save_file(renamed, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = [type(model).__name__]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def picture(seed: int, height: int = 48, width: int = 48) -> Image.Image:
    """A few boxes on noise, which is not even everywhere."""
    dice = np.random.default_rng(seed)
    image = dice.integers(0, 256, (height, width, 3), dtype=np.uint8)
    image[: height // 2] = image[: height // 2] // 32 * 32
    for _ in range(4):
        y, x = dice.integers(0, height - 8), dice.integers(0, width - 8)
        image[y : y + 12, x : x + 12] = dice.integers(0, 256, 3)
    return Image.fromarray(image)


def asked_for_positions():
    """Let vLLM's CPU runner ask for the positions of kept tokens, with the code of the others."""
    from positions_on_cpu import ask
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    from secateur.integrations.vllm import checking

    ask(CPUModelRunner, checking)


@contextmanager
def engine(folder, method=None, kind="llava", **how):
    """vLLM's `LLM` in this process, gone afterwards; without a method vLLM's own model."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory
    from vllm.triton_utils import dispatcher
    from vllm.v1.engine import core

    from secateur.integrations.vllm import overrides

    asked_for_positions()
    given = {
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 512,
        "max_num_seqs": 8,
        "seed": 0,
        "limit_mm_per_prompt": {"image": 3},
        **how,
    }
    if method is not None:
        given["hf_overrides"] = overrides(method, kind)
    # vLLM collects garbage seven times an engine; what is there already need not be looked through.
    core.freeze_gc_heap, gc.unfreeze = (lambda: None), (lambda: None)
    gc.freeze()
    made = LLM(str(folder), **given)
    # vLLM looks for its kernels in every module, and stumbles over llvmlite's; once is enough.
    dispatcher.register_kernels = lambda overrides: None
    try:
        yield made
    finally:
        del made
        cleanup_dist_env_and_memory()
        gc.collect()
