"""What a step needs without the hardware: collectives read from HLO, figures of CPU meshes, targets and mistakes."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run
from conftest import IMAGE, chips
from jax.sharding import NamedSharding, PartitionSpec

from jaxmm import estimate, sharding
from jaxmm.api import load_config
from jaxmm.clip_spec import AudioSpec
from jaxmm.corpus import unseen_budgets
from jaxmm.data.assemble import empty_batch
from jaxmm.data.packing.limits import Budgets
from jaxmm.errors import UserError
from jaxmm.estimation import collectives, hlo, printed, saving
from jaxmm.estimation import target as estimate_target
from jaxmm.recipe import read_recipe


def compiled_text(mesh, f, *shapes_and_axes) -> str:
    shapes = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*axes)))
        for shape, axes in shapes_and_axes
    ]
    with jax.set_mesh(mesh):
        return jax.jit(f, out_shardings=NamedSharding(mesh, PartitionSpec())).lower(*shapes).compile().as_text()


@pytest.mark.parametrize("axes", [("data",), ("tensor",), ("data", "tensor"), ("fsdp", "tensor")])
def test_a_gather_is_found_with_its_axes_and_bytes(axes):
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    text = compiled_text(mesh, lambda x: x * 2, ((64, 32), (axes,)))
    found = collectives.by_kind_and_axes(collectives.collectives(hlo.read(text), mesh))
    assert found == {("all-gather", "+".join(axes)): 64 * 32 * 4}


def test_what_a_loop_sends_counts_as_often_as_the_loop_runs():
    mesh = sharding.make_mesh({"data": 8})

    def loop(x, kernels):
        def layer(x, kernel):
            return jnp.tanh(x @ sharding.constrain(kernel, None, None)), None

        return jax.lax.scan(layer, x, kernels)[0]

    text = compiled_text(mesh, loop, ((4, 16), ()), ((5, 16, 16), (None, "data")))
    found = collectives.by_kind_and_axes(collectives.collectives(hlo.read(text), mesh))
    assert found[("all-gather", "data")] in (5 * 16 * 16 * 4, 5 * 16 * 16 * 4 + 4 * 16 * 4)


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", ("tensor",)),
        ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", ("data",)),
        ("replica_groups=[4,2]<=[8]", ("tensor",)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", ("data",)),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'b','c'}", ("fsdp", "tensor")),
        ("replica_groups={}", ("data", "fsdp", "tensor")),
        ("source_target_pairs={{0,2},{2,0},{1,3},{3,1}}", ("fsdp",)),
        ("replica_groups={{0,3},{1,2},{4,7},{5,6}}", ("other",)),
    ],
)
def test_groups_are_read_in_every_way_they_are_written(groups, axes):
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    assert collectives._axes(f"x), {groups}, to_apply=%add", collectives._groupings(mesh), mesh) == axes


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    output = tmp_path_factory.mktemp("estimate") / "figures.json"
    arguments = [
        f"--config={small_run.ROOT / 'configs/base.py'}", *small_run.TINY, "--config.mesh.fsdp=4",
        "--config.mesh.data=2", f"--output={output}",
    ]  # fmt: skip
    assert estimate.main(arguments) == 0
    return json.loads(output.read_text())


def test_a_cpu_mesh_is_compiled_for(figures):
    assert figures["source"] == "compiled"
    assert figures["target"]["devices"] == 8
    whole = 4 * sum(figures["parameters"].values())
    assert whole / 4 <= figures["parameter_bytes"] < 1.1 * whole / 4
    assert figures["peak_bytes"] >= figures["argument_bytes"] > figures["parameter_bytes"] + figures["optimizer_bytes"]
    assert figures["model_flops"] > 0
    assert figures["compiler_flops"] > 0
    assert 0.8 * figures["model_flops"] / 8 < figures["roofline"]["matrix_flops"] < figures["model_flops"]
    assert figures["roofline"]["memory_bytes"] > 3 * figures["parameter_bytes"]
    assert figures["activation_bytes"] == figures["temporary_bytes"] - figures["gradient_bytes"] > 0
    assert figures["target"]["memory_is"] == "this host's, shared by its devices"
    assert figures["fits"] == (figures["peak_bytes"] < 0.97 * figures["target"]["memory"])
    assert any("fsdp" in name for name in figures["sent_bytes"])


def test_no_whole_tree_is_gathered_and_nothing_rematerialised(figures):
    assert figures["largest_all_gather_bytes"] < 4 * sum(figures["parameters"].values()) / 2
    assert not figures["involuntary_rematerialization"]


def test_what_slices_send_each_other_is_told_from_what_they_send_within():
    slice_ids = ",".join(map(str, range(16)))
    lines = [
        "HloModule step", "", "ENTRY %main (x: f32[8]) -> f32[8] {",
        "  %x = f32[8]{0} parameter(0)",
        f"  %all-gather.1 = f32[128]{{0}} all-gather(%x), channel_id=3, replica_groups={{{{{slice_ids}}}}}",
        "  %send.1 = (f32[8]{0}, u32[], token[]) send(%x, %after-all), channel_id=4, is_host_transfer=true, "
        'frontend_attributes={_xla_megascale_target="{1,2}x{0:15}",_xla_megascale_transfer_type="ALL_REDUCE"}',
        "}",
    ]  # fmt: skip
    mesh = sharding.make_mesh({"data": 2, "fsdp": 16}, chips(2))
    found = collectives.by_kind_and_axes(collectives.collectives(hlo.read("\n".join(lines)), mesh))
    assert found == {("all-gather", "fsdp"): 512, ("all-reduce between slices", "data"): 32}


def test_a_program_that_jaxlib_cannot_print_is_read_as_the_compiler_wrote_it_or_its_collectives_are_unknown(tmp_path):
    class Unprintable:
        def as_text(self) -> str:
            raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure")

    mesh = sharding.make_mesh({"data": 8})
    found = estimate.sent_by(estimate.read_program(Unprintable(), tmp_path), mesh)
    assert found == {"collectives": "unknown, as jaxlib cannot print the program: INTERNAL: RET_CHECK failure"}
    lines = (
        "ENTRY %main (x: f32[1,4]) -> f32[8,4] {",
        "  %x = f32[1,4]{1,0} parameter(0)",
        "  ROOT %g = f32[8,4]{1,0} all-gather(f32[1,4]{1,0} %x), replica_groups=[1,8]<=[8], dimensions={0}",
        "}",
    )
    (tmp_path / "module_0000.jit_step.after_optimizations.txt").write_text("\n".join(lines))
    assert (
        estimate.sent_by(estimate.read_program(Unprintable(), tmp_path), mesh)["largest_all_gather_bytes"] == 8 * 4 * 4
    )


@pytest.mark.slow
@pytest.mark.libtpu
def test_a_step_is_compiled_for_tpus_that_are_not_here(tmp_path):
    output = tmp_path / "figures.json"
    flags = ["--target=tpu:v5e:2x2", "--config.mesh.fsdp=4", "--config.compute.remat=offload", f"--output={output}"]
    program = [sys.executable, small_run.ROOT / "tools/estimate.py", f"--config={small_run.ROOT / 'configs/base.py'}"]
    environment = {**os.environ, "PYTHONPATH": str(small_run.ROOT)}
    del environment["XLA_FLAGS"]  # libtpu's own XLA ends the process at those that it does not know
    done = subprocess.run([*program, *small_run.TINY, *flags], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "does not know the option" not in done.stderr
    figures = json.loads(output.read_text())
    assert figures["source"] == "compiled"
    assert figures["target"]["devices"] == 4
    assert figures["compute"]["attention"] == "splash"
    assert figures["fits"]
    assert figures["peak_bytes"] > figures["argument_bytes"] > figures["parameter_bytes"]
    assert figures["host_bytes"] > 0, "what is offloaded lies in the host's memory"
    roofline = figures["roofline"]
    assert roofline["kernels_of_unknown_flops"] == 0
    assert figures["model_flops"] / 4 < roofline["matrix_flops"] < 3 * figures["model_flops"] / 4
    assert 0 < roofline["in_order_mfu"] <= roofline["most_mfu"] < 1
    assert "links over fsdp" in roofline["least_seconds_of"]
    assert any("gather" in wait["what"] and "models/" in wait["what"] for wait in roofline["waits"])
    assert "Forecast, at published peaks; nothing of it was measured:" in done.stdout
    assert any("fsdp" in name for name in figures["sent_bytes"])


@pytest.mark.libtpu
def test_a_v4_is_one_device_a_chip_and_a_flag_that_libtpu_does_not_know_is_told():
    program = (
        "from jaxmm.estimation.target import read_target; target = read_target('tpu:v4:2x2x1', {});"
        "print(len(target.devices), target.memory_is)"
    )
    environment = {**os.environ, "PYTHONPATH": str(small_run.ROOT)}
    del environment["XLA_FLAGS"]

    def run(flags: str) -> subprocess.CompletedProcess:
        of_run = environment | ({"LIBTPU_INIT_ARGS": flags} if flags else {})
        return subprocess.run([sys.executable, "-c", program], env=of_run, capture_output=True, text=True)

    assert run("").stdout == "4 a chip's\n"
    unknown = run("--xla_tpu_of_another_year=1")
    assert unknown.returncode != 0
    assert "xla_tpu_of_another_year" in unknown.stderr


V5E = (  # libtpu 0.0.52's, of two rows a chip with remat "offload"
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
    "temporaries (16.73G) exceeds available HBM (15.75G). HLO module: jit_step.\n"
    "See https://openxla.org/xla/errors/error_1000 for more details."
)
OLDER = (
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 17.33G of 15.75G "
    "hbm. Exceeded hbm capacity by 1.58G."
)


@pytest.mark.parametrize(("message", "gib"), [(V5E, 16.73), (OLDER, 17.33)])
def test_a_program_that_is_refused_for_memory_tells_its_peak_and_does_not_fit(message, gib):
    found = estimate.refused(message)
    assert found["fits"] is False
    assert found["peak_bytes"] == round(gib * 2**30)
    assert "Ran out of memory" in found["compiler"]
    assert "peak_bytes" not in estimate.refused("RESOURCE_EXHAUSTED: too much of it")


def test_a_kernel_whose_metadata_has_lines_of_its_own_ends_no_computation():
    lines = (
        "ENTRY %main (x: f32[1,4]) -> f32[8,4] {",
        "  %x = f32[1,4]{1,0} parameter(0)",
        '  %k = f32[1,4]{1,0} custom-call(%x), custom_call_target="tpu_custom_call", frontend_attributes={kernel={',
        '}}, metadata={op_name="a kernel"}',
        "  ROOT %g = f32[8,4]{1,0} all-gather(%k), channel_id=2, replica_groups=[1,8]<=[8], dimensions={0}",
        "}",
    )
    (found,) = collectives.collectives(hlo.read("\n".join(lines)), sharding.make_mesh({"data": 8}))
    assert found.total == 8 * 4 * 4


def test_a_collective_that_a_shard_map_has_twice_counts_twice():
    groups = "channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}"
    lines = (
        "%part (p: f32[1,4]) -> f32[8,4] {",
        "  %p = f32[1,4]{1,0} parameter(0)",
        f"  ROOT %g = f32[8,4]{{1,0}} all-gather(f32[1,4]{{1,0}} %p), {groups}",
        "}",
        "%other_part (p: f32[1,4]) -> f32[8,4] {",
        "  %p = f32[1,4]{1,0} parameter(0)",
        f"  ROOT %g = f32[8,4]{{1,0}} all-gather(f32[1,4]{{1,0}} %p), {groups}",
        "}",
        "ENTRY %main (x: f32[1,8]) -> f32[8,4] {",
        "  %x = f32[1,8]{1,0} parameter(0)",
        f"  %k = f32[8,8]{{1,0}} all-gather(f32[1,8]{{1,0}} %x), {groups}",
        f"  %v = f32[8,8]{{1,0}} all-gather(f32[1,8]{{1,0}} %x), {groups}",
        "  %a = f32[8,4]{1,0} fusion(f32[1,8]{1,0} %x), kind=kLoop, calls=%part",
        "  ROOT %b = f32[8,4]{1,0} fusion(f32[1,8]{1,0} %x), kind=kLoop, calls=%other_part",
        "}",
    )
    found = collectives.collectives(hlo.read("\n".join(lines)), sharding.make_mesh({"data": 8}))
    assert sorted(one.bytes for one in found) == [8 * 4 * 4, 8 * 8 * 4, 8 * 8 * 4], "the parts are one"


def test_rows_that_are_exchanged_count_once_whatever_room_they_have_where_they_land():
    """As libtpu 0.0.52 writes them: 64 rows of 8 there, into room for 256, and back."""
    mesh = sharding.make_mesh({"expert": 8})
    groups = "replica_groups={{0,1,2,3,4,5,6,7}}, channel_id=1"
    text = f"""
