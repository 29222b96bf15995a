"""Files of every kind into what reads them, led by coverage.

Needs atheris, which no environment of ours brings: in a virtual environment that has it beside
`secateur[cli,ray]`, `python tests/fuzz/files.py calibration -max_total_time=120`. The first word is
one of `calibration`, `method`, `setting`, `parquet`; the others are libFuzzer's. It stops at the
first input that ends in anything but an answer or a sentence, and writes it beside itself; a file
of such an input as last word runs it again.
"""

from __future__ import annotations

import functools
import io
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

try:
    import atheris
except ImportError:
    sys.exit("tests/fuzz/files.py needs atheris, which is not installed: nothing was run.")

with atheris.instrument_imports(include=["secateur"]):
    import secateur as sc
    import secateur.core.methods
    from secateur.core.methods import methods

secateur.core.methods.entry_points = functools.cache(secateur.core.methods.entry_points)

ROOM = Path(tempfile.mkdtemp())


def calibration(data: bytes) -> None:
    """A file that `Calibration.load` is given."""
    path, dice = ROOM / "calibration.json", atheris.FuzzedDataProvider(data)
    if dice.ConsumeBool():
        stored = {name: value(dice, 1) for name in ("erank", "entropy", "images")}
        data = json.dumps(stored if dice.ConsumeBool() else value(dice, 2)).encode()
    path.write_bytes(data)
    sc.Calibration.load(path)


def method(data: bytes) -> None:
    """A stored method: fields and values of any JSON, the name one that exists."""
    dice = atheris.FuzzedDataProvider(data)
    kind = dice.PickValueInList(sorted(methods().values(), key=lambda kind: kind.name))
    stored: dict[str, Any] = {"method": kind.name}
    names = [*kind.__dataclass_fields__, "method", "running", "erank", ""]
    for _ in range(dice.ConsumeIntInRange(0, 4)):
        stored[dice.PickValueInList(names)] = value(dice, 3)
    found = sc.Method.from_dict(stored)
    again = sc.Method.from_dict(json.loads(json.dumps(found.to_dict())))
    if again != found and repr(again) != repr(found):
        raise AssertionError(f"{found} comes back as {again}")


def value(dice: Any, depth: int) -> Any:
    """Any value that JSON can hold."""
    kind = dice.ConsumeIntInRange(0, 9 if depth else 6)
    if kind in (7, 8):
        return [value(dice, depth - 1) for _ in range(dice.ConsumeIntInRange(0, 3))]
    if kind == 9:
        words = [dice.PickValueInList(["method", "erank", "running", "x"]) for _ in range(2)]
        return {word: value(dice, depth - 1) for word in words}
    plain: list[Callable[[], Any]] = [
        lambda: None,
        dice.ConsumeBool,
        lambda: dice.ConsumeInt(12),
        lambda: dice.ConsumeIntInRange(-2, 9),
        dice.ConsumeFloat,
        lambda: dice.ConsumeUnicodeNoSurrogates(6),
        lambda: dice.PickValueInList(sorted(methods())),
    ]
    return plain[kind]()


def setting(data: bytes) -> None:
    """Values of `--keep` and `--set` on the command line."""
    from secateur.app.command import method_of

    dice = atheris.FuzzedDataProvider(data)
    known = methods()
    name = dice.PickValueInList([*sorted(known), "x"])
    keep = dice.PickValueInList(["8", "0.25", dice.ConsumeUnicodeNoSurrogates(6)])
    fields = [*known[name].__dataclass_fields__] if name in known else ["keep"]
    settings = [dice.ConsumeUnicodeNoSurrogates(20)] * dice.ConsumeIntInRange(0, 1)
    for _ in range(dice.ConsumeIntInRange(0, 2)):
        given = json.dumps(value(dice, 2))
        plain = dice.ConsumeUnicodeNoSurrogates(9) if dice.ConsumeBool() else given
        settings.append(f"{dice.PickValueInList(fields)}={plain}")
    method_of(name, keep, settings)


def parquet(data: bytes) -> None:
    """Rows of a Parquet file that a corpus is read from: ragged, absent, of other types."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from secateur.integrations.corpus import Pruner

    dice = atheris.FuzzedDataProvider(data)
    rows = dice.ConsumeIntInRange(0, 4)
    columns = {
        name: [row(dice, axes) for _ in range(rows)]
        for name, axes in (("features", 2), ("attention", 1), ("text", 2), ("grid", 1))
        if dice.ConsumeIntInRange(0, 7)
    }
    file = io.BytesIO()
    try:
        pq.write_table(pa.table(columns), file)
        table = pq.read_table(file)
    except (pa.ArrowException, OSError, OverflowError, TypeError):
        return  # pyarrow's own sentence
    method = sc.TopK(keep=2) if dice.ConsumeBool() else sc.EADP(keep=0.5)
    pruned = Pruner(method)(table)
    if pruned.num_rows != table.num_rows:
        raise AssertionError(f"{table.num_rows} rows went in, {pruned.num_rows} came out")


def row(dice: Any, axes: int) -> Any:
    """An entry of a column: numbers in lists, mostly."""
    odd = dice.ConsumeIntInRange(0, 15)
    if odd == 0:
        return None
    if odd == 1:
        return value(dice, 2)
    if axes == 0:
        return dice.ConsumeFloat() if odd == 2 else float(dice.ConsumeIntInRange(-3, 3))
    length = dice.ConsumeIntInRange(0, 3) if odd == 3 else 2
    return [row(dice, axes - 1) for _ in range(length)]


READERS = {each.__name__: each for each in (calibration, method, setting, parquet)}


def main() -> None:
    """Read the command line, and hand the rest of it to libFuzzer."""
    if len(sys.argv) < 2 or sys.argv[1] not in READERS:
        sys.exit(f"expected one of {', '.join(READERS)} first")
    read = READERS[sys.argv.pop(1)]

    def one(data: bytes) -> None:
        try:
            read(data)
        except ValueError as error:
            if not str(error):
                raise

    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
