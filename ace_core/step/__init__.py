"""One time step: normalize -> network -> residual -> denormalize -> ocean. State in, state out."""
