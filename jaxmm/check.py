"""Tells whether the accelerator of this machine works with jaxmm: first whether it is right, then how fast it is.

    python -m jaxmm.check --output=check.json
    python -m jaxmm.check --part=attention,loss

Parts: devices, attention (each backend against float64), loss (the same), speed (of attention), step (of training, two
sizes of model). Each runs in a process of its own with a limit of its own: one that fails, crashes or hangs costs its
rows and no others. Rows are printed as they come. On a CPU all is small: right or wrong counts there, speeds say
nothing. Exit status 1 if something is wrong or failed in devices, attention or loss.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import select
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxmm import atomic, command
from jaxmm.checks.row import BAD, FAILED, RIGHT, Row, one_line, read
from jaxmm.errors import UserError, nearest
from jaxmm.measure.machine import machine, versions

BACKENDS = ("fused", "hopper", "tokamax", "flash3", "splash", "blocks")  # a platform's own first
ASKED_FOR = ("hopper", "tokamax", "flash3")  # that no run takes by itself; of 16 bits alone
PROOFS = ("devices", "attention", "loss")  # what must be right
FLAGS: command.Flags = {
    "part": ("", "parts, or beginnings of their names, comma between them; default: all"),
    "output": ("", "JSON file, written after every part"),
    "limit": (1.0, "multiplies the limit of each part"),
}


class Part(NamedTuple):
    """What one process does.

    Attributes:
      module: whose rows(*arguments) it prints.
      limit: seconds until it is killed.
    """

    name: str
    module: str
    arguments: tuple[str, ...] = ()
    limit: float = 60

    @property
    def must_be_right(self) -> bool:
        return self.name.split("-")[0] in PROOFS


PARTS = (
    Part("devices", "jaxmm.checks.devices"),
    *(
        Part(f"attention-{backend}-{dtype}", "jaxmm.checks.attention", (backend, dtype), 90)
        for dtype in ("bfloat16", "float32") for backend in BACKENDS if dtype == "bfloat16" or backend not in ASKED_FOR
    ),
    *(Part(f"loss-{dtype}", "jaxmm.checks.loss", (dtype,)) for dtype in ("bfloat16", "float32")),
    *(Part(f"speed-{name}", "jaxmm.checks.speed", (name,), 120) for name in (*BACKENDS, "library", "library-cudnn")),
    Part("step-0.5B", "jaxmm.checks.step", ("0.5B",), 180),
    Part("step-2B", "jaxmm.checks.step", ("2B",), 300),
)  # fmt: skip


def parts_of(names: str) -> list[Part]:
    """Raises UserError for a name that begins no part's."""
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if not any(part.name.startswith(name) for part in PARTS):
            known = [part.name for part in PARTS]
            raise UserError(f"--part={name} is no part: the parts are {', '.join(known)}{nearest(name, known)}")
    return [part for part in PARTS if not wanted or any(part.name.startswith(name) for name in wanted)]


def run_part(part: Part, limit: float) -> Iterator[Row]:
    """The rows of a part as they come; the last one says so where its process did not end well, or in time."""
    until, rows = time.monotonic() + limit, 0
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "jaxmm.checks.part", f"--module={part.module}",
             f"--arguments={','.join(part.arguments)}"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, env=environment(part),
            start_new_session=True,
        )  # fmt: skip
        try:
            for row in rows_of(process, until):
                rows += 1
                yield row
            status = process.wait(max(0.0, until - time.monotonic()))
        except (TimeoutError, subprocess.TimeoutExpired):
            yield Row("the rest" if rows else "all", FAILED, f"over its limit of {limit:g} s, and killed")
            return
        finally:
            end(process)
        errors.seek(0)
        said = [line for line in errors.read().splitlines() if line.strip()]
    if status:
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        yield Row("the rest" if rows else "all", FAILED, one_line(f"ended by {how}: {said[-1] if said else ''}"))
    elif not rows:
        yield Row("all", FAILED, "ended without a row")


def rows_of(process: subprocess.Popen, until: float) -> Iterator[Row]:
    """Reads rows until the process closes its output. Raises TimeoutError when time is over."""
    assert process.stdout is not None
    source, rest = process.stdout.fileno(), b""
    while True:
        if not select.select([source], [], [], max(0.0, until - time.monotonic()))[0]:
            raise TimeoutError
        if not (more := os.read(source, 1 << 16)):
            return
        *lines, rest = (rest + more).split(b"\n")
        for line in lines:
            if row := read(line.decode(errors="replace")):
                yield row


