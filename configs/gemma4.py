"""Gemma 4 goes on learning on your data: connector and decoder learn, the tower stays as it is.

hf download google/gemma-4-31B-it --local-dir models/gemma-4-31B-it
python -m jaxmm.train --config=configs/gemma4.py --config.data.path=conversations.json
"""

import gemma3
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    # Its makers give no rates for it: these are those for Gemma 3.
    config = gemma3.get_config()
    config.init_from = "models/gemma-4-31B-it"  # an image is up to 280 soft tokens
    return config
