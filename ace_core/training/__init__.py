"""One trainer: it knows batches, checkpoints and callbacks, and nothing of time stepping."""
