"""One file, one Prefect flow, one page. No mathematics."""
