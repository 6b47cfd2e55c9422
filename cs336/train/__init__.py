"""Loss, optimizer, schedule, loop."""
