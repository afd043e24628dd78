"""Physics of the column and of the sea surface: budgets, heights, fluxes, perturbations."""
