"""What pruning a real model's prompt saves, and what choosing costs.

Models have the shapes of the real 7B checkpoints and random weights: all layers on a GPU, two of
the language model's and two of the tower's on a CPU (`--layers`, `--tower-layers`). Every row
generates a few tokens; rows take turns, for as long as `--minutes` allow and at least three
rounds, so that what happens on the machine meets all alike. Printed are medians over the rounds:
the time to the first token, which is the prefill; the time of each further token; the ratio of
the first to the stock model's in the same round, with the least and the most of it; the time of
choosing. Counted once: FLOPs of the prefill (torch's counter), the prompt, bytes of the KV cache,
and the memory that the prefill takes at its peak beside the weights (on a CPU as Linux counts it
for the process). Beside ours stand what people do without: the tower on eager attention, as
programs run it that read attention weights from its outputs, and a picture, or a grid of tokens,
made smaller. PixelPrune drops cells of a page, white with some lines of text, which are then never
encoded; the stock model takes as long for any picture.

    python benchmarks/attach.py --out docs/benchmarks/attach.md
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from machine import described
from skipping import inputs_of, page
from torch.utils.flop_counter import FlopCounterMode

import secateur as sc
from secateur.integrations.transformers.internals import cache_in

INTRODUCTION = """# What attaching costs and saves

Printed by `python benchmarks/attach.py`, which says what is measured. Models have the shapes of the
real 7B checkpoints with few layers and random weights, so read rows against each other: choosing
against the stock model's first token, which with all layers takes some ten times longer while
choosing takes what it takes here; and memory against the rows with an *eager tower*, which is what
programs pay that read attention weights from the tower's outputs. An attachment reads queries and
keys in blocks and leaves sdpa and flash attention on. *Of stock* is the time to the first token
beside the stock model's in the same round: the median, and in brackets the least and the most.
PixelPrune drops cells of a drawn page before the encoder, where the stock model reads any picture
of that size in the same time.

