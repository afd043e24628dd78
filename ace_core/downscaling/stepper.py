"""A diffusion model as something to train: one level of noise for every sample of a batch.

Legend: B sample, C channel, Y, X fine latitude and longitude.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ace_core.distributed import Ranks
from ace_core.downscaling.edm import draw_sigma, loss_weight
from ace_core.downscaling.model import Downscaler
from ace_core.downscaling.pair import GridPair, PairedBatch
from ace_core.errors import DataError, fail
from ace_core.models.context import NoiseKey
from ace_core.seeding import row_seed
from ace_core.training.checkpoint import DOWNSCALER
from ace_core.training.metrics import BatchMetrics
from ace_core.training.optimization import Descent

# Where the loss by level of noise is told: log10 sigma, as in fme.
NOISE_BINS, NOISE_FROM, NOISE_TO = 40, -3.0, 3.5
_STEP = (NOISE_TO - NOISE_FROM) / NOISE_BINS


def noise_bin_names() -> tuple[str, ...]:
    """The middle of every bin, as the metrics write it."""
    return tuple(f"loss_vs_noise/log10_sigma_{NOISE_FROM + (i + 0.5) * _STEP:+.3f}" for i in range(NOISE_BINS))


class DiffusionTrainStepper:
    """Denoising score matching: noise of a random level on the target, and the weighted error of the model's guess (EDM's eq. 2).

    seed: with the place of a sample in the training, the key of its level of noise, its noise and what dropout drops. pair: the grids that
    batches are windows of. by_noise: losses are told by level of noise, too.
    """

    state_key = DOWNSCALER

    def __init__(
        self, model: Downscaler, pair: GridPair, ranks: Ranks, seed: int = 0, *, by_noise: bool = False
    ) -> None:
        self.model = model.to(ranks.device)
        self.pair, self.ranks, self.seed, self.by_noise = pair, ranks, seed, by_noise
        self.module: nn.Module = self.model.denoiser
        self._call = ranks.wrap(self.model.denoiser)
        weights, names = model.config.loss_weights.output_channels, model.out_names
        self._channel_weights = torch.tensor([weights.get(n, 1.0) for n in names], device=ranks.device)
        self.metric_names = ("loss", *(f"loss/{name}" for name in names), *(noise_bin_names() if by_noise else ()))

    def train_on_batch(self, batch: PairedBatch, optimization: Descent) -> BatchMetrics:
        """One update of the weights. Under ``torch.no_grad`` only the losses."""
        key = NoiseKey(self._rows(batch, "denoising", batch.place.epoch, batch.patch), 0)
        losses, sigma = self._losses(batch, key, optimization.mixed_precision)
        optimization.accumulate(losses.mean())
        optimization.step_weights()
        return self._metrics(losses.detach(), sigma)

    @torch.no_grad()
    def score(self, batch: PairedBatch) -> BatchMetrics:
        """The losses of data that are not trained on: the same level of noise and noise for a sample whenever it is asked."""
        key = NoiseKey(self._rows(batch, "denoising, validation", batch.patch), 0)
        return self._metrics(*self._losses(batch, key, mixed_precision=False))

    def _rows(self, batch: PairedBatch, *key: int | str) -> tuple[int, ...]:
        first = batch.place.sample + batch.place.first_row
        return tuple(row_seed(self.seed, *key, first + i) for i in range(batch.n_samples))

    def _losses(self, batch: PairedBatch, key: NoiseKey, mixed_precision: bool) -> tuple[Tensor, Tensor]:
        """Weighted, [B, C]; and sigma [B]."""
        model, device = self.model, self.ranks.device
        sigma = draw_sigma(model.config.noise, key, device)
        fine = self.pair.fine_window(batch.window)
        noise = key.normal((len(model.out_names), fine.rows, fine.columns), device, "denoising")
        return self.losses(batch, sigma, noise, key, mixed_precision), sigma

    def losses(
        self, batch: PairedBatch, sigma: Tensor, noise: Tensor, dropout: NoiseKey | None = None, low: bool = False
    ) -> Tensor:
        """Weighted, [B, C], for levels of noise [B] and standard normal noise [B, C, Y, X]. low: the network works in bfloat16."""
        model, config = self.model, self.model.config
        inputs = model.inputs(batch.coarse, self.pair.fine_window(batch.window))
        target = model.target(batch.fine, inputs.base)
        noisy = torch.addcmul(target, noise, sigma[:, None, None, None])
        # Ranks may have different numbers of batches where nothing is learned from them.
        call = self._call if torch.is_grad_enabled() else self.module
        with torch.autocast(target.device.type, torch.bfloat16, enabled=low or config.use_amp_bf16):
            guess = call(noisy, inputs.condition, sigma, dropout)
        error = guess - target
        loss = (error.square() if config.loss.type == "MSE" else error.abs()).mean(dim=(-2, -1))
        weight = loss_weight(sigma, config.loss_weights.noise_weight_exponent)
        weighted: Tensor = loss * weight[:, None] * self._channel_weights
        return weighted

    def _metrics(self, losses: Tensor, sigma: Tensor) -> BatchMetrics:
        per_channel = losses.double()
        n = torch.full((1,), float(len(losses)), dtype=torch.float64, device=losses.device)
        total = per_channel.mean(dim=1)
        sums, weights = [total.sum()[None], per_channel.sum(dim=0)], [n, n.expand(losses.shape[1])]
        if self.by_noise:
            index = ((sigma.double().log10() - NOISE_FROM) / _STEP).floor().long()
            inside = ((index >= 0) & (index < NOISE_BINS)).double()
            empty = torch.zeros(NOISE_BINS, dtype=torch.float64, device=losses.device)
            index = index.clamp(0, NOISE_BINS - 1)
            sums.append(empty.index_add(0, index, total * inside))
            weights.append(empty.index_add(0, index, inside))
        return BatchMetrics(self.metric_names, torch.cat(sums), torch.cat(weights))

    def check_inputs(self) -> None:
        """Data are checked where they are read: there is no state that could turn NaN."""

    def settle(self) -> None:
        """Ranks hold nothing but weights, which are alike."""

    def state(self) -> dict[str, Any]:
        return self.model.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """Raises KeyError, RuntimeError or ValueError for a state of another model."""
        ours = self.model.state()
        for what in ("config", "coarse_shape", "factor"):
            if state[what] != ours[what]:
                raise ValueError(f"its {what} is not that of this training")
        self.model.denoiser.network.load_state_dict(state["network"])


def no_downscaler(where: str, emulator: bool) -> DataError:
    """What is said of a checkpoint that holds an emulator, ours or fme's, or neither."""
    found, fix = "holds no downscaling model", ""
    if emulator:
        found, fix = "holds an emulator", "roll it out by `ace infer` or `ace evaluate`, or name another checkpoint"
    return fail(DataError, where, found, "a checkpoint of `ace train` on a downscaling YAML", fix)


def require_downscaler(content: dict[str, Any], where: str) -> Downscaler:
    """The model in the content of a checkpoint of ours. Raises :class:`DataError`."""
    if DOWNSCALER not in content:
        raise no_downscaler(where, "emulator" in content)
    try:
        return Downscaler.from_state(content[DiffusionTrainStepper.state_key])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise fail(DataError, where, f"its model cannot be built ({reason})", "a checkpoint of this version") from None
