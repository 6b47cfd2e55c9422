"""Token ids on disk and in batches."""
