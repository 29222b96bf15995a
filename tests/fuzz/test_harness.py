"""The harness finds what is planted, says where, and calls all there is to call."""

from __future__ import annotations

import importlib
import sys
import textwrap
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import secateur as sc

HERE = Path(__file__).parent
CHILD = """
    import json, os, struct, sys, time
    board, start, stop = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    for seed in range(start, stop):
        with open(board, "r+b") as file:
            file.write(struct.pack("qd", seed, time.monotonic()))
        if seed == 3:
            os.kill(os.getpid(), 11)
        if seed == 5:
            time.sleep(60)
        print(json.dumps({"tally": {"f answered": 1}}), flush=True)
"""

STUBBORN = """
    import subprocess, time
    subprocess.Popen(["sleep", "60"])
    time.sleep(60)
"""


def loaded(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(HERE))
    return importlib.import_module(name)


@pytest.fixture
def verdict(monkeypatch):
    return loaded("verdict", monkeypatch)


def watched(folder, child, patience):
    """What looks after children that run `child`."""
    spec = importlib.util.spec_from_file_location("fuzz_main", HERE / "__main__.py")
    harness = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(harness)
    script = folder / "child.py"
    script.write_text(textwrap.dedent(child))
    return harness.Watch(0, [sys.executable, str(script)], patience=patience)


def test_a_run_ends_in_time_whatever_a_case_does_or_started(tmp_path):
    watch, begin = watched(tmp_path, STUBBORN, patience=60.0), time.monotonic()
    watch.until(begin + 2.0, 8)
    assert time.monotonic() - begin < 20.0
    assert watch.findings == []


def test_a_crash_and_a_case_without_end_are_findings_and_the_next_seed_goes_on(tmp_path):
    watch = watched(tmp_path, CHILD, patience=2.0)
    watch.until(time.monotonic() + 60, 8)
    assert [each["seed"] for each in watch.findings] == [3, 5]
    assert watch.findings[0]["kind"] == "crash: exit status -11"
    assert watch.findings[1]["kind"] == "no end within 2 s"
    assert watch.tally == {"f answered": 6}
    assert "6 cases" in watch.summary(0, 1.0)
    assert "seeds 3" in watch.summary(0, 1.0)


def refused(call) -> Exception:
    with pytest.raises(Exception) as told:  # noqa: PT011
        call()
    return told.value


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (lambda: np.zeros(3) @ np.zeros(4), "ValueError that is not ours"),
        (lambda: sc.Selection.of(np.arange(2), 4).gather(object()), None),
        (lambda: [].append(), "TypeError at"),
        (lambda: sc.smooth(np.ones(4), (2, 2), size=2), None),
    ],
)
def test_what_is_a_refusal(verdict, call, kind):
    names = ["size", "x"]
    if kind is None:
        verdict.check_refusal(refused(call), names)
        return
    with pytest.raises(verdict.FaultError) as fault:
        verdict.check_refusal(refused(call), names)
    assert fault.value.kind.startswith(kind)


def test_a_refusal_names_an_argument(verdict):
    error = refused(lambda: sc.smooth(np.ones(4), (2, 2), size=2))
    with pytest.raises(verdict.FaultError, match="odd window"):
        verdict.check_refusal(error, ["sigma"])


@pytest.mark.parametrize(
    "answer",
    [
        sc.Selection.of(np.array([1, 1]), 4),
        sc.Selection.of(np.array([1, 4]), 4),
        sc.Selection.of(np.array([1, 2]), 4, scores=np.array([1.0, np.nan, 1.0, 1.0])),
        np.array([np.inf]),
        [1.0, float("nan")],
    ],
)
def test_what_is_no_result(verdict, answer):
    with pytest.raises(verdict.FaultError):
        verdict.check_result(answer, True)


def test_another_pick_is_a_disagreement(verdict):
    one, two = (sc.Selection.of(np.array(picks), 4) for picks in ([0, 1], [1, 0]))
    verdict.check_agreement(one, one)
    with pytest.raises(verdict.FaultError, match="the reference says"):
        verdict.check_agreement(one, two)
    verdict.check_agreement(np.array([1.0]), np.array([1.0 + 1e-9]))
    with pytest.raises(verdict.FaultError):
        verdict.check_agreement(np.array([1.0]), np.array([1.01]))


def test_what_rounding_leaves_of_a_spent_kernel_is_no_disagreement(verdict):
    def picked(second, gain):
        return sc.Selection.of(np.array([0, second]), 4, gains=np.array([-1.0, gain]))

    verdict.check_agreement(picked(1, -np.inf), picked(2, -39.0))
    ours, theirs = (
        sc.Selection.of(np.array([0, pick]), 4, gains=np.array([5.0, gain]))
        for pick, gain in ((2, 2e-16), (1, 0.0))
    )
    verdict.check_agreement(ours, theirs)
    with pytest.raises(verdict.FaultError, match="the reference says"):
        verdict.check_agreement(ours, sc.Selection.of(np.array([0, 1]), 4, gains=ours.gains))
    for gain in (-np.inf, -3.0):
        with pytest.raises(verdict.FaultError, match="the reference says"):
            verdict.check_agreement(picked(1, -np.inf), picked(2, gain))


def test_a_seed_is_one_case_whatever_computes_it(monkeypatch):
    cases = loaded("cases", monkeypatch)
    for seed in range(40):
        one, two = cases.Case(seed, "numpy", "auto"), cases.Case(seed, "numpy", "reference")
        assert one.target.name == two.target.name
        if one.scene.clean:
            assert (
                repr(one.arguments()).split(" at 0x")[0]
                == (repr(two.arguments()).split(" at 0x")[0])
            )


def test_everything_public_is_called(monkeypatch):
    targets = loaded("targets", monkeypatch)
    called = {each.name for each in targets.targets()}
    methods = {f"{name}.select" for name in sc.methods()}
    assert methods <= called
    kinds = {name for name in sc.__all__ if isinstance(getattr(sc, name), type)}
    assert set(sc.__all__) - kinds <= called
    constructed = {
        name
        for name in kinds
        if not issubclass(getattr(sc, name), (sc.Method, sc.Objective)) or name in called
    }
    assert constructed - called == {*targets.RECORDS}
    assert {"Selection.gather", "Tokens.rows", "FacilityLocation.of_blocks"} <= called
