"The benchmark: complete or not there, the same for all, refused when it changes; and what its tables say."
import json
import math
import shutil
import threading
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from srdiag.bench import benchmark, sr_runs, sr_speed
from srdiag.bench.benchmark import benchmark_sr
from srdiag.bench.entries import (BICUBIC, CARN_SCRATCH, COPIED, DOUBLE, EDSR_DOUBLE, PRESETS, SCRATCH,
                                  STUDENT, Entry, entries_of, with_teachers)
from srdiag.bench.networks import networks_of
from srdiag.bench.published import published_sr
from srdiag.bench.settings import BenchmarkShare, Sources, sr_budget
from srdiag.bench.sr_report import UNKNOWN, deviations, report_sr, sr_limits
from srdiag.bench.sr_runs import SRImages, steps_of
from srdiag.bench.sr_scores import groups_known, sr_gains, sr_results
from srdiag.bench.sr_speed import build_entry
from srdiag.bench.sr_store import SRStore
from srdiag.core.errors import DataError, ModelError
from srdiag.evaluation.gains import paired_gain, seed_interval
from srdiag.evaluation.speed import Setup, compare_latency, forward_call, peak_memory
from srdiag.models.saving import load_model
from srdiag.training.options import RunOptions

SMALL = (('channels', 4), ('blocks', 1), ('stages', 1))
TINY = (BICUBIC, Entry('Scratch', 'mrcnet', config=SMALL), Entry('MRC-Net', 'mrcnet', 'distilled', SMALL))
BUDGET = sr_budget('smoke', seeds=2)
CPU = RunOptions(device='cpu', precision='fp32')


def run(data, out, entries=TINY, budget=BUDGET, **kw):
    return benchmark_sr(data, out, 2, entries, budget, CPU, BenchmarkShare(**kw))


@pytest.fixture(scope='module')
def slides(fill, tmp_path_factory):
    "Forty tiles of 32×32 px, each a group: four of them to test"
    return fill(tmp_path_factory.mktemp('benchmark')/'tissue', 40)[0].parent


@pytest.fixture(scope='module')
def finished(slides, tmp_path_factory):
    "A complete benchmark of three tiny entries and the teacher, two seeds; tests may read it"
    out = tmp_path_factory.mktemp('benchmark')/'bench'
    run(slides, out)
    return out


def metrics_of(files, psnr): # what a run would write
    return (dict(psnr=float(np.mean(psnr)), ssim=0.9, n=len(files), seconds=1., seconds_per_step=0.5,
                 parameters=10, flops=100, input_size=96, steps=dict(own=2, with_teacher=2),
                 images=dict(file=files, group=[f'of {f}' for f in files], psnr=psnr, ssim=[0.9]*len(files))))


@pytest.fixture
def unmeasured(monkeypatch):
    "Timing takes processes and seconds, and these tests are not about it"
    monkeypatch.setattr(benchmark, 'ensure_speed', lambda *_: None)


# What a benchmark leaves behind

def test_files_of_a_benchmark(finished):
    names = {p.name for p in finished.iterdir()}
    assert ({'run.json', 'speed.json', 'results.csv', 'summary.csv', 'gains.csv', 'README.md', 'fig4.png',
             'fig4.svg', 'fig5.png', 'curves.png'} <= names)
    assert not [p for p in finished.rglob('.*')], 'temporary files are left'


def test_every_entry_has_every_seed_and_the_teacher_is_shown(finished):
    results = pd.read_csv(finished/'results.csv')
    assert list(results.label.unique()) == ['Bicubic', 'Scratch', 'Recursive', 'MRC-Net']
    assert (results.groupby('label').seed.apply(sorted).map(tuple) == (0, 1)).all()
    assert (results.set_index('label').steps_with_teacher.to_dict() == {
                'Bicubic': 0, 'Scratch': 2, 'Recursive': 2, 'MRC-Net': 4})


def test_an_experiment_takes_the_networks_of_a_benchmark_without_the_teacher(finished):
    found = networks_of(Sources(benchmark=str(finished)))
    assert [scale for _, scale in found] == [2, 2]
    assert [load_model(folder, 'sr')[0].config['steps'] for folder in found.values()] == [1, 1]


def test_summary_is_mean_and_spread_of_the_results(finished):
    results, summary = (pd.read_csv(finished/'results.csv'),
                        pd.read_csv(finished/'summary.csv').set_index('label'))
    values = results.psnr[results.label == 'Scratch']
    assert (summary.psnr['Scratch'] == pytest.approx(values.mean())
            and summary.psnr_sd['Scratch'] == pytest.approx(values.std()))
    assert (summary.psnr_sd['Bicubic'] == 0 and summary.parameters['Bicubic'] == 0
            and summary.parameters['MRC-Net'] == summary.parameters['Recursive'] > 0)
    assert summary.flops['Recursive'] > summary.flops['MRC-Net'] == summary.flops['Scratch']
    assert ((summary.latency_low_ms <= summary.latency_ms).all()
            and (summary.latency_ms <= summary.latency_high_ms).all())


