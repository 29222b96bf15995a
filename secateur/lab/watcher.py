"""The lab's model that watches: a small LLaVA-OneVision, what reads its input, and its answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from secateur.lab.clip import SIDE, Clip, clips
from secateur.lab.model import (
    BOS,
    EOS,
    HEADS,
    HIDDEN,
    LAYERS,
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
"""Layers put behind the first of the model for pictures, for frames to look at frames in."""
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
        num_hidden_layers=FRESH + LAYERS,
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
    """Return a model that watches and starts from the weights of a model for pictures.

    Its language model has four layers, as the lab's had before it grew. The fresh layers add
    nothing at first, so a clip of one frame is a picture of a quarter of the tokens.
    """
    import torch

    model = build_watcher(seed)
    old = pictures.model
    if (layers := len(old.language_model.layers)) != LAYERS:
        raise ValueError(f"pictures: {LAYERS} layers of a language model are taken, not {layers}")
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
        for layer in language.layers[1 : 1 + FRESH]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        known_layers = (language.layers[0], *language.layers[1 + FRESH :])
        for layer, was in zip(known_layers, old.language_model.layers, strict=True):
            layer.load_state_dict(was.state_dict())
        _tell_time(model, seed)
    return model


def _tell_time(model: Any, seed: int) -> None:
    """Start the first fresh layer so that a token knows its frame and what was there before.

    Three heads look at the start of the prompt, the less the later they are, each dimming about
    another frame; what they find is written where what tokens hold is nearly nil, which the
    layers behind, that come from the model for pictures, are made not to read. The fourth head
    looks as far back as a frame is long, and writes nothing at first. Time is then learnt in
    minutes.
    """
    import numpy as np
    import torch
    from torch.nn.functional import rms_norm

    whole, layers = model.model, model.model.language_model.layers
    images = np.stack([clip.images for clip in clips(8, seed)])
    pixels = (torch.from_numpy(images).movedim(-1, 2).float() / 255 - 0.5) / 0.25
    visuals = whole.get_video_features(pixel_values_videos=pixels).pooler_output
    begin = whole.language_model.embed_tokens.weight[SPECIAL.index(BOS)].expand(8, 1, -1)
    states = whole.language_model(
        inputs_embeds=torch.cat([begin, visuals], dim=1), output_hidden_states=True
    ).hidden_states[1]
    tokens = states[:, 1:-1].flatten(0, 1)
    level = tokens.pow(2).mean().sqrt()
    tokens, start = rms_norm(tokens, (WIDTH,)), rms_norm(states[0, 0], (WIDTH,))
    mean = tokens.mean(dim=0)
    _, ways = torch.linalg.eigh(tokens.T @ tokens)
    # What tells the start from the others, and the others from the start.
    visual = mean - (mean @ start) / (start @ start) * start
    begins = start - (mean @ start) / (mean @ mean) * mean
    visual, begins = visual / (visual @ mean), begins / (begins @ start)
    attention, width = layers[1].self_attn, WIDTH // HEADS
    query, key, value = (
        getattr(attention, f"{name}_proj").weight.view(HEADS, width, WIDTH) for name in "qkv"
    )
    out = attention.o_proj.weight.view(WIDTH, HEADS, width)
    for x in (query, key, value):
        x.zero_()
    half, unit = width // 2, width**0.25
    slow, still = half // 2, half - 1
    for head, bias in enumerate((-0.2, 4.6, 8.9)):
        query[head, slow], key[head, slow] = unit * 6**0.5 * visual, unit * 6**0.5 * begins
        query[head, still], key[head, still] = unit * visual, unit * bias * begins
        value[head, 0] = begins
        out[:, head, 0] = 0.1 * level * WIDTH**0.5 * ways[:, head]
    angle = POOLED * 10000.0 ** (-torch.arange(5) / half)
    query[3, :5] = 2 * unit * angle.cos()[:, None] * visual
    query[3, half : half + 5] = -2 * unit * angle.sin()[:, None] * visual
    key[3, :5] = 2 * unit * visual
    value[3] = ways[:, -width:].T
    time = ways[:, :3]
    for layer in layers[1 + FRESH :]:
        for norm, names in (
            (layer.input_layernorm, ("q_proj", "k_proj", "v_proj")),
            (layer.post_attention_layernorm, ("gate_proj", "up_proj")),
        ):
            for name in names:
                reads = getattr(layer.self_attn if name[1] == "_" else layer.mlp, name).weight
                reads -= (reads * norm.weight) @ time @ time.T / norm.weight


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
