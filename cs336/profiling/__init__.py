"""Systems studies: where time and memory of a training step go, on one device and on several."""
