"""Seconds of the peer's SongUNets; started by benchmarks/bench_downscaling.py in the peer's environment.

Reads the network's configuration and the sizes as JSON, its one argument; then one line per repeat on standard input, which it answers
with the seconds of a training step and of a generation of its first version and of its second.
"""

import json
import sys
import time

import torch
from fme.downscaling.modules.physicsnemo_unets_v1 import SongUNet
from fme.downscaling.modules.physicsnemo_unets_v2 import SongUNetv2
from fme.downscaling.modules.preconditioners import EDMPrecond
from fme.downscaling.samplers import stochastic_sampler


def main() -> None:
    o = json.loads(sys.argv[1])
    torch.set_num_threads(o["threads"])
    torch.manual_seed(0)
    n_in, n_out, side, batch = o["n_in"], o["n_out"], o["side"], o["batch"]
    first = SongUNet(side, n_in + n_out, n_out, **o["network"])
    second = SongUNetv2(side, n_in + n_out, n_out, use_apex_gn=False, amp_mode=False, **o["network"])
    nets = [EDMPrecond(net, sigma_data=1.0) for net in (first, second)]
    optimizers = [torch.optim.Adam(net.parameters(), lr=1e-6, fused=True) for net in nets]
    noisy, condition = torch.randn(batch, n_out, side, side), torch.randn(batch, n_in, side, side)
    sigma = torch.rand(batch, 1, 1, 1) + 0.5
    print("ready", flush=True)
    for _ in sys.stdin:
        answer = []
        for net, optimizer in zip(nets, optimizers):
            net.train()
            begin = time.perf_counter()
            optimizer.zero_grad()
            net(noisy, condition, sigma).square().mean().backward()
            optimizer.step()
            middle = time.perf_counter()
            net.eval()
            with torch.no_grad():
                stochastic_sampler(net, noisy, condition, num_steps=o["steps"])
            answer += [middle - begin, time.perf_counter() - middle]
        print(*answer, flush=True)


main()
