"""Qwen2.5-VL learns your data by adapters of its decoder; connector and tower stay as they are.

hf download Qwen/Qwen2.5-VL-7B-Instruct --local-dir models/Qwen2.5-VL-7B-Instruct
python -m jaxmm.train --config=configs/qwen2_5_vl_lora.py --config.data.path=conversations.json
"""

import qwen2_5_vl
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = qwen2_5_vl.get_config()
    config.batch_size = 8

    # LLaMA-Factory's example: rank 8 on all linear maps of the decoder, alpha twice the rank, AdamW, 1e-4, no decay,
    # cosine with 10% of warm-up, gradients clipped at 1, batches of 8.
    # github.com/hiyouga/LLaMA-Factory, examples/train_lora/qwen2_5vl_lora_sft.yaml
    config.adapter.rank = 8
    config.adapter.alpha = 16.0
    config.adapter.targets = "decoder.blocks"
    config.optimizer.rate = 1e-4
    config.optimizer.connector_rate = config.optimizer.vision_rate = 1.0
    config.optimizer.warmup = config.steps // 10
    config.optimizer.weight_decay = 0.0
    return config
