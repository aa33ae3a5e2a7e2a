"""The process: how it starts, joins others, waits for them, and what it keeps of JAX."""
