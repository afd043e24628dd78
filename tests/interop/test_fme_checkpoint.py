"""Checkpoints that fme 2026.10.0 wrote come in, step as there, and go out again (benchmarks/peer/golden_checkpoint.py).

Tolerance: one step in float32 within 1e-6 of the largest value of a field.
"""

from __future__ import annotations

import copy
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from ace_core.cli import app
from ace_core.depth import DepthLayers
from ace_core.errors import AceError, ConfigError, DataError
from ace_core.fields import Fields
from ace_core.grid import gaussian_latitudes
from ace_core.interop import sfno_names
from ace_core.interop.files import export_file, import_file
from ace_core.interop.fme_checkpoint import emulator_from_fme, export_fme, is_fme, read_fme
from ace_core.interop.unpickle import unpickle
from ace_core.step.args import StepArgs
from ace_core.step.emulator import Emulator
from ace_core.training import checkpoint
from ace_core.vertical import HybridSigma

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
STEPS: dict[str, dict[str, dict[str, Tensor]]] = torch.load(GOLDEN / "fme_steps.tar", weights_only=True)
PEER = ROOT / ".venv-peer" / "bin" / "python"
LABELS = {"noise": [["warm"], ["cold"]]}
CASES = [c for c in STEPS if c != "training_ema"]


def golden(case: str) -> Path:
    return GOLDEN / f"fme_{case}.tar"


def content_of(case: str) -> Any:
    return copy.deepcopy(unpickle(golden(case)))


def step_of(emulator: Emulator, case: str) -> Fields:
    """The peer's step: what it is given as the input of t holds some forcing of t + dt."""
    step, io = emulator.step, STEPS[case]
    sources = {"now": {**io["next"], **io["input"]}, "next": {**io["input"], **io["next"]}}

    def fields(names: tuple[str, ...], when: str) -> Fields:
        return Fields(tuple(names), torch.stack([sources[when][n] for n in names], dim=1))

    args = StepArgs(
        fields(step.prognostic_names, "now"),
        fields(step.forcing_names, "now"),
        fields(step.forcing_names, "next"),
        context=emulator.context(LABELS.get(case), [1, 2], torch.device("cpu")),
    )
    with torch.no_grad():
        return step(args).output


def assert_close(ours: Fields, theirs: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    assert set(ours.names) == set(theirs)
    for name, value in theirs.items():
        assert torch.equal(ours[name].isnan(), value.isnan()), name
        error = (ours[name] - value).nan_to_num().abs().max()
        assert float(error) < tolerance * float(value.nan_to_num().abs().max()), name


def same_weights(a: Emulator, b: Emulator) -> bool:
    states = [[n.state_dict() for n in e.step.networks] for e in (a, b)]
    return all(x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x) for x, y in zip(*states, strict=True))


# --- in


@pytest.mark.parametrize("case", CASES)
def test_an_imported_checkpoint_steps_as_the_peer(case: str) -> None:
    emulator = read_fme(golden(case))
    assert not emulator.step.training
    assert_close(step_of(emulator, case), STEPS[case]["output"])


def test_averaged_weights() -> None:
    emulator = read_fme(golden("training"), weights="ema")
    assert_close(step_of(emulator, "training_ema"), STEPS["training_ema"]["output"])
    assert not same_weights(emulator, read_fme(golden("training")))
    with pytest.raises(DataError, match="holds no averaged weights"):
        read_fme(golden("full"), weights="ema")


def test_what_identifies_the_data_comes_in() -> None:
    info = read_fme(golden("full"), calendar="gregorian").info
    np.testing.assert_allclose(info.grid.lat, gaussian_latitudes(6), atol=1e-5)
    assert info.grid.lon.tolist() == [15.0 + 30.0 * i for i in range(12)]
    assert isinstance(info.vertical, HybridSigma)
    assert info.vertical.ak == pytest.approx((1.0, 20087.1, 0.0))
    assert (info.timestep, info.calendar) == (21600, "standard")
    assert sorted(info.masks.masks) == ["mask_0", "mask_1", "mask_sst"]
    with pytest.raises(DataError, match="unknown calendar 'lunar'"):
        read_fme(golden("full"), calendar="lunar")


