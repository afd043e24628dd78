"""The trainer: exact resume, best checkpoint, EMA, stopping. A run is compared with itself, bit for bit."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ace_core.distributed import Ranks
from ace_core.errors import ConfigError, DataError
from ace_core.signals import StopFlag
from ace_core.telemetry import MetricsLog, read_metrics
from ace_core.training import checkpoint
from ace_core.training.checkpoint import load_emulator
from ace_core.training.ema import EMA, EMAConfig
from ace_core.training.run import CHECKPOINTS
from ace_core.training.train import TrainConfig, train
from ace_core.training.trainer import Stopped, Trainer
from tests.training.runs import assert_same_checkpoint, run, without_times

Make = Callable[..., TrainConfig]
SHORT = (
    "max_epochs=2",
    "train_loader.dataset.subset.stop=96",
    "checkpoint_every_n_batches=2",
    "log_train_every_n_batches=1",
)


class StopAfter(StopFlag):
    """Set by the n-th question of the trainer, which asks once per batch."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.left = n

    def __bool__(self) -> bool:
        self.left -= 1
        return self.left < 0


def test_interrupted_at_any_batch_and_resumed_gives_the_same_bits(tmp_path: Path, train_config: Make) -> None:
    config = train_config(*SHORT)
    run(config, tmp_path / "whole")
    for n in (0, 3, 5, 9):
        cut = tmp_path / f"cut{n}"
        with pytest.raises(Stopped):
            run(config, cut, StopAfter(n))
        assert checkpoint.load(cut / CHECKPOINTS / "ckpt.tar")["progress"]["batches_seen"] == n + 1
        run(config, cut)
        for name in ("ckpt.tar", "best_ckpt.tar"):
            assert_same_checkpoint(tmp_path / "whole" / CHECKPOINTS / name, cut / CHECKPOINTS / name)
        assert without_times(cut / "metrics.jsonl") == without_times(tmp_path / "whole" / "metrics.jsonl")


def test_input_dropout_resumes_to_the_same_bits(tmp_path: Path, train_config: Make) -> None:
    """The masks are a function of (seed, epoch, position): a run cut in the middle draws the ones it would have drawn."""
    dropout = "stepper.step.config.input_dropout={kind: per_variable, rate: 0.2}"
    config = train_config(*SHORT, dropout, "stepper.step.config.include_channel_mask_inputs=true")
    run(config, tmp_path / "whole")
    stop = StopFlag()
    stop.set()
    with pytest.raises(Stopped):
        run(config, tmp_path / "cut", stop)
    run(config, tmp_path / "cut")
    assert_same_checkpoint(*(tmp_path / d / CHECKPOINTS / "ckpt.tar" for d in ("whole", "cut")))
    plain = train_config(*SHORT, "stepper.step.config.include_channel_mask_inputs=true")
    run(plain, tmp_path / "plain")
    losses = [read_metrics(tmp_path / d / "metrics.jsonl")[1]["batch_loss"] for d in ("whole", "plain")]
    assert losses[0] != losses[1]


def test_every_way_of_sampling_resumes_to_the_same_bits(tmp_path: Path, train_config: Make) -> None:
    """Windows that grow with the epoch, turned samples, draws with replacement and a time buffer: positions stay exact."""
    config = train_config(
        *SHORT,
        "train_loader.augmentation={rotate_probability: 0.5}",
        "train_loader.sample_with_replacement=32",
        "train_loader.time_buffer=2",
        "train_loader.time_buffer_pool_size=2",
        "train_loader.num_data_workers=2",
        "stepper_training.n_forward_steps={start_value: 1, milestones: [{epoch: 2, value: 2}]}",
    )
    run(config, tmp_path / "whole")
    parts = tmp_path / "parts"
    for batches in (0, 3, 2):
        with pytest.raises(Stopped):
            run(config, parts, StopAfter(batches))
    run(config, parts)
    assert_same_checkpoint(tmp_path / "whole" / CHECKPOINTS / "ckpt.tar", parts / CHECKPOINTS / "ckpt.tar")
    assert without_times(tmp_path / "whole" / "metrics.jsonl") == without_times(parts / "metrics.jsonl")
    # What was seen is known afterwards: 96 windows of up to three daily labels.
    info = load_emulator(parts / CHECKPOINTS / "best_ckpt.tar").info
    ((first, last),) = info.training_times
    assert last - first == (96 - 1 + 2) * info.timestep


