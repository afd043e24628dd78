"""Several networks as one: ``[B, n_in, Y, X] -> [B, n_out, Y, X]``, both normalised.

Legend: B sample, Y latitude, X longitude. Normalising, residuals, correctors and all that follows do not change with the number of
networks, so the step knows one; what is between the networks is here. ``parts`` lists them in the order of their builders.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ace_core.models.context import NO_CONTEXT, Context, call


class PrimaryWith(nn.Module):
    """A primary network, n_in -> n_primary, with a secondary one, a decoder, or both. Outputs in this order."""

    def __init__(
        self, primary: nn.Module, secondary: SecondaryNetwork | None, decoder: SecondaryDecoder | None = None
    ) -> None:
        super().__init__()
        self.primary, self.secondary, self.decoder = primary, secondary, decoder

    takes_context = True

    @property
    def parts(self) -> Sequence[nn.Module]:
        others = (self.secondary, self.decoder)
        return [self.primary, *(other.network for other in others if other is not None)]

    def forward(self, x: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        said = call(self.primary, x, context)
        y: Tensor = said if self.secondary is None else self.secondary(said, x, context)
        return y if self.decoder is None else torch.cat([y, self.decoder(said, x, context)], dim=1)


class SecondaryDecoder(nn.Module):
    """Diagnostics that a small network tells from the primary one's output alone, which learns nothing from them.

    network: n_primary, or with ``include_input_step`` n_primary + n_in (the whole packed input, indicators included), ->
    n_diagnostics.
    """

    def __init__(self, network: nn.Module, include_input_step: bool) -> None:
        super().__init__()
        self.network, self.include_input_step = network, include_input_step

    def forward(self, said: Tensor, x: Tensor, context: Context) -> Tensor:
        seen = said.detach()
        if self.include_input_step:
            seen = torch.cat([seen, x.detach().to(seen.dtype)], dim=1)
        return call(self.network, seen, context).to(said.dtype)


class SecondaryNetwork(nn.Module):
    """A second network on the same input: further outputs, and corrections to the primary's or to the input.

    network: n_in -> n_full + n_residual. base: for every residual, the channel of the primary's output it is added to, or of
    the input, counted from n_primary on. Gives the primary's outputs, the full ones, then the residuals on inputs.
    """

    def __init__(self, network: nn.Module, n_primary: int, n_full: int, base: Sequence[int]) -> None:
        super().__init__()
        self.network, self.n_full = network, n_full
        on_output = [i for i, b in enumerate(base) if b < n_primary]
        on_input = [i for i, b in enumerate(base) if b >= n_primary]
        self.output_from: Tensor
        self.output_to: Tensor
        self.input_from: Tensor
        self.input_to: Tensor
        for name, index in (
            ("output_from", [n_full + i for i in on_output]),
            ("output_to", [base[i] for i in on_output]),
            ("input_from", [n_full + i for i in on_input]),
            ("input_to", [base[i] - n_primary for i in on_input]),
        ):
            self.register_buffer(name, torch.tensor(index, dtype=torch.long), persistent=False)

    def forward(self, said: Tensor, x: Tensor, context: Context) -> Tensor:
        z = call(self.network, x, context).to(said.dtype)
        y = said
        if len(self.output_to):
            y = y.index_add(1, self.output_to, z.index_select(1, self.output_from))
        pieces = [y, z[:, : self.n_full]]
        if len(self.input_to):
            pieces.append(x.index_select(1, self.input_to).to(z.dtype) + z.index_select(1, self.input_from))
        return torch.cat(pieces, dim=1)


class RadiationThenMain(nn.Module):
    """One network for the radiation, whose output the main network is given.

    Input channels: prognostic and shared forcing (n_shared), then the radiation's own forcing. radiation: all of them ->
    n_radiation. main: the n_shared first and the radiation's output -> n_main. Outputs: main's, then the radiation's.
    detach: the main network's loss does not reach the radiation network.
    """

    def __init__(self, main: nn.Module, radiation: nn.Module, n_shared: int, detach: bool) -> None:
        super().__init__()
        self.main, self.radiation = main, radiation
        self.n_shared, self.detach = n_shared, detach

    takes_context = True

    @property
    def parts(self) -> Sequence[nn.Module]:
        return [self.main, self.radiation]

    def forward(self, x: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        flux = call(self.radiation, x, context)
        seen = flux.detach() if self.detach else flux
        y = call(self.main, torch.cat([x[:, : self.n_shared], seen.to(x.dtype)], dim=1), context)
        return torch.cat([y, flux.to(y.dtype)], dim=1)
