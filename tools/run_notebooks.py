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
TYPICAL = 10, 0.5 # seconds and GB of a notebook that nobody has run yet
KNOWN = ROOT/'build'/'notebooks.json' # name → seconds and GB, as measured when all were run here
SHIPPED = ROOT/'tools'/'notebooks.json' # the same, measured on two cores, for a fresh copy


def peak_gb(): # of this process so far, and of the largest one that it started and that has ended
    try: import resource
    except ImportError: return 0. # Windows
    unit = 1 if sys.platform == 'darwin' else 1024
    return unit*sum(resource.getrusage(who).ru_maxrss
                    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))/1e9


def run_one(
    path: Path, # of a notebook
    root: Path, # of the project; notebooks may import what lies there
    skip: list, # flags: cells with one of them are left out
    force: list, # flags: cells with one of them run after all
    to, # connection: gets (passed, seconds, GB beyond what all notebooks share, what was said)
):
    "What the process of one notebook does"
    from nbdev.test import test_nb
    # the notebook's own workers start as they would in Jupyter, not as this process was started
    multiprocessing.set_start_method('fork' if sys.platform == 'linux' else 'spawn', force=True)
    before = peak_gb()
    sys.__stdout__ = sys.__stderr__ = said = io.StringIO()
    with open(os.devnull, 'w') as nowhere:
        sys.stdout = sys.stderr = nowhere # cells keep their outputs; what libraries print between them goes
        passed, seconds = test_nb(path, skip_flags=skip, force_flags=force, basepath=root)
    to.send((passed, seconds, peak_gb() - before, said.getvalue()))
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


def next_of(waiting, running, known, most):
    "The first that fits into memory beside those that run; None: wait until one of them ends"
    free = most - sum(known.get(name, TYPICAL)[1] for name in running)
    fitting = [name for name in waiting if known.get(name, TYPICAL)[1] <= free]
    return fitting[0] if fitting else None if running else waiting[0]


def run_all(
    paths: dict, # name → path of a notebook, in the order in which they start
    workers: int, # notebooks at a time
    most: float, # GB that they may take together, as far as that is known
    known: dict, # name → seconds and GB of an earlier run
    **options, # root, skip and force, see `run_one`
) -> dict: # name → (passed, seconds, GB, what was said)
    "Run them, each in a process of its own, and print a line as each ends"
    context = multiprocessing.get_context('forkserver' if sys.platform == 'linux' else 'spawn')
    if sys.platform == 'linux': context.set_forkserver_preload(SLOW_IMPORTS)
    waiting, running, results = list(paths), {}, {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                name = next_of(waiting, [name for name, *_ in running.values()], known, most)
                if name is None: break
                waiting.remove(name)
                process, ours, begun = start(context, paths[name], **options)
                running[ours] = name, process, begun
            for ours in wait(list(running)):
                name, process, begun = running.pop(ours)
                passed, seconds, peak, said = results[name] = result_of(process, ours, begun)
                mark = 'ok    ' if passed else 'FAILED'
                print(f'{mark} {seconds:5.0f} s  {peak:4.1f} GB  {name}', flush=True)
                if not passed: print(said, flush=True)
    finally:
        for _, process, _ in running.values(): process.kill()
    return results


def in_order(
    paths: dict, # name → path of a notebook
    known: dict, # name → seconds and GB
) -> dict: # the longest first, so that the last ones are short
    "By the seconds of the last run; by size where there are none"
    def key(item): return -known.get(item[0], TYPICAL)[0], -item[1].stat().st_size
    return dict(sorted(paths.items(), key=key))


def remember(known, results):
    "What the next run is to know"
    KNOWN.parent.mkdir(exist_ok=True)
    new = {name: (round(r[1], 1), round(r[2], 2)) for name, r in results.items() if r[0]}
    KNOWN.write_text(json.dumps(known | new, indent=1) + '\n', encoding='utf-8')


def arguments():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('paths', nargs='*', type=Path, metavar='PATH',
                        help='notebooks or folders of them (default: all of nbs/)')
    parser.add_argument('--workers', type=int, default=2, help='notebooks at a time (default: 2)')
    parser.add_argument('--gb', type=float, help='memory that notebooks may take together, beyond the 0.6 GB '
                        'of the libraries that they share, as far as earlier runs know it (default: 1.2 a '
                        'worker)')
    parser.add_argument('--flags', default='', help='run cells with these flags as well: "slow cuda"')
    args = parser.parse_args()
    return args if args.gb else argparse.Namespace(**vars(args) | dict(gb=1.2*args.workers))


def main():
    "Exit status: 0 if every notebook ran to its end, 1 if one did not, 2 if there was none"
    args = arguments()
    os.environ.setdefault('MALLOC_ARENA_MAX', '1') # glibc keeps what is freed, for each thread apart
    os.environ.setdefault('OMP_NUM_THREADS', '1') # one thread for each of two is faster than two for one
    # torchvision's own business
    os.environ.setdefault('PYTHONWARNINGS', 'ignore:`torch.jit.script` is deprecated:FutureWarning')
    from nbdev.config import get_config
    from nbdev.doclinks import nbglob
    config = get_config(args.paths[0].resolve().parent if args.paths else ROOT)
    found = [p.resolve() for path in args.paths or [config.nbs_path] for p in nbglob(path, as_path=True)]
    home = config.nbs_path.resolve()
    paths = {path.relative_to(home).as_posix(): path for path in sorted(set(found))}
    if not paths:
        print('There are no notebooks to run.')
        return 2
    skip = config.tst_flags.split() if isinstance(config.tst_flags, str) else list(config.tst_flags)
    known = {}
    for file in (SHIPPED, KNOWN):
        if file.is_file(): known |= json.loads(file.read_text(encoding='utf-8'))
    begun = time.monotonic()
    results = run_all(in_order(paths, known), args.workers, args.gb, known, root=config.config_path,
                      skip=skip, force=args.flags.split())
    failed = sorted(name for name, result in results.items() if not result[0])
    if failed: print('Failed: ' + ', '.join(failed))
    if not args.paths: remember(known, results)
    print(f'{len(results) - len(failed)} passed, {len(failed)} failed in {time.monotonic() - begun:.0f} s')
    return bool(failed)


if __name__ == '__main__': sys.exit(main())
