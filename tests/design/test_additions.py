"""What an addition costs: each is made for real, and the files it touches are counted."""

from __future__ import annotations

METHODS = "secateur/core/methods/__init__.py"


def registered(house, file, name):
    """What is touched by a file of its own, the line that lists it, and its twin for mypy."""
    house.add(file, f"secateur/core/methods/{file}")
    module = file.removesuffix(".py")
    house.below(METHODS, "OWN = {", f'    "{name}": "{module}",')
    twin = "    from secateur.core.methods.{} import {} as {}"
    last = twin.format("vscan", "VScan", "VScan")
    house.below(METHODS, last, twin.format(module, name, name))
    return house.touched()


class TestMethods:
    """A file, a registering line; and a test, which here is what the copy is asked."""

    def test_an_image_method(self, house):
        touched = registered(house, "loudest.py", "Loudest")
        assert set(touched) == {METHODS, "secateur/core/methods/loudest.py"}
        assert touched[METHODS] == 2
        told = house.run(
            "import numpy as np, secateur as sc\n"
            "from secateur.core.methods import table\n"
            "x = np.array([[1.0, 0.0], [0.0, 3.0], [2.0, 0.0]])\n"
            "method = sc.method('loudest', keep=2)\n"
            "assert sc.Method.from_dict(method.to_dict()) == method\n"
            "row = table()[0]\n"
            "print(method.select(sc.Tokens(features=x)).indices.tolist(), row.title, row.needs)"
        )
        assert told == "[1, 2] Loudest features"

    def test_a_method_over_crops(self, house):
        touched = registered(house, "loudest_of_all.py", "LoudestOfAll")
        assert set(touched) == {METHODS, "secateur/core/methods/loudest_of_all.py"}
        assert touched[METHODS] == 2
        # An overview of four tokens and a crop of four, behind each a newline; two a picture.
        told = house.run(
            "import numpy as np, secateur as sc, torch\n"
            "from secateur.integrations.choosing import choose\n"
            "from secateur.integrations.encoded import Visual, whole\n"
            "x = torch.tensor([1.0, 2, 3, 4, 0, 5, 6, 7, 8, 0])[:, None]\n"
            "newlines = [(4, np.arange(4)), (9, np.arange(5, 9))]\n"
            "visual = Visual(modality='image', features=x, crops=2, separators=newlines,\n"
            "                parts=[whole((2, 2)), whole((2, 2), 5)])\n"
            "method = sc.method('loudest_of_all', keep=3)\n"
            "print(choose(method, visual, frozenset({'features'}), None).kept.tolist())"
        )
        assert told == "[2, 3, 4, 5, 6, 7, 8, 9]"

    def test_an_inside_method_that_folds_states(self, house):
        touched = registered(house, "halving.py", "Halving")
        assert set(touched) == {METHODS, "secateur/core/methods/halving.py"}
        assert touched[METHODS] == 2
        told = house.run(
            "import secateur as sc\n"
            "from secateur import lab\n"
            "model, processor = lab.load()\n"
            "scene = next(lab.scenes(1, seed=11))\n"
            "prompt = lab.prompt('what does the label at the top right say?')\n"
            "inputs = processor(images=[scene.image], text=[prompt], return_tensors='pt')\n"
            "with sc.attach(model, sc.method('halving'), processor) as attached:\n"
            "    model.generate(**inputs, max_new_tokens=2, do_sample=False)\n"
            "((after, left),) = attached.last.inside[0]\n"
            "layers = model.config.text_config.num_hidden_layers\n"
            "print(after == layers // 2, len(left), (left[1:] - left[:-1]).tolist() == [2] * 71)"
        )
        assert told == "True 72 True"


def test_an_objective_with_its_own_tracker(house):
    house.add("worst.py", "secateur/core/objectives/worst.py")
    assert set(house.touched()) == {"secateur/core/objectives/worst.py"}
    told = house.run(
        "import numpy as np, secateur as sc\n"
        "from secateur.core.objectives.worst import WorstServed\n"
        "from secateur.testing import assert_objective\n"
        "for seed in range(5):\n"
        "    f = WorstServed(np.random.default_rng(seed).random((8, 8)))\n"
        "    assert_objective(f)\n"
        "    own, asked = (sc.maximize(f, 3, algorithm=a) for a in ('incremental', 'naive'))\n"
        "    assert own.indices.tolist() == asked.indices.tolist()\n"
        "print(sc.maximize(WorstServed(np.eye(3)), 3).value)"
    )
    assert told == "1.0"


