"""Which operation solves what, and which driver may offer it."""

import sys
from inspect import isfunction
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import secateur as sc
from secateur.core import dispatch, maximize
from secateur.core.dispatch import operation, register_driver
from secateur.testing import assert_objective

ALGORITHMS = ("auto", "incremental", "naive", "lazy")


class Dear(sc.FacilityLocation):
    """Tokens cost something: a gain of its own, and state that no constructor knows."""

    arrays = (*sc.FacilityLocation.arrays, "price")

    @classmethod
    def priced(cls, similarity, price):
        f = cls(similarity)
        f.price = price
        f.currency = "coins"
        return f

    def _value(self, picks):
        assert self.currency == "coins"
        return super()._value(picks) + self.price[picks].sum()

    def _gain(self, picks, candidates):
        taken = np.isin(candidates, picks)
        return super()._gain(picks, candidates) + np.where(taken, 0.0, self.price[candidates])


def dear(seed=0, batch=()):
    dice = np.random.default_rng(seed)
    return Dear.priced(dice.random((*batch, 10, 10)), 5 * dice.random((*batch, 10)))


def test_a_subclass_is_solved_by_its_own_gain():
    f = dear()
    picks = [sc.maximize(f, 4, algorithm).indices.tolist() for algorithm in ALGORITHMS]
    picks += [sc.maximize(f, 4, each, backend="reference").indices.tolist() for each in ALGORITHMS]
    assert picks == [picks[0]] * 8
    plain = sc.maximize(sc.FacilityLocation(f.matrix), 4).indices.tolist()
    assert picks[0] != plain
    assert picks[0][0] == int(np.argmax(f.matrix.sum(0) + f.price))
    assert_objective(f)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_batch_of_a_subclass_keeps_its_state(algorithm):
    f = dear(batch=(2, 3))
    together = sc.maximize(f, 4, algorithm)
    for at in np.ndindex(2, 3):
        one = Dear.priced(f.matrix[at], f.price[at])
        alone = sc.maximize(one, 4, algorithm)
        assert together.row(*at).indices.tolist() == alone.indices.tolist()
        assert float(together.value[at]) == pytest.approx(float(alone.value))


@pytest.mark.parametrize("build", [sc.LogDeterminant, sc.Dispersion])
def test_subclasses_of_the_others_go_to_the_generic_algorithms(build, monkeypatch):
    class Own(build):
        pass

    s = np.random.default_rng(0).random((6, 6))
    matrix = s @ s.T + np.eye(6) if build is sc.LogDeterminant else abs(s - s.T)
    expected = sc.maximize(build(matrix), 4).indices.tolist()
    monkeypatch.setattr(maximize, "_SOLVERS", {})
    assert sc.maximize(build(matrix), 4).indices.tolist() == expected
    monkeypatch.undo()
    asked = []
    own = {key: lambda f, k: asked.append(k) for key in maximize._SOLVERS if key[0] is build}
    monkeypatch.setattr(maximize, "_SOLVERS", {**maximize._SOLVERS, **own})
    assert sc.maximize(Own(matrix), 4).indices.tolist() == expected
    assert asked == []


def test_an_objective_of_somebody_else_brings_an_operation():
    class Heaviest(sc.Objective):
        def __init__(self, weights):
            self.weights, self.size, self.sample = weights, len(weights), weights

        def value(self, indices):
            return float(sum(self.weights[j] for j in indices))

    @maximize.solves(Heaviest)
    @operation
    def heaviest(f, k):
        picks = np.argsort(-f.weights, kind="stable")[:k]
        gains = f.weights[picks]
        return maximize.Picks(picks, gains, gains.sum(), np.asarray(np.inf))

    f = Heaviest(np.array([1.0, 3.0, 2.0]))
    assert sc.maximize(f, 2).indices.tolist() == [1, 2]
    assert sc.maximize(f, 2, "naive").indices.tolist() == [1, 2]


class OnlyTracker(sc.Objective):
    """Every other token loses by a pick: an order, no function of sets."""

    differences = False

    def __init__(self, scores):
        self.scores, self.size, self.sample = scores, len(scores), scores

    def tracker(self):
        return Alternating(self.scores.copy())


class Alternating:
    slack = 0.0

    def __init__(self, scores):
        self._scores = scores

    def gains(self):
        return self._scores

    def add(self, pick):
        self._scores = self._scores.copy()
        self._scores[pick % 2 :: 2] -= 10.0


@pytest.mark.parametrize("algorithm", ["auto", "incremental", "naive"])
def test_greedy_works_from_a_tracker_alone(algorithm):
    f = OnlyTracker(np.array([4.0, 1.0, 3.0, 2.0]))
    picks = sc.maximize(f, 3, algorithm)
    assert picks.indices.tolist() == [0, 3, 2]
    assert picks.gains.tolist() == [4.0, 2.0, -7.0]
    assert picks.value is None
    assert picks.upper_bound is None
    assert_objective(f)