def test_scores_of_images_make_the_mean_and_know_their_group(finished):
    metrics = SRStore(finished).metrics(TINY[1], 0)
    assert (np.mean(metrics['images']['psnr']) == pytest.approx(metrics['psnr'])
            and len(metrics['images']['psnr']) == metrics['n'] == 4)
    assert all(f.startswith(g + '__') for f, g in zip(metrics['images']['file'], metrics['images']['group']))


def test_report_names_convention_machine_and_limits(finished):
    text = (finished/'README.md').read_text()
    convention = SRStore(finished).head()['about']['convention']
    assert 'px border cropped' in convention and convention in text
    for words in ('cannot be compared', 'Paired differences', 'standard deviation over seeds',
                  '1 × 2 steps of 2 patches of 16×16 px', 'CPU thread', 'torch ', 'I (HistoSR)',
                  'computed in fp32', 'in fp32 as in training', 'No row has had as many steps',
                  'over test groups', 'over seeds'):
        assert words in text
    assert 'Scratch, double' not in text and UNKNOWN not in text.lower(), 'it speaks of what is not there'
    assert '28.399' in text, 'the published PSNR of bicubic at x2'


def test_gains_have_both_intervals(finished):
    gains, results = (pd.read_csv(finished/'gains.csv').set_index('label'),
                      pd.read_csv(finished/'results.csv').set_index(['label', 'seed']).psnr)
    by_seed = [results['MRC-Net', k] - results['Scratch', k] for k in (0, 1)]
    row = gains.loc['MRC-Net']
    assert row.gain == pytest.approx(np.mean(by_seed)) and row.sd == pytest.approx(np.std(by_seed, ddof=1))
    assert ((row.seed_low, row.seed_high) == pytest.approx(
                (row.gain - 12.7062*row.sd/2**0.5, row.gain + 12.7062*row.sd/2**0.5), rel=1e-4))
    assert row.low <= row.gain <= row.high
    assert f'{row.seed_low:+.3f} to {row.seed_high:+.3f}' in (finished/'README.md').read_text()


def test_store_of_before_groups_were_recorded_is_reported(finished, tmp_path):
    out = shutil.copytree(finished, tmp_path/'bench')
    head = json.loads((out/'run.json').read_text())
    assert head['about'].pop('grouped') is True
    (out/'run.json').write_text(json.dumps(head))
    assert groups_known(SRStore(out)) and UNKNOWN not in report_sr(SRStore(out)).read_text().lower()
    for path in out.glob('runs/*/seed*/metrics.json'):
        metrics = json.loads(path.read_text())
        metrics['images']['group'] = metrics['images']['file']
        path.write_text(json.dumps(metrics))
    assert not groups_known(SRStore(out)) and UNKNOWN in report_sr(SRStore(out)).read_text().lower()


def test_unknown_groups_are_said(fill, tmp_path, unmeasured, capsys):
    for k, path in enumerate(fill(tmp_path/'tiles', 20)): path.rename(path.with_name(f'tile{k}.png'))
    text = run(tmp_path/'tiles', tmp_path/'bench', TINY[:2], replace(BUDGET, seeds=1)).read_text()
    assert UNKNOWN in capsys.readouterr().out
    assert SRStore(tmp_path/'bench').head()['about']['grouped'] is False
    assert (text.lower().count(UNKNOWN) == 2 and 'other patients' not in text and ' groups to ' not in text
            and 'over test images' in text)
    assert 'With one seed there is none' in text
    gains = pd.read_csv(tmp_path/'bench'/'gains.csv')
    assert gains[['sd', 'seed_low', 'seed_high']].isna().all(axis=None) and gains.low.notna().all()


def test_model_folder_is_the_network_that_was_scored(finished, slides):
    store, entry = SRStore(finished), TINY[1]
    network, info = load_model(store.path(entry, 1)/'model', 'sr', 2)
    from srdiag.datasets.reading import read_sr_folder
    test = read_sr_folder(slides, 16, CPU).pairs('test', 2)
    assert (sr_runs.score_images(network, test).psnr.mean() == pytest.approx(
                store.metrics(entry, 1)['psnr'], abs=1e-4))
    assert network.config['channels'] == 4 and info.training['seed'] == 1


