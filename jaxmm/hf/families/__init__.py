"""One file for each family of Hugging Face models, and the table of them."""
