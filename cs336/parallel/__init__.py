"""Training on several devices: gradients, optimizer states and parameters shared out over processes."""
