"""Explorers with sliders, driven from Python: values, numbers, figures, refusals, and the live view without a
browser."""

import sys

import pytest
import torch
from matplotlib.figure import Figure

from srdiag.data.degradation import degrade
from srdiag.data.images import as_float
from srdiag.diagnosis.network import DiagnosisNetwork
from srdiag.core.errors import ModelError, SrdiagError
from srdiag.evaluation.image_quality import convention, psnr
from srdiag.sr.mrcnet import MRCNet
from srdiag.show.explore_diagnosis import AffinityExplorer, GateExplorer
from srdiag.show.explore_sr import KERNELS, AttentionExplorer, DegradationExplorer, RecursionExplorer, shrink
from srdiag.show.widgets import Choice, Explorer, Range, live_view


class Square(Explorer):
    "The smallest explorer: a side and a colour that only small squares have"

    def __init__(self):
        super().__init__(side=Range(1, 9, 1), colour=Choice(('grey', 'red')))

    def _check(self, side, colour):
        if colour == 'red' and side > 5:
            raise ValueError('Only squares up to 5 are red.')

    def _numbers(self, side, colour):
        return dict(area=side**2)

    def _sentence(self, side, colour):
        return f'A {colour} square with the area {side**2} > 0.'

    def _figure(self, side, colour):
        return Figure(figsize=(side / 9, 1))


@pytest.fixture
def square():
    return Square()


def picture_of(figure):
    "The pixels of a figure as bytes"
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return bytes(canvas.buffer_rgba())


@pytest.fixture(scope='module')
def hr(tile):
    return as_float(tile(3, 48))


@pytest.fixture(scope='module')
def recursive():
    torch.manual_seed(0)
    return MRCNet(2, steps=3, channels=8, stages=2, blocks=1).eval()


@pytest.fixture(scope='module')
def recursion(recursive, hr):
    return RecursionExplorer(recursive, hr)


@pytest.fixture(scope='module')
def histology():
    return MRCNet.from_pretrained('histology_x2')


@pytest.fixture(scope='module')
def attention(histology, hr):
    return AttentionExplorer(histology, degrade(hr, 2))


@pytest.fixture(scope='module')
def samples(tile):
    large = torch.stack([as_float(tile(k)) for k in range(40, 48)])
    return degrade(large, 2), large


@pytest.fixture(scope='module')
def diagnoser(samples):
    torch.manual_seed(0)
    network = DiagnosisNetwork(2, lr_stem='3x3', sr_stem='3x3s2')
    torch.nn.init.constant_(network.ensemble.gate[-1].bias, 1.0)  # all heads speak
    with torch.no_grad():
        for _ in range(20):
            network(*samples)
    return network.eval()


@pytest.fixture(scope='module')
def affinity(diagnoser, samples):
    return AffinityExplorer(
        diagnoser, *samples, ['coarse', 'fine'], batch=5, references=tuple(x[5:] for x in samples)
    )


@pytest.fixture
def gate():
    return GateExplorer(dict(sr=[2.0, 0.0], lr=[0.0, 1.0], aux=[0.0, 3.0]), ['healthy', 'ill'])


@pytest.fixture
def journey(hr, histology):
    return DegradationExplorer(hr, dict(histology_x2=histology))


@pytest.fixture
def calls(square):
    seen = []
    square.observe(seen.append)
    return seen


# --- values -----------------------------------------------------------------------------------------------


def test_observers_hear_of_each_change_once_and_of_no_change_never(square, calls):
    square.set(side=3, colour='red')
    square.set(side=3)
    square.set()
    assert calls == [dict(side=3, colour='red')] and square.values == dict(side=3, colour='red')


def test_an_observer_can_leave(square, calls):
    square.unobserve(calls.append)
    square.set(side=3)
    assert not calls


@pytest.mark.parametrize(
    'wrong',
    [
        dict(side=0),
        dict(side=10),
        dict(side=2.5),
        dict(side='3'),
        dict(side=True),
        dict(side=float('nan')),
        dict(colour='blue'),
        dict(size=3),
        dict(side=9, colour='red'),
        dict(side=3, colour='blue'),
    ],
)
def test_bad_values_are_refused_and_nothing_changes(square, calls, wrong):
    for ask in (square.set, square.numbers, square.figure, square.sentence):
        with pytest.raises(ValueError, match=r'\.$'):
            ask(**wrong)
    assert square.values == dict(side=1, colour='grey') and not calls


def test_values_are_a_copy(square):
    square.values['side'] = 5
    assert square.numbers() == dict(area=1)


