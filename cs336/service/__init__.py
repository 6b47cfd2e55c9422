"""The HTTP service that serves a scaling study: keys, budgets, losses."""
