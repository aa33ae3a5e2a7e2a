"""Data formats: containers (files to raw records) and formats (a raw record to a document), a family in each file."""
