"""The parts of ``jaxmm check``: whether an accelerator is right, and how fast it is."""
