"""Looking inside a network: what is computed is right, leaves no trace, and says so when there is nothing to
see."""

import copy

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from srdiag.diagnosis.inference import predict
from srdiag.show.affinities import (
    affinity_stages_figure,
    class_contrast,
    gate_figure,
    gate_table,
    stage_affinities,
)
from srdiag.show.embeddings import (
    branch_features,
    embedding_figure,
    embedding_table,
    neighbour_accuracy,
    project,
)
from srdiag.show.saliency import grad_cam, grad_cam_figure, map_similarity, pick_examples, sanity_check
from srdiag.diagnosis.network import SREnhancedDiagnosis
from srdiag.core.errors import DataError, ModelError

CLASSES = ['a', 'b', 'c']


@pytest.fixture(scope='module')
def images():
    from srdiag.data.samples import tissue

    return (
        torch.stack(
            [tissue()[:, i : i + 16, j : j + 16] for i in (0, 160, 320) for j in (0, 120, 240, 360)]
        ).float()
        / 255
    )


def built(inputs='LR+SR', **kwargs):
    torch.manual_seed(0)
    return SREnhancedDiagnosis(
        3,
        2,
        inputs,
        lr_stem='3x3',
        sr_stem='3x3s2',
        sr=dict(channels=8, blocks=1),
        **(dict(mode='solo', solo_share=0.5) | kwargs),
    )


def with_statistics(model, images):
    for _ in range(3):
        model(images, mode='solo')  # batch norm needs statistics, of one image each
    return model.eval()


@pytest.fixture(scope='module')
def model(images):
    return with_statistics(built(), images)


@pytest.fixture(scope='module')
def labels():
    return torch.arange(12) % 3


def shut(model):
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.network.ensemble.gate[-1].bias.fill_(-9.0)
    return other


def text_of(fig):
    return '\n'.join(t.get_text() for ax in fig.axes for t in ax.texts)


def everything(fig):
    return '\n'.join(
        [
            text_of(fig),
            fig.get_supxlabel(),
            *(a for ax in fig.axes for a in (ax.get_title(), ax.get_ylabel())),
        ]
    )


# Grad-CAM


@pytest.mark.parametrize('branch', ['sr', 'lr'])
def test_weights_of_the_map_are_what_a_nudge_of_a_channel_does_to_the_score(model, images, branch):
    "Finite differences in double precision instead of gradients, through the whole framework"
    network, lr = copy.deepcopy(model.network).double(), images[:1].double()
    large = torch.nn.functional.interpolate(lr, scale_factor=2, mode='bilinear')
    cam = grad_cam(network, lr, large, target=1, stage=1, head='sr')
    # of the image: in the k-th, channel k is nudged
    seen, copies = {}, [x.expand(64, -1, -1, -1) for x in (lr, large)]

    def scores(eps):
        def hook(module, args, output):
            seen['f'] = output[0]
            return output + eps * torch.eye(64, dtype=torch.double).view(64, 64, 1, 1)

        handle = getattr(network, f'branch_{branch}').layer1.register_forward_hook(hook)
        with torch.no_grad():
            out = network(*copies, 'solo')
        handle.remove()
        return out.sr[:, 1]

    gradients = (scores(1e-5) - scores(-1e-5)) / 2e-5  # of all cells of a channel together
    heat = (gradients.view(64, 1, 1) / seen['f'][0].numel() * seen['f']).sum(0)
    image = dict(lr=lr, sr=large)[branch]
    expected = torch.nn.functional.interpolate(
        heat.clamp(min=0)[None, None], size=image.shape[2:], mode='bilinear', align_corners=False
    )[0, 0]
    found = getattr(cam, branch)[0]
    assert found.max() > 0
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * found.max().item())


def test_model_is_as_it_was(model, images):
    other = copy.deepcopy(model).train()
    other.network.branch_lr.eval()
    other.network.head_sr.requires_grad_(False)
    state, modes = (
        {k: v.clone() for k, v in other.state_dict().items()},
        [m.training for m in other.modules()],
    )
    grads = [p.requires_grad for p in other.parameters()]
    grad_cam(other, images[:2])
    branch_features(other, images[:2])
    stage_affinities(other, images[:4])
    sanity_check(other, images[:2], stage=1)
    assert all(torch.equal(v, state[k]) for k, v in other.state_dict().items())
    assert [m.training for m in other.modules()] == modes and [
        p.requires_grad for p in other.parameters()
    ] == grads
    assert all(p.grad is None for p in other.parameters()) and not any(
        m._forward_hooks for m in other.modules()
    )


