"""Reading streams: what the host holds beside the parameters is under the largest tensor and a gigabyte."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import small_run

from jaxmm.hf import names, weights
from jaxmm.hf.decoders import DECODERS
from jaxmm.hf.tensor_files import Checkpoint
from jaxmm.models.decoder import DecoderSpec
from jaxmm.models.multimodal import ModelSpec, flat_axes
from jaxmm.models.routing import ExpertSpec

DENSE = DecoderSpec(vocab_size=100_000, width=2048, layers=7, heads=16, kv_heads=8, head_dim=128, mlp=6144)
EXPERTS = dataclasses.replace(DENSE, vocab_size=20_000, layers=3, qk_norm=True, experts=ExpertSpec(64, 8, 512))
KINDS = {"llama": DENSE, "qwen3_vl_moe_text": EXPERTS}  # by their tables of names
READ = """
import json, re, sys
from pathlib import Path
import jax
from jaxmm import sharding
from jaxmm.hf import folder as hf
from jaxmm.hf.decoders import DECODERS
from test_reading_memory import KINDS
from jaxmm.models.frozen import FrozenSpec
from jaxmm.models.multimodal import ModelSpec, flat_axes

def memory(name):
    return int(re.search(name + r":\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

kind, held_as = sys.argv[4:]
model = ModelSpec(decoder=KINDS[kind], frozen=FrozenSpec(held_as) if held_as else None)
mesh = sharding.make_mesh(json.loads(sys.argv[2]), jax.devices()[: int(sys.argv[3])])
axes = sharding.replicated(mesh) if int(sys.argv[3]) == 1 else None

def where(path, shape):
    return axes or jax.sharding.NamedSharding(mesh, sharding.partition(AXES[path][1], shape, mesh))

AXES = flat_axes(model.plain)
jax.block_until_ready(jax.numpy.zeros(8) + 1)
Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
before = memory("VmRSS")
with jax.set_mesh(mesh):  # as commands read
    found = hf.read_decoder(Path(sys.argv[1]), DECODERS[kind].rules, model, where)
    jax.block_until_ready(found.params)
held = sum(s.data.nbytes for p in found.params.values() for s in p.addressable_shards)
print(json.dumps({"peak": memory("VmHWM") - before, "held": held}))
"""


def patterned(shape: tuple[int, ...]) -> np.ndarray:
    """Numbers that are quickly made."""
    return np.resize(np.linspace(-1, 1, 4093, dtype=np.float32).astype(ml_dtypes.bfloat16), math.prod(shape)).reshape(
        shape
    )


def written(kind: str, folder: Path) -> Path:
    """1.5 GB of bfloat16 in files of 300 MB, those of embedding and head larger."""
    model = ModelSpec(decoder=KINDS[kind])
    shapes = {path: shape for path, (shape, _) in flat_axes(model).items() if path[0] == "decoder"}
    inputs = dict.fromkeys(shapes, 1)
    inputs[("decoder", "blocks", "attention", "out", "kernel")] = 2
    folder.mkdir()

    class Lazy:
        def __init__(self, shape: tuple[int, ...]):
            self.shape = shape

        def __getitem__(self, at: tuple[int, ...]) -> np.ndarray:
            return patterned(self.shape[len(at) :])

        def __array__(self, dtype=None, copy=None) -> np.ndarray:
            return patterned(self.shape)

    params = {path: Lazy(shape) for path, shape in shapes.items()}
    tensors = weights.outgoing(params, DECODERS[kind].rules, inputs, ml_dtypes.bfloat16)
    prefixes = {"text": "model.", "lm_head": "lm_head."}
    renamed = (tensor._replace(name=names.foreign_name(tensor.name, prefixes)) for tensor in tensors)
    # The largest ones last, as releases have the head: all else is held when they are read.
    last = sorted(renamed, key=lambda tensor: tensor.bytes)
    weights.write(folder, last, shard_bytes=300 << 20)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a kind, written once."""
    return functools.cache(lambda kind: written(kind, tmp_path_factory.mktemp("large") / kind))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "mesh", "devices", "held_as"),
    [
        pytest.param("llama", {"data": 1}, 1, "", marks=pytest.mark.full),
        ("llama", {"fsdp": 2, "tensor": 2}, 4, ""),
        pytest.param("qwen3_vl_moe_text", {"expert": 8}, 8, "", marks=pytest.mark.full),
        ("qwen3_vl_moe_text", {"fsdp": 8}, 8, "bfloat16"),
    ],
)
def test_the_host_holds_little_beside_the_parameters(kind, mesh, devices, held_as, folders):
    folder, model = folders(kind), ModelSpec(decoder=KINDS[kind])
    assert len(list(folder.glob("*.safetensors"))) > 3
    path = os.pathsep.join([str(small_run.ROOT), str(Path(__file__).parent), str(small_run.ROOT / "tests")])
    command = [sys.executable, "-c", READ, str(folder), json.dumps(mesh), str(devices), kind, held_as]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": path})
    found = json.loads(done.stdout.splitlines()[-1])
    each = 2 if held_as else 4
    parameters = sum(each * math.prod(shape) for path, (shape, _) in flat_axes(model).items() if path[0] == "decoder")
    assert found["held"] >= parameters
    beyond = found["peak"] - found["held"]
    largest = 2 * max(math.prod(entry.shape) for entry in Checkpoint(folder).entries.values())
    print(f"parameters {found['held'] / 1e9:.2f} GB, beyond them {beyond / 1e9:.2f} GB, largest tensor {largest / 1e9}")
    assert beyond < largest + 1e9
