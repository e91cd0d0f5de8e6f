"Yuan [45] and Guo [36]: losses by hand and at the edges, blocks and taps beside torchvision, graphs"
import math

import pytest
import torch
import torch.nn.functional as F
import torchvision

from srdiag.peers.attention import AbnormalAwareAttention, DeformableConv, read_taps, tap_places
from srdiag.peers.dense import DenseBlock
from srdiag.peers.guo import Guo
from srdiag.peers.losses import (angular_contrast, bend, class_angles, direction_overlap, image_similarity,
                                 rotation_invariance, with_margin)
from srdiag.peers.yuan import Yuan, quarter_turns

SMALL = dict(classes=3, growth=8, depths=(2, 2, 2, 2))


# --- losses -----------------------------------------------------------------------------------------------

def test_rotation_invariance_by_hand():
    features, turned = torch.tensor([[1., 0], [4, 4]]), torch.tensor([[0., 1], [4, 4], [0, 3], [4, 4]])
    assert rotation_invariance(features, turned).item() == (1 + 4)/2/2
    assert rotation_invariance(features, features.repeat(3, 1)).item() == 0
    with pytest.raises(ValueError, match='2 images cannot have 3'): rotation_invariance(features, turned[:3])
    with pytest.raises(ValueError, match='cannot have 0'): rotation_invariance(features, turned[:0])


@pytest.mark.parametrize('places, target, expected', [
    ([0., 0.6, 0.9], [0, 0, 1], (0.36 + 0.01 + 0.49)/6), # pulls, pushes a little, pushes
    ([0., 2.], [0, 1], 0.), # far enough apart
    ([0., 2.], [1, 1], 4/2), # pulls without end
    ([3.], [0], 0.)]) # no pair
def test_image_similarity_by_hand(places, target, expected):
    found = image_similarity(torch.tensor(places)[:, None], torch.tensor(target))
    assert found.item() == pytest.approx(expected, abs=1e-5)


def test_scores_are_a_function_of_angles():
    theta = torch.linspace(0, math.pi, 50)
    f = torch.stack([theta.cos(), theta.sin()], 1)
    found = class_angles(3*f, torch.tensor([[5., 0], [0, 0.1]]))
    torch.testing.assert_close(found[:, 0], theta, atol=2e-3, rtol=0)
    torch.testing.assert_close(found[:, 1], (theta - math.pi/2).abs(), atol=2e-3, rtol=0)
    for k in (0.1, 0.3, 1.):
        g = bend(theta, k)
        torch.testing.assert_close(g[[0, -1]], torch.tensor([1., -1.]))
        assert (g.diff() <= 0).all() and (bend(theta + 0.5, k).diff() <= 1e-7).all()


def test_the_margin_moves_the_true_class_only():
    angle, target = torch.rand(4, 3), torch.tensor([0, 2, 1, 1])
    moved = with_margin(angle, target, 0.5) - angle
    torch.testing.assert_close(moved, 0.5*F.one_hot(target, 3).float())
    assert angular_contrast(angle, target, margin=0.).abs().item() < 1e-6
    assert angular_contrast(angle, target, margin=0.5).item() > 0


def test_the_angular_contrast_and_the_cross_entropy_make_the_published_loss():
    torch.manual_seed(0)
    angle, target = 3*torch.rand(5, 4), torch.tensor([3, 1, 0, 2, 2])
    plain, true = 64*bend(angle), torch.arange(5)
    top = 64*bend(angle[true, target] + 0.5)
    others = plain.scatter(1, target[:, None], -math.inf)
    published = (torch.logaddexp(top, others.logsumexp(1)) - top).mean()
    torch.testing.assert_close(F.cross_entropy(plain, target) + angular_contrast(angle, target), published)


def test_no_three_directions_overlap_less_than_those_of_a_star():
    star = torch.tensor([0., 120, 240]).deg2rad()
    star = torch.stack([star.cos(), star.sin()], 1)
    assert direction_overlap(4*star).item() == pytest.approx(-0.5, abs=1e-6)
    torch.manual_seed(0)
    assert min(direction_overlap(torch.randn(3, 5)).item() for _ in range(50)) > -0.5


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_gradients_are_finite_where_a_formula_has_an_edge(dtype):
    same = torch.ones(4, 6, dtype=dtype, requires_grad=True) # four equal images, along one direction
    target, directions = torch.tensor([0, 0, 1, 1]), torch.stack([torch.ones(6), -torch.ones(6)])
    for loss in (image_similarity(same, target), rotation_invariance(same, same.detach()),
                 angular_contrast(class_angles(same, directions), target), direction_overlap(same)):
        slope, = torch.autograd.grad(loss, same)
        assert slope.isfinite().all() and loss.isfinite()