def test_the_sun_does_not_turn(train_config: Make) -> None:
    sun = "stepper.derived_forcings.insolation={insolation_name: DSWRFtoa, solar_constant: {value: 1360.0}}"
    with pytest.raises(ConfigError, match="turns the data around, but not the sun"):
        train_config(sun, "train_loader.augmentation={rotate_probability: 0.5}")


def test_every_option_of_the_step_survives_the_checkpoint(tmp_path: Path, train_config: Make) -> None:
    step = "stepper.step.config."
    config = train_config(
        *SHORT,
        f"{step}residual_prediction={{names: [PRESsfc, air_temperature_0], normalized: true}}",
        f"{step}global_mean_removal={{kind: shared, append_as_input: true}}",
        f"{step}include_channel_mask_inputs=true",
        f"{step}prescribed_prognostic_names=[PRESsfc]",
    )
    run(config, tmp_path)
    emulator = checkpoint.load_emulator(tmp_path / CHECKPOINTS / "best_ckpt.tar")
    again = checkpoint.load_emulator(tmp_path / CHECKPOINTS / "best_ckpt.tar")
    assert emulator.normalization.residual is not None
    assert set(emulator.normalization.residual.stds) == {"PRESsfc", "air_temperature_0"}
    i = emulator.step.out_names.index("air_temperature_0")
    expected = emulator.normalization.residual.stds["air_temperature_0"]
    assert float(emulator.step.out_std[i]) == pytest.approx(expected, rel=1e-6)
    assert emulator.normalization.loss == again.normalization.loss
    assert emulator.normalization.loss.stds["air_temperature_0"] == pytest.approx(expected)
    assert emulator.step.packed_names[39] == "__gmr_extra__surface_temperature"
    for a, b in zip(emulator.step.state_dict().values(), again.step.state_dict().values()):
        assert torch.equal(a, b)


def test_killed_process_resumes_to_the_same_bits(tmp_path: Path, train_config: Make, planet_data: Path) -> None:
    config = train_config(*SHORT)
    run(config, tmp_path / "whole")
    command = [
        sys.executable,
        "-m",
        "ace_core.cli",
        "train",
        "configs/planet/train.yaml",
        "--var",
        f"data={planet_data}",
    ]
    for override in ("stepper.step.config.builder.config.embed_dim=8", *SHORT, f"experiment_dir={tmp_path / 'killed'}"):
        command += ["--override", override]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    resume = tmp_path / "killed" / CHECKPOINTS / "ckpt.tar"
    while not resume.is_file():
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run(config, tmp_path / "killed")
    finally:
        torch.set_num_threads(threads)
    a, b = (checkpoint.load(d / CHECKPOINTS / "ckpt.tar") for d in (tmp_path / "whole", tmp_path / "killed"))
    assert a["progress"]["batches_seen"] == b["progress"]["batches_seen"] == 12
    for key, value in a["emulator"]["networks"][0].items():
        torch.testing.assert_close(b["emulator"]["networks"][0][key], value, rtol=1e-4, atol=1e-6)
    steps = [r["step"] for r in read_metrics(tmp_path / "killed" / "metrics.jsonl") if "batch_loss" in r]
    assert steps == list(range(13))


