"""The embedded demo of video: a small model from random weights learns to watch, in minutes, with nothing to download.

python -m jaxmm.train --config=configs/video.py
"""

import base
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.demo = "video"
    config.steps = 300
    config.batch_size = 4
    config.video.fps = 4.0  # all 8 frames of its films, in 4 temporal patches of 9 soft tokens
    config.video.min_pixels = config.video.max_pixels = 48 * 48
    config.eval.every = config.checkpoint.every = 150
    return config
