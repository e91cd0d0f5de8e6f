"""Copy what a benchmark found, without weights and without images of patients: `python tools/collect_benchmark.py runs/NAME results/sr/NAME`."""
import re
import shutil
import sys
from pathlib import Path

KEEP = ('README.md', '*.json', '*.csv', 'fig4.*', 'curves.png', 'runs/*/seed*/metrics.json', 'runs/*/seed*/log.csv')


def collect(source, out):
    "Copy the files of KEEP; the folder must be new or hold an earlier copy"
    if out.exists() and not (out/'run.json').is_file(): sys.exit(f'{out} is not a copy of a benchmark: choose another folder.')
    if out.exists(): shutil.rmtree(out)
    files = sorted({p for pattern in KEEP for p in source.glob(pattern) if p.is_file()})
    for p in files:
        target = out/p.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(p, target)
    text = (out/'README.md').read_text(encoding='utf-8')
    text = re.sub(r'!\[[^]]*\]\(fig5\.png\)\n\n\*[^*]*\*', '*The comparison panel of Fig. 5 shows an image of the data set and is not part of the repository; the command below draws it.*', text)
    (out/'README.md').write_text(text, encoding='utf-8')
    print(f'{len(files)} files, {sum(p.stat().st_size for p in files)/1e6:.1f} MB, in {out}')


if __name__ == '__main__': collect(Path(sys.argv[1]), Path(sys.argv[2]))
