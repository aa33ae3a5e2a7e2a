"""Compares jaxmm with ``transformers``, by family: logits, attention, gradients, patches, and tensors there and back.

    python tools/parity.py --output=FILE.json --only="qwen3-vl; gemma3"
    python tools/parity.py --draws=10 --seed=100

Each case is a tiny model of random weights, saved by ``transformers``, read by jaxmm, and run on documents with images:
by ``transformers`` one at a time, by jaxmm packed in one row. Pictures go through the family's image processor and
ours: "patches" is the largest difference in levels of 255. With --draws, sizes and features of all families are drawn
too, that many times, by the seed and those after it. It needs the extra 'parity'.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from parities.batch import Document, alone, documents, packed
from parities.draws import DRAWN
from parities.models import CASES, case, make
from parities.patches import PATCHES, patch_difference
from parities.tiny.parts import Case

from jaxmm import atomic, command
from jaxmm.errors import UserError, nearest
from jaxmm.models.tree import flat

FLAGS: command.Flags = {
    "output": ("", "JSON file to write"),
    "only": ("", "names of cases, semicolons between them"),
    "seed": (0, "of weights, documents and sizes"),
    "draws": (0, "in the place of the named cases, so many drawn models of each family that has draws"),
}
# What is allowed: logits and probabilities of attention absolutely, gradients relative to the largest of a tensor.
LOGITS, ATTENTION, GRADIENTS = 1e-4, 1e-5, 1e-3


NOT_SUPPORTED = (
    "other whole models, decoders and towers than those of jaxmm.hf (the error lists them)",
    "LLaVA's do_pad: an image is not padded there",
    "partial_rotary_factor but for Qwen3.5, GLM and Gemma 4, patches and position squares not square, feature layer 0",
    "pickled and quantised weights, code of a folder's own",
)


class World(NamedTuple):
    """A case with its model on both sides.

    Attributes:
      model: of ``transformers``.
      params: ours, as a tree.
    """

    case: Case
    folder: Path
    layout: Any
    model: Any
    params: Any
    spare: list[str]
    documents: list[Document]


def world(case: Case, folder: Path, seed: int = 0) -> World:
    """Makes the case's model, and reads it."""
    import jax

    from jaxmm import sharding
    from jaxmm.hf import folder as hf
    from jaxmm.models.tree import nested

    model = make(case, folder, seed)
    _, layout, _ = hf.read_whole(folder)
    where = sharding.replicated(sharding.make_mesh({"data": 1}, jax.devices()[:1]))
    read = hf.read_model(folder, layout, lambda path, shape: where)
    made = documents(
        layout.spec, np.random.default_rng(seed), case.grid(model.config), row_break=case.row_break,
        sizes=case.sizes(model.config), most=case.most(model.config),
    )  # fmt: skip
    return World(case, folder, layout, model, nested(read.params), read.spare, made)


class Pass(NamedTuple):
    """What a model makes of the documents.

    Attributes:
      logits: (positions, vocabulary) of each document.
      gradients: of the summed loss at all targets, by the common names of the family's own tensors.
    """

    logits: list[np.ndarray]
    gradients: dict[str, np.ndarray]


def ours(world: World) -> Pass:
    """All documents in one packed row."""
    import jax

    from jaxmm.hf import folder as hf
    from jaxmm.hf import names
    from jaxmm.models.multimodal import Compute, make_model
    from jaxmm.training.loss import batch_loss, from_hidden

    _, apply = make_model(world.layout.spec)
    batch, cap = packed(world.documents, world.layout.spec), world.layout.spec.decoder.logit_softcap

    def loss(params):
        hidden_BTD, head_VD = apply(params, batch, Compute())
        loss = batch_loss(from_hidden(hidden_BTD, head_VD), batch, batch.targets_BT.shape[1], 0.0, cap)[0]
        return loss, apply(params, hidden_BTD[0], method="logits")

    gradients, logits_TV = jax.device_get(jax.jit(jax.grad(loss, has_aux=True))(world.params))
    written = hf.outgoing(world.layout, flat(gradients), np.float32)
    lengths = np.bincount(batch.text.segments[0])[1:]
    return Pass(
        np.split(logits_TV[: lengths.sum()], np.cumsum(lengths)[:-1]),
        {names.common_name(tensor.name): tensor.make() for tensor in written},
    )


