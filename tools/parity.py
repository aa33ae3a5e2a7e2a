"""Compares jaxmm with ``transformers``, family by family: logits, gradients, patches, and tensors there and back.

    python tools/parity.py --output=FILE.json --only="qwen3-vl,gemma3"

Each case is a tiny model of random weights, saved by ``transformers``, read by jaxmm, and run on documents with images:
by ``transformers`` one at a time, by jaxmm packed in one row. Pictures go through the family's image processor and
ours: "patches" is the largest difference in levels of 255. It needs the extra 'parity'.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from parity_batch import Document, alone, documents, packed
from parity_models import CASES, Case, case, make
from parity_patches import PATCHES, patch_difference

from jaxmm import command, monitor
from jaxmm.errors import UserError, nearest

FLAGS: command.Flags = {
    "output": ("", "JSON file to write"),
    "only": ("", "names of cases, comma between them"),
    "seed": (0, "of weights, documents and sizes"),
}
LOGITS, GRADIENTS = 1e-4, 1e-3  # what is allowed: logits absolutely, gradients relative to the largest of a tensor


class World(NamedTuple):
    """A case with its model on both sides.

    Attributes:
      model: of ``transformers``.
      params: ours, as a tree.
    """

    case: Case
    folder: Path
    family: Any
    model: Any
    params: Any
    spare: list[str]
    documents: list[Document]


def world(case: Case, folder: Path, seed: int = 0) -> World:
    """Makes the case's model, and reads it."""
    import jax

    from jaxmm import sharding
    from jaxmm.hf import folder as hf
    from jaxmm.hf import specs

    model = make(case, folder, seed)
    family = specs.family_of(hf.read_config(folder))
    where = sharding.replicated(sharding.make_mesh({"data": 1}, jax.devices()[:1]))
    read = hf.read_model(folder, family, lambda path, shape: where)
    made = documents(case, family.spec, np.random.default_rng(seed))
    return World(case, folder, family, model, hf.nested(read.params), read.spare, made)


def our_logits(world: World) -> np.ndarray:
    """(positions, vocabulary) of the packed row."""
    import jax

    from jaxmm.models.multimodal import Compute, make_model

    _, apply = make_model(world.family.spec)

    def run(params, batch):
        hidden_BTD, head_VD = apply(params, batch, Compute())
        return hidden_BTD[0] @ head_VD.T

    return np.asarray(jax.jit(run)(world.params, packed(world.documents, world.family.spec)))


def their_logits(world: World) -> list[np.ndarray]:
    """(positions, vocabulary) of each document."""
    import torch

    with torch.no_grad():
        return [
            world.model(**alone(document, world.case, world.family.spec)).logits[0].numpy()
            for document in world.documents
        ]


def logit_difference(world: World) -> float:
    """The largest difference of a logit, over all documents."""
    ours, at, worst = our_logits(world), 0, 0.0
    for theirs in their_logits(world):
        worst = max(worst, float(np.abs(ours[at : at + len(theirs)] - theirs).max()))
        at += len(theirs)
    return worst


def our_gradients(world: World) -> dict[str, np.ndarray]:
    """Of the summed loss at all targets, as the family's own tensors."""
    import jax

    from jaxmm.hf import folder as hf
    from jaxmm.loss import batch_loss
    from jaxmm.models.multimodal import Compute, make_model

    _, apply = make_model(world.family.spec)
    batch = packed(world.documents, world.family.spec)

    def loss(params):
        hidden_BTD, head_VD = apply(params, batch, Compute())
        return batch_loss(hidden_BTD, head_VD, batch, batch.targets_BT.shape[1], 0.0)[0]

    gradients = jax.device_get(jax.jit(jax.grad(loss))(world.params))
    return {tensor.name: tensor.make() for tensor in hf.outgoing(world.family, hf.flat(gradients), np.float32)}


def their_gradients(world: World) -> dict[str, np.ndarray]:
    """The same by ``transformers``, by the names in which it saves."""
    import torch

    world.model.zero_grad()
    batch, at = packed(world.documents, world.family.spec), 0
    for document in world.documents:
        logits = world.model(**alone(document, world.case, world.family.spec)).logits[0]
        targets = torch.tensor(batch.targets_BT[0, at : at + len(logits)], dtype=torch.long)
        weights = torch.tensor(batch.weights_BT[0, at : at + len(logits)])
        at += len(logits)
        losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        (losses * weights).sum().backward()
    from jaxmm.hf import names

    found = {}
    for name, parameter in world.model.named_parameters():
        if parameter.grad is not None:
            found[names.common_name(name)] = parameter.grad.numpy()
    return found


