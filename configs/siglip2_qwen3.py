"""A SigLIP 2 tower and a Qwen 3 decoder, second stage: all parts learn, from the run of the first stage.

python -m jaxmm.train --config=configs/siglip2_qwen3.py --config.data.path=conversations.json
"""

import siglip2_qwen3_connector
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = siglip2_qwen3_connector.get_config()
    config.init_from = "runs/siglip2_qwen3_connector"
    config.steps = 10_000
    config.data.objective = "sft"

    # nanoVLM's rates for the same kind of model: 2e-3 for the connector, 1e-4 for tower and decoder; AdamW.
    # github.com/huggingface/nanoVLM, models/config.py, TrainConfig (lr_mp, lr_backbones)
    config.optimizer.freeze = ""
    config.optimizer.rate = 1e-4
    config.optimizer.connector_rate = 20.0
    config.optimizer.warmup = 300
    config.optimizer.end_factor = 0.1
    config.checkpoint.every = 500
    return config
