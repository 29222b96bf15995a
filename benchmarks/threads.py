"""Tensors on the CPU beside arrays, alone and beside a busy process: medians, p95, ratios.

python benchmarks/threads.py --rounds 40
"""

from __future__ import annotations

import argparse
import subprocess
import sys

import numpy as np
import torch
from machine import described, interleaved

import secateur as sc

N, D, K = 576, 384, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    dice = np.random.default_rng(0)
    x = (dice.standard_normal((N, D)) + dice.standard_normal(D)).astype(np.float32)
    attention, text = dice.random(N).astype(np.float32), x[:32] + 1
    methods = [sc.DivPrune(K), sc.FPS(K), sc.AgilePruner(K, mean_erank=100.0), sc.EADP(K)]
    print(described("numpy", "torch"))
    sc.warm_up(shapes=[(64, 32)])
    for beside in (0, 1):
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(beside)]
        runs = {}
        for lift, library in ((np.asarray, "arrays"), (torch.from_numpy, "tensors")):
            tokens = sc.Tokens(
                features=lift(x), attention=lift(attention), embeds=lift(x), text=lift(text)
            )
            for method in methods:
                runs[f"{method.name} {library}"] = lambda m=method, t=tokens: m.select(t)
        seconds = interleaved(runs, rounds)
        for process in busy:
            process.kill()
        for method in methods:
            one, other = (seconds[f"{method.name} {each}"] for each in ("arrays", "tensors"))
            middle, tail = (np.percentile([one, other], each, axis=1) * 1e3 for each in (50, 95))
            print(
                f"{beside} busy  {method.name:12} arrays {middle[0]:.1f} / {tail[0]:.1f} ms  "
                f"tensors {middle[1]:.1f} / {tail[1]:.1f} ms  ratio {middle[1] / middle[0]:.2f}"
            )


if __name__ == "__main__":
    main()
