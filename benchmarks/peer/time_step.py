"""What the peer's step costs without its network; started by benchmarks/bench_step.py in the peer's environment.

The first line on standard input describes the step (JSON); then every line asks for something and gets ``answer`` and JSON:
``time KIND BATCH`` seconds, ``peak KIND BATCH`` bytes, ``kernels KIND BATCH`` their number, ``count rollout BATCH STEPS`` every
operator's number of calls. KIND is infer or train.
"""

import datetime
import functools
import itertools
import json
import sys
import time

import torch
from fme.ace.stepper.single_module import StepperConfig
from fme.core.coordinates import HybridSigmaPressureCoordinate, LatLonCoordinates
from fme.core.dataset_info import DatasetInfo
from fme.core.optimization import NullOptimization
from fme.core.registry.module import Module
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode


class Answer(torch.nn.Module):
    """The same [B, C, Y, X], whatever is asked; copied as on the other side, the copy's time kept to be taken off."""

    spent = 0.0

    def __init__(self, answer):
        super().__init__()
        self.answer = torch.nn.Parameter(answer)

    def forward(self, x):
        begin = time.perf_counter()
        out = self.answer.clone()
        Answer.spent += time.perf_counter() - begin
        return out


class Peer:
    def __init__(self, setup):
        self.statistics, self.shape = setup["statistics"], (len(setup["lat"]), len(setup["lon"]))
        info = DatasetInfo(
            horizontal_coordinates=LatLonCoordinates(lat=torch.tensor(setup["lat"]), lon=torch.tensor(setup["lon"])),
            vertical_coordinate=HybridSigmaPressureCoordinate(torch.tensor(setup["ak"]), torch.tensor(setup["bk"])),
            timestep=datetime.timedelta(hours=6),
        )
        self.stepper = StepperConfig.from_state(setup["stepper"]).get_stepper(info)
        self.step = self.stepper._step_obj

    def draw(self, names, *size):
        """name -> [*size, Y, X]."""
        ranges = {n: self.statistics[n] for n in sorted(names)}
        return {n: mean + 0.3 * std * torch.randn(*size, *self.shape) for n, (mean, std) in ranges.items()}

    def data(self, batch, steps):
        """Network that costs nothing, initial condition, and forcing of so many steps."""
        answer = Answer(0.3 * torch.randn(batch, len(self.step.out_names), *self.shape))
        self.step.module = Module(answer, None)
        names = (self.step.input_names - self.step.output_names) | self.step.next_step_input_names
        return answer, self.draw(self.step.prognostic_names, batch, 1), self.draw(names, batch, steps + 1)

    def steps(self, initial, forcing, steps, carried=None):
        run = self.stepper.predict_generator(
            initial, forcing, steps, NullOptimization(), labels=None, stepper_state=carried
        )
        return list(run)

    def infer(self, batch):
        _, initial, forcing = self.data(batch, 1)
        self.stepper.set_eval()

        @torch.no_grad()
        def work(carried=None):
            return self.steps(initial, forcing, 1, carried)[0].stepper_state

        carried = work()
        return lambda: work(carried)

    def train(self, batch):
        network, initial, forcing = self.data(batch, 1)
        self.stepper.set_train()
        gradients = {n: torch.randn(batch, *self.shape) for n in self.step.output_names}

        def work():
            network.answer.grad = None
            output = self.steps(initial, forcing, 1)[0].output
            asked = [n for n in gradients if output[n].requires_grad]
            torch.autograd.backward([output[n] for n in asked], [gradients[n] for n in asked])

        return work

    def rollout(self, batch, steps=10):
        _, initial, forcing = self.data(batch, steps)
        self.stepper.set_eval()
        return torch.no_grad()(lambda: self.steps(initial, forcing, steps))


def seconds(work, in_a_row):
    """Mean of some in a row, as in a rollout; one before them wakes the processor from having waited for the other side."""
    work()
    begin, spent = time.perf_counter(), Answer.spent
    for _ in range(in_a_row):
        work()
    return (time.perf_counter() - begin - (Answer.spent - spent)) / in_a_row


def peak_bytes(work):
    """The most that torch held at a time during the work, above what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        work()
    events = [e for e in run.profiler.kineto_results.events() if e.name() == "[memory]"]
    changes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return max(itertools.accumulate(changes))


def operators(work):
    """How often every operator is called, also by others."""
    with profile(activities=[ProfilerActivity.CPU]) as run:
        work()
    return {e.key: e.count for e in run.key_averages() if e.key.startswith("aten::")}


class Kernels(TorchDispatchMode):
    """Counts what a device would have to run: no views, nothing that only allocates."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view and not func.name().startswith(("aten::empty", "aten::detach")):
            self.count += 1
        return func(*args, **(kwargs or {}))


def kernels(work):
    with Kernels() as run:
        work()
    return run.count


def main() -> None:
    setup = json.loads(sys.stdin.readline())
    torch.set_num_threads(setup["threads"])
    torch.manual_seed(0)
    peer = Peer(setup)
    # The last work is kept, so that a question repeated finds its data in place.
    work_of = functools.lru_cache(maxsize=1)(lambda kind, *numbers: getattr(peer, kind)(*numbers))
    measures = {"peak": peak_bytes, "kernels": kernels, "count": operators}
    measures["time"] = functools.partial(seconds, in_a_row=setup["in_a_row"])
    print('answer "ready"', flush=True)
    for line in sys.stdin:
        what, kind, *numbers = line.split()
        work = work_of(kind, *map(int, numbers))
        print("answer", json.dumps(measures[what](work)), flush=True)


main()
