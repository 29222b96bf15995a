"""Run by `packages.convert` in an environment with TensorFlow, RDKit, ONNX and Pillow.

``decoder`` and ``transformer`` turn weights into arrays; ``molecules`` draws molecules and encodes
the pictures; ``compare`` says how much two SMILES have in common. Each is done once and kept.
"""

from __future__ import annotations

import io
import json
import pickle
import sys
import time
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

SIDE = 512
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ELEMENTS = {"C", "N", "O", "S", "P", "F", "Cl", "Br", "I"}
SIZES = ((6, 11), (12, 15), (16, 19), (20, 24), (25, 31), (32, 45))
"""Heavy atoms of a molecule, from and to; as many molecules are drawn of each."""


class _Words:
    """Stands for Keras's tokenizer, of which only the dictionaries are wanted."""


class _Unpickler(pickle.Unpickler):
    """Knows what a tokenizer is made of, and refuses anything else that a file might call."""

    known: ClassVar = {
        "keras.preprocessing.text.Tokenizer": _Words,
        "collections.OrderedDict": OrderedDict,
        "collections.defaultdict": defaultdict,
        "builtins.int": int,
    }

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in self.known:
            raise pickle.UnpicklingError(f"{module}.{name} is not needed for words")
        return self.known[f"{module}.{name}"]


def decoder(model: str, folder: str) -> None:
    """The decoder's 159 arrays in their order, and its words."""
    import tensorflow as tf

    with (Path(model) / "assets" / "tokenizer_SMILES.pkl").open("rb") as file:
        words = _Unpickler(file).load()
    told = {"index_word": words.index_word, "word_index": words.word_index}
    (Path(folder) / "words.json").write_text(json.dumps(told))
    stored = tf.train.load_checkpoint(str(Path(model) / "variables" / "variables"))
    name = "DECIMER/transformer/variables/{}/.ATTRIBUTES/VARIABLE_VALUE"
    np.savez(
        Path(folder) / "decoder.npz",
        **{f"v{i}": stored.get_tensor(name.format(i)) for i in range(159)},
    )


def transformer(model: str, path: str) -> None:
    """Named arrays as they are; the products, which have no names, in the order of the graph."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(model).graph
    known = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    products = [
        known[name]
        for node in graph.node
        if node.op_type == "MatMul"
        for name in node.input
        if name in known and known[name].ndim == 2
    ]
    named = {name: x for name, x in known.items() if x.dtype == np.float32 and "::" not in name}
    positions = [x for x in known.values() if x.shape == (1, 1369, 384)]
    first = [x for name, x in known.items() if name == "onnx::Concat_1957"]
    if len(products) != 72 or len(positions) != 1 or len(first) != 1:
        raise SystemExit("benchmarks/real: the transformer's graph is not the one expected")
    np.savez(
        path,
        **{f"product{i}": x for i, x in enumerate(products)},
        **named,
        positions=positions[0],
        first_position=first[0],
    )


def _listed() -> list[str]:
    """SMILES of the NCI's first 5000 that RDKit carries, canonical and without stereo."""
    from rdkit import Chem, RDConfig, RDLogger

    RDLogger.DisableLog("rdApp.*")
    found = {}
    for line in (Path(RDConfig.RDDataDir) / "NCI" / "first_5K.smi").read_text().splitlines():
        molecule = Chem.MolFromSmiles(line.split()[0]) if line.split() else None
        if molecule is None or {a.GetSymbol() for a in molecule.GetAtoms()} - ELEMENTS:
            continue
        text = Chem.MolToSmiles(molecule, isomericSmiles=False)
        if "." not in text and len(text) <= 90:
            found[text] = molecule.GetNumHeavyAtoms()
    dice = np.random.default_rng(0)
    by_size = [
        [text for text, atoms in found.items() if low <= atoms <= high] for low, high in SIZES
    ]
    shuffled = [[texts[i] for i in dice.permutation(len(texts))] for texts in by_size]
    # One of each size in turn, so that any run of molecules has all sizes.
    return [text for row in zip(*shuffled, strict=False) for text in row]