def test_an_input(house):
    """A row and a field; what observes it is a family's to say, and until one does a model that
    is asked for it says that it has none."""
    inputs = "secateur/core/inputs.py"
    row = '    "depth": Input("token", "(..., N)", "how far away it is (..., N)", "a sensor"),'
    house.below(inputs, "INPUTS: dict[str, Input] = {", row)
    house.below(inputs, "    frame_features: Array | None = None", "    depth: Array | None = None")
    assert house.touched() == {inputs: 2}
    told = house.run(
        "import numpy as np, secateur as sc\n"
        "from secateur.core.inputs import MissingInputError\n"
        "from secateur.integrations.choosing import wanted\n"
        "from secateur.integrations.families.llava import LLAVA\n"
        "class Nearest(sc.Method):\n"
        "    name = 'nearest'\n"
        "    needs = frozenset({'depth'})\n"
        "    def choose(self, tokens, k):\n"
        "        return sc.Selection.of(np.argsort(tokens.depth, axis=-1)[..., :k], tokens.size)\n"
        "x = np.ones((2, 3, 4))\n"
        "depth = np.array([[3.0, 1, 2], [1, 2, 3]])\n"
        "tokens = sc.Tokens(features=x, depth=depth)\n"
        "assert [row.depth.tolist() for row in tokens.rows()] == depth.tolist()\n"
        "def said(ask, kind=ValueError):\n"
        "    try:\n"
        "        ask()\n"
        "    except kind as error:\n"
        "        print(error)\n"
        "print(Nearest(keep=1).select(tokens).indices.tolist())\n"
        "said(lambda: sc.Tokens(features=x, depth=depth[:1]))\n"
        "said(lambda: Nearest(keep=1).select(tokens.with_(depth=depth * np.nan)))\n"
        "said(lambda: Nearest(keep=1).select(tokens.with_(depth=None)), MissingInputError)\n"
        "said(lambda: wanted(Nearest(keep=1), LLAVA, None))"
    ).splitlines()
    assert told[0] == "[[1], [0]]"
    assert told[1].startswith("depth: expected shape (2, 3)")
    assert told[2].startswith("depth: ")
    assert told[3] == "Nearest needs tokens.depth: how far away it is (..., N); a sensor"
    assert told[4].startswith("Nearest needs depth, which LLaVA-1.5 does not have")


def test_a_model_whose_geometry_is_known(house):
    """LLaVA-NeXT-Video reads images as LLaVA-NeXT does: a row."""
    models = "secateur/integrations/transformers/models.py"
    row = '    "LlavaNextVideoForConditionalGeneration": "llava_next:LlavaNext",'
    house.below(models, "FAMILIES = {", row)
    assert house.touched() == {models: 1}
    told = house.run(
        "import torch, secateur as sc, transformers as t\n"
        "torch.manual_seed(0)\n"
        "vision = t.CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=3,\n"
        "    num_attention_heads=4, image_size=56, patch_size=14)\n"
        "text = t.LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2,\n"
        "    num_attention_heads=4, vocab_size=128)\n"
        "crops = [[56, 112], [112, 56]]\n"
        "config = t.LlavaNextVideoConfig(vision_config=vision, text_config=text,\n"
        "    image_token_id=4, video_token_id=5, image_grid_pinpoints=crops)\n"
        "model = t.LlavaNextVideoForConditionalGeneration(config).eval()\n"
        "pixels, sizes = torch.randn(1, 3, 3, 56, 56), torch.tensor([[56, 112]])\n"
        "images = model.model.get_image_features(pixels, sizes, return_dict=True)\n"
        "(features,) = images.pooler_output\n"
        "ids = torch.tensor([[1, *[4] * len(features), 20, 21]])\n"
        "inputs = dict(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels,\n"
        "    image_sizes=sizes)\n"
        "stock = model.generate(**inputs, max_new_tokens=4, do_sample=False)\n"
        "with sc.attach(model, sc.DivPrune(keep=1.0)):\n"
        "    out = model.generate(**inputs, max_new_tokens=4, do_sample=False)\n"
        "assert torch.equal(out, stock)\n"
        "with sc.attach(model, sc.TopK(keep=4)) as attached:\n"
        "    model.generate(**inputs, max_new_tokens=4, do_sample=False)\n"
        "print(sum(part.budget for part in attached.last.pictures[0]))"
    )
    assert told == "12"
