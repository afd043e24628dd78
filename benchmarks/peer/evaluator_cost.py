"""What the peer's evaluator takes outside its network; started by benchmarks/bench_rollout.py in the peer's environment.

    FME_FORCE_CPU=1 .venv-peer/bin/python benchmarks/peer/evaluator_cost.py EVALUATE.yaml

Prints one line of JSON: seconds on the wall and of the processor, of all of it and of the network's forward. Imports are not counted.
"""

import json
import sys
import time

import torch
from fme.ace.inference import evaluator

CLOCKS = (time.perf_counter, time.process_time)
network = [0.0, 0.0]


def now():
    return [clock() for clock in CLOCKS]


def timed(forward):
    def run(*args, **kwargs):
        begin = now()
        try:
            return forward(*args, **kwargs)
        finally:
            for i, end in enumerate(now()):
                network[i] += end - begin[i]

    return run


def main():
    load = evaluator.load_stepper

    def load_timed(*args, **kwargs):
        stepper = load(*args, **kwargs)
        for module in stepper.modules:
            module.forward = timed(module.forward)
        return stepper

    evaluator.load_stepper = load_timed
    torch.set_num_threads(1)
    begin = now()
    evaluator.main(sys.argv[1])
    total = [end - start for start, end in zip(begin, now(), strict=True)]
    print(json.dumps({"total": total, "network": network}))


main()
