"""Near checkpoints: bit-equal from a process's own part or from others', never of two lives, never of changed bytes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from small_run import by_variables, environment, free_port

from jaxmm.atomic import read_json, write_json
from jaxmm.checkpoints import near_part
from jaxmm.checkpoints.near import Near, forget, is_alive
from jaxmm.checkpoints.pieces import groups, places
from jaxmm.errors import UserError
from jaxmm.workdir.folder import note_first_save


def make_mesh(is_turned: bool = False) -> Mesh:
    """Two rows of devices, those of two processes; turned, the second process comes first."""
    devices = np.array(jax.devices()).reshape(2, 4)
    return Mesh(devices[::-1] if is_turned else devices, ("data", "fsdp"))


def make_state(step: int, mesh: Mesh | None = None) -> dict[str, jax.Array]:
    """Arrays of all layouts: split by one axis or both, whole, a scalar, one in half precision with odd values."""
    mesh = mesh or make_mesh()
    odd = np.array([1.5, jnp.nan, -0.0, jnp.inf], jnp.bfloat16)
    layouts = {
        "rows": (np.arange(64, dtype=np.float32).reshape(8, 8) + step, P("fsdp")),
        "both": (np.arange(64, dtype=np.float32).reshape(8, 8) - step, P("fsdp", "data")),
        "whole": (np.arange(3, dtype=np.uint8) + step, P()), "step": (np.int32(step), P()), "odd": (odd, P("fsdp")),
        "none": (np.zeros((0, 4), np.float32), P()),
    }  # fmt: skip
    return {
        name: jax.make_array_from_callback(value.shape, NamedSharding(mesh, spec), lambda index, all=value: all[index])
        for name, (value, spec) in layouts.items()
    }


def assert_same_bits(got: dict[str, jax.Array], want: dict[str, jax.Array]) -> None:
    for name, array in want.items():
        assert got[name].sharding == array.sharding
        assert (got[name].dtype, np.asarray(got[name]).tobytes()) == (array.dtype, np.asarray(array).tobytes()), name


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def made(tmp_path, said):
    """Makes the near checkpoints of one run, which has saved step 4."""
    note_first_save(tmp_path, 4)

    def make(mesh: Mesh | None = None) -> Near:
        said.clear()
        return Near(str(tmp_path / "near"), tmp_path, mesh or make_mesh(), said.append)

    return make


@pytest.fixture
def saved(made) -> Path:
    """The folder of those of steps 5 to 8, of one life."""
    with made() as near:
        assert near.choose(4) is None
        near.begin()
        for step in range(5, 9):
            near.wait()
            near.save(step, make_state(step), {"position": step})
    return near.folder


def steps(folder: Path) -> list[str]:
    return sorted(path.name.partition(".")[0] for path in folder.iterdir())


def flip(folder: Path, step: int, file: str = "pieces.0") -> None:
    (path,) = folder.glob(f"{step}.*/{file}")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def test_the_newest_two_stay_and_the_newest_is_bit_equal(made, saved, said):
    assert steps(saved) == ["7", "8"]
    near = made()
    chosen = near.choose(4)
    assert (chosen.key.step, chosen.record, chosen.lacking) == (8, {"position": 8}, [])
    assert_same_bits(near.restore(make_state(0)), make_state(8))
    assert said == ["near checkpoint 8 of 1 process is whole: going on from it; the shared one is of step 4"]
    assert made().choose(8) is None, "the shared one is as new"
    with pytest.raises(UserError, match="does not fit this run: whole is only in it"):
        near.restore({name: x for name, x in make_state(0).items() if name != "whole"})


@pytest.mark.parametrize("file", ["pieces.0", "part.json", "checksums.json"])
def test_a_flipped_bit_anywhere_means_the_one_before_and_is_told(made, saved, said, file):
    flip(saved, 8, file)
    near = made()
    assert near.choose(4).key.step == 7
    assert_same_bits(near.restore(make_state(0)), make_state(7))
    assert "warning: ignoring the near checkpoint" in said[0]
    flip(saved, 7)
    assert made().choose(4) is None
    assert said[-1] == "no near checkpoint is whole and newer than the shared one: the shared one is of step 4"


def test_another_mesh_is_told_and_passed_over(made, saved, said):
    assert made(Mesh(np.array(jax.devices()).reshape(8, 1), ("data", "fsdp"))).choose(4) is None
    assert "near checkpoint 8 was saved by 1 process on mesh {'data': 2, 'fsdp': 4}, and here are" in said[1]


def test_steps_that_were_done_again_from_a_shared_checkpoint_are_never_taken(made, saved, said):
    with made() as near:
        near.choose(8)  # the shared one is as new
        near.begin()
        assert steps(saved) == [], "of the life before"
        near.save(9, make_state(9), {})
    assert made().choose(8).key.step == 9
    write_json(saved.parents[1] / "near.json", read_json(saved.parents[1] / "near.json") | {"run": 1})
    assert made().choose(8) is None
    assert "earlier life" in said[0]


def test_a_start_from_a_near_one_goes_on_with_its_life_and_drops_what_is_newer(made, saved):
    flip(saved, 8)
    with made() as near:
        assert near.choose(4).key.step == 7
        near.begin()
        assert steps(saved) == ["7"]
        near.save(8, make_state(8), {})
    assert made().choose(4).key.step == 8


def test_a_state_may_be_donated_and_a_save_that_fails_is_told_and_ends_nothing(made, saved, said, monkeypatch):
    with made() as near:
        near.choose(4)
        near.begin()
        state = make_state(10)
        near.save(10, state, {})
        for array in state.values():
            array.delete()
        near.wait()
        monkeypatch.setattr(near_part.Path, "rename", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        near.save(11, make_state(11), {})
    assert "could not be written" in said[-1]
    assert "No space left" in said[-1]
    assert not list(saved.glob(".*"))
    monkeypatch.undo()
    near = made()
    assert near.choose(4).key.step == 10
    assert_same_bits(near.restore(make_state(0)), make_state(10))
    near.clear(10)
    assert not saved.exists()


def test_a_state_is_whole_where_one_of_each_group_of_processes_is_there():
    assert groups(make_state(0).values(), {0: 3}) == [[3]]


def test_processes_are_numbered_by_their_places_in_the_mesh():
    assert places([2, 2, 0, 0, 1, 1]) == {2: 0, 0: 1, 1: 2}


def test_runs_whose_workdirs_have_one_path_keep_their_near_checkpoints(made, saved, said):
    (saved.parents[1] / "near.json").unlink()  # the workdir of another run, as another container has it
    with made() as near:
        assert near.choose(4) is None
        assert "near checkpoints of other runs whose workdirs had this path, " in said[0]
        assert str(saved) in said[0]
        near.begin()
        near.save(9, make_state(9), {})
    near.clear(9)
    assert steps(saved) == ["7", "8"]


def test_a_start_that_saves_none_ends_what_they_count_for_and_the_next_removes_them(made, saved, said):
    forget(saved.parents[1])
    assert not is_alive(saved.parents[1])
    with made() as near:
        assert near.choose(4) is None
        assert "no longer count" in said[0]
        near.begin()
    assert steps(saved) == []


def test_a_folder_in_which_nothing_can_be_written_is_one_line_at_once_and_nothing_is_left(tmp_path, said):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"near_dir"):
        Near(str(tmp_path / "file"), tmp_path, make_mesh(), said.append)
    with pytest.raises(UserError, match="near_dir=gs://b/x: a URL"):
        Near("gs://b/x", tmp_path, make_mesh(), said.append)
    Near(str(tmp_path / "a/b"), tmp_path, make_mesh(), said.append)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_processes_of_a_node_may_look_at_its_folder_at_once(tmp_path, said, monkeypatch):
    """Each removes what it has made, which may be what another is about to write in."""

    def removed(dir: Path, write=tempfile.TemporaryFile):
        monkeypatch.setattr(tempfile, "TemporaryFile", write)
        dir.rmdir()
        return write(dir=dir)

    monkeypatch.setattr(tempfile, "TemporaryFile", removed)
    Near(str(tmp_path / "near"), tmp_path, make_mesh(), said.append)
    assert tempfile.TemporaryFile is not removed


PROGRAM = """
import shutil, sys
from pathlib import Path
import jax, numpy as np
from jaxmm.runtime import startup
startup.join_processes()
sys.path.insert(0, sys.argv[2])
from test_near import flip, make_mesh, make_state
from jaxmm.checkpoints.near import Near
from jaxmm.runtime.barrier import Barrier