"""
HEAD = (
    "row",
    "prompt",
    "TFLOP",
    "KV cache",
    "memory",
    "first token",
    "of stock",
    "each further",
    "choosing",
)


def llava(layers: int | None, tower: int | None) -> tuple[Any, dict[str, torch.Tensor]]:
    """LLaVA-1.5-7B: one image of 576 tokens and 40 of text."""
    vision = transformers.CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=tower or 24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    text = transformers.LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=layers or 32,
        num_attention_heads=32,
        vocab_size=32064,
    )
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_id=32000)
    ids = torch.randint(5, 31000, (1, 616))
    ids[:, 8:584] = 32000
    inputs = {"input_ids": ids, "pixel_values": torch.randn(1, 3, 336, 336)}
    return transformers.LlavaForConditionalGeneration(config), inputs


def qwen(layers: int | None, tower: int | None) -> tuple[Any, dict[str, torch.Tensor]]:
    """Qwen2.5-VL-7B: one image of 1008 x 1008, 1296 tokens, and 40 of text."""
    depth = tower or 32
    vision = {
        "depth": depth,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
        "fullatt_block_indexes": list(range(7, depth, 8)) or [depth - 1],
    }
    text = {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": layers or 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [16, 24, 24],
        },
    }
    config = transformers.Qwen2_5_VLConfig(vision_config=vision, text_config=text)
    return transformers.Qwen2_5_VLForConditionalGeneration(config), picture(config, 36)


def picture(config: Any, side: int) -> dict[str, torch.Tensor]:
    """What Qwen2.5-VL is given for a square picture of so many tokens a side, and 40 of text."""
    tokens = side * side
    ids = torch.randint(5, 31000, (1, tokens + 40))
    ids[:, 8 : 8 + tokens] = config.image_token_id
    return {
        "input_ids": ids,
        "mm_token_type_ids": (ids == config.image_token_id).int(),
        "pixel_values": torch.randn(4 * tokens, 1176),
        "image_grid_thw": torch.tensor([[1, 2 * side, 2 * side]]),
    }


PATCH = 28
"""Pixels on a side of a visual token of Qwen2.5-VL."""
LINES = 36
"""Of text on the page that PixelPrune is given, which has room for 63."""
FAMILIES = {"llava-1.5": llava, "qwen2.5-vl": qwen}
LEAST = 3
"""Rounds at least."""


class Row(NamedTuple):
    """One row: a method or none, on which inputs, with which attention in the tower."""

    inputs: dict[str, torch.Tensor]
    method: sc.Method | None = None
    tower: str | None = None


def rows_of(family: str, model: Any, inputs: dict[str, Any], share: float) -> dict[str, Row]:
    """Everything that is compared, by name."""
    rows = {"stock": Row(inputs)}
    for name, method in {
        "TopK": sc.TopK(keep=share),
        "EADP": sc.EADP(keep=share),
        "AgilePruner": sc.AgilePruner(keep=share, mean_erank=100.0),
        "DivPrune": sc.DivPrune(keep=share),
        "FastV": sc.FastV(keep=share, after=1),
    }.items():
        rows[name] = Row(inputs, method)
    rows["TopK, eager tower"] = Row(inputs, sc.TopK(keep=share), "eager")
    if family == "llava-1.5":
        rows["ToMe"] = Row(inputs, sc.ToMe(keep=share))
        rows["grid pooled"] = Row(inputs, sc.Pool(keep=share))
    else:
        with torch.device(model.device):
            rows["picture smaller"] = Row(picture(model.config, round(36 * share**0.5)))
            drawn = page(36 * PATCH, LINES)
            pixels = inputs_of(model, PATCH // 2, drawn)["pixel_values"].to(model.device)
            rows[f"PixelPrune, a page of {LINES} lines"] = Row(
                {**inputs, "pixel_values": pixels}, sc.PixelPrune()
            )
    return rows


class Watch(transformers.StoppingCriteria):
    """Notes when each token is there, and stops nothing."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.times = [now(device)]

    def __call__(self, ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.times.append(now(self.device))
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)


