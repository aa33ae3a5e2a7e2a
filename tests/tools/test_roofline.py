"""The roofline of a compiled step: its FLOPs and bytes, links, the order of its schedule, and who asked for what."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Chip, chips
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmm import sharding
from jaxmm.estimation import hlo, printed, roofline, words
from jaxmm.estimation.chips import TPUS, machine_of
from jaxmm.estimation.collectives import all_collectives, collectives
from jaxmm.estimation.schedule import forecast
from jaxmm.estimation.work import Reader, convolution

GROUPS = "replica_groups={{0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15}}, use_global_device_ids=true"


def v5e(sizes: dict[str, int] | None = None, slices: int = 1):
    mesh = sharding.make_mesh(sizes or {"fsdp": 16}, chips(slices))
    machine = machine_of("TPU v5 lite", mesh)
    assert machine is not None
    return machine


def program(*computations: str) -> hlo.Program:
    return hlo.read("\n".join(computations))


def entry(*lines: str) -> str:
    return "\n".join(("ENTRY %main (x: f32[8]) -> f32[8] {", *(f"  {line}" for line in lines), "}"))


def work_of(*lines: str, more: tuple[str, ...] = ()):
    read = program(*more, entry(*lines))
    reader = Reader(read)
    total = [reader.work(hlo.ENTRY, each) for each in read.computations[hlo.ENTRY]]
    return sum(one.matrix for one in total), sum(one.bytes for one in total)


def test_flops_of_matmuls_are_counted_as_often_as_loops_run():
    mesh = sharding.make_mesh({"data": 8})

    def f(x, kernels):
        y = jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels)[0]
        return jnp.einsum("bd,bf->df", y, y)

    where = [NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ())]
    x, kernels = (
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=one)
        for shape, one in zip(((64, 48), (5, 48, 48)), where, strict=True)
    )
    read = hlo.read(jax.jit(f, out_shardings=where[1]).lower(x, kernels).compile().as_text())
    figures = roofline.of_program(read, None, mesh, 0.0, {"decoder": 0.0})
    assert figures["matrix_flops"] == 2 * 8 * 48 * 48 * (5 + 1), "of the rows of one device"
    assert "least_seconds" not in figures, "a CPU's peaks are not known"
    own = 4 * (5 * 48 * 48 + 8 * 48)  # the kernels and the rows are read, at least
    assert own < figures["memory_bytes"] < 20 * own


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 9), window=st.integers(1, 5), stride=st.integers(1, 3), left=st.integers(1, 3),
    pads=st.tuples(*[st.integers(0, 4)] * 2), right=st.integers(1, 3), features=st.tuples(*[st.integers(1, 3)] * 2),
)  # fmt: skip
def test_a_convolution_counts_the_taps_that_meet_a_number(size, window, stride, pads, left, right, features):
    """Beside a convolution of ones by NumPy, whose sum is the number of multiply-adds."""
    inputs, outputs = features
    spread, taps = np.zeros((size - 1) * left + 1), np.zeros((window - 1) * right + 1)
    spread[::left], taps[::right] = 1, 1
    spread = np.pad(spread, pads)
    if len(spread) < len(taps):
        return
    summed = np.correlate(spread, taps, "valid")[::stride]
    text = (
        f"f32[2,{len(summed)},{outputs}] convolution(%x, %w), window={{size={window} stride={stride} "
        f"pad={pads[0]}_{pads[1]} lhs_dilate={left} rhs_dilate={right}}}, dim_labels=b0f_0io->b0f"
    )
    operands = [hlo.Array("f32", (2, size, inputs)), hlo.Array("f32", (window, inputs, outputs))]
    (one,) = program(entry(f"ROOT %c = {text}")).computations[hlo.ENTRY]
    assert convolution(one, operands) == 2 * 2 * inputs * outputs * summed.sum()


def test_a_matmul_that_is_written_as_a_convolution_is_one():
    """As libtpu 0.0.52 writes two rows of 16,384 patches by two chips' parts of a kernel."""
    flops, _ = work_of(
        "%x = bf16[2,16384,16,1]{1,2,3,0} parameter(0)",
        "%w = bf16[16,2,72,1]{3,2,1,0} parameter(1)",
        "ROOT %c = bf16[2,16384,2,72]{1,3,2,0} convolution(%x, %w), window={size=1x2 pad=0_0x1_1 rhs_reversal=0x1}, "
        "dim_labels=0bf1_i1o0->0b1f",
    )
    assert flops == 2 * (2 * 16384) * 16 * (2 * 72)


