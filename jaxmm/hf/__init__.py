"""Hugging Face's folders: their configs as our specs, their tensors by our names, in and out."""
