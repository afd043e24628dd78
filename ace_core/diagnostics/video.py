"""Every step as a picture, mean over samples.

Legend: as in :mod:`ace_core.diagnostics.base`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ace_core.diagnostics.base import (
    DiagnosticConfig,
    Findings,
    NotSupported,
    Piece,
    Scene,
    attributes,
    empty_dataset,
    zeros,
)
from ace_core.metrics.accumulate import Means

# Of one diagnostic, on the device; while a piece is added there are three times as many bytes.
LIMIT = 2**30


class VideoConfig(DiagnosticConfig):
    """Maps of all steps, the initial condition first, mean over samples. enable_extended_videos: also, over samples, the errors' mean, root
    mean square, least and largest, and the prediction's variance over the data's; for that every sample is kept.

    All frames are in memory, in float64: steps x variables x cells x 8 bytes, twice with data to compare with, and extended times the
    number of samples. More than 1 GiB of them is refused."""

    NAME = "video"
    enabled: bool = False
    strict: bool = True
    enable_extended_videos: bool = False

    def build(self, scene: Scene) -> Video:
        if self.enable_extended_videos and not scene.paired:
            raise NotSupported("data to compare with, for enable_extended_videos")
        video = Video(self.get_name(), self.scene(scene), self.enable_extended_videos)
        if video.size > LIMIT:
            need = f"at most {LIMIT / 2**30:g} GiB of frames, fewer variables or fewer steps"
            raise NotSupported(f"{need}; these are {video.size / 2**30:.2f} GiB")
        return video


class Video:
    sees_start = True

    def __init__(self, name: str, scene: Scene, extended: bool) -> None:
        self.name, self.scene, self.extended = name, scene, extended
        self._keys = ("prediction", "target") if scene.paired else ("prediction",)
        samples = scene.n_samples if extended else 1
        self._shape = (samples, scene.n_steps + 1, len(scene.names), *scene.grid.shape)

    @property
    def size(self) -> int:
        """Bytes of all frames."""
        return torch.Size(self._shape).numel() * 8 * len(self._keys)

    def zero(self) -> Means:
        device = self.scene.device
        weights = zeros(device, **dict.fromkeys(self._keys, (*self._shape[:2], 1, 1, 1)))
        return Means(zeros(device, **dict.fromkeys(self._keys, self._shape)), weights)

    def add(self, piece: Piece) -> Means:
        piece = piece.of(self.scene.names)
        values = {"prediction": piece.prediction}
        if piece.target is not None:
            values["target"] = piece.target
        total = self.zero()
        where = (piece.samples if self.extended else slice(0, 1), piece.steps)
        for key in self._keys:
            field = values[key]
            n = 1 if self.extended else field.shape[0]
            total.sums[key][where] = (
                field.double() if self.extended else field.sum(dim=0, keepdim=True, dtype=torch.float64)
            )
            total.weights[key][where] = float(n)
        return total

    def findings(self, total: Means) -> Findings:
        frames = {k: v.cpu() for k, v in total.finish().items()}
        means = {k: v.mean(dim=0) for k, v in frames.items()}
        out = empty_dataset(self.scene.grid, timestep=range(self.scene.n_steps + 1)).assign_coords(
            source=list(self._keys)
        )
        both = torch.stack([means[k] for k in self._keys])
        dims = ("timestep", "lat", "lon")
        for c, name in enumerate(self.scene.names):
            label = attributes(name, "mean over samples")
            out[name] = (("source", *dims), both[:, :, c].numpy(), label)
        if self.extended:
            for key, values in extended(frames["prediction"], frames["target"]).items():
                for c, name in enumerate(self.scene.names):
                    label = attributes(name, EXTENDED[key], "1" if key == "gen_var" else None)
                    out[f"{key}_{name}"] = (dims, values[:, c].numpy(), label)
        return Findings({}, out)


EXTENDED = {
    "bias": "mean error over samples",
    "rmse": "root mean square error over samples",
    "min_err": "least error of any sample",
    "max_err": "largest error of any sample",
    "gen_var": "predicted over target variance over samples",
}


def extended(prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
    """[B, N + 1, C, Y, X] each -> [N + 1, C, Y, X] by name."""
    error = prediction - target
    return {
        "bias": error.mean(dim=0),
        "rmse": error.square().mean(dim=0).sqrt(),
        "min_err": error.amin(dim=0),
        "max_err": error.amax(dim=0),
        "gen_var": prediction.var(dim=0, unbiased=False) / target.var(dim=0, unbiased=False),
    }
