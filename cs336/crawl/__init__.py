"""Ways in: every source becomes WARC files plus a manifest."""
