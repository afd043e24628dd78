"""Preparation of training data: whole shards, a ledger that defines completion, statistics, forcing pairs, truth."""
