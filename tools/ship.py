"""Put a trained model folder into the package: `python tools/ship.py runs/histology_student histology_x2
teacher=runs/histology_teacher`.

The weights and the split stay as they are; title, notes, data source and licence are filled in from
SOURCES, and paths in the recorded commands are shortened."""
import re
import sys
from pathlib import Path

from srdiag.models.saving import load_model, save_model

PACKAGE = Path(__file__).resolve().parent.parent/'srdiag'/'pretrained'
SOURCES = {
    'histology_x2': dict(
        title='MRC-Net x2 for H&E histology, distilled',
        source='oral epithelium, 400x and 100x (Rahman et al., A histopathological image repository of '
               'normal epithelium of oral cavity and oral squamous cell carcinoma, 2020, CC BY 4.0); '
               'osteosarcoma, 10x (Osteosarcoma data from UT Southwestern/UT Dallas, TCIA, doi '
               '10.7937/tcia.2019.bvhjhdas, CC BY 3.0)',
        notes='Enlarges stained tissue twice. It has learned what bicubic reduction takes away, and the JPEG '
              'artefacts of a part of its images with it; it has not seen other stains, scanners or blur.'),
    'endoscopy_x4': dict(
        title='MRC-Net x4 for colonoscopy frames, distilled',
        source='Kvasir-SEG (Jha et al., 2020; research and education use; the frames are also in '
               'HyperKvasir, CC BY 4.0), frames squashed to 352x352 and saved as JPEG of quality 75',
        notes='Enlarges colonoscopy frames four times. The truth it was trained on has JPEG artefacts; what '
              'it adds is plausible, not observed. Weights for research and education, as the images are.'),
}


def short(command):
    return re.sub(r'\S*/(runs|ship|DATA|data)/',
                  lambda m: {'ship': 'runs', 'data': 'DATA'}.get(m[1], m[1]) + '/', command)


def ship(folder, name, others):
    network, info = load_model(folder, 'sr')
    facts = SOURCES[name]
    info.title, info.notes = facts['title'], facts['notes']
    info.data |= dict(source=facts['source'])
    info.training['command'] = short(info.training['command'])
    if 'teacher' in info.training: info.training['teacher'] = short(info.training['teacher'])
    for key, other in others.items():
        _, known = load_model(other)
        info.training[key] = dict(command=short(known.training['command']),
                                  seconds=known.training.get('seconds'),
                                  **{k: known.metrics[k] for k in ('psnr', 'ssim')})
    save_model(PACKAGE/name, network, info, overwrite=True,
               files={'split.csv': (Path(folder)/'split.csv').read_text(encoding='utf-8')})
    print(PACKAGE/name, info.metrics)


if __name__ == '__main__': ship(Path(sys.argv[1]), sys.argv[2], dict(a.split('=', 1) for a in sys.argv[3:]))
