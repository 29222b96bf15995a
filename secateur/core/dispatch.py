"""Who computes: drivers, operations they may answer, and the choice between them.

What a library can do better than the array API standard allows, its *driver* offers: a module with
functions named like the operations of the core. An operation is declared once, by decorating its
reference version:

>>> import numpy as np
>>> from secateur.core.dispatch import operation
>>> @operation
... def total(x):
...     return float(x.sum())
>>> total(np.ones(3)), total.reference(np.ones(3))
(3.0, 3.0)

A call looks for a driver of the first array it is given and falls back on the reference.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from types import ModuleType
from typing import Any, Generic, ParamSpec, TypeVar, cast

from secateur.core.arrays import Array, is_sparse, library
from secateur.core.parameters import typed

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])
_drivers: dict[str, tuple[str, ...]] = {}
_modules: dict[str, str] = {}
_operations: dict[str, Operation[..., Any]] = {}
"""All operations by name, as they are declared: what a driver may offer."""


_choice: ContextVar[str] = ContextVar("secateur_backend", default="auto")


def register_driver(name: str, module: str, library: str) -> None:
    """Make the module at dotted path `module` the driver `name` of an array library.

    Parameters
    ----------
    name
        What users write in `backend=`.
    module
        Imported when an array of `library` first arrives. It offers any subset of the core's
        operations, under their names and signatures. A function may return `NotImplemented`
        to leave a call to the next driver and at last to the reference.
    library
        The top-level name of the array library, such as ``"torch"``. Drivers of one library
        are asked in the order of their registration.

    Notes
    -----
    What it offers are its public functions, or those in its `__all__` where it has one. Each is
    named like an operation and takes what that takes (``*args`` and ``**kwargs`` may stand for
    the rest); a module that offers anything else is refused when it is loaded. One that loads
    much later on may have a function `wake`, left out of its `__all__`, which is called where
    the driver is chosen by name or many choices are to come. Left out of it, too, is a function
    `alone`: it takes how many multiplications the product of a choice's tokens with each other
    has, and gives the context that the whole choice is made in. So are `lends(x)`, `lend(x)` and
    `take_back(x)`: whether and as what another library's array the memory of `x` can be worked
    on, and the way back; our methods then choose there.
    """
    _modules[name] = module
    known = _drivers.get(library, ())
    if name not in known:
        _drivers[library] = (*known, name)


def drivers() -> dict[str, tuple[str, ...]]:
    """Names of the registered drivers by array library, in the order they are asked."""
    return dict(_drivers)


@contextmanager
@typed
def backend(name: str) -> Iterator[None]:
    """Choose who computes within the block: ``"auto"``, ``"reference"`` or a driver's name.

    >>> import numpy as np, secateur as sc
    >>> with sc.backend("reference"):
    ...     float(sc.effective_rank(np.eye(4)).round(6))
    4.0
    """
    token = _choice.set(_known_backend(name))
    try:
        yield
    finally:
        _choice.reset(token)


def _known_backend(name: str) -> str:
    if name not in ("auto", "reference") and name not in _modules:
        choices = ", ".join(["auto", "reference", *_modules])
        raise ValueError(f"backend: expected one of {choices}; got {name!r}")
    return name


@functools.cache
def _load(name: str) -> ModuleType | None:
    module = importlib.import_module(_modules[name])
    if not getattr(module, "available", True):
        return None
    for offered in _offers(module):
        _check_offer(name, offered, getattr(module, offered))
    return module


def _offers(module: ModuleType) -> Sequence[str]:
    """Names of the functions that a driver module offers."""
    listed: Sequence[str] | None = getattr(module, "__all__", None)
    if listed is not None:
        return listed
    # A function that it only imports is an offer where it is named like an operation.
    return [
        name
        for name, f in vars(module).items()
        if inspect.isfunction(f)
        and not name.startswith("_")
        and (f.__module__ == module.__name__ or name in _operations)
    ]


def _check_offer(driver: str, name: str, function: Any) -> None:
    operation = _operations.get(name)
    if operation is None:
        near = difflib.get_close_matches(name, _operations, n=1)
        meant = f", did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"driver {driver!r}: {name!r} is no operation{meant}; "
            f"expected one of {', '.join(sorted(_operations))}, or a name that begins with _"
        )
    expected, given = (inspect.signature(f) for f in (operation.reference, function))
    if not _takes(given, expected):
        shown = expected.replace(return_annotation=inspect.Signature.empty)
        raise ValueError(
            f"driver {driver!r}: {name}{_names(given)} takes other arguments than the operation, "
            f"expected {name}{_names(shown)}"
        )


def _takes(given: inspect.Signature, expected: inspect.Signature) -> bool:
    """Whether a function takes every call that another does, to the same parameters."""
    left = list(given.parameters.values())
    ends = {p.kind for p in left}
    named = [p for p in left if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    wanted = list(expected.parameters.values())
    alike = [(p.name, p.kind, p.default) for p in named]
    as_known = [(p.name, p.kind, p.default) for p in wanted]
    if alike != as_known[: len(alike)]:
        return False
    # The rest must have somewhere to go, by whichever way it may come.
    by_place = inspect.Parameter.VAR_POSITIONAL in ends
    by_name = inspect.Parameter.VAR_KEYWORD in ends
    rest = wanted[len(alike) :]
    return all(by_name if p.kind is p.KEYWORD_ONLY else by_place for p in rest)


def _names(signature: inspect.Signature) -> str:
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))


def candidates(x: Array, choice: str | None = None) -> tuple[ModuleType, ...]:
    """Driver modules to ask for an operation on `x`, best first."""
    name = _choice.get() if choice is None else _known_backend(choice)
    if name == "reference":
        return ()
    owner, own = _serving(x)
    if name == "auto":
        found = (_load(each) for each in own)
        return tuple(each for each in found if each is not None)
    if name not in own:
        serves = ", ".join(own) or "none"
        raise ValueError(
            f"backend: {name!r} does not serve arrays of {owner} (drivers that do: {serves})"
        )
    module = _load(name)
    if module is None:
        raise ValueError(f"backend: {name!r} is not installed: pip install 'secateur[{name}]'")
    getattr(module, "wake", _nothing)()
    return (module,)


def _serving(x: Array) -> tuple[str, tuple[str, ...]]:
    """The library of `x` and the drivers that serve it."""
    owner = "scipy" if is_sparse(x) else library(x)
    return owner, _drivers.get("numpy" if owner == "scipy" else owner, ())


def wake(library: str) -> None:
    """Load now what drivers of arrays of a library load later on, since many choices will come."""
    for name in _drivers.get(library, ()):
        getattr(_load(name), "wake", _nothing)()


def _nothing() -> None:
    """What a driver does that has nothing to load."""


def whole(x: Array, work: int) -> AbstractContextManager[None]:
    """Around a choice about `x`, whose product of everything with everything is so much `work`.

    Whose threads do the many small steps of it, the first driver of `x` decides that has a say.
    """
    for name in () if _choice.get() == "reference" else _serving(x)[1]:
        alone = getattr(_load(name), "alone", None)
        if alone is not None:
            return cast("AbstractContextManager[None]", alone(work))
    return nullcontext()


def images_at_once(x: Array) -> int | None:
    """How many of the images that x (..., N, D) are the tokens of to choose from at once.

    None where all may be: no driver of `x` has a say.
    """
    size, width = (int(n) for n in x.shape[-2:])
    for name in () if _choice.get() == "reference" else _serving(x)[1]:
        at_once = getattr(_load(name), "images_at_once", None)
        if at_once is not None:
            return cast(int, at_once(size * max(size, width)))
    return None


def lender(x: Array) -> ModuleType | None:
    """The driver that lends arrays such as `x` to another library for a whole choice, if one does.

    None where the user chose who computes.
    """
    if _choice.get() != "auto":
        return None
    return next((each for each in candidates(x) if hasattr(each, "lend")), None)


def eager(function: F) -> F:
    """Keep PyTorch's compiler out: in compiled code the call is one break of the graph.

    Choosing tokens loops over the data and calls other compilers' code, which this one could
    only take to pieces.
    """
    whole: list[Any] = []

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        compiler = sys.modules.get("torch._dynamo")
        if compiler is None:
            return function(*args, **kwargs)
        if not whole:
            whole.append(compiler.disable(function))
        return whole[0](*args, **kwargs)

    # The compiler looks for this mark before it looks inside.
    call._torchdynamo_disable = True  # type: ignore[attr-defined]
    return cast(F, call)


class Operation(Generic[P, R]):
    """A reference function that a driver may replace; call it as the function.

    `reference` is the function itself, which tests compare every driver with. The keyword
    `backend` chooses for one call what `secateur.backend` chooses for a block.
    """

    def __init__(self, reference: Callable[P, R]) -> None:
        self.reference = reference
        functools.update_wrapper(self, reference)
        _operations[reference.__name__] = self

    @eager
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Answer by the first driver that does, else by the reference."""
        choice = cast("str | None", kwargs.pop("backend", None))
        name = self.reference.__name__
        first: Any = args[0] if args else next(iter(kwargs.values()))
        # What is no array itself, such as an objective, says whose arrays it holds.
        first = getattr(first, "sample", first)
        if not hasattr(first, "shape") or 0 in first.shape:
            asked: tuple[ModuleType, ...] = ()  # Nothing for a driver to be fast at.
        else:
            asked = candidates(first, choice)
        for driver in asked:
            fast = getattr(driver, name, None)
            if fast is not None and fast is not self:
                answer = fast(*args, **kwargs)
                if answer is not NotImplemented:
                    return cast(R, answer)
        return self.reference(*args, **kwargs)


def operation(reference: Callable[P, R]) -> Operation[P, R]:
    """Declare a function as the reference version of an operation that drivers may offer."""
    return Operation(reference)
