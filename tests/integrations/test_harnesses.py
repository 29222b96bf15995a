"""lmms-eval and VLMEvalKit get pruned models through their own registries.

Neither is installed with the tests: stand-ins have the signatures that the adapters meet. Where
lmms-eval is installed, its own classes and registry run as well.
"""

import functools
import importlib
import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

import pytest

pytest.importorskip("torch", reason="the lab's model needs PyTorch")
pytest.importorskip("transformers", reason="the lab's model needs transformers")

from PIL import Image

import secateur as sc
from secateur import lab
from secateur.integrations import lmms_eval as ours
from secateur.integrations import vlmevalkit

TOKENS = 144
FEW = sc.Random(keep=4)
WORDS = 8


class Broken(sc.Random):
    """Fails on every image."""

    def choose(self, tokens, k):
        raise ValueError("broken on purpose")


@pytest.fixture(scope="module")
def docs():
    drawn = lab.scenes(8, lab.HELD_OUT, kind="colour")
    return [
        {"image": Image.fromarray(scene.image), "question": scene.questions[0].text}
        for scene in drawn
    ]


@pytest.fixture(scope="module")
def told(docs):
    """What the lab's model says: with all tokens, and with few by attaching directly."""
    model, processor = lab.load()

    def ask():
        return [lab.answer(model, processor, doc["image"], doc["question"]) for doc in docs]

    with sc.attach(model, FEW, processor):
        few = ask()
    return SimpleNamespace(stock=ask(), few=few)


class Harness:
    """Has what lmms-eval's ``LlavaHf`` has, errors in `generate` becoming empty answers too."""

    is_simple = True

    def __init__(self, pretrained="lab", device="cuda", batch_size=1, **kwargs):
        assert kwargs == {}, f"Unexpected kwargs: {kwargs}"
        assert (pretrained, device) == ("lab", "cpu")
        self._model, self._image_processor = lab.load(device=device)

    @property
    def model(self):
        return self._model

    def generate_until(self, requests):
        said = []
        for doc in requests:
            try:
                text = lab.answer(self.model, self._image_processor, doc["image"], doc["question"])
            except Exception:
                text = ""
            said.append(text)
        return said


@dataclass
class Manifest:
    model_id: str
    simple_class_path: str
    chat_class_path: str


@pytest.fixture
def harness(monkeypatch):
    """A stand-in for lmms-eval; returns what its registry does with a name."""
    package, models, registry = (
        ModuleType(f"lmms_eval{rest}") for rest in ("", ".models", ".models.registry_v2")
    )
    chat = type("Chat", (Harness,), {"is_simple": False})
    models.get_model = lambda name, force_simple=False: Harness if force_simple else chat
    registry.ModelManifest = Manifest
    for module in (package, models, registry):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    known = dict(vars(ours))

    def resolve(name, kind):
        (manifest,) = (each for each in ours.manifests() if each.model_id == name)
        where, _, which = getattr(manifest, f"{kind}_class_path").rpartition(".")
        return getattr(importlib.import_module(where), which)

    yield resolve
    for name in vars(ours).keys() - known.keys():
        delattr(ours, name)


def built(resolve, **model_args):
    return resolve("secateur_llava_hf", "simple")(
        pretrained="lab", device="cpu", **{"secateur": "random", "keep": 4, **model_args}
    )


def test_every_manifest_names_a_class_of_its_kind(harness):
    names = [manifest.model_id for manifest in ours.manifests()]
    assert names == ["secateur_llava_hf", "secateur_qwen2_5_vl", "secateur_qwen3_vl"]
    for name in names:
        assert harness(name, "simple").is_simple
        assert not harness(name, "chat").is_simple
    assert harness("secateur_qwen2_5_vl", "chat") is harness("secateur_qwen2_5_vl", "chat")
    with pytest.raises(AttributeError, match="llava_hf_video"):
        ours.llava_hf_video  # noqa: B018


def test_answers_of_lmms_eval_s_class_are_those_of_attaching(harness, docs, told):
    lm = built(harness)
    assert lm.generate_until(docs) == told.few != told.stock
    assert [before - after for before, after in lm.lengths] == [TOKENS - 4] * len(docs)


def test_an_error_ends_the_run_and_is_no_empty_answer(harness, docs):
    lm = built(harness)
    lm.attachment.method = Broken(keep=4)
    with pytest.raises(RuntimeError, match=r"^secateur: broken on purpose$"):
        lm.generate_until(docs)
    lm.attachment.detach()
    assert "generate" not in vars(lm.model)
    assert lm.lengths == []


def test_a_text_encoder_by_name(harness, docs, tmp_path):
    model, tokenizer = lab.text_encoder()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    lm = built(harness, secateur="eadp", keep=16, text_encoder=str(tmp_path))
    plain, processor = lab.load()
    with sc.attach(plain, sc.EADP(keep=16), processor, (model, tokenizer)) as attachment:
        for doc in docs[:2]:
            lm.generate_until([doc])
            lab.answer(plain, processor, doc["image"], doc["question"])
            assert lm.attachment.last.kept[0].tolist() == attachment.last.kept[0].tolist()


def test_loglikelihood_is_refused(harness):
    with pytest.raises(NotImplementedError, match="take a task of output_type generate_until"):
        built(harness).loglikelihood([])


