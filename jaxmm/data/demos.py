"""The demos by name, as ``config.data.demo`` has them: each is a module with its training and its test source."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

from jaxmm.data import demo, demo_audio, demo_video

DEMOS: Mapping[str, ModuleType] = {"pictures": demo, "video": demo_video, "audio": demo_audio}
