"""The peer's training loader on a store of its own layout; started by benchmarks/bench_loader.py in the peer's environment.

The first line on standard input describes the data (JSON); then every line asks for something and gets ``answer`` and JSON:
``first W`` seconds from the configuration to the first batch of a new loader with W workers and a checksum of the data's first
windows, ``read W N`` seconds for N batches of the loader that ``first W`` made.
"""

import itertools
import json
import sys
import time

import torch
from fme.ace.data_loading.config import DataLoaderConfig
from fme.ace.data_loading.getters import get_gridded_data
from fme.ace.requirements import DataRequirements
from fme.core.dataset.xarray import XarrayDataConfig
from fme.core.distributed import Distributed


class Loader:
    def __init__(self, setup, workers, shuffled=True):
        folder, _, name = setup["path"].rpartition("/")
        config = DataLoaderConfig(
            dataset=XarrayDataConfig(data_path=folder, file_pattern=name, engine="zarr"),
            batch_size=setup["batch_size"],
            num_data_workers=workers,
        )
        self.data = get_gridded_data(
            config, train=shuffled, requirements=DataRequirements(setup["names"], setup["steps"])
        )
        self.epoch, self.batches = 0, iter(())

    def next(self):
        batch = next(self.batches, None)
        if batch is None:
            self.epoch += 1
            self.data.set_epoch(self.epoch)
            self.batches = iter(self.data.loader)
            batch = next(self.batches)
        return batch


def main():
    setup = json.loads(sys.stdin.readline())
    torch.set_num_threads(setup["threads"])
    loaders = {}
    print("answer " + json.dumps("ready"), flush=True)
    for line in sys.stdin:
        kind, workers, *count = line.split()
        begin = time.perf_counter()
        if kind == "first":
            loaders.pop(workers, None)
            loader = loaders[workers] = Loader(setup, int(workers))
            loader.next()
            answer = [time.perf_counter() - begin]
            in_order = Loader(setup, 0, shuffled=False).next().data
            answer.append([float(in_order[name].double().sum()) for name in setup["names"]])
        else:
            loader = loaders[workers]
            for _ in itertools.repeat(None, int(count[0])):
                loader.next()
            answer = time.perf_counter() - begin
        print("answer " + json.dumps(answer), flush=True)
    for loader in loaders.values():
        loader.batches = iter(())
    loaders.clear()


if __name__ == "__main__":
    with Distributed.context():
        main()
