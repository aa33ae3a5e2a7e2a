"""Checkpoints in an object store: whole or not there, fetched part by part, pruned, sent again after an absence."""

from __future__ import annotations

import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore

from jaxmm.checkpoints import checksums
from jaxmm.checkpoints.checkpoint import Checkpoints
from jaxmm.checkpoints.parted import Parts
from jaxmm.checkpoints.record import Record
from jaxmm.checkpoints.stored import Stored, local_steps
from jaxmm.errors import UserError
from jaxmm.workdir.folder import has_saved, note_first_save
from jaxmm.workdir.objects import Objects, StoreAway
from jaxmm.workdir.place import Place
from jaxmm.workdir.spool import MARK, Spool, opened

RECORD = {
    "position": 4, "steps": 8, "config": {}, "data": {}, "versions": {}, "examples_seen": 9, "plan": None,
    "skipped_lines": 0,
}  # fmt: skip


class Machine:
    """One on which a run trains with its workdir in a store."""

    def __init__(self, folder: Path, place: Place):
        if not folder.exists():
            folder.mkdir()
            (folder / MARK).write_text(f'{{"url": "{place.url}", "token": ""}}')
        self.spool, self.lines = Spool(folder, place), list[str]()
        self.was_last = self.spool.own()

    def checkpoints(self, **options) -> Checkpoints:
        workdir = self.spool.folder
        return Checkpoints(workdir / "checkpoints", say=self.lines.append, **options)

    def save(self, *steps: int, metrics: tuple[float | None, ...] = (), **options) -> None:
        with self.checkpoints(on_save=lambda step: note_first_save(self.spool.folder, step), **options) as saving:
            for step, metric in zip(steps, metrics or [None] * len(steps), strict=True):
                saving.save(step, state(step), RECORD, metric)

    @property
    def stored(self) -> Stored:
        found = Stored.of(self.spool.folder / "checkpoints")
        assert found
        return found


def state(step: int) -> dict:
    return {"params": {"w": jnp.arange(step, step + 4.0)}, "step": jnp.int32(step)}


def restored(machine: Machine, step: int | None = None) -> int:
    """The step of a checkpoint that is restored, its arrays compared."""
    with machine.checkpoints() as checkpoints:
        found = checkpoints.restore(state(0), step)
    np.testing.assert_array_equal(found["params"]["w"], state(int(found["step"]))["params"]["w"])
    return int(found["step"])


@pytest.fixture
def place(tmp_path):
    return Place.read("", f"file://{tmp_path}/store/run")


@pytest.fixture
def machine(tmp_path, place):
    return Machine(tmp_path / "one", place)


def names(machine: Machine, step: int) -> list[str]:
    return machine.spool.objects.names(f"checkpoints/{step}/")


def test_what_is_saved_on_one_machine_is_restored_on_another(machine, tmp_path, place):
    machine.save(4)
    assert (tmp_path / "store/run/checkpoints/4/checksums.json").exists()
    other = Machine(tmp_path / "two", place)
    assert restored(other) == 4
    assert checksums.verify(tmp_path / "two/checkpoints/4") is None
    assert checksums.verify(tmp_path / "store/run/checkpoints/4") is None  # as it lies there it is a checkpoint
    other.save(6)
    assert restored(Machine(tmp_path / "three", place)) == 6


def test_the_record_of_a_checkpoint_is_read_without_its_arrays(machine, tmp_path, place):
    machine.save(4)
    other = Machine(tmp_path / "two", place)
    record = Record.newest(tmp_path / "two/checkpoints")
    assert record is not None
    assert record.position == 4
    assert not (tmp_path / "two/checkpoints/4/state").exists()
    assert restored(other) == 4


def test_the_store_keeps_the_newest_and_the_best_of_all_machines(machine, tmp_path, place):
    machine.save(2, 4, 6, metrics=(0.1, 0.5, 0.4), keep=2, keep_best=1)
    assert machine.stored.steps() == [2, 4, 6]
    other = Machine(tmp_path / "two", place)
    assert restored(other) == 6
    other.save(8, 10, metrics=(0.3, None), keep=2, keep_best=1)
    assert other.stored.steps() == [2, 8, 10]
    with other.checkpoints() as checkpoints:
        assert checkpoints.best() == 2
    assert names(other, 4) == []