root, me = Path(sys.argv[1]), jax.process_index()
together = Barrier("test")

def near(told=print, mesh=None):
    return Near(str(root / f"node{me}"), root, mesh or make_mesh(), told)

def state(step, mesh=None):
    return {name: x for name, x in make_state(step, mesh).items() if name != "both"}

def check(step, lacking=(), shared=4, mesh=None):
    told, one = [], near(lambda line: told.append(line), mesh)
    chosen = one.choose(shared)
    assert (chosen and chosen.key.step) == step, (told, chosen)
    if step:
        assert chosen.lacking == list(lacking) and chosen.record == {"position": step}, chosen
        for name, array in one.restore(state(0, mesh)).items():
            want = state(step, mesh)[name]
            for mine, theirs in zip(array.addressable_shards, want.addressable_shards):
                assert np.asarray(mine.data).tobytes() == np.asarray(theirs.data).tobytes(), name
    together.largest(0, "a check")
    return told, one

told, one = check(None)
one.begin()
for step in (5, 6, 7):
    one.wait()
    together.largest(0, "a save")
    one.save(step, state(step), {"position": step})
one.wait()
check(7)
check(7, [0, 1], mesh=make_mesh(True))  # what was process 0's is now process 1's
mixed = np.array(jax.devices()).reshape(4, 2).T.reshape(2, 4)  # devices of both in each row
told, _ = check(None, mesh=jax.sharding.Mesh(mixed, ("data", "fsdp")))
assert "by processes that had other devices of the mesh" in told[0], told
if me == 1:  # a new node: its pieces are replicas of process 0's
    shutil.rmtree(one.folder)
