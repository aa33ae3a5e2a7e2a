"""The report page: what the model will see, read back from the batches it gets."""
