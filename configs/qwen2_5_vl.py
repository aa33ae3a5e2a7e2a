"""Qwen2.5-VL goes on learning on your data, all parts, gently.

hf download Qwen/Qwen2.5-VL-7B-Instruct --local-dir models/Qwen2.5-VL-7B-Instruct
python -m jaxmm.train --config=configs/qwen2_5_vl.py --config.data.path=conversations.json
"""

import base
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = base.get_config()
    config.init_from = "models/Qwen2.5-VL-7B-Instruct"
    config.seq_len = 8192
    config.batch_size = 16
    config.steps = 2000
    config.data.jitter = 0.0

    # The authors' fine-tuning: AdamW, 2e-7 for the decoder, 1e-5 for the connector, 1e-6 for the tower, decay 0.01,
    # cosine with 3% of warm-up, gradients clipped at 1.
    # github.com/QwenLM/Qwen2.5-VL (now Qwen3-VL), qwen-vl-finetune/README.md
    config.optimizer.name = "adamw"
    config.optimizer.rate = 2e-7
    config.optimizer.connector_rate = 50.0
    config.optimizer.vision_rate = 5.0
    config.optimizer.warmup = 60
    config.optimizer.end_factor = 0.0
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.01
    config.optimizer.z_loss = 0.0

    config.compute.remat = "full"
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.eval.every = 0
    config.checkpoint.every = 250
    return config