def theirs(world: World) -> Pass:
    """One document at a time."""
    import torch

    from jaxmm.hf import names

    world.model.zero_grad()
    batch, at, logits_of = packed(world.documents, world.layout.spec), 0, []
    for document in world.documents:
        logits = world.model(**alone(document, world.case, world.layout.spec)).logits[0]
        targets = torch.tensor(batch.targets_BT[0, at : at + len(logits)], dtype=torch.long)
        weights = torch.tensor(batch.weights_BT[0, at : at + len(logits)])
        at += len(logits)
        losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        (losses * weights).sum().backward()
        logits_of.append(logits.detach().numpy())
    parameters = {names.common_name(name): parameter for name, parameter in world.model.named_parameters()}
    gradients = {name: p.grad.numpy() for name, p in parameters.items() if p.grad is not None}
    return Pass(logits_of, as_released(gradients, [rule for rule in world.layout.rules if ".experts." in rule.name]))


def as_released(arrays: dict[str, np.ndarray], rules: list[Any]) -> dict[str, np.ndarray]:
    """Arrays of the classes' parameters by the names of releases, which by these rules have the experts of a layer as
    the classes do, the other way round, or one by one."""
    released, transform = {}, rules[0].transform if rules else ""
    written = {rule.paths[0].split(".")[-2]: rule.name.rpartition("experts.{j}.")[2] for rule in rules}
    for name, array in arrays.items():
        above, experts, kind = name.rpartition(".experts.")
        if not experts or transform == "one above the other":
            released[name] = array
        elif transform == "side by side":
            released[name] = array.swapaxes(1, 2)
        else:
            fused = np.split(array, 2, axis=1) if "up" in kind else []
            parts = {"gate": fused[0], "up": fused[1]} if fused else {"down": array}
            for part, of_experts in parts.items():
                released |= {f"{above}.experts.{j}.{written[part]}": one for j, one in enumerate(of_experts)}
    return released


class Difference(NamedTuple):
    """The largest differences: of a logit, and of a gradient, relative to the largest of its tensor or a thousandth of
    all's; and the name of that tensor."""

    logits: float
    gradients: float
    tensor: str


def difference(world: World) -> Difference:
    our, their = ours(world), theirs(world)
    logits = float(np.max([np.abs(a - b).max() for a, b in zip(our.logits, their.logits, strict=True)]))
    floor = 1e-3 * max(float(np.abs(value).max()) for value in their.gradients.values())
    worst, where = 0.0, ""
    for name, value in our.gradients.items():
        wanted = their.gradients.get(name, np.zeros_like(value))
        apart = float(np.abs(value - wanted).max() / max(float(np.abs(wanted).max()), floor))
        if not apart <= worst:  # not a number is worse than any
            worst, where = apart, name
    unseen = [name for name, value in their.gradients.items() if name not in our.gradients and np.abs(value).max() > 0]
    if unseen:
        raise ValueError(f"{world.case.name}: no gradient of ours for {unseen}")
    return Difference(logits, worst, where)


def attention_difference(world: World) -> float:
    """The largest difference of a probability of attention: of every layer, head, position and key of the documents."""
    import jax
    import torch

    from jaxmm.models.multimodal import Compute
    from jaxmm.models.probe import Queries
    from jaxmm.monitor.attention import Probe

    batch = packed(world.documents, world.layout.spec)
    segments = batch.text.segments[0]
    everywhere, nothing = np.arange(len(segments), dtype=np.int32)[None], np.zeros((1, len(segments)), np.int32)
    queries = Queries(everywhere, np.where(segments > 0, 0, -1)[None], nothing, nothing, nothing, everywhere)
    maps_LHTT = jax.device_get(Probe(world.layout.spec, Compute())(world.params, batch, queries).maps_LBHQC)[:, 0]
    world.model.set_attn_implementation("eager")
    worst = 0.0
    for number, document in enumerate(world.documents, start=1):
        here = segments == number
        with torch.no_grad():
            said = world.model(**alone(document, world.case, world.layout.spec), output_attentions=True).attentions
        wanted_LHTT = np.stack([layer[0].numpy() for layer in said])
        worst = max(worst, float(np.abs(maps_LHTT[:, :, here][..., here] - wanted_LHTT).max()))
    return worst