def test_gains_within_the_slack_of_a_tracker_alone_are_equal():
    class Loose(OnlyTracker):
        def tracker(self):
            tracker = Alternating(self.scores.copy())
            tracker.slack = 0.1
            return tracker

    assert sc.maximize(Loose(np.array([0.9, 1.0, 0.5])), 1).indices.tolist() == [0]


def test_an_objective_without_anything_to_go_by_is_refused():
    class Nothing(sc.Objective):
        size, sample = 2, np.zeros(1)

    for algorithm in ("auto", "naive", "incremental"):
        with pytest.raises(ValueError, match="Nothing has neither value, gain nor tracker"):
            sc.maximize(Nothing(), 1, algorithm)


def test_the_checker_asks_what_an_objective_declares():
    class Claims(OnlyTracker):
        differences = True

    with pytest.raises(AssertionError, match="gains are differences of values, and sets have none"):
        assert_objective(Claims(np.array([1.0, 2.0])))

    class Astray(sc.FacilityLocation):
        def tracker(self):
            return Alternating(np.arange(float(self.size)))

    with pytest.raises(AssertionError, match=r"the tracker says that token \d adds .*, gain says"):
        assert_objective(Astray(np.eye(4)))


@pytest.fixture
def module(monkeypatch):
    monkeypatch.setattr(dispatch, "_drivers", dict(dispatch._drivers))
    monkeypatch.setattr(dispatch, "_modules", dict(dispatch._modules))
    made = ModuleType("somebodys_driver")
    monkeypatch.setitem(sys.modules, "somebodys_driver", made)
    register_driver("somebodys", "somebodys_driver", "numpy")
    yield made
    dispatch._load.cache_clear()


def loads(module, source):
    exec(source, vars(module))
    return sc.backend("somebodys"), sc.FacilityLocation(np.eye(3))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            "def facility_locaton(f, k): ...",
            r"driver 'somebodys': 'facility_locaton' is no operation, did you mean 'facility_loc",
        ),
        ("def polish(x): ...", "driver 'somebodys': 'polish' is no operation; expected one of"),
        (
            "__all__ = ['unit', 'polish']\ndef unit(x): ...\ndef polish(x): ...",
            "driver 'somebodys': 'polish' is no operation",
        ),
        (
            "def facility_location(similarity, weights, k): ...",
            r"\(similarity, weights, k\) takes other .* expected facility_location\(f, k\)",
        ),
        ("def farthest_first(f, k, start=0): ...", r"expected farthest_first\(f, k, start=None\)"),
        ("def farthest_first(f, k): ...", r"expected farthest_first\(f, k, start=None\)"),
        ("def unit(x, *, fast): ...", r"expected unit\(x\)"),
    ],
)
def test_a_driver_that_offers_what_is_none_is_refused_when_it_loads(module, source, words):
    chosen, f = loads(module, source)
    with chosen, pytest.raises(ValueError, match=words):
        sc.maximize(f, 1)


@pytest.mark.parametrize(
    "source",
    [
        "def facility_location(f, k): return NotImplemented",
        "def facility_location(*args): return NotImplemented",
        "def _polish(x): ...\ndef unit(x): ...",
        "__all__ = ['unit']\ndef unit(x): ...\ndef polish(x): ...",
        "from secateur.core.arrays import to_numpy",
        "def attention_received(queries, keys, **more): ...",
    ],
)
def test_a_driver_that_keeps_to_the_operations_loads(module, source):
    chosen, f = loads(module, source)
    with chosen:
        assert sc.maximize(f, 1).indices.tolist() == [0]


@pytest.mark.parametrize("name", ["host.driver", "host.compiled", "torch.driver"])
def test_our_drivers_offer_operations_and_no_function_named_like_one_is_left_out(name):
    if name.startswith("torch"):
        pytest.importorskip("torch")
    driver = sys.modules.get(f"secateur.backends.{name}") or __import__(
        f"secateur.backends.{name}", fromlist=["driver"]
    )
    assert set(driver.__all__) == {each for each in dispatch._operations if own(driver, each)}
    for each in driver.__all__:
        dispatch._check_offer(name, each, getattr(driver, each))


def own(driver, name):
    # An operation that a driver only imports, to call it, is none of its own.
    return isfunction(getattr(driver, name, None))


def test_drivers_wake_for_many_choices(monkeypatch):
    woken = []
    drivers = {"numpy": ("one", "two", "missing")}
    modules = {"one": SimpleNamespace(wake=lambda: woken.append("one")), "two": object()}
    monkeypatch.setattr(dispatch, "_drivers", drivers)
    monkeypatch.setattr(dispatch, "_load", modules.get)
    dispatch.wake("numpy")
    dispatch.wake("nobody's")
    assert woken == ["one"]
