"""One update of an emulator: what is scored, what is optimised, what is reported."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from ace_core.data.batch import Batch
from ace_core.data.loader import make_loader
from ace_core.distributed import Ranks
from ace_core.errors import ConfigError, DataError
from ace_core.fields import Fields
from ace_core.signals import StopFlag
from ace_core.step.args import StepArgs, StepOutput
from ace_core.step.emulator import build_emulator
from ace_core.telemetry import read_metrics
from ace_core.training import checkpoint
from ace_core.training.optimization import Optimization
from ace_core.training.run import CHECKPOINTS
from ace_core.training.train import TrainConfig, train
from ace_core.training.train_stepper import EmulatorTrainStepper

Make = Callable[..., TrainConfig]
SMALL = ("train_loader.dataset.subset.stop=32", "train_loader.batch_size=4")
STEP, TRAINING = "stepper.step.config", "stepper_training"
CORRECTOR = f"{STEP}.corrector={{conserve_dry_air: true, force_positive_names: [PRATEsfc], moisture_budget_correction: precipitation}}"


class KeepGradients(Optimization):
    """Backward, but no update: the gradient stays to be looked at."""

    def step_weights(self) -> None:
        if self._loss is not None:
            self._loss.backward()  # type: ignore[no-untyped-call]
            self._loss = None


class Run:
    """One batch of a configuration: metrics by name, and the gradients of all weights in one vector."""

    def __init__(
        self, config: TrainConfig, change: Callable[[Batch], Batch] = lambda b: b, ranks: Ranks | None = None
    ) -> None:
        loader = make_loader(config.train_loader, config.stepper.data_names, 4, train=True)
        emulator = build_emulator(config.stepper, loader.dataset.info, 0)
        self.stepper = EmulatorTrainStepper(emulator, config.stepper_training, ranks or Ranks())
        self.stepper.module.train()
        self.batch = change(next(loader.batches()))
        self.optimization = KeepGradients(config.optimization, self.stepper.module, 1, 1)
        self.got = got = self.stepper.train_on_batch(self.batch, self.optimization)
        means = (got.sums / got.weights).tolist()
        self.metrics = {n: m for n, m, w in zip(got.names, means, got.weights.tolist(), strict=True) if w > 0}
        self.gradient = torch.cat([_grad(p) for p in self.stepper.module.parameters()])


def _grad(parameter: Tensor) -> Tensor:
    return torch.zeros(parameter.numel()) if parameter.grad is None else parameter.grad.flatten().clone()


# --- members


def test_members_of_a_deterministic_network_with_one_dropout_mask_are_one(train_config: Make) -> None:
    """Same sample, same mask, same network: two members must give the loss and gradient of one."""
    dropout = (f"{STEP}.input_dropout={{kind: per_variable, rate: 0.3}}", f"{TRAINING}.n_forward_steps=2")
    one, two = (Run(train_config(*SMALL, *dropout, f"{TRAINING}.n_ensemble={n}")) for n in (1, 2))
    plain = Run(train_config(*SMALL, dropout[1]))
    assert two.metrics["loss"] == pytest.approx(one.metrics["loss"], rel=1e-6)
    torch.testing.assert_close(two.gradient, one.gradient, rtol=1e-4, atol=1e-6)
    assert abs(one.metrics["loss"] - plain.metrics["loss"]) > 0.01


def test_the_default_of_an_ensemble_loss_is_two_members(train_config: Make) -> None:
    """The CRPS of two equal members is the mean absolute error of either."""
    crps = Run(train_config(*SMALL, f"{TRAINING}.loss.type=EnsembleLoss"))
    absolute = Run(train_config(*SMALL, f"{TRAINING}.loss.type=L1"))
    assert (crps.stepper.members, absolute.stepper.members) == (2, 1)
    assert crps.metrics["loss"] == pytest.approx(absolute.metrics["loss"], rel=1e-6)


# --- gradient accumulation


@pytest.mark.parametrize("corrector_loss", [None, "{precorrector_optimization: {}, regularization: {weight: 0.5}}"])
def test_accumulation_sums_the_gradients_of_steps_from_given_states(
    train_config: Make, corrector_loss: str | None
) -> None:
    """Each step's loss and penalty are those without accumulation; its gradient takes the state before it as given, as the last
    step of a window does whose earlier ones are not optimised."""
    extra = (CORRECTOR, *([] if corrector_loss is None else [f"{TRAINING}.corrector_loss={corrector_loss}"]))
    three = (*SMALL, *extra, f"{TRAINING}.n_forward_steps=3")
    together, apart = (
        Run(train_config(*three)),
        Run(train_config(*three, "optimization.use_gradient_accumulation=true")),
    )
    assert apart.metrics == pytest.approx(together.metrics, rel=1e-6)
    assert set(together.metrics) >= {"loss", "loss_step_0", "loss_step_1", "loss_step_2"}
    last = [
        Run(train_config(*SMALL, *extra, f"{TRAINING}.n_forward_steps={n}", f"{TRAINING}.optimize_last_step_only=true"))
        for n in (1, 2, 3)
    ]
    torch.testing.assert_close(apart.gradient, sum(r.gradient for r in last), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(apart.gradient, together.gradient, rtol=1e-2)


# --- the corrector in the loss


def test_precorrector_loss_is_the_loss_without_corrector(train_config: Make) -> None:
    """One step: scored before the corrector, the values are those of a step that has none, bit for bit."""
    pre = f"{TRAINING}.corrector_loss.precorrector_optimization"
    none, corrected = Run(train_config(*SMALL)), Run(train_config(*SMALL, CORRECTOR))
    scored = Run(train_config(*SMALL, CORRECTOR, f"{pre}={{}}"))
    assert scored.metrics == none.metrics
    assert corrected.metrics["loss/PRATEsfc"] != pytest.approx(none.metrics["loss/PRATEsfc"], rel=1e-3)
    excluded = Run(train_config(*SMALL, CORRECTOR, f"{pre}.exclude_names_and_prefixes=[PRATEsfc]")).metrics
    for key, value in none.metrics.items():
        if key.startswith("loss/"):
            assert excluded[key] == (corrected if key == "loss/PRATEsfc" else none).metrics[key], (key, value)


def test_only_the_loss_sees_uncorrected_values(train_config: Make) -> None:
    """The second step starts from the corrected state: its loss is not that of a rollout without corrector."""
    two = (*SMALL, f"{TRAINING}.n_forward_steps=2")
    none = Run(train_config(*two))
    scored = Run(train_config(*two, CORRECTOR, f"{TRAINING}.corrector_loss={{precorrector_optimization: {{}}}}"))
    assert scored.metrics["loss_step_0"] == none.metrics["loss_step_0"]
    assert scored.metrics["loss_step_1"] != none.metrics["loss_step_1"]


def test_the_penalty_is_the_mean_square_of_the_corrections(train_config: Make) -> None:
    """By hand from the step's output: over the two corrected channels only, in the loss's units, times the weight."""
    run = Run(train_config(*SMALL, CORRECTOR, f"{TRAINING}.corrector_loss={{regularization: {{weight: 3.0}}}}"))
    emulator, fields = run.stepper.emulator, run.batch.fields
    step = emulator.step
    forcing = fields.subset(step.forcing_names)
    args = StepArgs(fields.at_time(0).subset(step.prognostic_names), forcing.at_time(0), forcing.at_time(1))
    with torch.no_grad():
        out: StepOutput = step(args)
    assert out.corrections is not None
    assert set(out.corrections.names) == {"PRESsfc", "PRATEsfc"}
    std = torch.tensor([emulator.normalization.loss.stds[n] for n in out.corrections.names])
    penalty = 3.0 * float((out.corrections.tensor / std[:, None, None]).double().square().mean())
    assert penalty > 1e-4
    assert run.metrics["corrector_regularization"] == pytest.approx(penalty, rel=1e-4)
    assert run.metrics["corrector_regularization_step_0"] == pytest.approx(penalty, rel=1e-4)
    assert run.metrics["loss"] == pytest.approx(run.metrics["loss_step_0"] + penalty, rel=1e-4)


def test_disabled_epochs_are_told_by_the_batch(train_config: Make) -> None:
    def in_epoch(epoch: int) -> Callable[[Batch], Batch]:
        def change(batch: Batch) -> Batch:
            assert batch.place is not None
            return replace(batch, place=replace(batch.place, epoch=epoch))

        return change

    config = train_config(*SMALL, CORRECTOR, f"{STEP}.corrector.corrector_disabled_epochs=1")
    none, always = Run(train_config(*SMALL)), Run(train_config(*SMALL, CORRECTOR))
    assert Run(config, in_epoch(0)).metrics == none.metrics
    assert Run(config, in_epoch(1)).metrics == always.metrics


# --- what is missing or broken


def test_a_variable_that_no_sample_has_is_neither_seen_nor_scored(train_config: Make) -> None:
    allow = f"{STEP}.builder.allow_missing_variables=true"
    missing = ("h500", "air_temperature_3", "HGTsfc")

    def without(fill: float) -> Callable[[Batch], Batch]:
        def change(batch: Batch) -> Batch:
            names = batch.fields.names
            index = [names.index(n) for n in missing]
            tensor, mask = batch.fields.tensor.clone(), torch.ones(batch.n_samples, len(names), dtype=torch.bool)
            tensor[:, :, index], mask[:, index] = fill, False
            return replace(batch, fields=Fields(names, tensor), data_mask=mask)

        return change

    a, b = (Run(train_config(*SMALL, allow), without(fill)) for fill in (float("nan"), 1e6))
    assert a.metrics == b.metrics
    assert torch.equal(a.gradient, b.gradient)
    a.stepper.check_inputs()
    channels = {k: v for k, v in a.metrics.items() if k.startswith("loss/")}
    assert not {f"loss/{n}" for n in missing} & set(channels)
    assert a.metrics["loss"] == pytest.approx(sum(channels.values()) / len(channels), rel=1e-6)


class OneOfTwo(Ranks):
    """A place of two, alone."""

    def wrap(self, module: nn.Module) -> nn.Module:
        return module

    def sum(self, tensor: Tensor) -> Tensor:
        raise AssertionError("the other may have no batch, and never answer")


@pytest.mark.parametrize("first", [2, 3])  # samples of the first rank
@pytest.mark.parametrize("corrector_loss", [None, "{precorrector_optimization: {}, regularization: {weight: 0.5}}"])
def test_samples_that_lack_a_variable_weigh_the_same_on_every_rank(
    train_config: Make, corrector_loss: str | None, first: int
) -> None:
    """Of four samples two lack a variable; wherever they are, the mean of two ranks by their samples is the loss, and the gradient, of one."""
    extra = () if corrector_loss is None else (CORRECTOR, f"{TRAINING}.corrector_loss={corrector_loss}")
    config = train_config(
        *SMALL, *extra, f"{STEP}.builder={{type: MLP, allow_missing_variables: true, config: {{hidden_dim: 8}}}}"
    )

    def without(batch: Batch) -> Batch:
        names = batch.fields.names
        tensor, mask = batch.fields.tensor.clone(), torch.ones(batch.n_samples, len(names), dtype=torch.bool)
        for name, rows in (("air_temperature_0", slice(0, 2)), ("PRATEsfc", slice(1, 4))):
            tensor[rows, :, names.index(name)], mask[rows, names.index(name)] = math.nan, False
        return replace(batch, fields=Fields(names, tensor), data_mask=mask, data_count=mask.sum(dim=0).float())

    def part(rows: slice) -> Callable[[Batch], Batch]:
        def cut(batch: Batch) -> Batch:
            whole = without(batch)
            assert whole.place is not None
            assert whole.data_mask is not None
            return replace(
                whole,
                fields=Fields(whole.fields.names, whole.fields.tensor[rows]),
                times=whole.times[rows],
                place=replace(whole.place, first_row=rows.start),
                data_mask=whole.data_mask[rows],
            )

        return cut

    one = Run(config, without)
    mask, names = one.batch.data_mask, one.stepper.emulator.loss_names
    assert mask is not None
    scored = mask[:, [one.batch.fields.names.index(n) for n in names]]
    two = [Run(config, part(rows), OneOfTwo(rank, 2)) for rank, rows in enumerate((slice(0, first), slice(first, 4)))]
    shares = [r.batch.n_samples / 4 for r in two]
    loss = sum(s * r.metrics["loss"] for s, r in zip(shares, two, strict=True))
    assert loss == pytest.approx(one.metrics["loss"], rel=1e-5)
    gradient = sum(s * r.gradient for s, r in zip(shares, two, strict=True))
    torch.testing.assert_close(gradient, one.gradient, rtol=1e-4, atol=1e-5)
    for name in names:
        sums, weights = (
            sum(float(getattr(r.got, of)[r.got.names.index(f"loss/{name}")]) for r in two) for of in ("sums", "weights")
        )
        assert weights == float(scored[:, names.index(name)].sum())
        assert sums / weights == pytest.approx(one.metrics[f"loss/{name}"], rel=1e-5)


def test_nan_in_an_input_names_variable_and_sample(train_config: Make) -> None:
    def hole(batch: Batch) -> Batch:
        tensor = batch.fields.tensor.clone()
        tensor[2, 0, batch.fields.names.index("air_temperature_5"), 3, 4] = float("nan")
        return replace(batch, fields=Fields(batch.fields.names, tensor))

    run = Run(train_config(*SMALL, f"{TRAINING}.n_ensemble=2"), hole)
    with pytest.raises(
        DataError, match=r"sample 2 of it, forward step 0: NaN in the network's input 'air_temperature_5'"
    ):
        run.stepper.check_inputs()
    run.stepper.check_inputs()  # told once

    def second_half(batch: Batch) -> Batch:
        fields = Fields(batch.fields.names, hole(batch).fields.tensor[2:])
        assert batch.place is not None
        return replace(batch, fields=fields, times=batch.times[2:], place=replace(batch.place, first_row=2))

    with pytest.raises(DataError, match="batch at sample 0 of the epoch, sample 2 of it"):
        Run(train_config(*SMALL), second_half, OneOfTwo(1, 2)).stepper.check_inputs()


def test_a_prediction_of_nan_is_told_from_broken_data(train_config: Make) -> None:
    run = Run(train_config(*SMALL, f"{TRAINING}.n_forward_steps=2"))
    with torch.no_grad():
        run.stepper.emulator.step.networks[0].decoder[-1].weight[3] = float("nan")  # type: ignore[index,union-attr,operator]
    run.stepper.train_on_batch(run.batch, run.optimization)
    name = run.stepper.emulator.step.out_names[3]
    with pytest.raises(
        DataError, match=rf"forward step 1: NaN in the network's input '{name}'.*\n.*\n.*lower optimization.lr"
    ):
        run.stepper.check_inputs()


# --- fine-tuning


def test_training_goes_on_from_another_checkpoint_with_frozen_weights(tmp_path: Path, train_config: Make) -> None:
    short = (*SMALL, "max_epochs=1", "log_train_every_n_batches=1", "checkpoint_every_n_batches=3")
    train(train_config(*short), tmp_path / "base", Ranks(), StopFlag())
    base = tmp_path / "base" / CHECKPOINTS / "ckpt.tar"
    init = (
        f"{TRAINING}.parameter_init={{weights_path: '{base}', alpha: 0.1, beta: 0.1, "
        "parameters: [{exclude: ['decoder.*'], frozen: {include: ['encoder.*']}}]}"
    )
    config = train_config(*short, init, "seed=5")

    class StopAt(StopFlag):
        asked = 0

        def __bool__(self) -> bool:
            self.asked += 1
            return self.asked == 4

    train(config, tmp_path / "whole", Ranks(), StopFlag())
    with pytest.raises(Exception, match="stopped after batch 4"):
        train(config, tmp_path / "cut", Ranks(), StopAt())
    train(config, tmp_path / "cut", Ranks(), StopFlag())
    whole, cut, start = (
        checkpoint.load(p)["emulator"]["networks"][0]
        for p in (*(tmp_path / d / CHECKPOINTS / "ckpt.tar" for d in ("whole", "cut")), base)
    )
    for key, value in whole.items():
        assert torch.equal(value, cut[key]), key
        assert torch.equal(value, start[key]) is key.startswith("encoder."), key
    first = read_metrics(tmp_path / "whole" / "metrics.jsonl")[0]
    # At the start only the excluded decoder is away from where it is pulled: to zero.
    torch.manual_seed(5)
    decoder = [
        v for k, v in build_emulator(config.stepper, *_info(config)).state()["networks"][0].items() if "decoder" in k
    ]
    assert first["batch_regularizer"] == pytest.approx(0.05 * sum(float(v.norm()) for v in decoder), rel=1e-5)
    with pytest.raises(ConfigError, match=r"parameters\[0\].*encodr"):
        train(train_config(*short, init.replace("encoder.*", "encodr.*")), tmp_path / "typo", Ranks(), StopFlag())
    with pytest.raises(ConfigError, match="2 entries for 1 network"):
        train_config(*short, f"{TRAINING}.parameter_init={{weights_path: x, parameters: [{{}}, {{}}]}}")


def _info(config: TrainConfig) -> tuple[Any, int]:
    return make_loader(config.train_loader, config.stepper.data_names, 2, train=True).dataset.info, config.seed


# --- configuration


@pytest.mark.parametrize(
    ("overrides", "messages"),
    [
        ([f"{TRAINING}.corrector_loss={{regularization: {{}}}}"], ["the step has no corrector"]),
        ([f"{TRAINING}.corrector_loss={{}}"], ["give precorrector_optimization or regularization"]),
        ([f"{TRAINING}.loss.weights={{PRATEsf: 2.0}}"], ["'PRATEsf' is not predicted", "PRATEsfc"]),
        (
            [
                f"{TRAINING}.corrector_loss={{precorrector_optimization: {{exclude_names_and_prefixes: [rain_]}}}}",
                CORRECTOR,
            ],
            ["'rain_' matches no output"],
        ),
        ([f"{TRAINING}.n_ensemble=0"], ["n_ensemble is 0"]),
    ],
)
def test_contradictions_are_found_before_any_data(
    train_config: Make, overrides: list[str], messages: list[str]
) -> None:
    with pytest.raises((ConfigError, ValidationError)) as error:
        train_config(*overrides)
    for message in messages:
        assert message in str(error.value)


# --- activation checkpointing


NOISY = json.dumps(
    {
        "type": "NoiseConditionedSFNO",
        "config": {
            "embed_dim": 8,
            "num_layers": 2,
            "noise_embed_dim": 4,
            "filter_num_groups": 2,
            "clip_latent_global_means": True,
        },
    }
)


@pytest.mark.parametrize("accumulating", [False, True])
def test_what_is_computed_again_has_the_same_gradient_to_the_last_bit(train_config: Make, accumulating: bool) -> None:
    """Noise, withheld inputs, corrector and the envelope of latent means, from the first, the second or no forward step on."""
    options = (
        *SMALL,
        CORRECTOR,
        f"{STEP}.builder={NOISY}",
        f"{STEP}.input_dropout={{kind: per_variable, rate: 0.3}}",
        f"{TRAINING}.n_forward_steps=3",
        f"{TRAINING}.n_ensemble=2",
        f"{TRAINING}.loss.type=EnsembleLoss",
        f"optimization.use_gradient_accumulation={str(accumulating).lower()}",
    )
    kept = Run(train_config(*options))
    for after in (0, 1, 3):
        again = Run(train_config(*options, f"optimization.checkpoint.after_n_forward_steps={after}"))
        assert again.metrics == kept.metrics
        assert torch.equal(again.gradient, kept.gradient), after
        for a, b in zip(again.stepper.module.buffers(), kept.stepper.module.buffers(), strict=True):
            assert torch.equal(a, b)


def test_activations_that_are_computed_again_need_no_memory(train_config: Make) -> None:
    def peak(*options: str) -> int:
        layers = f"{STEP}.builder.config.num_layers=6"
        config = train_config(*SMALL, f"{TRAINING}.n_forward_steps=3", "train_loader.batch_size=16", layers, *options)
        one = Run(config)
        for parameter in one.stepper.module.parameters():
            parameter.grad = None
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
            one.stepper.train_on_batch(one.batch, one.optimization)
        events = [e for e in run.profiler.kineto_results.events() if e.name() == "[memory]"]
        return max(itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))

    key = "optimization.checkpoint.after_n_forward_steps"
    all_kept, all_again, never, infinity = peak(), peak(f"{key}=0"), peak(f"{key}=null"), peak(f"{key}=.inf")
    # The allocator also sees what a process makes once, and what is collected when it likes: a few kilobytes.
    assert never == pytest.approx(all_kept, rel=1e-3)
    assert infinity == pytest.approx(all_kept, rel=1e-3)
    # Of three steps one has to be there at a time.
    assert all_again < 0.6 * all_kept
    assert all_again < peak(f"{key}=1") < all_kept
