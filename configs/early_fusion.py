"""Early fusion: text and discrete image tokens in one sequence, both predicted, a decoder of 7B from random weights.

    python -m jaxmm.train --config=configs/early_fusion.py --config.data.path=pages.jsonl --config.data.tokenizer=FOLDER

Images come as ids of a codebook of 8,192 (see docs/data.md); the vision tower is small and sees none.
"""

import base
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = base.get_config()
    # Chameleon 7B (Chameleon Team, 2024, arXiv 2405.09818): Llama 2's sizes, queries and keys normed, rows of 4,096,
    # a codebook of 8,192.
    config.decoder.width = 4096
    config.decoder.layers = 32
    config.decoder.heads = 32
    config.decoder.kv_heads = 32
    config.decoder.head_dim = 128
    config.decoder.mlp = 11008
    config.decoder.qk_norm = True
    config.seq_len = 4096
    config.batch_size = 2048  # 8 million tokens
    config.steps = 120_000  # a trillion tokens
    config.data.objective = "pretrain"
    config.data.image_tokens = 8192
    config.data.predict_image_tokens = True
    config.data.jitter = 0.0

    # Its section 2.3: AdamW of 0.9 and 0.95, 1e-4 after 4,000 steps of warm-up, decay 0.1, clipping at 1, z-loss 1e-5.
    # It decays exponentially to 0; here it is a cosine.
    config.optimizer.name = "adamw"
    config.optimizer.rate = 1e-4
    config.optimizer.warmup = 4000
    config.optimizer.end_factor = 0.0
    config.optimizer.b2 = 0.95
    config.optimizer.weight_decay = 0.1
    config.optimizer.z_loss = 1e-5

    config.compute.remat = "full"
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.eval.every = 0
    config.checkpoint.every = 2000
    return config
