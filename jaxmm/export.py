"""Writes a run's model as a Hugging Face folder, which ``transformers`` loads and other programs serve.

python -m jaxmm.export --workdir=runs/base --output=hf_model

Of a run with adapters it writes these alone, as a PEFT folder; with --merge the whole model, the adapters in it.
"""

from __future__ import annotations

if __name__ == "__main__":
    from jaxmm.runtime import startup

    startup.end_on_interrupt()  # before large imports

import sys
import types
from pathlib import Path

import jax

from jaxmm import command, sharding
from jaxmm.checkpoints.base import kept
from jaxmm.checkpoints.checkpoint import Checkpoints
from jaxmm.checkpoints.chosen import chosen_step
from jaxmm.checkpoints.params import full_params
from jaxmm.errors import UserError, nearest
from jaxmm.exporting.adapters import export_adapters
from jaxmm.exporting.configs import write_config, write_generation
from jaxmm.exporting.output import DTYPES, whole_or_none
from jaxmm.exporting.parts import export_joined, export_parts
from jaxmm.exporting.processors import write_processor, write_tokenizer
from jaxmm.hf import folder as hf
from jaxmm.hf import weights
from jaxmm.hf.model_card import evaluation, model_card
from jaxmm.hf.pretrained import MODEL, SPARE, Pretrained
from jaxmm.models.adapters import merged
from jaxmm.models.multimodal import model_maps
from jaxmm.models.tree import flat
from jaxmm.recipe import read_recipe
from jaxmm.workdir.outgoing import outgoing
from jaxmm.workdir.place import is_url
from jaxmm.workdir.spool import name_of

SENT_BYTES = 1 << 30  # of a file of weights that goes to a store, through memory

FLAGS: command.Flags = {
    "workdir": ("", "folder of the run to export"),
    "output": ("", "folder to write, a path or a URL of a store; it must not exist, or be empty"),
    "step": ("", "checkpoint to export: its step, or best; the newest if left out"),
    "merge": (False, "of a run with adapters: write the whole model, the adapters merged into it"),
    "dtype": ("", "of the weights: float32, bfloat16 or float16; if left out, the base model's; of adapters float32"),
}


def main(argv: list[str]) -> int:
    """Exports one checkpoint."""
    args = command.parse(argv, FLAGS, config="workdir", about=__doc__ or "", urls=["output"])
    if not args.output:
        raise UserError("--output is missing: the folder to write")
    if args.dtype and args.dtype not in DTYPES:
        raise UserError(f"--dtype '{args.dtype}' is not one of {', '.join(DTYPES)}{nearest(args.dtype, DTYPES)}")
    with outgoing("--output", args.output) as output:
        return _export(args, output)


def _export(args: types.SimpleNamespace, output: Path) -> int:
    """Writes the folder that the flags ask for."""
    workdir = Path(args.workdir)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output {output} exists: give another folder, or delete it")
    recipe = read_recipe(args.config, workdir)
    if recipe.model.adapter and not args.merge:
        return export_adapters(recipe, workdir, output, args.dtype or "float32", args.step)
    if args.merge and not recipe.model.adapter:
        raise UserError(f"--merge: {name_of(workdir)} has no adapters that could be merged: leave it out")
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        step = chosen_step(workdir, args.step) or checkpoints.latest()
        mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
        params = merged(flat(full_params(workdir, recipe, mesh, step)), model_maps(recipe.model))
        if recipe.model.frozen:
            how = "as stored" if kept(workdir) else "as the run held them, for they are nowhere else"
            print(f"adapters learnt over weights held as {recipe.model.frozen.kind} are merged into these {how}")
        recipe = recipe._replace(model=recipe.model.base.plain)
        of_run = checkpoints.meta(step)["config"]
    base = base_dtype(recipe.start)
    dtype = args.dtype or base or "float32"
    if recipe.start and (line := recipe.start.family.cannot_run(recipe.start.config)):
        print(f"warning: {line}", file=sys.stderr)
    if not recipe.start and (recipe.model.audio or (recipe.model.vision and recipe.model.vision.frames > 1)):
        return export_parts(recipe, params, output, dtype, of_run, step or 0)
    if recipe.start and recipe.start.hearing:
        return export_joined(recipe, params, workdir, output, dtype, of_run, step or 0)
    with whole_or_none(output) as half:
        layout, config = write_config(recipe, half, dtype, bool(of_run["data"]["tokenizer"]))
        spare = workdir / MODEL / SPARE
        tensors = hf.outgoing(layout, params, DTYPES[dtype], spare)
        total = weights.write(half, tensors, SENT_BYTES if is_url(args.output) else weights.SHARD_BYTES)
        write_tokenizer(recipe, half)
        write_processor(recipe, workdir, half)
        write_generation(recipe, config, workdir, half)
        facts = model_card(
            name_of(workdir.resolve()).rpartition("/")[2], config["architectures"][0], of_run, step or 0, recipe.image
        )
        (half / "README.md").write_text("\n".join([*facts, *evaluation(workdir, step or 0), ""]))
    why = ", as the model has that it started from" if base and not args.dtype else ""
    print(f"wrote {output}: {total / 1e6:,.1f} MB of {dtype}{why}, as {config['architectures'][0]}, of step {step}")
    return 0


def base_dtype(start: Pretrained | None) -> str:
    """The dtype of the model that the run started from, '' for random weights and where its config does not say it."""
    config = start.config if start else {}
    said = [part.get("dtype") for part in (config, config.get("text_config", {}), config.get("vision_config", {}))]
    return next((str(dtype) for dtype in said if str(dtype) in DTYPES), "")


if __name__ == "__main__":
    command.run(main)
