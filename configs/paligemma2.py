"""PaliGemma 2 is transferred to a task: all parts learn questions and short answers about one picture each.

hf download google/paligemma2-3b-pt-224 --local-dir models/paligemma2-3b-pt-224
python -m jaxmm.train --config=configs/paligemma2.py --config.data.path=questions.json
"""

import base
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = base.get_config()
    config.init_from = "models/paligemma2-3b-pt-224"
    config.seq_len = 2048  # an image is 256 soft tokens
    config.batch_size = 16  # rows; about 100 examples of an image and a short answer
    config.steps = 2000
    config.data.jitter = 0.0

    # The authors' transfer to a task of one's own: Adam, 1e-5, decay 3e-7 a step (0.03 of the rate), clipping at 1, a
    # cosine to 0 with 5% of warm-up, all parts.
    # github.com/google-research/big_vision, big_vision/configs/proj/paligemma/transfers/forkme.py
    config.optimizer.name = "adamw"
    config.optimizer.rate = 1e-5
    config.optimizer.warmup = 100
    config.optimizer.end_factor = 0.0
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.03
    config.optimizer.z_loss = 0.0

    config.compute.remat = "full"
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.eval.every = 0
    config.checkpoint.every = 250
    return config
