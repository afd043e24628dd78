"""An emulator as something to train: a window of the data in, gradients and losses out.

Legend: B sample, E ensemble member, T time, C channel, Y latitude, X longitude. Members are folded into the batch: row
``sample * E + member``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from pydantic import Field, NonNegativeInt, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ace_core.config import StrictModel
from ace_core.data.batch import Batch, Place
from ace_core.distributed import Ranks, divide, local_gradients
from ace_core.errors import DataError, fail
from ace_core.fields import Fields
from ace_core.loss.step_loss import StepLossConfig
from ace_core.loss.step_output_loss import CorrectorLossConfig, WindowLoss, build_step_output_loss
from ace_core.models.noise_sfno import LatentEnvelope
from ace_core.seeding import generator, row_seed
from ace_core.step.args import StepArgs, StepOutput
from ace_core.step.emulator import Emulator
from ace_core.step.input_dropout import repeat_for_ensemble
from ace_core.step.step import Step
from ace_core.training.forward_steps import ForwardSteps, steps_at
from ace_core.training.metrics import BatchMetrics
from ace_core.training.optimization import Descent
from ace_core.training.parameter_init import ParameterInitializationConfig

_STEPS = 1 << 20  # more forward steps than any window has: (sample position, forward step) as one number


class StepperTrainingConfig(StrictModel):
    """loss of every step; n_forward_steps: steps predicted from their own output, their losses summed.

    optimize_last_step_only: earlier steps run without gradient and are only reported; pushforward_steps: the same for that many
    first steps. n_ensemble: members predicted from every sample; -1 is 2 for EnsembleLoss and 1 otherwise. parameter_init: start
    from the weights of another checkpoint. corrector_loss: losses that see the prediction before the corrector.
    """

    loss: StepLossConfig = StepLossConfig()
    n_forward_steps: ForwardSteps = 1
    optimize_last_step_only: bool = False
    pushforward_steps: NonNegativeInt = 0
    n_ensemble: int = Field(default=-1, ge=-1)
    parameter_init: ParameterInitializationConfig = ParameterInitializationConfig()
    corrector_loss: CorrectorLossConfig | None = None

    @model_validator(mode="after")
    def _some_step_is_optimised(self) -> StepperTrainingConfig:
        push, wrong = self.pushforward_steps, []
        if push and self.optimize_last_step_only:
            wrong.append("pushforward_steps and optimize_last_step_only exclude each other")
        if push and not isinstance(self.n_forward_steps, int):
            wrong.append("pushforward_steps needs a fixed n_forward_steps")
        if isinstance(self.n_forward_steps, int) and push >= self.n_forward_steps:
            wrong.append(f"pushforward_steps {push} leaves no step to optimise of {self.n_forward_steps}")
        if self.n_ensemble == 0:
            wrong.append("n_ensemble is 0: give -1 for the default of the loss, or a number of members")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    @property
    def members(self) -> int:
        if self.n_ensemble == -1:
            return 2 if self.loss.type == "EnsembleLoss" else 1
        return self.n_ensemble

    def first_optimised(self, n_steps: int) -> int:
        """Index of the first of ``n_steps`` that is optimised; all later ones are."""
        return n_steps - 1 if self.optimize_last_step_only else self.pushforward_steps


class EmulatorTrainStepper:
    """Predicts a window's steps from its first time and scores them against the data.

    seed: with the batch's place, the key of what is drawn for it. regularizer: a term of the weights alone that is added to the
    loss of every batch.
    """

    state_key = "emulator"

    def __init__(
        self,
        emulator: Emulator,
        config: StepperTrainingConfig,
        ranks: Ranks,
        seed: int = 0,
        regularizer: Callable[[], Tensor] | None = None,
    ) -> None:
        """Raises :class:`ConfigError` for a loss that does not fit the step."""
        self.emulator = emulator.to(ranks.device)
        self.seed, self.config, self.regularizer = seed, config, regularizer
        self.ranks, self.device, self.members = ranks, ranks.device, config.members
        self.module: nn.Module = emulator.step
        self.step_output_loss = build_step_output_loss(
            config.loss,
            config.corrector_loss,
            emulator.loss_names,
            emulator.normalization.loss,
            emulator.info.grid,
            n_ensemble=self.members,
            corrector_enabled=emulator.step.corrector_enabled,
        ).to(ranks.device)
        emulator.divide(ranks.tiles)
        divide(self.step_output_loss, ranks.tiles)
        self._call = ranks.wrap(_Recomputable(emulator.step))
        self._nan_since: Tensor | None = None
        self._first_row = 0  # of this rank in a global batch

    def train_on_batch(self, batch: Batch, optimization: Descent) -> BatchMetrics:
        """One update of the weights from the sum over the optimised forward steps of the step loss. Under ``torch.no_grad`` only the losses.

        batch.fields is [B, T, C, Y, X] with T at least one more than the steps of this batch.
        """
        assert batch.place is not None, "training batches know their place"
        if batch.place.sample == 0:
            for envelope in self._envelopes():
                envelope.begin_epoch()
        window = self._window(batch, "training noise", batch.place.epoch)
        self.emulator.step.set_epoch(batch.place.epoch + 1)
        # One mask for the whole window: what is withheld at its start is withheld in all of its steps.
        withheld = self._input_dropout_mask(batch.place, batch.n_samples)
        n_steps = steps_at(self.config.n_forward_steps, batch.place, self.seed)
        differentiated = torch.is_grad_enabled()
        first, losses = self.config.first_optimised(n_steps), WindowLoss()
        uncorrected = self.step_output_loss.needs_uncorrected_grad
        args = replace(
            window.first(),
            input_dropout_mask=withheld,
            keep_uncorrected=uncorrected,
            mixed_precision=optimization.mixed_precision,
        )
        for s in range(n_steps):
            optimized, last = s >= first, s == n_steps - 1
            call = partial(self._call, recompute=optimization.recomputes(s)) if optimized else self.emulator.step
            local = optimization.accumulates_gradients and not last
            with torch.set_grad_enabled(optimized and differentiated), local_gradients(self._call, local and optimized):
                out: StepOutput = call(args)
                # One total per step: its backward pass serves prediction, penalty and regularizer alike.
                result = self.step_output_loss(out, window.target(s + 1), s, window.loss_mask, window.loss_count)
                total = losses.add(s, result, optimized=optimized)
                if total is not None:
                    extra = self._regularizer(losses) if last else None
                    optimization.accumulate(total if extra is None else total + extra)
            self._look_for_nan(out, batch.place, s)
            if not last:
                detach = optimization.accumulates_gradients or not optimized
                args = window.next(args, s + 1, out, detach=detach)
        optimization.step_weights()
        return BatchMetrics(*losses.packed())

    def _window(self, batch: Batch, *key: str | int) -> _Window:
        assert batch.place is not None
        first = batch.place.sample + batch.place.first_row
        samples = range(first, first + batch.n_samples)
        rows = [row_seed(self.seed, *key, sample, member) for sample in samples for member in range(self.members)]
        return _Window(self.emulator, batch.to(self.device), self.members, rows)

    def _regularizer(self, losses: WindowLoss) -> Tensor | None:
        if self.regularizer is None:
            return None
        value = self.regularizer()
        losses.report("regularizer", value)
        return value

    def _input_dropout_mask(self, place: Place, n_samples: int) -> Tensor | None:
        """bool [B E, C]: this rank's rows of a mask drawn for the global batch, so that it does not depend on the ranks; the
        members of a sample share it."""
        if not self.emulator.step.has_input_dropout:
            return None
        draw = generator(self.seed, "input dropout", place.epoch, place.sample)
        mask = self.emulator.step.make_input_dropout_mask(place.n_rows, draw)
        if mask is None:
            return None
        return repeat_for_ensemble(mask[place.first_row : place.first_row + n_samples], self.members).to(self.device)

    def settle(self) -> None:
        """Have the ranks agree on what each has gathered from its own samples."""
        for envelope in self._envelopes():
            envelope.agree(self.ranks)

    def _envelopes(self) -> list[LatentEnvelope]:
        latents = (getattr(network, "latent", None) for network in self.emulator.step.networks)
        return [latent for latent in latents if isinstance(latent, LatentEnvelope)]

    # --- NaN in what the network is given

    def _look_for_nan(self, out: StepOutput, place: Place, step: int) -> None:
        """Remember on the device where NaN came first; :meth:`check_inputs` reads it when somebody waits for the device anyway."""
        if out.nan_inputs is None:
            return
        self._first_row = place.first_row
        here = out.nan_inputs.new_full((), place.sample * _STEPS + step, dtype=torch.int64)
        never = here.new_full((), -1)
        if self._nan_since is None:
            self._nan_since = torch.where(out.nan_inputs, here, never)
        else:
            self._nan_since = torch.where((self._nan_since < 0) & out.nan_inputs, here, self._nan_since)

    def check_inputs(self) -> None:
        """Raise :class:`DataError` that names variable and sample if a network input has been NaN since the last call."""
        since, self._nan_since = self._nan_since, None
        if since is None or not bool((since >= 0).any()):
            return
        when = int(since[since >= 0].min())
        row, channel = (int(i) for i in (since == when).nonzero()[0])
        position, step = divmod(when, _STEPS)
        name = self.emulator.step.packed_names[channel]
        fix = (
            "if it is outside the variable's mask, set stepper.input_masking; otherwise mend the data"
            if step == 0
            else "the prediction of the step before is NaN: lower optimization.lr, set max_grad_norm, or look for extreme values"
        )
        raise fail(
            DataError,
            f"training, batch at sample {position} of the epoch, sample {self._first_row + row // self.members} of it, forward step {step}",
            f"NaN in the network's input {name!r}",
            "numbers",
            fix,
        )

    # --- validation

    @torch.no_grad()
    def predict_one(self, batch: Batch) -> tuple[Fields, Fields, Fields, Tensor | None]:
        """Prediction [B, E, C, Y, X], target and initial fields [B, C, Y, X] of the first step after the initial time, and which
        targets samples have, bool [B, C] (None: all).

        Prediction and target hold what the loss scores; the initial fields hold everything.
        """
        window = self._window(batch, "validation noise")
        out: StepOutput = self.emulator.step(replace(window.first(), keep_uncorrected=False))
        prediction = out.output.subset(self.emulator.loss_names)
        x = prediction.tensor
        return (
            Fields(prediction.names, x.reshape(-1, self.members, *x.shape[1:])),
            window.target(1).subset(prediction.names),
            window.fields.at_time(0),
            window.loss_mask,
        )

    def state(self) -> dict[str, Any]:
        return self.emulator.state()

    def load_state(self, state: dict[str, Any]) -> None:
        self.emulator.load_networks(state)


class _Recomputable(nn.Module):
    """The step, on request without keeping what its backward pass needs: that is then computed again. Within what ranks wrap, so that
    the second computation is none of theirs."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step = step

    def forward(self, args: StepArgs, recompute: bool = False) -> StepOutput:
        if not (recompute and torch.is_grad_enabled()):
            out: StepOutput = self.step(args)
        else:  # no state of a generator to keep: what is drawn is a function of its key
            out = checkpoint(self.step, args, use_reentrant=False, preserve_rng_state=False)
        return out


