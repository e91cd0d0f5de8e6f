"""Measure what the fast paths give on this machine: `python tools/measure_speed.py results/speed [--rounds
N] [--large PX] [--parts NAMES]`.

Ratios are of one run, with all candidates timed in turns. Writes inference.csv, training.csv, imports.csv,
tiling.csv and run.json; nothing else should run meanwhile."""
import argparse
import json
import os
import platform
import subprocess
import sys
import time
import types
from copy import deepcopy
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from srdiag.evaluation.speed import compare_latency
from srdiag.core.compiled import has_openvino
from srdiag.core.precision import best_precision, computing_in
from srdiag.sr.inference import enlarger, super_resolve
from srdiag.sr.layers import PReLU
from srdiag.sr.runtime import Runner
from srdiag.sr.mrcnet import MRCNet
from srdiag.sr.zoo import create_model
from srdiag.core.weights import list_pretrained

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'


def wait(f):
    if DEVICE == 'cpu': return f
    def call():
        out = f()
        torch.cuda.synchronize()
        return out
    return call


def plain_forward(network, x): # the network as written, in one piece, single precision, channels first
    network = deepcopy(network).to(memory_format=torch.contiguous_format)
    if isinstance(network, MRCNet): return lambda: network.features(x).sr
    return lambda: network(x)


def compiled_ways(network): # by OpenVINO, where it is installed; graphs are made before anything is timed
    if DEVICE != 'cpu' or not has_openvino(): return {}
    return {f'openvino {p}': Runner(deepcopy(network), p)
            for p in dict.fromkeys(('fp32', best_precision(DEVICE), 'int8'))}


def inference(rounds):
    "One 128×128 image at x4 and one 96×96 image at x2, the sizes of Tables I and II"
    rows = []
    for scale, side in ((4, 128), (2, 96)):
        x, calls = torch.rand(1, 3, side, side, device=DEVICE), {}
        names = (['mrcnet', 'mrcnet_recursive', 'edsr_baseline', 'carn']
                 + (['vdsr'] if DEVICE == 'cuda' or scale == 2 else []))
        for name in names:
            network = create_model(f'{name}_x{scale}').eval().to(DEVICE)
            calls[name, 'plain fp32'] = wait(plain_forward(network, x))
            for precision in dict.fromkeys(('fp32', best_precision(DEVICE))):
                calls[name, f'enlarger {precision}'] = wait(lambda f=enlarger(
                                                                deepcopy(network), precision): f(x))
            for how, run in compiled_ways(network).items():
                calls[name, how] = lambda run=run: run(x)
        with torch.no_grad(): times = compare_latency(calls, rounds)
        for (name, how), t in times.items():
            rows.append(dict(scale=scale, input=f'{side}x{side}', network=name, way=how,
                             median_ms=1000*t.median, low_ms=1000*t.low, high_ms=1000*t.high, rounds=t.n,
                             speedup_over_plain=times[name, 'plain fp32'].median/t.median,
                             of_edsr_same_way=t.median/times['edsr_baseline', how].median))
    return pd.DataFrame(rows)


IMPORTS = ('torch', 'srdiag', 'srdiag.commands.cli', 'srdiag.commands.predict', 'srdiag.commands.evaluate',
           'srdiag.commands.train_sr', 'fastai.learner')


def import_seconds(module): # of the processor, in a fresh Python
    code = f'import time; t = time.process_time(); import {module}; print(time.process_time() - t)'
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True,
                          check=True)
    return float(done.stdout)


def imports(rounds):
    "What each import costs, in turns, so that a busy machine is busy for all of them"
    for module in IMPORTS: import_seconds(module) # files are in the cache now
    seconds = pd.DataFrame([{module: import_seconds(module) for module in IMPORTS} for _ in range(rounds)])
    median = seconds.median()
    return pd.DataFrame([dict(module=m, cpu_seconds=median[m], of_torch=median[m]/median['torch'],
                              rounds=rounds) for m in IMPORTS])


