"""The Transformer language model."""