def test_asking_about_other_values_leaves_the_present_ones(square, calls):
    assert square.numbers(side=3) == dict(area=9) and square.figure(side=9).get_figwidth() == 1
    assert square.values['side'] == 1 and not calls


def test_range_forgives_the_rounding_of_a_slider():
    assert Range(0.05, 5.0, 1.0).checked('T', 5.000000000000001) == 5
    with pytest.raises(ValueError):
        Range(0.05, 5.0, 1.0).checked('T', 5.001)


# --- the live view ----------------------------------------------------------------------------------------


def parts(view):
    "Controls by name, picture, sentence"
    box, picture, text = view.children
    return {c.description: c for c in box.children}, picture, text


def test_moving_a_slider_sets_the_value_once_and_draws_anew(square, calls):
    controls, picture, text = parts(square.live())
    before = picture.value
    controls['side'].value = 5
    assert calls == [dict(side=5)] and square.values['side'] == 5
    assert picture.value != before and picture.value.startswith('<img')
    assert text.value == 'A grey square with the area 25 &gt; 0.' and text.value.rstrip('.') in picture.value


def test_setting_a_value_moves_the_slider(square, calls):
    controls, _, text = parts(square.live())
    square.set(side=3, colour='red')
    assert controls['side'].value == 3 and controls['colour'].value == 'red' and len(calls) == 1
    assert 'red' in text.value


def test_a_refused_slider_moves_back_and_says_why(square, calls):
    controls, _, text = parts(live_view(square.set(colour='red')))
    controls['side'].value = 7
    assert controls['side'].value == 1 == square.values['side']
    assert text.value == 'Only squares up to 5 are red.' and calls == [dict(colour='red')]


def test_two_views_follow_each_other(square):
    (first, _, _), (second, _, _) = parts(square.live()), parts(square.live())
    first['side'].value = 5
    assert second['side'].value == 5


def test_every_explorer_has_a_live_view(recursion, attention, affinity, gate, journey):
    for explorer in (recursion, attention, affinity, gate, journey):
        controls, picture, text = parts(explorer.live())
        assert (
            controls.keys() == explorer.controls.keys() and '<img' in picture.value and len(text.value) > 20
        )


def test_the_ends_of_the_logarithmic_slider_are_values(affinity):
    controls, _, _ = parts(affinity.live())
    for end in (controls['temperature'].min, controls['temperature'].max):
        controls['temperature'].value = 10**end
        assert affinity.values['temperature'] == pytest.approx(10**end)
    affinity.set(temperature=1)


def test_without_ipywidgets_only_the_sliders_are_missing(square, monkeypatch):
    monkeypatch.setitem(sys.modules, 'ipywidgets', None)
    with pytest.raises(SrdiagError, match=r'pip install "srdiag\[notebooks\]"'):
        square.live()
    assert isinstance(square.figure(), Figure) and square.set(side=3).numbers() == dict(area=9)


# --- recursion --------------------------------------------------------------------------------------------


def test_recursion_scores_the_image_of_each_step(recursion, recursive, hr):
    with torch.no_grad():
        images = recursive.forward_steps(degrade(hr, 2)[None])
    for k, image in enumerate(images, 1):
        assert recursion.numbers(step=k)['psnr'] == pytest.approx(
            psnr(image[0], hr, convention(2)).item(), abs=1e-3
        )
    gains = [recursion.numbers(step=k)['gain'] for k in (1, 2, 3)]
    assert recursion.psnr[0] + sum(gains) == pytest.approx(recursion.psnr[3])
    assert picture_of(recursion.figure(step=1)) != picture_of(recursion.figure(step=2))


def test_recursion_beyond_training_leaves_the_network_alone(recursive, hr):
    longer = RecursionExplorer(recursive, hr, steps=5)
    assert recursive.recursion.steps == 3 and longer.controls['step'].high == 5
    assert 'trained for 3' in longer.sentence(step=4) and 'trained for' not in longer.sentence(step=3)
    with pytest.raises(ValueError):
        longer.set(step=6)


def test_recursion_needs_a_recursive_network(histology, hr):
    with pytest.raises(ModelError, match='single step'):
        RecursionExplorer(histology, hr)


# --- attention --------------------------------------------------------------------------------------------


def test_attention_maps_are_distributions_of_the_size_of_their_path(attention):
    for stage, path, side in (
        (1, 'local', 24),
        (1, 'global', 12),
        (2, 'local', 24),
        (2, 'global', 12),
        (3, 'local', 24),
    ):
        a, n = attention.attention(stage, path), attention.numbers(stage=stage, path=path)
        assert a.shape == (side, side) and a.sum().item() == pytest.approx(1, abs=1e-4)
        assert 0 < n['spread'] <= 1 + 1e-6 and n['peak'] >= 1 and n['correction'] >= 0
    assert picture_of(attention.figure(stage=1)) != picture_of(attention.figure(stage=2))