def test_model_arguments_become_a_method_and_the_rest():
    given = {"pretrained": "x", "secateur": "erase", "keep": 0.25, "device_map": "auto"}
    method, rest = ours.read({**given, "thresholds": "[2.5]", "ratios": "[0.5, 0.25]"})
    assert method == sc.ERASE(keep=0.25, thresholds=(2.5,), ratios=(0.5, 0.25))
    assert rest == {"pretrained": "x", "device_map": "auto"}
    whole = '{"method": "mixture", "keep": 9, "diversity": {"method": "fps", "keep": 9}}'
    assert ours.read({"secateur": whole})[0] == sc.Mixture(keep=9, diversity=sc.FPS(keep=9))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"keep": 64}, r"secateur: expected one of .*eadp.*; got None; write for example"),
        ({"secateur": "eadpp"}, r"got 'eadpp'; write for example secateur=eadp,keep=64"),
        ({"secateur": "topk", "keep": 0}, r"secateur: keep: .*; write for example"),
        ({"secateur": "{oops"}, r"secateur: Expecting property name"),
    ],
)
def test_arguments_that_make_no_method_are_told_in_one_line(given, said):
    with pytest.raises(ValueError, match=said) as caught:
        ours.read(given)
    assert "\n" not in str(caught.value)


class Conversing:
    """Has what VLMEvalKit's ``LLaVA_Next`` has."""

    def __init__(self, model_path, **kwargs):
        self.kwargs = kwargs
        self.model, self.processor = lab.load()
        if kwargs.get("use_vllm"):
            del self.model

    def generate(self, message, dataset=None):
        (image,) = (Image.open(each["value"]) for each in message if each["type"] == "image")
        (text,) = (each["value"] for each in message if each["type"] == "text")
        return lab.answer(self.model, self.processor, image, text)


@pytest.fixture
def registry(monkeypatch):
    """A stand-in for VLMEvalKit: its registry."""
    config = ModuleType("vlmeval.config")
    config.supported_VLM = {"llava_next_vicuna_7b": functools.partial(Conversing, model_path="lab")}
    monkeypatch.setitem(sys.modules, "vlmeval", ModuleType("vlmeval"))
    monkeypatch.setitem(sys.modules, "vlmeval.config", config)
    return config.supported_VLM


def test_a_registered_twin_answers_as_attaching_does(registry, docs, told, tmp_path):
    messages = []
    for number, doc in enumerate(docs):
        path = tmp_path / f"{number}.png"
        doc["image"].save(path)
        texts = {"type": "text", "value": doc["question"]}
        messages.append([{"type": "image", "value": str(path)}, texts])
    name = vlmevalkit.register("llava_next_vicuna_7b", FEW)
    assert name == "llava_next_vicuna_7b-random-4"
    twin, stock = registry[name](verbose=True), registry["llava_next_vicuna_7b"]()
    assert twin.kwargs == {"verbose": True}
    assert [twin.generate(each, dataset="POPE") for each in messages] == told.few
    assert [stock.generate(each, dataset="POPE") for each in messages] == told.stock
    before, after = twin.secateur.last.prompt_length
    assert before - after == TOKENS - 4


def test_what_cannot_be_registered_is_told_in_one_line(registry):
    with pytest.raises(ValueError, match=r"^name: .*'llava_next_7b'; it has llava_next_vicuna_7b"):
        vlmevalkit.register("llava_next_7b", FEW)
    name = vlmevalkit.register("llava_next_vicuna_7b", FEW, as_name="few")
    with pytest.raises(ValueError, match=r"^as_name: 'few' is registered already; give another$"):
        vlmevalkit.register("llava_next_vicuna_7b", FEW, as_name=name)
    with pytest.raises(ValueError, match=r"^Conversing keeps no model of transformers; .* vLLM"):
        registry[name](use_vllm=True)


@pytest.fixture
def installed():
    return pytest.importorskip("lmms_eval.models", reason="lmms-eval is not installed")


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", ["simple", "chat"])
def test_lmms_eval_itself_answers_as_attaching_does(installed, kind, docs, told, tmp_path):
    from lmms_eval.api.instance import Instance

    model, processor = lab.load()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    made = installed.get_model("secateur_llava_hf", force_simple=kind == "simple")
    lm = made.create_from_arg_string(
        f"pretrained={tmp_path},secateur=random,keep=4,dtype=float32,device_map=cpu",
        {"device": "cpu", "batch_size": 1},
    )
    lm.task_dict = {"lab": {"test": docs}}

    def messages(doc):
        text = {"type": "text", "text": doc["question"]}
        return [{"role": "user", "content": [{"type": "image", "url": doc["image"]}, text]}]

    requests = []
    for number, doc in enumerate(docs):
        generation = {"max_new_tokens": WORDS}
        where = (number, "lab", "test")
        if kind == "simple":
            asked = f"<image>{doc['question']}"
            arguments = (asked, generation, lambda doc: [doc["image"]], *where)
        else:
            arguments = (doc["question"], messages, generation, *where)
        metadata = {"task": "lab", "doc_id": number, "repeats": 1}
        requests.append(Instance("generate_until", arguments, 0, metadata))
    said = [getattr(each, "text", each).strip() for each in lm.generate_until(requests)]
    assert said == told.few
    assert [before - after for before, after in lm.lengths] == [TOKENS - 4] * len(docs)
    lm.attachment.method = Broken(keep=4)
    with pytest.raises(RuntimeError, match=r"^secateur: broken on purpose$"):
        lm.generate_until(requests)