def test_panel_is_the_image_with_the_median_bicubic_psnr(finished):
    store = SRStore(finished)
    scores = pd.DataFrame(store.metrics(BICUBIC, 0)['images']).sort_values('psnr', kind='stable')
    assert store.head()['about']['panel'] == scores.file.iloc[(len(scores)-1)//2]


def test_panel_of_the_first_runs_is_kept(slides, tmp_path, unmeasured, monkeypatch):
    real, one = sr_runs.score_images, replace(BUDGET, seeds=1)
    # another order, another median
    monkeypatch.setattr(sr_runs, 'score_images',
                        lambda *a: real(*a).assign(psnr=lambda d: np.arange(len(d))[::-1] + 30.))
    run(slides, tmp_path/'bench', TINY[:1], one)
    first = (tmp_path/'bench'/'panel'/'hr.png').read_bytes()
    monkeypatch.setattr(sr_runs, 'score_images', real)
    from srdiag.datasets.reading import read_sr_folder
    images = SRImages(read_sr_folder(slides, 16, CPU), 2, one.valid_images)
    first_panel = SRStore(tmp_path/'bench').head()['about']['panel']
    assert images.about()['panel'] != first_panel, 'the test shows nothing'
    run(slides, tmp_path/'bench', TINY[:2], one)
    from srdiag.data.images import read_image
    assert (tmp_path/'bench'/'panel'/'hr.png').read_bytes() == first
    panel, truth = (read_image(p).float() for p in (SRStore(tmp_path/'bench').path(TINY[1], 0)/'panel.png',
                                                     tmp_path/'bench'/'panel'/'hr.png'))
    assert (panel-truth).abs().mean() < 20, 'the panel shows another image'


def test_same_patches_for_networks_of_any_size(slides, monkeypatch):
    seen = {}
    def train(network, train, valid, recipe, schedule, **_):
        from srdiag.sr.training import sr_dataloaders
        torch.manual_seed(schedule.seed)
        loader, _ = sr_dataloaders(train, valid, schedule.patch, 2, schedule.steps, schedule.seed)
        seen[network.config['channels'], schedule.seed] = next(iter(loader))[1]
    monkeypatch.setattr(sr_runs, 'train_sr', train)
    from srdiag.datasets.reading import read_sr_folder
    data = read_sr_folder(slides, 16, CPU)
    pairs = {k: data.pairs(k, 2) for k in ('train', 'valid')}
    for channels, seed in ((4, 0), (8, 0), (4, 1)):
        sr_runs.train_entry(Entry('x', 'mrcnet', config=(('channels', channels), ('blocks', 1))), seed,
                            pairs, BUDGET)
    assert torch.equal(seen[4, 0], seen[8, 0]) and not torch.equal(seen[4, 0], seen[4, 1])


def test_teacher_and_student_see_the_same_patches_and_double_sees_others(slides, monkeypatch):
    from srdiag.datasets.reading import read_sr_folder
    from srdiag.data.pairs import PatchSampler
    batch, seen = PatchSampler.batch, []
    def watched(self, n):
        lr, hr = batch(self, n)
        seen.append(hr.clone())
        return lr, hr
    monkeypatch.setattr(PatchSampler, 'batch', watched)
    data = read_sr_folder(slides, 16, CPU)
    pairs = {k: data.pairs(k, 2) for k in ('train', 'valid')}
    def patches(entry, teacher=None):
        seen.clear()
        network = sr_runs.train_entry(entry, 0, pairs, replace(BUDGET, epochs=2), precision='fp32',
                                      teacher=teacher)
        return network, torch.stack(seen)
    teacher, of_teacher = patches(TINY[2].teacher)
    _, of_student = patches(TINY[2], teacher)
    _, of_double = patches(Entry('Scratch, double', 'mrcnet', 'scratch2x', SMALL))
    n = len(of_teacher)
    assert n == 4 and torch.equal(of_student, of_teacher) and torch.equal(of_double[:n], of_teacher)
    assert len(of_double) == 2*n and not any(torch.equal(a, b) for a in of_double[n:] for b in of_double[:n])


# Interruptions and changes

def test_interrupted_run_is_repeated_and_nothing_else(slides, tmp_path, monkeypatch, unmeasured):
    real, calls = sr_runs.train_sr, []
    def interrupted(network, *args, **kw):
        calls.append(network)
        if len(calls) == 2: raise KeyboardInterrupt
        return real(network, *args, **kw)
    monkeypatch.setattr(sr_runs, 'train_sr', interrupted)
    with pytest.raises(KeyboardInterrupt): run(slides, tmp_path/'bench', budget=replace(BUDGET, seeds=1))
    store = SRStore(tmp_path/'bench')
    assert [store.seeds(e) for e in with_teachers(TINY)] == [[0], [0], [], []]
    assert not [p for p in (tmp_path/'bench').rglob('.seed*')], 'the interrupted run left its folder'
    assert ('| MRC-Net |' not in report_sr(store).read_text().split('## Results')[1].split('##')[0]
            and 'Not complete yet' in report_sr(store).read_text())
    kept = (store.path(TINY[1], 0)/'metrics.json').stat().st_mtime_ns
    run(slides, tmp_path/'bench', budget=replace(BUDGET, seeds=1))
    assert len(calls) == 3 and kept == (store.path(TINY[1], 0)/'metrics.json').stat().st_mtime_ns
    assert [store.seeds(e) for e in with_teachers(TINY)] == [[0]]*4
    assert 'Not complete yet' not in (tmp_path/'bench'/'README.md').read_text()


def test_processes_that_open_it_at_once_lose_nothing(tmp_path, monkeypatch):
    pytest.importorskip('fcntl') # Windows has no such lock
    from srdiag.bench import sr_store
    write, reached, entries = sr_store.write_text, threading.Event(), with_teachers(TINY)
    SRStore(tmp_path/'bench').open({}, [TINY[0]], dict(command='0'), {})
    def late(path, text): # the other one comes between our reading and our writing
        if not reached.is_set():
            reached.set()
            time.sleep(0.5)
        return write(path, text)
    monkeypatch.setattr(sr_store, 'write_text', late)
    def opened(entry, who): SRStore(tmp_path/'bench').open({}, [entry], dict(command=who), {})
    first = threading.Thread(target=opened, args=(TINY[1], 'A'))
    first.start()
    assert reached.wait(10)
    opened(TINY[2], 'B')
    first.join()
    store = SRStore(tmp_path/'bench')
    assert [s['command'] for s in store.head()['sessions']] == ['0', 'A', 'B']
    assert {*store.entries()} == {*entries}


@pytest.mark.parametrize('seed,words', [(2, '0 to 1'), (7, '0 to 1')])
def test_a_seed_that_the_budget_does_not_have_is_refused(slides, tmp_path, seed, words):
    with pytest.raises(DataError, match=f'There is no seed {seed}.*{words}'):
        run(slides, tmp_path/'bench', only_seed=seed)
    assert not (tmp_path/'bench').exists()


def test_complete_benchmark_trains_nothing(slides, finished, monkeypatch):
    for module, name in ((sr_runs, 'train_sr'), (sr_runs, 'distil'), (sr_speed, 'measure_speed')):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail('it was trained or timed again'))
    run(slides, finished)


