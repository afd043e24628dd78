"""What fme's files say is understood, or refused with what to do instead; every mistake is one message, before anything is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ace_core.config import Source, dump, load, parse
from ace_core.distributed import Ranks
from ace_core.downscaling.checkpoints import CheckpointModelConfig
from ace_core.downscaling.data_config import ClosedInterval
from ace_core.downscaling.generate import downscale
from ace_core.downscaling.generate_config import DownscaleConfig, EventConfig, TimeRangeConfig
from ace_core.errors import AceError, ConfigError
from ace_core.signals import StopFlag
from tests.downscaling.generated import PATCHES, configured, event, plain, save_model, span

FME = """
experiment_dir: /results
model:
  checkpoint_path: /checkpoints/best_histogram_tail.ckpt
data:
  topography: null
  coarse:
  - data_path: /climate-default/X-SHiELD-AMIP-downscaling
    engine: zarr
    file_pattern: 100km.zarr
  batch_size: 4
  num_data_workers: 0
  strict_ensemble: False
patch:
  divide_generation: true
  composite_prediction: true
  coarse_horizontal_overlap: 0
outputs:
  - name: "WA_AR_20230206"
    save_vars: ["PRATEsfc"]
    n_ens: 128
    max_samples_per_gpu: 8
    event_time: 2023-02-06T06:00:00
    lat_extent: {start: 36.0, stop: 52.0}
    lon_extent: {start: 228.0, stop: 244.0}
  - name: "CONUS_2023"
    save_vars: ["PRATEsfc"]
    n_ens: 8
    time_range:
      start_time: "2023-01-01T00:00:00"
      stop_time: "2023-12-31T18:00:00"
logging:
  log_to_screen: true
  log_to_wandb: false
  log_to_file: true
  project: downscaling
  entity: my_organization
