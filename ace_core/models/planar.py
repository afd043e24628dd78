"""The plane's Fourier transform in the place of the spherical one: makani's ``spectral_transform: fft``.

Legend: B batch, Y latitude, X longitude, C channels, L wavenumbers along Y, M along X, R = 2 (real, imaginary).

``degrees`` are wavenumbers along the rows, 0, 1, ... ceil(L / 2) - 1 and then -floor(L / 2), ..., -1; unlike on the sphere all orders have
all of them. Unitary, both ways.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ace_core.distributed import WHOLE


class _Planar(nn.Module):
    """With the interface of :class:`ace_core.harmonics.RealSHT` and its inverse that a filter uses; not in tiles."""

    grid = "planar"
    tiles = WHOLE

    def __init__(self, nlat: int, nlon: int, lmax: int, mmax: int) -> None:
        super().__init__()
        assert lmax <= nlat, (lmax, nlat)
        assert mmax <= nlon // 2 + 1, (mmax, nlon)
        self.shape, self.lmax, self.mmax = (nlat, nlon), lmax, mmax
        self.below = lmax // 2  # negative wavenumbers
        self.degrees = slice(0, lmax)


class RealFFT2(_Planar):
    """[B, Y, X, C] -> [L, M, B, R, C]."""

    def rows(self, x: Tensor, *, zero: bool = False) -> Tensor:
        """zero: nothing is left unset in any case."""
        x = x.to(torch.float32 if x.dtype != torch.float64 else x.dtype)
        z = torch.fft.rfft2(x, dim=(1, 2), norm="ortho")[:, :, : self.mmax]
        if self.lmax < self.shape[0]:
            z = torch.cat([z[:, : self.lmax - self.below], z[:, self.shape[0] - self.below :]], dim=1)
        return torch.view_as_real(z).permute(1, 2, 0, 4, 3)


class InverseRealFFT2(_Planar):
    """[L, M, B, R, C] -> [B, Y, X, C]."""

    def forward(self, coefficients: Tensor) -> Tensor:
        """[M, L, B, R, C] -> [B, Y, X, C], as :class:`ace_core.harmonics.InverseRealSHT`."""
        return self.from_rows(coefficients.transpose(0, 1))

    def from_rows(self, rows: Tensor, *, zero: bool = False) -> Tensor:
        """zero: all is read in any case."""
        z = torch.complex(*rows.unbind(3)).permute(2, 0, 1, 3)
        if (missing := self.shape[0] - self.lmax) > 0:
            hole = z.new_zeros(z.shape[0], missing, *z.shape[2:])
            z = torch.cat([z[:, : self.lmax - self.below], hole, z[:, self.lmax - self.below :]], dim=1)
        field: Tensor = torch.fft.irfft2(z, s=self.shape, dim=(1, 2), norm="ortho")
        return field
