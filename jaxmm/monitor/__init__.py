"""What a model looks at: attention of target positions, and maps of it over pictures and clips."""