def bits_differ(world: World, folder: Path) -> list[str]:
    """Names of the tensors that are not the same to the bit after reading and writing; [] is what is wanted."""
    import safetensors.numpy

    from jaxmm.hf import folder as hf
    from jaxmm.hf import weights

    spare = folder / "spare.safetensors"
    hf.save_spare(world.folder, world.spare, spare)
    out = folder / "out"
    out.mkdir()
    weights.write(out, hf.outgoing(world.layout, flat(world.params), np.float32, spare), shard_bytes=1 << 16)
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
        both = world(case, Path(folder) / "theirs", seed)
        apart = difference(both)
        return {
            "case": case.name,
            "family": case.family,
            "seed": seed,
            "logits": apart.logits,
            "attention": attention_difference(both),
            "gradients": apart.gradients,
            "worst_gradient": apart.tensor,
            "patches": patch_difference(case, Path(folder) / "processor", seed=seed)[0],
            "bits_differ": bits_differ(both, Path(folder)),
        }


def main(argv: list[str]) -> int:
    """Prints the table; exit status 1 if a case is out of bounds."""
    args = command.parse(argv, FLAGS, config="none", about=__doc__ or "")
    cases = DRAWN if args.draws else CASES
    known = [c.name for c in cases]
    chosen = [name.strip() for name in args.only.split(";") if name.strip()] or known
    for name in chosen:
        if name not in known:
            raise UserError(f"--only: no case '{name}': there are {'; '.join(known)}{nearest(name, known)}")
    for flag, value in (("seed", args.seed), ("draws", args.draws)):
        if value < 0:
            raise UserError(f"--{flag} is {value}: it must be 0 or above")
    seeds = range(args.seed, args.seed + max(args.draws, 1))
    rows = list[dict[str, Any]]()
    for name in chosen:
        for seed in seeds:
            print(f"{name} by {seed}", file=sys.stderr, flush=True)
            rows.append(measured(case(name, cases), seed))
    shown = [("case", "family", "logits", "attention", "gradients", "patches", "written again")]
    for row in rows:
        written = "to the bit" if not row["bits_differ"] else f"{len(row['bits_differ'])} differ"
        numbers = (*(f"{row[key]:.1e}" for key in ("logits", "attention", "gradients")), f"{row['patches']:.0f}")
        named = f"{row['case']} by {row['seed']}" if args.draws else row["case"]
        shown.append((named, row["family"], *numbers, written))
    widths = [max(len(line[i]) for line in shown) for i in range(len(shown[0]))]
    print("\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in shown))
    print("\n".join(["", "not supported:", *(f"- {line}" for line in NOT_SUPPORTED)]))
    if args.output:
        atomic.write_json(Path(args.output), {"seed": args.seed, "cases": rows})
    bounds = {"logits": LOGITS, "attention": ATTENTION, "gradients": GRADIENTS, "patches": PATCHES + 1e-3}
    out = [
        f"{r['case']} by {r['seed']}"
        for r in rows
        if r["bits_differ"] or not all(r[key] <= bound for key, bound in bounds.items())
    ]
    if out:  # NaN is out too
        said = f"logits {LOGITS}, attention {ATTENTION}, gradients {GRADIENTS}, patches {PATCHES}"
        raise UserError(f"out of bounds ({said}): {', '.join(out)}")
    return 0


if __name__ == "__main__":
    command.run(main)
