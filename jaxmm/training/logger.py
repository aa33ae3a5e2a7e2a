"""What a run tells: metrics.jsonl, TensorBoard, the progress line, skipped.jsonl, summary.json, and honest rates.

Plain numbers come in; nothing here calls JAX. Rates are sums over seconds in which steps ran: the first step (which
compiles), evaluation and saving are left out of both.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import re
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TextIO

from jaxmm.errors import printable

# Dense bf16 FLOP/s of one device, by `jax.Device.device_kind`.
_TPU_PEAKS = {  # cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
}
_GPU_PEAKS = (  # NVIDIA's data sheets: half of the sparse figure they print. The first name found in the kind counts.
    ("A100", 312e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("GH200", 989e12),
    ("H200", 989e12),
    ("B200", 2250e12),
)


def peak_flops(device_kind: str) -> float | None:
    """Dense bf16 FLOP/s of one device, or None where it is not known (CPUs among them)."""
    gpus = (peak for name, peak in _GPU_PEAKS if re.search(rf"\b{name}\b", device_kind))
    return _TPU_PEAKS.get(device_kind) or next(gpus, None)


def mfu(flops_per_second: float, device_kind: str, devices: int) -> float | None:
    """Model FLOP/s over the peak of all devices, or None where the peak is not known."""
    peak = peak_flops(device_kind)
    return flops_per_second / (peak * devices) if peak else None


def peak_memory_bytes(devices: Iterable[Any]) -> int:
    """The largest device peak so far; on devices that keep no count (CPUs) the peak of this process.

    Args:
      devices: this process's jax.Devices.
    """
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in devices]
    unit = 1 if sys.platform == "darwin" else 1024
    return max(peaks, default=0) or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


# Rates


# Of Counts, what a process knows only of the rows it loads.
OF_ROWS = ("tokens", "images", "patches", "flops")


@dataclasses.dataclass
class Counts:
    """Sums over steps of the global batch; those in OF_ROWS, until a Meter has added them up, of a process's rows of
    it. ``tokens`` are the non-padding text positions, soft tokens included."""

    steps: int = 0
    examples: int = 0
    tokens: int = 0
    token_capacity: int = 0  # rows x seq_len
    images: int = 0
    patches: int = 0
    patch_capacity: int = 0  # rows x patch_budget
    flops: float = 0.0  # of the model, forward and backward
    wait_seconds: float = 0.0  # that the loop waited for data
    seconds: float = 0.0  # all of the steps' time, waiting included; set by the Meter

    def __iadd__(self, other: Counts) -> Counts:
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))
        return self


class Meter:
    """Counts steps and measures their time. Feed it once a step, when the step's results are there.

    Args:
      device_kind, devices: of the whole mesh, for MFU.
      clock: seconds; for tests.
      total: adds up, over all rows of the batches, numbers that were counted of this process's rows.
    """

    def __init__(
        self,
        device_kind: str = "",
        devices: int = 1,
        clock: Callable[[], float] = time.perf_counter,
        total: Callable[[list[float]], list[float]] = list,
    ) -> None:
        self._device = device_kind, devices
        self._clock, self._total = clock, total
        self._started = self._mark = clock()
        self.first_step_seconds = 0.0  # from the Meter's making to the end of the first step: tracing and compiling
        self.steps = 0
        self._all = Counts()  # every step of this call up to the last window
        self._timed = Counts()  # without the first
        self._window, self._timed_window = Counts(), Counts()

    def step(self, counts: Counts) -> None:
        """Adds one step, which ended now. ``counts.steps`` and ``counts.seconds`` are filled in here."""
        now = self._clock()
        counts = dataclasses.replace(counts, steps=1, seconds=now - self._mark)
        self._mark = now
        self.steps += 1
        self._window += counts
        if self.steps == 1:
            self.first_step_seconds = counts.seconds
        else:
            self._timed_window += counts

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Leaves the time of the block (evaluation, saving) out of all rates. Read the running step's results first."""
        began = self._clock()
        try:
            yield
        finally:
            self._mark += self._clock() - began

    def window(self) -> dict[str, float | None]:
        """The figures of the steps since the last call, for a log line; all processes of a job must ask."""
        every, timed = self._window, self._timed_window
        summed = iter(self._total([getattr(counts, name) for counts in (every, timed) for name in OF_ROWS]))
        for counts in (every, timed):
            for name in OF_ROWS:
                setattr(counts, name, next(summed))
        figures = self._figures(every, timed)
        if timed.steps:
            figures["step_seconds"] = timed.seconds / timed.steps
        self._all += every
        self._timed += timed
        self._window, self._timed_window = Counts(), Counts()
        return figures

    def totals(self) -> dict[str, float | None]:
        """The figures of the whole call up to the last window, by their names in summary.json."""
        return self._figures(self._all, self._timed)

    @property
    def wall_seconds(self) -> float:
        """Since the Meter was made, with everything."""
        return self._clock() - self._started

    def _figures(self, every: Counts, timed: Counts) -> dict[str, float | None]:
        """Fill over every step; rates over the timed ones: None where none was timed yet."""
        kind, devices = self._device

        def rate(amount: float) -> float | None:
            return amount / timed.seconds if timed.seconds > 0 else None

        flops = rate(timed.flops)
        return {
            "tokens_per_second": rate(timed.tokens),
            "images_per_second": rate(timed.images),
            "token_fill": every.tokens / every.token_capacity if every.token_capacity else None,
            "patch_fill": every.patches / every.patch_capacity if every.patch_capacity else None,
            "data_wait_fraction": rate(timed.wait_seconds),
            "mfu": mfu(flops, kind, devices) if flops else None,
        }


