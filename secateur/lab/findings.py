"""What a run of the bench says: tables, pictures, claims."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from secateur.lab.bench import ALL
from secateur.lab.claims import SCORED, Cells, Finding, counts, interval, invented
from secateur.lab.objects import KINDS

Row = dict[str, Any]


def relative(cell: Mapping[str, Any], whole: Mapping[str, Any]) -> tuple[float, float, float]:
    """Right answers as a share of those with all tokens, and the interval of 95 in 100 samples."""
    mine, full = counts(cell), counts(whole)
    return interval(lambda w: (w @ mine[:, 0]) / np.maximum(w @ full[:, 0], 1.0), len(mine))


def rows(cells: Cells) -> list[Row]:
    """A row for every cell: what tables, CSV and JSON hold."""
    whole = cells[ALL, None]
    found = []
    for (label, keep), cell in cells.items():
        share, low, high = relative(cell, whole)
        row: Row = {
            "method": label,
            "keep": keep,
            "relative": share,
            "low": low,
            "high": high,
        }
        for kind in KINDS:
            right, asked = counts(cell, (kind,)).sum(axis=0)
            row[kind] = right / asked if asked else None
        chairs = [scene["chair"] for scene in cell["scenes"]]
        named = sum(each["named"] for each in chairs)
        row["chair_i"] = float(invented(cell)[:, 0].sum() / named) if named else None
        row["chair_s"] = float(np.mean([each["invented"] > 0 for each in chairs]))
        row["recall"] = sum(c["found"] for c in chairs) / sum(c["there"] for c in chairs)
        for name in ("erank", "erank_kept", "entropy", "stable"):
            values = [scene[name] for scene in cell["scenes"] if name in scene]
            row[name] = float(np.mean(values)) if values else None
        row["prompt"] = cell["prompt"]
        row["spent"] = spent = cell.get("spent")
        share = spent / keep if spent is not None and keep is not None else 1.0
        row["frugal"], row["lavish"] = share < 0.95, share > 1.0
        row["megaflops"] = cell["megaflops"]
        row["seconds"] = cell["seconds"]
        found.append(row)
    return found


def as_csv(table: Sequence[Row]) -> str:
    """The rows as CSV."""
    told = io.StringIO()
    writer = csv.DictWriter(told, list(table[0]), lineterminator="\n")
    writer.writeheader()
    for row in table:
        writer.writerow({k: f"{x:.6g}" if isinstance(x, float) else x for k, x in row.items()})
    return told.getvalue()


def _percent(x: float | None) -> str:
    return "-" if x is None else f"{100 * x:.0f}"


def _number(x: float | None, form: str = ".1f") -> str:
    return "-" if x is None else format(x, form)


def answers_table(table: Sequence[Row], keep: int, kinds: Sequence[str] = KINDS) -> list[str]:
    """How right each method is at one budget, the best first."""
    here = sorted((r for r in table if r["keep"] == keep), key=lambda r: -r["relative"])
    lines = [
        "| method | of all tokens' | 95 % | " + " | ".join(kinds) + " |",
        "| --- | ---: | --- |" + " ---: |" * len(kinds),
    ]
    for row in [r for r in table if r["keep"] is None] + here:
        told = " | ".join(_percent(row[kind]) for kind in kinds)
        spread = f"{_percent(row['low'])} to {_percent(row['high'])}"
        name = row["method"]
        if row.get("frugal") or row.get("lavish"):
            name += f" (spent {row['spent']:.0f})"
        lines.append(f"| {name} | {_percent(row['relative'])} | {spread} | {told} |")
    return lines


def other_table(table: Sequence[Row], keep: int) -> list[str]:
    """What a method's choice is like at one budget, and what its captions invent."""
    lines = [
        "| method | C_I | C_S | recall | erank kept | stays | prompt | MFLOP |",
        "| --- |" + " ---: |" * 7,
    ]
    here = sorted((r for r in table if r["keep"] == keep), key=lambda r: -r["relative"])
    for row in [r for r in table if r["keep"] is None] + here:
        lines.append(
            f"| {row['method']} | {_percent(row['chair_i'])} | {_percent(row['chair_s'])} "
            f"| {_percent(row['recall'])} | {_number(row['erank_kept'])} "
            f"| {_percent(row['stable'])} | {_number(row['prompt'], '.0f')} "
            f"| {_number(row['megaflops'], '.0f')} |"
        )
    return lines


def claims_table(findings: Sequence[Finding]) -> list[str]:
    """Claims, what was measured, and whether they stand."""
    lines = [
        "| claim | measured | difference | 95 % | verdict |",
        "| --- | --- | ---: | --- | --- |",
    ]
    lines += [
        f"| {each.claim} | {each.measured} | {100 * each.difference:+.1f} "
        f"| {100 * each.low:+.1f} to {100 * each.high:+.1f} | {each.verdict} |"
        for each in findings
    ]
    return lines


