"""How much faster an encoder gets that never reads the cells which PixelPrune drops.

Encoders have the shapes of the real 7B and 8B checkpoints, few layers and random weights. Pages
are drawn, white with lines of text, as full as said; noise is what nothing can be dropped of. Both
run in turns: the whole picture, and scanning it and encoding what is left.

    python benchmarks/skipping.py --rounds 3 --write

writes docs/benchmarks/skipping.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import transformers
from machine import DOCS, described, interleaved, medians, spelled
from PIL import Image, ImageDraw

import secateur as sc
from secateur.integrations.attach import encode

TEXT = "The quick brown fox jumps over the lazy dog and runs into the wood again. "


def page(side: int, lines: int) -> Image.Image:
    """A white page with lines of text, from the top."""
    drawn = Image.new("RGB", (side, side), "white")
    pen = ImageDraw.Draw(drawn)
    for line in range(lines):
        pen.text((side // 16, side // 16 + 14 * line), TEXT[line:] * 2, fill="black")
    return drawn


def noise(side: int) -> Image.Image:
    """Where no cell is like another."""
    random = np.random.default_rng(0)
    return Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8))


def pictures(side: int) -> dict[str, Image.Image]:
    full = side // 14 - side // 112
    return {
        "page, a quarter full": page(side, full // 4),
        "page, half full": page(side, full // 2),
        "page, full": page(side, full),
        "noise": noise(side),
    }


TEXT_LAYERS = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 151700,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
}


def qwen25(layers: int) -> Any:
    """Qwen2.5-VL-7B's encoder: one layer in four of full attention instead of one in eight."""
    vision = {
        "depth": layers,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 64,
        "fullatt_block_indexes": list(range(3, layers, 4)) or [layers - 1],
    }
    config = transformers.Qwen2_5_VLConfig(vision_config=vision, text_config=TEXT_LAYERS)
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def qwen3(layers: int) -> Any:
    """Qwen3-VL-8B's encoder."""
    vision = {
        "depth": layers,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_heads": 16,
        "out_hidden_size": 64,
        "deepstack_visual_indexes": [layers - 1],
    }
    rope = {**TEXT_LAYERS["rope_parameters"], "mrope_interleaved": True}
    text = {**TEXT_LAYERS, "head_dim": 16, "rope_parameters": rope}
    config = transformers.Qwen3VLConfig(vision_config=vision, text_config=text)
    return transformers.Qwen3VLForConditionalGeneration(config)


def qwen35(layers: int) -> Any:
    """Qwen3.5's encoder: Qwen3-VL's, without deepstack."""
    vision = {
        "depth": layers,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_heads": 16,
        "out_hidden_size": 64,
    }
    rope = {**TEXT_LAYERS["rope_parameters"], "mrope_interleaved": True}
    text = {**TEXT_LAYERS, "head_dim": 16, "rope_parameters": rope}
    config = transformers.Qwen3_5Config(vision_config=vision, text_config=text)
    return transformers.Qwen3_5ForConditionalGeneration(config)


FAMILIES: Mapping[str, tuple[Callable[[int], Any], int]] = {
    "Qwen2.5-VL": (qwen25, 14),
    "Qwen3-VL": (qwen3, 16),
    "Qwen3.5": (qwen35, 16),
}


def inputs_of(model: Any, patch: int, picture: Image.Image) -> dict[str, Any]:
    """What a processor makes of one picture and nothing else."""
    processor = transformers.models.qwen2_vl.image_processing_pil_qwen2_vl
    made = processor.Qwen2VLImageProcessorPil(
        patch_size=patch,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": 4 * patch**2, "longest_edge": picture.width * picture.height},
    )(images=[picture], return_tensors="pt")
    cells = int(made["image_grid_thw"].prod()) // 4
    ids = torch.full((1, cells), model.config.image_token_id)
    return {"input_ids": ids, **made}


METHOD = sc.PixelPrune()


@torch.inference_mode()
def rows(family: str, cells: int, layers: int, rounds: int) -> list[str]:
    """Lines of the table, for pictures of cells x cells."""
    build, patch = FAMILIES[family]
    torch.manual_seed(0)
    model = build(layers).eval()
    found = []
    for name, picture in pictures(2 * patch * cells).items():
        inputs = inputs_of(model, patch, picture)
        chosen = encode(model, inputs, method=METHOD).visuals[0].chosen[0]
        times = medians(
            interleaved(
                {
                    "all": lambda inputs=inputs: encode(model, inputs),
                    "some": lambda inputs=inputs: encode(model, inputs, method=METHOD),
                },
                rounds,
                clock=time.process_time,
            )
        )
        kept = f"{int(chosen.count)} of {chosen.size}"
        ratio = times["all"] / times["some"]
        cell = [family, name, kept, spelled(times["all"]), spelled(times["some"]), f"{ratio:.1f}"]
        found.append("| " + " | ".join(cell) + " |")
        print(found[-1], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--cells", type=int, default=24, help="of a picture, on a side")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="write the page")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    lines = [
        "| encoder | picture | cells kept | whole picture | what is kept | times faster |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for family in FAMILIES:
        lines += rows(family, given.cells, given.layers, given.rounds)
    print("\n".join(lines))
    if given.write:
        side = given.cells
        text = [
            "# Cells that are never encoded",
            "",
            "What an encoder takes that gets all cells of a picture, and one that gets those which",
            "`sc.PixelPrune()` keeps, with the time of choosing them. Encoders have the shapes of",
            f"the 7B and 8B checkpoints, {given.layers} layers and random weights; pictures have",
            f"{side} x {side} cells; float32, processor time, medians of {given.rounds} rounds in",
            "turns. Pages are drawn, white with lines of text; of noise nothing is dropped, so",
            f"that its row shows what scanning costs. Threads: {given.threads}. Measured by",
            f"`python benchmarks/skipping.py --cells {side} --rounds {given.rounds} --write`:",
            described("secateur", "torch", "transformers"),
            "",
            *lines,
            "",
        ]
        (DOCS / "benchmarks" / "skipping.md").write_text("\n".join(text), encoding="utf-8")


if __name__ == "__main__":
    main()
