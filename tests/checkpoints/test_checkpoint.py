"""Checkpoints: bit-equal onto any mesh, one atomic whole, never an incomplete one, the newest and the best kept."""

from __future__ import annotations

import json
import logging
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from orbax.checkpoint._src.metadata import checkpoint as metadata

from jaxmm.checkpoints import checksums
from jaxmm.checkpoints.checkpoint import Checkpoints
from jaxmm.errors import UserError


def make_mesh(*shape: int) -> jax.sharding.Mesh:
    devices = np.array(jax.devices()[: np.prod(shape)]).reshape(shape)
    return jax.sharding.Mesh(devices, ("fsdp", "tensor")[: len(shape)])


def make_state(mesh: jax.sharding.Mesh, seed: int = 0) -> dict:
    """What states hold: sharded and scalar arrays, empty and masked optimizer states, a raw PRNG key."""
    split, whole = NamedSharding(mesh, P(*mesh.axis_names)), NamedSharding(mesh, P())
    keys = jax.random.split(jax.random.PRNGKey(seed), 3)
    params = {
        "decoder": {"embedding": jax.device_put(jax.random.normal(keys[0], (16, 8)), split)},
        "vision": {"layers": [jax.device_put(jax.random.normal(key, (3,)), whole) for key in keys[1:]]},
        "half": jax.device_put(jnp.array([1.5, jnp.nan, -0.0], jnp.bfloat16), whole),
    }
    decay = {"decoder": True, "vision": False, "half": False}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.masked(optax.adamw(1e-3), decay))
    return {
        "params": params,
        "optimizer": optimizer.init(params),
        "step": jax.device_put(jnp.int32(7), whole),
        "key": jax.device_put(jax.random.PRNGKey(3), whole),
    }


def abstract(state: dict, mesh: jax.sharding.Mesh) -> dict:
    def onto(leaf: jax.Array) -> jax.ShapeDtypeStruct:
        spec = P(*mesh.axis_names[: leaf.ndim]) if leaf.ndim == 2 else P()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(onto, state)


def assert_same_bits(got: dict, want: dict) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A folder with one checkpoint, of step 1."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(1, make_state(make_mesh(4, 2)), {"position": 12, "config": {"seed": 0}}, metric=0.5)
    return folder


@pytest.mark.parametrize("shape", [(4, 2), (2, 4), (8,), (1, 1)])
def test_a_state_is_bit_equal_on_every_mesh(saved, shape):
    mesh = make_mesh(*shape)
    state = make_state(make_mesh(4, 2))
    restored = Checkpoints(saved).restore(abstract(state, mesh))
    assert_same_bits(restored, state)
    assert restored["params"]["decoder"]["embedding"].sharding == NamedSharding(mesh, P(*mesh.axis_names))


def test_the_meta_record_comes_back(saved):
    assert Checkpoints(saved).meta() == {"position": 12, "config": {"seed": 0}}


def test_a_part_restores_without_the_rest(saved, tmp_path):
    state = make_state(make_mesh(4, 2))
    checkpoints = Checkpoints(saved)
    params = abstract(state["params"], make_mesh(2))
    assert_same_bits(checkpoints.restore_part(params, "params"), state["params"])
    assert_same_bits(checkpoints.restore_part(params["vision"], "params.vision"), state["params"]["vision"])
    with pytest.raises(UserError, match=r"params\.half is only in it"):
        checkpoints.restore_part({name: params[name] for name in ("decoder", "vision")}, "params")


def test_a_state_may_be_donated_right_after_save(tmp_path):
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    state = step({"w": jax.random.normal(jax.random.key(0), (512, 512))})
    want = {"w": np.array(state["w"])}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        for _ in range(10):
            state = step(state)
        assert_same_bits(checkpoints.restore({"w": want["w"]}), want)


def test_a_checkpoint_is_whole_however_late_orbax_writes_what_it_says_of_itself(tmp_path, monkeypatch):
    """It does so in a thread of its own, which here waits until somebody waits for it."""
    is_awaited, update, asked = threading.Event(), metadata._MetadataStoreImpl.update, []

    def late(store, *args, **changes):
        asked.append(is_awaited.wait(5))
        update(store, *args, **changes)

    def awaited(seconds: float) -> None:
        is_awaited.set()
        time.sleep(seconds)

    monkeypatch.setattr(metadata._MetadataStoreImpl, "update", late)
    monkeypatch.setattr(checksums, "time", SimpleNamespace(sleep=awaited, monotonic=time.monotonic))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": jnp.ones(3)}, {})
    assert asked[0]
    assert checksums.verify(tmp_path / "1") is None


