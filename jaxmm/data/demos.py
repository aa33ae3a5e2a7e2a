"""The demos by name, as ``config.data.demo`` has them: each is a module with its training and its test source."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

from jaxmm.data import demo, demo_audio, demo_preferences, demo_video
from jaxmm.data.documents import Source

DEMOS: Mapping[str, ModuleType] = {"pictures": demo, "video": demo_video, "audio": demo_audio}
WITH_PREFERENCES = ("pictures",)  # those of which there are preferences


def training_source(name: str, preferences: str = "", seed: int = 0) -> Source:
    """Returns what a run without a ``data.path`` learns from.

    Args:
      preferences: one of ``reading.PREFERENCES``. The demo of preferences is one of pictures, whatever ``name`` is.
    """
    if preferences:
        return demo_preferences.training_source(preferences, seed)
    return DEMOS[name].training_source(seed=seed)


def test_source(name: str, preferences: str = "", seed: int = 0) -> Source:  # noqa: PT028  (no pytest test)
    """Returns its held-out data."""
    if preferences:
        return demo_preferences.test_source(preferences, seed)
    return DEMOS[name].test_source(seed=seed)
