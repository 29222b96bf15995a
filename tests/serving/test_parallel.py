"""A tensor-parallel engine of two processes chooses what one process does."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from test_equal import LENGTH, SIZES, Request

import secateur as sc

SCRIPT = """
import json, sys
import conftest, small, test_equal
from secateur.core.methods import Method

if __name__ == "__main__":
    folder, kind, text = sys.argv[1:4]
    stored = [json.loads(each) for each in sys.argv[4:]]
    for each in stored:
        method = Method.from_dict(each)
        with small.engine(folder, method, kind, tensor_parallel_size=2) as llm:
            prompts = [
                {"prompt": text, "multi_modal_data": {"image": small.picture(seed, *size)}}
                for seed, size in enumerate(test_equal.SIZES)
            ]
            out = llm.generate(prompts, test_equal.GREEDY, use_tqdm=False)
            print("TOKENS", json.dumps([list(one.outputs[0].token_ids) for one in out]), flush=True)
            del llm
"""


NAMES = ["llava", "internvl", "smolvlm", "gemma3", "mistral3", "qwen2_vl", "qwen2_5_vl", "glm4v"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_heads_on_two_ranks(checkpoints, tmp_path, name):
    checkpoint = checkpoints(name)
    script = tmp_path / "two_ranks.py"
    script.write_text(SCRIPT)
    # Reads attention, which is a mean over heads, and keys, which stand side by side.
    methods = [sc.VisionZip(keep=12)]
    here = os.path.dirname(__file__)
    told = subprocess.run(
        [sys.executable, str(script), str(checkpoint.folder), name, checkpoint.prompt()]
        + [json.dumps(each.to_dict()) for each in methods],
        capture_output=True,
        text=True,
        timeout=240,
        env={
            **os.environ,
            "PYTHONPATH": f"{here}:{os.environ['PYTHONPATH']}",
            "VLLM_CPU_OMP_THREADS_BIND": "0|1",
            "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
            "SECATEUR_CPU_ASKS": "1",
        },
    )
    lines = [line for line in told.stdout.splitlines() if line.startswith("TOKENS")]
    assert len(lines) == len(methods), told.stderr[-3000:]
    requests = [Request(checkpoint, [size], seed=n) for n, size in enumerate(SIZES)]
    for method, line in zip(methods, lines, strict=True):
        want = [each.expected(method) for each in requests]
        assert json.loads(line.removeprefix("TOKENS")) == want
        assert len(want[0]) == LENGTH