def test_a_grouped_matmul_of_a_tpu_counts_each_row_with_one_kernel():
    """As libtpu 0.0.52 writes ``lax.ragged_dot``: all rows by the kernels of all groups, of which it skips blocks."""
    ragged = 'backend_config={"convolution_algorithm_config":{"is_ragged_dot":true,"num_groups_in_ragged_dot":"8"}}'
    dilated = "{size=8 stride=7 lhs_dilate=8}"
    program = hlo.read(f"""
%grouped (k: bf16[8,16,32], x: bf16[64,16]) -> bf16[8,64,32] {{
  %k = bf16[8,16,32]{{2,1,0}} parameter(0)
  %x = bf16[64,16]{{1,0}} parameter(1)
  %all = bf16[8,64,16]{{2,1,0}} broadcast(%x), dimensions={{1,2}}
  ROOT %c = bf16[8,64,32]{{2,1,0}} convolution(%all, %k), window={dilated}, dim_labels=0bf_0io->0bf
}}

%skipping (k: bf16[8,16,32], x: bf16[64,16]) -> bf16[8,64,32] {{
  %k = bf16[8,16,32]{{2,1,0}} parameter(0)
  %x = bf16[64,16]{{1,0}} parameter(1)
  ROOT %inner = bf16[8,64,32]{{2,1,0}} fusion(%k, %x), kind=kOutput, calls=%grouped, {ragged}
}}

ENTRY %main (k: bf16[8,16,32], x: bf16[64,16]) -> bf16[8,64,32] {{
  %k = bf16[8,16,32]{{2,1,0}} parameter(0)
  %x = bf16[64,16]{{1,0}} parameter(1)
  ROOT %outer = bf16[8,64,32]{{2,1,0}} fusion(%k, %x), kind=kCustom, calls=%skipping, {ragged}
}}
""")
    ((entry, (*_, outer)),) = [(name, each) for name, each in program.computations.items() if each[-1].name == "outer"]
    assert Reader(program).work(entry, outer).matrix == 2 * 64 * 16 * 32
    assert Reader(program, choices=16).work(entry, outer).matrix == 2 * 16 * 16 * 32


def test_a_kernel_for_grouped_matmuls_counts_and_reads_the_slots_that_hold_a_choice():
    """As libtpu 0.0.52 calls it on a v5p: rows by kernels, and rows by rows, the gradient of the kernels."""
    said = 'custom_call_target="tpu_custom_call", metadata={op_name="ragged_dot_general/ragged-dot-none"}'
    program = hlo.read(f"""
ENTRY %main (e: s32[9], x: bf16[1024,128], k: bf16[8,128,256], y: bf16[1024,256]) -> bf16[8,128,256] {{
  %e = s32[9]{{0}} parameter(0)
  %x = bf16[1024,128]{{1,0:T(8,128)(2,1)}} parameter(1)
  %k = bf16[8,128,256]{{2,1,0:T(8,128)(2,1)}} parameter(2)
  %y = bf16[1024,256]{{1,0:T(8,128)(2,1)}} custom-call(%e, %x, %k), {said}
  ROOT %g = bf16[8,128,256]{{2,1,0:T(8,128)(2,1)}} custom-call(%e, %x, %y), {said}
}}
""")
    ((entry, (*_, forward, gradient)),) = program.computations.items()
    reader = Reader(program, choices=128)  # an eighth of the slots, as with eight devices in ``expert``
    rows, kernels, ends = 2 * 1024 * (128 + 256), 2 * 8 * 128 * 256, 4 * 9
    for one in (forward, gradient):
        work = reader.work(entry, one)
        assert (work.matrix, work.unknown) == (2 * 128 * 128 * 256, 0)
        assert work.bytes == rows / 8 + kernels + ends
    assert Reader(program).work(entry, forward).bytes == rows + kernels + ends


