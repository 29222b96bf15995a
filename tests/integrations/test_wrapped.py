"""Models that others changed before they are attached: LoRA adapters of PEFT, quantised layers."""

import copy

import peft
import pytest
import torch

import secateur as sc
from secateur.integrations.attach import attach, encode, prune_inputs
from secateur.integrations.transformers.models import UnsupportedModelError

GREEDY = {"max_new_tokens": 4, "do_sample": False}
TARGETS = ["q_proj", "k_proj", "qkv", "fc1"]


@pytest.fixture(
    scope="module", params=["llava", pytest.param("qwen2_5_vl", marks=pytest.mark.slow)]
)
def adapted(request, cases):
    """A model with random adapters, and one that had the same merged into its weights."""
    case = cases[request.param]()
    torch.manual_seed(1)
    config = peft.LoraConfig(
        r=4, target_modules=TARGETS, init_lora_weights=False, task_type="CAUSAL_LM"
    )
    model = peft.get_peft_model(case.model(), config).eval()
    return case, model, copy.deepcopy(model).merge_and_unload()


@pytest.mark.parametrize("method", [sc.TopK(keep=4), sc.FastV(keep=4, after=2)])
def test_adapters_prune_as_merged_weights_do(adapted, method):
    case, model, merged = adapted
    inputs = case.inputs()
    plain = case.model()(**inputs).logits
    logits = model(**inputs).logits
    assert not torch.allclose(logits, plain, atol=1e-2)
    torch.testing.assert_close(logits, merged(**inputs).logits, rtol=1e-4, atol=1e-4)
    with attach(merged, method) as theirs:
        expected, tokens = merged(**inputs).logits, merged.generate(**inputs, **GREEDY)
    with attach(model, method) as ours:
        assert ours.model is model.get_base_model()
        torch.testing.assert_close(model(**inputs).logits, expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(model.generate(**inputs, **GREEDY), tokens)
        refused = pytest.raises(ValueError, match="is attached already")
        with refused:
            attach(model, method)
    assert ours.last.final_length == theirs.last.final_length < inputs["input_ids"].shape[1]
    assert torch.equal(model(**inputs).logits, logits)


def test_stages_take_adapters_too(adapted):
    case, model, merged = adapted
    inputs, method = case.inputs(), sc.TopK(keep=4)
    for ours, theirs in zip(
        encode(model, inputs, wants={"attention"}).visuals,
        encode(merged, inputs, wants={"attention"}).visuals,
        strict=True,
    ):
        torch.testing.assert_close(ours.features, theirs.features, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours.parts[0].attention, theirs.parts[0].attention)
    small = prune_inputs(model, inputs, method)
    with attach(model, method):
        expected = model.generate(**inputs, **GREEDY)
    assert torch.equal(model.generate(**small, **GREEDY)[:, -4:], expected[:, -4:])


def test_prompts_that_an_adapter_lengthens_are_refused(cases):
    config = peft.PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=3,
        token_dim=48,
        num_transformer_submodules=1,
        num_attention_heads=4,
        num_layers=4,
    )
    model = peft.get_peft_model(cases["llava"]().model(), config)
    with pytest.raises(UnsupportedModelError, match="tokens of its own before every prompt"):
        attach(model, sc.TopK(keep=4))


class Whole(torch.nn.Module):
    """A linear layer whose weights are integers, as quantised ones hold them."""

    def __init__(self, linear):
        super().__init__()
        step = linear.weight.detach().abs().amax(dim=1, keepdim=True) / 127
        self.register_buffer("weight", (linear.weight.detach() / step).round().to(torch.int8))
        self.register_buffer("step", step)
        self.bias = linear.bias

    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight * self.step, self.bias)


@pytest.mark.parametrize("method", [sc.TopK(keep=4), sc.FastV(keep=4, after=2)])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_layers_that_hold_integers(cases, name, method):
    """Against the same model with these integers times their steps as plain weights."""
    case = cases[name]()
    plain, whole = case.model(), case.model()
    for path, module in list(whole.named_modules()):
        if type(module) is torch.nn.Linear and path != "lm_head":
            parent, _, own = path.rpartition(".")
            setattr(whole.get_submodule(parent), own, Whole(module))
            held = whole.get_submodule(path)
            plain.get_submodule(path).weight.data = held.weight * held.step
    inputs = case.inputs()
    with attach(plain, method):
        expected, tokens = plain(**inputs).logits, plain.generate(**inputs, **GREEDY)
    with attach(whole, method) as att:
        assert torch.equal(whole(**inputs).logits, expected)
        assert torch.equal(whole.generate(**inputs, **GREEDY), tokens)
    assert att.last.final_length < inputs["input_ids"].shape[1]