def test_several_labels_per_image_are_a_sentence():
    network = Guo(**SMALL, stem=16)
    output = network(torch.rand(2, 3, 32, 32))
    for peer, out in ((network, output), (twin := Yuan(**SMALL), twin(torch.rand(2, 3, 32, 32)))):
        with pytest.raises(ValueError, match='one class per image'): peer.own_loss(out, torch.ones(2, 3))


# --- parts ------------------------------------------------------------------------------------------------

def test_a_plain_block_is_torchvisions():
    torch.manual_seed(0)
    theirs = torchvision.models.DenseNet(growth_rate=8, block_config=(3,), num_init_features=16)
    theirs, ours = theirs.features.denseblock1.eval(), DenseBlock(16, 3, 8).eval()
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    x = torch.randn(2, 16, 9, 9)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize('shape', [(1, 1), (2, 5), (7, 4)])
def test_taps_are_torchvisions(shape):
    torch.manual_seed(0)
    x, offsets, weight = torch.randn(2, 3, *shape), 2*torch.randn(2, 18, *shape), torch.randn(4, 3, 3, 3)
    ours = F.conv2d(read_taps(x, tap_places(offsets)), weight.view(4, 27, 1, 1))
    torch.testing.assert_close(ours, torchvision.ops.deform_conv2d(x, offsets, weight, padding=1), atol=1e-4,
                               rtol=1e-4)


def test_taps_move_by_gradient_and_no_farther_than_they_may():
    torch.manual_seed(0)
    layer, x = DeformableConv(3, 2), torch.randn(2, 3, 8, 12)
    layer(x).square().sum().backward()
    assert layer.offsets.weight.grad.abs().sum() > 0
    torch.nn.init.constant_(layer.offsets.bias, 100.)
    assert layer.moves(x).amax((0, 2, 3)).view(9, 2).unique(dim=0).tolist() == [[2., 3.]]


def test_attention_asks_a_smaller_map_if_there_is_a_large_one():
    torch.manual_seed(0)
    module, x = AbnormalAwareAttention(8, most=4), torch.randn(2, 8, 6, 3)
    assert module.affinity(x).shape == (2, 18, 4*3)
    new, seen = module(x)
    assert torch.equal(new, x) and seen.shape == (2, 4, 3)
    torch.testing.assert_close(seen.sum((1, 2)), torch.ones(2))


# --- peers ------------------------------------------------------------------------------------------------

def test_turned_versions():
    x = torch.rand(2, 3, 16, 16)
    turned = quarter_turns(x).view(3, *x.shape)
    for n in (1, 2, 3): assert torch.equal(torch.rot90(turned[n-1], -n, (-2, -1)), x)
    wide = torch.rand(2, 3, 16, 20)
    assert torch.equal(quarter_turns(wide), wide.flip(-1, -2))
    assert Yuan(**SMALL, rotation=0.).views(x) is None


@pytest.mark.parametrize('weight', ['rotation', 'similarity'])
def test_weights_of_yuan_switch_its_terms(weight):
    torch.manual_seed(0)
    network, x, y = Yuan(**SMALL, **{weight: 0.}), torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    output, again = network(x), network(quarter_turns(x))
    unit, turned = (F.normalize(o.features['pooled'], dim=1) for o in (output, again))
    other = dict(rotation=image_similarity(unit, y), similarity=rotation_invariance(unit, turned))[weight]
    torch.testing.assert_close(network.own_loss(output, y, again), other)


@pytest.mark.parametrize('peer', [Yuan(**SMALL), Guo(**SMALL, stem=16)], ids=['yuan', 'guo'])
def test_the_graph_can_be_exported(peer):
    class Scores(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.peer = peer.eval()
        def forward(self, x): return self.peer(x).scores
    x, batch = torch.rand(3, 3, 32, 32), dict(x={0: torch.export.Dim('batch')})
    graph = torch.export.export(Scores(), (x[:2],), dynamic_shapes=batch).module()
    torch.testing.assert_close(graph(x), peer(x).scores, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('peer', [Yuan(**SMALL), Guo(**SMALL, stem=16)], ids=['yuan', 'guo'])
def test_half_precision_trains(peer):
    torch.manual_seed(0)
    x, y = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    with torch.autocast('cpu', torch.bfloat16):
        output, views = peer.train()(x), peer.views(x)
        own = peer.own_loss(output, y, None if views is None else peer(views))
        (F.cross_entropy(output.scores.float(), y) + own).backward()
    assert own.isfinite() and all(p.grad is None or p.grad.isfinite().all() for p in peer.parameters())
