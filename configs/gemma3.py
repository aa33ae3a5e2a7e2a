"""Gemma 3 goes on learning on your data: connector and decoder learn, the tower stays as it is.

hf download google/gemma-3-4b-it --local-dir models/gemma-3-4b-it
python -m jaxmm.train --config=configs/gemma3.py --config.data.path=conversations.json
"""

import base
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = base.get_config()
    config.init_from = "models/gemma-3-4b-it"
    config.seq_len = 8192  # an image is 256 soft tokens
    config.batch_size = 16
    config.steps = 2000
    config.data.jitter = 0.0

    # MaxText's supervised fine-tuning on images: AdamW of 0.9 and 0.95, 2e-5, decay 0.1, clipping at 1, 10% of warm-up,
    # a cosine to 10%, tower frozen. Its authors publish rates for adapters alone.
    # github.com/AI-Hypercomputer/maxtext, src/MaxText/configs/sft-vision-chartqa.yml, and base.yml for the rest
    config.optimizer.name = "adamw"
    config.optimizer.freeze = "vision"
    config.optimizer.rate = 2e-5
    config.optimizer.warmup = 200
    config.optimizer.end_factor = 0.1
    config.optimizer.b2 = 0.95
    config.optimizer.weight_decay = 0.1
    config.optimizer.z_loss = 0.0

    config.compute.remat = "full"
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.eval.every = 0
    config.checkpoint.every = 250
    return config
