"""The step and what it is made of, and the loop that runs it."""
