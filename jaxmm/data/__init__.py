"""From a user's files to packed batches; nothing here calls JAX."""