def test_more_seeds_and_entries_go_on(slides, finished, tmp_path, unmeasured):
    out = shutil.copytree(finished, tmp_path/'bench')
    double = Entry('Scratch, double', 'mrcnet', 'scratch2x', SMALL)
    run(slides, out, (*TINY, double), replace(BUDGET, seeds=3), only=double.key, only_seed=2)
    store = SRStore(out)
    assert store.seeds(double) == [2] and store.seeds(TINY[0]) == [0, 1] and store.entries()[-1] == double
    assert store.metrics(double, 2)['steps'] == dict(own=4, with_teacher=4)
    text = (out/'README.md').read_text()
    assert ('Scratch, double, seed 0' in text and '“Scratch, double”: twice the steps' in text
            and 'No row has had as many steps' not in text)


def test_double_is_compared_with_who_had_as_many_steps(tmp_path):
    store, double, other = (SRStore(tmp_path/'bench'), Entry('Scratch, double', 'mrcnet', 'scratch2x', SMALL),
                            Entry('EDSR-baseline, double', 'edsr_baseline', 'scratch2x'))
    entries = (*with_teachers(TINY), double, other)
    store.open({}, entries, {}, {})
    for i, e in enumerate(entries):
        with store.working(e, 0) as folder:
            (folder/'metrics.json').write_text(json.dumps(metrics_of(['a', 'b'], [30 + i, 31 + i])))
    gains = sr_gains(store)
    assert {*gains.label[gains.against == double.label]} == {'MRC-Net', other.label}
    assert {*gains.label[gains.against == other.label]} == {'MRC-Net', double.label}
    assert {*gains.label[gains.against == 'Scratch']} == {e.label for e in entries} - {'Scratch'}


@pytest.mark.parametrize('changes,words', [(dict(steps=3), 'steps was 2, now it is 3'),
                                           (dict(patch=32), 'patch was 16'),
                                           (dict(recipe='published'), 'recipe was fast')])
def test_another_budget_is_refused(slides, finished, snapshot, changes, words):
    before = snapshot(finished)
    with pytest.raises(DataError, match=words): run(slides, finished, budget=replace(BUDGET, **changes))
    assert snapshot(finished) == before


def test_other_data_are_refused(fill, finished, tmp_path, snapshot):
    fill(tmp_path/'tissue', 40, start=50)
    before = snapshot(finished)
    with pytest.raises(DataError, match='data hash was'): run(tmp_path/'tissue', finished)
    assert snapshot(finished) == before


# The same images in every row

@pytest.fixture
def two_each(tile, tmp_path):
    "Ten patients with two tiles each, and options that start a benchmark of them"
    from srdiag.data.images import save_png
    (tmp_path/'pairs').mkdir()
    for k in range(20): save_png(tile(k), tmp_path/'pairs'/f'p{k//2}__{"ab"[k%2]}.png')
    return ['benchmark', 'sr', '--data', tmp_path/'pairs', '--out', tmp_path/'bench', '--budget', 'smoke',
            '--device', 'cpu', '--precision', 'fp32', '--models', 'bicubic']


@pytest.mark.parametrize('old', [False, True])
@pytest.mark.parametrize('change,naming', [(['--group-pattern', 'none'],
                                            ['split hash was', 'with other groups']),
                                           (['--size', '24'],
                                            ['size was None, now it is 24', 'the old --size'])])
def test_other_groups_or_sizes_do_not_enter_a_store(
        two_each, tmp_path, succeeds, refused, unmeasured, change, naming, old):
    succeeds(*two_each)
    if old: # of before these were recorded
        head = json.loads((tmp_path/'bench'/'run.json').read_text())
        for key in ('size', 'split hash'): del head['fixed'][key]
        (tmp_path/'bench'/'run.json').write_text(json.dumps(head))
    refused(*two_each, *change, naming=[naming[old]])
    succeeds(*two_each)


def test_runs_of_other_images_make_no_table(finished, tmp_path):
    out = shutil.copytree(finished, tmp_path/'bench')
    path = out/'runs'/'bicubic'/'seed1'/'metrics.json'
    metrics = json.loads(path.read_text())
    metrics['images']['file'] = metrics['images']['file'][::-1]
    path.write_text(json.dumps(metrics))
    for table in (sr_results, sr_gains, report_sr):
        with pytest.raises(DataError, match='bicubic with seed 1 was tested on other images'):
            table(SRStore(out))


# Images without any error