def test_bytes_are_of_what_is_read_and_written_in_large_memory_with_its_padding():
    bfloat16 = "bf16[512,72]{1,0:T(8,128)(2,1)}"
    padded = 512 * 128 * 2
    fused = (
        f"%cut (p0: {bfloat16}, p1: s32[]) -> bf16[8,72] {{",
        f"  %p0 = {bfloat16} parameter(0)",
        "  %p1 = s32[] parameter(1)",
        "  %part = bf16[8,72]{1,0:T(8,128)(2,1)} dynamic-slice(%p0, %p1, %p1), dynamic_slice_sizes={8,72}",
        "  ROOT %twice = bf16[8,72]{1,0:T(8,128)(2,1)S(1)} add(%part, %part)",
        "}",
        f"%set (p0: {bfloat16}, p1: bf16[8,72], p2: s32[]) -> {bfloat16} {{",
        f"  %p0 = {bfloat16} parameter(0)",
        "  %p1 = bf16[8,72]{1,0:T(8,128)(2,1)S(1)} parameter(1)",
        "  %p2 = s32[] parameter(2)",
        f"  ROOT %new = {bfloat16} dynamic-update-slice(%p0, %p1, %p2, %p2)",
        "}",
    )
    begun = (f"%x = {bfloat16} parameter(0)", "%i = s32[]{:S(6)} parameter(1)")
    assert work_of(*begun, f"ROOT %y = {bfloat16} copy(%x)")[1] == 2 * padded
    part, host = "bf16[8,72]{1,0:T(8,128)(2,1)}", bfloat16.replace(")}", ")S(5)}")
    sent = f"(({host}, {part}, s32[], s32[]), {host}, u32[]{{:S(2)}}) async-start(%x, %x, %i, %i), calls=%put"
    assert work_of(*begun, f"ROOT %y = {sent}")[1] == padded / 64, "a part that goes to the host is read here"
    cut = "%y = bf16[8,72]{1,0:T(8,128)(2,1)S(1)} fusion(%x, %i), kind=kLoop, calls=%cut"
    assert work_of(*begun, cut, more=fused)[1] == padded / 64, "only the slice is read; the sum is in a faster memory"
    put = f"ROOT %z = {bfloat16} fusion(%x, %y, %i), kind=kLoop, calls=%set"
    assert work_of(*begun, cut, put, more=fused)[1] == 2 * padded / 64, "only the part is written"


LOOP = """
%body (s: (f32[8], u32[])) -> (f32[8], u32[]) {
  %two = u32[] constant(2)
  %s = (f32[8], u32[]) parameter(0)
  %x = f32[8] get-tuple-element(%s), index=0
  %n = u32[] get-tuple-element(%s), index=1
  %next = u32[] add(%n, %two)
  %sent = (f32[8], f32[8], u32[], u32[]) collective-permute-start(%x), channel_id=2, source_target_pairs={{0,1},{1,0}}
  %got = f32[8] collective-permute-done(%sent)
  ROOT %t = (f32[8], u32[]) tuple(%got, %next)
}
%condition (s: (f32[8], u32[])) -> pred[] {
  %eight = u32[] constant(8)
  %s = (f32[8], u32[]) parameter(0)
  %n = u32[] get-tuple-element(%s), index=1
  ROOT %less = pred[] compare(%n, %eight), direction=LT
}
ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8] parameter(0)
  %zero = u32[] constant(0)
  %t = (f32[8], u32[]) tuple(%x, %zero)
  %w = (f32[8], u32[]) while(%t), condition=%condition, body=%body
  ROOT %y = f32[8] get-tuple-element(%w), index=0
}
"""


