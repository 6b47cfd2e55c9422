"""Scaling: a grid of small models trained for real, laws fitted to it, and predictions from its rows."""
