"""A page, an API and a terminal to talk with a model in training, and to see where it looked."""
