"""Qwen3-VL goes on learning on your data, all parts, gently.

hf download Qwen/Qwen3-VL-4B-Instruct --local-dir models/Qwen3-VL-4B-Instruct
python -m jaxmm.train --config=configs/qwen3_vl.py --config.data.path=conversations.json
"""

import qwen2_5_vl
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    # The authors' fine-tuning is one for both families, with one set of rates; dense models only.
    # github.com/QwenLM/Qwen3-VL, qwen-vl-finetune/README.md
    config = qwen2_5_vl.get_config()
    config.init_from = "models/Qwen3-VL-4B-Instruct"
    return config
