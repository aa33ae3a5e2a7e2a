"""Writes the golden files of tests/hf: what ``transformers`` answers, for tests that do not have it.

    python tools/make_goldens.py --output=DIR

A file has one tiny model's config, the names and shapes of its tensors, three documents and their logits. The tensors
themselves are drawn again from their names by ``RandomState``, whose numbers NumPy never changes. It needs the extra
'parity'; the same versions write the same bytes on the same machine.
"""

from __future__ import annotations

import json
import tempfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import parity
from parities.batch import Document, Picture, Words, alone
from parities.models import case, make
from parities.squares import Squares

from jaxmm import command

FOLDER = Path(__file__).resolve().parents[1] / "tests" / "hf" / "goldens"
FLAGS: command.Flags = {"output": (str(FOLDER), "folder to write")}
# The main case of each family, and what else reaches code of its own.
CASES = (
    "siglip2 + llama", "llama, yarn rope", "mistral, window", "qwen3", "lfm2", "llava, clip, two layers",
    "llava, siglip", "llava-next", "llava-onevision", "qwen2-vl", "qwen2.5-vl", "qwen3-vl", "qwen3.5", "gemma3",
    "internvl", "internvl, 6B's tower", "gemma4", "idefics3", "mistral3", "glm-4.1v", "paddleocr-vl", "paligemma2",
    "gemma4, experts", "gemma4, e2b",
)  # fmt: skip


class Golden(NamedTuple):
    """One file.

    Attributes:
      config: ``config.json``.
      listed: (name, shape, mean) of each tensor.
      logits: float32 (positions, vocabulary) of each document.
    """

    config: dict[str, Any]
    listed: list[tuple[str, list[int], float]]
    documents: list[Document]
    logits: list[np.ndarray]

    @property
    def row_break(self) -> int:
        """As in ``Picture``."""
        pictures = [part for document in self.documents for part in document if isinstance(part, Picture)]
        return pictures[0].row_break if pictures else 0

    def tensors(self) -> dict[str, np.ndarray]:
        """The weights, float32 by name."""
        found = {}
        for name, shape, mean in self.listed:
            noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
            found[name] = np.asarray(mean + 0.15 * noise, np.float32)
        return found


def path_of(name: str, folder: Path = FOLDER) -> Path:
    """The file of a case."""
    return folder / ("-".join("".join(c if c.isalnum() else " " for c in name).split()) + ".npz")


def save(golden: Golden, file: Path) -> None:
    parts, squares = dict[str, np.ndarray](), dict[str, tuple[int, ...]]()
    for i, document in enumerate(golden.documents):
        for j, part in enumerate(document):
            name = f"part{i}.{j}"
            parts[name] = part.ids.astype(np.uint8) if isinstance(part, Words) else part[0]
            if isinstance(part, Squares):
                squares[name] = part[1:]
        parts[f"logits{i}"] = golden.logits[i]
    lengths = [len(document) for document in golden.documents]
    about: dict[str, Any] = {"config": golden.config, "listed": golden.listed, "lengths": lengths}
    about |= {"row_break": row_break} if (row_break := golden.row_break) else {}
    about |= {"squares": squares} if squares else {}
    parts["about"] = np.frombuffer(json.dumps(about, sort_keys=True).encode(), np.uint8)
    np.savez_compressed(file, **parts)  # type: ignore[arg-type]


def load(file: Path) -> Golden:
    with np.load(file) as opened:
        parts = dict(opened)
    about = json.loads(parts["about"].tobytes())

    def part(name: str) -> Words | Picture | Squares:
        value = parts[name]
        if value.ndim == 4:
            return Squares(value, *about["squares"][name])
        return Picture(value, about.get("row_break", 0)) if value.ndim == 3 else Words(value.astype(np.int64))

    documents: list[Document] = [
        [part(f"part{i}.{j}") for j in range(length)] for i, length in enumerate(about["lengths"])
    ]
    logits = [parts[f"logits{i}"] for i in range(len(documents))]
    return Golden(about["config"], [tuple(entry) for entry in about["listed"]], documents, logits)


def made(name: str) -> Golden:
    """Runs the case's model by ``transformers``."""
    import safetensors.numpy
    import torch

    chosen = case(name)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        kind = type(make(chosen, folder))
        file = folder / "model.safetensors"
        listed = [
            (name, list(value.shape), float(value.ndim == 1 and value.mean() > 0.5 if value.ndim else np.sign(value)))
            for name, value in sorted(safetensors.numpy.load_file(file).items())
        ]
        config = json.loads((folder / "config.json").read_text())
        golden = Golden(config, listed, [], [])
        safetensors.numpy.save_file(golden.tensors(), file, metadata={"format": "pt"})
        model = kind.from_pretrained(folder, attn_implementation="eager").eval()
        world = parity.world(chosen, folder / "again")
        with torch.no_grad():
            logits = [
                model(**alone(document, chosen, world.layout.spec)).logits[0].numpy() for document in world.documents
            ]
        return golden._replace(documents=world.documents, logits=logits)


def main(argv: list[str]) -> int:
    """Writes all files."""
    args = command.parse(argv, FLAGS, config="none", about=__doc__ or "")
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    for name in CASES:
        save(made(name), path_of(name, folder))
    print(f"wrote {len(CASES)} files, {sum(path_of(name, folder).stat().st_size for name in CASES):,} bytes")
    return 0


if __name__ == "__main__":
    command.run(main)
