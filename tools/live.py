"""What the live page of the site computes with: `python tools/live.py FOLDER` fills a folder with ONNX
Runtime Web, the networks of the package as ONNX, and samples.

It runs beside Sphinx. Where npm or the extra `onnx` is missing, `live.json` says so, and the page keeps its
static picture. Graphs are kept in build/live until the weights or the networks change."""
import argparse
import hashlib
import json
import logging
import shutil
import subprocess
import sys
import tarfile
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
from facts import ROOT

RUNTIME, VERSION = 'onnxruntime-web', '1.30.0'
INTEGRITY = ('sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4C'
             'XAfKYQ==')
PARTS = 'ort.wasm.bundle.min.mjs', 'ort-wasm-simd-threaded.wasm' # all that the page needs of 145 MB
NETWORKS = {'histology_x2': 2, 'endoscopy_x4': 4} # name: scale
CELLS = 'redcells_x4' # a model that diagnoses
PAGE = 'live.js', 'worker.js', 'live.css' # in docs/live
CACHE = ROOT/'build'/'live'


class Missing(Exception):
    "Why the page shows a picture only, and what would change that"


# --- the runtime ------------------------------------------------------------------------------------------

def npm_pack(folder):
    "The package as npm brings it: a path; Missing says why there is none"
    npm = shutil.which('npm')
    if not npm: raise Missing('npm was not there: install Node.js and build the site again')
    done = subprocess.run([npm, 'pack', f'{RUNTIME}@{VERSION}', '--json', '--pack-destination', folder],
                          capture_output=True, text=True, encoding='utf-8')
    if done.returncode:
        raise Missing(f'npm could not bring {RUNTIME} {VERSION}: build the site again with a network')
    if json.loads(done.stdout)[0]['integrity'] != INTEGRITY:
        raise Missing(f'npm brought another {RUNTIME} {VERSION} than the one that was tested: look at it, '
                      'and then change its checksum in tools/live.py')
    return next(Path(folder).glob('*.tgz'))


def runtime(
    to: Path, # folder
    cache: Path = CACHE, # folder: npm is asked once
) -> None:
    "ONNX Runtime Web, two files of it"
    kept = cache/f'{RUNTIME}-{VERSION}'
    if not all((kept/name).is_file() for name in PARTS):
        kept.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder, tarfile.open(npm_pack(folder)) as tar:
            for name in PARTS:
                part = kept/f'{name}.part'
                part.write_bytes(tar.extractfile(f'package/dist/{name}').read())
                part.replace(kept/name)
    for name in PARTS: shutil.copy(kept/name, to)


# --- the graphs -------------------------------------------------------------------------------------------

def fingerprint(name):
    "Of everything that a graph is made from"
    import torch
    from srdiag.core.weights import list_pretrained, pretrained_folder
    made_from = [Path(__file__), *(p for room in ('core', 'data', 'sr', 'diagnosis', 'models')
                                   for p in sorted((ROOT/'srdiag'/room).glob('*.py')))]
    if name in list_pretrained(): made_from.append(pretrained_folder(name)/'model.safetensors')
    text = torch.__version__ + ''.join(hashlib.sha256(p.read_bytes()).hexdigest() for p in made_from)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def bicubic(scale):
    "The bicubic enlargement of the library as a network"
    from torch import nn

    from srdiag.data.degradation import upsample

    class Bicubic(nn.Module):
        def forward(self, lr): return upsample(lr, scale)
    return Bicubic()


def write_graph(name, path):
    "A model of the package, or bicubic enlargement, as ONNX for images of any size"
    import torch
    from srdiag.core.graphs import onnx_model
    from srdiag.models.export import export_model
    if name in (*NETWORKS, CELLS): return export_model(name, path)
    made = onnx_model(bicubic(int(name[-1])), torch.rand(2, 3, 12, 10), names=('image', 'enlarged'))
    path.write_bytes(made.SerializeToString())


