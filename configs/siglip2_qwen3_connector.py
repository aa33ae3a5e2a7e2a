"""A SigLIP 2 tower and a Qwen 3 decoder, first stage: a fresh connector learns to join them, both frozen.

    hf download google/siglip2-so400m-patch16-naflex --local-dir models/siglip2-so400m-patch16-naflex
    hf download Qwen/Qwen3-1.7B --local-dir models/Qwen3-1.7B
    python -m jaxmm.train --config=configs/siglip2_qwen3_connector.py --config.data.path=captions.json

Sizes are the folders': for 0.6B give
--config.init_from=vision:models/siglip2-so400m-patch16-naflex,decoder:models/Qwen3-0.6B
"""

import base
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = base.get_config()
    config.init_from = "vision:models/siglip2-so400m-patch16-naflex,decoder:models/Qwen3-1.7B"
    config.image.merge = 2
    config.image.min_pixels = 64 * 16 * 16
    config.image.max_pixels = 1024 * 16 * 16  # 256 soft tokens
    config.connector.mlp = 2560
    config.seq_len = 8192
    config.batch_size = 32
    config.steps = 1100  # about one pass over 558,000 captioned images
    config.data.objective = "pretrain"
    config.data.jitter = 0.0

    # LLaVA 1.5's feature alignment: AdamW, 1e-3, no decay, cosine with 3% of warm-up, only the connector.
    # github.com/haotian-liu/LLaVA, README.md "Hyperparameters" and scripts/v1_5/pretrain.sh
    config.optimizer.name = "adamw"
    config.optimizer.freeze = "vision,decoder"
    config.optimizer.rate = 1e-3
    config.optimizer.warmup = 33
    config.optimizer.end_factor = 0.0
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.0
    config.optimizer.z_loss = 0.0

    config.compute.remat = "full"
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.eval.every = 0
    config.checkpoint.every = 200
    return config
