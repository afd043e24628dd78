"""What follows the network: physical bounds and budgets, enforced on the prediction in a fixed order."""
