"""Training losses on normalised fields."""