told, _ = check(7, [1])
assert me or "process 1 had no part, and the others send theirs" in told[-1], told
if me == 0:  # the nodes change places, with process 0's part of step 7 alone left
    (root / "node0").rename(root / "node1")
together.largest(0, "the change")
check(7, [0, 1])
if me == 1:
    flip(one.folder, 7)
told, _ = check(6, [0, 1])
assert me == 0 or "bytes of pieces.0 are not those" in told[0], told
# What is split over the processes is held once.
for folder in ("node0", "node1"):
    together.largest(0, folder)
    if me == 0:
        shutil.rmtree(root / folder, ignore_errors=True)
together.largest(0, "the end of the folders")
one = near()
one.choose(4)
one.begin()
one.save(8, make_state(8), {"position": 8})
one.wait()
together.largest(0, "saved")
if me == 1:
    shutil.rmtree(one.folder)
check(None)
print("done", me, flush=True)
"""


def test_two_processes_go_on_from_their_own_parts_or_from_each_others(tmp_path):
    note_first_save(tmp_path, 4)
    more = {"PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(Path(__file__).parents[1])])}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tmp_path), str(Path(__file__).parent)], text=True,
            env=environment(4, **more, **variables), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for variables in by_variables(2, free_port())
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for number, text in enumerate(said):
        assert f"done {number}" in text, text[-3000:]