@pytest.mark.parametrize(
    "extra",
    [
        (),
        (
            "optimization.use_gradient_accumulation=true",
            "stepper_training.n_forward_steps=2",
            "stepper_training.n_ensemble=2",
            "stepper.step.config.input_dropout={kind: per_variable, rate: 0.2}",
        ),
    ],
    ids=["plain", "accumulating"],
)
def test_two_ranks_see_the_same_batches_and_the_same_losses(
    tmp_path: Path, train_config: Make, planet_data: Path, extra: tuple[str, ...]
) -> None:
    run(train_config(*SHORT, *extra), tmp_path / "one")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "ace_core.cli",
    ]
    command += ["train", "configs/planet/train.yaml", "--var", f"data={planet_data}"]
    for override in (
        "stepper.step.config.builder.config.embed_dim=8",
        *SHORT,
        *extra,
        f"experiment_dir={tmp_path / 'two'}",
    ):
        command += ["--override", override]
    subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True)
    one, two = (read_metrics(tmp_path / d / "metrics.jsonl") for d in ("one", "two"))
    # Before rounding differences have gone through the optimizer, the loss of the global batch is the same number.
    assert two[0]["batch_loss"] == pytest.approx(one[0]["batch_loss"], rel=1e-6)
    losses = [[r["batch_loss"] for r in run if "batch_loss" in r] for run in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    # 364 validation samples in batches of 64 do not divide evenly over two ranks.
    assert two[-1]["val/mean/loss"] == pytest.approx(one[-1]["val/mean/loss"], rel=1e-4)


def test_validation_beats_persistence_is_measured_with_the_same_metric(tmp_path: Path, train_config: Make) -> None:
    """A network whose last layer is zero predicts no change, so with residual prediction its error is persistence's."""
    config = train_config(
        "stepper.step.config.residual_prediction=true",
        "max_epochs=1",
        "optimization.lr=1e-12",
        "train_loader.dataset.subset.stop=16",
    )
    import ace_core.training.train as module

    original = module.build_emulator

    def zeroed(*args: object) -> object:
        emulator = original(*args)  # type: ignore[arg-type]
        torch.nn.init.zeros_(emulator.step.networks[0].decoder[-1].weight)
        return emulator

    module.build_emulator = zeroed  # type: ignore[assignment]
    try:
        metrics = run(config, tmp_path)
    finally:
        module.build_emulator = original
    for k in range(8):
        name = f"air_temperature_{k}"
        error = metrics[f"val/mean/weighted_rmse/{name}"]
        assert error == pytest.approx(metrics[f"val/mean/persistence_weighted_rmse/{name}"], rel=1e-6)
        assert error > 0.3


def test_nan_never_becomes_best_and_ties_are_kept(tmp_path: Path, train_config: Make) -> None:
    losses = iter([2.0, math.nan, 1.0])
    seen: list[float] = []
    original = Trainer.__post_init__

    def patched(self: Trainer[object]) -> None:
        original(self)
        self.validate = lambda epoch: ({"epoch_seen": float(epoch)}, next(losses))

    Trainer.__post_init__ = patched  # type: ignore[method-assign]
    try:
        config = train_config("max_epochs=3", "train_loader.dataset.subset.stop=16")
        progress, _ = train(config, tmp_path, Ranks(), StopFlag())
    finally:
        Trainer.__post_init__ = original  # type: ignore[method-assign]
    seen = [r["best_val_loss"] for r in read_metrics(tmp_path / "metrics.jsonl") if "epoch" in r]
    assert seen == [2.0, 2.0, 1.0]
    assert progress.best_validation_loss == 1.0


def test_a_diverged_run_stops_and_keeps_its_last_good_checkpoint(tmp_path: Path, train_config: Make) -> None:
    config = train_config("max_epochs=1", "optimization.lr=1e30", "optimization.max_grad_norm=null", *SHORT[1:])
    with pytest.raises(DataError, match=r"the loss is (nan|inf)") as caught:
        run(config, tmp_path)
    assert "lower optimization.lr" in str(caught.value)
    path = tmp_path / CHECKPOINTS / "ckpt.tar"
    if path.is_file():
        assert all(bool(torch.isfinite(v).all()) for v in checkpoint.load(path)["emulator"]["networks"][0].values())


def test_a_gradient_that_is_not_finite_does_not_replace_the_checkpoint(tmp_path: Path, train_config: Make) -> None:
    config = train_config("max_epochs=1", *SHORT[1:])
    stop = StopFlag()
    stop.set()
    with pytest.raises(Stopped):
        run(config, tmp_path, stop)
    path = tmp_path / CHECKPOINTS / "ckpt.tar"
    content = checkpoint.load(path)
    original = EMA.update

    def poison(self: EMA) -> None:
        original(self)
        with torch.no_grad():
            next(iter(self._parameters.values()))[...] = math.nan  # what a step along a NaN gradient leaves

    EMA.update = poison  # type: ignore[method-assign]
    try:
        with pytest.raises(DataError, match=r"the norm of the weights is nan|the loss is nan"):
            run(config, tmp_path)
    finally:
        EMA.update = original  # type: ignore[method-assign]
    assert checkpoint.load(path)["progress"]["batches_seen"] == content["progress"]["batches_seen"]


def test_a_run_without_its_log_says_so(tmp_path: Path, train_config: Make) -> None:
    config = train_config("max_epochs=1", *SHORT[1:])
    run(config, tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(DataError, match="holds no validation, although the training is finished"):
        run(config, tmp_path)


def test_ema_follows_its_formula_and_gives_the_weights_back() -> None:
    module = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        module.weight.fill_(1.0)
    ema = EMA(module, EMAConfig(decay=0.9, faster_decay_at_start=True))
    expected = 1.0
    for n in range(1, 31):
        with torch.no_grad():
            module.weight.fill_(float(n))
        ema.update()
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * n
    with ema.applied():
        assert module.weight.item() == pytest.approx(expected, rel=1e-6)
    assert module.weight.item() == 30.0


def test_unreadable_checkpoints_are_refused_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "ckpt.tar"
    with pytest.raises(DataError, match="no such checkpoint"):
        checkpoint.load(path)
    checkpoint.save(path, {"emulator": {}, "x": torch.arange(1000)})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cannot be read as a checkpoint"):
        checkpoint.load(path)
    flipped = bytearray(whole)
    flipped[whole.index(torch.arange(1000).numpy().tobytes()) + 4000] ^= 1
    path.write_bytes(bytes(flipped))
    with pytest.raises(DataError, match="checksum of"):
        checkpoint.load(path)
    for junk in (b"", b"hi", b"PK"):
        path.write_bytes(junk)
        with pytest.raises(DataError, match="cannot be read as a checkpoint"):
            checkpoint.load(path)
    checkpoint.save(path, {"emulator": {"config": {}}})
    with pytest.raises(DataError, match="its emulator cannot be built"):
        checkpoint.load_emulator(path)
    torch.save({"format_version": 99}, path)
    with pytest.raises(DataError, match="has format 99"):
        checkpoint.load(path)

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"format_version": 1, "x": Evil()}, path)
    with pytest.raises(DataError, match=r"holds posix\.system, which is neither a tensor nor plain data"):
        checkpoint.load(path)
    assert not (tmp_path / "ran").exists()