def test_attention_of_a_key_without_preference_is_spread_over_everything(hr):
    torch.manual_seed(0)
    network = MRCNet(2, channels=8, stages=2, blocks=1).eval()
    rcf = network.recursion.mrc[0].stages[0].fuse_local
    torch.nn.init.zeros_(rcf.key.weight)
    n = AttentionExplorer(network, degrade(hr, 2)).numbers(stage=1, path='local')
    assert n['spread'] == pytest.approx(1) and n['peak'] == pytest.approx(1, abs=1e-4)
    assert n['correction'] == 0  # an untrained context branch is silent


def test_attention_refuses_the_path_that_the_last_stage_lacks(attention):
    with pytest.raises(ValueError, match='Stage 3 has no global path'):
        attention.set(stage=3, path='global')
    assert attention.values == dict(stage=1, path='local')


def test_attention_needs_context_fusion(hr):
    with pytest.raises(ModelError, match='rcf=False'):
        AttentionExplorer(MRCNet(2, channels=8, blocks=1, rcf=False), degrade(hr, 2))


def test_attention_leaves_no_hook(attention, histology):
    assert not any(m._forward_hooks for m in histology.modules())


# --- affinity ---------------------------------------------------------------------------------------------


def test_the_patient_moves_with_the_batch_and_not_without_it(affinity):
    assert affinity.numbers()['moved'] == 0
    moved = {
        mode: max(affinity.numbers(mode=mode, slot=2, guest=g)['moved'] for g in (5, 6, 7))
        for mode in ('batch', 'solo', 'context')
    }
    assert moved['batch'] > 1e-4 and moved['solo'] < 1e-5 and moved['context'] < 1e-5


def test_a_guest_takes_the_seat_and_only_that(affinity):
    assert affinity.members(slot=3, guest=7) == [0, 1, 2, 7, 4] and affinity.members(
        slot=3
    ) == affinity.usual == [0, 1, 2, 3, 4]
    assert affinity.numbers(slot=3, guest=3)['moved'] == 0


def test_prediction_is_that_of_the_network(affinity, diagnoser, samples):
    at = [0, 1, 6, 3, 4]
    with torch.no_grad():
        out = diagnoser(samples[0][at], samples[1][at])
    assert affinity.numbers(slot=2, guest=6)['prediction'] == pytest.approx(
        out.ens[0].softmax(0).tolist(), abs=1e-5
    )


def test_temperature_levels_the_matrices_and_leaves_the_diagnosis(affinity):
    sharp, level = (affinity.matrices(temperature=t) for t in (0.05, 5))
    for a, b in zip(sharp, level):
        torch.testing.assert_close(a.sum(1), torch.ones(5))
        assert a.max() > b.max() and b.max() - b.min() < 0.2
    assert affinity.numbers(temperature=0.05)['prediction'] == affinity.numbers(temperature=5)['prediction']
    assert affinity.numbers(temperature=0.05)['consistency'] > affinity.numbers(temperature=5)['consistency']
    assert picture_of(affinity.figure(temperature=0.05)) != picture_of(affinity.figure(temperature=5))


def test_context_compares_with_the_references(affinity):
    assert [tuple(m.shape) for m in affinity.matrices(mode='context')] == [(5, 4)] * 3
    assert isinstance(affinity.figure(mode='context', guest=6), Figure)


def test_a_shut_gate_is_no_diagnosis(diagnoser, samples):
    bias = diagnoser.ensemble.gate[-1].bias
    was = bias.detach().clone()
    torch.nn.init.constant_(bias, -100.0)
    try:
        shut = AffinityExplorer(diagnoser, *samples, ['coarse', 'fine'], batch=5)
        assert (
            shut.numbers(guest=6)['prediction'] is None
            and 'no diagnosis' in shut.sentence()
            and isinstance(shut.figure(), Figure)
        )
    finally:
        bias.data.copy_(was)


def test_affinity_refuses_what_cannot_be_shown(diagnoser, samples):
    with pytest.raises(ValueError, match='batch of 3 to 8'):
        AffinityExplorer(diagnoser, *samples, ['a', 'b'], batch=9)
    with pytest.raises(ValueError, match='mode is one of batch, solo'):
        AffinityExplorer(diagnoser, *samples, ['a', 'b'], batch=4).set(mode='context')
    plain = DiagnosisNetwork(2, sai=False, lr_stem='3x3', sr_stem='3x3s2').eval()
    with pytest.raises(ModelError, match='sai=False'):
        AffinityExplorer(plain, *samples, ['a', 'b'], batch=4)


