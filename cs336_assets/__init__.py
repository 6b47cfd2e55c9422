"""The Dagster graph: one module per stage, in the order the data flows."""
