"""Scaling laws: fit measured losses, predict the best size at a budget nobody has paid for yet."""