"""


def test_the_example_of_fme(tmp_path: Path) -> None:
    (tmp_path / "fme.yaml").write_text(FME)
    config = load(DownscaleConfig, tmp_path / "fme.yaml")
    assert isinstance(config.model, CheckpointModelConfig)
    first, second = config.outputs
    assert isinstance(first, EventConfig)
    assert isinstance(second, TimeRangeConfig)
    assert (first.event_time, first.max_samples_per_gpu) == ("2023-02-06T06:00:00", 8)
    assert first.lon_extent == ClosedInterval(start=228.0, stop=244.0)
    assert (second.lat_extent, second.max_samples_per_gpu) == (None, 4)
    assert (config.data.lat_extent.start, config.data.lat_extent.stop) == (-66.0, 70.0)
    assert config.patch.overlap == 0
    assert parse(DownscaleConfig, Source("again", dump(config))) == config


def test_the_first_time_is_one() -> None:
    assert configured("m", "d", event(event_time=0)).outputs[0].event_time == 0  # type: ignore[union-attr]


PARSED: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    (
        "both kinds",
        event(time_range={"stop": 3}),
        {},
        r"outputs\[0\]: event_time and time_range: give one of them",
    ),
    ("neither kind", {"name": "x", "n_ens": 1}, {}, r"outputs\[0\].time_range: missing"),
    ("no name", {"n_ens": 1, "event_time": 0}, {}, r"outputs\[0\].name: missing"),
    ("a path for a name", event(name="a/b"), {}, "cannot be the name of a file"),
    ("a hidden name", event(name=".a"), {}, "cannot be the name of a file"),
    ("a negative time", event(event_time=-1), {}, "times are counted from 0 on"),
    ("no time", event(event_time=True), {}, "neither a time nor a number"),
    ("an empty time", event(event_time=""), {}, "event_time '' is not a date"),
    ("no date", event(event_time="2001-02-31T00:00:00"), {}, "is not a date"),
    ("of another form", event(event_time="2001-02-03", time_format="%d.%m.%Y"), {}, "write it as time_format says"),
    ("a form of a number", event(time_format="%Y"), {}, "time_format is of a written event_time"),
    ("no members", event(n_ens=0), {}, r"outputs\[0\].n_ens"),
    ("nothing at once", event(max_samples_per_gpu=0), {}, r"outputs\[0\].max_samples_per_gpu"),
    ("nothing saved", event(save_vars=[]), {}, r"outputs\[0\].save_vars: empty"),
    ("saved twice", event(save_vars=["a", "b", "a"]), {}, "save_vars a: named twice"),
    ("an unknown axis", event(zarr_chunks={"lat": 4}), {}, "one of time, ensemble, latitude, longitude"),
    (
        "broken shards",
        event(zarr_chunks={"time": 2}, zarr_shards={"time": 3}),
        {},
        "not a multiple of zarr_chunks time 2",
    ),
    ("next to the poles", event(lat_extent={"start": -90.0, "stop": 0.0}), {}, "reach beyond"),
    ("one flag", event(), {"patch": {"divide_generation": True}}, "set both to true"),
    ("the other flag", event(), {"patch": {"composite_prediction": True}}, "set both to true"),
    ("overlap of none", event(), {"patch": {"coarse_horizontal_overlap": 2}}, "overlap is of patches"),
    ("no outputs", event(), {"outputs": []}, "outputs: empty"),
    ("wandb", event(), {"logging": {"log_to_wandb": True}}, "logging.log_to_wandb: a key of fme"),
    (
        "a subset",
        event(),
        {"data": {"coarse": [{"data_path": "d", "subset": {"stop": 3}}]}},
        "each output says of which times",
    ),
    (
        "repeated",
        event(),
        {"data": {"coarse": [{"data_path": "d"}], "repeat": 2}},
        "repeat: every time is downscaled once",
    ),
    (
        "topography",
        event(),
        {"data": {"coarse": [{"data_path": "d"}], "topography": "t"}},
        "data.topography: a key of fme",
    ),
    ("fine data", event(), {"data": {"coarse": [{"data_path": "d"}], "fine": []}}, "data.fine: unknown key"),
    ("no model", event(), {"model": {}}, "model.checkpoint_path: missing"),
    ("a negative seed", event(), {"seed": -1}, "seed"),
]


@pytest.mark.parametrize(("output", "more", "message"), [p[1:] for p in PARSED], ids=[p[0] for p in PARSED])
def test_refused_at_parsing(output: dict[str, Any], more: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse(DownscaleConfig, Source("downscale.yaml", {**plain("m", "d", output), **more}))
    assert len(caught.value.problems) == 1, str(caught.value)


def test_two_outputs_of_one_name() -> None:
    with pytest.raises(ConfigError, match="outputs, name event: given twice"):
        configured("m", "d", event(), event())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("model") / "ckpt.tar")


def lon(start: float, stop: float) -> dict[str, Any]:
    return {"lon_extent": {"start": start, "stop": stop}}


OPENED: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    (
        "not the model's",
        event(save_vars=["a", "bb"]),
        {},
        r"outputs\[0\].save_vars: bb\n.*some of b, a\n.*did you mean 'b'",
    ),
    (
        "too small",
        event(**lon(90.0, 150.0)),
        {},
        "4 x 2 coarse cells; .* 4 x 4\n.*\n.*make lat_extent and lon_extent larger",
    ),
    ("too large", event(**lon(90.0, 270.0)), {}, "4 x 6 coarse cells; .*\n.*\n.*set patch"),
    ("the data's too large", event(lat_extent=None, lon_extent=None), {}, "6 x 12 coarse cells; .*\n.*\n.*set patch"),
    ("smaller than a patch", event(**lon(90.0, 150.0)), {"patch": PATCHES}, "make lat_extent and lon_extent larger"),
    (
        "too much overlap",
        event(**lon(90.0, 270.0)),
        {"patch": {**PATCHES, "coarse_horizontal_overlap": 4}},
        "coarse_horizontal_overlap: 4 for patches of 4x4",
    ),
    ("nowhere", event(lat_extent={"start": 1.0, "stop": 2.0}), {}, r"outputs\[0\].lat_extent: no coarse cell"),
    ("nowhere in the data's", event(lat_extent=None), {"lat": (1.0, 2.0)}, "lat_extent: no coarse cell"),
    (
        "after the data",
        event(event_time="2001-02-01T00:00:00"),
        {},
        "no time in the three hours .*\n.*\n.*2001-01-04T06:00:00",
    ),
    ("beyond the data", event(event_time=14), {}, "14; the data have 14 times\n.*0 to 13"),
    ("not in this calendar", event(event_time="2000-02-29T00:00:00"), {}, "not a date of the noleap calendar"),
    ("no times", span(time_range={"start": 20}), {}, r"outputs\[0\].time_range of .*selects no window"),
    ("other chunks", span(zarr_chunks={"time": 5}), {}, r"outputs\[0\].zarr_chunks: time 5 in a shard of 2"),
    (
        "shared files",
        span(zarr_shards={"time": 5}),
        {},
        r"outputs\[0\].zarr_shards: time 5, of 2 that are made at once and 5 in all",
    ),
    ("shared files of members", event(zarr_shards={"ensemble": 5}), {}, "zarr_shards: ensemble 5, of 2 that are made"),
]


@pytest.mark.parametrize(("output", "more", "message"), [p[1:] for p in OPENED], ids=[p[0] for p in OPENED])
def test_refused_before_anything_is_made(
    tmp_path: Path, model: str, paths: tuple[str, str], output: dict[str, Any], more: dict[str, Any], message: str
) -> None:
    """Of a good output, too, which comes first."""
    config = plain(model, paths[1], output, event(name="good"))
    if "lat" in more:
        start, stop = more["lat"]
        config["data"]["lat_extent"] = {"start": start, "stop": stop}
    else:
        config |= more
    with pytest.raises(AceError, match=message) as caught:
        downscale(parse(DownscaleConfig, Source("downscale.yaml", config)), tmp_path / "out", Ranks(), StopFlag())
    assert len(caught.value.problems) == 1, str(caught.value)
    assert not (tmp_path / "out").exists()


def test_all_mistakes_of_all_outputs_at_once(model: str, paths: tuple[str, str], tmp_path: Path) -> None:
    first = event(save_vars=["c"], event_time=99, **lon(90.0, 150.0))
    second = span(time_range={"start": 20})
    with pytest.raises(ConfigError) as caught:
        downscale(configured(model, paths[1], first, second), tmp_path, Ranks(), StopFlag())
    assert [p.where.split()[0] for p in caught.value.problems] == [
        "outputs[0].save_vars",
        "outputs[0].event_time",
        "outputs[0].lat_extent",
        "outputs[1].time_range",
    ]


def test_variables_that_the_data_lack(tmp_path: Path, paths: tuple[str, str]) -> None:
    model = save_model(tmp_path / "m.tar", in_names=["a", "c"], normalization=_with_c())
    with pytest.raises(AceError, match="c") as caught:
        downscale(configured(model, paths[1], event()), tmp_path / "out", Ranks(), StopFlag())
    assert "coarse.zarr" in str(caught.value)


def test_data_of_another_grid(tmp_path: Path, model: str, paths: tuple[str, str]) -> None:
    """The fine data themselves, of which no three by three cells of the model lie in each."""
    with pytest.raises(AceError, match=r"data\.coarse") as caught:
        downscale(configured(model, paths[0], event()), tmp_path / "out", Ranks(), StopFlag())
    assert len(caught.value.problems) == 1


def test_the_same_data_twice(tmp_path: Path, model: str, paths: tuple[str, str]) -> None:
    config = plain(model, paths[1], event(), span())
    config["data"]["coarse"] *= 2
    with pytest.raises(ConfigError, match="2001-01-04T06:00:00 is followed by 2001-01-01T00:00:00") as caught:
        downscale(parse(DownscaleConfig, Source("downscale.yaml", config)), tmp_path, Ranks(), StopFlag())
    assert len(caught.value.problems) == 1


def _with_c() -> dict[str, Any]:
    one = {"means": dict.fromkeys("abc", 0.0), "stds": dict.fromkeys("abc", 1.0)}
    return {"fine": one, "coarse": one}
