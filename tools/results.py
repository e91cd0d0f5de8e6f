"The page results/README.md: the text in tools/results.md, its tables from the data files in results/."
import json
from pathlib import Path

import jinja2
import pandas as pd

TOOLS = Path(__file__).resolve().parent
RESULTS = TOOLS.parent/'results'
NETWORKS = {'mrcnet': 'MRC-Net', 'edsr_baseline': 'EDSR-baseline', 'carn': 'CARN'}
# a network, and what it is compared with
COMPARED = 'MRC-Net', ('Scratch', 'EDSR-baseline', 'Scratch, double')


def read_json(path): return json.loads(path.read_text(encoding='utf-8'))


def table(head, align, rows): # markdown
    return '\n'.join(f'| {" | ".join(row)} |' for row in [head, align, *rows])


# --- super-resolution ---------------------------------------------------------------------------------------

def network_row(r): # of summary.csv
    sd = '' if pd.isna(r.psnr_sd) or r.label == 'Bicubic' else f' ± {r.psnr_sd:.3f}'
    parameters = f'{r.parameters/1e6:.2f} M' if r.parameters else '–'
    return r.label, f'{r.psnr:.3f}{sd}', f'{r.ssim:.4f}', parameters, f'{r.latency_ms:.1f}'


def benchmark_conditions(run, summary):
    about, fixed = run['about'], run['fixed']
    side = 96 if fixed['scale'] == 2 else 128
    return (f'{about["images"]["test"]} test images of {about["groups"]["test"]} groups; '
            f'{int(summary.seeds.max())} seeds, mean ± sd; {fixed["epochs"]*fixed["steps"]} steps of '
            f'{fixed["batch_size"]} patches of {fixed["patch"]} px; {about["convention"]}. Time: one LR '
            f'image of {side} px square, two threads, {fixed["precision"]}, as trained (the table of speed '
            'below optimises and measures on another day).')


def gain_text(gains, label, against):
    r = gains[(gains.label == label) & (gains.against == against)].iloc[0]
    return (f'against {against} {r.gain:+.3f} dB (95 % over seeds {r.seed_low:+.3f} to {r.seed_high:+.3f}, '
            f'over groups {r.low:+.3f} to {r.high:+.3f})')


def benchmark(
    name: str, # folder in results/sr
    title: str, # of the first column
) -> str: # markdown
    "A benchmark of networks: table, conditions, differences"
    folder = RESULTS/'sr'/name
    run, summary, gains = (read_json(folder/'run.json'), pd.read_csv(folder/'summary.csv'),
                           pd.read_csv(folder/'gains.csv'))
    label, others = COMPARED
    said = '; '.join(gain_text(gains, label, other) for other in others)
    rows = table([title, 'PSNR in dB', 'SSIM', 'parameters', 'ms per image'],
                 ['---'] + ['---:']*4, map(network_row, summary.itertuples()))
    return '\n\n'.join([rows, benchmark_conditions(run, summary), f'{label} {said}.'])


# --- speed --------------------------------------------------------------------------------------------------

def speed_rows(inference, ways): # the ways in which networks are used → what their rows are called after
    for (scale, side, name), rows in inference.groupby(['scale', 'input', 'network'], sort=False):
        rows = rows.set_index('way')
        for way, suffix in ways.items():
            if way not in rows.index: continue
            yield (f'{NETWORKS[name]} ×{scale}, {side}{suffix}', f'{rows.median_ms["plain fp32"]:.0f}',
                   f'{rows.median_ms[way]:.0f}', f'{rows.speedup_over_plain[way]:.1f}×',
                   f'{100*rows.of_edsr_same_way[way]:.0f} %')


def speed() -> str: # markdown
    "Inference plain and as shipped, training and tiling in a sentence"
    inference, training, tiling = (pd.read_csv(RESULTS/'speed'/f'{part}.csv')
                                   for part in ('inference', 'training', 'tiling'))
    run, t = read_json(RESULTS/'speed'/'inference.json'), tiling.iloc[0]
    native = run['native_precision']
    rows = speed_rows(inference[inference.network.isin(NETWORKS)], {
        f'enlarger {native}': '', f'openvino {native}': f', OpenVINO {native}',
        'openvino int8': ', OpenVINO int8'})
    head = [f'one image, {run["threads"]} threads', 'plain fp32, ms', 'as shipped, ms', 'faster',
            'time of EDSR-baseline']
    return (table(head, ['---'] + ['---:']*4, rows)
            + f'\n\nMedians of {int(inference.rounds.max())} rounds in turns, {run["machine"]}, '
            f'{run["date"]}; plain: as written, channels first; as shipped: `enlarger`, '
            f'{run["native_precision"]}. Training steps are {training.speedup.min():.1f} to '
            f'{training.speedup.max():.1f} times as fast as the plain loop. '
            f'A {t.input} image at ×{int(t.scale)} takes {t.seconds:.0f} s and '
            f'{t.peak_growth_mb/1000:.1f} GB. Everything is in [speed](speed/README.md).')


# --- diagnosis ----------------------------------------------------------------------------------------------

def experiment(
    folder: Path, # of an enlarging network and Table V
): # setup, the network's scores, rows by label, gaps
    "What a folder of results holds"
    def of(name): return pd.read_csv(folder/'experiment'/f'{name}.csv').query('table == "table5"')
    return (read_json(folder/'experiment'/'setup'/'config.json'),
            pd.read_csv(folder/'sr.csv').set_index('name').loc['distilled'],
            of('summary').set_index('label'), of('gaps'))


