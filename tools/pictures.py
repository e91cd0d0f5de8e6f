"""Draw the pictures of the first pages into nbs/images: `python tools/pictures.py [--demo runs/demo]`.

method.png is the map of the method; enlarged.png is made by the lines of Python that README.md shows; with
--demo, demo.png is drawn from a finished demonstration."""
import argparse
import json
import os
import re
import tempfile
from pathlib import Path

import srdiag
from facts import ROOT
from srdiag.data.images import as_float
from srdiag.evaluation.image_quality import convention
from srdiag.show import figures
from srdiag.show.method import method_map

IMAGES = ROOT/'nbs'/'images'
PART = 176, 296, 80 # of the tissue: top, left and side in pixels
SMALL = dict(dpi=110, bbox_inches='tight', pil_kwargs=dict(optimize=True))


def shown_code(): # of the first page
    return re.search(r'^```python\n(.*?)^```', (ROOT/'README.md').read_text(encoding='utf-8'), re.M | re.S)[1]


def part_of_tissue(): # float 3×80×80 in [0, 1]
    top, left, side = PART
    return as_float(srdiag.tissue()[:, top:top+side, left:left+side])


def run_shown_code(small): # C×H×W → what the code leaves in enlarged.png
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        try:
            srdiag.save_png(small, 'tile.png')
            exec(shown_code(), {})
            return [as_float(srdiag.read_image(name, channels=3)) for name in ('tile.png', 'enlarged.png')]
        finally: os.chdir(here)


def enlarged():
    hr = part_of_tissue()
    tile, large = run_shown_code(srdiag.degrade(hr, 2))
    images = {'tile.png': tile, 'bicubic': srdiag.upsample(tile, 2, clip=True), 'enlarged.png': large}
    return figures.sr_panel(images, hr, convention(2), error_maps=False, width=7)


def demonstration(folder):
    from srdiag.commands.demo import ROWS, DemoSettings, labelled_lesions
    from srdiag.commands.demo_report import first_screen, lesion_versions
    test = labelled_lesions(DemoSettings(), 2, 0)['test']
    network = srdiag.load_model(folder/'models'/'distilled')[0]
    versions = lesion_versions(as_float(test.lr), as_float(test.hr), test.labels, network)
    saved = json.loads((folder/'results.json').read_text(encoding='utf-8'))['diagnosis']
    return first_screen(*versions, {n: {row: (rows[row],) for row in ROWS} for n, rows in saved.items()})


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--demo', type=Path, help='folder of a demonstration: draw demo.png as well')
    args = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    method_map(dpi=130).savefig(IMAGES/'method.png', **SMALL | dict(dpi=130, bbox_inches=None))
    enlarged().savefig(IMAGES/'enlarged.png', **SMALL)
    if args.demo: demonstration(args.demo).savefig(IMAGES/'demo.png', **SMALL)
