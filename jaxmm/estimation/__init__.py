"""What ``jaxmm estimate`` computes."""
