"""Models: one configurable decoder, its families, and Hugging Face folders."""
