"""A stand-in for the trainer: gloo ranks, a step counter, the stop flag all-reduced, an atomic checkpoint.

python dummy_training.py FOLDER --steps N [--step-time S] [--mode normal|deaf|refuse|crash] [--quiet]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from ace_core.signals import StopFlag, start_watchdog


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--step-time", type=float, default=0.02)
    parser.add_argument("--mode", default="normal")
    parser.add_argument("--grace", type=float, default=10.0)
    parser.add_argument("--quiet", action="store_true")
    options = parser.parse_args()
    rank = int(os.environ["RANK"])
    if options.mode == "refuse":
        print("train.yaml:3 stepper.lr: -1\n    expected: greater than 0\n    fix: mend it", file=sys.stderr)
        return 2
    if options.mode == "crash" and rank == 1:
        raise ValueError("rank one is broken")
    start_watchdog(grace=options.grace, every=0.2)
    dist.init_process_group("gloo")
    checkpoint = options.folder / "checkpoint.json"
    first = json.loads(checkpoint.read_text())["step"] if checkpoint.exists() else 0
    (options.folder / f"rank{rank}.json").write_text(
        json.dumps({"pid": os.getpid(), "threads": os.environ["OMP_NUM_THREADS"], "first": first})
    )
    with StopFlag() as stop:
        if options.mode == "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for step in range(first, options.steps):
            time.sleep(options.step_time)
            if rank == 0 and not options.quiet:
                print(f"step {step}")
            wants = torch.tensor([stop.signal_number or 0])
            dist.all_reduce(wants, op=dist.ReduceOp.MAX)
            if int(wants):
                break
        if rank == 0:
            temporary = checkpoint.with_suffix(".tmp")
            temporary.write_text(json.dumps({"step": step + 1, "signal": int(wants) or None}))
            temporary.replace(checkpoint)
        dist.barrier()
    dist.destroy_process_group()
    return 143 if int(wants) else 0


if __name__ == "__main__":
    sys.exit(main())