class _Window:
    """A batch as a step wants it: forcing gathered once, members beside each other."""

    def __init__(self, emulator: Emulator, batch: Batch, members: int, rows: Sequence[int]) -> None:
        """batch: on the emulator's device. rows: whose noise the members' is."""
        self.context = emulator.context(batch.labels, rows, batch.fields.tensor.device, members)
        batch = emulator.drive(batch)
        step, names = emulator.step, batch.fields.names
        self.fields, self.members = batch.fields, members
        # Only what may drive the step: a step must not find the answer among its forcing.
        self.forcing = batch.fields.subset(step.forcing_names)
        self.prognostic_names = step.prognostic_names
        self.data_mask = self.loss_mask = self.loss_count = None
        if batch.data_mask is not None:
            step.require_inputs(batch.data_mask[:, [names.index(n) for n in step.in_names]])
            mask = batch.data_mask.to(batch.fields.tensor.device)
            self.data_mask = repeat_for_ensemble(mask[:, [names.index(n) for n in step.in_names]], members)
            scored = [names.index(n) for n in emulator.loss_names]
            self.loss_mask = mask[:, scored]
            if batch.data_count is not None and batch.place is not None:
                # This rank's part of those that all ranks have: by how many each happened to have, samples would not weigh the same.
                self.loss_count = batch.data_count[scored] * (batch.n_samples / batch.place.n_rows)

    def first(self) -> StepArgs:
        """Arguments of the first step: the data's own state."""
        state = self._members(self.fields.at_time(0).subset(self.prognostic_names))
        return StepArgs(state, self._forcing(0), self._forcing(1), data_mask=self.data_mask, context=self.context)

    def next(self, args: StepArgs, s: int, out: StepOutput, *, detach: bool) -> StepArgs:
        """Arguments of forward step ``s`` from those of the one before and what it gave."""
        state, carried = out.output, out.stepper_state
        if detach:
            state, carried = Fields(state.names, state.tensor.detach()), carried.detach()
        later = self._forcing(s + 1)
        return replace(
            args,
            state=state,
            forcing=args.next_forcing,
            next_forcing=later,
            stepper_state=carried,
            context=self.context.after(s),
        )

    def target(self, time: int) -> Fields:
        """[B, C, Y, X]."""
        return self.fields.at_time(time)

    def _forcing(self, time: int) -> Fields:
        return self._members(self.forcing.at_time(time))

    def _members(self, fields: Fields) -> Fields:
        if self.members == 1:
            return fields
        return Fields(fields.names, fields.tensor.repeat_interleave(self.members, dim=0))
