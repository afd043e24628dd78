"""Thin, retryable Prefect tasks around ``ace_core``. Paths and hashes in, paths and hashes out; never tensors."""