def test_a_loop_whose_counter_goes_up_by_two_runs_half_as_often():
    read = hlo.read(LOOP)
    (one,) = collectives(read, v5e().mesh)
    assert (one.kind, one.times, one.total) == ("collective-permute", 4, 4 * 32)
    (whole,) = collectives(hlo.read(LOOP.replace("constant(2)", "constant(1)")), v5e().mesh)
    assert whole.times == 8


@pytest.mark.parametrize(
    ("sizes", "axis", "links"),
    [
        ({"fsdp": 16}, "fsdp", 2),  # both sides, each a line
        ({"data": 4, "fsdp": 4}, "fsdp", 1),
        ({"data": 8, "fsdp": 2}, "fsdp", 1),
    ],
)
def test_a_slice_of_lines_has_one_link_a_side_at_its_ends(sizes, axis, links):
    assert v5e(sizes).rate((axis,)) == links * TPUS["TPU v5 lite"].link


def test_a_whole_pod_and_a_cube_are_rings():
    def machine(kind, shape):
        places = list(np.ndindex(*shape))
        devices = np.array([Chip(n, 0, (*place, 0)[:3]) for n, place in enumerate(places)], dtype=object)
        return machine_of(kind, Mesh(devices.reshape(1, -1, 1, 1, 1), sharding.AXES))

    assert machine("TPU v5 lite", (16, 16)).rate(("fsdp",)) == 4 * 50e9
    assert machine("TPU v5", (4, 4, 4)).rate(("fsdp",)) == 6 * 100e9
    assert machine("TPU v5", (2, 2, 1)).rate(("fsdp",)) == 2 * 100e9


def test_least_times_of_collectives_are_those_of_the_bytes_that_arrive():
    machine = v5e()
    assert machine.seconds("all-gather", 16e9, ("fsdp",)) == pytest.approx(15e9 / 100e9)
    assert machine.seconds("reduce-scatter", 1e9, ("fsdp",)) == pytest.approx(15e9 / 100e9)
    assert machine.seconds("all-reduce", 16e9, ("fsdp",)) == pytest.approx(30e9 / 100e9)
    assert machine.seconds("collective-permute", 1e9, ("fsdp",)) == pytest.approx(1e9 / 100e9)
    of_two = v5e({"data": 2, "fsdp": 16}, slices=2)
    assert of_two.seconds("all-reduce between slices", 1e9, ("data",)) == pytest.approx(1e9 / 3.125e9)


def gathered(*between: str, done: str = "%g = f32[65536,2048] all-gather-done(%s)") -> hlo.Program:
    """A gather of 512 MiB over 16 chips, 5.03 ms, with what stands between its start and its end."""
    return program(
        entry(
            "%x = f32[4096,2048] parameter(0)",
            "%a = bf16[8192,8192] parameter(1)",
            f"%s = (f32[4096,2048], f32[65536,2048]) all-gather-start(%x), channel_id=1, {GROUPS}, dimensions={{0}}, "
            'metadata={op_name="jit(step)/jvp()/dot_general" stack_frame_id=2}',
            *between,
            done,
        )
    )


def test_what_stands_between_a_start_and_its_end_hides_it():
    machine, dot = v5e(), "%d = bf16[8192,8192] dot(%a, %a), lhs_contracting_dims={1}, rhs_contracting_dims={0}"
    lasting, computing = 15 / 16 * 2**29 / 100e9, 2 * 8192**3 / 197e12
    assert lasting < computing
    reads = 2**29 / 16 / 819e9 + 2**29 / 819e9  # what the transfer itself reads and writes is not waited for
    for between, exposed in (((), lasting), ((dot,), 0.0)):
        read = gathered(*between)
        told = forecast(Reader(read), all_collectives(read, machine.mesh), machine)
        assert sum(wait.exposed for wait in told.waits) == pytest.approx(exposed, abs=1e-9)
        assert told.by_matrix == pytest.approx(computing * len(between))
        assert told.seconds == pytest.approx(max(lasting, computing * len(between)), abs=reads)
    small = gathered(dot.replace("8192,8192]", "8192,1024]", 1).replace("(%a, %a)", "(%a, %b)"))
    told = forecast(Reader(small), all_collectives(small, machine.mesh), machine)
    assert sum(wait.exposed for wait in told.waits) == pytest.approx(lasting - told.by_matrix, rel=1e-3)