def test_metrics_log_is_cut_where_the_checkpoint_says(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "m.jsonl")
    log.write(1, {"loss": torch.tensor(0.5)})
    keep = log.n_bytes()
    log.write(2, {"loss": math.nan})
    log.close()
    assert [json.loads(line)["loss"] for line in (tmp_path / "m.jsonl").read_text().splitlines()] == [0.5, None]
    log = MetricsLog(tmp_path / "m.jsonl", keep)
    log.write(2, {"loss": 0.25})
    log.close()
    assert [(r["step"], r["loss"]) for r in read_metrics(tmp_path / "m.jsonl")] == [(1, 0.5), (2, 0.25)]


def test_checkpoints_of_the_first_format_load_unchanged(tmp_path: Path, train_config: Make) -> None:
    """One network under ``network``, no masks, none of the keys that came later; a training goes on from it."""
    short = (*SHORT, "max_epochs=1")
    run(train_config(*short), tmp_path)
    new = tmp_path / CHECKPOINTS / "ckpt.tar"
    content = checkpoint.load(new)
    (network,) = content["emulator"].pop("networks")
    content["emulator"]["network"] = network
    del content["emulator"]["dataset_info"]["masks"]
    content["emulator"]["config"] = {"step": content["emulator"]["config"]["step"]}
    config = content["emulator"]["config"]["step"]["config"]
    for key in ("corrector", "secondary_decoder"):
        del config[key]
    metrics = content.pop("metrics")["recent"]
    old = tmp_path / "old.tar"
    torch.save(content | {"format_version": 1, "loss_sum": torch.tensor(6.0), "loss_count": 3}, old)
    assert metrics == []  # logged after every batch
    a, b = checkpoint.load_emulator(new), checkpoint.load_emulator(old)
    for x, y in zip(a.step.state_dict().values(), b.step.state_dict().values()):
        assert torch.equal(x, y)
    assert checkpoint.load(old)["metrics"]["recent"] == [{"names": ["loss"], "pair": [[6.0], [3.0]]}]
