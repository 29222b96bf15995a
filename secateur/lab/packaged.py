"""The weights that come with the package, loaded offline by `from_pretrained`."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from secateur.core.extras import extra

WEIGHTS = "weights"
TEXT = "clip"
WATCHER = "watcher"
STORED = "model.safetensors"
EYES = "vision_model."
"""Weights of the twin that are the LLaVA's, and so are stored once."""


def _folder() -> Path:
    with as_file(files("secateur.lab") / WEIGHTS) as folder:
        return folder


def save(model: Any, clip: Any, folder: Path) -> None:
    """Write the model, its CLIP twin and what reads their input, as `load` finds them.

    Parameters
    ----------
    model, clip
        Trained; they are moved to bfloat16.
    folder
        Where to; the twin goes into its folder ``clip``, without the tower that both have.
    """
    import torch

    from secateur.lab.model import build_processor, build_text_tokenizer

    model.to(torch.bfloat16).save_pretrained(folder)
    build_processor().save_pretrained(folder)
    clip.to(torch.bfloat16)
    own = {name: x for name, x in clip.state_dict().items() if not name.startswith(EYES)}
    clip.save_pretrained(folder / TEXT, state_dict=own)
    build_text_tokenizer().save_pretrained(folder / TEXT)


def load(dtype: Any = "float32", device: Any = None) -> tuple[Any, Any]:
    """Load the lab's model and processor.

    Parameters
    ----------
    dtype
        As `from_pretrained` takes it. The weights are stored in bfloat16.
    device
        Where the model goes; None for the processor's memory.

    Returns
    -------
    model : transformers.LlavaForConditionalGeneration
        In evaluation mode; 144 visual tokens an image of 96 pixels.
    processor : transformers.LlavaProcessor
        Takes images of any size; the prompt is ``"<image>"`` and the question right after it.

    Examples
    --------
    >>> from secateur.lab import answer, load, scenes
    >>> model, processor = load()
    >>> scene = next(scenes(1, seed=1, kind="colour"))
    >>> said = answer(model, processor, scene.image, scene.questions[0].text)
    """
    with extra("transformers", "secateur.lab.load"):
        import torch  # noqa: F401  (transformers imports without it, and its models then do not)
        from transformers import LlavaForConditionalGeneration, LlavaProcessor

    folder = _folder()
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=dtype)
    processor = LlavaProcessor.from_pretrained(folder)
    return model.to(device or "cpu").eval(), processor


def text_encoder(dtype: Any = "float32", device: Any = None) -> tuple[Any, Any]:
    """Load the CLIP twin of the lab's model, for guidance by text.

    Its vision tower is the LLaVA's, weight for weight. In its joint space lie
    ``text_projection(states)`` of words and
    ``visual_projection(vision_model.post_layernorm(states))`` of patches, where the states of
    patches are those that LLaVA takes: after the last layer but one.

    Parameters
    ----------
    dtype, device
        As for `load`.

    Returns
    -------
    model : transformers.CLIPModel
    tokenizer : transformers.PreTrainedTokenizerFast
        The pair that ``secateur.attach(..., text_encoder=)`` takes.
    """
    with extra("transformers", "secateur.lab.text_encoder"):
        import torch  # noqa: F401  (as above)
        from transformers import PreTrainedTokenizerFast

    folder = _folder()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / TEXT)
    return twin_in(folder, dtype).to(device or "cpu").eval(), tokenizer


def twin_in(folder: Path, dtype: Any) -> Any:
    """Put the CLIP twin together of what `save` wrote: its own weights, and the LLaVA's tower."""
    from safetensors.torch import load_file
    from transformers import CLIPConfig, CLIPModel, LlavaForConditionalGeneration

    pictures = LlavaForConditionalGeneration.from_pretrained(folder, dtype="auto")
    weights = load_file(folder / TEXT / STORED)
    tower = pictures.model.vision_tower.state_dict()
    weights |= {f"{EYES}{name}": x for name, x in tower.items()}
    config = CLIPConfig.from_pretrained(folder / TEXT)
    return CLIPModel.from_pretrained(None, config=config, state_dict=weights, dtype=dtype)


def save_watcher(model: Any, folder: Path) -> None:
    """Write the model that watches and its tokeniser, as `load_watcher` finds them."""
    import torch

    from secateur.lab.watcher import build_reader

    model.to(torch.bfloat16).save_pretrained(folder)
    build_reader().save_pretrained(folder)


def load_watcher(dtype: Any = "float32", device: Any = None) -> tuple[Any, Any]:
    """Load the lab's model that watches clips, and its tokeniser.

    Parameters
    ----------
    dtype, device
        As for `load`.

    Returns
    -------
    model : transformers.LlavaOnevisionForConditionalGeneration
        In evaluation mode; 36 visual tokens a frame of 96 pixels, and one at the end.
    reader : transformers.PreTrainedTokenizerFast
        `secateur.lab.watcher.inputs` makes the model's input with it.

    Examples
    --------
    >>> from secateur.lab import clips, load_watcher, watch
    >>> model, reader = load_watcher()
    >>> clip = next(clips(1, seed=1, kind="reading"))
    >>> said = watch(model, reader, [clip.images], [clip.questions[0].text])
    """
    with extra("transformers", "secateur.lab.load_watcher"):
        import torch  # noqa: F401  (as above)
        from transformers import LlavaOnevisionForConditionalGeneration, PreTrainedTokenizerFast

    folder = _folder() / WATCHER
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(folder, dtype=dtype)
    reader = PreTrainedTokenizerFast.from_pretrained(folder)
    return model.to(device or "cpu").eval(), reader
