"""A host of a hundred lines that nobody in the package knows of."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

import secateur as sc

torch = pytest.importorskip("torch", reason="hosts need PyTorch")

ENGINE = Path(__file__).parent / "engine.py"
spec = importlib.util.spec_from_file_location("engine_of_a_hundred_lines", ENGINE)
engine = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = engine
spec.loader.exec_module(engine)

# An overview and two crops of four by four tokens; two rows of padding are cut off them.
SIZE, TOKENS, NEWLINES = (16, 64), 16 + 16, 2


def prompt(seed):
    pictures = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return [1, 2, engine.IMAGE, 3, 4, 5], pictures, SIZE


def served(method, seeds=(0, 1)):
    return engine.Engine(engine.Model(), method).serve([prompt(seed) for seed in seeds])


def test_it_is_a_hundred_lines_and_takes_the_rest():
    lines = ENGINE.read_text("utf-8").splitlines()
    assert sum(bool(line.strip()) for line in lines) <= 110
    taken = {
        node.module.removeprefix("secateur.").split(".")[0:2][-1]
        for node in ast.walk(ast.parse("\n".join(lines)))
        if isinstance(node, ast.ImportFrom) and node.module.startswith("secateur")
    }
    assert taken == {"inputs", "methods", "choosing", "encoded", "families", "observing", "text"}


@pytest.mark.parametrize("method", [None, sc.DivPrune(keep=1.0), sc.EADP(keep=10_000)])
def test_it_keeps_everything_when_asked_to(method):
    for one, stock in zip(served(method), served(None), strict=True):
        assert one.token == stock.token
        assert one.length == 5 + TOKENS + NEWLINES


@pytest.mark.parametrize(
    "method",
    [
        sc.TopK(keep=4),
        sc.DivPrune(keep=4),
        sc.EADP(keep=4),
        sc.VisPruner(keep=4),
        sc.HiPrune(keep=4),
    ],
    ids=lambda method: method.name,
)
def test_crops_share_a_budget_and_rows_keep_their_newline(method):
    for one in served(method):
        parts = one.chosen.pictures
        assert sum(part.budget for part in parts) == 3 * 4
        left = parts[0].grid[0] * parts[0].grid[1]
        rows = {int(at - left) // 9 for part in parts[1:] for at in part.index[part.kept]}
        newlines = len(one.chosen.places) - 12
        assert newlines == len(rows)
        assert one.length == 5 + 12 + newlines < 5 + TOKENS


def test_it_chooses_what_the_method_chooses_on_arrays():
    model = engine.Model()
    ids, pictures, size = prompt(3)
    with torch.no_grad():
        states, projected = model.tower(pictures)
    q, k = projected[-1]
    paid = torch.softmax(q @ k.transpose(-1, -2) / 8**0.5, dim=-1).mean(dim=(1, 2))
    (one,) = engine.Engine(model, sc.TopK(keep=4)).serve([(ids, pictures, size)])
    overview = one.chosen.pictures[0]
    np.testing.assert_allclose(overview.scores, paid[0].numpy(), rtol=1e-5)
    tokens = sc.Tokens(features=states[0], attention=paid[0])
    alone = sc.TopK(keep=overview.budget).select(tokens).sorted()
    assert np.flatnonzero(overview.kept).tolist() == alone.tolist()


def test_what_the_family_does_not_offer_is_refused_before_the_first_prompt():
    with pytest.raises(ValueError, match="ERASE needs pixels, which LLaVA-NeXT"):
        engine.Engine(engine.Model(), sc.ERASE(keep=4))
