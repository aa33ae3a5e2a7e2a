"""Preferences: adapters learn which of two answers is better, by DPO. Without data of yours, on the embedded demo.

    python -m jaxmm.train --config=configs/base.py
    python -m jaxmm.train --config=configs/dpo.py

On a released model and your own pairs:

    python -m jaxmm.train --config=configs/dpo.py --config.data.path=pairs.json --config.seq_len=8192 \
      --config.preference.sft=0 \
      --config.init_from=models/Qwen2.5-VL-7B-Instruct --config.adapter.rank=8 --config.adapter.targets=decoder.blocks \
      --config.optimizer.rate=5e-6 --config.compute.remat=full --config.mesh.data=1 --config.mesh.fsdp=-1
"""

import base
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = base.get_config()
    # Or "ipo", "simpo"; with preference.sft 0 "orpo", which has that loss itself, and "kto", whose divergence it would
    # spoil.
    config.objective = "dpo"
    config.preference.beta = 0.0  # 0.1, as in LLaMA-Factory's example; of simpo 2
    # The demo's answers are new to the model: without their own loss it learns to rank them, and not to say them.
    config.preference.sft = 0.3
    config.init_from = "runs/base"  # the run of configs/base.py, which has learnt the demo's pictures
    config.steps = 150
    config.data.jitter = 0.0

    # Measured on the demo, see docs/demo.md. A small model from random weights bears a large rate. LLaMA-Factory's
    # example for Qwen2.5-VL 7B: rank 8 on the decoder, AdamW, 5e-6, no decay, cosine with 10% of warm-up, clipping at
    # 1, batches of 8. github.com/hiyouga/LLaMA-Factory, examples/train_lora/qwen2_5vl_lora_dpo.yaml
    config.adapter.rank = 16
    config.adapter.targets = "decoder.blocks,vision.blocks,connector"
    config.optimizer.name = "adamw"
    config.optimizer.rate = 1e-3
    config.optimizer.warmup = 10
    config.optimizer.end_factor = 0.0
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.0
    config.optimizer.z_loss = 0.0

    config.eval.every = config.checkpoint.every = 50
    return config
