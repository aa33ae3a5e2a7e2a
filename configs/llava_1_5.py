"""LLaVA 1.5, visual instruction tuning: connector and decoder learn, the CLIP tower stays as it is.

    hf download llava-hf/llava-1.5-7b-hf --local-dir models/llava-1.5-7b-hf
    python -m jaxmm.train --config=configs/llava_1_5.py --config.data.path=conversations.json

To align the connector first, as its first stage does: --config.optimizer.freeze=vision,decoder
--config.optimizer.rate=1e-3 --config.data.objective=pretrain, and then --config.init_from=THAT_RUN.
"""

import base
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = base.get_config()
    config.init_from = "models/llava-1.5-7b-hf"
    config.seq_len = 4096
    config.batch_size = 32  # rows; about 128 conversations of an image and 400 tokens, the published batch
    config.steps = 5200  # about one pass over 665,000 conversations
    config.data.jitter = 0.0

    # LLaVA 1.5's visual instruction tuning: AdamW, 2e-5, no decay, cosine with 3% of warm-up, tower frozen.
    # github.com/haotian-liu/LLaVA, README.md "Hyperparameters" and scripts/v1_5/finetune.sh
    config.optimizer.name = "adamw"
    config.optimizer.freeze = "vision"
    config.optimizer.rate = 2e-5
    config.optimizer.warmup = 156
    config.optimizer.end_factor = 0.0
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.0
    config.optimizer.z_loss = 0.0

    config.compute.remat = "full"
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.eval.every = 0
    config.checkpoint.every = 500
    return config