def test_an_empty_or_missing_folder_has_no_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path / "none")
    assert checkpoints.latest() is None
    assert checkpoints.best() is None
    assert not (tmp_path / "none").exists()
    with pytest.raises(UserError, match="holds no complete checkpoint"):
        checkpoints.meta()


def test_the_newest_and_the_best_stay(tmp_path):
    metrics = {1: 5.0, 2: 1.0, 3: float("nan"), 4: 3.0, 5: None, 6: 4.0}
    state = {"w": jnp.ones(3)}
    with Checkpoints(tmp_path, keep=2, keep_best=1) as checkpoints:
        for step, metric in metrics.items():
            checkpoints.save(step, state, {"step": step}, metric)
        assert checkpoints.steps() == [2, 5, 6]
    with Checkpoints(tmp_path, keep=1, keep_best=2) as checkpoints:  # metrics are remembered over a restart
        assert (checkpoints.latest(), checkpoints.best()) == (6, 2)
        checkpoints.save(7, state, {"step": 7}, 9.0)
        assert checkpoints.steps() == [2, 6, 7]
        assert checkpoints.meta(2) == {"step": 2}


def test_saving_a_step_twice_keeps_the_first(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, {"w": jnp.ones(3)}, {"first": True})
        checkpoints.save(3, {"w": jnp.zeros(3)}, {"first": False})
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, {"w": jnp.zeros(3)}, {"first": False})
        assert checkpoints.meta() == {"first": True}
        assert checkpoints.restore({"w": jnp.zeros(3)})["w"].tolist() == [1, 1, 1]