ENTRY %main (p: bf16[64,8], room: bf16[256,8]) -> bf16[64,8] {{
  %p = bf16[64,8]{{1,0}} parameter(0)
  %room = bf16[256,8]{{1,0}} parameter(1)
  %s = s32[8]{{0}} constant({{0,0,0,0,0,0,0,0}})
  %there = bf16[256,8]{{1,0}} ragged-all-to-all(%p, %room, %s, %s, %s, /*index=5*/%s), {groups}
  ROOT %back = bf16[64,8]{{1,0}} ragged-all-to-all(%there, %p, %s, %s, %s, /*index=5*/%s), {groups}
}}
"""
    found = collectives.by_kind_and_axes(collectives.collectives(hlo.read(text), mesh))
    assert found == {("ragged-all-to-all", "expert"): 2 * 64 * 8 * 2}


def test_a_save_is_told_by_what_it_copies_of_a_device_and_how_fast_for_a_hundredth_of_the_time():
    figures = saving.saving(5_000, every=100, step_seconds=0.5)
    assert figures == {"bytes": 5_000, "every": 100, "seconds_between": 50.0, "copied_per_second": 10_000.0}
    assert saving.saving(5_000, every=0, step_seconds=0.5) == {}
    assert "from 9.77 KiB/s on that is at most 1% of the 50 s between two" in printed._save_line(figures)


def test_gpus_are_estimated_by_a_formula_that_says_so(capsys):
    arguments = [f"--config={small_run.ROOT / 'configs/base.py'}", *small_run.TINY, "--config.mesh.fsdp=-1"]
    assert estimate.main([*arguments, "--config.mesh.data=1", "--target=gpu:h100:8"]) == 0
    shown = capsys.readouterr().out
    assert "formula, nothing compiled" in shown
    assert "NVIDIA H100" in shown
    assert "all-gather over fsdp" in shown
    assert "which binds" in shown
    assert "of it recomputation" not in shown, "remat is none"
    assert "least time of a step" in shown
    assert "a save copies" in shown
    assert "Fits: at its peak a device holds" in shown
    assert estimate.main([*arguments, "--config.mesh.data=1", "--config.mesh.fsdp=4", "--formula"]) == 0
    of_cpu = capsys.readouterr().out
    assert "formula, nothing compiled" in of_cpu
    assert "all-gather over fsdp" in of_cpu
    wide = ["--config.decoder.head_dim=512"]  # of which no kernel for GPUs is
    wide += ["--config.decoder.width=16384", "--config.decoder.mlp=65536", "--config.decoder.layers=96"]
    assert estimate.main([*arguments, *wide, "--config.mesh.data=1", "--target=gpu:l4:8"]) == 2
    of_wide = capsys.readouterr().out
    assert "Does not fit: at its peak a device would hold" in of_wide
    assert "fused+blocks" in of_wide
    assert "not forecast: no peaks of 'l4' are known" in of_wide


def test_a_formula_of_several_slices_is_refused():
    """Links between slices are slower than those within, which the formula takes all to be."""
    devices = [SimpleNamespace(slice_index=number) for number in (0, 1)]
    target = estimate_target.Target("tpu", devices, 32.0 * 2**30, "a chip's", "TPU v6 lite")
    with pytest.raises(UserError, match="network between slices"):
        estimate.estimate(load_config("base"), target, 8, is_formula=True)


def test_full_rows_have_documents_of_equal_length():
    image = dataclasses.replace(IMAGE, audio=AudioSpec(mels=16, chunk=8, chunk_positions=4, pool=4, attend=4))
    batch = empty_batch(2, Budgets(64, 64, 4, 64, audio=192), image)
    full = estimate.full_rows(batch, 4, image)
    assert np.bincount(full.text.segments[0]).tolist() == [0, 16, 16, 16, 16]
    assert np.bincount(full.media["audio"].segments[0]).tolist() == [0] + [32] * 6, "as far as frames hear each other"
    soft = 64 // IMAGE.merge**2 + 192 // 8
    assert (full.weights_BT > 0).sum(1).tolist() == [64 - soft] * 2


@pytest.mark.parametrize(("media", "patches", "frames"), [("", 256, 0), ("video", 256, 0), ("video,audio", 128, 256)])
def test_half_of_a_row_is_of_the_media_that_the_model_takes(media, patches, frames):
    config = load_config("base", seq_len=128, **{"data.media": media})
    recipe = estimate.with_media(read_recipe(config))
    budgets = unseen_budgets(config, recipe.image)
    assert (budgets.patches, budgets.get("audio")) == (patches, frames)
    row = empty_batch(1, budgets, recipe.image)
    assert row.patches.values.shape[2] == recipe.image.patch_size**2 * 3 * (2 if "video" in media else 1)


@pytest.mark.parametrize(
    ("changes", "media", "words"),
    [
        ({}, "", "images"),
        ({"data.demo": "audio"}, "audio", "images, recordings"),
        ({"data.demo": "video"}, "video", "images, videos"),
        ({"data.demo": "video", "data.media": "audio"}, "audio", "images, recordings"),
        ({"data.demo": "video", "data.path": "elsewhere"}, "", "images"),
    ],
)
def test_a_forecast_is_of_the_media_of_the_demo_that_a_run_learns_from(changes, media, words):
    config = load_config("base", **changes)
    config.data.media = estimate.foreseen_media(config)
    assert config.data.media == media
    assert estimate.media_of(estimate.with_media(read_recipe(config)).image) == words


@pytest.mark.parametrize(("platform", "part", "said"), [("gpu", 0.74, False), ("gpu", 0.76, True), ("tpu", 0.9, False)])
def test_where_jax_takes_less_of_a_gpu_than_a_step_needs_the_verdict_has_the_setting(platform, part, said):
    target = {"platform": platform, "memory": 80e9, "memory_is": "a GPU's"}
    line = printed.verdict({"target": target, "peak_bytes": part * 80e9, "fits": True})
    assert ("of which JAX takes 75%: set XLA_PYTHON_CLIENT_MEM_FRACTION=0.95" in line) == said


@pytest.mark.parametrize("text", ["tpu", "tpu:v9:4x4", "tpu:v5e", "gpu:h100", "gpu:h100:none", "cpu:8", "abacus"])
def test_a_target_that_is_not_known_is_one_line(text):
    with pytest.raises(UserError, match=r"is not known: give cpu, tpu:NAME:TOPOLOGY with v4, v5e"):
        estimate_target.read_target(text, {"data": 1})
