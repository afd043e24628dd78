"""Seconds of the peer's deterministic SFNO; started by benchmarks/bench_network.py in the peer's environment.

Reads ``embed layers rows columns batch threads`` and then one line per repeat on standard input; answers each line with
``forward backward`` seconds.
"""

import sys
import time
import types

import torch
from fme.ace.registry.sfno import SphericalFourierNeuralOperatorBuilder


def main() -> None:
    embed, layers, rows, columns, batch, threads = (int(a) for a in sys.argv[1:])
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    builder = SphericalFourierNeuralOperatorBuilder(embed_dim=embed, num_layers=layers, operator_type="dhconv")
    net = builder.build(44, 50, types.SimpleNamespace(all_labels=set(), img_shape=(rows, columns)))
    x = torch.randn(batch, 44, rows, columns)
    print("ready", flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        with torch.no_grad():
            net(x)
        middle = time.perf_counter()
        net(x).square().mean().backward()
        print(middle - begin, time.perf_counter() - middle, flush=True)


main()