def markdown(
    table: Sequence[Row], findings: Sequence[Finding], made: str, command: str, scenes: int
) -> str:
    """The report as a page."""
    budgets = sorted({row["keep"] for row in table if row["keep"] is not None}, reverse=True)
    whole = next((row["erank"] for row in table if row["erank"] is not None), None)
    asked = ", ".join(SCORED[:-1]) + " and " + SCORED[-1]
    parts = [
        "# What pruning costs the lab's model",
        "",
        f"Made by `{command}`: {made}",
        "",
        f"Every method answers the questions of {scenes} held-out scenes with 16 to 64 of 144",
        f"tokens. *Of all tokens'* is the share of right answers on {asked},",
        "in percent of those with all tokens; its interval holds 95 of 100 bootstrap samples of",
        "scenes. The other columns are percent of exact answers. Captions and lists of places name",
        "every object, so one mistake makes them wrong. The instruction looks at what it asks for",
        "after three of this model's six layers: SparseVLM and ERASE's second stage begin there,",
        "and *SparseVLM, from layer 1* where they would begin by their depth in 32 layers.",
        "",
        "![Right answers against budget](bench-accuracy.png)",
        "",
        "Points stand at what was spent; who spent less than three quarters of the smallest budget",
        "there is in the tables alone.",
        "",
    ]
    for keep in budgets:
        parts += [f"## {keep} of 144 tokens", "", *answers_table(table, keep), ""]
    parts += [
        "## What is kept, and what is invented",
        "",
        "Of captions: C_I is the share of named objects that are not there, C_S that of captions",
        "with such an object, recall that of objects that are named, all in percent. *erank kept*",
        "is the effective rank of the kept features (before the language model), which of all",
        f"tokens is {_number(whole)} on average; *stays* is the percentage of kept tokens that are",
        "kept again when what the method is given is rounded to bfloat16. FLOPs are those of one",
        "prefill, tower included.",
        "",
        "![Invented objects against diversity](bench-invented.png)",
        "",
    ]
    for keep in budgets:
        parts += [f"### {keep} tokens", "", *other_table(table, keep), ""]
    parts += [
        "## Claims of the papers",
        "",
        "Differences in percentage points on the same scenes. A claim stands where the whole",
        "interval is above zero. One small model on drawn scenes decides nothing about photos;",
        "it shows what can be shown where everything is known.",
        "",
        *claims_table(findings),
        "",
        "![Gain of diversity over attention against complexity](bench-complexity.png)",
        "",
    ]
    return "\n".join(parts)


def plots(folder: Path, table: Sequence[Row], cells: Cells) -> None:
    """Three pictures: answers by budget, invention by diversity, diversity's gain by complexity."""
    import matplotlib as mpl

    mpl.use("agg")
    names = list(dict.fromkeys(r["method"] for r in table if r["method"].islower()))
    names = [name for name in names if name != ALL]
    ticks = sorted({r["keep"] for r in table if r["keep"]})
    _accuracy(folder, table, names, ticks)
    _invented(folder, table, names, ticks)
    if ("divprune", ticks[0]) in cells and ("topk", ticks[0]) in cells:
        _complexity(folder, cells, ticks)


SHOWN = {"eadp": "#d84315", "agilepruner": "#1565c0", "erase": "#2e7d32"}
"""Methods drawn in colour; the others are grey."""


LEAST_DRAWN = 0.75
"""Who spends less than this share of the smallest budget is in the tables alone."""


def _drawn_at(row: Row) -> float:
    """The tokens that a row was spent with."""
    return float(row["spent"] if row["frugal"] or row["lavish"] else row["keep"])


