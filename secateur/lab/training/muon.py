"""Muon with the matrices of one shape orthogonalised together, in single precision."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch

_POLYNOMIAL = (3.4445, -4.7750, 2.0315)


def orthogonal(matrices: Any, steps: int = 5) -> Any:
    """Return the nearest orthogonal matrices, about, by a Newton-Schulz iteration.

    Parameters
    ----------
    matrices
        Shape ``(K, m, n)``.
    steps
        Of the iteration.
    """
    a, b, c = _POLYNOMIAL
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.flatten(1).norm(dim=1).clamp_min(1e-7)[:, None, None]
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class BatchedMuon(torch.optim.Muon):  # type: ignore[misc]
    """`torch.optim.Muon` for CPUs, on which its bfloat16 products one by one are slow.

    Takes its steps with ``adjust_lr_fn="match_rms_adamw"`` and Nesterov's momentum.
    """

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self, closure: Any = None) -> None:
        """Take a step with the gradients at hand; those that are None are left out."""
        for group in self.param_groups:
            alike = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    alike[weight.shape].append(weight)
            for shape, weights in alike.items():
                moved = []
                for weight in weights:
                    state = self.state[weight]
                    mean = state.setdefault("momentum_buffer", torch.zeros_like(weight))
                    mean.lerp_(weight.grad, 1 - group["momentum"])
                    moved.append(weight.grad.lerp(mean, group["momentum"]))
                rate = group["lr"] * 0.2 * math.sqrt(max(shape))
                for weight, way in zip(weights, orthogonal(torch.stack(moved)), strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(rate * way)
