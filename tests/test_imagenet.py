"""A branch that starts from ImageNet: a stand-in file takes the place of torchvision's weights, and a folder
or a silent server that of the network."""
import hashlib
import socket
import time

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import ResNet18_Weights, resnet18

from srdiag.core import hub
from srdiag.core.errors import ModelError
from srdiag.diagnosis import pretrained
from srdiag.diagnosis.branches import STEMS, ResNet18Branch
from srdiag.diagnosis.pretrained import (adapt_kernel, imagenet_cache, imagenet_file, imagenet_weights,
                                         is_imagenet, start_from_imagenet)


@pytest.fixture(scope='module')
def theirs():
    "torchvision's network; its batch norms have seen something"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = resnet18()
        for _ in range(2): net(torch.randn(4, 3, 64, 64))
    net.fc = nn.Identity()
    return net.eval()


@pytest.fixture
def state(theirs):
    return {**theirs.state_dict(), 'fc.weight': torch.zeros(1000, 512), 'fc.bias': torch.zeros(1000)}


@pytest.fixture
def file(state, tmp_path):
    torch.save(state, tmp_path/'stand-in.pth')
    return tmp_path/'stand-in.pth'


@pytest.fixture
def offline(monkeypatch, tmp_path):
    "An empty cache, and an address where nobody is"
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path/'hub'))
    monkeypatch.setattr(pretrained, '_address', lambda: (tmp_path/'nowhere'/pretrained.WEIGHTS_FILE).as_uri())
    return tmp_path/'hub'/'checkpoints'/pretrained.WEIGHTS_FILE


@pytest.fixture
def online(monkeypatch, file, offline):
    "An empty cache, and the stand-in at the address, under a name with its checksum"
    digits = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    source = file.rename(file.with_name(f'resnet18-{digits}.pth'))
    monkeypatch.setattr(pretrained, 'WEIGHTS_FILE', source.name)
    monkeypatch.setattr(pretrained, '_address', lambda: source.as_uri())
    return source


