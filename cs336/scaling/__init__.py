"""Scaling: fitting laws, a grid of small models trained for real, and predictions from its rows."""
