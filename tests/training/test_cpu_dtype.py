"""When a run on CPUs computes in bfloat16 without being told to."""

from __future__ import annotations

import jax
import pytest
from ml_collections import ConfigDict

from jaxmm.training import cpu_dtype
from jaxmm.training.cpu_dtype import bfloat16_units, settle

PROCESSOR = "processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu avx2 {}\nbugs\t\t: avx512_bf16\n\n"
BOTH, AVX, NONE = (PROCESSOR.format(flags) for flags in ("avx512_bf16 amx_bf16", "avx512_bf16", "avx512f"))


@pytest.mark.parametrize(
    ("cpuinfo", "version", "units"),
    [
        (AVX * 2, "0.12.0", "avx512_bf16"), (BOTH * 2, "0.12.0.1", "amx_bf16"), (BOTH + AVX, "1.0.0rc1", "avx512_bf16"),
        (AVX + NONE, "0.12.0", ""), (AVX * 2, "0.11.2", ""), (AVX * 2, "0.10.2", ""), (NONE, "0.12.0", ""),
        ("", "0.12.0", ""), ("Features\t: fp asimd bf16\n", "0.12.0", ""),
    ],
)  # fmt: skip
def test_units_count_where_every_processor_has_them_and_xla_uses_them(cpuinfo, version, units):
    assert bfloat16_units(cpuinfo, version) == units


def settled(asked: str, units: str, before: str | None, monkeypatch) -> tuple[str, str]:
    monkeypatch.setattr(cpu_dtype, "units_here", lambda: units)
    config = ConfigDict({"compute": {"dtype": asked}})
    line = settle(config, None if before is None else {"compute": {"dtype": before}})
    return config.compute.dtype, line.removeprefix("compute.dtype: ").partition(" (")[0]


@pytest.mark.parametrize(
    ("asked", "units", "before", "dtype", "line"),
    [
        ("", "", None, "", ""),
        ("", "amx_bf16", None, "bfloat16", "bfloat16, which this processor multiplies faster"),
        ("float32", "amx_bf16", None, "float32", ""),
        ("", "amx_bf16", "", "", "float32, as on CPUs before; bfloat16 would be faster here"),
        ("", "", "", "", ""),
        ("", "", "bfloat16", "bfloat16", "bfloat16, as the run began; float32 would be faster here"),
        ("", "amx_bf16", "bfloat16", "bfloat16", "bfloat16, as the run began"),
        ("float32", "", "bfloat16", "float32", ""),
    ],
)
def test_a_new_run_takes_the_faster_one_and_one_that_goes_on_keeps_its_own(
    asked, units, before, dtype, line, monkeypatch
):
    assert settled(asked, units, before, monkeypatch) == (dtype, line)


def test_a_job_computes_in_bfloat16_only_where_all_its_machines_are_faster_in_it(monkeypatch):
    monkeypatch.setattr(cpu_dtype.Barrier, "largest", lambda *_: 1)  # another process has no units
    assert settled("", "amx_bf16", None, monkeypatch) == ("", "")


def test_accelerators_have_the_dtype_that_they_had_and_keep_what_a_run_began_with(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert settled("", "amx_bf16", None, monkeypatch) == ("", "")
    assert settled("", "", "bfloat16", monkeypatch) == ("bfloat16", ""), "for the next start on a CPU"
