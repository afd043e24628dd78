"""Mergeable statistics and what they are means of."""
