"""Outputs of a generation are what the generator makes, every piece once, however often the process is ended."""

from __future__ import annotations

from pathlib import Path

import pytest
import xarray as xr

from ace_core.distributed import Ranks
from ace_core.downscaling.generate import downscale
from ace_core.signals import StopFlag
from tests.downscaling.generated import configured, contents, event, save_model, span

Paths = tuple[str, str]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("model") / "ckpt.tar")


def test_values_are_the_generators(tmp_path: Path, model: str, paths: Paths) -> None:
    config = configured(model, paths[1], event(), span(save_vars=["a"]), seed=7)
    scores = downscale(config, tmp_path, Ranks(), StopFlag())
    print(scores)
    assert scores["samples"] == 5 + 10
    ds = xr.open_zarr(tmp_path / "event.zarr", consolidated=False)
    print(ds)
    print(ds.attrs)
    print(list(contents(tmp_path / "span.zarr")))
