"""A copy of the package to add something to, for real, and to count what that touched."""

from __future__ import annotations

import difflib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ADDITIONS = Path(__file__).parent / "additions"


class House:
    """A copy of the repository's package."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Compiled files come along: they fit, since copies keep the time of the original.
        shutil.copytree(ROOT / "secateur", folder / "secateur")

    def add(self, addition: str, path: str) -> None:
        """Put a file of `additions` into the package."""
        shutil.copyfile(ADDITIONS / addition, self.folder / path)

    def below(self, path: str, line: str, added: str) -> None:
        """Add a line below one that stands in a file just once."""
        file = self.folder / path
        text = file.read_text("utf-8")
        assert text.count(f"\n{line}\n") == 1, f"{path}: {line!r}"
        file.write_text(text.replace(f"\n{line}\n", f"\n{line}\n{added}\n"), "utf-8")

    def touched(self) -> dict[str, int]:
        """Every file that differs from the repository's, and how many lines were added to it."""
        found = {}
        for file in sorted(self.folder.rglob("*.py")):
            path = file.relative_to(self.folder)
            old = ROOT / path
            before = old.read_text("utf-8").splitlines() if old.exists() else []
            after = file.read_text("utf-8").splitlines()
            if before != after:
                changes = list(difflib.ndiff(before, after))
                assert not [line for line in changes if line.startswith("- ")], path
                found[path.as_posix()] = sum(line.startswith("+ ") for line in changes)
        return found

    def run(self, code: str) -> str:
        """What a program prints that imports this package and no other."""
        guard = f"import secateur; assert secateur.__file__.startswith({str(self.folder)!r})\n"
        done = subprocess.run(
            [sys.executable, "-c", guard + code],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout.strip()


@pytest.fixture
def house(tmp_path):
    return House(tmp_path)