def share(rows, label): # accuracy and interval of a row, empty if the experiment did not have it
    if label not in rows.index: return '', ''
    r = rows.loc[label]
    return f'{r.pooled:.3f}', f'{r.low:.3f} to {r.high:.3f}'


def gap_text(gaps, label, base):
    r = gaps[(gaps.label == label) & (gaps.base == base)].iloc[0]
    return (f'{100*r.closed:.0f} % (95 % over patients {100*r.low:.0f} to {100*r.high:.0f} %) of the gap '
            f'between {base} and HR')


def modes_text(folder, label): # the same trained networks, predicting in three ways
    way = pd.read_csv(folder/'experiment'/'modes.csv').query('table == "table5" and label == @label')
    way = way.set_index('mode').accuracy
    return (f'{way["context"]:.3f} compared with reference images (the default), {way["batch"]:.3f} in mixed '
            f'batches, and {way["solo"]:.3f} when each image is predicted alone')


def diagnosis() -> str: # markdown
    "Table V on red cells, in a short and in a longer experiment"
    folder = RESULTS/'bloodsmear'
    setup, sr, five, gaps = experiment(folder)
    longer, better, twelve, further = experiment(folder/'longer')
    f, g, about = setup['fixed'], longer['fixed'], setup['about']
    ours = next(label for label in five.index if 'Ours' in label)
    head = ['row of Table V', f'accuracy, {f["epochs"]} epochs', '95 % over patients',
            f'accuracy, {g["epochs"]} epochs', '95 % over patients']
    rows = table(head, ['---'] + ['---:']*4,
                 [(label, *share(five, label), *share(twelve, label)) for label in five.index])
    setting = (f'{sum(about["images"].values())} cells of {about["groups"]} patients; {f["folds"]} folds, '
               f'{int(five.seeds.max())} seed, batches of {f["batch_size"]}. The enlarging network has '
               f'{sr.psnr:.2f} dB on its own test patients in the shorter experiment and, trained longer as '
               f'well, {better.psnr:.2f} dB in the longer one; bicubic {sr.bicubic_psnr:.2f} dB.')
    closed = (f'{ours} closes, after {f["epochs"]} epochs, {gap_text(gaps, ours, "LR")} and '
              f'{gap_text(gaps, ours, "ILR")}; after {g["epochs"]} epochs '
              f'{gap_text(further, ours, "LR")} and {gap_text(further, ours, "ILR")}. '
              f'The same trained frameworks ({f["epochs"]} epochs) reach '
              f'{modes_text(folder, ours)}.')
    return '\n\n'.join([rows, setting, closed])


def difference(gains, table, label): # of our row against this one, from gains.csv
    ours = gains[(gains.table == table) & (gains.against == label)].iloc[-1]
    return f'{100*ours.gain:+.1f} ({100*ours.low:+.1f} to {100*ours.high:+.1f})'


def percents(r): # of summary.csv
    return f'{100*r.pooled:.1f}', f'{100*r.low:.1f} to {100*r.high:.1f}'


def few_labels() -> str: # markdown
    "Tables V, VIII and IX on red cells with few labels"
    folder = RESULTS/'labels'/'tables'
    setup = read_json(folder/'setup'/'config.json')
    f, about = setup['fixed'], setup['about']
    summary, gains, gaps = (pd.read_csv(folder/f'{name}.csv') for name in ('summary', 'gains', 'gaps'))
    closed = gaps.query('base == "ILR"').set_index('label')
    def gap(label):
        if label not in closed.index: return ''
        share, low, high = 100*closed.loc[label, ['closed', 'low', 'high']]
        return f'{share:.0f} % ({low:.0f} to {high:.0f})'
    five = [(r.label, *percents(r), gap(r.label)) for r in summary.query('table == "table5"').itertuples()]
    other = [(f'{numeral}: {r.label}', *percents(r), '' if r.key == 'LR+SR-sai-x4' else
              difference(gains, name, r.label)) for name, numeral in (('table8', 'VIII'), ('table9', 'IX'))
             for r in summary.query('table == @name').itertuples()]
    shown = summary.query('table in ("table5", "table8", "table9")').seeds
    align, seeds = ['---'] + ['---:']*3, sorted({shown.min(), shown.max()})
    said = (f'{sum(about["images"].values())} cells of {about["groups"]} patients, {f["labels_n"]} labels in '
            f'each training part, and as many to choose the epoch; {f["folds"]} folds by patient, '
            f'{" to ".join(map(str, seeds))} seeds, '
            f'{f["epochs"]*f["steps"]} steps of {f["batch_size"]} images for each row. In percent; 95 % over '
            'patients.')
    return '\n\n'.join([
        table(['row of Table V', 'accuracy', '95 % over patients', 'closed of the gap ILR to HR'], align,
              five),
        table(['row of another table', 'accuracy', '95 % over patients', 'ours is ahead by'], align, other),
        said])


def page() -> str: # markdown
    "The whole page"
    text = (TOOLS/'results.md').read_text(encoding='utf-8')
    return ('<!-- Made from tools/results.md and the data files by tools/readme.py: edit there. -->\n\n'
            + jinja2.Template(text).render(
                benchmark=benchmark, speed=speed, diagnosis=diagnosis, few_labels=few_labels) + '\n')