def _drawn(text: str, seed: int) -> tuple[Any, dict[str, Any]]:
    """A picture of a molecule in a style that its seed says."""
    from PIL import Image
    from rdkit import Chem
    from rdkit.Chem.Draw import rdMolDraw2D

    dice = np.random.default_rng([1, seed])
    style = {
        "side": int(dice.choice([300, 400, 500, 700])),
        "line": float(dice.choice([1.0, 1.5, 2.0, 3.0])),
        "turned": float(dice.choice([0, 0, 30, 90, 200])),
        "grey": bool(dice.random() < 0.5),
    }
    drawing = rdMolDraw2D.MolDraw2DCairo(style["side"], style["side"])
    options = drawing.drawOptions()
    options.bondLineWidth, options.rotate = style["line"], style["turned"]
    if style["grey"]:
        options.useBWAtomPalette()
    molecule = Chem.MolFromSmiles(text)
    rdMolDraw2D.PrepareAndDrawMolecule(drawing, molecule)
    drawing.FinishDrawing()
    style["atoms"] = molecule.GetNumHeavyAtoms()
    style["rings"] = molecule.GetRingInfo().NumRings()
    return Image.open(io.BytesIO(drawing.GetDrawingText())).convert("RGB"), style


def _prepared(image: Any) -> np.ndarray:
    """The picture as DECIMER wants it: stretched, trimmed to the drawing, on a white square."""
    import tensorflow as tf
    from PIL import Image, ImageEnhance

    pixels = np.asarray(image)
    low, high = int(pixels.min()), int(pixels.max())
    table = np.zeros(256, np.uint8)
    table[low : high + 1] = np.linspace(0, 255, high - low + 1)
    image = ImageEnhance.Contrast(Image.fromarray(table[pixels]).convert("L")).enhance(1.8)
    if max(image.size) < SIDE:
        scale = SIDE / max(image.size)
        size = tuple(int(side * scale) for side in image.size)
        image = image.resize(size, Image.LANCZOS)
    pixels = np.asarray(image)
    rows = np.flatnonzero((pixels <= 200).any(axis=1))
    columns = np.flatnonzero((pixels <= 200).any(axis=0))
    drawing = Image.fromarray(pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    side = max(SIDE, int(1.2 * max(drawing.size)))
    square = Image.new("L", (side, side), "white")
    square.paste(drawing, tuple((side - each) // 2 for each in drawing.size))
    image = ImageEnhance.Brightness(square).enhance(1.6).convert("RGB")
    small = tf.image.resize(np.asarray(image), (SIDE, SIDE), method="gaussian", antialias=True)
    return (np.asarray(small) / 255.0 - np.float32(MEAN)) / np.float32(SPREAD)


def molecules(model: str, folder: str, count: str, chunk: str) -> None:
    """Visual tokens (256, 512) of the first `count` molecules, `chunk` in a file."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    texts, size, began = _listed()[: int(count)], int(chunk), time.time()
    if len(texts) < int(count):
        raise SystemExit(f"benchmarks/real: RDKit carries {len(texts)} such molecules, not {count}")
    loaded = None
    for start in range(0, len(texts), size):
        path = Path(folder) / f"tokens-{start:05d}.npz"
        if path.exists():
            continue
        loaded = tf.saved_model.load(model) if loaded is None else loaded
        tokens, styles = [], []
        for place in range(start, min(start + size, len(texts))):
            image, style = _drawn(texts[place], place)
            encoded = loaded.DECIMER.encoder(_prepared(image)[None], training=False)
            tokens.append(np.asarray(encoded, np.float32)[0].reshape(256, 512))
            styles.append({"smiles": texts[place], **style})
        part = path.with_suffix(".part.npz")
        np.savez(part, tokens=np.stack(tokens), styles=json.dumps(styles))
        part.rename(path)
        done = start + len(tokens)
        print(f"encoded {done} of {len(texts)} molecules, {time.time() - began:.0f} s", flush=True)


def compare(asked: str, answer: str) -> None:
    """For pairs of SMILES, drawn and read: whether they are one molecule, and Tanimoto."""
    from rdkit import Chem, DataStructs, RDLogger
    from rdkit.Chem import rdFingerprintGenerator

    RDLogger.DisableLog("rdApp.*")
    prints = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    known: dict[str, Any] = {}

    def seen(text: str) -> Any:
        if text not in known:
            molecule = Chem.MolFromSmiles(text) if text else None
            known[text] = None
            if molecule is not None:
                plain = Chem.MolToSmiles(molecule, isomericSmiles=False)
                known[text] = plain, prints.GetFingerprint(Chem.MolFromSmiles(plain) or molecule)
        return known[text]

    found = []
    for drawn, read in json.loads(Path(asked).read_text()):
        one, other = seen(drawn), seen(read)
        same = other is not None and one[0] == other[0]
        alike = 0.0 if other is None else DataStructs.TanimotoSimilarity(one[1], other[1])
        found.append((same, alike))
    Path(answer).write_text(json.dumps(found))


if __name__ == "__main__":
    parts = {each.__name__: each for each in (decoder, transformer, molecules, compare)}
    parts[sys.argv[1]](*sys.argv[2:])
