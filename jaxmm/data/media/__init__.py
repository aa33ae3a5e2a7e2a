"""What stands in a document beside text: pixels, ready-made features, their sizes."""
