"""``python -m secateur.lab.train``: see `secateur.lab.training.train`."""

from secateur.core.extras import extra

with extra("transformers", "python -m secateur.lab.train"):
    from secateur.lab.training.train import main

if __name__ == "__main__":
    main()
