"""tools/benchmark.py --part=peer: both sides step in turns, on the same work, and every pair of turns is told."""

from __future__ import annotations

import dataclasses
import functools
import io
import json

import benchmark
import pytest
import small_run
from benchmarks import peer as benchmark_peer
from benchmarks import tuning
from benchmarks.row import Row
from peer.serving import Stepped, serve

from jaxmm.measure.case import PeerCase

TINY = PeerCase(
    vision_layers=1, vision_width=32, vision_heads=2, vision_mlp=64, grid=4, layers=1, width=32, heads=2, kv_heads=1,
    mlp=64, vocabulary=256, rows=2, documents=2, text=20,
)  # fmt: skip


def test_each_pair_of_turns_has_its_ratio():
    ours, theirs = [1.0, 3.0], [2.0, 4.0]
    seconds = {"jaxmm beside torch-float32": ours, "torch-float32 beside torch-float32": theirs}
    assert benchmark_peer.ratios_of(seconds) == {"torch-float32": [0.5, 0.75]}
    assert benchmark_peer.pairs(seconds) == [
        "pair 1: jaxmm 1 s, torch-float32 2 s, ratio 0.500",
        "pair 2: jaxmm 3 s, torch-float32 4 s, ratio 0.750",
    ]


def test_a_side_answers_what_it_is_asked_until_there_is_no_more(monkeypatch, capsys):
    losses = iter([3.0, 2.0, 1.0])
    monkeypatch.setattr("sys.stdin", io.StringIO("2\n1\n"))
    serve(lambda: Stepped(next(losses), {"pairs": 4}))
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(a["losses"], a["pairs"], len(a["seconds"])) for a in answers] == [([3.0, 2.0], 8, 2), ([1.0], 4, 1)]


@pytest.mark.parity
def test_both_sides_step_on_the_same_work_and_all_pairs_are_kept(monkeypatch, capsys):
    monkeypatch.setattr(benchmark_peer, "TORCH", ("torch-float32",))
    monkeypatch.setenv("XLA_FLAGS", small_run.environment()["XLA_FLAGS"])  # without the tests' eight devices
    row = Row("tiny", "a tiny case", {}, lambda settings: benchmark_peer.compare(TINY, settings))
    found = benchmark.measure(row, repeats=2, seed=0, scale=1.0)
    assert " jaxmm beside torch-float32: turn 2 of 2\n" in capsys.readouterr().err, "what it is at"
    ratios = found["figures"]["time / torch-float32"]["samples"]
    times = [found["figures"][name]["samples"] for name in ("jaxmm beside torch-float32", "torch-float32")]
    assert ratios == pytest.approx([a / b for a, b in zip(*times, strict=True)])
    assert len(ratios) == 2
    told = [line for line in benchmark.table([found]).splitlines() if "pair" in line]
    assert [f"ratio {ratio:.3f}" in line for ratio, line in zip(ratios, told, strict=True)] == [True, True]


@pytest.mark.full
@pytest.mark.parity
def test_adapters_step_beside_those_of_peft_and_beside_all_weights(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", small_run.environment()["XLA_FLAGS"])
    case = dataclasses.replace(TINY, rank=2)
    for measured, figure in ((tuning.beside_peft, "time / peft"), (tuning.beside_full, "time / all weights")):
        row = Row("tiny", "a tiny case", {}, functools.partial(measured, case))
        found = benchmark.measure(row, repeats=2, seed=0, scale=1.0)
        assert len(found["figures"][figure]["samples"]) == 2
    (flops,) = found["figures"]["FLOPs of the compiled step / all weights"]["samples"]
    assert 0.5 < flops < 1