def test_depth_layers_come_in_layers_first() -> None:
    theirs, vertical = (
        content_of("depth")["stepper"]["dataset_info"]["vertical_coordinate"],
        read_fme(golden("depth")).info.vertical,
    )
    assert isinstance(vertical, DepthLayers)
    assert vertical.interfaces.tolist() == [0.0, 10.0, 200.0]
    assert torch.equal(vertical.wet[1], theirs["mask"][..., 1])
    assert vertical.floor is not None
    assert float(vertical.thickness[0, :, 3].max()) == 7.5


def test_what_acts_in_training_only_is_dropped_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", "ace"):
        config = read_fme(golden("full")).config.step.config
    assert "input_dropout" in caplog.text
    assert not config.has_input_dropout


def test_the_flat_layout(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", "ace"):
        emulator = read_fme(golden("legacy"))
    assert "by its area weights the grid is 6x12 legendre-gauss" in caplog.text
    assert emulator.info.timestep == 10800
    assert emulator.step.ocean is not None
    assert emulator.step.ocean.surface_temperature_name == "surface_temperature"


@pytest.mark.parametrize(
    "lat", [np.linspace(-90, 90, 6), np.arange(-75, 90, 30.0), gaussian_latitudes(6)], ids=["poles", "centres", "gauss"]
)
def test_a_grid_is_known_by_its_area_weights(lat: np.ndarray) -> None:
    content = content_of("legacy")
    weights = torch.from_numpy(np.cos(np.deg2rad(lat))).float()[:, None].expand(6, 12)
    content["stepper"]["area"] = weights / weights.sum()
    # The network is for a Gaussian grid; one that takes any shows which grid was found.
    _use_mlp(content)
    np.testing.assert_allclose(emulator_from_fme(content, "x.tar").info.grid.lat, lat, atol=1e-3)


def _use_mlp(content: Any) -> None:
    stepper = content["stepper"]
    stepper["config"]["builder"] = {"type": "MLP", "config": {"hidden_dim": 2, "depth": 1}}
    n_in, n_out = len(stepper["config"]["in_names"]), len(stepper["config"]["out_names"])
    stepper["module"] = {"module.0.weight": torch.ones(n_out, n_in, 1, 1), "module.0.bias": torch.zeros(n_out)}


@pytest.mark.parametrize("outer", [True, False])
def test_a_multi_call_step_in_another_that_calls_nothing(outer: bool) -> None:
    content = content_of("multi_call")
    stepper = content["stepper"]
    nothing = {"config": None, "include_multi_call_in_loss": False}
    inner = stepper["config"]["step"]
    if outer:
        stepper["config"]["step"] = {"type": "multi_call", "config": {"wrapped_step": inner, **nothing}}
    else:
        inner["config"]["wrapped_step"] = {
            "type": "multi_call",
            "config": {"wrapped_step": inner["config"]["wrapped_step"], **nothing},
        }
    stepper["step"] = {"wrapped_step": stepper["step"]}
    assert_close(step_of(emulator_from_fme(content, "x.tar"), "multi_call"), STEPS["multi_call"]["output"])


# --- out


@pytest.mark.parametrize("case", CASES)
def test_round_trip_is_bit_identical(case: str, tmp_path: Path) -> None:
    first = read_fme(golden(case))
    export_fme(first, tmp_path / "out.tar")
    second = read_fme(tmp_path / "out.tar")
    assert same_weights(first, second)
    assert first.config == second.config
    assert first.info.grid.matches(second.info.grid)
    assert (first.info.timestep, first.info.labels) == (second.info.timestep, second.info.labels)
    a, b = step_of(first, case), step_of(second, case)
    assert torch.equal(a.tensor.nan_to_num(), b.tensor.nan_to_num())


@pytest.mark.parametrize(
    "case", ["full", "multi_call", "secondary", "radiation", "depth", "training", "local", "filters"]
)
def test_what_goes_out_is_what_came_in(case: str, tmp_path: Path) -> None:
    """Tensors under the peer's names and in its layout, bit for bit; coordinates and masks too."""
    export_fme(read_fme(golden(case)), tmp_path / "out.tar")
    ours, theirs = unpickle(tmp_path / "out.tar")["stepper"], unpickle(golden(case))["stepper"]
    differences = list(_differences(ours["step"], theirs["step"], "step"))
    for key in ("horizontal_coordinates", "vertical_coordinate", "mask_provider", "timestep"):
        differences += _differences(ours["dataset_info"][key], theirs["dataset_info"][key], key)
    assert not differences


def _differences(a: Any, b: Any, where: str) -> Iterator[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        yield from (f"{where}.{k}" for k in a.keys() ^ b.keys())
        # Whether training is still in its first, uncorrected epochs is not the emulator's.
        for key in (a.keys() & b.keys()) - {"corrector_disabled"}:
            yield from _differences(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, Tensor) and isinstance(b, Tensor):
        if not (a.dtype == b.dtype and torch.equal(a.nan_to_num(-1.0), b.nan_to_num(-1.0))):
            yield where
    elif a != b:
        yield where


@pytest.mark.skipif(not PEER.exists(), reason="needs the peer's environment")
def test_the_peer_loads_what_goes_out_and_steps_with_the_same_numbers(tmp_path: Path) -> None:
    for case in CASES:
        export_fme(read_fme(golden(case)), tmp_path / f"fme_{case}.tar")
    script = ROOT / "benchmarks" / "peer" / "golden_checkpoint.py"
    command = [str(PEER), str(script), str(tmp_path), str(tmp_path / "said.tar")]
    # Sums are split among threads: the goldens are of two.
    environment = os.environ | {"FME_FORCE_CPU": "1", "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    said = torch.load(tmp_path / "said.tar", weights_only=True)
    assert set(said) == set(CASES)
    for case, io in said.items():
        for name, value in io["output"].items():
            assert torch.equal(value.nan_to_num(), STEPS[case]["output"][name].nan_to_num()), (case, name)


def test_from_file_to_file(tmp_path: Path) -> None:
    import_file(golden("training"), tmp_path / "ours.tar", weights="ema", calendar="360_day")
    ours = checkpoint.load_emulator(tmp_path / "ours.tar")
    assert ours.info.calendar == "360_day"
    assert_close(step_of(ours, "training_ema"), STEPS["training_ema"]["output"])
    export_file(tmp_path / "ours.tar", tmp_path / "theirs.tar")
    assert same_weights(ours, read_fme(tmp_path / "theirs.tar"))


def test_the_door_tells_the_two_kinds_apart(tmp_path: Path) -> None:
    import_file(golden("training"), tmp_path / "ours.tar")
    assert is_fme(unpickle(golden("training")))
    assert is_fme(unpickle(golden("legacy")))
    assert not is_fme(unpickle(tmp_path / "ours.tar"))
    assert not is_fme([1, 2])
    with pytest.raises(DataError, match="is a checkpoint of this package"):
        read_fme(tmp_path / "ours.tar")


@pytest.mark.parametrize(
    ("shape", "separable"),
    [
        ((6, 6, 6, 2), None),
        ((4, 4, 3, 5, 2), None),
        ((4, 3, 2), None),
        ((4, 3, 5, 2), None),
        ((4, 4, 3, 2), False),
        ((4, 3, 4, 2), True),
        ((4, 4, 4, 2), True),
    ],
)
def test_sfno_layouts_are_inverse(shape: tuple[int, ...], separable: bool | None) -> None:
    theirs = {
        "pos_embed": torch.randn(1, 4, 3, 5),
        "encoder.0.weight": torch.randn(4, 2, 1, 1),
        "blocks.0.norm0.weight": torch.randn(4),
        "blocks.0.norm1.weight": torch.randn(3, 5),
        "blocks.0.filter.filter.weight": torch.randn(shape),
        "blocks.0.filter.filter.bias": torch.randn(1, 4, 1, 1),
        "blocks.0.mlp.fwd.0.weight": torch.randn(8, 4, 1, 1),
        "blocks.0.mlp.fwd.2.bias": torch.randn(4),
    }
    ours = sfno_names.to_ours(theirs, separable)
    degrees = shape[1] if separable or shape[0] != shape[1] else shape[2]
    assert ours["blocks.0.filter.weight"].shape[0] == degrees
    assert ours["blocks.0.filter.weight"].shape[-1] == shape[0]
    back = sfno_names.to_peer(ours, separable)
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[k], v) for k, v in theirs.items())


# --- bad files


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.pop("module.pos_embed"), "missing tensors: pos_embed"),
        (lambda m: m.update({"module.more": torch.zeros(1)}), "unexpected tensors: more"),
        (lambda m: m.update({"module.pos_embed": torch.zeros(1, 6, 6, 10)}), r"pos_embed \(1, 6, 6, 10\), expected \(1, 6, 6, 12\)"),
        (lambda m: m.update({"module.blocks.0.filter.filter.weight": torch.zeros(3)}), r"filter.weight \(3,\)"),
        (lambda m: m.update({"module.pos_embed": "x"}), "not tensors: module.pos_embed"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit(change: Callable[[dict[str, Any]], object], said: str) -> None:
    content = content_of("full")
    change(content["stepper"]["step"]["module"])
    with pytest.raises(DataError, match=said) as error:
        emulator_from_fme(content, "x.tar")
    assert all(p.where.startswith("x.tar") for p in error.value.problems)


@pytest.mark.parametrize(
    ("case", "key", "said"),
    [
        ("full", "num_layers", r"network 1 \(Sph.*: 10000000, but there are \d+ tensors"),
        ("full", "encoder_layers", r"encoder_layers: 10000000, but there are \d+ tensors"),
        ("full", "embed_dim", r"embed_dim: 10000000, but no axis of its tensors is longer than"),
        ("noise", "num_layers", r"num_layers: 10000000, but there are \d+ tensors"),
        ("training", "depth", r"\(MLP\).*\n?.*depth: 10000000, but there are \d+ tensors"),
    ],
)
def test_a_network_that_its_tensors_cannot_fill_is_not_built(case: str, key: str, said: str) -> None:
    content = content_of(case)
    content["stepper"]["config"]["step"]["config"]["builder"]["config"][key] = 10**7

    def stop(*_: object) -> None:
        raise TimeoutError("30 seconds of computing")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, 30.0)
    try:
        with pytest.raises(DataError, match=said):
            emulator_from_fme(content, "x.tar")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, before)


