"""Repeated lines and near-identical documents."""
