"""Measure how many images a second several processes train on: `python tools/measure_processes.py
results/speed [--processes 1 2 4] [--steps N]`.

The batch stays as it is and is divided. On a machine with GPUs each process has one; otherwise each has one
thread, and one process is measured with as many threads, too. Writes processes.csv and processes.json."""
import argparse
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import torch
from fastai.callback.core import Callback

from srdiag.core.files import write_text
from srdiag.core.precision import pick_place
from srdiag.core.records import json_text, session_now
from srdiag.data.pairs import LabelledPairs, SRPairs
from srdiag.diagnosis.network import SREnhancedDiagnosis
from srdiag.diagnosis.training import diagnosis_dataloaders, diagnosis_learner
from srdiag.sr.mrcnet import MRCNet
from srdiag.sr.training import sr_dataloaders, sr_learner
from srdiag.training.processes import as_one
from srdiag.training.recipes import Recipe, fit

BATCH = dict(small=16, framework=16, sr=8) # images or patches to a step, of all processes


class Clock(Callback):
    "Seconds of each training step, from its beginning to the next one"
    order = 70
    def before_fit(self): self.ticks = []
    def before_batch(self):
        if self.training: self.ticks.append(time.perf_counter())


def framework(steps, device, precision, size=64, width=64):
    "Images of 64×64 px, LR+SR at ×2, branches of the whole width"
    images = [*torch.randint(256, (64, 3, size, size), dtype=torch.uint8)]
    train, valid = (LabelledPairs(images[:n], [0, 1]*(n//2), 2, 'hr') for n in (64, 2))
    dls = diagnosis_dataloaders(train, valid, BATCH['framework'], device=device, steps=steps)
    model = SREnhancedDiagnosis(2, 2, 'LR+SR', width=width, mutual='mean').to(device)
    return diagnosis_learner(dls, model, Recipe(1e-4, BATCH['framework']), precision=precision)


def small(steps, device, precision):
    "Images of 32×32 px, branches of a quarter of the width: little to compute between two exchanges"
    return framework(steps, device, precision, size=32, width=16)


def super_resolution(steps, device, precision):
    "MRC-Net at ×2 on patches of 48×48 px"
    pairs, network = SRPairs([*torch.rand(4, 3, 96, 96)], 2), MRCNet(2).to(device)
    dls = sr_dataloaders(pairs, pairs.few(1), 48, BATCH['sr'], steps, device=device)
    return sr_learner(dls, network, 2, Recipe(1e-4, BATCH['sr']), precision=precision)


def measure(steps): # what one process of several does; the first one prints seconds per step
    torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))
    device, precision = pick_place()
    with as_one():
        for name, make in (('small', small), ('framework', framework), ('sr', super_resolution)):
            torch.manual_seed(0)
            learn, clock = make(steps, device, precision), Clock()
            learn.add_cb(clock)
            with learn.no_bar(), learn.no_logging():
                fit(learn, Recipe(1e-4, BATCH[name]), 1)
            pairs = list(zip(clock.ticks, clock.ticks[1:]))[2:]
            print('measured', name, statistics.median(b - a for a, b in pairs), precision, flush=True)


def run(n, threads, steps): # → rows of the table
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    env = os.environ | dict(OMP_NUM_THREADS=str(threads), WORLD_SIZE=str(n), MASTER_ADDR='127.0.0.1',
                            MASTER_PORT=str(port), SRDIAG_MEASURE=str(steps))
    if sys.platform == 'linux': env.setdefault('GLOO_SOCKET_IFNAME', 'lo')
    all_n = [subprocess.Popen([sys.executable, __file__], env=env | dict(RANK=str(k), LOCAL_RANK=str(k)),
                              stdout=subprocess.PIPE, text=True) for k in range(n)]
    said = [p.communicate()[0] for p in all_n][0]
    if any(p.returncode for p in all_n): sys.exit(f'{n} processes could not be measured.')
    for line in said.splitlines():
        if not line.startswith('measured '): continue
        _, name, seconds, precision = line.split()
        yield dict(training=name, processes=n, threads=threads, batch=BATCH[name], precision=precision,
                   ms_per_step=round(1000*float(seconds), 1),
                   images_per_second=round(BATCH[name]/float(seconds), 2))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('out', type=Path)
    parser.add_argument('--processes', type=int, nargs='+', default=[1, 2])
    parser.add_argument('--steps', type=int, default=12)
    parser.add_argument('--note', default='', help='what else ran on the machine')
    a = parser.parse_args()
    ways = [(n, 1) for n in a.processes]
    if not torch.cuda.is_available(): ways.insert(1, (1, max(a.processes)))
    table = pd.DataFrame([row for n, threads in ways for row in run(n, threads, a.steps)])
    a.out.mkdir(parents=True, exist_ok=True)
    write_text(a.out/'processes.csv', table.sort_values('training', kind='stable').to_csv(index=False))
    load = [round(v, 1) for v in os.getloadavg()] if hasattr(os, 'getloadavg') else None
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    known = dict(command=' '.join(['python', *sys.argv]), gpu=gpu, load=load, note=a.note)
    write_text(a.out/'processes.json', json_text(session_now() | known))
    print(table.to_string(index=False))


if __name__ == '__main__':
    if 'SRDIAG_MEASURE' in os.environ: measure(int(os.environ['SRDIAG_MEASURE']))
    else: main()
