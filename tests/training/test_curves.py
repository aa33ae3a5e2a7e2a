"""curves.png: what a run's lines hold is drawn, whatever they lack."""

from __future__ import annotations

import json

import numpy as np
import PIL.Image
import pytest

from jaxmm.training import curves

LINES = [
    {"step": step, "loss": 3.0 / step, "learning_rate": 1e-3 * step, "tokens_per_second": None if step == 1 else 1e4,
     **({"eval": {"pages": {"loss": 2.0 / step, "answer_accuracy": 0.1 * step}}} if step % 2 == 0 else {})}
    for step in range(1, 9)
]  # fmt: skip


def drawn(lines, path) -> np.ndarray | None:
    return np.asarray(PIL.Image.open(path)) if curves.draw(lines, path) else None


def has(pixels: np.ndarray, colour: str) -> bool:
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return bool((np.abs(pixels.astype(int) - wanted).sum(-1) < 60).any())


def test_every_figure_has_its_panel_and_every_source_its_colour(tmp_path):
    pixels = drawn(json.loads(json.dumps(LINES)), tmp_path / "curves.png")
    assert pixels is not None
    assert pixels.shape == (2 * curves.HEIGHT, 2 * curves.WIDTH, 3)
    panels = [
        pixels[y : y + curves.HEIGHT, x : x + curves.WIDTH] for y in (0, curves.HEIGHT) for x in (0, curves.WIDTH)
    ]
    assert all(has(panel, curves.COLOURS[0]) for panel in panels)
    assert has(panels[0], curves.COLOURS[1]), "the evaluation's loss stands beside the training's"
    assert not has(panels[2], curves.COLOURS[1])
    # The learning rate rises, its line from the lower left to the upper right.
    rows, columns = np.nonzero(np.abs(panels[2].astype(int) - [0x25, 0x63, 0xEB]).sum(-1) < 60)
    assert rows[columns.argmin()] > rows[columns.argmax()]


@pytest.mark.parametrize(
    "lines",
    [[{"step": 5, "loss": 1.0}], [{"step": 1, "loss": None}, {"step": 2, "loss": 2.0}],
     [{"step": 1, "eval": {"a": {"loss": None, "answer_accuracy": None}}}, {"step": 2, "loss": 0.0}]],
)  # fmt: skip
def test_one_point_or_none_is_no_trouble(lines, tmp_path):
    assert drawn(lines, tmp_path / "curves.png") is not None


def test_nothing_to_draw_leaves_no_file(tmp_path):
    assert drawn([{"step": 1, "loss": None}], tmp_path / "curves.png") is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0, 1, [0, 0.25, 0.5, 0.75, 1]), (0.28, 3.4, [0, 1, 2, 3, 4]), (0, 12_800, [0, 5000, 10_000, 15_000]),
     (2, 2, [2, 2.5]), (-1.2, 0.4, [-1.5, -1, -0.5, 0, 0.5]), (0, 0, [0, 0.25])],
)  # fmt: skip
def test_ticks_are_round_and_hold_the_values(low, high, ticks):
    assert curves._ticks(low, high) == pytest.approx(ticks)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0.025, 5.2, [0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10]), (1, 20, [1, 2, 5, 10, 20]),
     (3e-6, 2, [1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 1, 10])],
)  # fmt: skip
def test_ticks_of_a_log_scale_are_round_and_hold_the_values(low, high, ticks):
    assert curves._log_ticks(low, high) == pytest.approx(ticks)


def test_a_loss_that_falls_by_much_has_a_log_scale_and_one_of_0_has_none(tmp_path):
    def heights(losses) -> list[int]:
        lines = [{"step": step, "loss": loss} for step, loss in enumerate(losses, 1)]
        pixels = drawn(lines, tmp_path / "curves.png")
        assert pixels is not None
        panel = pixels[: curves.HEIGHT, curves.LEFT : curves.WIDTH - curves.RIGHT].astype(int)
        ink = np.abs(panel - [0x25, 0x63, 0xEB]).sum(-1) < 60
        ink[: curves.TOP] = False  # the legend
        return [int(np.nonzero(ink[:, x])[0].mean()) for x in (4, ink.shape[1] // 2, ink.shape[1] - 4)]

    start, middle, end = heights([10, 1, 0.1])
    assert abs(middle - (start + end) / 2) < 6, "each tenfold fall is as high"
    start, middle, end = heights([10, 1, 0])
    assert end - middle < 0.2 * (middle - start)
