"""Qwen3-VL 30B-A3B goes on learning on your data, all parts, gently; its experts lie on eight chips.

hf download Qwen/Qwen3-VL-30B-A3B-Instruct --local-dir models/Qwen3-VL-30B-A3B-Instruct
python -m jaxmm.train --config=configs/qwen3_vl_moe.py --config.data.path=conversations.json
"""

import qwen3_vl
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    # Its makers give no rates for it: these are those for Qwen3-VL's dense models.
    config = qwen3_vl.get_config()
    config.init_from = "models/Qwen3-VL-30B-A3B-Instruct"
    config.batch_size = 64

    # A position goes through 8 of 128 experts in each of 48 layers. Gathering a layer's experts, 1.2 GB in bfloat16,
    # would send more than the positions that go to them.
    config.mesh.expert = 8
    config.mesh.fsdp = -1
    return config
