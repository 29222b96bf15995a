"""Models whose linear layers are others: weights in eight bits, adapters of low rank."""

import numpy as np
import pytest
import torch
from torch import nn

import secateur as sc
from secateur.integrations.attach import attach


class EightBits(nn.Module):
    """A linear layer whose weights are whole numbers, a scale a row."""

    def __init__(self, linear):
        super().__init__()
        scale = linear.weight.abs().amax(dim=1, keepdim=True) / 127
        self.register_buffer("whole", (linear.weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale.detach())
        self.bias = linear.bias

    def forward(self, x):
        return nn.functional.linear(x, self.whole.to(x.dtype) * self.scale, self.bias)


class LowRank(nn.Module):
    """A linear layer with an adapter beside it."""

    def __init__(self, linear):
        super().__init__()
        self.base = linear
        self.down = nn.Linear(linear.in_features, 2, bias=False)
        self.up = nn.Linear(2, linear.out_features, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


@pytest.fixture(params=[EightBits, LowRank])
def adapted(request, cases):
    case = cases["llava"]()
    model = case.model(attention="eager")
    torch.manual_seed(1)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name.endswith(("q_proj", "k_proj", "v_proj")):
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], request.param(module))
    return case, model.eval()


def test_with_all_tokens_logits_are_those_of_the_adapted_model(adapted):
    case, model = adapted
    inputs = case.inputs()
    with torch.no_grad():
        stock = model(**inputs).logits
        with attach(model, sc.HiPrune(keep=1.0), case.processor()):
            assert torch.equal(model(**inputs).logits, stock)


def test_what_is_chosen_follows_from_the_adapted_layers(adapted):
    case, model = adapted
    inputs = case.inputs()
    with torch.no_grad():
        weights = model(**inputs, output_attentions=True).attentions[1]
        with attach(model, sc.FastV(keep=6, after=2)) as att:
            model(**inputs)
    visual = np.flatnonzero(inputs["input_ids"][0].numpy() == model.config.image_token_id)
    scores = weights[0].mean(dim=0)[-1, torch.from_numpy(visual)]
    ((_, kept),) = att.last.inside[0]
    assert np.array_equal(kept, np.sort(visual[scores.topk(6).indices.numpy()]))
