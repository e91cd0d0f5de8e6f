"Super-resolution as section IV-A prints it, by one switch; and each choice that it leaves, as an option"
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from srdiag.commands.cli import parse
from srdiag.commands.train_sr import distill_command, train_sr_command
from srdiag.core.errors import DataError, ModelError
from srdiag.data.images import save_png
from srdiag.data.pairs import PatchSampler, SRPairs
from srdiag.data.samples import tissue
from srdiag.models.saving import load_model
from srdiag.sr.distillation import distil, distillation_loss_of
from srdiag.sr.mrcnet import MRCNet
from srdiag.sr.pre_upsampling import DRCN
from srdiag.sr.release import load_release, name_in_release
from srdiag.sr.settings import Distillation, DistilSettings, Schedule, SRSettings, as_published
from srdiag.sr.training import train_sr
from srdiag.training.options import RunOptions
from srdiag.training.recipes import SR_RECIPES, Recipe

WHERE = ['--data', 'd', '--out', 'o']
QUICK = RunOptions(epochs=1, device='cpu', precision='fp32')


@pytest.fixture(scope='module')
def pieces(tmp_path_factory):
    folder = tmp_path_factory.mktemp('tissue')
    for k in range(12): save_png(tissue()[:, :64, 40 * k : 40 * k + 40], folder / f'slide{k}__a.png')
    return folder


def slim(steps=1):
    torch.manual_seed(0)
    return MRCNet(2, steps=steps, channels=8, blocks=1, stages=1)


def pairs(n=7, side=32):
    return SRPairs([tissue()[:, 32 * k : 32 * k + side, :side] for k in range(n)], 2)


# --- the switch -------------------------------------------------------------------------------------------

def test_the_recipe_is_that_of_section_4a():
    assert SR_RECIPES['published'] == Recipe(1e-4, 4, 'halving', 100, 1e-5)


def test_as_published_from_the_command_line_and_from_python():
    settings, options = parse(['train-sr', *WHERE, '--as-published']).decided()
    assert (settings, options) == as_published(SRSettings()) and options.recipe == 'published'
    assert settings.steps is None and not settings.supervise_steps
    settings, options = parse(['distill', *WHERE, '--teacher', 't', '--as-published']).decided()
    assert (settings, options) == as_published(DistilSettings()) and settings.two_schedules
    gammas = settings.gamma_cell, settings.gamma_hidden, settings.gamma_f_lr, settings.gamma_f_sr
    assert gammas == (2, 2, 2, 0.5) and settings.weight == 1 and options.recipe == 'published'


def test_as_published_leaves_what_the_paper_leaves_open():
    words = '--as-published --epochs 300 --patch 128 --recursions 3'.split()
    settings, options = parse(['train-sr', *WHERE, *words]).decided()
    assert (options.epochs, settings.patch, settings.recursions) == (300, 128, 3)


@pytest.mark.parametrize('argv, name', [
    (['train-sr', *WHERE, '--supervise-steps'], 'supervise_steps'),
    (['distill', *WHERE, '--teacher', 't', '--gamma-cell', '1'], 'gamma_cell'),
    (['distill', *WHERE, '--teacher', 't', '--weight', '2'], 'weight')])
def test_what_contradicts_the_paper_is_a_sentence(argv, name):
    with pytest.raises(DataError, match=f'As published, {name} is .*leave one of the two out'):
        parse([*argv, '--as-published']).decided()


def test_without_the_switch_nothing_changes():
    made = parse(['train-sr', *WHERE])
    assert made.decided() == (SRSettings(), RunOptions())


# --- epochs that are passes -------------------------------------------------------------------------------