def test_hooks_go_when_the_network_fails(model):
    other = copy.deepcopy(model).train()
    with pytest.raises(ValueError, match="MRCNet|SREnhancedDiagnosis"):
        grad_cam(other, torch.rand(2, 5, 16, 16))
    assert other.network.training and not any(m._forward_hooks for m in other.modules())


def test_map_does_not_depend_on_the_neighbours_or_on_frozen_weights(model, images):
    network, lr = copy.deepcopy(model.network).double(), images.double()
    large = torch.nn.functional.interpolate(lr, scale_factor=2, mode='bilinear')
    together = grad_cam(network, lr, large, stage=2, batch_size=5)
    network.requires_grad_(False)
    with torch.no_grad():
        alone = [grad_cam(network, lr[i : i + 1], large[i : i + 1], stage=2) for i in range(12)]
    for branch in ('lr', 'sr'):
        one_by_one = torch.cat([getattr(a, branch) for a in alone])
        torch.testing.assert_close(getattr(together, branch), one_by_one, rtol=1e-8, atol=1e-10)


def test_model_trained_as_published_is_explained_one_image_at_a_time(images):
    published = built(mode='batch', solo_share=0.0)
    with_statistics(published, images)
    lr = images[:4]
    whole = grad_cam(published, lr, stage=1)
    for i in range(4):
        torch.testing.assert_close(
            grad_cam(published, lr[i : i + 1], stage=1).probability,
            whole.probability[i : i + 1],
            rtol=1e-3,
            atol=1e-4,
        )


def test_model_with_references_is_explained_in_context(model, images):
    from srdiag.data.images import to_uint8

    in_context = copy.deepcopy(model).remember(to_uint8(images[6:]))
    cam = grad_cam(in_context, images[:3], stage=2)
    expected = predict(in_context, images[:3], CLASSES)
    np.testing.assert_allclose(cam.probability, expected.probabilities['ens'].max(1), atol=1e-4)
    assert not np.allclose(
        cam.probability,
        predict(in_context, images[:3], CLASSES, mode='solo').probabilities['ens'].max(1),
        atol=1e-4,
    )
    features = branch_features(in_context, images[:3])
    assert features['lr', 2, 'after'].shape == (3, 128)  # the references are not among them
    assert not in_context.training


def test_single_branch_fills_the_side_it_reads(images):
    for inputs, there, gone in (('LR', 'lr', 'sr'), ('ILR', 'sr', 'lr')):
        cam = grad_cam(with_statistics(built(inputs), images), images[:2], stage=1)
        assert getattr(cam, gone) is None and getattr(cam, f'image_{gone}') is None
        assert (
            getattr(cam, there).shape == (2, *getattr(cam, f'image_{there}').shape[2:])
            and cam.large == inputs
        )
        assert len(grad_cam_figure(cam, CLASSES).axes) == 4
    with pytest.raises(ModelError, match='one branch'):
        grad_cam(built('LR'), images[:2], head='lr')


def test_shut_gate_gets_a_sentence_and_the_answer_of_predict(model, images):
    other = shut(model)
    cam = grad_cam(other, images[:3])
    assert cam.closed.all() and cam.lr.max() == 0 and cam.sr.max() == 0
    assert cam.predicted.tolist() == predict(other, images[:3], CLASSES).labels.tolist()
    assert text_of(grad_cam_figure(cam, CLASSES)).count('all gates shut') == 6
    open_ = grad_cam(other, images[:3], head='lr')
    assert not open_.closed.any() and 'all gates shut' not in text_of(grad_cam_figure(open_, CLASSES))


def test_readable_stage_is_the_last_with_six_cells(model, images):
    for enlarged, stage in ((1, 2), (2, 3), (4, 4)):  # 16 px: 16, 8, 4, 2 cells a side
        lr = torch.nn.functional.interpolate(images[:1], scale_factor=enlarged)
        cam = grad_cam(model, lr, stage=None)
        assert cam.stage == stage and min(cam.cells['lr'] + cam.cells['sr']) >= 6
    assert grad_cam(model, images[:1, :, :4, :4], stage=None).stage == 1


