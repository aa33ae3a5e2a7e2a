"""Preferences: a model learns by adapters which of two answers is better, by DPO. Without data, on the embedded demo.

python -m jaxmm.train --config=configs/base.py --workdir=runs/demo
python -m jaxmm.train --config=configs/dpo.py --workdir=runs/dpo
"""

import base
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = base.get_config()
    config.objective = "dpo"
    config.init_from = "runs/demo"
    config.steps = 200
    config.data.jitter = 0.0
    config.adapter.rank = 16
    config.adapter.targets = "decoder.blocks,vision.blocks,connector"
    config.optimizer.name = "adamw"
    config.optimizer.rate = 1e-3
    config.optimizer.warmup = 20
    config.optimizer.end_factor = 0.0
    config.optimizer.weight_decay = 0.0
    config.optimizer.z_loss = 0.0
    config.eval.every = config.checkpoint.every = 100
    return config
