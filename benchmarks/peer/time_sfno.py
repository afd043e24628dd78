"""Seconds of the peer's deterministic SFNO; started by benchmarks/bench_network.py in the peer's environment.

Reads ``embed layers rows columns batch threads block`` and then one line per repeat on standard input; answers each line with
``forward backward`` seconds and the peak of memory in MB above what the process held before the network was built. With block 1 it
times the network's first block alone.
"""

import resource
import sys
import time
import types
from pathlib import Path

import torch
from fme.ace.registry.sfno import SphericalFourierNeuralOperatorBuilder


def main() -> None:
    embed, layers, rows, columns, batch, threads, block = (int(a) for a in sys.argv[1:])
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6
    begin = time.perf_counter()
    builder = SphericalFourierNeuralOperatorBuilder(embed_dim=embed, num_layers=layers, operator_type="dhconv")
    net = builder.build(44, 50, types.SimpleNamespace(all_labels=set(), img_shape=(rows, columns)))
    seconds = time.perf_counter() - begin
    x = torch.randn(batch, 44, rows, columns)
    if block:
        net, x = net.blocks[0], torch.randn(batch, embed, rows, columns, requires_grad=True)
    weights = torch.randn(batch, embed if block else 50, rows, columns)
    print("ready", seconds, flush=True)
    for _ in sys.stdin:
        net.zero_grad()
        x.grad = None
        begin = time.perf_counter()
        with torch.no_grad():
            net(x)
        middle = time.perf_counter()
        (net(x) * weights).sum().backward()
        end = time.perf_counter()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6 - before
        print(middle - begin, end - middle, peak, flush=True)


main()
