"""Hugging Face transformers: config, quantizer, swap, checkpoint folders, model cards."""
