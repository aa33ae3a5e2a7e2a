"""What processes of one job must see, and be told, alike before they meet in a collective."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from thread_job import Coordinator, in_threads

from jaxmm import command
from jaxmm.checkpoints import checksums, inventory
from jaxmm.checkpoints.agreement import check_config, check_start
from jaxmm.checkpoints.checksums import Fault
from jaxmm.checkpoints.inventory import Inventory
from jaxmm.errors import UserError
from jaxmm.runtime.barrier import Barrier


def add(folder: Path, step: int, content: str = "") -> None:
    """A checkpoint, as far as an inventory looks at it."""
    (folder / str(step) / "state").mkdir(parents=True)
    (folder / str(step) / "state" / "arrays").write_text(f"those of {step}{content}")
    checksums.write_record(folder / str(step))


def told(job: Coordinator, process: Callable[[int], object]) -> list[object]:
    """What each of five processes finds, or its error."""

    def asked(number: int) -> object:
        try:
            return process(number)
        except UserError as error:
            return str(error)

    job.held.clear()  # of a job before
    return in_threads(asked)


def views(tmp_path: Path) -> list[Path]:
    """How each of five processes sees one folder with checkpoints 5 and 10."""
    folders = [tmp_path / str(number) for number in range(5)]
    for folder in folders:
        add(folder, 5)
        add(folder, 10)
    return folders


def latest(job: Coordinator, folders: list[Path], lines: list[str]) -> list[object]:
    """The newest checkpoint, as each process chooses it. What is said of process 0's goes to ``lines``."""
    return told(job, lambda n: Inventory(folders[n], None, bool, Barrier("checkpoints"), lines.append).latest())


def test_a_process_that_sees_an_older_folder_looks_again(job, tmp_path, monkeypatch):
    folders, lines = views(tmp_path), list[str]()
    shutil.move(folders[3] / "10", tmp_path / "away")

    def catches_up(seconds: float) -> None:
        if job.is_third():
            shutil.move(tmp_path / "away", folders[3] / "10")

    monkeypatch.setattr(job, "is_third", lambda: inventory.jax.process_index() == 3, raising=False)
    monkeypatch.setattr(inventory.time, "sleep", catches_up)
    assert latest(job, folders, lines) == [10] * 5
    assert not lines


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: shutil.rmtree(folder / "10"), "checkpoints 5, and process 0 sees checkpoints 5, 10:"),
        (shutil.rmtree, "no checkpoint, and process 0 sees checkpoints 5, 10:"),
        (
            lambda folder: (folder / "10/state/arrays").unlink(),
            r"checkpoints 5, 10 \(incomplete\), and process 0 sees checkpoints 5, 10:",
        ),
        (
            lambda folder: (shutil.rmtree(folder / "5"), add(folder, 5, " of another run")),
            r"checkpoints 5 \(with other contents\), 10, and process 0 sees checkpoints 5 \(with other contents\), 10:",
        ),
    ],
)
def test_processes_that_see_different_checkpoints_all_end_with_one_line(job, tmp_path, monkeypatch, change, message):
    monkeypatch.setattr(inventory, "LOOKS", 2)
    monkeypatch.setattr(inventory, "PAUSE", 0)
    folders = views(tmp_path)
    change(folders[3])
    found = latest(job, folders, [])
    for line, folder in zip(found, folders, strict=True):
        assert line == (
            f"process 3 sees in {folder} {message} nothing was changed; is --workdir the same folder on all machines?"
        ).replace("\\", "")
    assert (folders[0] / "10").is_dir()


def test_what_one_process_reads_wrong_or_not_at_all_is_the_verdict_of_all(job, tmp_path, monkeypatch):
    folders = views(tmp_path)
    proven = {1: Fault("the bytes of x are not those that were written", True, True)}
    unread = {2: Fault("y: Input/output error", False)}

    def choice(faults: dict[int, Fault]) -> list[object]:
        def verify(path: Path, part: str, share: tuple[int, int]) -> Fault | None:
            return faults.get(share[0]) if path.name == "10" else None

        monkeypatch.setattr(checksums, "verify", verify)
        return latest(job, folders, [])

    assert choice(proven) == [5] * 5
    assert all("cannot be read" in str(line) for line in choice(proven | unread)), "nobody knows whether it is broken"


def test_other_settings_or_another_start_in_one_process_end_all_with_one_line(job, tmp_path):
    def run(*more: str) -> Callable[[int], object]:
        def process(number: int) -> None:
            flags = [*(more if number == 4 else ()), f"--config.checkpoint.near_dir={tmp_path / str(number)}"]
            check_config(command.parse(["--config=configs/base.py", *flags], {}).config)

        return process

    assert told(job, run()) == [None] * 5, "what a machine may have for itself"
    (line,) = set(told(job, run("--config.steps=20", "--config.seed=3")))
    assert line.startswith("process 4 has other settings than process 0 (config.seed: 0 -> 3; config.steps: ")
    assert line.endswith(" -> 20): give all processes the same command")
    (line,) = set(told(job, lambda number: check_start({"first step": 10 * (number < 3), "data a": "x"})))
    assert line == (
        "process 3 has found something else than process 0 (first step: 10 -> 0): do all machines see the same "
        "workdir, data and models?"
    )
