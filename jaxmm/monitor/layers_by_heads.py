"""One picture of where attention goes: a panel for each class of keys, layers down, heads across."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jaxmm.report.drawing import heat

PANEL, LEFT, TOP, GAP = 220, 34, 30, 18  # side of a panel's squares, room for layers' numbers and the title, in pixels
INK, GREY = (27, 29, 34), (91, 96, 107)


def layers_by_heads(figures: Mapping[str, Any]) -> Image.Image:
    """Draws the figures of ``attention.figures``. Each panel runs from 0 to its largest value, which is told."""
    panels = [(name, np.array(mass)) for name, mass in figures["mass"].items()]
    panels.append(("entropy", np.array(figures["entropy"])))
    columns = min(4, len(panels))
    wide, tall = PANEL + LEFT + GAP, PANEL + TOP + GAP
    sheet = Image.new("RGB", (columns * wide, -(-len(panels) // columns) * tall), "white")
    pen, font, small = ImageDraw.Draw(sheet), ImageFont.load_default(14), ImageFont.load_default(11)
    for i, (name, mass_LH) in enumerate(panels):
        left, top = i % columns * wide + LEFT, i // columns * tall + TOP
        largest, unit = float(mass_LH.max()), " nats" if name == "entropy" else ""
        colours = Image.fromarray(heat(mass_LH / max(largest, 1e-9)))
        sheet.paste(colours.resize((PANEL, PANEL), Image.Resampling.NEAREST), (left, top))
        pen.text((left, top - 22), name, fill=INK, font=font)
        told = f"mean {mass_LH.mean():.2f}, most {largest:.2f}{unit}"
        pen.text((left + PANEL, top - 19), told, fill=GREY, font=small, anchor="ra")
        layers, heads = mass_LH.shape
        for layer in range(0, layers, -(-layers // 14)):
            pen.text((left - 6, top + (layer + 0.5) * PANEL / layers), f"{layer}", fill=GREY, font=small, anchor="rm")
        for head in range(0, heads, -(-heads // 14)):
            pen.text(
                (left + (head + 0.5) * PANEL / heads, top + PANEL + 2), f"{head}", fill=GREY, font=small, anchor="ma"
            )
    return sheet