def end(process: subprocess.Popen) -> None:
    """Kills what is left of the process and its children: a device that they hold is free for the next part."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.stdout is not None:
        process.stdout.close()
    with contextlib.suppress(subprocess.TimeoutExpired):  # one that hangs in the driver cannot be waited for
        process.wait(10)


def environment(part: Part) -> dict[str, str]:
    """Of a part's process. This one never asks for a device, whose memory would be taken from it."""
    # Steps take what they can get at once; what is small leaves the rest of a shared card alone.
    memory = (
        {"XLA_PYTHON_CLIENT_MEM_FRACTION": ".92"}
        if part.module == "jaxmm.checks.step"
        else {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    )
    return {"TF_CPP_MIN_LOG_LEVEL": "2", **memory, **os.environ}


def attention_for_steps(rows: Sequence[dict[str, Any]]) -> str:
    """The fastest backend that was right; '' where none was measured."""
    right = right_backends(rows)
    rates = {name: rate for name, rate in packed_rates(rows).items() if name in right}
    return max(rates, key=lambda name: rates[name], default="")


def right_backends(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Those that were right in all they did in bfloat16 or float32, as far as it was asked, and did something."""
    backends = []
    for backend in BACKENDS:
        verdicts = {row["verdict"] for row in rows if row["part"].startswith(f"attention-{backend}-")}
        if RIGHT in verdicts and not verdicts & set(BAD):
            backends.append(backend)
    return backends


def packed_rates(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """TFLOP/s of useful work by backend, forward and backward on lognormal documents: the mean of the heads' widths."""
    rates: dict[str, list[float]] = {}
    for row in rows:
        name, rate = row["part"].removeprefix("speed-"), row["figures"].get("forward + backward TFLOP/s")
        if name in BACKENDS and rate and row["what"].startswith("lognormal"):
            rates.setdefault(name, []).append(rate)
    return {name: sum(each) / len(each) for name, each in rates.items()}


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """What works, in a line."""
    proofs = [row for row in rows if Part(row["part"], "").must_be_right]
    bad = [row for row in proofs if row["verdict"] in BAD]
    devices = next((row["figures"] for row in rows if row["what"] == "devices" and row["figures"]), None)
    right, rates = right_backends(rows), packed_rates(rows)
    text = [f"{devices['count']} x {devices['kind']}" if devices else "devices not known"]
    text.append(f"{sum(row['verdict'] == RIGHT for row in proofs)} rows right")
    if bad:
        text.append(f"{len(bad)} WRONG or failed: {', '.join(dict.fromkeys(row['part'] for row in bad))}")
    if any(row["part"].startswith("attention") for row in rows):
        text.append(f"attention right by {', '.join(right) or 'none'}")
    if best := attention_for_steps(rows):
        how = f", by config.compute.attention={best}" if best in ASKED_FOR else ""
        text.append(f"fastest of these on packed rows: {best} ({rates[best]:.3g} TFLOP/s{how})")
    if slow := [row["part"] for row in rows if row["verdict"] in BAD and row not in proofs]:
        text.append(f"not measured to the end: {', '.join(dict.fromkeys(slow))}")
    if devices and devices["platform"] == "cpu":
        text.append("a CPU: small sizes, whose speeds say nothing")
    return "; ".join(text)


def main(argv: list[str]) -> int:
    args = command.parse(argv, FLAGS, config="none", about=__doc__ or "")
    parts = parts_of(args.part)
    if args.limit <= 0:
        raise UserError(f"--limit={args.limit:g} must be positive")
    output = Path(args.output) if args.output else None
    if output and not output.absolute().parent.is_dir():
        raise UserError(f"--output={output}: there is no folder {output.absolute().parent}")
    report: dict[str, Any] = {
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(), "versions": versions(), "seconds": {}, "rows": [], "summary": "",
    }  # fmt: skip
    width = max(len(part.name) for part in parts)
    for part in parts:
        if part.module == "jaxmm.checks.step":
            part = part._replace(arguments=(*part.arguments, *filter(None, [attention_for_steps(report["rows"])])))
        began = time.monotonic()
        for row in run_part(part, part.limit * args.limit):
            report["rows"].append({"part": part.name, **row._asdict()})
            print(f"{part.name:{width}}  {row.verdict:8}  {row.what}: {row.told}", flush=True)
        report["seconds"][part.name] = round(time.monotonic() - began, 1)
        report["summary"] = summary(report["rows"])
        if output:
            atomic.write_json(output, report)
    print(report["summary"], flush=True)
    rows = report["rows"]
    return int(any(row["verdict"] in BAD and Part(row["part"], "").must_be_right for row in rows))


if __name__ == "__main__":
    command.run(main)
