"""Copy what a benchmark or an experiment found, without weights and without images of patients: `python
tools/collect_runs.py runs/NAME results/sr/NAME`."""
import json
import re
import shutil
import sys
from pathlib import Path

from srdiag.core.errors import DataError
from srdiag.core.files import replacing_folder

# What says that a folder is one, and what is copied.
BENCHMARK = (Path('run.json'), ('README.md', '*.json', '*.csv', 'fig4.*', 'curves.png', 'students.png',
                                'runs/*/seed*/metrics.json', 'runs/*/seed*/log.csv'))
EXPERIMENT = (Path('setup/config.json'), ('README.md', '*.csv', 'cost.json', 'table*.md', 'table*.png',
                                          'fig6.*', 'fig7.md', 'setup/*', 'sessions/*.json',
                                          'networks/*/network.json', 'networks/*/scores.json',
                                          'runs/*/seed*/fold*/metrics.json'))
LABELS = (Path('setup/config.json'), ('README.md', '*.csv', '*.png', 'setup/*', 'network.json',
                                      'foreign.json', 'unlabelled.json', 'sessions/*.json',
                                      'pretrained/*/painting.json',
                                      'runs/*/seed*/fold*/metrics.json'))
HIDDEN = (r'(?:!\[[^]]*\]\((?:fig5|fig7)[^)]*\)\n+)+(?:\*[^*]*\*\n+)?',
          '*This figure shows images of the data set and is not part of the repository; the command that '
          'made these results draws it.*\n\n')


def kind_of(source):
    "What the folder is, or the end"
    kinds = [kind for kind in (BENCHMARK, EXPERIMENT) if (source/kind[0]).is_file()]
    if not kinds: sys.exit(f'{source} is neither a benchmark nor an experiment of srdiag.')
    head = json.loads((source/kinds[0][0]).read_text(encoding='utf-8'))
    return LABELS if str(head.get('format')).startswith('srdiag labels') else kinds[0]


def labels_answers(source): # yields what a run is, its images, step → right answers
    from srdiag.bench.labels_store import LabelsStore, right_answers
    store = LabelsStore(source)
    head = store.head()
    steps = head['fixed']['steps']
    for arm in store.arms():
        for seed, fold in store.complete(arm):
            p = store.predictions(arm, seed, fold)
            yield (dict(arm=arm.key, seed=seed, fold=fold), p.file,
                   dict(zip(steps, right_answers(p, steps, head['about']['classes']))))


def table_answers(source): # the same of an experiment of tables, with the mode in the place of the steps
    from srdiag.bench.answers import Answers
    from srdiag.bench.diagnosis_report import tables_of
    from srdiag.bench.diagnosis_store import DiagnosisStore
    store = DiagnosisStore(source)
    rows = {row.key: row for rows in tables_of(store).values() for row in rows}
    answers = Answers(store, rows.values())
    for row in answers.rows:
        for seed, fold in store.complete(row):
            modes = {mode: answers.of(row, [(seed, fold)], mode)
                     for mode in store.metrics(row, seed, fold)['modes']}
            yield (dict(row=row.key, seed=seed, fold=fold), next(iter(modes.values())).file,
                   {mode: t.right.to_numpy(bool) for mode, t in modes.items()})


def write_right(source, path, found, key):
    """Every single answer, in a line for each run and number of steps or mode: 1 where it is right, the
    images in the order in which setup/split.csv has those of the fold"""
    import pandas as pd
    lines = []
    files = pd.read_csv(source/'setup'/'split.csv', dtype=str, keep_default_na=False).file
    for about, images, by in found(source):
        at = pd.Series(range(len(images)), images)[files[files.isin(images)]]
        lines += [about | {key: k, 'right': ''.join('01'[int(x)] for x in right[at])}
                  for k, right in by.items()]
    pd.DataFrame(lines).to_csv(path, index=False, compression=dict(method='gzip', mtime=0))


def short(command): # paths of the machine → DATA/... and runs/...
    return re.sub(r'\S*/(runs|ship|DATA|data)/',
                  lambda m: {'ship': 'runs', 'data': 'DATA'}.get(m[1], m[1]) + '/', command)


def shortened(text): # the same in every recorded command of a file
    return re.sub(r'^(\s*"command":|`srdiag ).*$', lambda m: short(m[0]), text, flags=re.M)


COPIED = 'metrics.json', 'log.csv' # all that a copy holds of runs


def check_out(source, out, mark):
    "The end, if the place of the copy is no place for one, or holds what is there only once"
    a, b = source.resolve(), out.resolve()
    if a.is_relative_to(b) or b.is_relative_to(a):
        sys.exit(f'{source} and {out} are one folder, or one lies in the other: choose another for the copy.')
    if not out.exists(): return
    if not (out/mark).is_file(): sys.exit(f'{out} is not a copy of one: choose another folder.')
    more = sorted({*(p for p in (out/'runs').rglob('*') if not p.is_dir() and p.name not in COPIED),
                   *out.rglob('*.safetensors')})
    if more:
        sys.exit(f'{out} holds {more[0].relative_to(out)}, which no copy has, so it looks like an original: '
                 'nothing was changed. The folder to copy comes first, the place of the copy second.')


def fill(new, source, keep):
    "Copy the files; those that were copied"
    files = sorted({p for pattern in keep for p in source.glob(pattern) if p.is_file()})
    for p in files:
        target = new/p.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        if p.suffix in ('.json', '.md'): target.write_text(shortened(p.read_text(encoding='utf-8')), 'utf-8')
        else: shutil.copyfile(p, target)
    if keep is LABELS[1]: write_right(source, new/'right.csv.gz', labels_answers, 'steps')
    if keep is EXPERIMENT[1]: write_right(source, new/'right.csv.gz', table_answers, 'mode')
    for page in new.glob('*.md'):
        page.write_text(re.sub(*HIDDEN, page.read_text(encoding='utf-8')), encoding='utf-8')
    return files


def collect(source, out):
    "Copy the files; the folder must be new or hold an earlier copy, which stays until the new one is whole"
    mark, keep = kind_of(source)
    check_out(source, out, mark)
    try:
        with replacing_folder(out) as new: files = fill(new, source, keep)
    except DataError as e: sys.exit(str(e))
    print(f'{len(files)} files, {sum(p.stat().st_size for p in files)/1e6:.1f} MB, in {out}')


if __name__ == '__main__': collect(Path(sys.argv[1]), Path(sys.argv[2]))
