"""The lab's model: a small LLaVA of the real classes, its processor, and its CLIP twin."""

from __future__ import annotations

from typing import Any

from secateur.lab.questions import VOCABULARY
from secateur.lab.scene import PATCH, SIZE

PAD, BOS, EOS, UNKNOWN, IMAGE = "<pad>", "<s>", "</s>", "<unk>", "<image>"
SPECIAL = (PAD, BOS, EOS, UNKNOWN, IMAGE)
START, END = "<|startoftext|>", "<|endoftext|>"
WIDTH = 128
LAYERS = 4
"""Of the tower, and of a language model that has not grown; see `secateur.lab.training.growing`."""
HEADS = 4
HIDDEN = 256
# Longest prompt with its answer, the patches not counted.
WORDS_AT_MOST = 112
# Longest text of the CLIP twin: the caption of nine objects and the two end marks.
TEXT_AT_MOST = 56


def word_tokenizer(vocabulary: tuple[str, ...], template: str, specials: tuple[str, ...]) -> Any:
    """Words of a vocabulary, put into a template of special ones, as `tokenizers` has it."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from tokenizers.processors import TemplateProcessing

    words = {word: index for index, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(words, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), "removed", invert=True)
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = TemplateProcessing(
        single=template, special_tokens=[(word, words[word]) for word in specials]
    )
    return tokenizer


def build_tokenizer() -> Any:
    """Return the tokeniser: one token a word, one a digit, all in lower case.

    A WordPiece model over `secateur.lab.questions.VOCABULARY` whose only continuations are
    digits, so that ``"47"`` is two tokens and decodes to ``"47"`` again.
    """
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer((*SPECIAL, *VOCABULARY), f"{BOS} $A", (BOS,)),
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        additional_special_tokens=[IMAGE],
        extra_special_tokens={"image_token": IMAGE},
        padding_side="left",
        model_max_length=(SIZE // PATCH) ** 2 + WORDS_AT_MOST,
    )


def build_processor() -> Any:
    """Return the `LlavaProcessor`: 96 pixels, patches of 8, the question right after the image."""
    from transformers import LlavaProcessor
    from transformers.models.clip import image_processing_pil_clip

    images = image_processing_pil_clip.CLIPImageProcessorPil(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.25, 0.25, 0.25],
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=build_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=(
            "{% for message in messages %}{% if message['content'] is string %}"
            "{{ message['content'] }}{% else %}{% for part in message['content'] %}"
            "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
            "{% endfor %}{% endif %}{% if message['role'] == 'assistant' %}</s>{% endif %}"
            "{% endfor %}"
        ),
    )


def build_model(seed: int = 0) -> Any:
    """Return an untrained `LlavaForConditionalGeneration` of the lab's geometry.

    CLIP vision: four layers of width 128, 144 patches; the features are those before the last
    layer, the class token left out, as LLaVA-1.5 takes them. Llama: four layers of width 128; that
    of the weights that come along has grown to six.
    """
    import torch
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        image_size=SIZE,
        patch_size=PATCH,
        projection_dim=WIDTH,
    )
    size = len(SPECIAL) + len(VOCABULARY)
    text = LlamaConfig(
        vocab_size=size,
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=(SIZE // PATCH) ** 2 + WORDS_AT_MOST,
        rope_theta=10000.0,
        bos_token_id=SPECIAL.index(BOS),
        eos_token_id=SPECIAL.index(EOS),
        pad_token_id=SPECIAL.index(PAD),
        tie_word_embeddings=True,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=SPECIAL.index(IMAGE),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=(SIZE // PATCH) ** 2,
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config)
    _lay_out_places(model)
    return model


def _lay_out_places(model: Any) -> None:
    """Start the tower's positions as sines of row and column: places are then learnt in minutes."""
    import torch

    side = SIZE // PATCH
    step = torch.arange(side, dtype=torch.float32)
    rates = torch.pi / side * 2 ** torch.linspace(0, 3, WIDTH // 4)
    waves = torch.cat([(step[:, None] * rates).sin(), (step[:, None] * rates).cos()], dim=1)
    rows = waves[:, None].expand(side, side, -1)
    columns = waves[None].expand(side, side, -1)
    places = torch.cat([rows, columns], dim=-1).reshape(side * side, WIDTH)
    table = model.model.vision_tower.embeddings.position_embedding.weight
    with torch.no_grad():
        table[1:] = 0.3 * places


def build_text_tokenizer() -> Any:
    """Return the tokeniser of the CLIP twin: the same words between CLIP's two end marks.

    As in CLIP the end mark pads too and has the highest id, where the text tower pools.
    """
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(
            (UNKNOWN, *VOCABULARY, START, END), f"{START} $A {END}", (START, END)
        ),
        bos_token=START,
        eos_token=END,
        pad_token=END,
        unk_token=UNKNOWN,
        padding_side="right",
        model_max_length=TEXT_AT_MOST,
    )


def build_clip(model: Any, seed: int = 0) -> Any:
    """Return a `CLIPModel` whose vision tower is a copy of the LLaVA's and whose text is untrained.

    Parameters
    ----------
    model
        From `build_model`.
    seed
        Of the text tower and the projections.
    """
    import torch
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig

    size = len(VOCABULARY) + 3
    text = CLIPTextConfig(
        vocab_size=size,
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        max_position_embeddings=TEXT_AT_MOST,
        projection_dim=WIDTH,
        bos_token_id=size - 2,
        eos_token_id=size - 1,
        pad_token_id=size - 1,
    )
    torch.manual_seed(seed)
    clip = CLIPModel(
        CLIPConfig(
            text_config=text.to_dict(),
            vision_config=model.config.vision_config.to_dict(),
            projection_dim=WIDTH,
        )
    )
    clip.vision_model.load_state_dict(model.model.vision_tower.state_dict())
    clip.vision_model.requires_grad_(False)
    return clip
