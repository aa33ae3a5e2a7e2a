"""From raw data to a prepared folder, and the reading of one."""
