"""Terminal output: log lines stay, the current status is one line rewritten in place."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TextIO

from jaxmm.errors import printable
from jaxmm.formatting import duration, short

BOLD, DIM, YELLOW, PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[33m", "\x1b[0m"
STATUS_SECONDS = 0.2  # between two changes of the line in place


class Part(NamedTuple):
    """Of a line of figures. Those of the highest ``order`` go first where a terminal is too narrow; 0 always stays."""

    text: str
    order: int = 0


class Terminal:
    """Writes to a stream. Only where that is a terminal is anything rewritten, cut or coloured.

    Args:
      colours: whether a terminal is to have them; NO_COLOR turns them off.
    """

    def __init__(self, out: TextIO, colours: bool | None = None) -> None:
        self._out, self._is_terminal = out, out.isatty()
        self._colours = self._is_terminal and not os.environ.get("NO_COLOR") if colours is None else colours
        self._status, self._changed = "", 0.0

    def say(self, text: str) -> None:
        """Prints a line that stays; a warning is coloured."""
        text = printable(text)
        if self._colours and text.startswith("warning:"):
            text = f"{YELLOW}{text}{PLAIN}"
        self._above(text)

    def figures(self, parts: Sequence[Part]) -> None:
        """Prints a line of figures that stays; on a terminal as many as its width has room for."""
        parts = fitted(parts, self._width()) if self._is_terminal else parts
        texts = [part.text for part in parts]
        if self._colours and texts:
            texts[0] = f"{BOLD}{texts[0]}{PLAIN}"
        self._above("  ".join(texts))

    def status(self, text: str, at_once: bool = False) -> None:
        """Shows what goes on, in place; a file has none of it.

        Args:
          at_once: else it is left out where the last change was a moment ago.
        """
        if not self._is_terminal or not (at_once or time.monotonic() - self._changed >= STATUS_SECONDS):
            return
        self._clear()
        self._status, self._changed = printable(text)[: self._width()], time.monotonic()
        self._draw_status()

    def close(self) -> None:
        """Removes the line in place."""
        self._clear()
        self._status = ""

    def _above(self, text: str) -> None:
        self._clear()
        self._write(f"{text}\n")
        self._draw_status()

    def _draw_status(self) -> None:
        if self._status:
            self._write(f"{DIM}{self._status}{PLAIN}" if self._colours else self._status)

    def _clear(self) -> None:
        if self._status:
            self._write("\r\x1b[K")

    def _width(self) -> int:
        return shutil.get_terminal_size().columns - 1

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):  # the terminal has gone, and the run goes on
            self._out.write(text)
            self._out.flush()


def fitted(parts: Sequence[Part], width: int) -> list[Part]:
    """The parts that fit into a width, two blanks between them, in their order."""
    left = list(parts)
    while len("  ".join(part.text for part in left)) > width and any(part.order for part in left):
        left.remove(max(left, key=lambda part: part.order))
    return left


def progress(step: int, steps: int, figures: Mapping[str, Any]) -> list[Part]:
    """The parts of a step's line; what ``figures`` lacks is left out."""

    def shown(name: str, form: Callable[[float], str]) -> str:
        value = figures.get(name)
        return "" if value is None else form(value)

    loss, pace = figures.get("loss"), figures.get("step_seconds")
    has_targets = any(of.get("targets") for of in (figures.get("sources") or {"": {"targets": 1}}).values())
    no_loss = "loss not finite" if has_targets else "no target, no loss"
    fills = [shown(name, "{:.2f}".format) for name in ("token_fill", "patch_fill")]
    of_audio = shown("audio_fill", "audio {:.2f}".format)
    fill = ", ".join(filter(None, ["/".join(filter(None, fills)), of_audio]))
    units = {"images": "img/s", "videos": "videos/s", "recordings": "recordings/s"}
    rates = {unit: figures.get(f"{name}_per_second") for name, unit in units.items()}
    media = "  ".join(f"{short(rate)} {unit}" for unit, rate in rates.items() if rate)
    parts = [
        Part(f"step {step}/{steps}"),
        Part(f"loss {loss:.4f}" if loss is not None else no_loss),
        Part(shown("tokens_per_second", lambda x: f"{short(x)} tok/s"), 1),
        Part(media, 5),
        Part(f"fill {fill}" if fill else "", 4),
        Part(shown("data_wait_fraction", "wait {:.0%}".format), 3),
        Part(shown("mfu", "mfu {:.1%}".format), 2),
        Part(shown("grad_norm", "grad {:.2f}".format), 6),
        Part(f"experts {load['most']:.1f}x" if (load := figures.get("expert_load")) else "", 8),
        Part(shown("learning_rate", "lr {:.1e}".format), 7),
        Part(f"ETA {duration((steps - step) * pace)}" if pace is not None else ""),
    ]
    return [part for part in parts if part.text]
