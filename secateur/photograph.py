"""``python -m secateur.photograph``: see `secateur.app.photograph`."""

from secateur.app.photograph import main

if __name__ == "__main__":
    main()