@pytest.fixture
def whites(fill, tmp_path):
    """A function: forty tiles of which some of the part `part` are white, as the split with seed 0 has them
    → the folder and the names of the white ones"""
    from srdiag.datasets.reading import read_sr_folder
    from srdiag.data.images import save_png
    def whites(part, n=None):
        folder = fill(tmp_path/'white', 40)[0].parent
        table = read_sr_folder(folder, 16, CPU).table
        names = table.file[table.split == part].tolist()[:n]
        for name in names:
            save_png(torch.full((3, 32, 32), 255, dtype=torch.uint8), folder/name, overwrite=True)
        return folder, names
    return whites


def test_blank_test_image_is_left_out_for_all_and_named(whites, tmp_path, unmeasured, monkeypatch):
    folder, (white,) = whites('test', 1)
    real = sr_runs.score_images
    def other(network, pairs): # a network that errs on the white image, and makes no error in another
        scores = real(network, pairs)
        if sum(p.numel() for p in network.parameters()):
            scores.loc[scores.file == white, 'psnr'], scores.loc[scores.file != white, 'psnr'] = (
                60., [math.inf, 31., 32.])
        return scores
    monkeypatch.setattr(sr_runs, 'score_images', other)
    text = run(folder, tmp_path/'bench', TINY[:2], replace(BUDGET, seeds=1)).read_text()
    store = SRStore(tmp_path/'bench')
    images = store.metrics(TINY[1], 0)['images']
    exact = next(f for f, p in zip(images['file'], images['psnr']) if p is None)
    bicubic = pd.DataFrame(store.metrics(BICUBIC, 0)['images']).set_index('file').psnr
    assert pd.isna(bicubic[white]) and store.head()['about']['panel'] != white
    results, gains = (pd.read_csv(tmp_path/'bench'/'results.csv').set_index('label'),
                      pd.read_csv(tmp_path/'bench'/'gains.csv'))
    assert (results.psnr['Scratch'] == 31.5
            and results.psnr['Bicubic'] == pytest.approx(bicubic.drop([white, exact]).mean())
            and (results.n == 2).all())
    assert gains.gain.notna().all() and gains.groups.item() == 2
    assert ('2 test images, ' + ', '.join(f'`{x}`' for x in sorted([white, exact])) in text
            and '; 2 images. Latency' in text)
    assert math.isfinite(float(load_model(store.path(TINY[1], 0)/'model', 'sr', 2)[1].metrics['psnr']))


@pytest.mark.parametrize('part,words', [('test', 'any test image'), ('valid', 'any validation image')])
def test_nothing_but_blank_images_is_refused_before_anything_is_written(whites, tmp_path, part, words):
    folder, _ = whites(part)
    with pytest.raises(DataError, match=words): run(folder, tmp_path/'bench')
    assert not (tmp_path/'bench').exists()


def test_blank_validation_image_does_not_choose_the_epoch(whites):
    from srdiag.datasets.reading import read_sr_folder
    folder, (white,) = whites('valid', 1)
    images = SRImages(read_sr_folder(folder, 16, CPU), 2, 9)
    assert len(images.pairs['valid']) == 3 and white not in images.pairs['valid'].names


def test_store_with_nothing_but_exact_images_makes_no_table(tmp_path):
    store = SRStore(tmp_path/'bench')
    store.open({}, [BICUBIC], {}, {})
    with store.working(BICUBIC, 0) as folder:
        (folder/'metrics.json').write_text(json.dumps(metrics_of(['a', 'b'], [30., 31.])
                                                      | dict(psnr=None, images=dict(file=['a', 'b'],
                                                                                    group=['p', 'q'],
                                                                                    psnr=[None, None],
                                                                                    ssim=[1, 1]))))
    with pytest.raises(DataError, match='each of the 2 test images'): sr_results(store)


# Trainings that fail

def test_failed_training_ends_its_run_alone(slides, tmp_path, monkeypatch, unmeasured, capsys):
    real, tried = sr_runs.train_sr, []
    def broken(network, *args, **kw):
        real(network, *args, **kw)
        tried.append(network.config['steps'])
        if network.config['steps'] > 1 and args[3].seed == 0: next(network.parameters()).data.fill_(math.nan)
    monkeypatch.setattr(sr_runs, 'train_sr', broken)
    text = run(slides, tmp_path/'bench').read_text()
    store, said = SRStore(tmp_path/'bench'), capsys.readouterr().out
    assert ([store.seeds(e) for e in with_teachers(TINY)] == [[0, 1], [0, 1], [1], [1]]
            and sum(n > 1 for n in tried) == 2)
    assert 'Recursive, seed 0, failed and is not recorded' in said and 'MRC-Net, seed 0: left out' in said
    assert ('**Not complete yet:** Recursive, seed 0; MRC-Net, seed 0.' in text
            and not [*(tmp_path/'bench').rglob('.seed*')])
    monkeypatch.setattr(sr_runs, 'train_sr', real)
    assert 'Not complete' not in run(slides, tmp_path/'bench').read_text()


# Damage

def damaged(finished, out, name, change):
    shutil.copytree(finished, out)
    path = next(out.glob(name))
    if change is None: path.unlink()
    elif isinstance(change, str): path.write_text(change)
    else:
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value))
    return path