class Summary(NamedTuple):
    """summary.json, field by field. None is null: not known."""

    steps: int
    loss: float | None
    eval: Mapping[str, Mapping[str, Any]]  # source -> {"loss", "answer_accuracy", ...}
    tokens_per_second: float | None
    images_per_second: float | None
    token_fill: float | None
    patch_fill: float | None
    data_wait_fraction: float | None
    mfu: float | None
    first_step_seconds: float
    wall_seconds: float
    examples_seen: int
    examples_skipped: int
    peak_memory_bytes: int
    attention: str  # backend


# Files


def plain(value: Any) -> Any:
    """``value`` as strict JSON holds it: NaN and infinities are None, tuples lists, NumPy and JAX scalars numbers."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(path: Path, value: Any) -> None:
    """Writes strict JSON so that a reader finds the old file or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, json.dumps(plain(value), indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file that may be missing or damaged; {} then."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(path.read_bytes())
        return found if isinstance(found, dict) else {}
    return {}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl file that a kill may have cut in a line; [] where there is no file."""
    objects = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            objects.append(json.loads(line))
    return [item for item in objects if isinstance(item, dict)]


def _rewrite(path: Path, objects: Sequence[Mapping[str, Any]]) -> None:
    _replace(path, "".join(f"{json.dumps(item)}\n" for item in objects))


def _replace(path: Path, text: str) -> None:
    """Puts the text in place of the file, whole or not at all."""
    whole = path.with_name(f".{path.name}.tmp")
    try:
        with whole.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        whole.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            whole.unlink(missing_ok=True)
        raise


class SkippedFile:
    """skipped.jsonl: {"file", "record", "reason"} of each record that could not be used, once, over resumes too.

    Args:
      path: of the file.
      lines: of it that the checkpoint gone on from knew of: later ones are dropped, as their steps are done again. None
        keeps all, and counts none of them as met.
      writes: whether this process of the job drops them.
    """

    def __init__(self, path: Path, lines: int | None = None, writes: bool = True) -> None:
        self._path = path
        found = read_lines(path)
        known = found[:lines]
        self._seen = {self._key(item) for item in known}
        self._noted = set(self._seen) if lines is None else set()
        is_cut = path.exists() and not path.read_bytes().endswith(b"\n")  # by a kill in its last line
        if writes and (is_cut or len(known) < len(found)):
            _rewrite(path, known)

    @property
    def met(self) -> int:
        """How many of them batches held; the others were left out of the plan."""
        return len(self._seen - self._noted)

    def lines(self) -> int:
        """How many the file has."""
        return len(read_lines(self._path))

    def note(self, items: Iterable[Mapping[str, Any]]) -> None:
        """Adds what preparing left out."""
        for item in items:
            self.add(item["file"], item["record"], item["reason"])
            self._noted.add(self._key(item))

    def __len__(self) -> int:
        return len(self._seen)

    def reread(self) -> None:
        """Takes in what the other processes of the job have added."""
        self._seen |= {self._key(item) for item in read_lines(self._path)}

    def add(self, file: str, record: str | int, reason: str) -> bool:
        """Records one; returns whether it was new."""
        item = {"file": file, "record": record, "reason": reason}
        if self._key(item) in self._seen:
            return False
        self._seen.add(self._key(item))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as out:
            out.write(f"{json.dumps(item)}\n")
        return True

    def _key(self, item: Mapping[str, Any]) -> tuple[str, str, str]:
        return str(item.get("file")), str(item.get("record")), str(item.get("reason"))


# The log


class Monitor:
    """Logs steps: a line of metrics.jsonl, TensorBoard events, and a progress line (in place on a terminal).

    Args:
      workdir: of the run. None, for all processes but the first: nothing is written and nothing printed.
      steps: of the whole run, for the progress line.
      start: the step the run goes on from. Lines of later steps, which a killed run left, are dropped.
      tensorboard: whether to write events into the workdir.
      out: where the progress line goes.
    """

    def __init__(
        self, workdir: Path | None, steps: int, start: int = 0, tensorboard: bool = True, out: TextIO | None = None
    ) -> None:
        self._steps = steps
        self._out = out or sys.stderr
        self._in_place = self._out.isatty()
        self._shown = ""
        self._file: TextIO | None = None
        self._start, self._events_folder = start, ""
        self._events: Any = None
        self._new: Path | None = None  # the file, if it was not there: without a line it goes again
        self._last: tuple[int, int, dict[str, Any]] = (-1, 0, {})  # step, offset in the file, figures
        if workdir is None:
            return
        path = workdir / "metrics.jsonl"
        workdir.mkdir(parents=True, exist_ok=True)
        self._new = path if not path.exists() else None
        _rewrite(path, [line for line in read_lines(path) if _is_up_to(line.get("step"), start)])
        self._file = path.open("a")
        self._events_folder = str(workdir) if tensorboard else ""

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def log(self, step: int, figures: Mapping[str, Any]) -> None:
        """Logs a step. A second call for the same step (its evaluation, say) adds to the step's line.

        Args:
          figures: numbers, None, or mappings of them, as deep as they come.
        """
        if self._file is None:
            return
        figures = plain(figures)
        last, offset, logged = self._last
        if step == last:
            self._file.truncate(offset)
            self._file.seek(offset)
            logged = {**logged, **figures}
        else:
            offset, logged = self._file.seek(0, os.SEEK_END), {"step": step, **figures}
        self._last = step, offset, logged
        self._file.write(f"{json.dumps(logged, allow_nan=False)}\n")
        self._file.flush()
        if "loss" in figures:
            self._show(progress(step, self._steps, figures))
        if self._events_folder:
            try:
                if self._events is None:
                    self._events = Events(self._events_folder, self._start + 1)
                self._events.add(step, _scalars(figures))
            except OSError as error:  # the figures are in metrics.jsonl
                if self._events is not None:
                    self._events.close()
                self._events, self._events_folder = None, ""
                self.say(f"warning: no more TensorBoard events are written: {error.strerror or error}")

    def say(self, text: str) -> None:
        """Prints lines of their own, above the progress line."""
        if self._file is None:
            return
        self._clear()
        self._print(f"{printable(text)}\n")
        if self._shown:
            self._show(self._shown)

    def close(self) -> None:
        """Ends the progress line and the files."""
        if self._in_place and self._shown:
            self._print("\n")
        self._shown = ""
        file, self._file = self._file, None
        events, self._events = self._events, None
        try:
            if file is not None:
                file.close()
            if self._new is not None and not self._new.stat().st_size:
                self._new.unlink()
        finally:
            self._new = None
            if events is not None:
                events.close()

    def _clear(self) -> None:
        if self._in_place and self._shown:
            self._print("\r\x1b[K")

    def _show(self, line: str) -> None:
        self._clear()
        if self._in_place:
            self._shown = line
            self._print(line[: shutil.get_terminal_size().columns - 1])
        else:
            self._print(f"{line}\n")

    def _print(self, text: str) -> None:
        with contextlib.suppress(OSError):  # the terminal has gone, and the run goes on
            self._out.write(text)
            self._out.flush()


def _is_up_to(step: Any, start: int) -> bool:
    return isinstance(step, int) and step <= start


class Events:
    """A TensorBoard file of scalars. Written at once: tensorboardX's own writer has a thread, which a full disk ends
    with a traceback, and which is waited for then for ever."""

    def __init__(self, folder: str, first: int) -> None:
        """Begins a file. Steps from ``first`` on that other files of the folder have are hidden."""
        # After the first line of a run: it imports torch where that is installed.
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        self._scalar, self._event = summary.scalar, event_pb2.Event
        self._writer = EventsWriter(os.path.join(folder, "events"))
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._writer.write_event(self._event(step=first, file_version="brain.Event:2", wall_time=time.time()))
        self._writer.write_event(self._event(step=first, session_log=start, wall_time=time.time()))

    def add(self, step: int, figures: Iterable[tuple[str, float]]) -> None:
        """Writes one point of each."""
        for name, value in figures:
            self._writer.write_event(
                self._event(step=step, summary=self._scalar(name, value), wall_time=time.time())
            )  # fmt: skip
        self._writer.flush()

    def close(self) -> None:
        """Ends the file."""
        with contextlib.suppress(OSError):  # every point has been written, or its failure was told
            self._writer.close()


def _scalars(figures: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}", float(value)


def progress(step: int, steps: int, figures: Mapping[str, Any]) -> str:
    """The progress line of one step; leaves out what ``figures`` lacks."""

    def shown(name: str, form: Callable[[float], str]) -> str:
        value = figures.get(name)
        return "" if value is None else form(value)

    loss = figures.get("loss")
    fills = [shown(name, "{:.2f}".format) for name in ("token_fill", "patch_fill")]
    pace = figures.get("step_seconds")
    parts = [
        f"step {step}/{steps}",
        f"loss {loss:.4f}" if loss is not None else "loss not finite",
        shown("tokens_per_second", lambda x: f"{short(x)} tok/s"),
        shown("images_per_second", lambda x: f"{short(x)} img/s"),
        f"fill {'/'.join(filter(None, fills))}" if any(fills) else "",
        shown("data_wait_fraction", "wait {:.0%}".format),
        shown("mfu", "mfu {:.1%}".format),
        shown("grad_norm", "grad {:.2f}".format),
        shown("learning_rate", "lr {:.1e}".format),
        f"ETA {duration((steps - step) * pace)}" if pace is not None else "",
    ]
    return "  ".join(filter(None, parts))


# Text


def short(value: float) -> str:
    """1234567 -> '1.23M': three digits and a unit."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g}{unit}" if abs(value) < 999.5 * size else f"{value / size:.0f}{unit}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """75 -> '1m15s'; minutes and seconds, or hours and minutes."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def table(rows: Sequence[Sequence[Any]]) -> str:
    """Aligned plain text; columns that hold numbers to the right, None as '-'. Rows may differ in length."""

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.4g}" if abs(value) < 10_000 else f"{value:.0f}"
        return "-" if value is None else str(value)

    columns = []
    for index in range(max(map(len, rows), default=0)):
        values = [row[index] if index < len(row) else "" for row in rows]
        align = str.rjust if any(isinstance(value, int | float) for value in values) else str.ljust
        width = max(len(cell(value)) for value in values)
        columns.append([align(cell(value), width) for value in values])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))
