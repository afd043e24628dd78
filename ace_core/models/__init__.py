"""Networks, one file each. They see planes [B, C, Y, X] and the grid only."""
