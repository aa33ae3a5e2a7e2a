"""The embedded demo of audio: a small model from random weights learns to listen, in minutes, with nothing to download.

python -m jaxmm.train --config=configs/audio.py
"""

import base
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.demo = "audio"
    config.steps = 300
    config.batch_size = 4
    config.audio.mels = 32  # and of its recordings of 1.6 s 20 soft tokens, of 80 ms each
    config.eval.every = config.checkpoint.every = 150
    return config
