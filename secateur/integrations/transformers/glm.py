"""GLM-4.1V, 4.5V and 4.6V: Qwen2-VL's patches and M-RoPE, with text between the frames of a video.

Images and frames bear the same placeholder; a frame is one that stands between the marks of a
video. `positions=None` means ``"original"``: kept tokens keep time, row and column.
"""

from __future__ import annotations

from typing import Any, ClassVar

from secateur.integrations.encoded import Indices, Modality
from secateur.integrations.families.base import Family
from secateur.integrations.families.glm import GLM_4V, in_videos
from secateur.integrations.text import Flags
from secateur.integrations.transformers.qwen2_5_vl import Qwen2VL


class GLM4V(Qwen2VL):
    """Where GLM-4.1V to 4.6V keep what pruning needs."""

    family: ClassVar[Family] = GLM_4V

    def standing(self, model: Any, ids: Indices) -> dict[Modality, Flags]:
        """Image placeholders, those within a video as the video's."""
        config = model.config
        own = ids == config.image_token_id
        framed = in_videos(ids, config.video_start_token_id, config.video_end_token_id)
        return {"image": own & ~framed, "video": own & framed}

    def neighbours(self, model: Any) -> bool:
        """In the dense decoder; that of mixtures turns halves."""
        return bool(model.config.text_config.model_type == "glm4v_text")
