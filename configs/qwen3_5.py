"""Qwen3.5 goes on learning on your data, all parts, gently.

hf download Qwen/Qwen3.5-9B --local-dir models/Qwen3.5-9B
python -m jaxmm.train --config=configs/qwen3_5.py --config.data.path=conversations.json
"""

import qwen3_vl
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    # Its makers give no rates for it: these are those for Qwen3-VL, whose tower it has.
    config = qwen3_vl.get_config()
    config.init_from = "models/Qwen3.5-9B"
    # Layers of DeltaNet carry a state through whole rows.
    config.mesh.context = 1
    return config
