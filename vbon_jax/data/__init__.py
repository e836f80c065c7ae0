"""Rows, prompts, tokenizers and batches."""
