"""Eight threads on one attached model: each gets the answer it would get alone."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

import secateur as sc
from secateur.integrations.attach import attach

GREEDY = {"max_new_tokens": 3, "do_sample": False}
THREADS = 8


def methods(by_norm):
    """Before the language model, with what its tower is observed for, and between its layers."""
    return {"before": by_norm(keep=4), "observed": sc.TopK(keep=4), "inside": sc.FastV(keep=0.5)}


@pytest.mark.parametrize("kind", ["before", "observed", "inside"])
def test_eight_threads_get_what_each_would_alone(case, model, by_norm, kind):
    if kind == "inside" and not case.cuttable:
        pytest.skip("attach() refuses to cut there, see test_linear.py")
    words = ("what is in this picture ?", "how many red dog and cat does this show ?")
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    more = 0 if kind == "inside" and window else 1  # a window has to hold the prompt
    prompts = [
        case.inputs(words=(words[n % 2],), images=(1 + more * (n % 2),), seed=n)
        for n in range(THREADS - 1)
    ]
    prompts.append(case.inputs(words=(words[0],), images=(0,)))
    start = Barrier(THREADS)

    def answers(inputs, together=True):
        with torch.no_grad():
            if together:
                start.wait()
            return model(**inputs).logits, model.generate(**inputs, **GREEDY)

    with attach(model, methods(by_norm)[kind], case.processor()):
        expected = [answers(inputs, together=False) for inputs in prompts]
        with ThreadPoolExecutor(THREADS) as pool:
            found = list(pool.map(answers, prompts))
    for (logits, tokens), (own, theirs) in zip(found, expected, strict=True):
        torch.testing.assert_close(logits, own, rtol=1e-4, atol=1e-4)
        assert torch.equal(tokens, theirs)
