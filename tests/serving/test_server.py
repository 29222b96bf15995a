"""`vllm serve` with the plug-in: many users at once, some of whom send rubbish."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from small import picture

import secateur as sc
from secateur.integrations.vllm import overrides

REQUESTS, AT_ONCE = 200, 32
KEEP = 8


def encoded(image) -> str:
    out = io.BytesIO()
    image.save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def message(words: str, *urls: str) -> list[dict]:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": words}]}]


def good(seed: int) -> dict:
    dice = np.random.default_rng(seed)
    images = int(dice.integers(0, 4))
    sizes = [(int(dice.integers(20, 200)), int(dice.integers(20, 200))) for _ in range(images)]
    urls = [encoded(picture(seed + n, *size)) for n, size in enumerate(sizes)]
    words = str(dice.choice(["how many dog ?", "what color is the car ?", "is the tree red ?"]))
    asked = {"messages": message(words, *urls), "max_tokens": 8, "temperature": 0}
    if images:
        asked["extra_body"] = {"mm_processor_kwargs": {"instruction": words}}
    return asked


def malformed(seed: int) -> tuple[str, dict, str]:
    """What is wrong, the request, and a word of the reason that has to come back."""
    whole = encoded(picture(seed))
    head, body = whole.split(",")
    cut = f"{head},{body[: len(body) // 2 // 4 * 4]}"
    told = {"extra_body": {"mm_processor_kwargs": {"instruction": "red dog"}}}
    usual = {"max_tokens": 8, "temperature": 0}
    nothing = "data:image/png;base64,AAAA"
    kinds = [
        ("half an image", {"messages": message("what ?", cut), **told}, "image"),
        (
            "no image",
            {"messages": message("what ?", nothing), **told},
            "image",
        ),
        ("no instruction", {"messages": message("what ?", whole)}, "instruction"),
        (
            "an empty instruction",
            {
                "messages": message("what ?", whole),
                "extra_body": {"mm_processor_kwargs": {"instruction": "  "}},
            },
            "instruction",
        ),
        ("too many images", {"messages": message("what ?", *[whole] * 5), **told}, "3"),
        ("too long", {"messages": message("dog " * 2000, whole), **told}, "512"),
    ]
    name, asked, reason = kinds[seed % len(kinds)]
    return name, {**usual, **asked}, reason


@pytest.fixture(scope="module")
def server(checkpoints, tmp_path_factory):
    """The address of a server of EADP, and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.cli.main", "serve"),
        *(str(checkpoints("llava").folder), "--served-model-name", "small"),
        *("--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"),
        "--trust-request-mm-kwargs",
        *("--max-model-len", "512", "--limit-mm-per-prompt", '{"image": 3}'),
        *("--hf-overrides", json.dumps(overrides(sc.EADP(keep=KEEP)))),
    ]
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with log.open("w") as told:
        process = subprocess.Popen(
            command, stdout=told, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            if process.poll() is not None:
                break
            try:
                if httpx.get(f"{address}/health").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.5)
        else:
            process.kill()
        assert process.poll() is None, log.read_text()[-3000:]
        yield address, process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def test_two_hundred_requests_some_malformed(server):
    address, process = server
    wrong = range(0, REQUESTS, 7)
    lines = []

    async def everything():
        client = openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        turn = asyncio.Semaphore(AT_ONCE)

        async def one(number):
            name, asked, reason = (
                malformed(number // 7) if number in wrong else ("good", good(number), "")
            )
            async with turn:
                start = time.perf_counter()
                try:
                    answer = await client.chat.completions.create(model="small", seed=0, **asked)
                    told = answer.usage.prompt_tokens
                    result = "answered", answer.choices[0].message.content
                except openai.APIStatusError as error:
                    told = error.status_code
                    result = "refused", str(error)
                took = time.perf_counter() - start
            lines.append(f"{number:3d} {name:22s} {result[0]:9s} {told:4d} {1000 * took:6.0f} ms")
            return name, reason, result, told

        found = await asyncio.gather(*(one(number) for number in range(REQUESTS)))
        again = await one(1)
        await client.close()
        return found, again

    start = time.perf_counter()
    found, again = asyncio.run(everything())
    seconds = time.perf_counter() - start
    outcomes = Counter((name == "good", result[0]) for name, _, result, _ in found)
    assert outcomes == {
        (True, "answered"): REQUESTS - len(wrong),
        (False, "refused"): len(wrong),
    }
    for name, reason, result, status in found:
        if name != "good":
            assert 400 <= status < 500, (name, result)
            assert reason in result[1].lower(), (name, result)
    # The server is alive, and says what it said before.
    assert process.poll() is None
    assert httpx.get(f"{address}/health").status_code == 200
    assert again[2] == found[1][2]
    if path := os.environ.get("SECATEUR_SERVING_LOG"):
        head = f"{REQUESTS} requests, {AT_ONCE} at a time, in {seconds:.1f} s: "
        head += ", ".join(f"{count} {result}" for (_, result), count in outcomes.items())
        what = "number, kind, result, prompt tokens or status, time"
        Path(path).write_text("\n".join([head, what, *lines, ""]), encoding="utf-8")


def test_images_cost_keep_tokens(server):
    address, _ = server
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none")
    counts = []
    for images in range(4):
        urls = [encoded(picture(n, 30 + 40 * n, 90)) for n in range(images)]
        answer = client.chat.completions.create(
            model="small",
            messages=message("how many dog ?", *urls),
            max_tokens=1,
            extra_body={"mm_processor_kwargs": {"instruction": "how many dog ?"}},
        )
        counts.append(answer.usage.prompt_tokens)
    assert np.diff(counts).tolist() == [KEEP] * 3
