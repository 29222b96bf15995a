"""``python -m secateur.photograph``: see `secateur.app.photograph`."""

from __future__ import annotations


def main() -> None:
    """Run it, or say what it needs."""
    from secateur.core.extras import extra

    try:
        with extra("demo", "python -m secateur.photograph"):
            from secateur.app import photograph
    except ModuleNotFoundError as error:
        raise SystemExit(f"secateur: {error}") from None
    photograph.main()


if __name__ == "__main__":
    main()