HEAD, RUN, TIMES = 'run.json', 'runs/bicubic/seed0/metrics.json', 'speed.json'

REMEDIES = {HEAD: 'from a copy', RUN: 'remove the folder .*seed0 to have this run made again',
            TIMES: 'remove it to have the networks timed'}

@pytest.mark.parametrize('name,change,words', [
    *[(name, text, words) for name, words in REMEDIES.items()
      for text in ('', '{"psnr": 3', '{}', '[]', '3', 'null')],
    (HEAD, None, 'run.json is missing.*from a copy'),
    (HEAD, lambda d: d['entries'][1].update(training='twice'), 'names an entry that cannot be'),
    (HEAD, lambda d: d['entries'][1].pop('network'), 'network is missing'),
    (HEAD, lambda d: d['entries'].append(3), 'an item of entries is not an object'),
    (HEAD, lambda d: d.update(sessions=[]), 'no session'),
    (HEAD, lambda d: d.update(format='other 2'), 'format'),
    (HEAD, lambda d: d['about'].pop('images'), 'images is missing'),
    (HEAD, lambda d: d['entries'][1].update(config=[[1]]), 'cannot be'),
    (RUN, lambda d: d['images'].pop('psnr'), 'psnr is missing'),
    (RUN, lambda d: d['images']['ssim'].pop(), 'differ in length'),
    (RUN, lambda d: d.update(steps=3), 'steps is not an object'),
    (TIMES, lambda d: d['entries']['bicubic'].pop('low'), 'low is missing'),
    (TIMES, lambda d: d['entries'].update(bicubic=[]), 'bicubic is not an object'),
    ('runs/mrcnet-ch*/seed0/log.csv', 'nonsense', 'is not a log')])
def test_damaged_files_become_sentences(finished, slides, tmp_path, snapshot, name, change, words):
    damaged(finished, tmp_path/'bench', name, change)
    before = snapshot(tmp_path)
    with pytest.raises(DataError, match=words): report_sr(SRStore(tmp_path/'bench'))
    if not name.endswith('.csv'):
        with pytest.raises(DataError, match=words): run(slides, tmp_path/'bench')
        assert snapshot(tmp_path) == before


def test_incomplete_run_is_made_again_and_kept_aside(finished, slides, tmp_path, unmeasured):
    path = damaged(finished, tmp_path/'bench', 'runs/mrcnet-ch*[0-9]/seed0/metrics.json', None)
    (path.parent/'notes.txt').write_text('mine')
    run(slides, tmp_path/'bench')
    assert path.is_file() and not (path.parent/'notes.txt').exists()
    aside, = path.parents[1].glob('seed0-incomplete-*')
    assert (aside/'notes.txt').read_text() == 'mine' and (aside/'model'/'model.safetensors').is_file()
    assert SRStore(tmp_path/'bench').seeds(TINY[1]) == [0, 1] and not [*(tmp_path/'bench').rglob('.seed*')]


def test_folders_of_killed_processes_are_named_and_left(finished, slides, tmp_path, unmeasured, capsys):
    left = shutil.copytree(finished, tmp_path/'bench')/'runs'/'bicubic'/'.seed0-killed'
    left.mkdir()
    run(slides, tmp_path/'bench')
    assert str(left) in capsys.readouterr().out and left.is_dir()


def test_folder_of_the_user_is_not_touched(slides, tmp_path, snapshot):
    (tmp_path/'thesis.txt').write_text('years of work')
    before = snapshot(tmp_path)
    with pytest.raises(DataError, match='holds no benchmark'): run(slides, tmp_path)
    assert snapshot(tmp_path) == before


def test_folder_inside_the_data_is_refused_before_reading(slides, snapshot, monkeypatch):
    monkeypatch.setattr(benchmark, 'read_sr_folder', lambda *_: pytest.fail('it was read'))
    before = snapshot(slides)
    for out in (slides/'bench', slides, slides.parent):
        with pytest.raises(DataError, match='in one another'): run(slides, out)
    assert snapshot(slides) == before


def test_seed_beyond_the_generators_and_no_entries(slides, tmp_path):
    with pytest.raises(DataError, match='4294967295'): run(slides, tmp_path/'bench', only_seed=2**32)
    with pytest.raises(ModelError, match='at least one'): run(slides, tmp_path/'bench', ())
    assert not (tmp_path/'bench').exists()


def test_entry_of_another_label_keeps_its_row(tmp_path):
    store = SRStore(tmp_path/'bench')
    for label in ('CARN', 'ours'): store.open({}, [replace(CARN_SCRATCH, label=label)], {}, {})
    assert store.entries() == (CARN_SCRATCH,)


# Statistics

def test_paired_gain_has_the_right_sign_and_covers():
    rng = np.random.default_rng(0)
    groups, hits = np.repeat(np.arange(20), 3), 0
    for k in range(100):
        shared = rng.normal(30, 5, 60)
        a, b = shared + rng.normal(0, 0.2, 60), shared + 0.3 + np.repeat(rng.normal(0, 0.2, 20), 3)
        gain, low, high = paired_gain(a, b, groups, n=400, seed=k)
        assert low < gain < high and low > 0
        hits += low < 0.3 < high
    assert 85 <= hits <= 99, hits


