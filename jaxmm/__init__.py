"""jaxmm: multimodal pretraining and fine-tuning in JAX, on packed sequences.

What Python programs use of it is here, and imported when it is first asked for::

    import jaxmm

    config = jaxmm.load_config("base", **{"optimizer.rate": 1e-3})
    for batch in jaxmm.batches(config): ...                     # packed NumPy batches, the rows that a run trains on
    model = jaxmm.make_model(config)                            # model.init, model.apply, model.loss
    jaxmm.load("runs/base").answer("cat.png", "What is this?")  # a run, or a Hugging Face folder
    jaxmm.attention(q, k, v, jaxmm.causal(segments))            # the interval attention by itself
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxmm.api import Model, TrainedModel, batches, load, load_config, make_model, make_plan
    from jaxmm.batch import Batch
    from jaxmm.errors import UserError
    from jaxmm.models.attention import attention, bidirectional, causal

# Configs and tokenizers need no PyTorch: without this, transformers warns every user that it is missing.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

__version__ = "0.2.0"
__all__ = [
    "Batch", "Model", "TrainedModel", "UserError", "attention", "batches", "bidirectional", "causal", "load",
    "load_config", "make_model", "make_plan",
]  # fmt: skip
_ELSEWHERE = {
    "Batch": "jaxmm.batch",
    "UserError": "jaxmm.errors",
    "attention": "jaxmm.models.attention",
    "bidirectional": "jaxmm.models.attention",
    "causal": "jaxmm.models.attention",
}  # the others are in jaxmm.api


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"jaxmm has no {name}; it has {', '.join(__all__)}")
    globals()[name] = value = getattr(importlib.import_module(_ELSEWHERE.get(name, "jaxmm.api")), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
