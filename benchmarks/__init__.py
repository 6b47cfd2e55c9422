"""Ours and the established tools side by side, on the same input, in one run."""