def test_grouped_interval_is_wider_than_one_over_images():
    rng = np.random.default_rng(1)
    gain = np.repeat(rng.normal(0.1, 0.2, 12), 10)
    zero = np.zeros_like(gain)
    _, low, high = paired_gain(zero, gain, np.repeat(np.arange(12), 10))
    _, l, h = paired_gain(zero, gain, np.arange(120))
    assert high-low > 2*(h-l)


@pytest.mark.parametrize('n', [2, 3, 10])
def test_seed_interval_covers(n):
    rng = np.random.default_rng(n)
    intervals = [seed_interval(rng.normal(0.1, 0.3, n)) for _ in range(1000)]
    assert 930 <= sum(low < 0.1 < high for low, high in intervals) <= 970


def test_seed_interval_is_that_of_the_t_test():
    from scipy.stats import ttest_1samp
    gains = [0.12, 0.05, 0.2, -0.01]
    assert seed_interval(gains) == pytest.approx(tuple(ttest_1samp(gains, 0).confidence_interval(0.95)))
    assert seed_interval([0.2, 0.2]) == (0.2, 0.2) and all(math.isnan(x) for x in seed_interval([0.2]))


def test_published_numbers_are_those_of_the_catalogue():
    from srdiag.evaluation.cost import published_counts
    frame = published_sr()
    assert (len(published_sr(2)) == 6 and len(published_sr(4)) == 15 and frame.psnr.between(28, 39).all()
            and frame.ssim.between(0.88, 0.98).all())
    counts = {(r['name'], r['scale']): r for r in published_counts()}
    both = ([(r, counts[r.name, r.scale]) for r in frame.rename(
                 columns={'name': 'title'}).assign(name=frame.name).itertuples(index=False)
             if (r.name, r.scale) in counts and r.parameters == r.parameters])
    assert len(both) >= 6
    for r, c in both:
        assert (r.parameters == pytest.approx(c['parameters'], rel=0.02)
                and r.flops == pytest.approx(c['flops'], rel=0.01))


# Entries and presets

def test_presets_are_the_tables_of_the_paper():
    printed = published_sr()
    labels = {k: {e.label for e in v} for k, v in PRESETS.items()}
    assert {*printed.name[printed.table == 'II']} == labels['table2']
    assert ({*printed.name[printed.table == 'I']}
            | {'SRCNN', 'Scratch', 'Scratch, double', 'EDSR-baseline, double'} == labels['table1'])


def test_distilled_row_has_rivals_with_as_many_steps():
    budget, table = sr_budget('paper'), PRESETS['table1']
    assert {SCRATCH, DOUBLE, EDSR_DOUBLE} <= {*table}
    assert (steps_of(DOUBLE, budget) == steps_of(EDSR_DOUBLE, budget) == dict(
                own=800_000, with_teacher=800_000) and steps_of(STUDENT, budget)['with_teacher'] == 800_000)


def test_deviations_are_those_of_the_networks():
    said = {k: ' '.join(deviations(v)) for k, v in PRESETS.items()}
    assert ('SRCNN, EDSR-baseline, CARN' in said['table1'] and 'MWCNN' in said['table1']
            and 'DRRN' not in said['table1'])
    for words in ('output of SRRFN', 'DRRN is without batch norm', 'recursions of DRCN', 'no ensemble'):
        assert words in said['table2']
    assert 'DRCN' not in said['light'] and all('searched for none' in x for x in said.values())
    plain = ' '.join(deviations([Entry('CARN as published', 'carn', config=(('skip', False),))]))
    assert 'bicubic' not in plain and 'searched for none' in plain
    assert 'teacher' not in sr_limits([BICUBIC, CARN_SCRATCH])
    assert 'Scratch, double' not in sr_limits([SCRATCH, STUDENT])


@pytest.mark.parametrize('name', ['srcnn', 'edsr_baseline', 'carn', 'srrfn', 'mrcnet', 'drcn'])
def test_deviations_are_true_of_the_code(name):
    config = build_entry(Entry(name, name), 2).config
    assert (config.get('skip') == ('bicubic' if name == 'mrcnet' else None if name == 'drcn' else True)
            and not config.get('ensemble'))
    if name != 'drcn': # starts close to the bicubic image
        torch.manual_seed(0)
        x = torch.rand(1, 3, 16, 16)
        with torch.inference_mode():
            error = build_entry(Entry(name, name), 2).eval()(x) - build_entry(BICUBIC, 2)(x)
        assert error.abs().mean() < 0.1


@pytest.mark.parametrize('scale', [2, 4])
def test_every_entry_of_the_presets_can_be_built(scale):
    with torch.device('meta'):
        for e in {e for p in PRESETS.values() for e in with_teachers(p)}:
            assert build_entry(e, scale, 1).scale == scale


@pytest.mark.parametrize('names,words', [('carm', 'choose from bicubic, carn'), ('carn_x4', 'scale 2'),
                                         ('carn:distilled', 'Only mrcnet'),
                                         ('mrcnet:twice', 'cannot take part'), ('carn:none', 'Only bicubic'),
                                         ('bicubic:scratch2x', 'nothing to train'),
                                         ('bicubic:scratch', 'nothing to train'),
                                         ('mrcnet:none', 'Only bicubic')])