def test_labels_stand_beside_the_images(model, images):
    cam = grad_cam(model, images[:2], target=[0, 2], head='sr', stage=1)
    assert cam.target.tolist() == [0, 2]
    words = everything(grad_cam_figure(cam, CLASSES, [1, 2], ['x.png', 'y.png']))
    for word in ('true: b', 'true: c', 'x.png', 'SR branch', '16×16 cells', 'ot for diagnostic use'):
        assert word in words
    with pytest.raises(ValueError, match='labels'):
        grad_cam_figure(cam, CLASSES, [1])


@pytest.mark.parametrize('wrong', [dict(stage=5), dict(head='aux'), dict(target=[0])])
def test_wrong_questions(model, images, wrong):
    with pytest.raises(ValueError):
        grad_cam(model, images[:2], **wrong)


def test_similarity_of_maps():
    a = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    b = torch.stack([a[0].exp(), -a[1], torch.zeros(8, 8)])  # same order, opposite order, no order
    assert np.allclose(map_similarity(a, b), [1, -1, np.nan], equal_nan=True)


def test_sanity_check_randomises_from_the_top(model, images):
    table = sanity_check(model, images[:6], stage=2, head='sr')
    assert table.random.tolist() == ['heads', '+ stage 4', '+ stage 3', '+ stage 2', '+ stage 1', '+ stem']
    assert (table[['lr_maps', 'sr_maps']] <= 6).all(axis=None) and (
        table[['lr', 'sr']].abs().max() < 0.999
    ).all()


def test_examples_follow_the_rule(model, images, labels):
    p = predict(model, images, CLASSES)
    chosen = pick_examples(p, labels)
    assert len(set(chosen)) == len(chosen)
    for i in chosen:
        rivals = [
            j
            for j in range(12)
            if labels[j] == labels[i] and (p.labels[j] == labels[j]) == (p.labels[i] == labels[i])
        ]
        assert p.probabilities['ens'][i].max() == max(p.probabilities['ens'][j].max() for j in rivals)


# Affinity


def test_contrast_by_hand():
    m = np.array([[9, 4, 1, 1], [4, 9, 1, 1], [1, 1, 9, 0], [1, 1, 0, 9.0]])
    # pairs within are 4 and 0, all between are 1
    assert class_contrast(m, [0, 0, 1, 1]) == dict(within=2.0, between=1.0, contrast=1.0, auc=0.5)
    assert class_contrast(np.where(m == 0, 2, m), [0, 0, 1, 1])['auc'] == 1
    for alone in ([0, 0, 0, 0], [0, 1, 2, 3]):
        assert np.isnan(class_contrast(m, alone)['contrast'])
    with pytest.raises(ValueError, match='labels'):
        class_contrast(m, [0, 1])


def test_affinities_are_those_of_the_batch(model, images, labels):
    matrices = stage_affinities(model, images)
    with torch.no_grad():
        out = model(images, mode='batch')
    assert list(matrices) == ['A_SR', 'A_LR', 'M'] and all(len(m) == 4 for m in matrices.values())
    torch.testing.assert_close(
        matrices['M'][3], matrices['A_SR'][3] @ matrices['A_LR'][3].T, rtol=1e-3, atol=1e-4
    )
    torch.testing.assert_close(matrices['A_LR'][1], out.a_lr[1], rtol=1e-3, atol=1e-4)
    fig = affinity_stages_figure(model, images, labels, CLASSES)
    titles = [ax.get_title() for ax in fig.axes if ax.get_title()]
    assert len(titles) == 12 and all('AUC' in t for t in titles)


@pytest.mark.parametrize('kind', [dict(inputs='LR'), dict(sai=False)])
def test_no_affinity_no_figure(images, labels, kind):
    with pytest.raises(ModelError, match='no sample affinity'):
        affinity_stages_figure(built(**kind), images, labels, CLASSES)


# Gate