def gradient_difference(world: World) -> tuple[float, str]:
    """The largest difference of a gradient, relative to the largest of its tensor or a thousandth of all's."""
    from jaxmm.hf import names

    ours = {names.common_name(name): value for name, value in our_gradients(world).items()}
    theirs = their_gradients(world)
    floor = 1e-3 * max(float(np.abs(value).max()) for value in theirs.values())
    worst, where = 0.0, ""
    for name, value in ours.items():
        wanted = theirs.get(name, np.zeros_like(value))
        difference = float(np.abs(value - wanted).max() / max(float(np.abs(wanted).max()), floor))
        if difference >= worst:
            worst, where = difference, name
    unseen = [name for name in theirs if name not in ours and np.abs(theirs[name]).max() > 0]
    if unseen:
        raise ValueError(f"{world.case.name}: no gradient of ours for {unseen}")
    return worst, where


def bits_differ(world: World, folder: Path) -> list[str]:
    """Names of the tensors that are not the same to the bit after reading and writing; [] is what is wanted."""
    import safetensors.numpy

    from jaxmm.hf import folder as hf
    from jaxmm.hf import weights

    spare = folder / "spare.safetensors"
    hf.save_spare(world.folder, world.spare, spare)
    out = folder / "out"
    out.mkdir()
    weights.write(out, hf.outgoing(world.family, hf.flat(world.params), np.float32, spare), shard_bytes=1 << 16)
    ours: dict[str, np.ndarray] = {}
    for file in out.glob("*.safetensors"):
        ours |= safetensors.numpy.load_file(file)
    theirs = safetensors.numpy.load_file(world.folder / "model.safetensors")
    return sorted(
        name
        for name in ours.keys() | theirs.keys()
        if name not in ours or name not in theirs or ours[name].shape != theirs[name].shape
        or ours[name].tobytes() != theirs[name].tobytes()
    )  # fmt: skip


def measured(case: Case, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        found = world(case, Path(folder) / "theirs", seed)
        gradient, where = gradient_difference(found)
        return {
            "case": case.name,
            "family": case.family,
            "logits": logit_difference(found),
            "gradients": gradient,
            "worst_gradient": where,
            "patches": patch_difference(case, Path(folder) / "processor", seed=seed)[0],
            "bits_differ": bits_differ(found, Path(folder)),
        }


def main(argv: list[str]) -> int:
    """Prints the table; exit status 1 if a case is out of bounds."""
    args = command.parse(argv, FLAGS, config="none", about=__doc__ or "")
    known = [c.name for c in CASES]
    chosen = [name.strip() for name in args.only.split(",") if name.strip()] or known
    for name in chosen:
        if name not in known:
            raise UserError(f"--only: no case '{name}': there are {', '.join(known)}{nearest(name, known)}")
    rows = [measured(case(name), args.seed) for name in chosen]
    shown = [("case", "family", "logits", "gradients", "patches", "written again")]
    for row in rows:
        written = "to the bit" if not row["bits_differ"] else f"{len(row['bits_differ'])} differ"
        numbers = f"{row['logits']:.1e}", f"{row['gradients']:.1e}", f"{row['patches']:.0f}"
        shown.append((row["case"], row["family"], *numbers, written))
    widths = [max(len(line[i]) for line in shown) for i in range(len(shown[0]))]
    print("\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in shown))
    if args.output:
        monitor.write_json(Path(args.output), {"seed": args.seed, "cases": rows})
    bounds = {"logits": LOGITS, "gradients": GRADIENTS, "patches": PATCHES + 1e-3}
    out = [r["case"] for r in rows if r["bits_differ"] or any(r[key] > bound for key, bound in bounds.items())]
    if out:
        said = f"logits {LOGITS}, gradients {GRADIENTS}, patches {PATCHES}"
        raise UserError(f"out of bounds ({said}): {', '.join(out)}")
    return 0


if __name__ == "__main__":
    command.run(main)
