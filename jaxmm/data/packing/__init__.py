"""Which documents make which row of which batch: integers only."""
