"""A run of seconds on a small dataset of the user's, for the tests of the commands."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import PIL.Image

from jaxmm import command, sharding
from jaxmm.checkpoints.params import saved_params, started_params
from jaxmm.config.file import load_workdir
from jaxmm.models.tree import flat
from jaxmm.recipe import read_recipe

ROOT = Path(__file__).parents[1]
PAGES = 8
COLOURS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 80, 220)}
TINY = (
    "--config.batch_size=8", "--config.seq_len=128", "--config.mesh.data=1", "--config.mesh.fsdp=8",
    "--config.image.min_pixels=256", "--config.image.max_pixels=1024",
    "--config.vision.width=16", "--config.vision.layers=1", "--config.vision.heads=2", "--config.vision.mlp=32",
    "--config.connector.mlp=32", "--config.decoder.width=32", "--config.decoder.layers=2", "--config.decoder.heads=2",
    "--config.decoder.head_dim=16", "--config.decoder.mlp=64", "--config.log.every=2", "--config.eval.every=4",
    "--config.checkpoint.every=2", "--config.log.tensorboard=False", "--config.optimizer.warmup=2",
    "--config.monitor.attention_every=-1", "--config.compute.dtype=float32",  # on every processor
    "--config.optimizer.schedule=constant",  # one that does not depend on the steps
)  # fmt: skip


# Nothing is held out: neither evaluation nor samples are compiled.
UNSEEN = ("--config.eval.path=", "--config.eval.mixture=")

SCANNED = "--config.compute.unroll=1"  # layers are compiled once, not each of them: most of the time of a tuned run


def make_data(folder: Path) -> Path:
    """A LLaMA-Factory folder: pictures of one colour with one-word answers, and plain text longer than a row."""
    records = []
    for i in range(24):
        name = list(COLOURS)[i % 3]
        PIL.Image.new("RGB", (32, 24), COLOURS[name]).save(folder / f"{i}.png")
        turns = [{"role": "user", "content": "<image>Colour?"}, {"role": "assistant", "content": name}]
        records.append({"messages": turns, "images": [f"{i}.png"]})
    (folder / "colours.json").write_text(json.dumps(records))
    (folder / "pages.jsonl").write_text("\n".join(json.dumps({"text": f"{i} " + "words " * 50}) for i in range(PAGES)))
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    columns = {"messages": "messages", "images": "images"}
    info = {
        "colours": {"file_name": "colours.json", "formatting": "sharegpt", "columns": columns, "tags": tags},
        "pages": {"file_name": "pages.jsonl", "columns": {"prompt": "text"}},
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def arguments(data: Path, cache: Path, config: str = "base") -> list[str]:
    """Of ``train``, for a run of 8 steps on that data."""
    info = data / "dataset_info.json"
    return [
        f"--config={ROOT / 'configs' / config}.py", *TINY, f"--config.data.cache={cache}", f"--config.data.path={info}",
        "--config.data.mixture=colours:0.7,pages:0.3", f"--config.eval.path={info}", "--config.eval.mixture=colours",
        "--config.steps=8",
    ]  # fmt: skip


def saved(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint by its name, as they lie on disk."""
    with warnings.catch_warnings(action="ignore"):  # Orbax warns that the arrays keep the sharding they were saved with
        tree = ocp.PyTreeCheckpointer().restore(workdir / "checkpoints" / str(step) / "state")
    return {name: np.asarray(array) for name, array in tree.items()}


def first_params(*arguments: str) -> dict[str, np.ndarray]:
    """What a run of these arguments begins with, by the names that its checkpoints have; nothing is trained."""
    parsed = command.parse(arguments, {}).config
    mesh = sharding.make_mesh(parsed.mesh)
    with jax.set_mesh(mesh), tempfile.TemporaryDirectory() as workdir:
        params = started_params(
            read_recipe(parsed), mesh, Path(workdir), init_from=parsed.init_from, seed=parsed.seed
        )  # fmt: skip
    return {".".join(("params", *path)): np.asarray(array) for path, array in flat(params).items()}


def params_of(workdir: Path, read: Callable[..., Any] = saved_params) -> dict[tuple[str, ...], np.ndarray]:
    """Of the newest checkpoint of a run, with the model beneath its adapters."""
    config = load_workdir(str(workdir))
    mesh = sharding.make_mesh(config.mesh)  # that of the run, which has compiled for it
    with jax.set_mesh(mesh):
        params = read(workdir, read_recipe(config, workdir), mesh)
    return {path: np.asarray(x) for path, x in flat(params).items()}


def assert_same_bits(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def start(arguments: list[str], workdir: Path, devices: int, **variables: str) -> subprocess.Popen:
    """Starts ``train`` in a process of its own, with so many virtual devices."""
    command = [sys.executable, "-m", "jaxmm.train", *arguments, f"--workdir={workdir}"]
    clean = environment(devices, **variables)
    return subprocess.Popen(command, env=clean, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(path: Path, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.05)


def environment(devices: int = 0, **variables: str) -> dict[str, str]:
    """For a program of its own: no job's, and with so many virtual devices, or as many as it makes itself."""
    jobs = ("SLURM_", "JAX_COORDINATOR", "JAX_NUM", "JAX_PROCESS", "JAX_LOCAL")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(jobs)}
    flags = [f for f in os.environ["XLA_FLAGS"].split() if "device_count" not in f]
    flags += [f"--xla_force_host_platform_device_count={devices}"] if devices else []
    return clean | {"XLA_FLAGS": " ".join(flags), "JAXMM_HUGE_PAGES": "0", **variables}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def by_variables(count: int, port: int) -> list[dict[str, str]]:
    """The environment of each process of a job on this machine."""
    address = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": str(count)}
    return [{**address, "JAX_PROCESS_ID": str(i)} for i in range(count)]
