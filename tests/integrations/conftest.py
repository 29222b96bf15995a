"""Every model family small, with random weights, and prompts as its own processor makes them."""

from __future__ import annotations

import string
from contextlib import contextmanager
from dataclasses import dataclass
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


def tokenizer(**special: str) -> Any:
    """A word-level tokenizer of the words above, a letter where it knows no word."""
    listed = [*SPECIAL, *WORDS, *string.ascii_lowercase, *string.digits]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(listed))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", **special
    )
    made.add_special_tokens({"additional_special_tokens": SPECIAL[4:]})
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

    def images(self, count: int, seed: int = 0) -> list[Image.Image]:
        return [
            picture(seed + n, *self.sizes[(seed + n) % len(self.sizes)]) for n in range(count)
        ]

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


CASES: dict[str, type[Case]] = {case.name: case for case in (LlavaCase,)}


@pytest.fixture(scope="session", params=list(CASES))
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

    def note(_module, args, kwargs):
        seen.append(kwargs)

    handle = decoder.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


@pytest.fixture(scope="session")
def calls():
    """`with calls(model) as seen` records what the language model is called with."""
    return decoder_calls


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
        position_ids = torch.arange(length)[None].expand(rows, -1)
    short = {
        "inputs_embeds": torch.stack([embeds[row, safe[row]] for row in range(rows)]),
        "attention_mask": (index >= 0).long(),
        "position_ids": position_ids.gather(-1, safe.expand(*position_ids.shape[:-1], -1)),
    }
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
