"""Networks behind plain functions, and the door to Hugging Face folders."""
