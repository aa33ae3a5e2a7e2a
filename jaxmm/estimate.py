"""What a training step needs, without the hardware: memory, FLOPs, what is sent between devices, and whether it fits.

    python -m jaxmm.estimate --config=configs/base.py --target=tpu:v5e:4x4 --config.batch_size=32

For ``cpu`` and ``tpu:NAME:TOPOLOGY`` (v5e:4x4, v5p:4x4x4, v6e:2*4x4 for two slices) the step is compiled for these very
devices, and memory and what is sent are the compiler's figures; TPUs need the extra 'estimate'. For ``gpu:NAME:COUNT``
(h100:8), and with ``--formula`` for CPUs and one slice of TPUs, nothing is compiled: both follow from shapes by a
formula, in seconds, and are labelled so. Bytes of state and gradients follow from shapes everywhere, and
``model_flops`` are those of the formula that MFU is counted by, of all devices; ``compiler_flops`` are what the
compiler counts in one device's program, recomputation and padding included. Most compilers count what a loop runs once.
``roofline`` is a forecast: the least time of a step at the published peaks of the device, which of its units binds, and
what is waited for in the order of the compiled schedule. ``save`` is one too: how fast a device's state must be copied.
No data is read: rows are taken as full, of documents of equal length, and budgets that the data would choose as half of
the row's positions, which pictures and recordings share where the model takes both. A model from random weights has the
towers that ``config.data.media`` names, or else those of the demo that it learns from; ``batch media`` says which.
"""

from __future__ import annotations

import re
import tempfile
import time
from pathlib import Path
from typing import Any

from jaxmm import atomic, command, formatting
from jaxmm.errors import UserError
from jaxmm.estimation import hlo, printed
from jaxmm.estimation.formula import by_formula, shard_bytes
from jaxmm.estimation.hlo import Program
from jaxmm.estimation.saving import saved_bytes, saving
from jaxmm.estimation.target import Target, errors_of_libraries, read_target
from jaxmm.training import throughput

FLAGS: command.Flags = {
    "target": ("cpu", "cpu, tpu:v5e:4x4, tpu:v5p:4x4x4, tpu:v6e:2*4x4 (two slices), gpu:h100:8, ..."),
    "documents": (8, "documents a row is taken to hold, each with an equal share of its patches"),
    "formula": (False, "follow from shapes by a formula, in seconds, for CPUs and one slice of TPUs too"),
    "output": ("", "JSON file to write"),
}
RESERVED = 0.03  # of a device's memory, that the runtime keeps
RESERVED_OF_GPU = 1 - printed.GPU_FRACTION
LETTERS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# How libtpu says what a program would have needed, now and before; arguments are in it, whatever its name.
REFUSALS = (r"memory required for HLO temporaries \(([\d.]+)([KMGT]?)\)", r"Used ([\d.]+)([KMGT]?) of")
REMATERIALIZED = "involuntary full rematerialization"  # what the partitioner says where it gathers an array whole


