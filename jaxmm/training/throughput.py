"""Throughput, fill and MFU, as sums over the seconds in which steps ran.

The first step (which compiles), evaluation and saving count in neither.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import resource
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

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


FORMULA = (
    "model FLOPs: two for each multiply-add of a matmul, three times for forward and backward, counted from real "
    "patches, positions, targets and the squares of real document lengths (half of them where causal), the tower "
    "included; padding and recomputation count nothing (jaxmm/models/flops.py)"
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


# Of Counts, what a process knows only of the rows it loads.
OF_ROWS = ("tokens", "images", "videos", "recordings", "patches", "frames", "flops")


@dataclasses.dataclass
class Counts:
    """Sums over steps of the global batch; those in OF_ROWS, until a Meter has added them up, of a process's rows of
    it. ``tokens`` are the non-padding text positions, soft tokens included; ``images`` are no frames of videos;
    ``frames`` are log-mel frames of recordings."""

    steps: int = 0
    examples: int = 0
    tokens: int = 0
    token_capacity: int = 0  # rows x seq_len
    images: int = 0
    videos: int = 0
    recordings: int = 0
    patches: int = 0
    patch_capacity: int = 0  # rows x patch_budget
    frames: int = 0
    frame_capacity: int = 0  # rows x the budget of frames
    flops: float = 0.0  # of the model, forward and backward
    wait_seconds: float = 0.0  # that the loop waited for data within them; set by the Meter
    seconds: float = 0.0  # all of the steps' time, waiting included; set by the Meter

    def __iadd__(self, other: Counts) -> Counts:
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))
        return self


Total = Callable[[list[float]], list[float]]  # adds up, over all rows, numbers that were counted of a process's own


def of_all_rows(counts: Sequence[Counts], total: Total) -> None:
    """Sets what of ``counts`` a process knows only of its own rows to what ``total`` adds up of it, in one meeting."""
    summed = iter(total([getattr(one, name) for one in counts for name in OF_ROWS]))
    for one in counts:
        for name in OF_ROWS:
            setattr(one, name, next(summed))


class Meter:
    """Counts steps and measures their time. Feed it once a step, when the step's results are there.

    Args:
      device_kind, devices: of the whole mesh, for MFU.
      clock: seconds; for tests.
      total: adds up, over all rows of the batches, numbers that were counted of this process's rows.
      media: names of those that the run has: figures of videos and recordings are told where it has them.
    """

    def __init__(
        self,
        device_kind: str = "",
        devices: int = 1,
        clock: Callable[[], float] = time.perf_counter,
        total: Total = list,
        media: Collection[str] = (),
    ) -> None:
        self._device, self._media = (device_kind, devices), media
        self._clock, self._total = clock, total
        self._started = self._mark = clock()
        self.first_step_seconds = 0.0  # from the Meter's making to the end of the first step: tracing and compiling
        self.steps = 0
        self._all = Counts()  # every step of this call up to the last window
        self._timed = Counts()  # without the first
        self._window, self._timed_window = Counts(), Counts()
        self._waited = 0.0  # since the last step's end

    def waited(self, seconds: float) -> None:
        """Tells that the loop has just waited for a batch: mostly while the step before it ran."""
        self._waited += seconds

    def step(self, counts: Counts, ended: float | None = None) -> None:
        """Adds one step. Its seconds, and those of them that were waited, are filled in here.

        Args:
          ended: when, by the clock; None is now.
        """
        ended = self._clock() if ended is None else ended
        counts = dataclasses.replace(counts, steps=1, seconds=ended - self._mark, wait_seconds=self._waited)
        self._mark, self._waited = ended, 0.0
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
        of_all_rows((every, timed), self._total)
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

        def fill(used: int, capacity: int) -> float | None:
            return used / capacity if capacity else None

        flops = rate(timed.flops)
        clips: dict[str, float | None] = {}
        if "video" in self._media:
            clips["videos_per_second"] = rate(timed.videos)
        if "audio" in self._media:
            clips["recordings_per_second"] = rate(timed.recordings)
            clips["audio_fill"] = fill(every.frames, every.frame_capacity)
        return {
            "tokens_per_second": rate(timed.tokens),
            "images_per_second": rate(timed.images),
            **clips,
            "token_fill": fill(every.tokens, every.token_capacity),
            "patch_fill": fill(every.patches, every.patch_capacity),
            "data_wait_fraction": rate(timed.wait_seconds),
            "mfu": mfu(flops, kind, devices) if flops else None,
        }
