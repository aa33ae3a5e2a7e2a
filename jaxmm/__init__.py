"""jaxmm: multimodal pretraining and fine-tuning in JAX, on packed sequences."""

__version__ = "0.2.0"
