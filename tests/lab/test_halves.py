"""The parts of a model whose halves others trained, on a language model too small to be real."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from secateur.lab import Question  # noqa: E402

REAL = Path(__file__).parents[2] / "benchmarks" / "real"
if not REAL.exists():
    pytest.skip("benchmarks are not part of a release", allow_module_level=True)

WORDS: dict[str, int] = {}


def encode(text):
    return [WORDS.setdefault(word, len(WORDS) + 1) for word in text.split()]


@pytest.fixture
def halves(monkeypatch):
    monkeypatch.syspath_prepend(str(REAL))
    import halves

    yield halves
    for name in ("halves", "packages", "transformer"):
        sys.modules.pop(name)


def training(halves):
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.5,
    )
    model = transformers.LlamaForCausalLM(config)
    return halves.Training(model, encode, width=8, rate=1e-2)


def examples(halves, count=4):
    dice = np.random.default_rng(0)
    made = []
    for place in range(count):
        features = dice.normal(size=(6, 8)).astype(np.float32)
        features[:, 0] += 5 * (-1) ** place
        colour = ("red", "blue")[place % 2]
        asked = (Question("what colour is it?", colour, "colour", ()),)
        asked += (Question("is it there?", "yes", "existence", ()),)[: place % 3]
        made.append(halves.Shown(features, features[:, 0] ** 2, asked))
    return made


def test_pooling_takes_means_of_squares(halves):
    x = np.arange(36.0).reshape(36, 1)
    assert halves.pooled(x, 3)[:, 0].tolist() == [7.0, 10.0, 25.0, 28.0]


def test_answers_are_told_from_the_token_before_them(halves):
    said = halves.talk(examples(halves)[1].questions, encode)
    assert len(said.places) == 2
    assert [said.ids[place + 1] for place in said.places] == said.answers
    assert said.answers == [*encode("blue"), *encode("yes")]


def test_digits_are_answered_by_themselves(halves):
    asked = Question("how many stars are there?", "2", "count", ())
    assert halves.talk([asked], list).answers == ["2"]
    asked = Question("what colour is the star?", "red", "colour", ())
    assert halves.talk([asked], lambda text: [text]).answers == [" red"]


def test_pads_change_nothing(halves):
    made, some = training(halves), examples(halves, 2)
    talks = [halves.talk(each.questions, encode) for each in some]
    assert len(talks[0].ids) < len(talks[1].ids)
    visual = made.projector(torch.from_numpy(np.stack([each.features for each in some])))
    together = halves.told(made.model, visual, talks)
    alone = halves.told(made.model, visual[:1], talks[:1])
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-5)


def test_only_the_projector_learns_and_it_learns(halves):
    made, some = training(halves), examples(halves)
    before = [part.clone() for part in made.model.parameters()]
    losses = [made.learn(some) for _ in range(80)]
    assert losses[-1] < 0.2 * losses[0]
    assert all(map(torch.equal, before, made.model.parameters()))
    counts = halves.asked(made, some, [each.features for each in some])
    assert halves.share(counts) > 0.8
    swapped = halves.asked(made, some, [each.features for each in some[1:] + some[:1]])
    assert swapped["colour"][0] < counts["colour"][0]


def test_it_goes_on_where_it_stopped(halves):
    some = examples(halves)
    whole, first = training(halves), training(halves)
    losses = [whole.learn(some) for _ in range(4)]
    begun = [first.learn(some) for _ in range(2)]
    second = training(halves)
    second.load(first.state())
    assert begun + [second.learn(some) for _ in range(2)] == losses
    assert second.step == 4