def now(device: torch.device) -> float:
    """The time, once the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def memory(device: torch.device, what: str = "now") -> int:
    """Bytes the device holds, or has held at most since the last time this said what it holds."""
    if device.type == "cuda":
        if what == "peak":
            return torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    if what == "now":
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    name = {"now": "VmRSS:", "peak": "VmHWM:"}[what]
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


@contextmanager
def ready(model: Any, row: Row) -> Iterator[Any]:
    """The model as the row has it; the attachment, where there is one."""
    kind = model.config.vision_config._attn_implementation
    if row.tower is not None:
        model.set_attn_implementation({"vision_config": row.tower})
    try:
        with nullcontext() if row.method is None else sc.attach(model, row.method) as attached:
            yield attached
    finally:
        if row.tower is not None:
            model.set_attn_implementation({"vision_config": kind})


@torch.inference_mode()
def counted(model: Any, row: Row) -> dict[str, Any]:
    """What does not depend on the clock; this run does not count otherwise."""
    with ready(model, row):
        before = memory(model.device)
        with FlopCounterMode(display=False) as counter:
            out = model(**row.inputs, use_cache=True, logits_to_keep=1)
        peak = memory(model.device, "peak") - before
    layers = cache_in(out).layers
    return {
        "flops": counter.get_total_flops(),
        "length": int(layers[-1].keys.shape[2]),
        "cache": sum(x.nbytes for layer in layers for x in (layer.keys, layer.values)),
        "peak": peak,
    }


@torch.inference_mode()
def timed(model: Any, row: Row, tokens: int) -> tuple[float, float, float]:
    """Seconds to the first token, for each further one, and of choosing."""
    with ready(model, row) as attached:
        watch = Watch(model.device)
        model.generate(
            **row.inputs, max_new_tokens=tokens, do_sample=False, stopping_criteria=[watch]
        )
        spent = {} if attached is None else attached.last.milliseconds
    steps = np.diff(watch.times)
    further = float(steps[1:].mean()) if len(steps) > 1 else math.nan
    return float(steps[0]), further, sum(spent.get(x, 0.0) for x in ("choose", "inside")) / 1e3


def line(name: str, known: dict[str, Any], times: np.ndarray, stock: np.ndarray) -> str:
    """One row of the table; times and those of stock are (rounds, 3)."""
    first, further, choosing = np.median(times, axis=0)
    ratio = times[:, 0] / stock[:, 0]
    beside = f"{np.median(ratio):.2f} ({ratio.min():.2f} - {ratio.max():.2f})"
    cells = [
        name,
        str(known["length"]),
        f"{known['flops'] / 1e12:.2f}",
        f"{known['cache'] / 2**20:.1f} MiB",
        f"{known['peak'] / 2**20:.0f} MiB",
        f"{1000 * first:.0f} ms",
        "" if name == "stock" else beside,
        f"{1000 * further:.0f} ms",
        f"{1000 * choosing:.1f} ms" if choosing else "",
    ]
    return "| " + " | ".join(cells) + " |"


def table(model: Any, rows: dict[str, Row], minutes: float, tokens: int) -> tuple[list[str], int]:
    """The lines of the table, and over how many rounds."""
    start = time.monotonic()
    known = {name: counted(model, row) for name, row in rows.items()}
    seconds: dict[str, list[tuple[float, float, float]]] = {name: [] for name in rows}
    rounds, longest = 0, 0.0
    while rounds < LEAST or time.monotonic() + longest - start < 60 * minutes:
        began = time.monotonic()
        # Turn about, so that none always follows the same one.
        for name, row in list(rows.items())[:: -1 if rounds % 2 else 1]:
            seconds[name].append(timed(model, row, tokens))
        longest = max(longest, time.monotonic() - began)
        rounds += 1
    times = {name: np.asarray(each) for name, each in seconds.items()}
    return [line(name, known[name], times[name], times["stock"]) for name in rows], rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--family", choices=sorted(FAMILIES), action="append")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--tower-layers", type=int)
    parser.add_argument("--share", type=float, default=0.25, help="of the tokens, that is kept")
    parser.add_argument("--minutes", type=float, default=1.5, help="for each family")
    parser.add_argument("--tokens", type=int, help="to generate: 256 on a GPU, 4 on a CPU")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    cuda = torch.cuda.is_available()
    layers = chosen.layers or (None if cuda else 2)
    tower = chosen.tower_layers or (None if cuda else 2)
    tokens = chosen.tokens or (256 if cuda else 4)
    device, dtype = ("cuda", torch.bfloat16) if cuda else ("cpu", torch.float32)
    told = [described("torch", "transformers")]
    sc.warm_up(shapes=[(64, 32)])
    for family in chosen.family or sorted(FAMILIES):
        torch.manual_seed(0)
        torch.set_default_dtype(dtype)
        with torch.device(device):
            model, inputs = FAMILIES[family](layers, tower)
        torch.set_default_dtype(torch.float32)
        model.eval()
        model.generation_config.eos_token_id = None
        rows = rows_of(family, model, inputs, chosen.share)
        lines, rounds = table(model, rows, chosen.minutes, tokens)
        depth = model.config.get_text_config().num_hidden_layers
        told += [
            f"\n## {family}, {depth} layers, {str(dtype).removeprefix('torch.')} on {device}\n",
            f"{chosen.share:g} of the tokens kept; medians of {rounds} rounds.\n",
            "| " + " | ".join(HEAD) + " |",
            "|" + " --- |" * len(HEAD),
            *lines,
        ]
        print("\n".join(told), flush=True)
        if chosen.out is not None:
            # What is there by now stays, whatever becomes of the next family.
            chosen.out.write_text(INTRODUCTION + "\n".join(told) + "\n", encoding="utf-8")
        del model, inputs, rows
        gc.collect()


if __name__ == "__main__":
    main()
