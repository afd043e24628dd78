"""Rollouts scored against data."""
