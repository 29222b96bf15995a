"""The command `secateur`, also as ``python -m secateur``."""

from __future__ import annotations


def main() -> None:
    """Run the command line, or say what it needs."""
    try:
        from secateur.app.cli import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "secateur":
            raise
        raise SystemExit(
            f"secateur: the command line needs {error.name}: pip install 'secateur[cli]'"
        ) from None
    app(prog_name="secateur")


if __name__ == "__main__":
    main()
