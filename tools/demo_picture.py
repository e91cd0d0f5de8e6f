"""Draw the README's picture from a finished demonstration: `python tools/demo_picture.py runs/demo nbs/images/demo.png`."""
import sys
from pathlib import Path

from srdiag.show import figures
from srdiag.data.degradation import upsample
from srdiag.data.pairs import SRPairs
from srdiag.commands.demo import DemoSettings, blocks
from srdiag.evaluation.image_quality import convention
from srdiag.models.saving import load_model
from srdiag.sr.inference import super_resolve

if __name__ == '__main__':
    folder, out, scale = Path(sys.argv[1]), Path(sys.argv[2]), DemoSettings().scale
    lr, hr = SRPairs(blocks()['test'], scale)[0]
    images = {'LR': lr, 'bicubic': upsample(lr, scale, clip=True)}
    for name in ('scratch', 'recursive', 'distilled'):
        images[name] = super_resolve(load_model(folder/'models'/name)[0], lr)
    with figures.style():
        fig = figures.sr_panel(images, hr, convention(scale), width=10)
        fig.savefig(out, dpi=110)
