"""Do recursion and distillation help where training is flat?

`python tools/measure_distillation.py DATA RUNS [--blocks 1 2 ...]` makes the blocks of
results/distillation/README.md, each complete before the next, and goes on where it stopped. DATA holds
bloodsmear/sr and histology/sr. `--report OUT` copies what is complete, without images and weights, and writes
OUT/ladder.csv and OUT/why.csv."""
import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from collect_runs import collect

from srdiag.bench.benchmark import benchmark_sr
from srdiag.bench.entries import PRESETS, RECURSIVE, STUDENT, entries_of
from srdiag.bench.settings import SRBudget
from srdiag.bench.sr_report import report_sr
from srdiag.bench.sr_scores import sr_gains
from srdiag.bench.sr_store import SRStore
from srdiag.core.files import write_text
from srdiag.core.words import csv_text, say
from srdiag.datasets.reading import read_sr_folder
from srdiag.evaluation.image_quality import convention, psnr
from srdiag.models.saving import load_model
from srdiag.training.options import RunOptions

CORE = 'bicubic,mrcnet,mrcnet:scratch2x,mrcnet_recursive,mrcnet:copied,mrcnet:distilled'
SETS = {'cells': ('bloodsmear/sr', 4, RunOptions(size=48, group_pattern='(P[0-9]+)__', device='cpu')),
        'histology': ('histology/sr', 2, RunOptions(size=96, group_pattern='__(.+?)__', device='cpu'))}
FLAT = 0.02 # dB that twice the steps may still gain on validation images


@dataclass(frozen=True)
class Block:
    name: str # of the set
    steps: int # of a training; the double has twice as many
    alternatives: bool = False # the other ways to learn from the same teachers, too

    @property
    def folder(self): return f'{self.name}_{self.steps}'

    @property
    def entries(self): return PRESETS['alternatives'] if self.alternatives else entries_of(4, models=CORE)


BLOCKS = [Block('cells', 500), Block('histology', 500), Block('cells', 2000), Block('histology', 2000),
          Block('cells', 2000, True), Block('cells', 8000), Block('histology', 8000)]


def best(store, key, seed): # PSNR on validation images, of the epoch that was kept
    return pd.read_csv(store.folder/'runs'/key/f'seed{seed}'/'log.csv').valid_psnr.max()


def still_gained(store): # dB by the double on validation images, mean over seeds
    seeds = [e for e in store.entries() if e.key == 'mrcnet-scratch2x']
    seeds = store.seeds(seeds[0]) if seeds else []
    gains = [best(store, 'mrcnet-scratch2x', k) - best(store, 'mrcnet', k) for k in seeds]
    return float(np.mean(gains)) if gains else np.nan


def is_flat(runs, block): # has a shorter budget of this set been flat already?
    if block.alternatives: return False
    shorter = [runs/b.folder for b in BLOCKS if b.name == block.name and b.steps < block.steps]
    return any((p/'run.json').is_file() and still_gained(SRStore(p)) < FLAT for p in shorter)


def make(block, data, runs):
    place, scale, options = SETS[block.name]
    budget = SRBudget(epochs=block.steps//100, patch=48, seeds=3, rounds=2)
    benchmark_sr(data/place, runs/block.folder, scale, block.entries, budget, options)
    say(f'{block}: the double still gains {still_gained(SRStore(runs/block.folder)):.3f} dB on validation '
        'images.')


def ladder(stores): # a line per budget and difference, from the reports' own tables
    for folder, store in stores.items():
        name, steps = folder.rsplit('_', 1)
        yield from (dict(set=name, steps=int(steps), still_gained=still_gained(store)) | g
                    for g in sr_gains(store).to_dict('records'))


@torch.no_grad()
def step_scores(network, pairs): # mean PSNR of the image of each recursion
    scores = [[psnr(sr.clamp(0, 1), hr[None], convention(network.scale)).item()
               for sr in network.forward_steps(lr[None])] for lr, hr in pairs]
    return np.mean([s for s in scores if np.isfinite(s).all()], axis=0)


def why(stores, data): # a line per teacher: what each recursion gives, and how large Eq. (4) is at its start
    for folder, store in stores.items():
        name, steps = folder.rsplit('_', 1)
        place, scale, options = SETS[name]
        test = read_sr_folder(data/place, 48, options, scale=scale).pairs('test', scale)
        for seed in sorted({*store.seeds(RECURSIVE)} & {*store.seeds(STUDENT)}):
            teacher = load_model(store.path(RECURSIVE, seed)/'model', 'sr')[0]
            first = pd.read_csv(store.path(STUDENT, seed)/'steps.csv').iloc[0]
            shares = first.filter(like='distil_')/first.mae
            yield (dict(set=name, steps=int(steps), seed=seed)
                   | {f'psnr_step{k}': v for k, v in enumerate(step_scores(teacher, test), 1)}
                   | {f'{k}_per_mae': v for k, v in shares.items()})


def report(runs, out, data):
    known = dict.fromkeys(b.folder for b in BLOCKS)
    stores = {k: SRStore(runs/k) for k in known if (runs/k/'run.json').is_file()}
    for folder, store in stores.items():
        report_sr(store)
        collect(runs/folder, out/folder)
    write_text(out/'ladder.csv', csv_text(pd.DataFrame(ladder(stores)).round(4), index=False))
    write_text(out/'why.csv', csv_text(pd.DataFrame(why(stores, data)).round(4), index=False))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('data', type=Path)
    parser.add_argument('runs', type=Path)
    parser.add_argument('--blocks', type=int, nargs='+', default=range(1, len(BLOCKS) + 1),
                        help='numbers of blocks, from 1; default: all, in order')
    parser.add_argument('--report', type=Path, metavar='OUT', help='train nothing, write what is complete')
    a = parser.parse_args()
    if a.report: return report(a.runs, a.report, a.data)
    torch.set_num_threads(1)
    for block in (BLOCKS[k-1] for k in a.blocks):
        if is_flat(a.runs, block): say(f'{block}: left out, for a shorter budget was flat.')
        else: make(block, a.data, a.runs)


if __name__ == '__main__': main()
