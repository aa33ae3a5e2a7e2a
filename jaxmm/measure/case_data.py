"""What both sides of the comparison with PyTorch load while they step: JPEG files and texts, in one order.

A document is a photograph-like picture, decoded and resized to the model's square, then text. The rows and their order
are those of jaxmm's plan; each side reads files, decodes and packs by its own means, ahead of its step.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxmm.data.packing.lengths import Lengths
from jaxmm.data.packing.limits import Budgets
from jaxmm.data.packing.plan import Plan
from jaxmm.data.prepare.prepare import prepare
from jaxmm.data.prepare.prepared import Prepared
from jaxmm.data.sources import read_sources
from jaxmm.data.text.template import Markup, Template
from jaxmm.data.text.tokenizer import load_tokenizer
from jaxmm.image_spec import ImageSpec
from jaxmm.measure.case import PeerCase
from jaxmm.measure.pictures import natural

BATCHES = 8  # of different documents; then they come again, in another order
SIDES = (160, 481)  # pixels of a picture


def write(case: PeerCase, folder: Path, seed: int) -> None:
    """Writes the pictures, and ``documents.jsonl`` that names them with their texts."""
    rng = np.random.default_rng(seed)
    pictures = folder / "pictures"
    pictures.mkdir()
    lines = []
    for i in range(BATCHES * case.rows * case.documents):
        height, width = rng.integers(*SIDES, 2).tolist()
        natural(height, width, rng).save(pictures / f"{i}.jpg", "JPEG", quality=90)
        text = bytes(rng.integers(97, 123, case.text - 1, dtype=np.uint8)).decode()  # and a token that ends it
        parts = [{"type": "image", "image": f"pictures/{i}.jpg"}, {"type": "text", "text": text}]
        lines.append(json.dumps({"messages": [{"role": "document", "content": parts}]}))
    (folder / "documents.jsonl").write_text("\n".join(lines))


class Documents(NamedTuple):
    """The documents, read and planned: ``plan.batch(k)`` is the rows of batch k."""

    lengths: Lengths
    plan: Plan
    budgets: Budgets
    image: ImageSpec


def read(case: PeerCase, folder: Path, seed: int) -> Documents:
    """Prepares the documents, or finds them prepared, and plans their rows; JAX is not asked for a device."""
    image = ImageSpec(case.patch, 1, case.patch**2, case.side**2, side=case.side)
    (source,) = read_sources(str(folder / "documents.jsonl"), [])
    template = Template(load_tokenizer(""), "pretrain", markup=Markup("", ""))
    lengths = Lengths(Prepared(prepare(source, template, folder / "prepared")), image)
    budgets = Budgets(case.length, case.documents * case.grid**2, case.documents, case.targets)
    return Documents(lengths, Plan([lengths], [1.0], budgets, case.rows, seed), budgets, image)
