"""Scaling laws: accounting, fits, measured runs, and a loss for any configuration."""