def graphs(
    to: Path, # folder
    cache: Path = CACHE, # folder
) -> None:
    "The networks of the package, and bicubic enlargement, as ONNX"
    if any(find_spec(name) is None for name in ('onnx', 'onnxscript')):
        raise Missing('the extra onnx was not installed: pip install "srdiag[onnx]", and build it again')
    warnings.simplefilter('ignore')
    logging.disable(logging.WARNING)
    cache.mkdir(parents=True, exist_ok=True)
    for name in (*NETWORKS, *(f'bicubic_x{scale}' for scale in NETWORKS.values()), CELLS):
        kept = cache/f'{name}-{fingerprint(name)}.onnx'
        if not kept.is_file():
            with tempfile.TemporaryDirectory(dir=cache) as folder:
                write_graph(name, Path(folder)/'graph.onnx')
                (Path(folder)/'graph.onnx').replace(kept)
        shutil.copy(kept, to/f'{name}.onnx')


def facts_of_cells(to): # what the page says about the answers of the model
    from srdiag.core.weights import pretrained_folder, read_config
    from srdiag.models.export import read_graph
    notes, info = read_graph(to/f'{CELLS}.onnx'), read_config(pretrained_folder(CELLS))['info']
    return dict(classes=notes.classes, **notes.thresholds, ece=info['metrics']['ece_calibrated'],
                images=info['metrics']['n'])


# --- samples ----------------------------------------------------------------------------------------------

def cell(dark): # uint8 3×16×16: drawn, no photograph: a disc on black, with a dark spot or without
    import torch

    from srdiag.data.degradation import degrade
    from srdiag.data.images import to_uint8
    y, x = torch.meshgrid(*[torch.arange(64.) - 31.5]*2, indexing='ij')
    def disc(top, left, radius): return (radius - ((y - top)**2 + (x - left)**2).sqrt() + 0.5).clamp(0, 1)
    def colour(*rgb): return torch.tensor(rgb)[:, None, None]
    body = disc(0, 0, 29)*colour(0.80, 0.66, 0.68)*(1 - 0.1*disc(0, 0, 10))
    spot = 0.8*disc(-8, 9, 7) if dark else 0*y
    return to_uint8(degrade(body*(1 - spot) + spot*colour(0.42, 0.22, 0.50), 4))


def samples(): # name → uint8 C×h×w; none was seen in training
    import torch
    from skimage import data

    from srdiag.data.degradation import degrade
    from srdiag.data.images import as_float, to_uint8
    from srdiag.data.samples import tissue
    def small(x, scale): return to_uint8(degrade(as_float(x), scale))
    retina = torch.from_numpy(data.retina()[340:916, 340:1012]).permute(2, 0, 1)
    return {'cell': cell(False), 'cell_dark': cell(True), 'retina': small(retina, 6),
            'tissue': small(tissue()[:, 128:384, 192:512], 2),
            'microaneurysms': torch.from_numpy(data.microaneurysms())[None].contiguous()}


def fill(
    to: Path, # folder
    cache: Path = CACHE, # folder
) -> str: # empty, or why the page computes nothing
    "Everything that lies beside the page"
    from srdiag.data.images import save_png
    to.mkdir(parents=True, exist_ok=True)
    for name in PAGE: shutil.copy(ROOT/'docs'/'live'/name, to)
    for name, image in samples().items(): save_png(image, to/f'{name}.png', overwrite=True)
    facts = dict(runtime=f'{RUNTIME} {VERSION}', missing='', cells=None)
    try:
        runtime(to, cache)
        graphs(to, cache)
        facts['cells'] = facts_of_cells(to)
    except Missing as e: facts['missing'] = str(e)
    (to/'live.json').write_text(json.dumps(facts), encoding='utf-8')
    return facts['missing']


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path, help='folder of the files')
    parser.add_argument('--cache', type=Path, default=CACHE,
                        help='folder of what is kept (default: build/live)')
    args = parser.parse_args()
    why = fill(args.folder, args.cache)
    if why: print(f'The live page shows a picture only: {why}.', file=sys.stderr)


if __name__ == '__main__': main()
