"""Training and forcing data: stores, windows, loader, statistics, SST perturbations."""
