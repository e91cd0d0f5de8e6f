"""Measure how much the predictions of diagnosis models depend on the batch: `python tools/measure_dependence.py OUT DATA MODEL...`

Each model folder is tested on the test part of its own split.csv. Writes OUT/dependence.csv and OUT/run.json."""
import argparse
import sys
from pathlib import Path

import pandas as pd

from srdiag.commands import RunOptions, read_labelled, read_split
from srdiag.diagnosis.dependence import batch_dependence
from srdiag.diagnosis.training import LabelledPairs
from srdiag.files import write_text
from srdiag.models import json_text, load_model
from srdiag.runs import session_now


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('out', type=Path)
    parser.add_argument('data', type=Path)
    parser.add_argument('models', type=Path, nargs='+')
    parser.add_argument('--sizes', type=int, nargs='+', default=[2, 4, 8, 16, 32])
    parser.add_argument('--shuffles', type=int, default=20)
    parser.add_argument('--limit', type=int, help='test images at most, the first of each class')
    a = parser.parse_args()
    tables,facts = [],{}
    for folder in a.models:
        model,info = load_model(folder, 'diagnosis')
        split = read_split(folder)
        found = read_labelled(a.data, None, RunOptions(size=info.size, channels='rgb' if model.config['channels'] == 3 else 'grey'))
        part = dict(zip(split.file, split.split))
        frame = found.table.to_frame()
        frame['group'] = frame.file.map(dict(zip(split.file, split.group)))
        rows = frame[frame.file.map(part) == 'test']
        if a.limit: rows = rows.groupby('label', group_keys=False).head(a.limit//len(info.classes))
        pairs = LabelledPairs([found.images[i] for i in rows.index], found.table.labels[rows.index.to_numpy()], model.scale, info.images)
        table = batch_dependence(model, pairs.lr, pairs.labels.numpy(), info.classes, pairs.hr if model.large == 'HR' else None, tuple(a.sizes), a.shuffles)
        tables.append(table.assign(model=folder.name))
        facts[folder.name] = dict(groups=int(rows.group.nunique()), training={k: info.training[k] for k in ('command', 'mode', 'solo_share', 'mutual', 'epochs', 'seed')}, weights=info.data['hash'])
        print(table.round(4).to_string(), flush=True)
    a.out.mkdir(parents=True, exist_ok=True)
    write_text(a.out/'dependence.csv', pd.concat(tables).to_csv(index=False))
    made = session_now()
    write_text(a.out/'run.json', json_text(made | dict(command=' '.join(['python', *sys.argv]), groups=next(iter(facts.values()))['groups'], models=facts)))


if __name__ == '__main__': main()