def test_a_pass_has_one_patch_of_each_image():
    sides = (16, 16, 160, 24, 16)
    grey = [torch.full((1, side, side), k, dtype=torch.uint8) for k, side in enumerate(sides)]
    sampler = PatchSampler(SRPairs(grey, 2), 16, None)
    orders = []
    for _ in range(4):
        drawn = torch.cat([sampler.batch(2)[1], sampler.batch(3)[1]])[:, 0, 0, 0]
        orders.append((drawn * 255).round().int().tolist())
    assert len(sampler) == 5 and all(sorted(order) == [0, 1, 2, 3, 4] for order in orders)
    assert len({tuple(order) for order in orders}) > 1, 'each pass has an order of its own'


def test_the_rate_is_halved_after_so_many_passes(tmp_path):
    recipe = replace(SR_RECIPES['published'], halve_every=2)
    train_sr(slim(), pairs(7), pairs(1), recipe, Schedule(6, None, 16), folder=tmp_path, precision='fp32')
    steps = pd.read_csv(tmp_path / 'steps.csv')
    assert len(steps) == 6 * 2, 'seven images in batches of four: two steps per pass'
    assert np.allclose(steps.lr, np.repeat([1e-4, 5e-5, 2.5e-5], 4))


@pytest.mark.parametrize('recipe, steps, expected', [
    ('published', None, 3), ('published', 5, 5), ('fast', None, 100), ('fast', 3, 3)])