def test_all_that_does_not_fit_is_told_at_once() -> None:
    content = content_of("full")
    step = content["stepper"]["step"]
    step["module"].pop("module.encoder.0.weight")
    step["module"]["module.more"] = torch.zeros(1)
    step["secondary_decoder"].pop("module.0.bias")
    with pytest.raises(DataError) as error:
        emulator_from_fme(content, "x.tar")
    assert [p.found for p in error.value.problems] == [
        "missing tensors: encoder.0.weight",
        "unexpected tensors: more",
        "missing tensors: 0.bias",
    ]


@pytest.mark.parametrize(
    ("case", "change", "said"),
    [
        ("full", lambda s: s.pop("step"), "lacks step"),
        ("full", lambda s: s.pop("dataset_info"), "lacks dataset_info"),
        ("full", lambda s: s["step"].pop("secondary_decoder"), "lacks secondary_decoder"),
        ("multi_call", lambda s: s["step"].pop("wrapped_step"), "lacks wrapped_step"),
        ("training", lambda s: s["step"].update(radiation_module={}), "weights of radiation_module"),
        ("legacy", lambda s: [s.pop(k) for k in ("normalizer", "area", "module")], "lacks module, normalizer or norm.*, gridded"),
        ("full", lambda s: s["dataset_info"].update(timestep=1.5), "timestep: 1.5"),
        ("full", lambda s: s["dataset_info"].update(horizontal_coordinates={"face": 1, "height": 2, "width": 2}), "HEALPix"),
        ("full", lambda s: s["dataset_info"].update(horizontal_coordinates=None), "neither horizontal_coordinates nor area"),
        ("full", lambda s: s["dataset_info"]["mask_provider"]["masks"].update(mask_0=torch.ones(2, 2)), r"mask_0 has shape \(2, 2\)"),
        ("full", lambda s: s["config"]["step"].update(type="FCN3"), "step.type: 'FCN3'"),
        ("full", lambda s: s["config"]["step"]["config"]["builder"].update(type="GraphCast"), "network 'GraphCast'.*\n.*MLP"),
        ("full", lambda s: s["config"]["step"]["config"]["builder"]["config"].update(filter_type="non-linear"), "filter_type"),
        ("full", lambda s: s["config"]["step"]["config"].update(novelty=1), "novelty"),
        ("full", lambda s: s["config"]["step"]["config"]["normalization"]["network"]["stds"].update(PRESsfc=float("nan")), "PRESsfc"),
        ("full", lambda s: s.update(config={"ocean": {}, "atmosphere": {}}), "a stepper of ocean, atmosphere"),
        ("legacy", lambda s: s["config"].update(conserve_dry_air=True), "conserve_dry_air: True"),
        ("legacy", lambda s: s["config"]["normalization"].update(exclude_names=["x"]), "exclude_names"),
        ("legacy", lambda s: s.update(area=torch.rand(6, 12)), "no usual grid"),
        ("legacy", lambda s: s.update(img_shape=[3, 3]), r"img_shape \(3, 3\)"),
        ("full", lambda s: s.update(config=3), "is not|is no"),
    ],
)  # fmt: skip
def test_what_cannot_come_in_is_told(case: str, change: Callable[[Any], object], said: str) -> None:
    content = content_of(case)
    change(content["stepper"])
    with pytest.raises(AceError, match=said) as error:
        emulator_from_fme(content, "x.tar")
    assert isinstance(error.value, ConfigError | DataError)


