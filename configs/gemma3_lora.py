"""Gemma 3 learns your data by adapters of decoder and tower.

hf download google/gemma-3-4b-it --local-dir models/gemma-3-4b-it
python -m jaxmm.train --config=configs/gemma3_lora.py --config.data.path=conversations.json
"""

import gemma3
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = gemma3.get_config()
    config.batch_size = 8

    # Google's guide to QLoRA for vision: rank 16 and alpha 16 on all linear maps, dropout 0.05, AdamW, 2e-4, a constant
    # rate after 3% of warm-up, gradients clipped at 0.3. It also trains the embedding whole:
    # --config.adapter.modules_to_save=decoder.embedding.
    # ai.google.dev/gemma/docs/core/huggingface_vision_finetune_qlora
    config.adapter.rank = 16
    config.adapter.alpha = 16.0
    config.adapter.dropout = 0.05
    config.adapter.targets = "decoder.blocks,vision.blocks"
    config.optimizer.freeze = ""
    config.optimizer.rate = 2e-4
    config.optimizer.schedule = "constant"
    config.optimizer.warmup = config.steps * 3 // 100
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip = 0.3
    return config