FRAMES = """
FileNames
1 "/somewhere/jaxmm/models/linear.py"
2 "/somewhere/jaxmm/models/block.py"
3 "/somewhere/jaxmm/models/decoder.py"

FunctionNames
1 "_mapped_by"
2 "SwiGLU.__call__"
3 "Decoder._run.<locals>.call"

FileLocations
1 {file_name_id=3 function_name_id=3 line=200 end_line=200 column=1 end_column=2}
2 {file_name_id=2 function_name_id=2 line=77 end_line=77 column=1 end_column=2}
3 {file_name_id=1 function_name_id=1 line=9 end_line=9 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}

"""


@pytest.mark.parametrize(
    ("name", "when"),
    [
        ("jit(step)/jvp()/while/body/dot_general", "forward"),
        ("jit(step)/transpose(jvp())/while/body/dot_general", "backward"),
        ("jit(step)/transpose(jvp())/checkpoint/rematted_computation/dot_general", "made again"),
    ],
)
def test_a_collective_is_told_by_the_source_that_asks_for_it(name, when):
    text = FRAMES + entry(
        "%x = f32[4096,2048] parameter(0)",
        f"ROOT %g = f32[65536,2048] all-gather(%x), channel_id=1, {GROUPS}, dimensions={{0}}, "
        f'metadata={{op_name="{name}" stack_frame_id=3}}',
    )
    read = hlo.read(text)
    (one,) = collectives(read, v5e().mesh)
    assert words.of_collective(read, one) == f"gather of decoder SwiGLU (models/block.py:77), {when}"
    figures = roofline.of_program(read, v5e(), v5e().mesh, 1e12, {"decoder": 0.0})
    (wait,) = figures["waits"]
    assert (wait["what"], wait["over"]) == (words.of_collective(read, one), "fsdp")
    assert wait["seconds"] == pytest.approx(wait["of"]) == pytest.approx(15 / 16 * 2**29 / 100e9)
    assert figures["binds"] == "links over fsdp"
    assert figures["in_order_seconds"] >= figures["least_seconds"] > 0
    assert any("more rows a device" in hint for hint in figures["would_change_it"])


def test_pairs_of_attention_are_those_of_the_part_whose_source_asks_for_it():
    frames = FRAMES.replace("models/decoder.py", "models/towers/{}.py")
    call = (
        'ROOT %o = bf16[2,64,32] custom-call(%q, %q, %q), custom_call_target="tpu_custom_call", '
        'metadata={op_name="splash_mha_fwd" stack_frame_id=3}'
    )
    for file, share in (("audio", 0.25), ("vit", 0.5)):
        read = hlo.read(frames.replace("{}", file) + entry("%q = bf16[2,64,32] parameter(0)", call))
        shares = {"decoder": 1.0, "vision": 0.5, "audio": 0.25}
        figures = roofline.of_program(read, None, v5e().mesh, 0.0, shares)
        assert figures["matrix_flops"] == 2 * 2 * 2 * 64**2 * 32 * share


