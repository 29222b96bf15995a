"""``python -m secateur.demo``: see `secateur.app.demo`."""

from __future__ import annotations


def main() -> None:
    """Run it, or say what it needs."""
    from secateur.core.extras import extra

    try:
        with extra("demo", "python -m secateur.demo"):
            from secateur.app import demo
    except ModuleNotFoundError as error:
        raise SystemExit(f"secateur: {error}") from None
    demo.main()


if __name__ == "__main__":
    main()
