"""Downscaling: fields of a fine grid, generated from those of a coarse one."""
