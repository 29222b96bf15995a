"""The environment of the tests of the vLLM plug-in: `make test-serving`.

The other tests neither see nor need vLLM.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

HERE = Path(__file__).parent
# Processes that vLLM starts need what `sitecustomize` does here as well.
os.environ["PYTHONPATH"] = f"{HERE / 'beside'}:{os.environ.get('PYTHONPATH', '')}"
sys.path[:0] = [str(HERE), str(HERE / "beside")]

from small import Checkpoint


@pytest.fixture(scope="session", autouse=True)
def awake():
    """Numba stays asleep here, unlike in the other tests.

    vLLM 0.32 for CPUs starts no first engine in a process that has imported it: looking through
    all modules for kernels, it takes llvmlite's library for something with a dictionary.
    """


@pytest.fixture(scope="session", autouse=True)
def inspected():
    """What vLLM asks about a class it asks in this process, which has imported all of it already.

    By itself it starts a process for each class it meets first, which takes ten seconds each to
    import vLLM; the servers that tests start do.
    """
    from vllm.model_executor.models import registry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_run_in_subprocess", lambda ask: ask())
        yield


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """Checkpoints by name, made when first asked for."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = Checkpoint(name, tmp_path_factory.mktemp(name))
        return made[name]

    return get


USUAL = ("llava", "qwen3_vl")
"""Families that `make test-serving` serves every method with, of the others one each;
`make test-serving-all` serves all with all."""
WHOLE = (
    "test_the_same_tokens",
    "test_nearly_the_same_in_half_precision",
    "test_keeping_all_is_stock_vllm",
)


def pytest_collection_modifyitems(items):
    for item in items:
        given = item.callspec.params if getattr(item, "originalname", "") in WHOLE else {}
        first = getattr(given.get("method"), "name", "") == "divprune"
        if given and given["name"] not in USUAL and not first:
            item.add_marker(pytest.mark.families)