def _dataset(content: Any) -> Any:
    return content["stepper"]["dataset_info"]


def _module(content: Any) -> Any:
    return content["stepper"]["step"]["module"]


def _with(value: Tensor) -> Callable[[Any], object]:
    return lambda c: _module(c).update({"module.encoder.0.weight": value})


ENCODER = torch.zeros(6, 18, 1, 1)


@pytest.mark.parametrize(
    ("case", "change", "said"),
    [
        ("full", _with(ENCODER.int()), "another shape or kind: encoder.0.weight of torch.int32"),
        ("full", _with(ENCODER.bool()), "another shape or kind: encoder.0.weight of torch.bool"),
        ("full", _with(ENCODER.cfloat()), "another shape or kind: encoder.0.weight of torch.complex64"),
        ("full", _with(ENCODER + torch.nan), "not finite: encoder.0.weight"),
        ("full", _with(ENCODER + torch.inf), "not finite: encoder.0.weight"),
        ("full", _with(torch.tensor(1.0)), "encoder.0.weight"),
        ("full", lambda c: _module(c).update({3: torch.zeros(1)}), "is not laid out as fme's"),
        ("full", lambda c: _dataset(c)["horizontal_coordinates"].update(lon=torch.zeros(12, 2)), r"lon: \[12, 2\] numbers"),
        ("training", lambda c: _dataset(c)["horizontal_coordinates"].update(lat=torch.full((6,), torch.nan)), "that are no lat"),
        ("training", lambda c: _dataset(c)["horizontal_coordinates"].update(lat=torch.zeros(0)), "that are no lat"),
        ("training", lambda c: _dataset(c)["horizontal_coordinates"].update(lat=torch.tensor([1.0, 0, 2, 3, 4, 5])), "that are no lat"),
        ("full", lambda c: _dataset(c)["horizontal_coordinates"].update(lat=torch.linspace(-85, 85, 6)), "data_grid"),
        ("full", lambda c: _dataset(c).update(all_labels=["a", "b"]), "labels a, b, and networks that take none"),
        ("noise", lambda c: [_dataset(c).update(all_labels=[]), _module(c).update(label_encoding=None)], "the data have no labels"),
        ("noise", lambda c: c["stepper"]["config"]["step"]["config"]["builder"].update(conditional=False), "networks that take none"),
        ("noise", lambda c: _module(c).update(label_encoding={"labels": ["warm", "mild", "cold"]}), "label_embedding.weight"),
        ("full", lambda c: c["stepper"]["config"].update(hologram=1), "hologram: unknown key(.*\n)*.*a newer fme wrote it"),
        ("local", lambda c: c["stepper"]["config"]["step"]["config"]["builder"]["config"].update(local_blocks=[0]), "missing tensors: .*conv.weight"),
        ("filters", lambda c: c["stepper"]["config"]["step"]["config"]["builder"]["config"].update(rank=0.9), "factor_0"),
    ],
)  # fmt: skip
def test_a_file_that_contradicts_itself_is_told(
    case: str, change: Callable[[Any], object], said: str, tmp_path: Path
) -> None:
    """By the command too: exit code 2, no traceback, no output."""
    content = content_of(case)
    content["stepper"]["dataset_info"]["variable_metadata"] = None  # which is read as a stand-in and not written again
    change(content)
    torch.save(content, tmp_path / "in.tar")
    with pytest.raises(AceError, match=said):
        read_fme(tmp_path / "in.tar")
    run = CliRunner().invoke(app, ["import", "fme", str(tmp_path / "in.tar"), "-o", str(tmp_path / "out.tar")])
    assert run.exit_code == 2
    assert "Traceback" not in run.output
    assert [p.name for p in tmp_path.iterdir()] == ["in.tar"]