def test_no_lost_or_truncated_file_goes_unnoticed(saved, tmp_path, capsys):
    state = make_state(make_mesh(4, 2))
    wanted = abstract(state, make_mesh(1))
    files = sorted(path.relative_to(saved / "1") for path in (saved / "1").rglob("*") if path.is_file())
    rejected = 0
    for file in files:
        for keep_half in (False, True):
            folder = tmp_path / "copy"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(saved, folder)
            data = (folder / "1" / file).read_bytes()
            (folder / "1" / file).write_bytes(data[: len(data) // 2]) if keep_half else (folder / "1" / file).unlink()
            checkpoints = Checkpoints(folder)
            if checkpoints.latest() is None:
                rejected += 1
                warning = capsys.readouterr().err
                assert warning.startswith(
                    ("warning: ignoring the incomplete checkpoint", "warning: ignoring the damaged checkpoint")
                )
                assert warning.count("\n") == 1
            else:  # a file that nothing needs, such as Orbax's commit marks
                assert_same_bits(checkpoints.restore(wanted), state)
    assert rejected >= 8


def test_an_incomplete_checkpoint_is_passed_over_and_its_step_saved_again(saved, tmp_path, capsys):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    shutil.copytree(saved / "1", tmp_path / "2")
    (tmp_path / "2" / "state" / "manifest.ocdbt").unlink()
    (tmp_path / "3.orbax-checkpoint-tmp" / "state.orbax-checkpoint-tmp").mkdir(parents=True)
    state = make_state(make_mesh(4, 2))
    before = sorted(path.name for path in tmp_path.iterdir())
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 1
        assert checkpoints.best() == 1
        with pytest.raises(UserError, match="no complete checkpoint of step 2 "):
            checkpoints.meta(2)
        assert sorted(path.name for path in tmp_path.iterdir()) == before  # reading changes nothing
        checkpoints.save(2, state, {"again": True})
        assert checkpoints.latest() == 2
        assert checkpoints.meta() == {"again": True}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2", "2.incomplete"]
    assert capsys.readouterr().err.count("\n") == 1


def as_of_version_0_1(checkpoint: Path) -> None:
    """Takes the checksums away, and what says that there are some."""
    (checkpoint / "checksums.json").unlink()
    step = checkpoint / "_CHECKPOINT_METADATA"
    step.write_text(json.dumps({**json.loads(step.read_text()), "custom_metadata": {}}))


def test_a_flipped_bit_in_any_file_is_found_and_the_checkpoint_before_taken(saved, tmp_path, capsys):
    state, rng = make_state(make_mesh(4, 2)), random.Random(0)
    wanted = abstract(state, make_mesh(1))
    shutil.copytree(saved / "1", tmp_path / "1")
    files = sorted(path.relative_to(saved / "1") for path in (saved / "1").rglob("*") if path.is_file())
    unneeded = {Path("commit_success.txt")}  # Orbax writes it last, and nothing reads it
    assert len(files) > 10
    assert unneeded < set(files)
    for file in (file for file in files if file not in unneeded):
        shutil.rmtree(tmp_path / "2", ignore_errors=True)
        shutil.copytree(saved / "1", tmp_path / "2")
        damaged = tmp_path / "2" / file
        content = bytearray(damaged.read_bytes())
        outside = content.find(b"commit_timestamp_nsecs") if file.name == "_CHECKPOINT_METADATA" else 0
        at = rng.randrange(outside or len(content))  # a commit's time may be any
        content[at] ^= 1 << rng.randrange(8)
        damaged.write_bytes(content)
        checkpoints = Checkpoints(tmp_path)
        assert checkpoints.latest() == 1, f"byte {at} of {file}"
        line = capsys.readouterr().err
        assert line.startswith(f"warning: ignoring the damaged checkpoint {tmp_path / '2'}: ")
        assert line.count("\n") == 1
    assert_same_bits(checkpoints.restore(wanted), state)
    assert checkpoints.best() == 1
    with pytest.raises(UserError, match=r"no complete checkpoint of step 2 .*2 cannot be read: the bytes of "):
        checkpoints.restore_part(wanted["params"], "params", step=2)


def test_a_checkpoint_of_version_0_1_is_read_with_a_line(saved, tmp_path, capsys):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    as_of_version_0_1(tmp_path / "1")
    state = make_state(make_mesh(4, 2))
    assert_same_bits(Checkpoints(tmp_path).restore(abstract(state, make_mesh(1))), state)
    line = capsys.readouterr().err
    assert "has no checksums" in line
    assert line.count("\n") == 1


def test_no_lost_or_truncated_file_of_version_0_1_is_taken_for_whole(saved, tmp_path, capsys):
    files = sorted(path.relative_to(saved / "1") for path in (saved / "1" / "state").rglob("*") if path.is_file())
    rejected = 0
    for file in files:
        for keep in (0.0, 0.5, 0.98):
            shutil.rmtree(tmp_path / "1", ignore_errors=True)
            shutil.copytree(saved / "1", tmp_path / "1")
            as_of_version_0_1(tmp_path / "1")
            data = (tmp_path / "1" / file).read_bytes()
            (tmp_path / "1" / file).write_bytes(data[: int(keep * len(data))])
            rejected += Checkpoints(tmp_path).latest() is None
    assert rejected >= 9  # the others nothing needs
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a b", "é漢字", "100%41", "x:y", "~", "..x", "new\nline", "'\"$HOME*"])
def test_a_run_may_lie_in_a_folder_of_any_name(saved, tmp_path, monkeypatch, name):
    (tmp_path / "beside").mkdir()
    shutil.copytree(saved, tmp_path / name)
    as_of_version_0_1(tmp_path / name / "1")
    monkeypatch.chdir(tmp_path / "beside")
    (tmp_path / "link").symlink_to(tmp_path / name)
    for folder in (Path("..") / name, tmp_path / "beside" / ".." / name, Path("../link"), tmp_path / name):
        assert Checkpoints(folder).latest() == 1
    with Checkpoints(Path("..") / name) as checkpoints:
        checkpoints.save(2, {"w": jnp.ones(3)}, {})
    assert Checkpoints(Path("../link")).latest() == 2
    assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["1", "2"]


@pytest.mark.parametrize("damage", ["an index of another kind", "no permission"])
def test_a_checkpoint_that_cannot_be_read_but_is_not_proven_broken_stays_as_it_is(saved, tmp_path, monkeypatch, damage):
    for step in ("1", "2"):
        shutil.copytree(saved / "1", tmp_path / step)
    if damage == "no permission":
        denied = tmp_path / "2" / "meta" / "metadata"
        original = Path.open

        def refuse(path, *args, **kwargs):
            if path == denied:
                raise PermissionError(13, "Permission denied", str(path))
            return original(path, *args, **kwargs)

        monkeypatch.setattr(Path, "open", refuse)
    else:
        as_of_version_0_1(tmp_path / "2")
        manifest = tmp_path / "2" / "state" / "manifest.ocdbt"
        manifest.write_bytes(manifest.read_bytes()[:12] + bytes(manifest.stat().st_size - 12))
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(UserError, match=r"does not prove it broken.* from step 1"),
    ):
        checkpoints.latest()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]
    shutil.rmtree(tmp_path / "1")  # then there is nothing to go on from
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match=r"mend that, or give another --workdir$"):
        checkpoints.latest()


def test_a_broken_checkpoint_put_aside_is_removed_by_a_newer_save_and_one_that_may_be_whole_is_not(
    saved, tmp_path, capsys
):
    shutil.copytree(saved / "1", tmp_path / "1.incomplete")  # version 0.1 renamed whole ones too
    for step in ("1", "2"):
        shutil.copytree(saved / "1", tmp_path / step)
    (tmp_path / "2" / "state" / "manifest.ocdbt").unlink()
    told = []
    with Checkpoints(tmp_path, on_save=told.append) as checkpoints:
        checkpoints.save(2, {"w": jnp.ones(3)}, {})
        checkpoints.wait()
        assert "manifest.ocdbt is missing" in (tmp_path / "2.incomplete" / "fault.txt").read_text()
        checkpoints.save(3, {"w": jnp.ones(3)}, {})
        while told != [2, 3]:
            checkpoints.settle()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "1.incomplete", "2", "3"]
    assert "removed " in capsys.readouterr().err