def _accuracy(
    folder: Path, table: Sequence[Row], names: Sequence[str], ticks: Sequence[int]
) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, max(4.6, 0.2 * len(names))), layout="constrained")
    ends = []
    for name in names:
        mine = sorted((r for r in table if r["method"] == name), key=lambda r: r["keep"])
        keep = [_drawn_at(r) for r in mine]
        if min(keep) < LEAST_DRAWN * ticks[0]:
            continue
        share = [100 * r["relative"] for r in mine]
        colour = SHOWN.get(name, "#b0b0b0")
        axes.plot(keep, share, "o-", color=colour, lw=2 if name in SHOWN else 1, ms=4)
        if name in SHOWN:
            spread = [[100 * r[end] for r in mine] for end in ("low", "high")]
            axes.fill_between(keep, *spread, color=colour, alpha=0.12, lw=0)
        ends.append((share[-1], keep[-1], name, colour))
    gap = 2.9 if len(names) < 24 else 1.7
    for (share_, x, name, colour), height in zip(
        sorted(ends), apart([end[0] for end in sorted(ends)], gap, 101.0), strict=True
    ):
        axes.annotate(
            name,
            (x, share_),
            (ticks[-1] * 1.08, height),
            fontsize=7,
            color=colour if name in SHOWN else "#555",
            va="center",
            arrowprops={"arrowstyle": "-", "lw": 0.4, "color": "#999", "relpos": (0, 0.5)},
        )
    axes.set_xscale("log")
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.minorticks_off()
    axes.set_xlim(ticks[0] * 0.93, ticks[-1] * 1.5)
    axes.set_xlabel("tokens kept of 144")
    axes.set_ylabel("right answers, % of those with all tokens")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(folder / "bench-accuracy.png", dpi=130)
    plt.close(figure)


def _invented(
    folder: Path, table: Sequence[Row], names: Sequence[str], ticks: Sequence[int]
) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for row in table:
        if row["keep"] != ticks[0] or row["erank_kept"] is None or row["chair_i"] is None:
            continue
        if row["method"] not in names:
            continue
        axes.plot(
            row["erank_kept"], 100 * row["chair_i"], "o", color=SHOWN.get(row["method"], "#777")
        )
        axes.annotate(
            row["method"],
            (row["erank_kept"], 100 * row["chair_i"]),
            (4, 3),
            textcoords="offset points",
            fontsize=7,
        )
    axes.set_xlabel(f"effective rank of the {ticks[0]} tokens kept")
    axes.set_ylabel("invented, % of the objects named (C_I)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(folder / "bench-invented.png", dpi=130)
    plt.close(figure)


def _complexity(folder: Path, cells: Cells, ticks: Sequence[int]) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for keep, colour in zip(ticks, ("#d84315", "#607d8b", "#1565c0", "#2e7d32"), strict=False):
        one, other = cells["divprune", keep], cells["topk", keep]
        erank = np.array([scene["erank"] for scene in one["scenes"]])
        a, b = counts(one), counts(other)
        edges = np.quantile(erank, np.linspace(0, 1, 6))
        for n in range(5):
            inside = (erank >= edges[n]) & (erank <= edges[n + 1])
            if not inside.any():
                continue
            gain, low, high = interval(
                lambda w, inside=inside, a=a, b=b: (  # type: ignore[misc]
                    (w @ (a[inside, 0] - b[inside, 0])) / np.maximum(w @ a[inside, 1], 1.0)
                ),
                int(inside.sum()),
            )
            x = float(erank[inside].mean()) + 0.06 * (ticks.index(keep) - 1)
            axes.plot([x, x], [100 * low, 100 * high], color=colour, lw=1)
            axes.plot(x, 100 * gain, "o", color=colour, label=f"{keep} tokens" if n == 0 else None)
    axes.axhline(0, color="#999", lw=0.8)
    axes.set_xlabel("effective rank of the image, fifths of the scenes")
    axes.set_ylabel("DivPrune less TopK, points")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(folder / "bench-complexity.png", dpi=130)
    plt.close(figure)


def apart(heights: Sequence[float], gap: float, top: float) -> list[float]:
    """Ascending heights moved as little as keeps neighbours a gap apart and below `top`."""
    moved = list(heights)
    for n in range(1, len(moved)):
        moved[n] = max(moved[n], moved[n - 1] + gap)
    ceiling = top
    for n in reversed(range(len(moved))):
        moved[n] = min(moved[n], ceiling)
        ceiling = moved[n] - gap
    return moved


def write(
    folder: Path, cells: Cells, findings: Sequence[Finding], made: str, command: str
) -> list[Row]:
    """Write ``bench.md``, ``.csv``, ``.json`` and the pictures; return the rows."""
    table = rows(cells)
    count = len(cells[ALL, None]["scenes"])
    page = markdown(table, findings, made, command, count)
    store(folder, "bench", page, table, findings, {"made": made, "scenes": count})
    plots(folder, table, cells)
    return table


def store(
    folder: Path,
    name: str,
    page: str,
    table: Sequence[Row],
    findings: Sequence[Finding],
    about: Mapping[str, Any],
) -> None:
    """A report's page, and its rows as CSV and, with the claims, as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(page, "utf-8")
    (folder / f"{name}.csv").write_text(as_csv(table), "utf-8")
    claims = [{**vars(each), "verdict": each.verdict} for each in findings]
    told = {**about, "rows": table, "claims": claims}
    (folder / f"{name}.json").write_text(json.dumps(told, indent=1) + "\n", "utf-8")
