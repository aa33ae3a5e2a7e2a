"""InternVL 3 goes on learning on your data: connector and decoder learn, the tower stays as it is.

hf download OpenGVLab/InternVL3-8B-hf --local-dir models/InternVL3-8B-hf
python -m jaxmm.train --config=configs/internvl3.py --config.data.path=conversations.json

The folder must be one that ends in -hf: the others hold code of their own, which is never run.
"""

import base
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = base.get_config()
    config.init_from = "models/InternVL3-8B-hf"
    config.seq_len = 16384  # an image of 13 tiles is 3,328 soft tokens
    config.batch_size = 16  # rows; about 128 conversations of an image of 6 tiles, the published batch
    config.steps = 2000
    config.data.jitter = 0.0

    # The authors' second fine-tuning: AdamW, 2e-5, decay 0.05, cosine with 3% of warm-up, tower frozen, rows of 16,384.
    # github.com/OpenGVLab/InternVL, internvl_chat/shell/internvl3.0/2nd_finetune/
    # internvl3_8b_dynamic_res_2nd_finetune_full.sh
    config.optimizer.name = "adamw"
    config.optimizer.freeze = "vision"
    config.optimizer.rate = 2e-5
    config.optimizer.warmup = 60
    config.optimizer.end_factor = 0.0
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.05
    config.optimizer.z_loss = 0.0

    config.compute.remat = "full"
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.eval.every = 0
    config.checkpoint.every = 250
    return config
