"""Train the CLIP twin's text tower against the lab's vision tower, which stays as it is.

Three contrasts are summed: captions against the class tokens of a batch, as CLIP does; short texts
against pictures by the mean over words of the best patch, as FILIP does (Yao et al., ICLR 2022), so
that single words point at patches; and each short text against the patches of its own picture,
which it should tell from those that it does not speak of.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn import functional
from tqdm import tqdm

from secateur.lab.model import build_clip, build_text_tokenizer
from secateur.lab.packaged import STORED
from secateur.lab.questions import article
from secateur.lab.scene import Scene, draw
from secateur.lab.training.attention import attend_fast, mixed
from secateur.lab.training.batches import pixels
from secateur.lab.training.journal import Journal


@dataclass(frozen=True)
class TextSettings:
    """Of the text tower's training.

    Attributes
    ----------
    steps, size
        How many batches of how many scenes.
    rate, decay
        Peak learning rate, which half a cosine takes to zero, and weight decay.
    seed
        Of the weights and of the scenes; the stream is another than the main model's.
    """

    steps: int = 600
    size: int = 48
    rate: float = 1.5e-3
    decay: float = 0.05
    seed: int = 2


def joint_patches(clip: Any, images: Any) -> tuple[Any, Any]:
    """Return patches ``(B, 144, C)`` and class tokens ``(B, C)`` in the joint space, length one.

    The patches are the states that LLaVA takes, of the last layer but one.
    """
    seen = clip.vision_model(pixels(images), output_hidden_states=True)
    states = clip.vision_model.post_layernorm(seen.hidden_states[-2][:, 1:])
    patches = functional.normalize(clip.visual_projection(states), dim=-1)
    return patches, functional.normalize(clip.visual_projection(seen.pooler_output), dim=-1)


def joint_words(clip: Any, tokenizer: Any, texts: list[str]) -> tuple[Any, Any, Any]:
    """Return words ``(B, T, C)``, whole texts ``(B, C)`` (length one) and which are words."""
    inputs = tokenizer(
        texts, padding=True, return_tensors="pt", return_special_tokens_mask=True
    ).to(clip.device)
    special = inputs.pop("special_tokens_mask").bool()
    out = clip.text_model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    words = functional.normalize(clip.text_projection(out.last_hidden_state), dim=-1)
    whole = functional.normalize(clip.text_projection(out.pooler_output), dim=-1)
    return words, whole, ~special


def short_text(rng: np.random.Generator, scene: Scene) -> tuple[str, tuple[int, ...]]:
    """Choose a question, or an object's name, and the patches that it speaks of."""
    questions = [
        q for q in scene.questions if q.patches and q.kind not in ("caption", "places", "count")
    ]
    if questions and rng.random() < 0.6:
        question = questions[int(rng.integers(len(questions)))]
        return question.text, question.patches
    thing = scene.objects[int(rng.integers(len(scene.objects)))]
    alike = [other for other in scene.objects if other.phrase == thing.phrase]
    if rng.random() < 0.5:
        return f"{thing.phrase} {thing.place}", thing.patches
    return f"{article(thing.phrase)} {thing.phrase}", tuple(
        sorted({p for other in alike for p in other.patches})
    )


def train_text(model: Any, out: Path, settings: TextSettings, init: Path | None = None) -> Any:
    """Return a `CLIPModel` trained against the tower of `model`.

    Parameters
    ----------
    model
        The lab's LLaVA.
    out
        Folder for ``text.log``.
    settings
        Of the run.
    init
        Folder of a saved `CLIPModel` whose text side to start from.
    """
    device = model.device
    clip = build_clip(model, settings.seed).to(device).train()
    if init is not None:
        saved = load_file(init / STORED)
        clip.load_state_dict({**clip.state_dict(), **saved})
    attend_fast(clip.vision_model, device)
    tokenizer = build_text_tokenizer()
    learnt = [p for p in clip.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=settings.rate, weight_decay=settings.decay)
    journal = Journal(out / "text.log", **vars(settings))
    bar = tqdm(range(settings.steps), unit="step", mininterval=5)
    for step in bar:
        drawn = [draw(settings.seed, step * settings.size + i) for i in range(settings.size)]
        rng = np.random.default_rng((settings.seed, step, 1))
        short = [short_text(rng, scene) for scene in drawn]
        images = torch.from_numpy(np.stack([scene.image for scene in drawn])).to(device)
        region = torch.zeros(len(drawn), drawn[0].coverage.shape[1], dtype=torch.bool)
        for row, (_, patches) in zip(region, short, strict=True):
            row[list(patches)] = True
        region = region.to(device)
        with mixed(device):
            patches, pooled = joint_patches(clip, images)
            _, captions, _ = joint_words(clip, tokenizer, [scene.caption for scene in drawn])
            words, whole, real = joint_words(clip, tokenizer, [text for text, _ in short])
            scale = clip.logit_scale.exp()
            by_caption = scale * pooled @ captions.T
            # (B texts, T words, B pictures, 144 patches), best patch, mean over words
            best = torch.einsum("twc,ipc->twip", words, patches).amax(dim=-1)
            by_word = scale * (best * real[..., None]).sum(dim=1) / real.sum(dim=1)[:, None]
            within = scale * torch.einsum("bc,bpc->bp", whole, patches)
        pairs = torch.arange(len(drawn), device=device)
        caption = _both_ways(by_caption.float(), pairs)
        word = _both_ways(by_word.float(), pairs)
        log_share = within.float().log_softmax(dim=-1)
        inside = -log_share.masked_fill(~region, -math.inf).logsumexp(dim=-1).mean()
        optimizer.zero_grad(set_to_none=True)
        (caption + word + inside).backward()
        for group in optimizer.param_groups:
            risen = min(1.0, (step + 1) / 50)
            group["lr"] = (
                settings.rate * risen * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
            )
        optimizer.step()
        with torch.no_grad():
            clip.logit_scale.clamp_(max=math.log(100))
            hit = region.gather(1, within.argmax(dim=-1, keepdim=True)).sum().item()
            found = (by_caption.argmax(dim=-1) == pairs).sum().item()
        losses = {"caption": caption.item(), "word": word.item(), "inside": inside.item()}
        journal.note(losses, {"hit": (hit, len(drawn)), "retrieved": (found, len(drawn))})
        if journal.steps == 50:
            journal.write(step + 1)
            bar.set_postfix(losses, refresh=False)
    clip.set_attn_implementation("sdpa")
    return clip.eval()


def _both_ways(logits: Any, pairs: Any) -> Any:
    """Symmetric InfoNCE of a square of similarities whose diagonal holds the pairs."""
    return 0.5 * (
        functional.cross_entropy(logits, pairs) + functional.cross_entropy(logits.T, pairs)
    )
