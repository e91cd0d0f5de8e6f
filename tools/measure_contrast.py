"""What does an enlarging network give back of what tells cells apart? `python tools/measure_contrast.py
OUT.csv DATA MODEL`, with `--size 48` or `--size 32 --resize` as in the experiments.

One number for each cell, which no network has learned: in the middle half of the image, the darkest pixel
(grey) or the most purple one (colour: red minus green) against the median. Writes its mean in each class and
how well it alone tells the two apart (AUC), for the true image, the enlarged one and the super-resolved one;
their PSNR, in the whole image and in this middle alone; and which share of their squared error lies outside
of it. Beside it OUT.json, with command, machine and date."""
import argparse
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
from collect_runs import short
from sklearn.metrics import roc_auc_score

from srdiag.bench.labels_images import KindsOfImages
from srdiag.bench.labels_settings import LabelsSources
from srdiag.core.files import write_text
from srdiag.core.records import json_text, session_now
from srdiag.core.words import csv_text
from srdiag.data.images import as_float
from srdiag.data.pairs import LabelledPairs
from srdiag.datasets.reading import read_labelled
from srdiag.evaluation.image_quality import convention, psnr
from srdiag.models.saving import load_model
from srdiag.training.options import RunOptions


def middle(x): # B×C×H×W → B×C×H/2×W/2
    h, w = x.shape[-2:]
    return x[..., h//4:h - h//4, w//4:w - w//4]


def contrast(x): # B×C×H×W in [0, 1] → B
    x = middle(x)
    spots = (x[:, 0] - x[:, 1] if x.shape[1] == 3 else -x[:, 0]).flatten(1)
    return spots.max(1).values - spots.median(1).values


def fidelity(x, truth, how): # B×C×H×W twice, how PSNR is measured → of all pixels and of the middle
    wrong = (x - truth).double()**2
    return dict(psnr=psnr(x, truth, how).mean().item(),
                psnr_middle=psnr(middle(x), middle(truth), replace(how, crop=0)).mean().item(),
                error_outside=1 - (middle(wrong).sum()/wrong.sum()).item())


def measured(data, model, options): # → rows of the table
    found, scale = read_labelled(data, None, options), load_model(model, 'sr')[0].scale
    pairs = LabelledPairs(found.images, found.table.labels, scale, 'hr')
    kinds, labels = KindsOfImages(pairs, scale, LabelsSources(sr=str(model))), pairs.labels.numpy()
    images = {name: as_float(kinds[name]) for name in ('HR', 'ILR', 'SR')}
    for name, x in images.items():
        c = contrast(x).numpy()
        yield (dict(image=name, images=len(c), side=x.shape[-1])
               | {f'contrast_{k}': float(c[labels == i].mean()) for i, k in enumerate(found.classes)}
               | dict(auc=roc_auc_score(labels == 0, c))
               | ({} if name == 'HR' else fidelity(x, images['HR'], convention(scale))))


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', type=Path)
    parser.add_argument('data', type=Path)
    parser.add_argument('model', type=Path)
    parser.add_argument('--size', type=int)
    parser.add_argument('--resize', action='store_true')
    a = parser.parse_args()
    options = RunOptions(size=a.size, resize=a.resize, device='cpu')
    table = pd.DataFrame(measured(a.data, a.model, options)).round(4)
    write_text(a.out, csv_text(table, index=False))
    made = session_now() | dict(command=short(' '.join(['python', *sys.argv])))
    write_text(a.out.with_suffix('.json'), json_text(made))
    print(table.to_string(index=False))


if __name__ == '__main__': main()
