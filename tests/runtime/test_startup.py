"""How a CPU is split, in processes of their own, as it is settled once and before JAX starts."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from jaxmm.runtime import startup

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(code: str, **env: str) -> str:
    ours = ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES", "GLIBC_TUNABLES", "JAXMM_HUGE_PAGES", "NPROC", "PJRT_NPROC")
    clean = {k: v for k, v in os.environ.items() if k not in ours}
    done = subprocess.run([sys.executable, "-c", code], env=clean | env, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def devices(mesh: dict[str, int], rows: int, **env: str) -> int:
    return int(run(f"import jax; from jaxmm.runtime import startup; startup.split_cpu({mesh}, {rows}); "
                   "print(len(jax.devices()))", **env))  # fmt: skip


@pytest.mark.parametrize(
    ("mesh", "rows", "env", "expected"),
    [
        ({"data": -1, "fsdp": 1}, 2 * CORES, {}, CORES),
        ({"data": 1, "fsdp": 1}, 2 * CORES, {}, 1),  # the mesh names every size: nothing to fill
        ({"data": -1, "fsdp": 1}, 1, {}, 1),  # one row cannot be dealt
        ({"data": -1}, 12, {"XLA_FLAGS": "--xla_force_host_platform_device_count=3"}, 3),  # the user's number stands
        ({"data": -1}, 12, {"JAX_NUM_CPU_DEVICES": "3"}, 3),
    ],
)
def test_the_cpu_is_split_as_far_as_rows_and_mesh_allow(mesh, rows, env, expected):
    assert devices(mesh, rows, **env) == expected


def test_huge_pages_start_the_process_again_once_and_can_be_turned_off(monkeypatch):
    started = []
    monkeypatch.setattr(os, "execv", lambda *args: started.append(args))
    monkeypatch.setattr(startup, "_offered", lambda: True)
    monkeypatch.setattr(startup.platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setenv("GLIBC_TUNABLES", "")  # so that it is put back afterwards
    monkeypatch.setenv("JAXMM_HUGE_PAGES", "0")
    startup.use_huge_pages()
    assert not started
    monkeypatch.delenv("JAXMM_HUGE_PAGES")
    startup.use_huge_pages()
    assert started == [(sys.executable, sys.orig_argv)]
    assert os.environ["GLIBC_TUNABLES"] == startup.TUNABLE
    startup.use_huge_pages()
    assert len(started) == 1


def test_compiled_programs_are_kept_unless_jax_is_told_where(tmp_path):
    code = (
        "import jax, sys, pathlib; from jaxmm.runtime import startup; "
        "startup.keep_compiled(pathlib.Path(sys.argv[1])); "
        "print(jax.config.jax_compilation_cache_dir)"
    )
    clean = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    for env, where in ((clean, str(tmp_path / "compiled")), ({**clean, "JAX_COMPILATION_CACHE_DIR": "/mine"}, "/mine")):
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=env, capture_output=True, text=True)
        assert done.stdout.startswith(where), done.stderr


@pytest.mark.parametrize(
    ("processes", "env", "expected"),
    [
        (5 * CORES, {}, f"{15 * CORES} None"),
        (1, {"XLA_FLAGS": ""}, f"{CORES} None"),
        (5, {"NPROC": "7"}, "7 None"),
        (5, {"PJRT_NPROC": "7"}, "None 7"),
        (5, {"JAX_PLATFORMS": "cuda,cpu"}, "None None"),
    ],
)
def test_threads_of_a_cpu_are_by_the_devices_of_the_job(processes, env, expected):
    told = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=3"} | env
    code = f"from jaxmm.runtime import startup; startup._fix_cpu_threads({processes}); import os; "
    assert run(f"{code}print(os.environ.get('NPROC'), os.environ.get('PJRT_NPROC'))", **told) == expected


def test_programs_are_kept_in_a_folder_that_nobody_else_writes_to(tmp_path, monkeypatch):
    folder = tmp_path / "compiled"
    assert startup._not_ours(folder) == ""
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o775)
    assert startup._not_ours(folder) == ""
    assert folder.stat().st_mode & 0o777 == 0o755
    (tmp_path / "file").write_text("")
    assert f"compiled programs are not kept in {tmp_path / 'file' / 'x'}" in startup._not_ours(tmp_path / "file" / "x")
    monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
    assert "belongs to another user, who could have programs of theirs run" in startup._not_ours(folder)


@pytest.mark.parametrize("ignored", [False, True])
def test_an_interrupt_while_importing_is_one_line_and_one_that_is_ignored_stays_so(ignored):
    code = f"""
import os, signal
signal.signal(signal.SIGINT, signal.SIG_IGN if {ignored} else signal.default_int_handler)
from jaxmm.runtime import startup
startup.end_on_interrupt()
os.kill(os.getpid(), signal.SIGINT)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == ((0, "") if ignored else (130, "interrupted\n"))