def test_steps_of_an_epoch_on_the_command_line(recipe, steps, expected, pieces, capsys, monkeypatch):
    from srdiag.commands.train_sr import _course_of
    from srdiag.datasets.reading import read_sr_folder
    options = replace(QUICK, recipe=recipe)
    found = read_sr_folder(pieces, 32, options)
    train, _, used, schedule = _course_of(found, 2, SRSettings(scale=2, patch=32, steps=steps), options)
    passes = recipe == 'published' and steps is None
    assert schedule.steps == (None if passes else expected) and used == SR_RECIPES[recipe]
    assert ('An epoch is a pass over' in capsys.readouterr().out) == passes
    if passes: assert -(-len(train) // 4) == expected


def test_train_sr_as_published_records_what_it_did(pieces, tmp_path):
    settings, options = as_published(SRSettings(scale=2, patch=32, blocks=1), QUICK)
    train_sr_command(pieces, tmp_path / 'model', settings, options)
    training = load_model(tmp_path / 'model', 'sr')[1].training
    assert training['recipe'] == repr(SR_RECIPES['published']) and training['steps'] == 'a pass'
    assert len(pd.read_csv(tmp_path / 'model' / 'steps.csv')) == 3


# --- the form of MRC-Net ----------------------------------------------------------------------------------

def test_stages_blocks_peepholes_and_skip_are_options(pieces, tmp_path):
    words = ('--scale 2 --stages 2 --blocks 1 --no-peepholes --skip nearest --recursions 2 --steps 1 '
             '--patch 32 --epochs 1 --device cpu').split()
    parse(['train-sr', '--data', str(pieces), '--out', str(tmp_path / 'model'), *words]).run()
    config = load_model(tmp_path / 'model', 'sr')[0].config
    assert {k: config[k] for k in ('stages', 'blocks', 'peepholes', 'skip', 'steps')} == dict(
        stages=2, blocks=1, peepholes=False, skip='nearest', steps=2)


def test_the_form_of_mrcnet_is_no_matter_of_other_networks(tmp_path):
    with pytest.raises(ModelError, match='--blocks, --skip: these are settings of mrcnet, .* for carn'):
        train_sr_command(tmp_path, tmp_path / 'out', SRSettings('carn', blocks=2, skip='nearest'))


# --- Algorithm 1 ------------------------------------------------------------------------------------------

def test_the_weights_of_eq_4_are_options():
    words = ('--gamma-cell 0 --gamma-hidden 1 --gamma-f-lr 3 --gamma-f-sr 4 --weight 0.5 '
             '--two-schedules').split()
    made = parse(['distill', *WHERE, '--teacher', 't', *words]).distillation
    assert distillation_loss_of(made).gamma == dict(cell=0, hidden=1, f_lr=3, f_sr=4)
    assert made.weight == 0.5 and made.two_schedules


def test_the_weights_reach_the_loss(tmp_path):
    how = Distillation(1.0, weight=0.5, gamma_cell=0.0, gamma_hidden=4.0)
    distil(slim(2), pairs(2), pairs(1), Recipe(1e-12, 2), Schedule(1, 2, 16), how, folder=tmp_path,
           precision='fp32')
    steps = pd.read_csv(tmp_path / 'steps.csv')
    assert (steps.distil_cell == 0).all() and (steps.distil_hidden > 0).all()
    assert np.allclose(steps.loss, steps.mae + 0.5 * steps.filter(like='distil_').sum(axis=1), rtol=1e-4)


def rates(tmp_path, name, recipe, epochs, how):
    (tmp_path / name).mkdir()
    distil(slim(2), pairs(4), pairs(1), recipe, Schedule(epochs, 4, 16), how, folder=tmp_path / name,
           precision='fp32')
    return pd.read_csv(tmp_path / name / 'steps.csv').lr.to_numpy()


def test_two_schedules_begin_anew(tmp_path):
    halving = Recipe(1e-4, 2, 'halving', 2)
    one = rates(tmp_path, 'one', halving, 6, Distillation(0.5))
    two = rates(tmp_path, 'two', halving, 6, Distillation(0.5, two_schedules=True))
    assert np.allclose(one, np.repeat([1, 1, 0.5, 0.5, 0.25, 0.25], 4) * 1e-4)
    assert np.allclose(two, np.repeat([1, 1, 0.5, 1, 1, 0.5], 4) * 1e-4)


@pytest.mark.parametrize('phase1', [0.0, 1.0])
def test_one_loop_has_one_schedule(phase1, tmp_path):
    one, two = (rates(tmp_path, str(two), Recipe(1e-3, 2), 3, Distillation(phase1, two_schedules=two))
                for two in (False, True))
    assert np.array_equal(one, two)


def test_distill_as_published_runs(pieces, tmp_path):
    recursive = SRSettings(scale=2, recursions=2, steps=1, patch=32, blocks=1)
    train_sr_command(pieces, tmp_path / 'teacher', recursive, QUICK)
    how = as_published(DistilSettings(patch=32), replace(QUICK, epochs=2))
    distill_command(pieces, tmp_path / 'teacher', tmp_path / 'student', *how)
    network, known = load_model(tmp_path / 'student', 'sr')
    assert network.config['steps'] == 1 and network.config['blocks'] == 1
    assert known.training['two_schedules'] is True and known.training['steps'] == 'a pass'


# --- DRCN -------------------------------------------------------------------------------------------------

def test_drcn_weighs_whole_images_as_published():
    torch.manual_seed(0)
    old = DRCN(2, channels=8, recursions=3, ensemble=True)
    new = DRCN(2, channels=8, recursions=3, ensemble=True, weigh_skip=True)
    new.load_state_dict(old.state_dict())
    lr = torch.rand(2, 3, 9, 11)
    with torch.no_grad():
        torch.testing.assert_close(new(lr), old(lr))
        for network in (old, new): network.weights.copy_(torch.tensor([0.2, 0.3, 0.9]))
        images = new.forward_steps(lr)
        torch.testing.assert_close(new(lr), sum(w * image for w, image in zip(new.weights, images)))
        assert not torch.allclose(new(lr), old(lr))


# --- weights of the authors' release ----------------------------------------------------------------------
# Its names and shapes, read by functions of PyTorch alone: nothing here knows our network

def shapes():
    "name → shape of each tensor of the released MRC-Net"
    made = {}
    def conv(name, n_in, n_out, k, bias=True):
        made[f'{name}.weight'] = (n_out, n_in, k, k)
        if bias: made[f'{name}.bias'] = (n_out,)
    def slope(name, n): made[f'{name}.weight'] = (n,)
    def block(name, n):
        for k in (1, 2):
            conv(f'{name}.conv{k}', n, n, 3, bias=False)
            slope(f'{name}.relu{k}', n)
    def rcf(name):
        for k, (n_in, n_out) in {0: (32, 16), 2: (16, 32)}.items():
            made[f'{name}.se_backone.fc.{k}.weight'] = (n_out, n_in)
            made[f'{name}.se_backone.fc.{k}.bias'] = (n_out,)
            conv(f'{name}.channel_add_conv.{k}', n_in, n_out, 1)
        conv(f'{name}.conv_mask', 32, 1, 1)
    for name, n_in, n_out, k in (
            ('conv1', 3, 64, 3), ('conv2', 64, 32, 3), ('conv_concate1', 64, 32, 1), ('ps1_conv', 32, 128, 3),
            ('ps2_conv', 32, 128, 3), ('conv_sr2', 32, 32, 1), ('conv_final', 32, 3, 3)):
        conv(name, n_in, n_out, k)
    for name in ('conv_concate2', 'conv_i.0', 'conv_f.0', 'conv_g.0', 'conv_o.0', 'conv_inter_ps1',
                 'conv_inter_ps2', 'conv_sr1', 'mrc.transition1.1.0.0'):
        conv(name, 32, 32, 3)
    for name in ('relu1', 'relu2', 'relu_concate1', 'relu_concate2', 'relu_inter_ps1', 'relu_inter_ps2',
                 'relu_sr1', 'relu_sr2', 'mrc.transition1.1.0.1'):
        slope(name, 64 if name == 'relu1' else 32)
    block('resbk1', 64)
    for name in ('resbk2', 'resbk_concate', 'resbk_inter_ps'): block(name, 32)
    for k in (2, 3, 4):
        stage = f'mrc.stage{k}.0'
        for path in (0, 1):
            for i in range(4): block(f'{stage}.branches.{path}.{i}', 32)
            rcf(f'{stage}.rcf{path + 1}')
        conv(f'{stage}.fuse_layers.0.1.0', 32, 32, 1)
        if k < 4: conv(f'{stage}.fuse_layers.1.0.0.0', 32, 32, 3)
    return made


@pytest.fixture(scope='module')
def released():
    torch.manual_seed(0)
    def spread(shape): return 0.25 if len(shape) < 2 else torch.Size(shape[1:]).numel() ** -0.5
    return {name: torch.randn(shape) * spread(shape) for name, shape in shapes().items()}


def run_released(state, image, steps):
    "The image that the released network makes; what it computes and drops is left out"
    def conv(name, x):
        weight = state[f'{name}.weight']
        return F.conv2d(x, weight, state.get(f'{name}.bias'), padding=weight.shape[-1] // 2)
    def act(name, x): return F.prelu(x, state[f'{name}.weight'])
    def block(name, x):
        inner = act(f'{name}.relu1', conv(f'{name}.conv1', x))
        return act(f'{name}.relu2', x + conv(f'{name}.conv2', inner))
    def linear(name, x): return F.linear(x, state[f'{name}.weight'], state[f'{name}.bias'])
    def stage(name, x):
        for i in range(4): x = block(f'{name}.branches.0.{i}', x)
        gate = linear(f'{name}.rcf1.se_backone.fc.0', x.mean((2, 3))).relu()
        gate = linear(f'{name}.rcf1.se_backone.fc.2', gate)
        return F.leaky_relu(x * gate.sigmoid()[..., None, None], 0.1)
    x = block('resbk1', act('relu1', conv('conv1', image)))
    x = block('resbk2', act('relu2', conv('conv2', x)))
    y = c = torch.zeros_like(x)
    for _ in range(steps):
        z = block('resbk_concate', act('relu_concate1', conv('conv_concate1', torch.cat([x, y], 1))))
        z = act('relu_concate2', conv('conv_concate2', z))
        i, f, g, o = (conv(f'conv_{k}.0', z) for k in 'ifgo')
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = y = o.sigmoid() * c.tanh()
        for k in (2, 3, 4): y = stage(f'mrc.stage{k}.0', y)
        y = y + h
    up = act('relu_inter_ps1', conv('conv_inter_ps1', F.pixel_shuffle(conv('ps1_conv', y), 2)))
    up = act('relu_inter_ps2', conv('conv_inter_ps2', block('resbk_inter_ps', up)))
    up = F.pixel_shuffle(conv('ps2_conv', up), 2)
    made = act('relu_sr2', conv('conv_sr2', act('relu_sr1', conv('conv_sr1', up))))
    return conv('conv_final', made) + F.interpolate(image, scale_factor=4, mode='nearest')


def test_the_layout_has_the_published_count():
    assert sum(torch.Size(shape).numel() for shape in shapes().values()) == 789_769


@pytest.mark.parametrize('steps', [1, 3])
@pytest.mark.parametrize('size', [(16, 16), (19, 30)])
def test_released_weights_give_the_released_image(steps, size, released):
    image = torch.rand(2, 3, *size)
    with torch.no_grad():
        ours, theirs = load_release(released, steps)(image), run_released(released, image, steps)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert (theirs - F.interpolate(image, scale_factor=4)).abs().mean() > 0.01, 'the weights do something'


def test_one_step_and_three_are_different(released):
    image = torch.rand(1, 3, 16, 16)
    with torch.no_grad(): one, three = (load_release(released, steps)(image) for steps in (1, 3))
    assert not torch.allclose(one, three)


def test_prefixes_half_precision_and_unused_tensors(released):
    image = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        expected = load_release(released)(image)
        parallel = {f'module.{name}': t for name, t in released.items()}
        assert torch.equal(load_release(parallel)(image), expected)
        framework = {f'module.sr_net.{name}': t for name, t in released.items()}
        framework['module.dual_classifiers.conv1.weight'] = torch.ones(1)
        assert torch.equal(load_release(framework)(image), expected)
        used = {name: t for name, t in released.items() if '.stage4.0.rcf2.' not in name}
        assert torch.equal(load_release(used)(image), expected)
        half = load_release({name: t.half() for name, t in released.items()})
        assert half(image).dtype == torch.float32 and torch.allclose(half(image), expected, atol=0.05)


def test_every_name_has_one_counterpart(released):
    network = MRCNet(4)
    plain = [name for name in network.state_dict() if not any(
        part in name for part in ('.gates.', '.from_', 'peepholes', 'gate.1.', 'value.2.'))]
    assert len({name_in_release(name) for name in plain}) == len(plain)
    assert all(name_in_release(name) in released for name in plain)


@pytest.mark.parametrize('change, sentence', [
    (lambda state: {}, 'conv1.weight is missing'),
    (lambda state: {k: t for k, t in state.items() if k != 'conv_g.0.bias'}, 'conv_g.0.bias is missing'),
    (lambda state: state | {'fc.weight': torch.zeros(1)}, 'fc.weight is not known'),
    (lambda state: state | {'conv2.weight': torch.zeros(16, 64, 3, 3)}, 'have the shape'),
    (lambda state: nn.Linear(2, 2).state_dict(), r'Give the state_dict of a released network')])
def test_other_weights_are_refused(change, sentence, released):
    with pytest.raises(ModelError, match=sentence): load_release(change(released))


def test_a_loaded_network_is_saved_and_distilled_like_any_other(released, tmp_path):
    from srdiag.models.info import ModelInfo
    from srdiag.models.saving import save_model
    teacher = load_release(released, 3)
    save_model(tmp_path / 'model', teacher, ModelInfo('released'))
    image = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / 'model', 'sr')[0](image), teacher(image))
