"""Copy what a benchmark or an experiment found, without weights and without images of patients: `python
tools/collect_runs.py runs/NAME results/sr/NAME`."""
import re
import shutil
import sys
from pathlib import Path

# What says that a folder is one, and what is copied.
BENCHMARK = (Path('run.json'), ('README.md', '*.json', '*.csv', 'fig4.*', 'curves.png',
                                'runs/*/seed*/metrics.json', 'runs/*/seed*/log.csv'))
EXPERIMENT = (Path('setup/config.json'), ('README.md', '*.csv', 'cost.json', 'table*.md', 'table*.png',
                                          'fig6.*', 'fig7.md', 'setup/config.json', 'sessions/*.json',
                                          'networks/*/network.json', 'networks/*/scores.json',
                                          'runs/*/seed*/fold*/metrics.json'))
HIDDEN = (r'(?:!\[[^]]*\]\((?:fig5|fig7)[^)]*\)\n+)+(?:\*[^*]*\*\n+)?',
          '*This figure shows images of the data set and is not part of the repository; the command that '
          'made these results draws it.*\n\n')


def collect(source, out):
    "Copy the files; the folder must be new or hold an earlier copy"
    kinds = [(mark, keep) for mark, keep in (BENCHMARK, EXPERIMENT) if (source/mark).is_file()]
    if not kinds: sys.exit(f'{source} is neither a benchmark nor an experiment of srdiag.')
    mark, keep = kinds[0]
    if out.exists() and not (out/mark).is_file():
        sys.exit(f'{out} is not a copy of one: choose another folder.')
    if out.exists(): shutil.rmtree(out)
    files = sorted({p for pattern in keep for p in source.glob(pattern) if p.is_file()})
    for p in files:
        target = out/p.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(p, target)
    for page in out.glob('*.md'):
        page.write_text(re.sub(*HIDDEN, page.read_text(encoding='utf-8')), encoding='utf-8')
    print(f'{len(files)} files, {sum(p.stat().st_size for p in files)/1e6:.1f} MB, in {out}')


if __name__ == '__main__': collect(Path(sys.argv[1]), Path(sys.argv[2]))
