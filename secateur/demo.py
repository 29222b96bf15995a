"""``python -m secateur.demo``: see `secateur.app.demo`."""

from secateur.app.demo import main

if __name__ == "__main__":
    main()