def test_names_that_are_no_steps_are_left_alone(saved, tmp_path):
    shutil.copytree(saved / "1", tmp_path / "1")
    for name in ("0012", "٣", "notes", "7.orbax-checkpoint-tmp"):
        (tmp_path / name / "state").mkdir(parents=True)
    (tmp_path / "99").write_text("a file")
    assert Checkpoints(tmp_path).latest() == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w": jnp.ones((3, 2))}, r"w is float32\[2, 3\] there and float32\[3, 2\] here"),
        ({"w": jnp.ones((2, 3), jnp.bfloat16)}, r"w is float32\[2, 3\] there and bfloat16\[2, 3\] here"),
        ({"v": jnp.ones((2, 3))}, r"v is not in it \(and 1 more\)"),
        ({"w": jnp.ones((2, 3)), "v": jnp.ones(1)}, "v is not in it"),
    ],
)
def test_another_structure_is_one_line_that_names_the_array(tmp_path, change, message):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": jnp.ones((2, 3))}, {})
        with pytest.raises(UserError, match=message) as error:
            checkpoints.restore(change)
    assert "\n" not in str(error.value)


def test_damaged_bytes_are_one_line(tmp_path):
    state = {"w": jax.random.normal(jax.random.key(0), (512, 512))}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
    largest = max((path for path in tmp_path.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    largest.write_bytes(bytes(largest.stat().st_size))
    with pytest.raises(UserError, match="cannot be read") as error:
        Checkpoints(tmp_path).restore(state)
    assert "\n" not in str(error.value)


def test_a_save_that_fails_is_one_line_and_keeps_the_older_checkpoint(tmp_path, caplog):
    state = {"w": jax.random.normal(jax.random.key(0), (512, 512))}
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, state, {})
        checkpoints.wait()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # as a full disk
        try:
            checkpoints.save(2, state, {})
            with pytest.raises(UserError, match="step 2 could not be saved"):
                checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert checkpoints.latest() == 1
        checkpoints.save(2, state, {})
        assert checkpoints.latest() == 2
    assert not caplog.records  # Orbax would print a traceback


@pytest.mark.parametrize("room", [0, 50, 100, 300, 700, 2000])
def test_a_disk_that_is_full_at_any_byte_of_a_save_is_one_line(tmp_path, room):
    state = {"w": jax.random.normal(jax.random.key(0), (64, 64)), "v": jnp.ones(3)}
    meta = {"config": {str(n): n for n in range(100)}}

    def save_twice() -> None:
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(1, state, meta)
            checkpoints.wait()
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
            try:
                checkpoints.save(2, state, meta)
                checkpoints.wait()
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(UserError, match="step 2 could not be saved"):
        save_twice()
    assert Checkpoints(tmp_path).latest() == 1


def test_orbax_says_nothing_on_the_terminal(tmp_path, capfd):
    absl = logging.getLogger("absl")
    level = absl.level
    absl.setLevel(logging.DEBUG)
    try:
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(1, {"w": jnp.ones(3)}, {})
            checkpoints.restore({"w": jnp.ones(3)})
    finally:
        absl.setLevel(level)
    assert capfd.readouterr() == ("", "")


LOOP = """
import sys, jax, jax.numpy as jnp
from pathlib import Path
from jaxmm.checkpoints.checkpoint import Checkpoints
with Checkpoints(Path(sys.argv[1])) as checkpoints:
    first = (checkpoints.latest() or 0) + 1
    for step in range(first, first + 1000):
        checkpoints.save(step, {"w": jnp.full((512, 512), step)}, {"step": step}, metric=1 / step)
        print(step, flush=True)
"""


@pytest.mark.slow
def test_a_kill_while_saving_leaves_a_complete_newest_checkpoint(tmp_path):
    newest = 0
    for delay in (0.0, 0.013, 0.05, 0.12):
        process = subprocess.Popen([sys.executable, "-c", LOOP, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        started = [int(process.stdout.readline()) for _ in range(4)][-1]
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        checkpoints = Checkpoints(tmp_path)
        step = checkpoints.latest()
        assert step is not None
        assert step >= started - 1 > newest
        assert checkpoints.meta() == {"step": step}
        assert checkpoints.restore({"w": jnp.zeros((512, 512), jnp.int32)})["w"].tolist() == [[step] * 512] * 512
        newest = step
