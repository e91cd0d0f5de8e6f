"""Measure how much the predictions of diagnosis models depend on the batch: `python
tools/measure_dependence.py OUT DATA MODEL...`

Each model folder is tested on the test part of its own split.csv; a model of an experiment
(`--keep-models`), which has none, on the test part of its fold: `--split runs/NAME/setup/split.csv --column
fold0`. Writes OUT/dependence.csv and OUT/run.json."""
import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from srdiag.datasets.reading import read_labelled
from srdiag.models.split import read_split
from srdiag.training.options import RunOptions
from srdiag.show.dependence import batch_dependence
from srdiag.data.pairs import LabelledPairs
from srdiag.core.files import write_text
from srdiag.core.records import json_text
from srdiag.models.saving import load_model
from srdiag.core.records import session_now


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('out', type=Path)
    parser.add_argument('data', type=Path)
    parser.add_argument('models', type=Path, nargs='+')
    parser.add_argument('--sizes', type=int, nargs='+', default=[2, 4, 8, 16, 32])
    parser.add_argument('--shuffles', type=int, default=20)
    parser.add_argument('--split', type=Path,
                        help='table of file, group and parts; default: that of each model')
    parser.add_argument('--column', default='split', help='of that table, with the word test')
    parser.add_argument('--size', type=int, help='middle of the files, px; default: what the model says')
    parser.add_argument('--limit', type=int, help='test images at most, spread evenly over each class')
    a = parser.parse_args()
    tables, facts = [], {}
    for folder in a.models:
        model, info = load_model(folder, 'diagnosis')
        split = read_split(folder) if a.split is None else pd.read_csv(a.split, dtype=str)
        found = (read_labelled(a.data, None, RunOptions(size=a.size or info.size, channels='rgb'
                                                        if model.config['channels'] == 3 else 'grey')))
        part = dict(zip(split.file, split[a.column]))
        frame = found.table.to_frame()
        frame['group'] = frame.file.map(dict(zip(split.file, split.group)))
        rows = frame[frame.file.map(part) == 'test']
        classes = list(info.classes or found.table.classes)
        if a.limit:
            rows = (pd.concat([g.iloc[np.unique(np.linspace(0, len(g)-1, a.limit//len(classes)).astype(int))]
                               for _, g in rows.groupby('label')]))
        pairs = (LabelledPairs([found.images[i] for i in rows.index],
                               found.table.labels[rows.index.to_numpy()], model.scale, 'hr'))
        table = (batch_dependence(model, pairs.lr, pairs.labels.numpy(), classes,
                                  pairs.hr if model.large == 'HR' else None, tuple(a.sizes), a.shuffles))
        name = folder.name if a.split is None else folder.parents[2].name
        tables.append(table.assign(model=name))
        facts[name] = (dict(groups=int(rows.group.nunique()), title=info.title,
                            settings={k: model.config[k]
                                      for k in ('mode', 'mutual', 'solo_share', 'references')}))
        print(table.round(4).to_string(), flush=True)
    a.out.mkdir(parents=True, exist_ok=True)
    write_text(a.out/'dependence.csv', pd.concat(tables).to_csv(index=False))
    made = session_now()
    write_text(a.out/'run.json', json_text(made | dict(command=' '.join(['python', *sys.argv]),
                                                       groups=next(iter(facts.values()))['groups'],
                                                       models=facts)))


if __name__ == '__main__': main()
