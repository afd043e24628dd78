"""Networks, one file each. They see tensors [B, Y, X, C] and the grid only."""
