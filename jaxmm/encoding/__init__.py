"""The media of a corpus through frozen towers, once: vectors in files, and records that name them."""
