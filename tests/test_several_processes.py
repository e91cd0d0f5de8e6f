"Several processes compute what one would, and a process that dies does not leave the others waiting."
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import free_port

from srdiag.bench.loop import Job, run_all
from srdiag.core.errors import DataError
from srdiag.core.precision import pick_device
from srdiag.data.phantom import write_lesion_folder
from srdiag.models.saving import load_model
from srdiag.training import processes

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason='PyTorch without processes')

# In double precision: in single precision rounding errors, which depend on the order of summation, grow in
# the steps of Adam as they do between two machines.
TRAININGS = '''
import sys
import torch
import srdiag.data.pairs as pairs
from srdiag.diagnosis.losses import DiagnosisLoss
from srdiag.diagnosis.network import SREnhancedDiagnosis
from srdiag.diagnosis.training import train_diagnosis
from srdiag.sr.distillation import distil
from srdiag.sr.mrcnet import MRCNet
from srdiag.sr.settings import Distillation, Schedule
from srdiag.sr.training import train_sr
from srdiag.training.processes import as_one, is_first
from srdiag.training.recipes import Recipe

torch.set_default_dtype(torch.float64)
torch.Tensor.float = torch.Tensor.double
pairs.as_float = lambda x: x.double()/255 if x.dtype == torch.uint8 else x.double()
torch.manual_seed(0)
images, labels = [*torch.randint(256, (39, 3, 32, 32), dtype=torch.uint8)], torch.tensor([0, 1]*19 + [0])

def framework(loss, **config):
    train = pairs.LabelledPairs(images[:30], labels[:30], 2, 'hr', pairs.PairAugment(1))
    valid = pairs.LabelledPairs(images[30:], labels[30:], 2, 'hr')
    torch.manual_seed(2)
    model = SREnhancedDiagnosis(2, 2, 'LR+SR', width=8, **config)
    return model, train_diagnosis(model, train, valid, Recipe(1e-3, 6), 1, loss=loss, precision='fp32')

def super_resolution(**how):
    found = pairs.SRPairs(images[:5], 2)
    torch.manual_seed(3)
    teacher = MRCNet(2, steps=2)
    train_sr(teacher, found, found, Recipe(1e-3, 3), Schedule(1, None, 16), True, precision='fp32')
    return distil(teacher, found, found, Recipe(1e-3, 3), Schedule(2, None, 16), Distillation(**how),
                  precision='fp32')

with as_one():
    done = dict(published=framework(DiagnosisLoss(), mutual='printed'),
                both=framework(DiagnosisLoss(norm='mean_square'), mutual='l2', both_ways=True),
                alternate=framework(DiagnosisLoss(), mutual='mean', solo_share=0.5), sr=super_resolution(),
                hints=super_resolution(by='hints_regressor'))
    kept = {k: (m.state_dict(), learn.recorder.metric_names, learn.recorder.values[-1])
            for k, (m, learn) in done.items()}
    if is_first(): torch.save(kept, sys.argv[1])
'''


def environment(rank=None, size=None, port=None):
    env = os.environ | dict(OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT), MPLBACKEND='agg')
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_PORT'): env.pop(name, None)
    if sys.platform == 'linux': env['GLOO_SOCKET_IFNAME'] = 'lo'
    if rank is None: return env
    return env | dict(RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))


