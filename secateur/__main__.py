"""The command `secateur`, also as ``python -m secateur``."""

from __future__ import annotations


def main() -> None:
    """Run the command line, or say what it needs."""
    from secateur.core.extras import extra

    try:
        with extra("cli", "the command line"):
            from secateur.app.cli import app
    except ModuleNotFoundError as error:
        raise SystemExit(f"secateur: {error}") from None
    app(prog_name="secateur")


if __name__ == "__main__":
    main()