def test_unknown_entries_are_refused(names, words):
    with pytest.raises(ModelError, match=words): entries_of(2, models=f'bicubic,{names}')


def test_entries_by_name():
    assert (entries_of(2, models='carn_x2, mrcnet,mrcnet:distilled,bicubic') == (
                    CARN_SCRATCH, SCRATCH, STUDENT, BICUBIC))
    assert entries_of(4, models='mrcnet:recursion,mrcnet-recursion,mrcnet:copy') == (STUDENT, STUDENT, COPIED)
    assert entries_of(4, 'table2') == PRESETS['table2'] and entries_of(2, models='bicubic:none') == (BICUBIC,)
    ours = replace(CARN_SCRATCH, label='ours')
    assert with_teachers([CARN_SCRATCH, ours, CARN_SCRATCH]) == (CARN_SCRATCH,), 'one folder, one entry'


# The command line

def test_command_line_runs_and_reports(slides, tmp_path, succeeds, unmeasured):
    text = succeeds('benchmark', 'sr', '--data', slides, '--out', tmp_path/'bench', '--models',
                    'bicubic,srcnn', '--budget', 'smoke', '--steps', 1, '--device', 'cpu', '--precision',
                    'fp32')
    assert 'SRCNN, seed 0: 1 steps' in text and (tmp_path/'bench'/'README.md').is_file()
    (tmp_path/'bench'/'README.md').unlink()
    succeeds('benchmark', 'sr', '--out', tmp_path/'bench', '--report-only')
    assert 'SRCNN' in (tmp_path/'bench'/'README.md').read_text()
    assert json.loads((tmp_path/'bench'/'run.json').read_text())['fixed']['steps'] == 1


@pytest.mark.parametrize('argv,naming', [(['--models', 'carm'], ['carm', 'edsr_baseline']),
                                         (['--models', 'carn_x4'], ['carn_x4', '--scale 4']),
                                         (['--models', 'bicubic', '--only', 'carn'], ['carn', 'bicubic']),
                                         (['--patch', '64'], ['smaller than the 64 pixels']),
                                         (['--patch', '15'], ['multiple of 2']),
                                         (['--patch', '2'], ['at least 4']),
                                         (['--precision', 'fp16'], ['fp16 needs a CUDA GPU']),
                                         (['--models', ','], ["',' names no network"]),
                                         (['--models', 'carn:none,carn'], ['carn:none', 'Only bicubic']),
                                         (['--models', 'bicubic:scratch2x'], ['nothing to train'])])
def test_mistakes_become_sentences(slides, tmp_path, refused, argv, naming):
    refused('benchmark', 'sr', '--data', slides, '--out', tmp_path/'bench', '--budget', 'smoke', '--device',
            'cpu', *argv, naming=naming)


def test_budget_of_zero_too_few_groups_and_no_data(slides, tile, tmp_path, refused, run_cli):
    code, _, err = run_cli('benchmark', 'sr', '--data', slides, '--out', tmp_path/'bench', '--steps', 0)
    assert code == 2 and 'whole number of 1 or more' in err
    refused('benchmark', 'sr', '--out', tmp_path/'bench', naming=['--data'])
    refused('benchmark', 'sr', '--out', tmp_path/'bench', '--report-only', naming=['holds no benchmark'])
    from srdiag.data.images import save_png
    (tmp_path/'two').mkdir()
    for k in range(6): save_png(tile(k), tmp_path/'two'/f'slide{k%2}__{k}.png')
    refused('benchmark', 'sr', '--data', tmp_path/'two', '--out', tmp_path/'bench', '--budget', 'smoke',
            '--models', 'bicubic', '--device', 'cpu', naming=['2 groups'])


# Speed

def test_latency_counts_and_takes_turns():
    seen = []
    times = compare_latency({name: lambda name=name: seen.append(name) for name in 'abc'}, n=5, warmup=2)
    assert ''.join(seen) == 'abc'*7
    assert all(t.n == 5 and 0 <= t.low <= t.median <= t.high for t in times.values())


def test_forward_call_follows_its_setup():
    seen = []
    class Look(torch.nn.Conv2d):
        def forward(self, x):
            seen.append((self.training, torch.is_grad_enabled(),
                         x.is_contiguous(memory_format=torch.channels_last), x.shape))
            return super().forward(x)
    network = Look(3, 8, 3).train()
    assert forward_call(network, (2, 3, 9, 7), Setup(precision='bf16'))().dtype == torch.bfloat16
    assert seen == [(False, False, True, (2, 3, 9, 7))]


@pytest.mark.parametrize('precision,words', [('fp16', 'fp16 needs a CUDA GPU'), ('int8', "not 'int8'")])
def test_setup_refuses_a_precision_the_device_lacks(precision, words):
    with pytest.raises(ValueError, match=words): Setup(precision=precision)


def test_peak_memory_is_that_of_the_feature_map():
    conv = lambda width: peak_memory('torch.nn:Conv2d',
                                     dict(in_channels=3, out_channels=width, kernel_size=1), (1, 3, 512, 512),
                                     Setup(threads=1))
    wide, narrow = conv(64), conv(16)
    if wide is None: pytest.skip('this system does not tell the peak of a process')
    assert wide-narrow == pytest.approx(4*48*512**2, rel=0.1)
