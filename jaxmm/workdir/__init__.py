"""The folder of a run: who trains in it, and what of other folders it keeps."""
