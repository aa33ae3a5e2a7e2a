"""The images of a corpus through a frozen tower, once: vectors in files, and records that name them."""
