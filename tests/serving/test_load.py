"""Servers of two methods and one of vLLM alone over one store of images: two thousand requests.

Sixty-four at a time.

Slow readers, users who leave, malformed and huge pictures among them: whoever asked properly gets
what the model says to that request alone, and memory stays beside stock's.
"""

from __future__ import annotations

import asyncio
import base64
import io
import os
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import openai
import pytest
from PIL import Image
from test_equal import Request
from test_server import encoded, message, serving

import secateur as sc

REQUESTS, AT_ONCE = int(os.environ.get("SECATEUR_LOAD", "2000")), 64
KINDS = ("good", "slow", "leaves", "good", "half", "bomb", "good")
METHODS = (sc.DivPrune(keep=8), sc.TopK(keep=12), None)
SIZES = [(48, 48), (96, 48), (200, 120)]
WORDS = "how many dog ?"
PICTURES, LENGTH = 12, 8


def bomb() -> str:
    """A picture of 40,000 x 40,000 pixels in a few kilobytes."""
    out = io.BytesIO()
    Image.new("1", (40_000, 40_000)).save(out, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def resident(root: int) -> int:
    """Bytes in memory of a process and its children."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(entry.parent.name)] = int(entry.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
    total = 0
    for pid in [*parents, root]:
        above = pid
        while above in parents and above != root:
            above = parents[above]
        if above == root:
            try:
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            except OSError:
                continue
            total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


@pytest.mark.slow
def test_two_thousand_requests_to_servers_over_one_store(checkpoints, tmp_path):
    checkpoint = checkpoints("llava")
    asked = [Request(checkpoint, [SIZES[n % 3]], seed=n) for n in range(PICTURES)]
    for each in asked:
        each.text = checkpoint.processor.apply_chat_template(
            message(WORDS, ""), add_generation_prompt=True
        )
    everything = sc.TopK(keep=1.0)
    expected = [
        [each.expected(method or everything)[:LENGTH] for each in asked] for method in METHODS
    ]
    urls = [encoded(each.images[0]) for each in asked]
    huge = bomb()
    store = (
        '{"ec_connector": "ECExampleConnector", "ec_role": "ec_both", "ec_connector_extra_config":'
        f' {{"shared_storage_path": "{tmp_path / "store"}"}}}}'
    )
    (tmp_path / "store").mkdir()

    async def sent(clients):
        turn = asyncio.Semaphore(AT_ONCE)

        async def one(number):
            client, kind = clients[number % 3], KINDS[number // 3 % len(KINDS)]
            which = int(np.random.default_rng(number).integers(PICTURES))
            url = {"half": urls[which][: len(urls[which]) // 8 * 4], "bomb": huge}.get(kind)
            async with turn:
                try:
                    stream = await client.chat.completions.create(
                        model="small",
                        messages=message(WORDS, url or urls[which]),
                        max_tokens=LENGTH,
                        temperature=0,
                        stream=True,
                        extra_body={"ignore_eos": True, "skip_special_tokens": False},
                    )
                    told = ""
                    async for part in stream:
                        told += part.choices[0].delta.content or "" if part.choices else ""
                        if kind == "slow":
                            await asyncio.sleep(0.3)
                        if kind == "leaves" and told:
                            await stream.close()
                            return kind, number % 3, which, None
                    return kind, number % 3, which, told
                except openai.APIError as error:
                    return kind, number % 3, which, error

        return await asyncio.gather(*(one(number) for number in range(REQUESTS)))

    async def run(addresses):
        # As users' clients do: a connection that was closed meanwhile is opened again.
        clients = [
            openai.AsyncOpenAI(base_url=f"{each}/v1", api_key="none", max_retries=3, timeout=3600)
            for each in addresses
        ]
        try:
            return await sent(clients)
        finally:
            for client in clients:
                await client.close()

    with ExitStack() as up:
        made = [
            up.enter_context(
                serving(
                    checkpoint.folder,
                    tmp_path / f"log{number}",
                    method,
                    "llava",
                    *("--ec-transfer-config", store),
                )
            )
            for number, method in enumerate(METHODS)
        ]
        before = [resident(process.pid) for _, process, _ in made]
        found = asyncio.run(run([address for address, *_ in made]))
        after = [resident(process.pid) for _, process, _ in made]
        assert all(process.poll() is None for _, process, _ in made)

    decode = checkpoint.processor.tokenizer.decode
    for kind, server, which, told in found:
        if kind in ("half", "bomb"):
            assert isinstance(told, openai.APIError), (kind, told)
        elif kind != "leaves":
            want = decode(expected[server][which], skip_special_tokens=False)
            assert not isinstance(told, Exception), told
            assert told.split() == want.split(), (kind, server, which)
    told = zip(METHODS, before, after, strict=True)
    print([f"{method}: {a / 1e6:.0f}, then {b / 1e6:.0f} MB" for method, a, b in told])
    *pruned, stock = after
    assert max(pruned) <= 1.05 * stock
