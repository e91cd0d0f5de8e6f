"""What a set of PCam's size costs: `python tools/measure_large.py results/speed [--images N] [--steps N]`.

Makes an HDF5 file of random patches 96×96 in colour (327 680 of them are 9 GB) in the folder for temporary
files, and removes it. Then, each in a process of its own: statistics, batches with and without processes that
read, training steps, and predictions from the mapped file; and the same from memory, with a twentieth of the
images. Memory is what belongs to no file (RssAnon of /proc/self/status, sampled every 20 ms): pages of mapped
files are the system's to take back. Writes large.json."""
import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import replace
from datetime import date
from multiprocessing import get_context
from pathlib import Path

import h5py
import numpy as np
import torch
from measure_processes import Clock

from srdiag.data.images import as_float
from srdiag.data.mapped import ImageRows, channel_statistics
from srdiag.data.pairs import LabelledPairs, PairAugment
from srdiag.datasets.large import hdf5_block
from srdiag.diagnosis.inference import predict
from srdiag.diagnosis.network import SREnhancedDiagnosis
from srdiag.diagnosis.training import diagnosis_dataloaders, diagnosis_learner
from srdiag.training.recipes import DIAGNOSIS_RECIPES, fit

BATCH = 64


def memory(): # MB: without files, and with them
    lines = dict(line.split(':') for line in open('/proc/self/status') if line.startswith('Rss'))
    anon, files = (int(lines[k].split()[0])/1024 for k in ('RssAnon', 'RssFile'))
    return anon, anon + files


class Peak:
    "The largest memory while a block runs"
    def __enter__(self):
        self.own = self.all = 0.
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self):
        while not self.over.wait(0.02):
            own, whole = memory()
            self.own, self.all = max(self.own, own), max(self.all, whole)

    def __exit__(self, *error):
        self.over.set()
        self.thread.join()


def make(path, n):
    rng = np.random.default_rng(0)
    with h5py.File(path, 'w') as f:
        x = f.create_dataset('x', (n, 96, 96, 3), np.uint8)
        for i in range(0, n, 4096):
            part = min(4096, n - i)
            x[i:i+part] = np.frombuffer(rng.bytes(part*96*96*3), np.uint8).reshape(part, 96, 96, 3)


def rate(loader, batches): # images per second
    it = iter(loader)
    next(it)
    start = time.perf_counter()
    for _ in range(batches): next(it)
    return batches*BATCH/(time.perf_counter() - start)


def train(pairs, valid, steps): # → network, seconds of a step (median)
    torch.manual_seed(0)
    model, recipe = SREnhancedDiagnosis(2, 2, 'LR'), replace(DIAGNOSIS_RECIPES['fast'], batch_size=BATCH)
    dls = diagnosis_dataloaders(pairs, valid, BATCH, device='cpu', steps=steps)
    learn, clock = diagnosis_learner(dls, model, recipe), Clock()
    learn.add_cb(clock)
    with learn.no_bar(), learn.no_logging(): fit(learn, recipe, 1)
    return model, statistics.median(b - a for a, b in zip(clock.ticks[1:], clock.ticks[2:]))


def measure(path, n, steps, lazy, answer):
    "In a process of its own; n images, from the file or from memory"
    block, found = hdf5_block(path), {}
    y = torch.arange(n)%2
    with Peak() as peak:
        start = time.perf_counter()
        if lazy: images = ImageRows([block])
        else: images = [x.clone() for x in block[:n]]
        pairs = LabelledPairs(images, y, 2, 'lr', PairAugment(0))
        found['reading_s'] = time.perf_counter() - start
        start = time.perf_counter()
        if lazy: channel_statistics(pairs.lr)
        else: as_float(pairs.lr).std((0, 2, 3))
        found['statistics_s'] = time.perf_counter() - start
    found['peak_statistics_mb'] = peak.own
    print(found, flush=True)
    with Peak() as peak:
        for workers in (0, 2):
            pairs.workers = workers
            loader, _ = diagnosis_dataloaders(pairs, pairs, BATCH, device='cpu')
            found[f'batches_per_s_workers_{workers}'] = rate(loader, 4*steps)/BATCH
            found[f'images_per_s_workers_{workers}'] = found[f'batches_per_s_workers_{workers}']*BATCH
        print(found, flush=True)
        valid = LabelledPairs(pairs.lr.rows(range(64)) if lazy else list(pairs.lr[:64]), y[:64], 2)
        model, seconds = train(pairs, valid, 2*steps)
        found['training_images_per_s'] = BATCH/seconds
        some = pairs.lr.rows(range(256)) if lazy else pairs.lr[:256]
        start = time.perf_counter()
        predict(model, some, ['normal', 'tumour'])
        found['predicting_images_per_s'] = 256/(time.perf_counter() - start)
    found |= dict(peak_mb=peak.own, peak_with_files_mb=peak.all)
    answer.put({k: round(v, 1) for k, v in found.items()})


def apart(*args):
    answer = get_context('spawn').Queue()
    process = get_context('spawn').Process(target=measure, args=(*args, answer))
    process.start()
    while answer.empty() and process.is_alive(): time.sleep(0.1)
    if answer.empty() and process.exitcode: sys.exit(f'measuring failed ({process.exitcode})')
    found = answer.get(timeout=10)
    process.join()
    return found


def main():
    ask = argparse.ArgumentParser()
    ask.add_argument('out', type=Path)
    ask.add_argument('--images', type=int, default=327_680)
    ask.add_argument('--steps', type=int, default=20)
    ask.add_argument('--note', default='', help='what else ran on the machine')
    a = ask.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    few = a.images//20
    with tempfile.TemporaryDirectory() as place:
        path = Path(place)/'x.h5'
        make(path, a.images)
        mapped = apart(path, a.images, a.steps, True)
        eager = apart(path, few, a.steps, False)
    result = dict(
        images=a.images, gigabytes=round(a.images*96*96*3/1e9, 2), batch=BATCH, steps=a.steps, mapped=mapped,
        eager=eager | dict(images=few), # and what the whole set would take, if memory grows with it
        eager_extrapolated=dict(images=a.images, peak_statistics_mb=round(20*eager['peak_statistics_mb'])),
        command=' '.join(['python', *sys.argv]), date=date.today().isoformat(), load=os.getloadavg()[0],
        machine=f'{platform.system()} {platform.machine()}, {os.cpu_count()} cores',
        threads=torch.get_num_threads(), torch=torch.__version__,
        note=a.note)
    (a.out/'large.json').write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')
    print(json.dumps(result, indent=2))


if __name__ == '__main__': main()
