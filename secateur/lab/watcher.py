"""The lab's model that watches: a small LLaVA-OneVision, what reads its input, and its answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from secateur.lab.clips import SIDE, Clip
from secateur.lab.model import (
    BOS,
    EOS,
    HEADS,
    HIDDEN,
    PAD,
    SPECIAL,
    UNKNOWN,
    WIDTH,
    word_tokenizer,
)
from secateur.lab.scene import PATCH, SIZE
from secateur.lab.watched import WATCHED, WORDS_OF_CLIPS, ClipQuestion, Watched

VIDEO = "<video>"
WORDS_SEEN = (*SPECIAL, *WORDS_OF_CLIPS, VIDEO)
"""Its vocabulary: that of the model for pictures comes first, at the same places."""
FRESH = 2
"""Layers put before the four of the model for pictures, for frames to look at frames in."""
POOLED = SIDE**2
"""Tokens of a frame."""
LONGEST = 4
"""Tokens of the longest answer and its end."""


def build_watcher(seed: int = 0) -> Any:
    """Return an untrained `LlavaOnevisionForConditionalGeneration` of the lab's geometry.

    The tower of the model for pictures without its last layer, which LLaVA does not read, and a
    Llama of six layers. Frames are pooled to 6 x 6 tokens.
    """
    import torch
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
    )

    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        image_size=SIZE,
        patch_size=PATCH,
        projection_dim=WIDTH,
    )
    text = LlamaConfig(
        vocab_size=len(WORDS_SEEN),
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=FRESH + 4,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=1024,
        rope_theta=10000.0,
        bos_token_id=SPECIAL.index(BOS),
        eos_token_id=SPECIAL.index(EOS),
        pad_token_id=SPECIAL.index(PAD),
        tie_word_embeddings=True,
    )
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=SPECIAL.index("<image>"),
        video_token_index=WORDS_SEEN.index(VIDEO),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_grid_pinpoints=[[SIZE, SIZE]],
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    return LlavaOnevisionForConditionalGeneration(config)


def grown_from(pictures: Any, seed: int = 0) -> Any:
    """Return a model that watches and starts from the weights of the lab's model for pictures.

    The fresh layers add nothing at first, so a clip of one frame is a picture of a quarter of
    the tokens.
    """
    import torch

    model = build_watcher(seed)
    old = pictures.model
    with torch.no_grad():
        tower = old.vision_tower.state_dict()
        model.model.vision_tower.load_state_dict(
            {name: x for name, x in tower.items() if ".layers.3." not in name}
        )
        model.model.multi_modal_projector.load_state_dict(old.multi_modal_projector.state_dict())
        language = model.model.language_model
        language.norm.load_state_dict(old.language_model.norm.state_dict())
        known = old.language_model.embed_tokens.weight
        language.embed_tokens.weight[: len(known)] = known
        language.embed_tokens.weight[len(known) :] = known[len(SPECIAL) :].mean(dim=0)
        language.embed_tokens.weight[len(known) :] += 0.02 * torch.randn(
            len(WORDS_SEEN) - len(known), WIDTH
        )
        for layer in language.layers[:FRESH]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        for layer, was in zip(language.layers[FRESH:], old.language_model.layers, strict=True):
            layer.load_state_dict(was.state_dict())
    return model


def build_reader() -> Any:
    """Return the tokeniser: the words of scenes, those of clips, and the mark of a video."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(WORDS_SEEN, f"{BOS} $A", (BOS,)),
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        additional_special_tokens=["<image>", VIDEO],
        padding_side="left",
        model_max_length=1024,
    )


def inputs(reader: Any, videos: Sequence[Any], questions: Sequence[str]) -> dict[str, Any]:
    """What the model takes for one question of each video.

    LLaVA-OneVision's own processor needs torchvision for videos; here is all that it would do.

    Parameters
    ----------
    reader
        From `build_reader`.
    videos
        uint8, ``(T, 96, 96, 3)`` each, all of as many frames.
    questions
        One for each video.
    """
    import numpy as np
    import torch

    stacked = torch.from_numpy(np.stack(list(videos)))
    size = stacked.shape[1] * POOLED + 1
    told = reader([VIDEO * size + question for question in questions], padding=True)
    return {
        "input_ids": torch.tensor(told["input_ids"]),
        "attention_mask": torch.tensor(told["attention_mask"]),
        "pixel_values_videos": (stacked.movedim(-1, 2).float() / 255 - 0.5) / 0.25,
    }


def watch(model: Any, reader: Any, videos: Sequence[Any], questions: Sequence[str]) -> list[str]:
    """Ask one question of each video, all in one batch, greedily."""
    import torch

    given = {name: x.to(model.device) for name, x in inputs(reader, videos, questions).items()}
    given["pixel_values_videos"] = given["pixel_values_videos"].to(model.dtype)
    with torch.no_grad():
        out = model.generate(**given, max_new_tokens=LONGEST, do_sample=False)
    told = out[:, given["input_ids"].shape[1] :]
    return [text.strip() for text in reader.batch_decode(told, skip_special_tokens=True)]


def watch_all(
    model: Any, reader: Any, over: Iterable[Clip], batch_size: int = 16
) -> Iterator[tuple[Clip, ClipQuestion, str]]:
    """Ask every question of every clip; yields clip, question and what was said, in order."""
    waiting: list[tuple[Clip, ClipQuestion]] = []

    def flush() -> Iterator[tuple[Clip, ClipQuestion, str]]:
        videos = [clip.images for clip, _ in waiting]
        said = watch(model, reader, videos, [question.text for _, question in waiting])
        for (clip, question), told in zip(waiting, said, strict=True):
            yield clip, question, told
        waiting.clear()

    for clip in over:
        for question in clip.questions:
            waiting.append((clip, question))
            if len(waiting) == batch_size:
                yield from flush()
    if waiting:
        yield from flush()


def evaluate_watching(model: Any, reader: Any, over: Iterable[Clip]) -> dict[Watched, float]:
    """Return the share of questions of each kind answered exactly, greedily."""
    right = dict.fromkeys(WATCHED, 0)
    asked = dict.fromkeys(WATCHED, 0)
    for _, question, said in watch_all(model, reader, over):
        asked[question.kind] += 1
        right[question.kind] += said == question.answer
    return {kind: right[kind] / asked[kind] for kind in WATCHED if asked[kind]}
