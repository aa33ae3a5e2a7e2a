"""The formula for GPUs: what it says is sent is what a compiled program sends, axis by axis; what it says is held."""

from __future__ import annotations

import dataclasses
import math

import jax
import pytest
import small_run

from jaxmm import command, estimate, sharding
from jaxmm.corpus import unseen_budgets
from jaxmm.estimation import collectives, hlo, split
from jaxmm.estimation import formula as estimate_formula
from jaxmm.models.multimodal import flat_axes
from jaxmm.models.routing import ExpertSpec
from jaxmm.recipe import read_recipe
from jaxmm.training.program import abstract_batch, make_program

SMALL = (
    f"--config={small_run.ROOT / 'configs/base.py'}", *small_run.TINY, "--config.optimizer.name=adamw",
    "--config.vision.layers=2", "--config.compute.unroll=1", "--config.decoder.kv_heads=2",
)  # fmt: skip
CLIPS = (
    "--config.data.media=video,audio", "--config.audio.width=16", "--config.audio.layers=2", "--config.audio.heads=2",
    "--config.audio.mlp=32", "--config.audio.mels=16", "--config.audio.chunk=0.6",
)  # fmt: skip


def program_of(sizes: dict[str, int], *changes: str, experts: ExpertSpec | None = None):
    """A small config's program on a mesh of CPU devices, its scan as on GPUs, and what the formula takes with it."""
    flags = [f"--config.mesh.{axis}={sizes.get(axis, 1)}" for axis in sharding.AXES]
    config = command.parse([*SMALL, *flags, *changes], {}).config
    mesh = sharding.make_mesh(config.mesh, jax.devices()[: math.prod(sizes.values())])
    recipe = estimate.with_media(read_recipe(config, platform="cpu"))
    decoder = dataclasses.replace(recipe.model.decoder, experts=experts)
    recipe = recipe._replace(model=dataclasses.replace(recipe.model, decoder=decoder))
    budgets = unseen_budgets(config, recipe.image)
    program = make_program(config, recipe, steps=8, targets=budgets.targets, sources=1)
    return program, budgets, config.batch_size, config.accumulation, mesh


def sent(program, budgets, rows, accumulation, mesh) -> tuple[dict[str, int], dict[str, int]]:
    """What the compiled program sends, and what the formula says."""
    state = program.abstract_state(mesh)
    with jax.set_mesh(mesh):
        batch = abstract_batch(program.recipe, budgets, rows, mesh)
        text = program.jitted(mesh).lower(state, batch).compile().as_text()
    found = collectives.by_kind_and_axes(collectives.collectives(hlo.read(text), mesh))
    by_formula = estimate_formula.sent_by_formula(program.recipe, state.params, budgets, rows, accumulation, mesh)
    return {f"{kind} over {axes}": count for (kind, axes), count in found.items()}, by_formula


def assert_close(found: dict[str, float], wanted: dict[str, int]) -> None:
    """Equal to 3%; what is not told is less than that of all."""
    for name in found.keys() | wanted.keys():
        assert abs(found.get(name, 0) - wanted.get(name, 0)) <= 0.03 * max(
            wanted.get(name, 0), sum(found.values())
        ), (name, found, wanted)  # fmt: skip


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def full(*values):
    """Beside another case of the same axis or of the same rematerialisation."""
    return pytest.param(*values, marks=[pytest.mark.slow, pytest.mark.full])


@pytest.mark.parametrize(
    ("sizes", "changes"),
    [
        ({"fsdp": 4}, ()),
        full({"data": 2, "fsdp": 2}, ("--config.compute.remat=full",)),
        full({"data": 4}, ("--config.accumulation=2",)),
        full({"fsdp": 2}, ("--config.optimizer.freeze=vision,decoder",)),
        slow({"fsdp": 4}, CLIPS),
    ],
)
def test_parameters_are_gathered_and_gradients_summed_as_the_formula_says(sizes, changes):
    found, wanted = sent(*program_of(sizes, *changes))
    # XLA on CPUs sums whole gradients, of which a device then takes its shard.
    scattered = found.pop("all-reduce over fsdp", 0) / sizes.get("fsdp", 1) + found.pop("reduce-scatter over fsdp", 0)
    assert_close(found | {"reduce-scatter over fsdp": scattered}, wanted)


@pytest.mark.parametrize(("remat", "clips"), [full("none", ()), full("full", ()), slow("full", CLIPS)])
def test_tensor_adds_up_activations_as_the_formula_says(remat, clips):
    program, budgets, rows, *more = program_of({"data": 2, "tensor": 2}, f"--config.compute.remat={remat}", *clips)
    found, wanted = sent(program, budgets, rows, *more)
    # XLA on CPUs sums what goes back from each map; others first add up those of maps that take the same: queries, keys
    # and values, a gate and what it opens.
    spec, item = program.recipe.model, 4 * rows // 2
    wanted["all-reduce over tensor"] += item * (
        2 * spec.vision.layers * budgets.patches * spec.vision.width
        + 3 * spec.decoder.layers * budgets.tokens * spec.decoder.width
    )
    if spec.audio:
        positions = budgets.get("audio") // spec.audio.stride
        wanted["all-reduce over tensor"] += item * 2 * spec.audio.layers * positions * spec.audio.width
    assert_close(found, wanted)


@pytest.mark.parametrize(("remat", "clips"), [full("none", ()), full("dots", ()), ("full", ()), slow("none", CLIPS)])
def test_context_gathers_keys_and_values_as_the_formula_says(remat, clips):
    found, wanted = sent(*program_of({"context": 2}, f"--config.compute.remat={remat}", *clips))
    assert_close(found, wanted)


