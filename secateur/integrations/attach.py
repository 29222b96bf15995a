"""`attach` and `prune_inputs`, where they have always been."""

from secateur.integrations.transformers.attach import Attachment, attach, prune_inputs
from secateur.integrations.transformers.models import UnsupportedModelError

__all__ = ["Attachment", "UnsupportedModelError", "attach", "prune_inputs"]