def training_step(network, scale, patch, batch, fast):
    lr, hr = (torch.rand(batch, 3, patch//scale, patch//scale, device=DEVICE),
              torch.rand(batch, 3, patch, patch, device=DEVICE))
    network = network.train().to(DEVICE,
                                 memory_format=torch.channels_last if fast else torch.contiguous_format)
    if not fast: # PyTorch's own PReLU
        for m in network.modules():
            if isinstance(m, PReLU): m.forward = types.MethodType(nn.PReLU.forward, m)
    optimiser = torch.optim.Adam(network.parameters(), 1e-4, fused=fast)
    def step():
        with computing_in('auto' if fast else 'fp32', DEVICE): sr = network(lr)
        (sr.float()-hr).abs().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
    return wait(step)


def training(rounds):
    "Forward, backward and Adam step of MRC-Net"
    rows = []
    for scale, patch, batch in ((2, 64, 8), (2, 96, 8), (2, 192, 4), (4, 96, 8), (4, 160, 8), (4, 192, 4),
                                (4, 512, 1)):
        for steps in (1, 3):
            times = (compare_latency({fast: training_step(MRCNet(scale, steps), scale, patch, batch, fast)
                                      for fast in (False, True)}, rounds))
            rows.append(dict(scale=scale, hr_patch=patch, batch=batch, recursions=steps,
                             plain_ms=1000*times[False].median, fast_ms=1000*times[True].median,
                             speedup=times[False].median/times[True].median, rounds=rounds))
    return pd.DataFrame(rows)


def resident(key='VmRSS'):
    return (next(int(line.split()[1])/1024
                 for line in Path('/proc/self/status').read_text().splitlines() if line.startswith(key)))


def tiling(side):
    "One side×side image of bytes at x2 to bytes: time and how far memory grew (Linux)"
    network = (MRCNet.from_pretrained('histology_x2').to(DEVICE) if 'histology_x2' in list_pretrained()
               else MRCNet(2).to(DEVICE))
    super_resolve(network, torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8))
    image = torch.randint(0, 256, (3, side, side), dtype=torch.uint8)
    Path('/proc/self/clear_refs').write_text('5')
    before, start = resident(), time.perf_counter()
    out = super_resolve(network, image, dtype=torch.uint8)
    seconds = time.perf_counter()-start
    return pd.DataFrame([dict(input=f'{side}x{side}', scale=2, seconds=seconds,
                              peak_growth_mb=resident('VmHWM')-before, of_which_output_mb=out.numel()/2**20)])


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('out', type=Path)
    parser.add_argument('--rounds', type=int, default=20)
    parser.add_argument('--large', type=int, default=4096,
                        help='side of the image that is tiled; 0: leave it out')
    parser.add_argument('--parts', help='inference,training,imports,tiling; default: all')
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    name = (torch.cuda.get_device_name() if DEVICE == 'cuda'
            else torch.cpu.get_capabilities().get('cpu_name') or platform.processor())
    run = dict(command=f'python tools/measure_speed.py {a.out} --rounds {a.rounds} --large {a.large}',
               date=time.strftime('%Y-%m-%d %H:%M'), device=DEVICE,
               machine=f'{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {name}',
               native_precision=best_precision(DEVICE), threads=torch.get_num_threads(),
               large_pages=os.environ.get('THP_MEM_ALLOC_ENABLE', '0'), torch=torch.__version__,
               python=platform.python_version())
    if not a.parts: (a.out/'run.json').write_text(json.dumps(run, indent=2) + '\n')
    parts = dict(inference=lambda: inference(a.rounds), training=lambda: training(max(5, a.rounds//2)),
                 imports=lambda: imports(max(3, a.rounds//4)))
    # memory in a fresh process
    if a.large:
        parts['tiling'] = lambda: get_context('spawn').Pool(1).apply(tiling, (a.large,))
    if a.parts: parts = {k: f for k, f in parts.items() if k in a.parts.split(',')}
    for part, f in parts.items():
        frame = f()
        frame.round(3).to_csv(a.out/f'{part}.csv', index=False)
        print(frame.round(2).to_string(index=False), flush=True)