@pytest.mark.parametrize("remat", [full("none"), full("dots"), slow("full")])
def test_experts_gather_positions_and_not_kernels_as_the_formula_says(remat):
    experts = ExpertSpec(8, 2, 32, normalised=True)
    found, wanted = sent(*program_of({"data": 2, "expert": 2}, f"--config.compute.remat={remat}", experts=experts))
    assert_close(found, wanted)


@pytest.mark.parametrize(("remat", "near"), [full("none", 0.05), slow("full", 0.15)])
def test_a_step_with_recordings_and_videos_holds_what_the_formula_says(remat, near):
    large = ("--config.audio.width=64", "--config.audio.layers=4", "--config.audio.mlp=256", "--config.audio.mels=80")
    program, budgets, rows, accumulation, mesh = program_of(
        {"data": 2}, *CLIPS, *large, "--config.seq_len=512", f"--config.compute.remat={remat}"
    )
    found, _ = estimate.compiled(program, budgets, rows, mesh)
    wanted = estimate_formula.by_formula(program, budgets, rows, accumulation, mesh, "cpu")
    assert wanted["peak_bytes"] == pytest.approx(found["peak_bytes"], rel=near)


@pytest.mark.parametrize("remat", [full("none"), slow("full")])
def test_experts_of_several_devices_hold_room_for_all_choices_as_the_formula_says(remat):
    """Each of four devices has slots for the choices of all four: those of one device alone would be a quarter."""
    experts = ExpertSpec(16, 4, 512, normalised=True)
    program, budgets, rows, accumulation, mesh = program_of(
        {"expert": 4}, "--config.seq_len=1024", f"--config.compute.remat={remat}", experts=experts
    )
    found, _ = estimate.compiled(program, budgets, rows, mesh)
    wanted = estimate_formula.by_formula(program, budgets, rows, accumulation, mesh, "cpu")
    assert wanted["peak_bytes"] == pytest.approx(found["peak_bytes"], rel=0.15)


def test_of_the_largest_layer_a_device_gathers_its_own_experts():
    experts = ExpertSpec(8, 2, 64, normalised=True)
    of_layer = {}
    for sizes in ({"fsdp": 4}, {"expert": 4}):
        program, *_, mesh = program_of(sizes, experts=experts)
        of_layer[next(iter(sizes))] = estimate_formula._layer_bytes(
            program.recipe, program.abstract_state(mesh).params, mesh
        )
    kernels = 8 * 3 * 64 * program.recipe.model.decoder.width
    assert of_layer["fsdp"] - of_layer["expert"] >= 4 * kernels * 3 // 4 * (1 + (mesh.shape["fsdp"] > 1))


def test_of_frozen_weights_in_few_bits_the_formula_counts_what_is_held_and_a_dequantised_layer():
    adapters = ("--config.adapter.rank=2", "--config.optimizer.name=adamw", "--config.accumulation=2")
    figures, held, of_layer = {}, {}, {}
    for kind, remat in (("", "full"), ("nf4", "offload")):
        flags = (f"--config.adapter.base_dtype={kind}", f"--config.compute.remat={remat}")
        program, *rest = program_of({}, *adapters, *flags)
        params = program.abstract_state(rest[-1]).params
        figures[kind] = estimate_formula.by_formula(program, *rest)
        held[kind] = estimate_formula.shard_bytes(params)
        of_layer[kind] = estimate_formula._layer_bytes(program.recipe, params, rest[-1])
        learnt = program.recipe.trainable.split(params)[0]
        assert figures[kind]["gradient_bytes"] == estimate_formula.shard_bytes(learnt)
        assert figures[kind]["microbatch_gradient_bytes"] == figures[kind]["gradient_bytes"], "beside their sum"
        assert figures[kind]["activation_bytes"] >= figures[kind]["gradient_bytes"] + figures[kind]["kept_bytes"]
    assert 2 * held["nf4"] < held[""]
    assert figures["nf4"]["kept_bytes"] == figures[""]["kept_bytes"], "no kernel is kept, and what is offloaded is not"
    spec = program.recipe.model.decoder
    # What the maps of a layer give, but for the last: to queries, keys and values, out of attention, into the MLP.
    given = (spec.heads + 2 * spec.kv_heads) * spec.head_dim + spec.width + 2 * spec.mlp
    positions = rest[0].tokens * rest[1] // 2
    assert figures[""]["host_bytes"] == 0
    assert figures["nf4"]["host_bytes"] == pytest.approx(4 * positions * spec.layers * given, rel=0.15), "and factors"
    kernels = 2 * spec.width * (spec.heads + spec.kv_heads) * spec.head_dim + 3 * spec.width * spec.mlp
    assert of_layer["nf4"] - of_layer[""] == 4 * kernels, (
        "computed with in float32, as the plain ones lie there already"
    )


@pytest.mark.parametrize("tensor", [2, 4])
def test_the_share_of_a_device_of_tensor_has_the_shapes_that_the_mesh_gives_it(tensor):
    """Four devices do not divide the heads here, which are whole then."""
    program, *_, mesh = program_of({"tensor": tensor}, *CLIPS)
    model = program.recipe.model
    one = split.share(model, tensor)
    assert (one.decoder.heads, one.decoder.mlp) == (2 if tensor == 4 else 1, 64 // tensor)
    shapes = {path: shape for path, (shape, _) in flat_axes(one).items() if "blocks" in path}
    for path, (shape, names) in flat_axes(model).items():
        if "blocks" in path:
            is_split = "tensor" in estimate_formula._split_over(names, shape, mesh)
            assert math.prod(shapes[path]) * (tensor if is_split else 1) == math.prod(shape), path
    assert split.share(model, 1) is model
