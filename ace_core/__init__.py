"""Library for training, evaluating and perturbing machine-learned climate emulators.

The data path, which is also the reading order::

    dataset -> batch -> step (normalize -> network -> residual -> denormalize -> ocean)
            -> loss -> trainer -> checkpoint -> rollout -> aggregator -> netCDF / response

Importing this package loads nothing: every room imports what it needs.
"""

__version__ = "0.1.0"
