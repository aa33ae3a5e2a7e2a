"""Qwen3-VL 8B learns your data by adapters of its decoder, over weights of 4 bits (QLoRA).

hf download Qwen/Qwen3-VL-8B-Instruct --local-dir models/Qwen3-VL-8B-Instruct
python -m jaxmm.train --config=configs/qwen3_vl_qlora.py --config.data.path=conversations.json
"""

import qwen2_5_vl_lora
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    # LLaMA-Factory's example for Qwen3-VL (of 4B) has the settings of that for Qwen2.5-VL.
    # github.com/hiyouga/LLaMA-Factory, examples/train_lora/qwen3vl_lora_sft.yaml
    config = qwen2_5_vl_lora.get_config()
    config.init_from = "models/Qwen3-VL-8B-Instruct"
    config.adapter.base_dtype = "nf4"
    return config
