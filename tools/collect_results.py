"""Collect the metrics of model folders into one CSV and one JSON: `python tools/collect_results.py
results/NAME runs/NAME/*`."""
import json
import sys
from pathlib import Path

import pandas as pd


def row(folder):
    "What one model folder says about itself, flat"
    config = json.loads((folder/'config.json').read_text())
    info = config['info']
    keep = ({k: info['training'].get(k)
             for k in ('command', 'epochs', 'seed', 'seconds', 'precision', 'mutual', 'mode', 'solo_share')})
    data = {f'data_{k}': info['data'].get(k) for k in ('name', 'hash', 'train', 'valid', 'test', 'groups')}
    return dict(name=folder.name, kind=config['kind'], **info['metrics'], **data, **keep, **info['made'])


if __name__ == '__main__':
    out, folders = Path(sys.argv[1]), [Path(p) for p in sys.argv[2:] if (Path(p)/'config.json').exists()]
    out.mkdir(parents=True, exist_ok=True)
    rows = [row(f) for f in folders]
    (out/'results.json').write_text(json.dumps(rows, indent=2) + '\n')
    for kind in ('sr', 'diagnosis'):
        frame = pd.DataFrame([r for r in rows if r['kind'] == kind]).dropna(axis=1, how='all')
        if len(frame): frame.to_csv(out/f'{kind}.csv', index=False)
