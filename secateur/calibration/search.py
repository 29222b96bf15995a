"""The search for ERASE's thresholds and ratios against an objective of one's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import numpy as np

from secateur.core.arrays import to_numpy
from secateur.core.complexity import several
from secateur.core.inputs import MissingInputError, Tokens
from secateur.core.measures import median, patch_entropy
from secateur.core.methods.base import require_share, require_whole
from secateur.core.methods.erase import ERASE
from secateur.core.parameters import typed

HIGHEST = math.log(256)
"""The entropy of a patch in which all grey values are equally frequent."""

FIRST_RATIOS = (0.6, 0.9)
OTHER_RATIOS = (0.1, 0.85)
"""Where the authors search for the ratio of the most complex level, and of the others."""


@dataclass(frozen=True)
class CalibrationResult:
    """What `calibrate` found.

    Attributes
    ----------
    method
        The best method.
    value
        What it scored.
    trials
        How many trials the study holds by now.
    study
        The Optuna study, for its plots and tables.
    """

    method: ERASE
    value: float
    trials: int
    study: Any

    def __repr__(self) -> str:
        return f"CalibrationResult({self.value:.6g} after {self.trials} trials: {self.method!r})"


@typed
def calibrate(
    objective: Callable[[ERASE], float],
    method: ERASE | None = None,
    *,
    images: Iterable[Tokens] | None = None,
    weight: float = 0.65,
    trials: int = 100,
    seed: int = 0,
    storage: str | PathLike[str] | Any = None,
    study_name: str = "secateur-erase",
    progress: bool = True,
) -> CalibrationResult:
    r"""Search for the thresholds and ratios of ERASE that an objective likes best.

    Without `images`, what is maximised is the objective. With `images`, it is

    .. math:: w \cdot \text{objective}(m) + (1 - w) \cdot \text{mean share dropped by stage 1}

    as in the authors' search (w = 0.65): a good answer counts, and so does dropping early.
    Levels are as many as `method` has.

    Parameters
    ----------
    objective
        Takes an `ERASE`, returns how good it is: higher is better. Accuracy in [0, 1] on
        calibration questions, for instance, with the method attached to a model.
    method
        Its other parameters are kept, and its thresholds and ratios are tried first; the
        published ones for Qwen2.5-VL-7B when absent.
    images
        `Tokens` with pixels on which the dropped share is measured.
    weight
        w above, in [0, 1]; counts with `images` only.
    trials
        How many trials the study shall have in all, those already in `storage` included.
    seed
        Seeds the sampler: the same seed, objective and trials give the same answer.
    storage
        Where trials are kept, so that a stopped search goes on from there when called again:
        the path of a journal file, a database URL (``sqlite:///...``), or an Optuna storage.
        In memory when absent.
    study_name
        The study within the storage.
    progress
        Whether to show a progress bar with the best value so far.

    Returns
    -------
    CalibrationResult
        The best method, its value and the study.

    Notes
    -----
    Thresholds are searched in [0, log 256] and sorted; ratios within the authors' bounds,
    [0.6, 0.9] for the most complex level and [0.1, 0.85] for the others, and sorted, so that a
    more complex image never keeps less. The sampler is Optuna's multivariate tree-structured
    Parzen estimator, the first fifth of the trials random; the authors use a Gaussian process.
    Each trial has a random stream of its own, made from `seed` and its number, so that a search
    resumed after any trial goes on as if it had not stopped. Needs
    ``pip install 'secateur[calibrate]'``.

    References
    ----------
    Y. Lee, K. Min and Y. Kim, "ERASE", 2026, arXiv 2605.09982. J. Bergstra et al., "Algorithms
    for Hyper-Parameter Optimization", NeurIPS 2011.

    Examples
    --------
    >>> import secateur as sc
    >>> found = sc.calibrate(lambda m: -abs(m.ratios[0] - 0.7), trials=30, progress=False)
    >>> round(found.method.ratios[0], 1)
    0.7
    """
    try:
        import optuna
    except ImportError:
        raise ImportError("calibrate needs Optuna: pip install 'secateur[calibrate]'") from None
    require_whole("trials", trials, least=1)
    require_share("weight", weight)
    method = ERASE() if method is None else method
    medians = None if images is None else _complexities(method, images)
    if medians is not None and not medians.size:
        raise ValueError("images: expected at least one to calibrate on, got batches of none")
    levels = len(method.thresholds)

    def propose(trial: Any) -> ERASE:
        thresholds = [trial.suggest_float(f"t{i}", 0.0, HIGHEST) for i in range(levels)]
        ratios = [
            trial.suggest_float(f"r{i}", *(OTHER_RATIOS if i else FIRST_RATIOS))
            for i in range(levels + 1)
        ]
        return _with(method, thresholds, ratios)

    def score(trial: Any) -> float:
        proposed = propose(trial)
        value = float(objective(proposed))
        if not math.isfinite(value):
            raise ValueError(f"objective: expected a finite number, got {value} for {proposed!r}")
        if medians is not None:
            kept = np.maximum(np.asarray(proposed.ratios)[proposed.level(medians)], _final(method))
            value = weight * value + (1.0 - weight) * float(1.0 - kept.mean())
        return value

    def sampler(number: int) -> Any:
        # One seed a trial: a resumed search draws what an unbroken one would have drawn.
        own = int(np.random.default_rng([seed, number]).integers(2**31))
        return optuna.samplers.TPESampler(
            seed=own, multivariate=True, n_startup_trials=max(5, trials // 5)
        )

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(
            direction="maximize",
            storage=_storage(storage),
            study_name=study_name,
            load_if_exists=True,
        )
        if not study.trials:
            study.enqueue_trial(_first(method))
        done = optuna.trial.TrialState.COMPLETE
        finished = sum(trial.state == done for trial in study.trials)
        with _bar(trials, finished, progress) as bar:
            while finished < trials:
                study.sampler = sampler(finished)
                study.optimize(score, n_trials=1)
                finished += 1
                bar.update(1)
                bar.set_postfix(best=f"{study.best_value:.4g}")
    finally:
        optuna.logging.set_verbosity(verbosity)
    return CalibrationResult(propose(study.best_trial), study.best_value, finished, study)


def _with(method: ERASE, thresholds: list[float], ratios: list[float]) -> ERASE:
    steps = sorted(thresholds, reverse=True)
    for place in range(1, len(steps)):
        # Equal thresholds, however unlikely, would be refused.
        steps[place] = min(steps[place], math.nextafter(steps[place - 1], -math.inf))
    return replace(method, thresholds=tuple(steps), ratios=tuple(sorted(ratios, reverse=True)))


def _first(method: ERASE) -> dict[str, float]:
    """The parameters of the method itself, moved into the bounds of the search."""
    start = {f"t{i}": min(max(t, 0.0), HIGHEST) for i, t in enumerate(method.thresholds)}
    for i, ratio in enumerate(method.ratios):
        low, high = OTHER_RATIOS if i else FIRST_RATIOS
        start[f"r{i}"] = min(max(ratio, low), high)
    return start


def _complexities(method: ERASE, images: Iterable[Tokens]) -> np.ndarray[Any, Any]:
    found = []
    for tokens in several(images):
        if tokens.pixels is None:
            raise MissingInputError("calibrate", "pixels")
        found.append(
            np.ravel(to_numpy(median(patch_entropy(tokens.pixels, method.patch_of(tokens)))))
        )
    if not found:
        raise ValueError("images: expected at least one, got none")
    return np.concatenate(found)


def _final(method: ERASE) -> float:
    return float(method.keep) if isinstance(method.keep, float) else 0.0


def _storage(given: Any) -> Any:
    import optuna

    if given is None or isinstance(given, optuna.storages.BaseStorage):
        return given
    if not isinstance(given, (str, PathLike)):
        raise ValueError(
            f"storage: expected a path, the URL of a database or a storage of Optuna, got {given!r}"
        )
    if isinstance(given, str) and "://" in given:
        return given
    backend = optuna.storages.journal.JournalFileBackend(str(given))
    return optuna.storages.JournalStorage(backend)


def _bar(total: int, finished: int, shown: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, initial=finished, desc="calibrate", unit="trial", disable=not shown)
