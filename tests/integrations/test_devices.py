"""Models whose parts are on several devices, or offloaded: the same as on one.

The devices are made up. Their tensors say that they are on "lazy:0" or "lazy:1", a kind of device
that PyTorch knows and has no kernels for, and hold their numbers on the CPU. As on CUDA, an
operation on tensors of two of them is refused, and NumPy reads none of them.
"""

from contextlib import contextmanager

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import secateur as sc
from secateur.integrations.attach import attach, prune_inputs

GREEDY = {"max_new_tokens": 3, "do_sample": False}
CROSSING = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
INDEXING = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default}
MAKING = {torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor}
METHODS = {
    "eadp": sc.EADP(keep=4),
    "hiprune": sc.HiPrune(keep=4),
    "fastv": sc.FastV(keep=4, after=2),
    "fastv_published": sc.FastV(keep=4, after=2, published=True),
    "pyramiddrop_ahead": sc.PyramidDrop(keep=0.6, stages=(0.75, 0.85), published=True),
    "sparsevlm": sc.SparseVLM(keep=5, after=(24, 28)),
    "erase": sc.ERASE(keep=0.5),
    "ivcprune": sc.IVCPrune(keep=0.5),
    "dycoke": sc.DyCoke(keep=0.5),
}


class Elsewhere(torch.Tensor):
    """A tensor on a device that is not there."""

    @staticmethod
    def __new__(cls, held, device):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=device,
            requires_grad=held.requires_grad,
        )

    def __init__(self, held, device):
        self.held = held

    def tolist(self):
        return self.held.tolist()

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})


def computed(func, args, kwargs):
    """An operation on the CPU, its result on the device of its tensors or on the one it names."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    met = {x.device for x in tensors if x.ndim or x.device.type != "cpu"}
    if func in INDEXING:  # by indices on the CPU too
        met = {args[0].device, *(device for device in met if device.type != "cpu")}
    if func not in CROSSING and len(met) > 1:
        raise RuntimeError(f"{func}: tensors are on {sorted(map(str, met))}")
    where = args[0].device if func in CROSSING else next(iter(met), torch.device("cpu"))
    if kwargs.get("device") is not None:
        where, kwargs = torch.device(kwargs["device"]), {**kwargs, "device": torch.device("cpu")}
    args_held, kwargs_held = tree_map(
        lambda x: x.held if isinstance(x, Elsewhere) else x, (args, kwargs)
    )
    out = func(*args_held, **kwargs_held)
    if func._schema.is_mutable:
        return args[0]
    if where.type == "cpu":
        return out
    return tree_map(lambda x: Elsewhere(x, where) if isinstance(x, torch.Tensor) else x, out)


class Computing(TorchDispatchMode):
    """What begins with tensors of the CPU, or with none."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})


class Making(TorchFunctionMode):
    """Tensors of numbers, which PyTorch makes without asking the mode above."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func not in MAKING:
            return func(*args, **kwargs)
        device = kwargs.pop("device", None)
        if func is torch.Tensor.new_tensor:
            like, *args = args
            kwargs.setdefault("dtype", like.dtype)
            func, device = torch.tensor, device or like.device
        if isinstance(args[0], torch.Tensor):
            return args[0].to(device or args[0].device, kwargs.get("dtype") or args[0].dtype)
        numbers = tree_map(lambda x: x.tolist() if isinstance(x, torch.Tensor) else x, args[0])
        made = func(numbers, **kwargs)
        return made if device is None else made.to(device)


@contextmanager
def two_devices():
    """Within the block "lazy:0" and "lazy:1" are there."""
    with Making(), Computing():
        yield


def spread(model):
    """Blocks by turns on the two; what is around the decoder's on the second, the rest before."""
    found = {}

    def place(name, module, around):
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        found.update({f"{name}{each}": around for each, _ in own})
        for each, inner in module.named_children():
            blocks = [x for x in inner.modules() if isinstance(x, torch.nn.ModuleList)]
            if isinstance(inner, torch.nn.ModuleList):
                turns = {f"{name}{each}.{n}": f"lazy:{(n + 1) % 2}" for n in range(len(inner))}
                found.update(turns)
            elif blocks:
                decoder = each in ("language_model", "text_model")
                place(f"{name}{each}.", inner, "lazy:1" if decoder else around)
            elif [*inner.parameters(), *inner.buffers()]:
                found[f"{name}{each}"] = around

    place("", model, "lazy:0")
    return found


@pytest.fixture(scope="module", params=["llava", "qwen2_5_vl"])
def pair(request, cases):
    """A family, its model on one device, the same on two, and a prompt on the first of these."""
    case = cases[request.param]()
    plain, far = case.model("eager"), case.model("eager")
    with two_devices():
        dispatch_model(far, spread(far), main_device="lazy:0")
        moved = {name: x.to("lazy:0") for name, x in case.inputs().items()}
    return case, plain, far, moved


def test_these_devices_do_not_mix():
    with two_devices():
        first, second = torch.ones(2).to("lazy:0"), torch.arange(2, device="lazy:1")
        assert str((first * 2).device) == "lazy:0"
        assert torch.equal((first + second.to(first)).cpu(), torch.tensor([1.0, 2.0]))
        with pytest.raises(RuntimeError, match=r"tensors are on \['lazy:0', 'lazy:1'\]"):
            first + second
        with pytest.raises(RuntimeError, match="not supported"):
            first.numpy()


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_on_two_devices_as_on_one(pair, method):
    case, plain, far, moved = pair
    inputs = case.inputs()
    with attach(plain, method, case.processor()) as one:
        expected, tokens = plain(**inputs).logits, plain.generate(**inputs, **GREEDY)
    with two_devices(), attach(far, method, case.processor()) as two:
        logits, found = far(**moved).logits.cpu(), far.generate(**moved, **GREEDY).cpu()
    assert torch.equal(logits, expected)
    assert torch.equal(found, tokens)
    assert two.last.final_length == one.last.final_length


@pytest.mark.parametrize("offload", ["cpu", "disk"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_offloaded_weights(cases, tmp_path, name, offload):
    """Which are nowhere between calls, those of the input embeddings too."""
    case = cases[name]()
    plain, away, inputs = case.model(), case.model(), case.inputs()
    if offload == "cpu":
        cpu_offload(away, execution_device="cpu")
    else:
        disk_offload(away, tmp_path, execution_device="cpu")
    assert away.get_input_embeddings().weight.device.type == "meta"
    for method in METHODS.values():
        with attach(plain, method, case.processor()):
            expected, tokens = plain(**inputs).logits, plain.generate(**inputs, **GREEDY)
        with attach(away, method, case.processor()):
            assert torch.equal(away(**inputs).logits, expected), method
            assert torch.equal(away.generate(**inputs, **GREEDY), tokens), method
    small, same = (prune_inputs(x, inputs, METHODS["hiprune"]) for x in (away, plain))
    assert torch.equal(small["inputs_embeds"], same["inputs_embeds"])
