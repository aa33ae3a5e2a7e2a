"""What a run leaves in its workdir, and how another start goes on from it."""
