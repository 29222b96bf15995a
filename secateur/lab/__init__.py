"""The lab: scenes drawn by a seed, and a small vision-language model that answers about them.

>>> from secateur.lab import scenes
>>> scene = next(scenes(1, seed=1, kind="count"))
>>> scene.questions[0].text
'how many shapes are there?'

The model is a `LlavaForConditionalGeneration` of 1.6 million parameters that sees 96 pixels in
144 patches. Its weights come with the package (`load`), so does the CLIP twin whose text tower
guides methods that need one (`text_encoder`); ``python -m secateur.lab.train`` makes both anew.
A `LlavaOnevisionForConditionalGeneration` of 1.5 million (`load_watcher`) watches scenes that
move (`clips`). `scenes` and `clips` need NumPy alone; the rest imports PyTorch and Transformers
when it is called.
"""

from secateur.lab.answers import HELD_OUT, answer, answers, ask_all, evaluate, prompt
from secateur.lab.clip import Clip, clips
from secateur.lab.objects import KINDS, Object, Question
from secateur.lab.packaged import load, load_watcher, text_encoder
from secateur.lab.questions import DESCRIBE, mentioned
from secateur.lab.scene import COMPLEXITIES, TEXTURES, Scene, scenes
from secateur.lab.watched import WATCHED
from secateur.lab.watcher import watch

__all__ = [
    "COMPLEXITIES",
    "DESCRIBE",
    "HELD_OUT",
    "KINDS",
    "TEXTURES",
    "WATCHED",
    "Clip",
    "Object",
    "Question",
    "Scene",
    "answer",
    "answers",
    "ask_all",
    "clips",
    "evaluate",
    "load",
    "load_watcher",
    "mentioned",
    "prompt",
    "scenes",
    "text_encoder",
    "watch",
]