def test_the_branch_computes_what_torchvision_computes(theirs, file):
    branch, x = start_from_imagenet(ResNet18Branch(3, '7x7'), file).eval(), torch.rand(2, 3, 96, 96)
    with torch.no_grad(): torch.testing.assert_close(branch(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_safetensors_and_half_precision(state, tmp_path, theirs):
    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    save_file(half, tmp_path/'half.safetensors')
    branch = start_from_imagenet(ResNet18Branch(), tmp_path/'half.safetensors')
    assert {v.dtype for v in branch.parameters()} == {torch.float32}
    torch.testing.assert_close(branch.layer4[1].conv2.weight, theirs.layer4[1].conv2.weight, rtol=1e-3,
                               atol=1e-4)


def test_files_of_old_versions_count_no_batches(state, file):
    torch.save({k: v for k, v in state.items() if 'num_batches' not in k}, file)
    start_from_imagenet(ResNet18Branch(), file)


@pytest.mark.parametrize('stem', STEMS)
def test_grey_is_three_equal_channels(stem, file):
    grey = start_from_imagenet(ResNet18Branch(1, stem), file).eval()
    rgb = start_from_imagenet(ResNet18Branch(3, stem), file).eval()
    x = torch.rand(2, 1, 24, 24)
    with torch.no_grad(): one, three = grey(x), rgb(x.expand(-1, 3, -1, -1))
    torch.testing.assert_close(one, three, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('k', [1, 2, 3, 5, 7])
def test_a_small_kernel_answers_as_the_large_one_on_the_enlarged_patch(k):
    weight, patch = torch.randn(6, 3, 7, 7, dtype=torch.float64), torch.randn(4, 3, k, k, dtype=torch.float64)
    small, large = adapt_kernel(weight, k, 3), nn.functional.interpolate(patch, size=7, mode='bicubic')
    torch.testing.assert_close(torch.einsum('bcij,ncij->bn', patch, small),
                               torch.einsum('bcij,ncij->bn', large, weight))
    torch.testing.assert_close(small.sum((2, 3)), weight.sum((2, 3))) # a constant image


def test_the_given_kernel_is_left_alone():
    weight = torch.randn(2, 3, 7, 7)
    adapt_kernel(weight, 7, 3).zero_()
    assert weight.abs().sum() > 0


def test_no_random_number_is_drawn(file):
    branch = ResNet18Branch(1, '3x3')
    before = torch.get_rng_state()
    start_from_imagenet(branch, file)
    assert torch.equal(torch.get_rng_state(), before)


# --- what is typed ----------------------------------------------------------------------------------------

def test_what_is_typed():
    assert [is_imagenet(t) for t in ('imagenet', 'imagenet:a.pth', './imagenet', 'imagenet2', 'scratch')] == [
        True, True, False, False, False]
    assert imagenet_file('imagenet') is None
    assert imagenet_file('imagenet:C:/a b.pth').as_posix() == 'C:/a b.pth'
    for empty in ('imagenet:', 'imagenet: '):
        with pytest.raises(ModelError, match='names no file'): imagenet_file(empty)


# --- cache and network ------------------------------------------------------------------------------------

def test_the_file_is_the_one_that_torchvision_names():
    assert ResNet18_Weights.IMAGENET1K_V1.url.endswith('/'+pretrained.WEIGHTS_FILE)
    assert pretrained._address() == ResNet18_Weights.IMAGENET1K_V1.url


def test_the_cache_is_read_first(offline, file):
    offline.parent.mkdir(parents=True)
    file.rename(offline)
    assert imagenet_cache() == offline and len(imagenet_weights()) == 100


def test_download(online):
    assert not imagenet_cache().exists()
    assert torch.equal(imagenet_weights()['bn1.weight'], imagenet_weights(online)['bn1.weight'])
    assert imagenet_cache().read_bytes() == online.read_bytes() and socket.getdefaulttimeout() is None


def test_a_download_that_was_exchanged_never_enters_the_cache(online):
    online.write_bytes(b'please log in')
    with pytest.raises(ModelError, match='could not be downloaded'): imagenet_weights()
    assert not [*imagenet_cache().parent.iterdir()]


def test_without_a_network_a_sentence_says_what_to_do(offline):
    with pytest.raises(ModelError) as told: imagenet_weights()
    for part in ('resnet18-f37072fd.pth', str(offline.parent), 'imagenet:FILE', 'scratch'):
        assert part in str(told.value)
    assert socket.getdefaulttimeout() is None


def test_a_network_that_swallows_everything(offline, monkeypatch):
    with socket.create_server(('127.0.0.1', 0)) as silent: # takes the call and says nothing
        monkeypatch.setattr(hub, 'PATIENCE', 0.3)
        address = f'http://127.0.0.1:{silent.getsockname()[1]}/a.pth'
        monkeypatch.setattr(pretrained, '_address', lambda: address)
        monkeypatch.setenv('no_proxy', '127.0.0.1')
        start = time.monotonic()
        with pytest.raises(ModelError, match='timed out'): imagenet_weights()
        assert time.monotonic() - start < 10


# --- files that do not fit --------------------------------------------------------------------------------

def changed(state, **changes): return {k: v for k, v in {**state, **changes}.items() if v is not None}


@pytest.mark.parametrize('changes,what', [
    ({'layer2.0.downsample.0.weight': None}, 'lacks layer2.0.downsample.0.weight'),
    ({'layer1.2.conv1.weight': torch.zeros(64, 64, 3, 3)}, 'unknown layer1.2.conv1.weight'), # ResNet-34
    ({'conv1.weight': torch.zeros(64, 1, 7, 7)}, 'wrong shape for conv1.weight'),
    ({'bn1.running_var': torch.full((64,), torch.nan)}, 'damaged'),
    ({'conv1.weight': torch.zeros(64, 3, 7, 7, dtype=torch.uint8)}, 'damaged'),
    ({'epoch': 3}, 'no state dict')])
def test_another_network(state, file, changes, what):
    torch.save(changed(state, **changes), file)
    branch = ResNet18Branch()
    before = {k: v.clone() for k, v in branch.state_dict().items()}
    with pytest.raises(ModelError, match=what): start_from_imagenet(branch, file)
    assert all(torch.equal(v, before[k]) for k, v in branch.state_dict().items())


class Program:
    def __reduce__(self): return print, ('executed',)


@pytest.mark.parametrize('content', [b'', b'nonsense', b'\x80\x02.', b'PK\3\4'+b'\0'*100])
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_a_damaged_file(tmp_path, content, suffix):
    path = tmp_path/f'a{suffix}'
    path.write_bytes(content)
    with pytest.raises(ModelError, match=rf'a\{suffix} cannot be read as weights'): imagenet_weights(path)


def test_nothing_in_a_file_is_executed(tmp_path, capsys):
    torch.save({'conv1.weight': Program()}, tmp_path/'a.pth')
    with pytest.raises(ModelError, match='nothing in it was executed'): imagenet_weights(tmp_path/'a.pth')
    assert capsys.readouterr().out == ''


@pytest.mark.parametrize('content', [3, None, [torch.zeros(3)], torch.zeros(3), {}, {'state_dict': {}},
                                     {1: torch.zeros(1)}])
def test_a_file_that_holds_something_else(tmp_path, content):
    torch.save(content, tmp_path/'a.pth')
    with pytest.raises(ModelError, match='a.pth'): imagenet_weights(tmp_path/'a.pth')


def test_a_file_that_is_not_there(tmp_path):
    for path in (tmp_path/'a.pth', tmp_path):
        with pytest.raises(ModelError, match='no file'): imagenet_weights(path)


def test_branches_that_do_not_fit_are_refused_before_anything_is_fetched(offline):
    with pytest.raises(ModelError, match='wide, not 16'): start_from_imagenet(ResNet18Branch(width=16))
    with pytest.raises(ModelError, match='not of 4'): start_from_imagenet(ResNet18Branch(4))
    assert not offline.parent.exists()
