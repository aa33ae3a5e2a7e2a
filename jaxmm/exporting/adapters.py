"""The adapters of a run alone, as a PEFT folder over the model that the run started from."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import jax

from jaxmm import sharding
from jaxmm.checkpoints.base import found_again, kept
from jaxmm.checkpoints.checkpoint import Checkpoints
from jaxmm.checkpoints.chosen import chosen_step
from jaxmm.checkpoints.params import own_params
from jaxmm.errors import UserError
from jaxmm.exporting.output import DTYPES, whole_or_none
from jaxmm.exporting.processors import write_processor, write_tokenizer
from jaxmm.hf import folder as hf
from jaxmm.hf.init_from import parse, run_and_step
from jaxmm.hf.model_card import evaluation, model_card
from jaxmm.hf.peft_write import peft_of
from jaxmm.models.adapters import is_factor
from jaxmm.models.tree import flat
from jaxmm.recipe import Recipe
from jaxmm.workdir.spool import name_of


def export_adapters(recipe: Recipe, workdir: Path, output: Path, dtype: str, step_asked: str) -> int:
    """Exports the adapters of a run alone, as a PEFT folder over the model that the run started from."""
    folder = _beneath(recipe, workdir)
    model, start = recipe.model, recipe.start
    assert start is not None
    assert model.adapter is not None
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        step = chosen_step(workdir, step_asked) or checkpoints.latest()
        mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
        own, _ = own_params(workdir, recipe, mesh, step)
        of_run = checkpoints.meta(step)["config"]
    params = flat(own)
    whole = [path for path in params if not is_factor(path)]
    peft = peft_of(start.layout, model, params, whole, base=folder, dropout=of_run["adapter"]["dropout"])
    told = peft.told()
    with whole_or_none(output) as half:
        total = peft.write(half, DTYPES[dtype])
        write_tokenizer(recipe, half)
        write_processor(recipe, workdir, half)
        facts = model_card(
            workdir.resolve().name, start.family.architecture, of_run, step or 0, recipe.image, adapters=told
        )  # fmt: skip
        version = importlib.metadata.version("transformers")
        use = (
            f"`peft.PeftModel.from_pretrained(model, DIR)` loads them, where `model` is what they were trained on, in "
            f"`transformers` 5 ({version} when they were written): they name its modules."
        )
        (half / "README.md").write_text("\n".join([*facts, *evaluation(workdir, step or 0), "", use, ""]))
    print(
        f"wrote {output}: {total / 1e6:,.1f} MB of {dtype}, adapters ({told}) of {folder} for PEFT, of step {step}; "
        f"--merge writes the whole model"
    )
    if (largest := peft.largest_rank()) != model.adapter.rank:
        print(f"vLLM needs --max-lora-rank of {largest} or more, the largest rank that is written")
    if others := peft.not_served():
        print(f"vLLM serves no adapters with {' and '.join(others)}: for it write the whole model by --merge")
    for one in peft.left_out():
        print(f"vLLM leaves out {one}: what it then answers is not this model; --merge writes the whole model")
    return 0


def _beneath(recipe: Recipe, workdir: Path) -> Path:
    """The folder of the model beneath a run's adapters.

    Raises:
      UserError: if that is none that ``transformers`` loads, so that adapters alone would be of no use.
    """
    way_out = "adapters alone would have no model beneath them: write the whole model by --merge"
    noted, run = kept(workdir), name_of(workdir)
    if noted is None or recipe.start is None:
        raise UserError(f"{run} did not begin with a model's folder: {way_out}")
    base = found_again(noted, recipe.init_from, workdir)
    folders = parse(run_and_step(base.init_from)[0])
    folder = folders.get("model")
    if folder is None:
        raise UserError(f"{run} began with parts of models ({', '.join(folders)}), which it joined: {way_out}")
    if not hf.is_folder(folder):
        raise UserError(f"{run} began with the run {folder}: {way_out}, or export that run, and begin with it")
    rows, has = recipe.model.decoder.vocab_size, hf.read_whole(folder).layout.spec.decoder.vocab_size
    if rows != has:
        raise UserError(f"{run} has a vocabulary of {rows} rows, {folder} one of {has}: write it by --merge")
    return folder