def test_closed_gates_are_counted_and_drawn_apart(model, images, labels):
    p = predict(model, images, CLASSES)
    p.gate[:4], p.closed[:4] = 0, True
    p.gate[4:], p.closed[4:] = [0.5, 0.3, 0.1], False
    table = gate_table(p, labels)
    assert table.n.sum() == 12 and table.closed.sum() == 4 and table['SR first'].sum() == 8
    assert np.allclose(table.SR.dropna(), 0.5)
    fig = gate_figure(p, labels)
    assert 'all gates shut: 4' in text_of(fig)
    below = sum(
        len(c.get_offsets())
        for c in fig.axes[0].collections
        if len(c.get_offsets()) and c.get_offsets()[0][1] < -0.2
    )
    assert below == 4


def test_one_branch_has_no_gate(images, labels):
    p = predict(with_statistics(built('LR'), images), images, CLASSES)
    for ask in (gate_table, gate_figure):
        with pytest.raises(ModelError, match='no gate'):
            ask(p, labels)


# Features


def test_features_are_the_pooled_outputs(model, images):
    features = branch_features(model, images, batch_size=5)
    assert set(features) == {
        (b, k, w) for b in ('sr', 'lr') for k in (1, 2, 3, 4) for w in ('before', 'after')
    }
    with torch.no_grad():  # after the last stage, the heads read them
        scores = model.network.head_lr(torch.from_numpy(features['lr', 4, 'after']))
        torch.testing.assert_close(scores, model(images, mode='solo').lr, rtol=1e-3, atol=1e-4)
    single = branch_features(built('LR').eval(), images)
    assert set(single) == {('lr', k, 'before') for k in (1, 2, 3, 4)}


def test_features_depend_on_the_batch_in_the_published_mode_only(model, images):
    def last(mode, size):
        return branch_features(model, images, mode=mode, batch_size=size)['sr', 4, 'after']

    assert np.allclose(last('solo', 3), last('solo', 12), rtol=1e-3, atol=1e-4)
    assert not np.allclose(last('batch', 3), last('batch', 12), rtol=1e-3, atol=1e-4)


def test_neighbours_agree_with_scikit_learn():
    from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
    from sklearn.neighbors import KNeighborsClassifier

    g = np.random.default_rng(0)
    y, groups = np.arange(60) % 3, np.arange(60) // 6
    x = g.normal(size=(60, 4)) + y[:, None]
    z = (x - x.mean(0)) / x.std(0)
    answers = cross_val_predict(KNeighborsClassifier(5), z, y, groups=groups, cv=LeaveOneGroupOut())
    assert neighbour_accuracy(x, y, groups) == pytest.approx(
        np.mean([(answers[y == k] == k).mean() for k in range(3)])
    )


def test_groups_hide_a_patient_from_himself():
    g = np.random.default_rng(0)
    groups, y = np.repeat(np.arange(20), 6), np.repeat(g.integers(0, 2, 20), 6)
    # patients differ, classes do not
    x = np.repeat(g.normal(size=(20, 8)), 6, axis=0) + 0.01 * g.normal(size=(120, 8))
    assert neighbour_accuracy(x, y) == 1 and neighbour_accuracy(x, y, groups) < 0.75
    with pytest.raises(DataError, match='groups'):
        neighbour_accuracy(x, y, np.zeros(120))


@pytest.mark.parametrize('method', ['pca', 'tsne'])
def test_embedding(model, images, labels, method):
    features = branch_features(model, images)
    fig = embedding_figure(features, labels, CLASSES, method, stage=2)
    assert isinstance(fig, Figure) and len(fig.axes) == 4
    assert len({(ax.get_xlim(), ax.get_ylim()) for ax in fig.axes}) == 1 and all(
        ax.get_aspect() == 1 for ax in fig.axes
    )
    assert ('mean nothing' in fig.get_supxlabel()) == (method == 'tsne')
    first, again = (project(features['sr', 2, 'after'], method)[0] for _ in range(2))
    assert np.array_equal(first, again) and first.shape == (12, 2)
    assert len(embedding_table(features, labels)) == 8


def test_embedding_refuses_too_little():
    with pytest.raises(DataError, match='too few'):
        project(np.zeros((4, 8)))
    assert project(np.random.default_rng(0).normal(size=(5, 8)), 'tsne')[0].shape == (5, 2)
    with pytest.raises(DataError, match='same label'):
        embedding_table({('sr', 1, 'before'): np.zeros((9, 3))}, [0] * 9)