def test_labels_that_an_mlp_never_saw_are_dropped_as_fme_does(caplog: pytest.LogCaptureFixture) -> None:
    content = content_of("training")
    _dataset(content)["all_labels"] = ["a", "b"]
    with caplog.at_level("WARNING", "ace"):
        assert emulator_from_fme(content, "x.tar").info.labels == ()
    assert "labels a, b: its networks do not take them: dropped" in caplog.text


@pytest.mark.parametrize("out", ["folder", "file/below.tar"])
def test_where_nothing_can_be_written_is_told_first(out: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    run = CliRunner().invoke(app, ["import", "fme", str(golden("training")), "-o", str(tmp_path / out)])
    assert run.exit_code == 2
    assert "cannot be written" in run.output


def test_a_network_that_fme_lacks_does_not_go_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ace_core.interop import fme_weights

    monkeypatch.delitem(fme_weights.NAMES, "MLP")
    with pytest.raises(ConfigError, match="weights of 'MLP' cannot be converted"):
        emulator = read_fme(golden("training"))
    monkeypatch.undo()
    emulator = read_fme(golden("training"))
    monkeypatch.delitem(fme_weights.NAMES, "MLP")
    with pytest.raises(ConfigError, match="weights of 'MLP' cannot be converted"):
        export_fme(emulator, tmp_path / "out.tar")
    assert not list(tmp_path.iterdir())


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key, inner in value.items():
        yield (*path, key)
        if isinstance(inner, dict) and key not in ("means", "stds"):
            yield from _places(inner, (*path, key))


@pytest.mark.parametrize("case", ["full", "legacy", "depth"])
def test_whatever_is_missing_or_null_is_told_or_does_not_matter(case: str) -> None:
    """Every key of a stepper in turn, removed and set to null and to a word: an emulator, or one error meant for a person."""
    original = unpickle(golden(case))["stepper"]
    for path in list(_places(original)):
        for value in ("removed", None, "word"):
            stepper = _copied(original)
            here = stepper
            for key in path[:-1]:
                here = here[key]
            if value == "removed":
                del here[path[-1]]
            else:
                here[path[-1]] = value
            try:
                emulator = emulator_from_fme({"stepper": stepper}, "x.tar")
            except AceError as error:
                assert "x.tar" in str(error), path  # noqa: PT017
            else:
                assert isinstance(emulator, Emulator)


def _copied(value: Any) -> Any:
    return {k: _copied(v) for k, v in value.items()} if isinstance(value, dict) else value
