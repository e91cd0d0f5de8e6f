"""Put a trained model folder into the package: `python tools/ship.py runs/histology_student histology_x2
teacher=runs/histology_teacher`, or, with the experiment that tells how it does with fewer labels,
`python tools/ship.py runs/redcells redcells_x4 super_resolution=runs/redcells_sr
labels=runs/labels_redcells`; with a path for a name, into that folder: `python tools/ship.py
runs/bloodsmear/distilled results/labels/bloodsmear_x4 teacher=runs/bloodsmear/teacher`.

The split stays as it is; title, notes, licence and what is known of the data are filled in from SOURCES, and
paths in the recorded commands are shortened. Weights of a diagnosis model are written with 16 bits."""
import sys
from pathlib import Path

import pandas as pd
from collect_runs import short

from srdiag.core.weights import read_config
from srdiag.models.saving import load_model, save_model

MEASURES = 'psnr', 'ssim', 'accuracy'
ABOUT = 'source', 'labelled_by', 'people' # of SOURCES, for the data of a card
PACKAGE = Path(__file__).resolve().parent.parent/'srdiag'/'pretrained'
SOURCES = {
    'histology_x2': dict(
        title='MRC-Net x2 for H&E histology, distilled',
        source='oral epithelium, 400x and 100x (Rahman et al., A histopathological image repository of '
               'normal epithelium of oral cavity and oral squamous cell carcinoma, 2020, CC BY 4.0); '
               'osteosarcoma, 10x (Osteosarcoma data from UT Southwestern/UT Dallas, TCIA, doi '
               '10.7937/tcia.2019.bvhjhdas, CC BY 3.0)', license='mit',
        notes='Enlarges stained tissue twice. It has learned what bicubic reduction takes away, and the JPEG '
              'artefacts of a part of its images with it; it has not seen other stains, scanners or blur.'),
    'redcells_x4': dict(
        title='Malaria in single red cells of 16 px, LR+SR',
        source='NIH/NLM malaria cell images (Rajaraman et al., PeerJ 2018), published for free use by a US '
               'government library; 64x64 px by 2x2 means, reduced to 16x16 px (MATLAB bicubic, 8 bits)',
        labelled_by='one expert reader of slides, on the whole smears (Mahidol-Oxford Tropical Medicine '
                    'Research Unit, Bangkok)',
        people='of 150 patients with P. falciparum and 50 healthy people (Chittagong Medical College '
               'Hospital, Bangladesh), the 87 in these parts', license='mit',
        notes='Says whether a single, cut-out red blood cell of 16 px (thin smear, Giemsa stain, 64 px '
              'reduced four times) is parasitized. It shows how the method works. It is not for '
              'diagnosis, not for whole fields or thick smears, and it has seen one laboratory, one '
              'microscope and phone. Colour alone tells many of these cells apart. It predicts each '
              'image by itself, and holds no image of a patient.'),
    'bloodsmear_x4': dict(
        title='MRC-Net x4 for single red cells, distilled',
        source='NIH/NLM malaria cell images (Rajaraman et al., PeerJ 2018), published for free use by a US '
               'government library; 1326 unlabelled cells of 24 patients, 50x50 grey, cut to 48x48 px',
        license='mit',
        notes='Enlarges grey images of single, cut-out red blood cells (thin smear) four times. The '
              'experiments with few labels begin with it; no patient of theirs is among its own.'),
    'redcells32_x4': dict(
        title='MRC-Net x4 for single red cells in colour, distilled',
        source='NIH/NLM malaria cell images (Rajaraman et al., PeerJ 2018), published for free use by a US '
               'government library; 1535 unlabelled cells of 24 patients, 64x64 px by 2x2 means, reduced to '
               '32x32 px',
        license='mit',
        notes='Enlarges colour images of single, cut-out red blood cells (thin smear) from 8 to 32 px. The '
              'experiment on cells in colour begins with it; no patient of it is among its own.'),
    'endoscopy_x4': dict(
        title='MRC-Net x4 for colonoscopy frames, distilled',
        source='Kvasir-SEG (Jha et al., 2020; research and education use; the frames are also in '
               'HyperKvasir, CC BY 4.0), frames squashed to 352x352 and saved as JPEG of quality 75',
        license='for research and education',
        notes='Enlarges colonoscopy frames four times. The truth it was trained on has JPEG artefacts; what '
              'it adds is plausible, not observed. Weights for research and education, as the images are.'),
}


def with_fewer_labels(folder, row='LR+SR'): # what the experiment measured for this row → for the metrics
    table = pd.read_csv(Path(folder)/'accuracy.csv')
    best = table[table.row == row].sort_values('steps').groupby('labels', sort=False).tail(1)
    return {f'cross_validated_{r.labels}_labels': f'{r.accuracy:.3f} ({r.low:.3f} to {r.high:.3f}, '
            f'{r.steps} steps, patients apart)' for r in best.itertuples()}


def ship(folder, name, others):
    kind = read_config(folder)['kind']
    network, info = load_model(folder, kind)
    place = Path(name) if '/' in name else PACKAGE/name
    facts = SOURCES[place.name]
    if 'labels' in others: info.metrics |= with_fewer_labels(others.pop('labels'))
    info.title, info.notes, info.license = facts['title'], facts['notes'], facts['license']
    info.data |= {key: facts[key] for key in ABOUT if key in facts}
    info.training['command'] = short(info.training['command'])
    if 'teacher' in info.training: info.training['teacher'] = short(info.training['teacher'])
    for key, other in others.items():
        _, known = load_model(other)
        info.training[key] = dict(command=short(known.training['command']),
                                  seconds=known.training.get('seconds'),
                                  **{k: known.metrics[k] for k in MEASURES if k in known.metrics})
    save_model(place, network, info, overwrite=True, half=kind == 'diagnosis',
               files={'split.csv': (Path(folder)/'split.csv').read_text(encoding='utf-8')})
    print(place, info.metrics)


if __name__ == '__main__': ship(Path(sys.argv[1]), sys.argv[2], dict(a.split('=', 1) for a in sys.argv[3:]))
