"""The parts of a model whose halves others trained, on a language model too small to be real."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from secateur.lab import Question  # noqa: E402
from secateur.lab.objects import Object  # noqa: E402

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
        vocab_size=128,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.5,
    )
    model = transformers.LlamaForCausalLM(config)
    return halves.Training(model, encode, width=8, rate=1e-2, places=6)


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


def test_answers_are_told_from_the_end_of_their_question(halves):
    said = halves.talk(examples(halves)[1].questions, encode)
    ends = [*encode("Answer:")] * 2
    assert [said.ids[place] for place in said.places] == ends
    assert said.answers == [*encode("blue"), *encode("yes")]
    assert [said.which[place] for place in said.places] == [1, 2]
    assert [said.offsets[place] for place in said.places] == [5, 4]


def test_numbers_are_answered_in_words(halves):
    asked = Question("how many stars are there?", "2", "count", ())
    assert halves.talk([asked], lambda text: [text]).answers == [" two"]
    asked = Question("what colour is the star?", "red", "colour", ())
    assert halves.talk([asked], lambda text: [text]).answers == [" red"]


def test_each_question_sees_the_picture_and_itself_alone(halves):
    made, some = training(halves), examples(halves, 3)
    talks = [halves.talk(each.questions, encode) for each in some]
    assert len(talks[0].ids) < len(talks[1].ids)
    visual = made.projector(torch.from_numpy(np.stack([each.features for each in some])))
    together = halves.told(made.model, visual, talks)
    asked = [(row, q) for row, each in enumerate(some) for q in each.questions]
    alone = torch.cat(
        [halves.told(made.model, visual[r : r + 1], [halves.talk([q], encode)]) for r, q in asked]
    )
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    count = len(halves.OPENING.split()) + 6
    assert visual.shape == (3, count, 32)


def test_a_token_begins_as_the_words_for_what_it_shows(halves):
    """Where channels say what is shown, least squares finds the words' rows."""
    made = training(halves)
    made.projector = halves.Projector(3, 64, made.words[encode("some words")])
    dice = np.random.default_rng(0)
    box = (0, 0, 24, 24)
    red = Object("star", "red", 0, 0, box, ())
    label = Object("word", "cat", 2, 2, box, ())
    features = dice.normal(size=(3, 64, 3)).astype(np.float32)
    covered = np.zeros((8, 8), bool)
    covered[:2, :2] = True
    for place in range(3):
        features[place, :, 0] = covered.ravel() & (place < 2)
    shown = [
        halves.Shown(x, x[:, 0], (), things)
        for x, things in zip(features, ((red,), (red, label), (label,)), strict=True)
    ]
    made.begin(shown)
    rows = made.projector(torch.from_numpy(features))[:, 2:] - made.projector.places
    word = made.words[[encode("red")[0], encode("star")[0]]].sum(0)
    error = (rows[0, 0] - word).norm() / word.norm()
    assert error < 0.1
    assert rows[2].norm(dim=-1).max() < 0.1 * word.norm()
    top = made.words[[encode("top")[0], encode("left")[0]]].sum(0)
    torch.testing.assert_close(made.projector.places[0], top)


def test_only_the_projector_learns_and_it_learns(halves):
    made, some = training(halves), examples(halves)
    before = [part.clone() for part in made.model.parameters()]
    losses = [made.learn(some) for _ in range(80)]
    assert losses[-1] < 0.2 * losses[0]
    assert all(map(torch.equal, before, made.model.parameters()))
    counts = halves.asked(made, some, some)
    assert halves.share(counts) > 0.8
    swapped = halves.asked(made, some, some[1:] + some[:1])
    assert swapped["colour"][0] < counts["colour"][0]
    first = halves.asked(made, some, some, lambda each: np.arange(3))
    assert first["colour"][1] == counts["colour"][1]
    assert halves.together(made.curve)["existence"][2] == 80 * 2


def test_it_goes_on_where_it_stopped(halves):
    some = examples(halves)
    whole, first = training(halves), training(halves)
    losses = [whole.learn(some) for _ in range(4)]
    begun = [first.learn(some) for _ in range(2)]
    second = training(halves)
    second.load(first.state())
    assert begun + [second.learn(some) for _ in range(2)] == losses
    assert second.step == 4