@pytest.mark.parametrize("at", ["first", "middle", "record"])
def test_a_kill_between_any_two_writes_leaves_the_checkpoint_before(machine, tmp_path, place, monkeypatch, at):
    machine.save(4)
    half = len(names(machine, 4)) // 2
    write, done = Objects.write, []

    def cut(self, name, data):
        if name.startswith("checkpoints/6/"):
            done.append(name)
            if name.endswith(checksums.RECORD) or len(done) > {"first": 0, "middle": half}.get(at, np.inf):
                raise StoreAway("killed here")
        return write(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(Objects, "write", cut)
        with pytest.raises(UserError, match=r"step 6 is not in file://.*: killed here; it is whole in .*/6, and the"):
            machine.save(6)
    assert machine.stored.steps() == [4]
    shutil.rmtree(machine.spool.folder)  # the machine is lost, and with it what was not sent
    other = Machine(tmp_path / "two", place)
    assert restored(other) == 4
    other.save(6)
    assert other.stored.steps() == [4, 6]
    assert restored(Machine(tmp_path / "three", place)) == 6


def test_what_a_store_that_was_away_lacks_is_sent_by_the_next_start(machine, place, monkeypatch):
    machine.save(4)
    with monkeypatch.context() as patch:
        patch.setattr(Objects, "upload", lambda *_: (_ for _ in ()).throw(StoreAway("away")))
        with pytest.raises(UserError, match="away"):
            machine.save(6)
    again = Machine(machine.spool.folder, place)
    assert again.was_last
    again.stored.send_left()
    assert again.stored.steps() == [4, 6]


def test_the_part_of_one_process_is_never_sent_as_a_whole_checkpoint(machine, place):
    class Killed:
        """In the place of the parts of a job whose processes share no disk: killed before they are joined."""

        def send(self, step, patience):
            raise StoreAway("killed here")

        end = send

    with machine.checkpoints() as saving:
        saving._writer()
        saving._parts = Killed()
        saving.save(4, state(4), RECORD)
        with pytest.raises(UserError, match="killed here"):
            saving.wait()
    again = Machine(machine.spool.folder, place)
    assert (again.spool.folder / "checkpoints/4").is_dir()
    again.stored.send_left()
    assert again.stored.steps() == []
    assert not has_saved(again.spool.folder), "the run begins anew: nothing of it is saved"


def test_a_part_passes_for_no_checkpoint_while_the_store_is_away_at_its_end(machine, place, monkeypatch):
    with machine.checkpoints() as saving:
        saving._writer()
        saving._parts = Parts(machine.stored, 0, 1, job=9)
        monkeypatch.setattr(Stored, "seal", lambda *_: (_ for _ in ()).throw(StoreAway("killed here")))
        saving.save(4, state(4), RECORD)
        with pytest.raises(UserError, match="killed here"):
            saving.wait()
    again = Machine(machine.spool.folder, place)
    again.stored.send_left()
    assert not has_saved(again.spool.folder), "the run begins anew"


def test_a_save_lasts_for_all_processes_until_the_first_has_pruned(machine, monkeypatch):
    stored, other = machine.stored, Parts(machine.stored, 1, 2, job=9)
    monkeypatch.setattr(other, "_send_own", lambda step: None)
    for name in (checksums.RECORD, "part-9-1.json"):
        stored.write(6, name, b"{}")
    with pytest.raises(StoreAway, match="the end of the save of step 6"):
        other.send(6, patience=0.0)
    Parts(stored, 0, 2, job=9).end(6)
    other.send(6, patience=0.0)
    stored.delete(6, [checksums.RECORD])
    with pytest.raises(StoreAway, match="process 0 has not ended the save of step 6"):
        other.send(6, patience=0.0)


def test_an_error_of_sending_that_nobody_foresaw_does_not_pass_for_a_save(machine, monkeypatch):
    monkeypatch.setattr(Stored, "prune", lambda *_: [][0])
    with pytest.raises(IndexError):
        machine.save(4)


def test_a_run_that_was_killed_before_it_noted_its_first_save_has_saved(machine, tmp_path, place):
    machine.save(4)
    machine.spool.objects.delete("first_save.json")
    other = Machine(tmp_path / "two", place)
    assert not has_saved(other.spool.folder)
    other.stored.note_first_save()
    assert has_saved(other.spool.folder)


def test_a_changed_bit_in_the_store_is_found_and_the_older_one_taken(machine, tmp_path, place):
    machine.save(4, 6)
    file = max((tmp_path / "store/run/checkpoints/6/state").rglob("d/*"), key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    other = Machine(tmp_path / "two", place)
    assert restored(other) == 4
    assert any("ignoring the damaged checkpoint file://" in line and "takes away its" in line for line in other.lines)
    with other.checkpoints() as checkpoints:
        assert checkpoints.latest() == 4
        checkpoints.save(6, state(6), RECORD)
    assert other.stored.steps() == [4, 6]
    assert restored(Machine(tmp_path / "three", place)) == 6


def test_an_object_that_is_gone_or_a_damaged_record_is_passed_over_with_a_line(machine, tmp_path, place):
    machine.save(4, 6, keep=3)
    (tmp_path / "store/run/checkpoints/6/state/_METADATA").unlink()
    other = Machine(tmp_path / "two", place)
    assert restored(other) == 4
    assert "ignoring the incomplete checkpoint" in other.lines[0]
    assert "state/_METADATA is missing" in other.lines[0]
    (tmp_path / "store/run/checkpoints/4/checksums.json").write_text("{}")
    with pytest.raises(UserError, match=r"file://.*/checkpoints holds no complete checkpoint"):
        restored(Machine(tmp_path / "three", place))


def test_a_large_object_that_was_cut_short_is_passed_over_with_a_line(machine, tmp_path, place, monkeypatch):
    machine.save(4, 6)
    monkeypatch.setattr("jaxmm.workdir.objects._BLOCK", 100)
    folder = tmp_path / "store/run/checkpoints/6"
    cut = max((folder / "state").rglob("d/*"), key=lambda path: path.stat().st_size)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    other = Machine(tmp_path / "two", place)
    assert restored(other) == 4
    assert [str(cut.relative_to(folder)) in line and "cut short" in line for line in other.lines] == [True]
    fault = other.stored.compare(6, "state", (0, 1))
    assert fault is not None
    assert fault.is_proven


def test_a_checkpoint_that_a_run_prunes_while_it_is_looked_at_is_missing(machine, monkeypatch):
    machine.save(4)
    monkeypatch.setattr(Stored, "steps", lambda self: [2, 4])  # as they were listed
    with machine.checkpoints() as checkpoints:
        assert checkpoints.steps() == [4]
    assert machine.stored.fetch(2) == checksums.Fault("checksums.json is missing", True)


def test_a_changed_bit_in_the_copy_here_is_fetched_again(machine, tmp_path, place):
    machine.save(4)
    other = Machine(tmp_path / "two", place)
    assert restored(other) == 4
    file = max((tmp_path / "two/checkpoints/4/state").rglob("d/*"), key=lambda path: path.stat().st_size)
    file.write_bytes(bytes(file.stat().st_size))
    assert restored(other) == 4
    assert other.lines == []


def test_of_what_commands_have_read_stays_what_the_store_has_or_somebody_reads(machine, place, monkeypatch, tmp_path):
    monkeypatch.setenv("JAXMM_SPOOL", str(tmp_path / "spools"))

    def read() -> Checkpoints:
        reader = Checkpoints(Path(opened("--workdir", place.url, reads=True)) / "checkpoints")
        reader.restore(state(0))
        return reader

    (machine.spool.folder / "config.json").write_text("{}")
    machine.save(2, keep=1, keep_best=0)
    first = read()
    machine.save(4, keep=1, keep_best=0)
    read().close()
    assert local_steps(first.folder) == [2, 4]
    first.close()
    read().close()
    assert local_steps(first.folder) == [4]
    assert machine.stored.steps() == [4]


def test_shards_are_read_from_the_store_once_its_bytes_are_compared(machine, tmp_path, place, monkeypatch):
    monkeypatch.setattr(
        Checkpoints, "_is_parted", property(lambda self: self._stored is not None and not self._manager)
    )
    machine.save(4)
    machine.save(6)
    other = Machine(tmp_path / "two", place)
    with other.checkpoints() as checkpoints:
        assert checkpoints.restore(state(0))["params"]["w"].tolist() == [6.0, 7.0, 8.0, 9.0]
        assert checkpoints.restore_part({"w": jnp.zeros(4)}, "params", 4)["w"].tolist() == [4.0, 5.0, 6.0, 7.0]
        assert checkpoints.meta(6)["position"] == 4
        with pytest.raises(UserError, match=r"file://.*/6 does not fit this run: params\.w is float32\[4\] there and"):
            checkpoints.restore({"params": {"w": jnp.zeros(5)}, "step": jnp.int32(0)})
        with pytest.raises(UserError, match=r"params\.v is not in it \(and 1 more\)"):
            checkpoints.restore_part({"v": jnp.zeros(4)}, "params")
    assert not (tmp_path / "two/checkpoints/6/state").exists()
    file = max((tmp_path / "store/run/checkpoints/6/state").rglob("d/*"), key=lambda path: path.stat().st_size)
    file.write_bytes(bytes(file.stat().st_size))
    assert restored(Machine(tmp_path / "three", place)) == 4


def test_a_part_of_an_array_that_its_index_has_not_is_no_zeros(machine, place):
    machine.save(4)
    arrays = machine.stored.arrays(4)
    index = tensorstore.KvStore.open(arrays._objects.array_store("checkpoints/4/state/")).result()
    chunk = next(key for key in index.list().result() if key.startswith(b"params.w/") and b".z" not in key)
    index.delete_range(tensorstore.KvStore.KeyRange(chunk, chunk + b"\0")).result()
    wanted = {"params.w": jnp.zeros(4)}
    arrays.look(wanted)
    with pytest.raises(UserError, match=r"file://.* is not whole .*params\.w"):
        arrays.read(wanted)


def test_a_store_that_is_away_at_a_start_proves_nothing_of_its_checkpoints(machine, tmp_path, place, monkeypatch):
    machine.save(4)
    other = Machine(tmp_path / "two", place)
    monkeypatch.setattr(Objects, "download", lambda *_: (_ for _ in ()).throw(StoreAway("it is away")))
    with pytest.raises(UserError, match=r"cannot be read \(it is away\), which does not prove it broken"):
        restored(other)
    assert machine.stored.steps() == [4]
