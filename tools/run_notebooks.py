"""Run notebooks and fail if one of them does: `python tools/run_notebooks.py [--workers 2] [PATH ...]`.

What a notebook may do is nbdev's business (`test_nb`: flags such as slow and cuda, `#| eval: false`, the
folder it runs in). Here is only the house around it: a process of its own for each notebook, so that what
it held is given back when it ends, forked from one that has imported the slow libraries already, so that it
starts at once."""
import argparse
import io
import json
import multiprocessing
import os
import signal
import sys
import time
from multiprocessing.connection import wait
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SLOW_IMPORTS = [
    'fastai.vision.all', 'torchvision', 'nbdev.test', 'IPython', 'matplotlib_inline.backend_inline',
    'matplotlib.pyplot', 'seaborn', 'sklearn.model_selection', 'skimage.data', 'skimage.metrics',
    'scipy.stats', 'h5py', 'tifffile', 'safetensors.torch', 'jinja2']
# glibc would keep what is freed, in an arena for each thread; other systems ignore these.
ALLOCATOR = dict(MALLOC_ARENA_MAX='1', MALLOC_MMAP_THRESHOLD_='131072', MALLOC_TRIM_THRESHOLD_='131072')
TIMES = ROOT/'build'/'notebook_times.json' # of the last run: the longest goes first


def peak_gb(): # of this process so far
    try: import resource
    except ImportError: return float('nan') # Windows
    unit = 1 if sys.platform == 'darwin' else 1024
    return unit*resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1e9


def run_one(
    path: Path, # of a notebook
    root: Path, # of the project; notebooks may import what lies there
    skip: list, # flags: cells with one of them are left out
    force: list, # flags: cells with one of them run after all
    to, # connection: gets (passed, seconds, peak in GB, what was said)
):
    "What the process of one notebook does"
    from nbdev.test import test_nb
    sys.__stdout__ = sys.__stderr__ = said = io.StringIO()
    with open(os.devnull, 'w') as nowhere:
        sys.stdout = sys.stderr = nowhere # cells keep their outputs; what libraries print between them goes
        passed, seconds = test_nb(path, skip_flags=skip, force_flags=force, basepath=root)
    to.send((passed, seconds, peak_gb(), said.getvalue()))
    to.close()
    os._exit(0) # without waiting for the threads of the shell


def start(context, path, root, skip, force): # → process, connection to it, when it began
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=run_one, args=(path, root, skip, force, theirs), daemon=False)
    process.start()
    theirs.close()
    return process, ours, time.monotonic()


def result_of(process, ours, begun):
    "What the process said, or why it could not"
    try: result = ours.recv()
    except EOFError: result = None
    process.join()
    if result: return result
    code = process.exitcode
    why = f'killed by {signal.Signals(-code).name}' if code < 0 else f'ended with exit status {code}'
    said = f'The process was {why}, perhaps for want of memory.\n' if code < 0 else f'The process {why}.\n'
    return False, time.monotonic() - begun, float('nan'), said


def run_all(
    paths: list, # of notebooks, in the order in which they start
    workers: int, # notebooks at a time
    name_of, # path → name to print
    **options, # root, skip and force, see `run_one`
) -> dict: # name → (passed, seconds, peak in GB, what was said)
    "Run them, each in a process of its own, and print a line as each ends"
    context = multiprocessing.get_context('forkserver' if sys.platform == 'linux' else 'spawn')
    if sys.platform == 'linux': context.set_forkserver_preload(SLOW_IMPORTS)
    waiting, running, results = list(paths), {}, {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                path = waiting.pop(0)
                process, ours, begun = start(context, path, **options)
                running[ours] = path, process, begun
            for ours in wait(list(running)):
                path, process, begun = running.pop(ours)
                name = name_of(path)
                passed, seconds, peak, said = results[name] = result_of(process, ours, begun)
                mark = 'ok    ' if passed else 'FAILED'
                print(f'{mark} {seconds:5.0f} s  {peak:4.1f} GB  {name}', flush=True)
                if not passed: print(said, flush=True)
    finally:
        for _, process, _ in running.values(): process.kill()
    return results


def in_order(
    paths: list, # of notebooks
    name_of, # path → name
) -> list: # the longest first, so that the last ones are short
    "By the seconds of the last run; by size where there are none"
    times = json.loads(TIMES.read_text(encoding='utf-8')) if TIMES.is_file() else {}
    typical = sorted(times.values())[len(times)//2] if times else 0
    return sorted(paths, key=lambda p: (-times.get(name_of(p), typical), -p.stat().st_size))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('paths', nargs='*', type=Path, metavar='PATH',
                        help='notebooks or folders of them (default: all of nbs/)')
    parser.add_argument('--workers', type=int, default=2, help='notebooks at a time (default: 2)')
    parser.add_argument('--flags', default='', help='run cells with these flags as well: "slow cuda"')
    return parser.parse_args()


def main():
    "Exit status: 0 if every notebook ran to its end, 1 if one did not, 2 if there was none"
    args = arguments()
    os.environ |= ALLOCATOR
    os.environ.setdefault('OMP_NUM_THREADS', '1') # one thread for each of two is faster than two for one
    # torchvision's own business
    os.environ.setdefault('PYTHONWARNINGS', 'ignore:`torch.jit.script` is deprecated:FutureWarning')
    from nbdev.config import get_config
    from nbdev.doclinks import nbglob
    config = get_config(args.paths[0].resolve().parent if args.paths else ROOT)
    found = [p.resolve() for path in args.paths or [config.nbs_path] for p in nbglob(path, as_path=True)]
    def name_of(path): return path.relative_to(config.nbs_path.resolve()).as_posix()
    if not found:
        print('There are no notebooks to run.')
        return 2
    skip = config.tst_flags.split() if isinstance(config.tst_flags, str) else list(config.tst_flags)
    begun = time.monotonic()
    results = run_all(in_order(sorted(set(found)), name_of), args.workers, name_of, root=config.config_path,
                      skip=skip, force=args.flags.split())
    failed = sorted(name for name, result in results.items() if not result[0])
    if failed: print('Failed: ' + ', '.join(failed))
    elif not args.paths:
        TIMES.parent.mkdir(exist_ok=True)
        TIMES.write_text(json.dumps({name: round(r[1], 1) for name, r in results.items()}, indent=1) + '\n',
                         encoding='utf-8')
    print(f'{len(results) - len(failed)} passed, {len(failed)} failed in {time.monotonic() - begun:.0f} s')
    return bool(failed)


if __name__ == '__main__': sys.exit(main())
