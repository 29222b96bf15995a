"""What pruning a real model's prompt saves, and what choosing costs.

Models have the shapes of the real 7B checkpoints and random weights: all layers on a GPU, two of
the language model's and four of the tower's on a CPU (`--layers`, `--tower-layers`). Printed for
the stock model and for each method at 1/2, 1/4 and 1/9 of the tokens: the length of the prompt;
FLOPs of the prefill (torch's counter); bytes of the KV cache; time of the prefill, and to the
first token from `generate`; time of choosing, and as a share of the unpruned prefill; and the
memory that the prefill takes at its peak beside the weights (on a CPU as Linux counts it for the
process). "eager tower" is the stock model with the vision tower on eager attention, as programs
run it that read attention weights from its outputs.

    python benchmarks/attach.py --family qwen2.5-vl --rounds 5 --out docs/benchmarks/attach.md
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from machine import described
from torch.utils.flop_counter import FlopCounterMode

import secateur as sc
from secateur.integrations.transformers.internals import cache_in

INTRODUCTION = """# What attaching costs and saves

Printed by `python benchmarks/attach.py`, which says what is measured. Models have the shapes of the
real 7B checkpoints with few layers and random weights, so read rows against each other: choosing
against the unpruned prefill, which with all layers takes some ten times longer while choosing
takes what it takes here; and memory against the row *eager tower*, which is what programs pay
that read attention weights from the tower's outputs. An attachment reads queries and keys in
blocks and leaves sdpa and flash attention on.

"""
SHARES = {"1/2": 1 / 2, "1/4": 1 / 4, "1/9": 1 / 9}
HEAD = (
    "method",
    "kept",
    "prompt",
    "TFLOP",
    "KV cache",
    "prefill",
    "first token",
    "choosing",
    "of the stock prefill",
    "memory",
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
    tokens = 36 * 36
    ids = torch.randint(5, 31000, (1, tokens + 40))
    ids[:, 8 : 8 + tokens] = config.image_token_id
    inputs = {
        "input_ids": ids,
        "mm_token_type_ids": (ids == config.image_token_id).int(),
        "pixel_values": torch.randn(4 * tokens, 1176),
        "image_grid_thw": torch.tensor([[1, 72, 72]]),
    }
    return transformers.Qwen2_5_VLForConditionalGeneration(config), inputs


FAMILIES = {"llava-1.5": llava, "qwen2.5-vl": qwen}


def methods(share: float) -> dict[str, sc.Method]:
    return {
        "TopK": sc.TopK(keep=share),
        "EADP": sc.EADP(keep=share),
        "AgilePruner": sc.AgilePruner(keep=share, mean_erank=100.0),
        "DivPrune": sc.DivPrune(keep=share),
        "CDPruner": sc.CDPruner(keep=share),
        "FastV": sc.FastV(keep=share, after=1),
    }


def seconds(run: Callable[[], Any], rounds: int, device: torch.device) -> float:
    """The median of some rounds, after one that does not count."""
    spent = []
    for _ in range(rounds + 1):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        spent.append(time.perf_counter() - start)
    return sorted(spent[1:])[rounds // 2]


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


@torch.inference_mode()
def measured(
    model: Any, inputs: dict[str, Any], method: sc.Method | None, rounds: int
) -> dict[str, Any]:
    """Everything about one row of the table."""
    device = model.device
    attached = nullcontext() if method is None else sc.attach(model, method)
    with attached as att:
        with FlopCounterMode(display=False) as counter:
            out = model(**inputs, use_cache=True, logits_to_keep=1)
        layers = cache_in(out).layers
        row = {
            "flops": counter.get_total_flops(),
            "length": int(layers[-1].keys.shape[2]),
            "cache": sum(x.nbytes for layer in layers for x in (layer.keys, layer.values)),
            "choosing": [],
        }
        del out, layers

        def prefill() -> None:
            model(**inputs, use_cache=True, logits_to_keep=1)
            if att is not None:
                spent = att.last.milliseconds
                row["choosing"].append(sum(spent.get(x, 0.0) for x in ("choose", "inside")))

        before = memory(device)
        row["prefill"] = seconds(prefill, rounds, device)
        row["peak"] = memory(device, "peak") - before
        row["first"] = seconds(
            lambda: model.generate(**inputs, max_new_tokens=1, do_sample=False), rounds, device
        )
    chosen = sorted(row["choosing"])
    row["choosing"] = chosen[len(chosen) // 2] / 1000 if chosen else 0.0
    return row


def line(name: str, kept: str, row: dict[str, Any], stock: dict[str, Any]) -> str:
    share = row["choosing"] / stock["prefill"]
    cells = [
        name,
        kept,
        str(row["length"]),
        f"{row['flops'] / 1e12:.2f}",
        f"{row['cache'] / 2**20:.1f} MiB",
        f"{1000 * row['prefill']:.0f} ms",
        f"{1000 * row['first']:.0f} ms",
        f"{1000 * row['choosing']:.1f} ms" if row["choosing"] else "",
        f"{100 * share:.1f} %" if row["choosing"] else "",
        f"{row['peak'] / 2**20:.0f} MiB",
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--family", choices=sorted(FAMILIES), action="append")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--tower-layers", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--method", action="append", help="only these")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    cuda = torch.cuda.is_available()
    layers = chosen.layers or (None if cuda else 2)
    tower = chosen.tower_layers or (None if cuda else 4)
    device, dtype = ("cuda", torch.bfloat16) if cuda else ("cpu", torch.float32)
    told = [described("torch", "transformers")]
    for family in chosen.family or sorted(FAMILIES):
        torch.manual_seed(0)
        torch.set_default_dtype(dtype)
        with torch.device(device):
            model, inputs = FAMILIES[family](layers, tower)
        torch.set_default_dtype(torch.float32)
        model.eval()
        model.generation_config.eos_token_id = None
        depth = model.config.get_text_config().num_hidden_layers
        told += [
            f"\n## {family}, {depth} layers, {str(dtype).removeprefix('torch.')} on {device}\n",
            "| " + " | ".join(HEAD) + " |",
            "|" + " --- |" * len(HEAD),
        ]
        stock = measured(model, inputs, None, chosen.rounds)
        told.append(line("stock", "all", stock, stock))
        tower_config = model.config.vision_config
        kind = tower_config._attn_implementation
        model.set_attn_implementation({"vision_config": "eager"})
        told.append(line("eager tower", "all", measured(model, inputs, None, chosen.rounds), stock))
        model.set_attn_implementation({"vision_config": kind})
        print("\n".join(told[-5:]), flush=True)
        for kept, share in SHARES.items():
            for name, method in methods(share).items():
                if chosen.method and name not in chosen.method:
                    continue
                row = measured(model, copy.copy(inputs), method, chosen.rounds)
                told.append(line(name, kept, row, stock))
                print(told[-1], flush=True)
        del model, inputs
        gc.collect()
    if chosen.out is not None:
        title = INTRODUCTION
        chosen.out.write_text(title + "\n".join(told) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
