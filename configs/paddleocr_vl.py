"""PaddleOCR-VL goes on learning to read documents: a language, a hand or a kind of table of your own; all parts learn.

hf download PaddlePaddle/PaddleOCR-VL --local-dir models/PaddleOCR-VL
python -m jaxmm.train --config=configs/paddleocr_vl.py --config.data.path=conversations.json

The questions are those that it knows: "OCR:", "Table Recognition:", "Formula Recognition:" and "Chart Recognition:".
"""

import base
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = base.get_config()
    config.init_from = "models/PaddleOCR-VL"
    config.seq_len = 16384
    config.batch_size = 8  # rows; the published batch is 64 examples, packed by eight
    config.steps = 1000
    config.data.jitter = 0.0

    # The authors' fine-tuning: AdamW of 0.9 and 0.95, 5e-6, decay 0.1, a cosine to 10% with 1% of warm-up, all parts.
    # github.com/PaddlePaddle/ERNIE, examples/configs/PaddleOCR-VL/sft/run_ocr_vl_sft_16k.yaml
    config.optimizer.name = "adamw"
    config.optimizer.rate = 5e-6
    config.optimizer.warmup = 10
    config.optimizer.end_factor = 0.1
    config.optimizer.b2 = 0.95
    config.optimizer.weight_decay = 0.1
    config.optimizer.z_loss = 0.0

    config.compute.remat = "full"
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.eval.every = 0
    config.checkpoint.every = 250
    return config
