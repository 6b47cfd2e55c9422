"""Tasks, graders and scores."""
