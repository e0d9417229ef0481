"""Hugging Face transformers: config, quantizer, swap, what models notice."""

# Before anything else here: once transformers has its models, the quantizer is registered (projclust/_registration.py),
# which would find a module that is importing them half imported itself.
import transformers.modeling_utils  # noqa: F401