# --- gate -------------------------------------------------------------------------------------------------


def test_a_head_alone_speaks_in_its_own_voice(gate):
    n = gate.numbers(g_sr=3, g_lr=-1, g_aux=0)
    assert n['weights'][1:] == [0, 0] and n['weights'][0] == pytest.approx(0.995, abs=1e-3)
    assert n['probabilities']['ens'] == pytest.approx(n['probabilities']['sr'], abs=2e-3)


def test_a_score_moves_the_ensemble_towards_its_head(gate):
    ill = [gate.numbers(g_sr=1, g_lr=-1, g_aux=a)['probabilities']['ens'][1] for a in (-1, 0, 0.5, 1, 2)]
    assert ill[0] == ill[1] < ill[2] < ill[3] < ill[4]


def test_three_shut_heads_are_never_a_uniform_answer(gate):
    gate.set(g_sr=0, g_lr=-0.5, g_aux=-3)
    assert gate.numbers()['closed'] and gate.numbers()['probabilities']['ens'] is None
    assert 'no diagnosis' in gate.sentence() and '0.5' not in gate.sentence()
    figure = gate.figure()
    assert 'no diagnosis' in figure.get_suptitle() and 'ens: no answer' in figure.axes[-1].get_title()
    assert len(figure.axes[-1].containers) == 3 and len(gate.figure(g_sr=0.1).axes[-1].containers) == 4


def test_heads_must_know_the_same_classes():
    with pytest.raises(ValueError, match='2 scores each'):
        GateExplorer(dict(sr=[1, 2], lr=[1, 2], aux=[1, 2, 3]), ['a', 'b'])
    with pytest.raises(ValueError, match='sr, lr and aux'):
        GateExplorer(dict(sr=[1, 2], lr=[1, 2]), ['a', 'b'])


# --- degradation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize('kernel', KERNELS)
def test_kernels_keep_what_is_constant(kernel):
    for scale in (2, 3, 4):
        torch.testing.assert_close(
            shrink(torch.full((3, 24, 36), 0.3), scale, kernel),
            torch.full((3, 24 // scale, 36 // scale), 0.3),
        )


def test_kernels_are_what_their_names_say(hr):
    torch.testing.assert_close(shrink(hr, 2, 'MATLAB bicubic'), degrade(hr, 2))
    assert torch.equal(shrink(hr, 3, 'nearest'), hr[:, ::3, ::3])
    torch.testing.assert_close(
        shrink(hr, 4, 'box'), hr.unflatten(1, (12, 4)).unflatten(3, (12, 4)).mean((2, 4))
    )
    # at x3 it reads the middle pixel alone
    torch.testing.assert_close(shrink(hr, 3, 'bilinear, not widened'), hr[:, 1::3, 1::3])
    with pytest.raises(ValueError, match='kernel is one of'):
        shrink(hr, 2, 'lanczos')


def test_the_network_wins_for_the_kernel_of_its_training_and_loses_for_another(journey):
    gain = {
        k: journey.numbers(kernel=k, restore='histology_x2')['psnr'] - journey.numbers(kernel=k)['psnr']
        for k in ('MATLAB bicubic', 'bicubic, not widened')
    }
    assert gain['MATLAB bicubic'] > 1 and gain['bicubic, not widened'] < -1


def test_larger_scales_lose_more(journey):
    scores = [journey.numbers(scale=s) for s in (2, 3, 4)]
    assert scores[0]['psnr'] > scores[1]['psnr'] > scores[2]['psnr'] and scores[0]['ssim'] > scores[2]['ssim']
    assert [n['convention'][:10] for n in scores] == [
        'RGB, 2 px ',
        'RGB, 3 px ',
        'RGB, 4 px ',
    ] and 'RGB, 3 px border cropped' in journey.sentence(scale=3)


def test_a_network_is_offered_for_its_scale_only(journey):
    journey.set(restore='histology_x2')
    with pytest.raises(ValueError, match='enlarges 2 times, but the scale is 3'):
        journey.set(scale=3)
    assert journey.values['scale'] == 2
    controls, _, text = parts(journey.live())
    controls['scale'].value = 4
    assert controls['scale'].value == 2 and 'enlarges 2 times' in text.value


def test_grey_images_have_no_luma_choice(hr):
    grey = DegradationExplorer(hr[:1])
    assert grey.sentence().endswith('(grey, 2 px border cropped, 8-bit, SSIM 11x11 Gaussian).')
    with pytest.raises(ValueError):
        grey.set(colour='y_bt601')