def full_rows(batch: Any, documents: int, image: Any) -> Any:
    """A NumPy batch whose rows are full: documents of equal length, each with an image of its share of the patches and
    a recording of its share of the frames.

    Args:
      image: the run's ImageSpec.
    """
    import numpy as np

    def filled(stream: Any, least: int) -> Any:
        length = stream.segments.shape[1]
        numbers = 1 + np.arange(length, dtype=np.int32) * max(documents, least) // max(length, 1)
        return stream._replace(segments=np.broadcast_to(numbers, stream.segments.shape))

    soft, media = batch.patches.segments.shape[1] // image.merge**2, dict(batch.media)
    if "audio" in media:
        audio, frames = image.audio, media["audio"].segments.shape[1]
        window = audio.attend * audio.chunk or audio.piece or frames  # frames that hear each other, at most
        media["audio"] = filled(media["audio"], -(-frames // window))
        soft += frames // audio.chunk * audio.chunk_tokens
    weights = np.zeros(batch.weights_BT.shape, np.float32)
    weights[:, : max(weights.shape[1] - soft, 1)] = 1
    text, patches = filled(batch.text, 1), filled(batch.patches, 1)
    return batch._replace(text=text, patches=patches, media=media, weights_BT=weights)


def with_media(recipe: Any) -> Any:
    """The recipe of a run that has all media which its model takes."""
    vision, audio, whole = recipe.model.vision, recipe.model.audio, recipe.whole
    has_video = vision is not None and whole.video is not None and whole.video.frames == vision.frames
    return recipe._replace(image=whole.only(["video"] * has_video + ["audio"] * (audio is not None)))


def foreseen_media(config: Any) -> str:
    """The ``config.data.media`` that a run settles at its start, as far as that is known without data."""
    from jaxmm.model_recipe import clips_of

    is_demo = not (config.data.path or config.init_from or config.objective)  # that of preferences has pictures
    return config.data.media or (clips_of([config.data.demo]) if is_demo else "")


def media_of(image: Any) -> str:
    """What stands in the rows of a forecast beside text, in words."""
    from jaxmm.data.media.table import MEDIA

    has = {"image": image.is_sighted, "video": image.video is not None, "audio": image.audio is not None}
    return ", ".join(MEDIA[name].plural for name, is_there in has.items() if is_there) or "none"


def estimate(config: Any, target: Target, documents: int, is_formula: bool = False) -> dict[str, Any]:
    """The figures of a step, by name; all bytes are of one device.

    Args:
      is_formula: compile nothing. For GPUs nothing is compiled anyway.
    Raises:
      UserError: for what is wrong in the config, as ``train`` does, and for a formula of several slices.
    """
    from jaxmm import sharding
    from jaxmm.capacity import check_states
    from jaxmm.corpus import unseen_budgets
    from jaxmm.data.assemble import empty_batch
    from jaxmm.estimation import chips, roofline
    from jaxmm.models.flops import attended_shares, batch_flops, forward_flops, parameter_counts, recomputed_flops
    from jaxmm.models.multimodal import abstract_params
    from jaxmm.recipe import read_recipe
    from jaxmm.training import cpu_dtype
    from jaxmm.training.objectives import parts_of_reference
    from jaxmm.training.program import make_program

    if is_formula and len({getattr(device, "slice_index", 0) for device in target.devices}) > 1:
        raise UserError("--formula knows nothing of the network between slices: leave it out, or name one slice")
    mesh = sharding.make_mesh(config.mesh, target.devices)
    sharding.check_rows(mesh, config.batch_size, config.accumulation)
    if target.platform == "cpu":
        cpu_dtype.settle(config)
    config.data.media = foreseen_media(config)
    recipe = with_media(read_recipe(config, platform=target.platform))
    check_states(recipe.model.decoder, mesh)
    sharding.check_experts(mesh, recipe.model.decoder.experts)
    budgets = unseen_budgets(config, recipe.image)
    program = make_program(config, recipe, steps=max(config.steps, 1), targets=budgets.targets, sources=1)
    state = program.abstract_state(mesh)
    row = full_rows(empty_batch(1, budgets, recipe.image), documents, recipe.image)
    of_row = batch_flops(recipe.model, row, recipe.trainable)
    of_row += forward_flops(recipe.model.base, row, parts_of_reference(recipe))
    flops = of_row * config.batch_size
    compute = recipe.compute
    figures: dict[str, Any] = {
        "target": {
            "platform": target.platform,
            "kind": target.kind,
            "devices": mesh.size,
            "memory": target.memory,
            "memory_is": target.memory_is,
            "mesh": dict(mesh.shape),
        },
        "batch": {
            "rows": config.batch_size,
            **budgets._asdict(),
            "documents": documents,
            "media": media_of(recipe.image),
        },
        "compute": {
            "dtype": compute.dtype,
            "remat": compute.remat,
            "attention": compute.attention,
            **({"matmul": recipe.model.matmul} if recipe.model.matmul else {}),
        },
        "parameters": parameter_counts(abstract_params(recipe.model.plain)),
        "parameter_bytes": shard_bytes(state.params),
        "optimizer_bytes": shard_bytes(state.opt_state),
        "model_flops": flops,
    }
    if peak := throughput.peak_flops(target.kind):
        figures["seconds_at_half_of_peak"] = flops / (0.5 * peak * mesh.size)
    machine = chips.machine_of(target.kind, mesh)
    if machine is None:
        figures["times"] = f"not forecast: no peaks of '{target.kind}' are known"
    if target.platform == "gpu" or is_formula:
        figures |= by_formula(program, budgets, config.batch_size, config.accumulation, mesh, target.platform)
        if machine:
            again = recomputed_flops(recipe.model, row, recipe.trainable, compute.remat) * config.batch_size
            figures["roofline"] = roofline.by_formula(machine, figures, flops, again, config.accumulation)
    else:
        of_compiled, text = compiled(program, budgets, config.batch_size, mesh)
        figures |= of_compiled
        if text is not None:
            shares = attended_shares(recipe.model.base, row)
            choices = chosen_on_a_device(recipe.model.decoder, config.batch_size * budgets.tokens, mesh)
            of_microbatch = choices / config.accumulation
            figures["roofline"] = roofline.of_program(text, machine, mesh, flops, shares, of_microbatch)
    if seconds := figures.get("roofline", {}).get("least_seconds"):
        has_base = recipe.model.adapter is not None and bool(config.init_from)
        count = saved_bytes(state, recipe.trainable, has_base=has_base)
        figures["save"] = saving(count, config.checkpoint.every, seconds)
    if "fits" not in figures:
        reserved = RESERVED_OF_GPU if target.platform == "gpu" else RESERVED
        figures["fits"] = figures["peak_bytes"] <= (1 - reserved) * target.memory
    return figures


def chosen_on_a_device(decoder: Any, positions: int, mesh: Any) -> float:
    """Choices of experts that a device multiplies, where all have as many; ``tensor`` splits the kernels."""
    return positions * decoder.experts.chosen * mesh.shape["tensor"] / mesh.size if decoder.experts else 0.0


def compiled(program: Any, budgets: Any, rows: int, mesh: Any) -> tuple[dict[str, Any], Program | None]:
    """The compiler's own figures, and the compiled program, None where it cannot be read.

    ``activation_bytes`` are what is temporary at the peak beyond gradients, taken as float32: what the backward pass
    keeps, and working memory. ``host_bytes`` are temporaries that are held in the host's memory (remat "offload").
    """
    import jax

    from jaxmm.runtime.jax_internals import compile_lowered, step_options
    from jaxmm.training.program import abstract_batch

    state, batch = program.abstract_state(mesh), abstract_batch(program.recipe, budgets, rows, mesh)
    gradients = shard_bytes(program.recipe.trainable.split(state.params)[0])
    known = {"source": "compiled", "gradient_bytes": gradients}
    began = time.perf_counter()
    platform = mesh.devices.flat[0].platform
    with tempfile.TemporaryDirectory() as folder, jax.set_mesh(mesh), errors_of_libraries() as said:
        options = dict(step_options(platform) or {})  # as train compiles it
        if platform == "tpu":
            options |= {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        try:
            done = compile_lowered(program.jitted(mesh).lower(state, batch), options)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            text = read_program(None, Path(folder)) if written_in(Path(folder)) else None
            return known | refused(str(error)) | (sent_by(text, mesh) if text else {}), None
        text = read_program(done, Path(folder))
    memory: Any = done.memory_analysis()
    cost: Any = done.cost_analysis() or {}
    seconds = time.perf_counter() - began
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    peak = held + memory.temp_size_in_bytes
    if not memory.host_temp_size_in_bytes:  # else the compiler's peak has what lies on the host in it
        peak = max(peak, memory.peak_memory_in_bytes)
    figures = {
        "compile_seconds": seconds,
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "activation_bytes": max(0, peak - held - gradients),
        "peak_bytes": peak,
        "host_bytes": memory.host_temp_size_in_bytes,
        **({"compiler_flops": cost["flops"]} if cost.get("flops", 0) > 0 else {}),
        "involuntary_rematerialization": REMATERIALIZED in "".join(said).lower(),
    }
    return known | figures | sent_by(text, mesh), None if isinstance(text, str) else text


def refused(message: str) -> dict[str, Any]:
    """The figures of a program that the compiler refuses for memory: its peak, where the message has it."""
    figures: dict[str, Any] = {"fits": False, "compiler": " ".join(message.split())[:300]}
    if match := re.search("|".join(REFUSALS), message):
        number, letter = (group for group in match.groups() if group is not None)
        figures["peak_bytes"] = round(float(number) * LETTERS[letter])
    return figures


def written_in(folder: Path) -> Path | None:
    """The compiled program's text, where the compiler wrote it itself."""
    return max(folder.glob("*.after_optimizations.txt"), default=None)


def read_program(done: Any, folder: Path) -> Program | str:
    """The compiled program, or why it cannot be read.

    Args:
      folder: where a compiler that is newer than jaxlib, which cannot print all it makes, wrote the program itself.
    """
    import jax

    written = written_in(folder)
    try:
        return hlo.read(written.read_text() if written else done.as_text() or "")
    except jax.errors.JaxRuntimeError as error:
        return f"unknown, as jaxlib cannot print the program: {' '.join(str(error).split())[:200]}"


def sent_by(program: Program | str, mesh: Any) -> dict[str, Any]:
    """What the compiled program sends between devices, or why that is not known."""
    from jaxmm.estimation.collectives import by_kind_and_axes, collectives

    if isinstance(program, str):
        return {"collectives": program}
    sent = collectives(program, mesh)
    return {
        "sent_bytes": {f"{kind} over {axes}": count for (kind, axes), count in by_kind_and_axes(sent).items()},
        "largest_all_gather_bytes": max((one.bytes for one in sent if one.kind == "all-gather"), default=0),
    }


def main(argv: list[str]) -> int:
    """Prints the figures as a table; exit status 2 where the step does not fit."""
    args = command.parse(argv, FLAGS, about=__doc__ or "")
    if args.documents < 1:
        raise UserError(f"--documents is {args.documents}: it must be at least 1")
    figures = estimate(args.config, read_target(args.target, args.config.mesh), args.documents, args.formula)
    if args.output:
        atomic.write_json(Path(args.output), figures)
    print(formatting.table(printed.rows(figures)))
    for line in printed.forecast(figures.get("roofline", {}), figures.get("save", {})):
        print(line)
    if matmul := figures["compute"].get("matmul"):
        print(f"  no time here counts config.compute.matmul={matmul}: matmuls are taken at the peak in bfloat16")
    print(f"\n{printed.verdict(figures)}")
    return 0 if figures["fits"] else 2


if __name__ == "__main__":
    command.run(main)
