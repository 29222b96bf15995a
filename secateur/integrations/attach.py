"""`attach` and `prune_inputs`, where they have always been, and the stages they consist of."""

from secateur.core.extras import extra

with extra("transformers", "secateur.attach"):
    from secateur.integrations.choosing import choose_each
    from secateur.integrations.transformers.attach import Attachment, attach, prune_inputs
    from secateur.integrations.transformers.encode import encode
    from secateur.integrations.transformers.models import UnsupportedModelError
    from secateur.integrations.transformers.shorten import shorten

__all__ = [
    "Attachment",
    "UnsupportedModelError",
    "attach",
    "choose_each",
    "encode",
    "prune_inputs",
    "shorten",
]
