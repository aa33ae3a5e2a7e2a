"""What ``jaxmm export`` writes: the model of a run, its adapters or its parts, as folders of Hugging Face."""
