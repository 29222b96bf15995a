"""What a run of the bench on clips says: a table, a picture, the papers' claims."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from secateur.core.methods import methods
from secateur.core.methods.video import VideoMethod
from secateur.lab.answers import HELD_OUT
from secateur.lab.bench import ALL
from secateur.lab.bench_video import MERGING, SPREAD
from secateur.lab.claims import Cells, Finding, better, counts, interval
from secateur.lab.clip import FRAMES, clips, strip
from secateur.lab.findings import Row, answers_table, apart, claims_table, store
from secateur.lab.watched import WATCHED
from secateur.lab.watcher import POOLED


def answered(cell: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    """Right answers and questions of every clip, (S, 2)."""
    return counts(cell, WATCHED)


def brief(cell: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    """The same of questions about labels that are shown for an eighth or a quarter of a clip."""
    return np.array([scene["brief"] for scene in cell["scenes"]], dtype=np.float64)


def lasting(cell: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    """The same of the other questions that read or ask when."""
    return np.array([scene["lasting"] for scene in cell["scenes"]], dtype=np.float64)


def rows(cells: Cells) -> list[Row]:
    """A row for every cell: what table, CSV and JSON hold."""
    full = answered(cells[ALL, None])
    found = []
    for (label, keep), cell in cells.items():
        mine = answered(cell)
        share, low, high = interval(
            lambda w, mine=mine: (  # type: ignore[misc]
                (w @ mine[:, 0]) / np.maximum(w @ full[:, 0], 1.0)
            ),
            len(mine),
        )
        row: Row = {"method": label, "keep": keep, "relative": share, "low": low, "high": high}
        for kind in WATCHED:
            right, asked = counts(cell, (kind,)).sum(axis=0)
            row[kind] = right / asked if asked else None
        for name, part in (("brief", brief), ("lasting", lasting)):
            right, asked = part(cell).sum(axis=0)
            row[name] = right / asked if asked else None
        row["spent"] = spent = cell["spent"]
        used = 1.0 if spent is None or keep is None else spent / (FRAMES * keep)
        row["frugal"], row["lavish"] = used < 0.95, used > 1.05
        row["seconds"] = cell["seconds"]
        found.append(row)
    return found


def check(cells: Cells, budgets: Sequence[int]) -> list[Finding]:
    """Every claim that the cells of a run tell about."""
    found: list[Finding] = []

    def compared(claim: str, one: str, other: str, keep: int, **more: Any) -> None:
        if (one, keep) in cells and (other, keep) in cells:
            found.append(better(claim, cells, one, other, keep, **{"what": answered} | more))

    for keep in budgets:
        for name in MERGING:
            compared("Merging in time beats dropping", name, f"{name}, dropping", keep)
        compared("Adaptive budgets beat even ones", "vidcom2", "vidcom2, even", keep)
        for name in SPREAD:
            for way in ("by change", "one pool"):
                one = f"{name}, {way}"
                compared("Adaptive budgets beat even ones", one, name, keep)
                lost = "Short events are lost by even budgets"
                called = "answers about short events"
                compared(lost, one, name, keep, what=brief, called=called)
            found += _lost(cells, name, keep)
    return sorted(found, key=lambda each: each.claim)


def _lost(cells: Cells, name: str, keep: int) -> list[Finding]:
    """How much more of the answers about short events an even budget loses than of the others."""
    if (name, keep) not in cells:
        return []
    parts = [part(cells[key]) for part in (brief, lasting) for key in ((ALL, None), (name, keep))]

    def more(w: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        all_brief, brief_kept, all_lasting, lasting_kept = (
            (w @ x[:, 0]) / np.maximum(w @ x[:, 1], 1.0) for x in parts
        )
        lost: np.ndarray[Any, Any] = (all_brief - brief_kept) - (all_lasting - lasting_kept)
        return lost

    return [
        Finding(
            "Short events are lost by even budgets",
            f"answers lost, {keep} tokens: {name}, short events less lasting ones",
            *interval(more, len(parts[0])),
        )
    ]


def markdown(
    table: Sequence[Row], findings: Sequence[Finding], made: str, command: str, clip_count: int
) -> str:
    """The report as a page."""
    budgets = sorted({row["keep"] for row in table if row["keep"] is not None}, reverse=True)
    whole = FRAMES * POOLED
    parts = [
        "# What pruning costs the lab's model that watches",
        "",
        f"Made by `{command}`: {made}",
        "",
        *_filled(
            f"Every method answers the questions of {clip_count} held-out clips of {FRAMES} frames "
            f"with {FRAMES * budgets[-1]} to {FRAMES * budgets[0]} of {whole} tokens; the newline "
            "at the end of a video stays beside them. *Of all tokens'* is the share of right "
            "answers in percent of those with all tokens; its interval holds 95 of 100 bootstrap "
            "samples of clips. The other columns are percent of exact answers; *brief* are "
            "questions that read or date a label shown for one or two frames. Methods for images "
            "take every frame by itself, with the same budget; *by change* shares it out by how "
            "much frames differ from those before, *one pool* chooses from all frames at once. "
            "Who did not spend the budget, by a twentieth, is marked with what was spent, and "
            "compares with others there: EVS keeps the whole first frame and DyCoke every fourth, "
            "whatever the budget."
        ),
        *_filled(
            "The model was trained with all tokens and never with some missing. Its board has nine "
            "places of two by two tokens, so `uniform` and `pool` with nine tokens a frame have "
            "one of every place: their lead there is the lab's, not the methods'."
        ),
        "![The first clip that was asked about](video-clip.png)",
        "",
        *_filled(
            "Of this clip was asked: "
            + "; ".join(f"{q.text} {q.answer}" for q in next(clips(1, HELD_OUT)).questions)
            + "."
        ),
        "![Right answers against budget](video-accuracy.png)",
        "",
    ]
    for keep in budgets:
        parts += [
            f"## {FRAMES * keep} of {whole} tokens, {keep} a frame",
            "",
            *answers_table(table, keep, (*WATCHED, "brief")),
            "",
        ]
    parts += [
        "## Claims of the papers",
        "",
        *_filled(
            "Differences in percentage points on the same clips. A claim stands where the whole "
            "interval is above zero. One small model on drawn clips decides nothing about films. "
            "*Dropping* is the method with nothing folded into what it keeps; *even* is VidCom2 "
            "with the same budget for every frame. Where nothing differs, nothing was folded: of "
            "two tokens a frame FastVID and FlashVID leave none to merge into."
        ),
        *claims_table(findings),
        "",
    ]
    return "\n".join(parts)


def _filled(text: str) -> list[str]:
    """A paragraph in lines, and the empty one behind it."""
    return [*textwrap.wrap(text, 98), ""]


VIDEO_COLOURS = ("#d84315", "#1565c0", "#2e7d32", "#6a1b9a", "#00838f", "#9e9d24")


def plot(folder: Path, table: Sequence[Row]) -> None:
    """Answers by tokens spent: methods for videos in colour, those for images grey."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    known = methods()
    names = [n for n in dict.fromkeys(row["method"] for row in table) if n in known]
    video = [name for name in names if issubclass(known[name], VideoMethod)]
    colours = dict(zip(video, VIDEO_COLOURS, strict=False))
    figure, axes = plt.subplots(figsize=(7.5, 4.6), layout="constrained")
    ends = []
    for name in names:
        mine = sorted((row for row in table if row["method"] == name), key=lambda r: r["spent"])
        spent, share = [r["spent"] for r in mine], [100 * r["relative"] for r in mine]
        colour = colours.get(name, "#b0b0b0")
        axes.plot(spent, share, "o-", color=colour, lw=2 if name in video else 1, ms=4)
        if name in video:
            spread = [[100 * r[end] for r in mine] for end in ("low", "high")]
            axes.fill_between(spent, *spread, color=colour, alpha=0.1, lw=0)
        ends.append((share[-1], spent[-1], name, colour))
    ends.sort()
    edge = max(end[1] for end in ends)
    for (share_, x, name, colour), height in zip(
        ends, apart([end[0] for end in ends], 2.7, 100.0), strict=True
    ):
        axes.annotate(
            name,
            (x, share_),
            (edge * 1.1, height),
            fontsize=7,
            color=colour if name in video else "#555",
            va="center",
            arrowprops={"arrowstyle": "-", "lw": 0.4, "color": "#999"},
        )
    axes.set_xscale("log")
    ticks = sorted({FRAMES * row["keep"] for row in table if row["keep"]})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlim(ticks[0] * 0.93, edge * 1.5)
    axes.set_xlabel(f"tokens kept of {FRAMES * POOLED}")
    axes.set_ylabel("right answers, % of those with all tokens")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(folder / "video-accuracy.png", dpi=130)
    plt.close(figure)


def write(
    folder: Path, cells: Cells, findings: Sequence[Finding], made: str, command: str
) -> list[Row]:
    """Write ``video.md``, ``.csv``, ``.json`` and the pictures; return the rows."""
    from PIL import Image

    table = rows(cells)
    count = len(cells[ALL, None]["scenes"])
    page = markdown(table, findings, made, command, count)
    store(folder, "video", page, table, findings, {"made": made, "clips": count})
    plot(folder, table)
    Image.fromarray(strip(next(clips(1, HELD_OUT)).images)).save(folder / "video-clip.png")
    return table