def start(argv, env=None):
    return subprocess.Popen([sys.executable, *map(str, argv)], env=env or environment(), text=True, cwd=ROOT,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    "The same trainings by one process, and by two: number → name → weights, metric names, last values"
    folder, port = tmp_path_factory.mktemp('trained'), free_port()
    running = [start(['-c', TRAININGS, folder/'1.pt'])]
    running += [start(['-c', TRAININGS, folder/'2.pt'], environment(rank, 2, port)) for rank in (0, 1)]
    said = [p.communicate(timeout=280) for p in running]
    assert not any(p.returncode for p in running), [err[-1500:] for _, err in said]
    assert not said[2][0], 'the second process speaks'
    return {n: torch.load(folder/f'{n}.pt', weights_only=False) for n in (1, 2)}


@pytest.mark.parametrize('name', ['published', 'both', 'alternate', 'sr', 'hints'])
def test_two_processes_take_the_steps_of_one(trained, name):
    # five steps of the framework with all its losses; distillation with a last batch of two images
    (one, _, _), (two, _, _) = trained[1][name], trained[2][name]
    for key, weights in one.items():
        torch.testing.assert_close(two[key], weights, rtol=0, atol=1e-4, msg=lambda m, k=key: f'{k}: {m}')


@pytest.mark.parametrize('name', ['published', 'both', 'sr'])
def test_two_processes_measure_what_one_measures(trained, name):
    # nine validation images in batches of six, or all at once: each of them counts once
    (_, names, one), (_, _, two) = trained[1][name], trained[2][name]
    for metric, a, b in zip(names[1:], one, two):
        if metric == 'train_loss' or a is None: assert (a is None) == (b is None) # the first is a smooth mean
        else: assert b == pytest.approx(a, abs=1e-4, rel=1e-4, nan_ok=True), metric


# --- the commands, started by torchrun ---------------------------------------------------------------------

@pytest.fixture(scope='module')
def lesions(tmp_path_factory): return write_lesion_folder(tmp_path_factory.mktemp('several')/'lesions', 3)


def training(data, out, inputs='LR+ILR', epochs=1, n=2):
    return ['-m', 'torch.distributed.run', '--nproc-per-node', n, '--master-port', free_port(), '-m',
            'srdiag.commands.cli', 'train-diagnosis', '--data', data, '--out', out, '--inputs', inputs,
            '--epochs', epochs, '--scale', 2, '--width', 8, '--batch-size', 8, '--device', 'cpu',
            '--precision', 'fp32']


def test_torchrun_makes_a_model_that_loads_and_predicts(lesions, tmp_path, succeeds):
    running = start(training(lesions, tmp_path/'model'))
    out, err = running.communicate(timeout=200)
    assert running.returncode == 0, err[-2000:]
    assert out.count('Saved to') == 3 and out.count('accuracy') # both branches, and the framework: each once
    assert (tmp_path/'model/log.csv').is_file()
    assert load_model(tmp_path/'model')[1].classes == ['disc', 'ring']
    succeeds('predict', '--model', tmp_path/'model', '--out', tmp_path/'found', '--no-images', '--device',
             'cpu', next(lesions.glob('disc/*.png')))
    assert (tmp_path/'found/predictions.csv').read_text(encoding='utf-8').count('\n') == 2


@pytest.mark.skipif(not Path('/proc/self/environ').exists(), reason='looks for a process in /proc')
def test_a_process_that_dies_ends_the_others_with_a_sentence(lesions, tmp_path):
    running = start(training(lesions, tmp_path/'model', 'LR', epochs=500))
    second = None
    for _ in range(1000): # until the second process is there and training has begun
        time.sleep(0.1)
        second = second or next(children(running.pid, b'RANK=1'), None)
        if second and (tmp_path/'model/config.json').exists(): break
        assert running.poll() is None, running.stderr.read()[-2000:]
    os.kill(second, signal.SIGKILL)
    began = time.monotonic()
    _, err = running.communicate(timeout=60)
    assert time.monotonic() - began < 30 and running.returncode
    said = [line for line in err.splitlines() if line.startswith('srdiag train-diagnosis: Process 0 of 2')]
    assert said and re.search('has lost another one|was told to end', said[0]), err[-2000:]
    assert load_model(tmp_path/'model'), 'the best model so far is kept'


def children(parent, with_variable): # processes below torchrun that have it in their environment
    for p in Path('/proc').iterdir():
        if not p.name.isdecimal(): continue
        try:
            status, env = (p/'stat').read_text(), (p/'environ').read_bytes().split(b'\0')
        except OSError: continue
        if int(status.rpartition(')')[2].split()[1]) == parent and with_variable in env: yield int(p.name)


def test_commands_that_share_nothing_say_so(run_cli, monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '2')
    code, _, err = run_cli('cost')
    assert code == 2 and 'start it once' in err


# --- many runs, dealt out ----------------------------------------------------------------------------------

class Rows(Job):
    def __init__(self): self.made = []
    def numbers(self, share): return [(seed,) for seed in range(3)]
    def name(self, row, *numbers): return f'{row.key} {numbers}'


def test_each_run_of_an_experiment_is_made_by_one_process(monkeypatch):
    made = []
    def do_run(job, store, row, *numbers): return not made.append((row.key, *numbers))
    monkeypatch.setattr('srdiag.bench.loop.do_run', do_run)
    rows = [SimpleNamespace(key=k) for k in 'abc']
    shares = []
    for rank in range(4):
        monkeypatch.setattr('srdiag.bench.loop.my_place', lambda rank=rank: (rank, 4))
        assert run_all(Rows(), None, rows, None) == len(made)
        shares.append(made.copy())
        made.clear()
    assert sorted(sum(shares, [])) == sorted((k, n) for k in 'abc' for n in range(3))
    assert [len(s) for s in shares] == [3, 2, 2, 2]


def test_each_process_of_a_machine_takes_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(torch.cuda, 'set_device', lambda device: None)
    assert pick_device('auto') == torch.device('cuda')
    monkeypatch.setenv('LOCAL_RANK', '1')
    assert pick_device('auto') == torch.device('cuda:1') and pick_device('cpu').type == 'cpu'
    monkeypatch.setenv('LOCAL_RANK', '2')
    with pytest.raises(DataError, match='as many processes as there are GPUs'): pick_device('cuda')


def test_alone_nothing_is_divided():
    x = torch.rand(3, 2)
    with processes.as_one(), processes.dividing():
        assert processes.gathered(x) is x and not processes.is_divided() and processes.is_first()
