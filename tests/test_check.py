"""`check(name, yours)`: right answers pass, wrong ones are told where they go wrong."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import srdiag
from srdiag.show.check import assess, check, tasks_of_course
from srdiag.show.mistakes import TASKS

NBS = Path(__file__).parents[1] / 'nbs'


def said(name, answer):
    right, text = assess(TASKS[name], answer)
    return text


# --- solutions as a student writes them -------------------------------------------------------------------


def mirror(row, pad):
    n = len(row)
    places = [i if 0 <= i < n else (-1 - i if i < 0 else 2 * n - 1 - i) for i in range(-pad, n + pad)]
    return row[places]


def reduction(hr, scale):
    if scale == 1:
        return hr
    x, p = hr[None], 2 * scale
    for axis in (2, 3):
        n = x.shape[axis]
        x = torch.cat([x.narrow(axis, 0, p).flip(axis), x, x.narrow(axis, n - p, p).flip(axis)], axis)
    x = F.interpolate(x, size=[n // scale for n in x.shape[2:]], mode='bicubic', antialias=True)
    return x[0, :, 2:-2, 2:-2]


def pixel_shuffle(x, scale):
    b, c, h, w = x.shape
    y = torch.zeros(b, c // scale**2, h * scale, w * scale)
    for i in range(scale):
        for j in range(scale):
            y[:, :, i::scale, j::scale] = x[:, i * scale + j :: scale**2]
    return y


def residual_block(x, w1, slope1, w2, slope2):
    def prelu(z, slope):
        return torch.where(z > 0, z, slope[:, None, None] * z)

    inner = prelu(F.conv2d(x, w1, padding=1), slope1)
    return prelu(F.conv2d(inner, w2, padding=1) + x, slope2)


def psnr(sr, hr):
    mse = float(((sr - hr) ** 2).mean())
    return 10 * math.log10(1 / mse) if mse else math.inf


def convlstm(x, y, c, w):
    def conv(z, k):
        return F.conv2d(z, w[k], padding=1)

    i = torch.sigmoid(conv(x, 'xi') + conv(y, 'yi') + w['ci'] * c + w['bi'])
    f = torch.sigmoid(conv(x, 'xf') + conv(y, 'yf') + w['cf'] * c + w['bf'])
    new = f * c + i * torch.tanh(conv(x, 'xc') + conv(y, 'yc') + w['bc'])
    o = torch.sigmoid(conv(x, 'xo') + conv(y, 'yo') + w['co'] * new + w['bo'])
    return o * torch.tanh(new), new


def context(x1, x2, k):
    at = F.conv2d(x1, k[None, :, None, None]).flatten(1).softmax(1)
    return (at[:, None] * x2.flatten(2)).sum(2)


def rcf(x1, x2, w):
    gate = torch.sigmoid(F.prelu(x1.mean((2, 3)) @ w['w1'].T, w['slope']) @ w['w2'].T)
    second = torch.sigmoid(context(x1, x2, w['k']) @ w['v1'].T) @ w['v2'].T
    return x1 * gate[:, :, None, None] + second[:, :, None, None]


def exchange(local, coarse, to_local, to_global, fuse_local, fuse_global):
    up = F.interpolate(to_local(coarse), size=local.shape[2:], mode='bilinear')
    return F.leaky_relu(fuse_local(local, up), 0.1), F.leaky_relu(fuse_global(coarse, to_global(local)), 0.1)


def recursion(x, lstm, f, steps):
    y, c = torch.zeros_like(x), torch.zeros_like(x)
    for _ in range(steps):
        h, c = lstm(x, y, c)
        y = f(h) + h
    return y


def training_step(model, optimiser, loss, x, y):
    optimiser.zero_grad()
    value = loss(model(x), y)
    value.backward()
    optimiser.step()
    return value.item()


def halving(lr, epoch, every):
    while epoch >= every:
        lr, epoch = lr / 2, epoch - every
    return lr


def distillation(student, teacher, gamma):
    pairs = zip(gamma, ('cell', 'hidden', 'f_lr', 'f_sr'))
    return sum(g * (getattr(student, k) - getattr(teacher, k).detach()).square().mean() for g, k in pairs)


def head(f, weight, bias):
    return F.linear(F.adaptive_avg_pool2d(f, 1).flatten(1), weight, bias)


def affinity(f):
    rows = f.flatten(1)
    a = rows @ rows.T
    return a / a.norm(dim=1, keepdim=True).clamp(min=1e-12)


def mutual(a_sr, a_lr):
    return torch.einsum('ik,jk->ij', a_sr, a_lr)


def transfer(m, f):
    return torch.einsum('ij,jchw->ichw', m, f)


def gate(g, y_sr, y_lr, y_aux):
    w = torch.relu(torch.tanh(g))
    return w[:, :1] * y_sr + w[:, 1:2] * y_lr + w[:, 2:] * y_aux


def soften(a, temperature):
    e = (a / temperature - (a / temperature).amax(1, keepdim=True)).exp()
    return e / e.sum(1, keepdim=True)


def consistency(a_sr, a_lr, temperature):
    both = zip(a_sr, a_lr)
    return sum((soften(s, temperature) - soften(k, temperature)).square().sum().sqrt() for s, k in both)


def regularisation(m, temperature):
    total = 0
    for shallow, deep in zip(m, m[1:]):
        total = total + consistency([deep, deep.T], [shallow, shallow.T], temperature) / 2
    return total


def cross_entropy(ens, others, target):
    return sum(-y.log_softmax(1)[range(len(y)), target].mean() for y in [ens, *others])


def rank(ens, others, target, margin):
    def truth(y):
        return y.softmax(1)[range(len(y)), target]

    return sum((truth(y) - truth(ens) + margin).clamp(min=0).mean() for y in others)


def total(ens, others, target, a_sr, a_lr, m):
    loss = cross_entropy(ens, others, target) + rank(ens, others, target, 0.05)
    return loss + 100 * consistency(a_sr, a_lr, 1.0) + 100 * regularisation(m, 1.0)


def rates(lr, epoch):
    lr = halving(lr, epoch, 30)
    return lr, lr / 100


def labels_needed(labels, accuracies, goal):
    best = np.maximum.accumulate(accuracies)
    if goal <= best[0]:
        return labels[0]
    if goal > best[-1]:
        return math.inf
    k = int(np.argmax(best >= goal))
    return float(np.exp(np.interp(goal, best[k - 1 : k + 1], np.log(labels[k - 1 : k + 1]))))


@pytest.mark.parametrize('name', TASKS)
def test_a_right_answer_passes(name):
    right, text = assess(TASKS[name], globals()[name])
    assert right, text
    assert text.startswith('Well done!')
    assert assess(TASKS[name], TASKS[name].reference)[0]


@pytest.mark.parametrize('name', TASKS)
def test_each_typical_mistake_is_told_by_its_own_sentence(name):
    known = TASKS[name].wrong
    assert len(known) >= 3 and len({sentence for sentence, _ in known}) == len(known)
    for sentence, function in known:
        right, text = assess(TASKS[name], function)
        assert not right and sentence in text, f'{name}: expected {sentence!r}, got {text!r}'


# --- mistakes as students make them -----------------------------------------------------------------------


def changes_its_input(f):
    f *= 2
    return affinity(f)


def cuts_the_gradient(a, temperature):
    return torch.from_numpy(soften(a, temperature).detach().numpy())


def for_square_maps_only(x, scale):
    return pixel_shuffle(x.reshape(*x.shape[:2], x.shape[3], -1), scale)


def adds_the_diagonal_away(a_sr, a_lr):
    m = mutual(a_sr, a_lr)
    return m - m.diag().diag()


def listens_to_the_teacher(student, teacher, gamma):
    pairs = zip(gamma, ('cell', 'hidden', 'f_lr', 'f_sr'))
    return sum(g * F.mse_loss(getattr(student, k), getattr(teacher, k)) for g, k in pairs)


def half_a_gate(g, y_sr, y_lr, y_aux):
    w = torch.where(g > 0, torch.tanh(g), 0.1 * g)
    return torch.einsum('bh,bhk->bk', w, torch.stack([y_sr, y_lr, y_aux], 1))


def stops_in_line_3(m, f):
    rows = f.flatten(1)
    return rows.sum(5)


def with_zero_padding_and_edge(x, w1, slope1, w2, slope2):
    y = residual_block(x, w1, slope1, w2, slope2)
    return torch.cat([y[..., :-1], 0 * y[..., -1:]], -1)


STUDENTS = [
    ('affinity', lambda f: F.normalize(f.flatten(1) @ f.flatten(1).T, p=1, dim=1), 'length'),
    ('affinity', lambda f: affinity(f) * 0.93, 'Row 0 of your result has the length 0.93'),
    ('affinity', lambda f: affinity(f)[None], 'has the shape 1×2×2; it should be 2×2'),
    ('affinity', lambda f: (f.flatten(1) @ f.flatten(1).T) / affinity(f).norm(), 'Row'),
    ('affinity', changes_its_input, 'changes its input `f`'),
    ('affinity', lambda f: affinity(f.abs()), 'right for 3 of 6 inputs. With negative features'),
    ('mutual', adds_the_diagonal_away, 'right beside the diagonal'),
    ('mutual', lambda a, b: 2 * a @ b.T, 'they are 2 times as large'),
    ('transfer', stops_in_line_3, 'line 3, `return rows.sum(5)` (IndexError'),
    ('transfer', lambda m, f: None, 'returns None'),
    ('gate', half_a_gate, 'only where `g` is negative'),
    ('gate', lambda g: g, 'could not be called'),
    ('soften', lambda a, temperature: a.exp() / a.exp().sum(1, keepdim=True), 'temperature'),
    ('soften', lambda a, t: (a / t).exp() / (a / t).exp().sum(1, keepdim=True), 'NaN'),
    ('soften', cuts_the_gradient, 'no gradient flows back'),
    ('pixel_shuffle', lambda x, s: F.pixel_shuffle(x, s).transpose(2, 3), 'changed places'),
    ('pixel_shuffle', lambda x, s: pixel_shuffle(x, s)[:1], 'right for 2 of 4 inputs. With a batch'),
    ('pixel_shuffle', for_square_maps_only, 'With a batch of maps that are not square'),
    ('mirror', lambda row, pad: torch.cat([row[:pad].flip(0), row, row[-pad:].flip(0)]), 'no pixels to add'),
    ('reduction', lambda hr, scale: hr[..., ::scale, ::scale] + 0.0, 'throw the others away'),
    ('residual_block', lambda x, w1, a, w2, b: F.relu(residual_block(x, w1, a, w2, b)), 'numbers'),
    ('residual_block', with_zero_padding_and_edge, 'border'),
    ('psnr', lambda sr, hr: 10 * math.log10(1 / float(((sr - hr) ** 2).mean())), 'ZeroDivisionError'),
    ('psnr', lambda sr, hr: -10 * ((sr - hr) ** 2).mean((1, 2)).log10(), 'a single number'),
    ('convlstm', lambda x, y, c, w: convlstm(x, y, c, w)[0], 'returns 1 result;'),
    ('convlstm', lambda x, y, c, w: convlstm(x, 0 * y, c, w), 'stands at'),
    ('context', lambda x1, x2, k: context(x1, x2, k).detach(), 'no gradient'),
    ('rcf', lambda x1, x2, w: rcf(x1, x2.detach(), w), 'no gradient reaches `x2`'),
    ('exchange', lambda *a: exchange(*a)[::-1], 'shape'),
    ('recursion', lambda x, lstm, f, steps: recursion(x, lstm, f, 1), '1 of 4 inputs. With 2 steps'),
    ('training_step', lambda model, optimiser, loss, x, y: loss(model(x), y), 'does not move'),
    ('halving', lambda lr, epoch, every: lr, 'right for 2 of 5 inputs. With epoch 100'),
    ('distillation', listens_to_the_teacher, 'into `teacher.'),
    ('head', lambda f, weight, bias: np.zeros((1, 2)), 'ndarray'),
    ('consistency', lambda a, b, t: consistency(a[:1], b[:1], t), 'right for 1 of 3 inputs'),
    ('regularisation', lambda m, t: consistency(m[1:], m, t) / 2, 'other direction'),
    ('cross_entropy', lambda e, o, t: cross_entropy(e, o, t) / 4, 'adds them up'),
    ('rank', lambda e, o, t, m: rank(e, o, t, m).item(), 'no gradient flows back'),
    ('total', lambda e, o, t, a, b, m: cross_entropy(e, o, t) + rank(e, o, t, 0.05), 'off by'),
    ('rates', lambda lr, epoch: lr * 0.5 ** (epoch // 30), 'returns 1 result;'),
    ('labels_needed', lambda labels, accuracies, goal: labels[0], 'is off by'),
]


@pytest.mark.parametrize('name, answer, fragment', STUDENTS)
def test_what_students_write(name, answer, fragment):
    text = said(name, answer)
    assert fragment in text, text
    page, section = TASKS[name].where
    assert text.endswith(f'Look again at “{section}” in {page}.')


def test_each_task_has_two_mistakes_by_hand_or_typical():
    for name, task in TASKS.items():
        assert len(task.wrong) + sum(name == s for s, *_ in STUDENTS) >= 4, name


def test_it_prints_one_line_and_returns_nothing(capsys):
    assert check('affinity', affinity) is None
    assert capsys.readouterr().out.count('\n') == 1
    check(affinity, 'affinity')  # the other way round it is understood as well
    assert 'Well done' in capsys.readouterr().out
    assert srdiag.check is check


def test_random_numbers_stay_what_they_were():
    torch.manual_seed(0)
    check('convlstm', convlstm)
    first = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(first, torch.rand(3))


@pytest.mark.parametrize(
    'name, close', [('afinity', 'affinity'), ('pixelshuffle', 'pixel_shuffle'), ('qqq', 'mirror')]
)
def test_an_unknown_name_is_a_sentence(name, close):
    with pytest.raises(ValueError, match=close) as info:
        check(name, affinity)
    assert str(info.value).startswith(f'check knows no {name!r}.')


def test_what_is_no_function():
    with pytest.raises(TypeError, match='without a call'):
        check('affinity', torch.eye(2))


def test_nothing_is_changed_for_the_next_answer():
    said('affinity', changes_its_input)
    assert assess(TASKS['affinity'], affinity)[0]


def test_the_inputs_get_harder():
    for name, task in TASKS.items():
        sizes = [sum(x.numel() for x in args if isinstance(x, torch.Tensor)) for _, args in task.inputs()]
        assert len(sizes) >= 3 or name in ('regularisation',), name
        assert sizes[0] == min(sizes) or name in ('mirror',), name


def headings(page):
    text = json.loads((NBS / f'{page}.ipynb').read_text(encoding='utf-8'))
    prose = '\n'.join(''.join(c['source']) for c in text['cells'] if c['cell_type'] == 'markdown')
    return re.findall(r'^#+ +(.+?)\s*$', prose, flags=re.M)


@pytest.mark.parametrize('name', TASKS)
def test_the_place_to_look_again_exists(name):
    page, section = TASKS[name].where
    assert tasks_of_course()[name] == page
    assert section in headings(page), f'{page} has no section {section!r}: change the task in nbs/show.'


def test_labels_needed_is_that_of_the_experiment():
    from srdiag.bench.labels_answers import needed

    for _, (labels, accuracies, goal) in TASKS['labels_needed'].inputs():
        assert TASKS['labels_needed'].reference(labels, accuracies, goal) == pytest.approx(
            needed(labels, np.array(accuracies), goal)
        )


def test_exchange_is_that_of_the_network():
    from srdiag.sr.mrc import MRCStage

    torch.manual_seed(0)
    stage = MRCStage(3, 1).eval()
    local, coarse = torch.rand(2, 3, 6, 8), torch.rand(2, 3, 3, 4)
    inner = stage.local_blocks(local), stage.global_blocks(coarse)
    parts = stage.to_local, stage.to_global, stage.fuse_local, stage.fuse_global
    ours = TASKS['exchange'].reference(*inner, *parts)
    for a, b in zip(ours, stage(local, coarse)):
        torch.testing.assert_close(a, b)


def test_asking_takes_no_time():
    import time

    start = time.perf_counter()
    said('affinity', affinity)
    assert time.perf_counter() - start < 10