def test_pairs_that_attention_kernels_meet_are_counted_by_kernel():
    heads = "bf16[16,8192,128]"
    lines = [f"%{name} = {heads} parameter({n})" for n, name in enumerate("qkv")]
    for name, matmuls in (
        ("splash_mha_fwd_residuals", 2),
        ("splash_mha_dq", 3),
        ("splash_mha_dkv", 4),
        ("other", None),
    ):
        call = f'ROOT %o = {heads} custom-call(%q, %k, %v), custom_call_target="tpu_custom_call"'
        read = program(entry(*lines, f'{call}, metadata={{op_name="{name}"}}'))
        figures = roofline.of_program(read, None, v5e().mesh, 0.0, {"decoder": 1 / 16})
        assert figures["matrix_flops"] == (matmuls or 0) * 2 * 16 * 8192**2 / 16 * 128
        assert figures["kernels_of_unknown_flops"] == (matmuls is None)


@pytest.mark.parametrize(
    ("sizes", "axis", "rate"),
    [
        ((1, 8, 1), "fsdp", 450e9),  # one node: NVLink
        ((1, 32, 1), "fsdp", 400e9),  # what all gather comes into a node once, by its eight cards
        ((1, 4, 8), "expert", 450e9),
        ((1, 4, 8), "fsdp", 50e9),  # each GPU of a node gathers what no other of it does
        ((4, 8, 1), "data", 50e9),
    ],
)
def test_gpus_of_a_node_share_its_network(sizes, axis, rate):
    devices = np.array([Chip(n, 0, ()) for n in range(math.prod(sizes))], dtype=object)
    assert machine_of("NVIDIA H100", Mesh(devices.reshape(*sizes, 1, 1), sharding.AXES)).rate((axis,)) == rate


@pytest.mark.parametrize(
    ("axis", "remedy"), [("fsdp", "so many times the rows a device"), ("tensor", "a smaller config.mesh.tensor")]
)
def test_links_that_bind_tell_by_how_much_and_what_hides_them(axis, remedy):
    machine = machine_of("NVIDIA H100", sharding.make_mesh({axis: 8}))
    names = ("parameter_bytes", "optimizer_bytes", "gradient_bytes", "kept_bytes", "host_bytes")
    sizes = dict.fromkeys(names, 0.0)
    sent = {f"all-gather over {axis}": 3 * 450e9 * 8 / 7}  # three seconds, beside one of the matrix unit
    (hint,) = roofline.by_formula(machine, sizes | {"sent_bytes": sent}, 8 * 989e12)["would_change_it"]
    assert hint.startswith(f"links over {axis} take 3 times as long as the matrix unit")
    assert remedy in hint


def test_gpus_have_the_same_figures_by_the_formula():
    mesh = sharding.make_mesh({"fsdp": 8})
    machine = machine_of("NVIDIA H100", mesh)
    sizes = {"parameter_bytes": 1e9, "optimizer_bytes": 2e9, "gradient_bytes": 1e9, "kept_bytes": 4e9}
    sizes |= {"host_bytes": 0, "sent_bytes": {"all-gather over fsdp": 8e9}}
    figures = roofline.by_formula(machine, sizes, 8e15, 8e15 / 3)
    assert figures["least_seconds_of"] == pytest.approx(
        {"matrix unit": 4e15 / 3 / 989e12, "memory": 18e9 / 3350e9, "links over fsdp": 7e9 / 450e9}
    )
    assert figures["recomputed_share"] == pytest.approx(1 / 4)
    assert any("matrix unit" in line and "25% of it recomputation" in line for line in printed.forecast(figures, {}))
    assert figures["binds"] == "matrix unit"
    assert figures["most_mfu"] == pytest.approx(0.75)
    assert math.isfinite(machine.seconds("all-gather", 1e9, ("fsdp",)))
    # Each of two microbatches: parameters and what is kept twice, its gradients and their sum twice; what goes to the
    # host four times. Once: moments and what learns.
    figures = roofline.by_formula(machine, sizes | {"host_bytes": 3e9}, 8e15, 0.0, 2)
    assert figures["memory_bytes"] == 2 * (2 * (1e9 + 4e9) + 4 * 1e9 + 4 * 3e9) + 2 * (2e9 + 1e9)
    assert any("5.59 GiB go to the host's memory" in hint for hint in figures["would_change_it"])
