"""Folders of safetensors: what is broken, missing or unknown is one line; what is read lies where it belongs."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jaxmm import sharding
from jaxmm.errors import UserError
from jaxmm.hf import names, tensor_files, weights
from jaxmm.hf.names import Rule

RULES = [
    Rule("text.embed_tokens.weight", ("decoder.embedding",)),
    Rule("text.layers.{i}.mlp.up_proj.weight", ("decoder.blocks.mlp.up.kernel",), "transpose"),
]
EMBEDDING, UP = ("decoder", "embedding"), ("decoder", "blocks", "mlp", "up", "kernel")
SHAPES = {EMBEDDING: (6, 4), UP: (2, 4, 8)}


def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    found = {f"model.layers.{i}.mlp.up_proj.weight": rng.normal(size=(8, 4)).astype(np.float32) for i in range(2)}
    return found | {"model.embed_tokens.weight": rng.normal(size=(6, 4)).astype(np.float32)}


def parameters(mesh=None, shapes=SHAPES):
    mesh = mesh or sharding.make_mesh({"data": 1}, jax.devices()[:1])
    axes = {EMBEDDING: ("vocab", "embed"), UP: ("layers", "embed", "mlp")}
    return {
        path: (shape, jax.sharding.NamedSharding(mesh, sharding.partition(axes[path], shape, mesh)))
        for path, shape in shapes.items()
    }


def read(folder: Path, **options):
    checkpoint = tensor_files.Checkpoint(folder)
    return weights.read_params(checkpoint, RULES, options.pop("parameters", parameters()), **options)


def saved(folder: Path, **changes: np.ndarray | None) -> Path:
    found = {name: value for name, value in (tensors() | changes).items() if value is not None}
    safetensors.numpy.save_file(found, folder / "model.safetensors")
    return folder


def test_layers_are_stacked_and_maps_turned_round(tmp_path):
    params, spare = read(saved(tmp_path))
    np.testing.assert_array_equal(params[EMBEDDING], tensors()["model.embed_tokens.weight"])
    for i in range(2):
        np.testing.assert_array_equal(params[UP][i], tensors()[f"model.layers.{i}.mlp.up_proj.weight"].T)
    assert spare == []


def test_tensors_with_numbers_that_are_not_finite_are_named(tmp_path):
    name = "model.layers.1.mlp.up_proj.weight"
    broken = tensors()[name]
    broken[3, 2] = np.nan
    with pytest.raises(UserError, match=f"has 1 tensors with numbers that are not finite: {name}: download"):
        read(saved(tmp_path, **{name: broken}))
    grown = {path: ((8, 4) if path == EMBEDDING else shape) for path, shape in SHAPES.items()}
    embedding = tensors()["model.embed_tokens.weight"]
    embedding[0, 0] = -np.inf
    with pytest.raises(UserError, match=r"has 2 tensors .* model.embed_tokens.weight"):
        read(
            saved(tmp_path, **{name: broken, "model.embed_tokens.weight": embedding}),
            parameters=parameters(shapes=grown), grows=[EMBEDDING],
        )  # fmt: skip


def test_each_tensor_goes_to_its_own_devices(tmp_path):
    mesh = sharding.make_mesh({"fsdp": 2, "tensor": 2}, jax.devices()[:4])
    params, _ = read(saved(tmp_path), parameters=parameters(mesh))
    whole, _ = read(tmp_path)
    for path, value in params.items():
        assert value.sharding.spec == parameters(mesh)[path][1].spec
        np.testing.assert_array_equal(value, whole[path])
    assert params[UP].addressable_shards[0].data.shape == (2, 2, 4)


def test_a_large_tensor_comes_in_pieces_and_is_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "MOVED_BYTES", 16)  # 1 row, or 2 of those that are split over devices
    mesh = sharding.make_mesh({"fsdp": 2, "tensor": 2}, jax.devices()[:4])
    for placed, around in ((parameters(mesh), mesh), (parameters(mesh), None), (parameters(), None)):
        with jax.set_mesh(around) if around else contextlib.nullcontext():  # as commands read
            params, _ = read(saved(tmp_path), parameters=placed)
        np.testing.assert_array_equal(params[EMBEDDING], tensors()["model.embed_tokens.weight"])
        np.testing.assert_array_equal(params[UP][1], tensors()["model.layers.1.mlp.up_proj.weight"].T)


@pytest.mark.parametrize("padding", range(8))
def test_tensors_may_begin_anywhere_in_their_file(tmp_path, padding):
    half = {name: value.astype(ml_dtypes.bfloat16) for name, value in tensors().items()}
    file = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(half, file)
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    file.write_bytes((size + padding).to_bytes(8, "little") + data[8 : 8 + size] + b" " * padding + data[8 + size :])
    params, _ = read(tmp_path)
    np.testing.assert_array_equal(params[EMBEDDING], half["model.embed_tokens.weight"].astype(np.float32))


def test_half_precision_is_held_to_the_bit(tmp_path):
    half = {name: value.astype(ml_dtypes.bfloat16) for name, value in tensors().items()}
    safetensors.numpy.save_file(half, tmp_path / "model.safetensors")
    params, _ = read(tmp_path)
    assert params[EMBEDDING].dtype == np.float32
    np.testing.assert_array_equal(params[EMBEDDING], half["model.embed_tokens.weight"].astype(np.float32))


def test_several_files_with_an_index_are_one_checkpoint(tmp_path):
    made = [
        weights.Outgoing(name, value.nbytes, lambda value=value: value) for name, value in sorted(tensors().items())
    ]  # fmt: skip
    weights.write(tmp_path, made, shard_bytes=230)
    assert len(list(tmp_path.glob("model-*-of-00002.safetensors"))) == 2
    params, _ = read(tmp_path)
    np.testing.assert_array_equal(params[EMBEDDING], tensors()["model.embed_tokens.weight"])
    index = json.loads((tmp_path / tensor_files.INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in tensors().values())


def test_new_rows_of_the_vocabulary_are_the_mean_of_the_old(tmp_path):
    grown = parameters(shapes={**SHAPES, EMBEDDING: (9, 4)})
    params, _ = read(saved(tmp_path), parameters=grown, grows=[EMBEDDING])
    old = tensors()["model.embed_tokens.weight"]
    np.testing.assert_array_equal(params[EMBEDDING][:6], old)
    np.testing.assert_allclose(params[EMBEDDING][6:], np.broadcast_to(old.mean(0), (3, 4)), rtol=1e-6)


def test_what_our_model_does_not_use_is_kept_by_name(tmp_path):
    _, spare = read(saved(tmp_path, **{"vision_tower.vision_model.head.probe": np.ones((1, 4), np.float32)}))
    assert spare == ["vision_tower.vision_model.head.probe"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.embed_tokens.weight": None}, r"lacks 1 tensors .* text.embed_tokens.weight$"),
        (
            {"model.layers.2.mlp.up_proj.weight": np.ones((8, 4), np.float32)},
            r"has 1 tensors .* no place for: .*layers.2",
        ),
        ({"model.embed_tokens.weight": np.ones((6, 5), np.float32)}, r"another shape: .*\(6, 5\) for \(6, 4\)"),
        (
            {"model.layers.1.mlp.up_proj.weight": np.ones((4, 8), np.float32)},
            r"another shape: .*layers.1.* \(4, 8\) for \(8, 4\)",
        ),
        (
            {"language_model.model.embed_tokens.weight": np.ones((6, 4), np.float32)},
            "1 tensors a second time by another name: .* as ",
        ),
        (
            {"model.embed_tokens.weight": np.ones((6, 4), ml_dtypes.float8_e4m3fn)},
            "dtype F8_E4M3, which cannot be held",
        ),
        (
            {"model.embed_tokens.weight": np.ones((6, 4), np.float64)},
            "dtype F64, which cannot be held as float32: model.embed_tokens",
        ),
        (
            {"model.embed_tokens.weight": np.ones((6, 4), np.int8)},
            "dtype I8, which cannot be held as float32: model.embed_tokens",
        ),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        read(saved(tmp_path, **changes))
    assert "\n" not in str(caught.value)


def _tensor(header: dict) -> dict:
    return header["model.embed_tokens.weight"]


def _moved(header: dict, by: int) -> None:
    _tensor(header)["data_offsets"] = [offset + by for offset in _tensor(header)["data_offsets"]]


HEADERS = {  # what is done to a file's header
    "offsets beyond": lambda header: _moved(header, 1 << 20),
    "offsets over others": lambda header: _moved(header, 4),
    "shape of another size": lambda header: _tensor(header).update(shape=[6, 5]),
    "dtype nobody knows": lambda header: _tensor(header).update(dtype="I4X"),
    "no offsets": lambda header: _tensor(header).pop("data_offsets"),
    "huge shape": lambda header: _tensor(header).update(shape=[1 << 40, 1 << 40]),
}


def broken(folder: Path, how: str) -> None:
    file = folder / "model.safetensors"
    data = saved(folder) and file.read_bytes()
    if how == "truncated":
        file.write_bytes(data[:-20])
    elif how == "header":
        file.write_bytes(data[:8] + b"x" + data[9:])
    elif how == "length":
        file.write_bytes((1 << 60).to_bytes(8, "little") + data[8:])
    elif how in HEADERS:
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        HEADERS[how](header)
        text = json.dumps(header).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    elif how == "not JSON":
        file.write_bytes((4).to_bytes(8, "little") + b"oops")
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "page":
        file.write_text("<html>404</html>")
    elif how == "outside":
        (folder / tensor_files.INDEX).write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    elif how == "pickle in index":
        (folder / tensor_files.INDEX).write_text(json.dumps({"weight_map": {"a": "pytorch_model-1.bin"}}))
    elif how == "pickle":
        file.rename(folder / "pytorch_model.bin")
    elif how == "nothing":
        file.unlink()
    elif how == "no index":
        file.rename(folder / "model-00001-of-00002.safetensors")
    elif how == "gguf":
        file.rename(folder / "model-q4.gguf")
    elif how == "index":
        (folder / tensor_files.INDEX).write_text('{"weight_map": ')
    elif how == "missing file":
        (folder / tensor_files.INDEX).write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    elif how == "twice":
        safetensors.numpy.save_file(
            {"model.embed_tokens.weight": np.ones((6, 4), np.float32)}, folder / "b.safetensors"
        )
        files = {"a": "model.safetensors", "b": "b.safetensors"}
        (folder / tensor_files.INDEX).write_text(json.dumps({"weight_map": files}))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        *((how, "is not whole") for how in (*HEADERS, "truncated", "header", "length", "not JSON", "empty", "page")),
        ("outside", "../x.safetensors, which is not a file of this folder"),
        ("pickle in index", "pytorch_model-1.bin, a pickle, which may run code"),
        ("pickle", "pytorch_model.bin, a pickle, which may run code"), ("nothing", f"nor {tensor_files.INDEX}$"),
        ("no index", "though there is model-00001-of-00002.safetensors: download the index too"),
        ("gguf", "model-q4.gguf is not read: take the release with safetensors"),
        ("index", "is not a whole index"), ("missing file", "which is not there"), ("twice", r"is in .* and in "),
    ],
)  # fmt: skip
def test_broken_folders_are_one_line(tmp_path, how, message):
    broken(tmp_path, how)
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


def test_names_of_all_releases_come_to_one_spelling():
    for written in ("model.language_model.layers.0.x", "language_model.model.layers.0.x", "model.layers.0.x"):
        assert names.common_name(written) == "text.layers.0.x"
    for written in ("vision_tower.vision_model.encoder.x", "model.vision_tower.encoder.x", "vision_model.encoder.x"):
        assert names.common_name(written) == "vision.encoder.x"
    assert names.common_name("language_model.lm_head.weight") == names.common_name("lm_head.weight") == "lm_head.weight"
    assert names.common_name("model.visual.blocks.0.x") == names.common_name("visual.blocks.0.x") == "vision.blocks.0.x"
