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
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
import torch
from small import TOKENS, picture

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
    sized, cropped, long, book = (
        {"extra_body": {"mm_processor_kwargs": {"instruction": "red dog", **more}}}
        for more in (
            {"size": {"shortest_edge": 4096}},
            {"crop_size": {"height": 4096, "width": 4096}, "size": {"shortest_edge": 4096}},
            {"instruction": "dog " * 600},
            {"instruction": "dog " * 2_000_000},
        )
    )
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
        ("a size of its own", {"messages": message("what ?", whole), **sized}, "size not taken"),
        ("a crop of its own", {"messages": message("what ?", whole), **cropped}, "crop_size"),
        ("a long instruction", {"messages": message("what ?", whole), **long}, "at most 512"),
        ("a book", {"messages": message("what ?", whole), **book}, "letters"),
    ]
    name, asked, reason = kinds[seed % len(kinds)]
    return name, {**usual, **asked}, reason


@contextmanager
def serving(folder, log, method, kind="llava", *more):
    """The address of a server, its process and its log; without a method, of vLLM's own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.cli.main", "serve"),
        *(str(folder), "--served-model-name", "small"),
        *("--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"),
        *("--max-model-len", "512", "--limit-mm-per-prompt", '{"image": 3}'),
        *more,
    ]
    if method is not None:
        command += ["--hf-overrides", json.dumps(overrides(method, kind))]
    environment = {
        **os.environ,
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
        "VLLM_LOGGING_LEVEL": "INFO",
        "SECATEUR_CPU_ASKS": "1",
    }
    with log.open("w") as told:
        process = subprocess.Popen(
            command, stdout=told, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
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
        yield address, process, log
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


@pytest.fixture(scope="module")
def server(checkpoints, tmp_path_factory):
    """A server of EADP."""
    log = tmp_path_factory.mktemp("server") / "log"
    folder = checkpoints("llava").folder
    trusting = "--trust-request-mm-kwargs"
    with serving(folder, log, sc.EADP(keep=KEEP), "llava", trusting) as made:
        yield made


def test_two_hundred_requests_some_malformed(server):
    address, process, _ = server
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
    address, *_ = server
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


def read(address: str) -> dict[str, float]:
    """Our numbers in /metrics, by name and method."""
    lines = httpx.get(f"{address}/metrics").text.splitlines()
    return {
        name: float(number)
        for name, number in (line.rsplit(" ", 1) for line in lines if line.startswith("secateur"))
    }


def test_an_operator_sees_what_is_pruned(server):
    address, _, log = server
    before = read(address)
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none")
    words = "is the tree red ?"
    urls = [encoded(picture(900 + n)) for n in range(2)]
    client.chat.completions.create(
        model="small",
        messages=message(words, *urls),
        max_tokens=1,
        extra_body={"mm_processor_kwargs": {"instruction": words}},
    )
    after = read(address)
    grown = {name: after[name] - before[name] for name in after}
    assert grown['secateur_pictures_total{method="eadp"}'] == 2
    assert grown['secateur_tokens_before_total{method="eadp"}'] == 2 * TOKENS
    assert grown['secateur_tokens_after_total{method="eadp"}'] == 2 * KEEP
    assert 0 < grown['secateur_choosing_seconds_total{method="eadp"}'] < 60
    told = [line for line in log.read_text().splitlines() if "secateur 0" in line]
    assert len(told) == 1
    assert "EADP(keep=8" in told[0]
    assert "on LLaVA-1.5 (llava), vLLM 0.3" in told[0]


@pytest.mark.parametrize(
    "name", [pytest.param("qwen2_5_vl", marks=pytest.mark.families), "qwen3_vl"]
)
def test_qwen_in_a_conversation(checkpoints, tmp_path, name):
    checkpoint = checkpoints(name)
    method = sc.DivPrune(keep=KEEP)
    images = [picture(n, 60 + 20 * n, 90) for n in range(2)]
    words = "how many dog ?"
    with serving(checkpoint.folder, tmp_path / "log", method, name) as (address, *_):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none")
        answers = [
            client.chat.completions.create(
                model="small",
                messages=message(words, *(encoded(each) for each in images[:count])),
                max_tokens=8,
                temperature=0,
                extra_body={"ignore_eos": True, "skip_special_tokens": False},
            )
            for count in (0, 1, 2)
        ]
    counts = [each.usage.prompt_tokens for each in answers]
    # Where a picture begins and ends, and what is kept of it.
    assert np.diff(counts).tolist() == [2 + KEEP] * 2
    for count, answer in enumerate(answers):
        told = message(words, *("" for _ in range(count)))
        text = checkpoint.processor.apply_chat_template(told, add_generation_prompt=True)
        given = {"images": images[:count]} if count else {}
        inputs = checkpoint.processor(text=[text], return_tensors="pt", **given)
        with torch.no_grad(), sc.attach(checkpoint.model, method, checkpoint.processor):
            out = checkpoint.model.generate(**inputs, max_new_tokens=8, do_sample=False)
        want = out[0, inputs["input_ids"].shape[1] :]
        expected = checkpoint.processor.tokenizer.decode(want, skip_special_tokens=False)
        assert answer.choices[0].message.content.split() == expected.split(), count
