"""The networks and the method, against second implementations."""
import copy
import itertools
import re

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from torchvision.models import ResNet50_Weights, get_model, resnet50
from torchvision.transforms import functional

import hopenet
import shufflenet
from cbam import CBAM
from headpose.errors import WeightsError
from headpose.geometry import draw, pose
from headpose.networks import fusion, weights
from headpose.networks.efficientnet_lite import EfficientNetLite0
from headpose.training.checkpoint import load_network
from headpose.training.options import BACKBONES
from hopenet import AttNet
from shufflenet import ShuffleNet
from tests.helpers import MOBILE, headless
from tools import original

ANGLES = st.floats(-99, 99, width=32)


@pytest.fixture(scope='module')
def attnet():
    torch.manual_seed(0)
    return AttNet()


def features(model, images):
    """Returns what a network hands to its heads."""
    caught = []
    hook = model.fc_yaw.register_forward_pre_hook(
        lambda _, inputs: caught.append(inputs[0]))
    with torch.no_grad():
        model(images)
    hook.remove()
    return caught[0]


@pytest.mark.parametrize('reference, own', [
    ('resnet50', lambda: AttNet('none')), ('shufflenet_v2_x1_0', ShuffleNet),
    *zip(shufflenet.MARKS, MOBILE)])
def test_features_are_torchvisions(reference, own):
    torch.manual_seed(0)
    reference = (EfficientNetLite0() if reference == 'efficientnet_lite0'
                 else get_model(reference)).eval()
    own = own().eval()
    own.load_pretrained(reference.state_dict())
    if hasattr(reference, 'fc'):
        reference.fc = torch.nn.Identity()
    else:
        reference.classifier[-1] = torch.nn.Identity()
    images = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        assert torch.equal(features(own, images), reference(images))


@pytest.mark.quick
@pytest.mark.parametrize('gradients', [False, True])
def test_cbam_is_the_releases(gradients):
    torch.manual_seed(0)
    module = CBAM(64).eval()
    torch.nn.init.ones_(module.SpatialGate.spatial.bn.weight)
    release = original.plain(copy.deepcopy(module))
    x = torch.randn(2, 64, 7, 9, requires_grad=gradients)
    residual = torch.randn(2, 64, 7, 9)
    with torch.set_grad_enabled(gradients):
        ours, theirs = module(x), release(x)
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(module(x, residual), theirs + residual)
    if gradients:
        torch.testing.assert_close(torch.autograd.grad(ours.sum(), x),
                                   torch.autograd.grad(theirs.sum(), x))


@pytest.mark.quick
def test_fresh_spatial_gate_is_even():
    module = CBAM(32).SpatialGate.eval()
    x = torch.randn(1, 32, 5, 5)
    torch.testing.assert_close(module(x), x / 2)


@pytest.mark.quick
def test_initial_attention_is_the_releases():
    """Its ResNet draws and sets these by parts of their names."""
    torch.manual_seed(0)
    modules = [CBAM(512) for _ in range(40)]
    weights = torch.cat([m.SpatialGate.spatial.conv.weight.flatten()
                         for m in modules])
    # Kaiming, fan out: of one map of 7 x 7.
    assert weights.std().item() == pytest.approx((2 / 49) ** 0.5, rel=0.05)
    assert abs(weights.mean().item()) < 0.02
    for name, value in modules[0].named_parameters():
        if name.endswith('bias') or name.endswith('bn.weight'):
            assert not value.any(), name


@pytest.mark.quick
def test_the_spatial_gates_statistics_move_by_a_hundredth():
    module = CBAM(32).train()
    norm = module.SpatialGate.spatial.bn
    seen = []
    norm.register_forward_hook(lambda _, inputs, out: seen.append(inputs[0]))
    module(torch.randn(4, 32, 9, 9))
    torch.testing.assert_close(norm.running_mean, 0.01 * seen[0].mean()[None])
    torch.testing.assert_close(
        norm.running_var, 0.99 + 0.01 * seen[0].var()[None])


@pytest.mark.quick
def test_attention_comes_before_the_residual_sum(attnet):
    torch.manual_seed(0)
    model = copy.deepcopy(attnet).eval()
    for block, channels in ((model.layer1[0], 64), (model.layer1[1], 256)):
        torch.nn.init.ones_(block.cbam.SpatialGate.spatial.bn.weight)
        x = torch.randn(2, channels, 9, 9)
        with torch.no_grad():
            out = block.relu(block.bn1(block.conv1(x)))
            out = block.relu(block.bn2(block.conv2(out)))
            out = block.bn3(block.conv3(out))
            shortcut = block.downsample(x) if block.downsample else x
            torch.testing.assert_close(
                block(x), torch.relu(block.cbam(out) + shortcut))


def test_parameter_counts_are_the_documents(attnet):
    def count(model):
        return sum(p.numel() for p in model.parameters())
    assert count(attnet) == 26_446_326
    assert count(ShuffleNet()) == 1_456_554
    # What the document counts beside: fc_finetune, an ImageNet classifier.
    assert round((count(attnet) + 6_156) / 1e6, 1) == 26.5
    assert round((count(ShuffleNet()) + 1_025_000) / 1e6, 1) == 2.5


@pytest.mark.quick
def test_key_names_are_the_releases(attnet):
    keys = attnet.state_dict().keys() | ShuffleNet().state_dict().keys()
    assert {'layer1.0.cbam.ChannelGate.mlp.1.weight',
            'layer1.0.cbam.ChannelGate.mlp.3.bias',
            'layer1.0.cbam.SpatialGate.spatial.conv.weight',
            'layer4.2.cbam.SpatialGate.spatial.bn.running_mean',
            'conv1.0.weight', 'stage2.0.branch1.0.weight',
            'fc_yaw.weight', 'fc_pitch.bias', 'fc_roll.weight'} <= keys


@pytest.mark.parametrize('size', [(32, 32), (97, 130), (224, 224)])
@pytest.mark.parametrize('make', [AttNet, ShuffleNet, *MOBILE])
def test_any_size_and_batch(make, size):
    model = make().eval()
    for batch in (1, 3):
        with torch.no_grad():
            assert model(torch.randn(batch, 3, *size)).shape == (batch, 3, 66)


@pytest.mark.parametrize('width', shufflenet.CHANNELS)
def test_every_width_fits_its_imagenet_weights(width):
    model = ShuffleNet(width)
    weights = model.imagenet_weights
    published = weights.meta['num_params'] - model.fc_yaw.in_features * 1000
    heads = 3 * (model.fc_yaw.in_features + 1) * 66
    count = sum(p.numel() for p in model.parameters())
    assert count == published - 1000 + heads


# -------------------------------------------------------- bins and the loss

@pytest.mark.quick
@given(ANGLES)
def test_bins_are_hopenets(angle):
    edges = np.arange(-99, 102, 3)
    expected = min(np.digitize(angle, edges) - 1, 65)
    assert hopenet.bin_index(torch.tensor(angle)) == expected


@pytest.mark.quick
def test_pixels_are_normalised_as_torchvisions_networks_want_them(attnet):
    images = torch.randint(256, (2, 3, 9, 8), dtype=torch.uint8)
    weights = ResNet50_Weights.IMAGENET1K_V1.transforms()
    expected = functional.normalize(images / 255, weights.mean, weights.std)
    torch.testing.assert_close(attnet.normalize(images), expected)


@pytest.mark.quick
def test_the_ends_of_the_range_have_bins():
    ends = torch.tensor([-99.0, 99.0, 98.999])
    assert hopenet.bin_index(ends).tolist() == [0, 65, 65]
    # What rounding leaves a little beyond them is in the last, too.
    beyond = torch.tensor([-99.0001, 99.0001])
    assert hopenet.bin_index(beyond).tolist() == [0, 65]


@pytest.mark.quick
def test_decoding_of_a_certain_bin_is_its_lower_edge():
    logits = 1e4 * torch.eye(66)  # softmax by hand overflowed here
    expected = torch.arange(66) * 3.0 - 99
    assert torch.equal(hopenet.decode(logits), expected)


def naive_loss(logits, angles, alpha):
    """HopeNet's training loop, axis by axis."""
    index = torch.arange(66, dtype=torch.float32)
    total = 0
    for axis in range(3):
        binned = torch.from_numpy(np.digitize(
            angles[:, axis].numpy(), np.array(range(-99, 102, 3))) - 1)
        cross_entropy = torch.nn.CrossEntropyLoss()(logits[:, axis], binned)
        predicted = torch.sum(
            F.softmax(logits[:, axis], 1) * index, 1) * 3 - 99
        total += cross_entropy + alpha * torch.nn.MSELoss()(
            predicted, angles[:, axis])
    return total


@pytest.mark.quick
@pytest.mark.parametrize('alpha', [0, 1, 2])
def test_loss_is_the_naive_one(alpha):
    torch.manual_seed(1)
    logits = torch.randn(7, 3, 66, requires_grad=True)
    angles = torch.rand(7, 3) * 190 - 95
    ours = hopenet.pose_loss(logits, angles, alpha).mean()
    naive = naive_loss(logits, angles, alpha)
    torch.testing.assert_close(ours, naive)
    torch.testing.assert_close(torch.autograd.grad(ours, logits),
                               torch.autograd.grad(naive, logits),
                               rtol=1e-5, atol=1e-4)


@pytest.mark.quick
def test_soft_bins_want_the_angle_itself():
    """HopeNet's classes alone want the lower edge of the angle's bin."""
    torch.manual_seed(0)
    angles = torch.rand(7, 3) * 195 - 99  # up to 96 degrees
    shares = hopenet.bin_shares(angles)
    logits = shares.log().clamp(min=-30).requires_grad_()
    np.testing.assert_allclose(hopenet.decode(logits).detach(), angles,
                               atol=1e-3)
    hopenet.pose_loss(logits, angles, soft_bins=True).sum().backward()
    assert logits.grad.abs().max() < 1e-3
    classes = F.one_hot(hopenet.bin_index(angles), 66)
    edges = hopenet.decode(60.0 * classes)
    assert 1 < (angles - edges).mean() < 2


@pytest.mark.quick
def test_soft_bins_end_with_the_last_bin():
    shares = hopenet.bin_shares(torch.tensor([-99.0, 96.0, 99.0]))
    assert shares.argmax(1).tolist() == [0, 65, 65]
    torch.testing.assert_close(shares.sum(1), torch.ones(3))


# ------------------------------------------------------------------- angles

@pytest.mark.quick
@given(ANGLES, ANGLES, ANGLES)
def test_rotation_is_3ddfas(yaw, pitch, roll):
    # 3DDFA: R = Rx Ry Rz, all of the inverse sense, in axes with y upwards.
    upward = Rotation.from_euler('XYZ', [-pitch, -yaw, -roll],
                                 degrees=True).as_matrix()
    flip = np.diag([1, -1, 1])
    np.testing.assert_allclose(pose.rotation_matrix([yaw, pitch, roll]),
                               flip @ upward @ flip, atol=1e-9)


@pytest.mark.quick
@pytest.mark.parametrize('angles, where', [
    ((60, 0, 0), (-1, 0)), ((-60, 0, 0), (1, 0)),
    ((0, 60, 0), (0, -1)), ((0, -60, 0), (0, 1))])
@pytest.mark.parametrize('cube', [False, True])
def test_the_drawn_nose_points_where_the_angles_say(angles, where, cube):
    image = np.zeros((200, 200, 3), np.uint8)
    draw.draw_pose(image, angles, (100, 100), 60, cube)
    # The nose's axis is blue; of a cube, the face's side is green.
    face = np.argwhere(image[..., 1 if cube else 0] > 128).mean(0)[::-1] - 100
    assert face @ where > 10 and abs(face @ where[::-1]) < 5


@pytest.mark.quick
def test_roll_is_clockwise():
    down = pose.rotation_matrix([0, 0, 30])[:, 1]
    assert down[0] < 0 < down[1]  # the chin goes left


# ------------------------------------------------ pretrained weights, groups

def trainable(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize('make', [
    AttNet, lambda: AttNet('none'), ShuffleNet, *MOBILE])
@pytest.mark.parametrize('pretrained', [False, True])
def test_each_trained_parameter_is_in_one_group_once(make, pretrained):
    model = make()
    if pretrained:
        model.load_pretrained(headless(model))
    groups = model.parameter_groups(1e-5)
    listed = [p for group in groups for p in group['params']]
    names = {id(p): name for name, p in model.named_parameters()}
    assert len(listed) == len({id(p) for p in listed})
    assert {names[id(p)] for p in listed} == trainable(model)
    heads = {names[id(p)] for group in groups if group['lr'] == 5e-5
             for p in group['params']}
    assert heads == {f'fc_{axis}.{kind}' for axis, kind in itertools.product(
        ('yaw', 'pitch', 'roll'), ('weight', 'bias'))}
    assert {group['lr'] for group in groups} == {1e-5, 5e-5}
    assert all((group.get('weight_decay') == 0) == (p.ndim == 1)
               for group in groups for p in group['params'])
    frozen = set(names.values()) - trainable(model)
    assert frozen == {name for name in names.values() if pretrained
                      and name.startswith(model.stem)}


def test_a_resnet_file_leaves_only_attention_and_heads_fresh(attnet):
    torch.manual_seed(0)
    state = resnet50(weights=None).state_dict()
    model = AttNet()
    model.load_pretrained(state)
    assert torch.equal(model.layer3[0].conv2.weight,
                       state['layer3.0.conv2.weight'])
    model.set_train_mode()
    live = {name for name, module in model.named_modules()
            if isinstance(module, torch.nn.BatchNorm2d) and module.training}
    assert live == {f'layer{stage + 1}.{block}.cbam.SpatialGate.spatial.bn'
                    for stage, blocks in enumerate((3, 4, 6, 3))
                    for block in range(blocks)}


def test_an_official_cbam_file_freezes_all_statistics(attnet):
    state = {f'module.{key}': value for key, value
             in attnet.state_dict().items() if not key.startswith('fc_')}
    state['module.fc.weight'] = torch.zeros(1000, 2048)
    model = AttNet()
    model.load_pretrained(state)
    model.set_train_mode()
    assert not any(module.training for module in model.modules()
                   if isinstance(module, torch.nn.BatchNorm2d))


@pytest.mark.parametrize('make', [
    AttNet, lambda: AttNet('none'), ShuffleNet, *MOBILE])
def test_frozen_norms_in_the_convolutions_change_no_gradient(make,
                                                             monkeypatch):
    torch.manual_seed(0)
    model = make()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2)
    model.load_pretrained(model.state_dict())
    model.set_train_mode()
    model.double()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    results = []
    for apply in (fusion.conv_norm, lambda conv, norm, x: norm(conv(x))):
        for place in (fusion, hopenet):
            monkeypatch.setattr(place, 'conv_norm', apply)
        model.zero_grad()
        logits = model(images)
        logits.square().sum().backward()
        results.append([logits] + [p.grad for p in model.parameters()])
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


@pytest.mark.quick
def test_the_convention_is_scipys_and_opencvs_as_pose_says():
    line, = re.findall(r'^    (Rotation.from_euler.*)$', pose.__doc__, re.M)
    example = re.compile(r'yaw ([\d.]+), pitch ([\d.]+), roll ([\d.]+) is\s+'
                         r'x ([-\d.]+), y ([-\d.]+),\s+z ([-\d.]+\d)')
    found = [[float(number) for number in numbers]
             for numbers in example.findall(pose.__doc__)]
    assert len(found) == 1
    for yaw, pitch, roll, *opencv in found:
        matrix = pose.rotation_matrix((yaw, pitch, roll))
        np.testing.assert_allclose(matrix, eval(line, {
            'Rotation': Rotation, 'yaw': yaw, 'pitch': pitch,
            'roll': roll}), atol=1e-12)
        np.testing.assert_allclose(cv2.RQDecomp3x3(matrix)[0], opencv,
                                   atol=0.05)


@pytest.mark.parametrize('make', [
    AttNet, lambda: AttNet('none'), ShuffleNet, *MOBILE])
def test_inference_is_the_plain_networks_within_a_thousandth_of_a_degree(
        make):
    torch.manual_seed(0)
    model = make().train()
    for _ in range(2):  # statistics other than those of a fresh network
        model(torch.randn(4, 3, 64, 64))
    fast = fusion.for_inference(model)
    for size in (96, 64):
        images = torch.randn(3, 3, size, size)
        with torch.inference_mode():
            apart = hopenet.decode(model.eval()(images)) - hopenet.decode(
                fast(images))
        assert apart.abs().max() < 1e-3
    assert not any(isinstance(module, torch.nn.BatchNorm2d)
                   for module in fast.modules())
    assert model.state_dict().keys() == make().state_dict().keys()


@pytest.mark.quick
def test_the_bins_deviation_is_the_distributions_deviation():
    logits = torch.full((3, 3, 66), -1e4)
    logits[0, :, 20] = 0                     # sure of one bin
    logits[1, :, [20, 22]] = 0               # two bins, 6 degrees apart
    logits[2, 0, [10, 30]] = 0               # 60 degrees apart, in yaw alone
    logits[2, 1:, 20] = 0
    torch.testing.assert_close(
        hopenet.bin_std(logits), torch.tensor([0, 3, (30 ** 2 / 3) ** 0.5]))


@pytest.mark.quick
def test_a_fresh_network_has_live_statistics():
    model = ShuffleNet().eval()
    model.set_train_mode()
    assert all(module.training for module in model.modules())


@pytest.mark.quick
@pytest.mark.parametrize('spoil, message', [
    (lambda s: s.pop('layer2.1.conv2.weight'),
     r'1 missing \(layer2.1.conv2.weight\)'),
    (lambda s: s.update(surprise=torch.zeros(1)),
     r'1 unexpected \(surprise\)'),
    (lambda s: s.update({'conv1.weight': torch.zeros(64, 1, 7, 7)}),
     r'1 of another shape \(conv1.weight \(64, 1, 7, 7\)\)'),
    (lambda s: s.pop('layer1.0.cbam.ChannelGate.mlp.1.bias'),
     r'missing \(layer1.0.cbam.ChannelGate.mlp.1.bias\)'),
    (lambda s: s.pop('fc_roll.weight'), r'missing \(fc_roll.weight\)')])
def test_pretrained_weights_hold_no_surprise(attnet, spoil, message):
    state = dict(attnet.state_dict())
    spoil(state)
    with pytest.raises(WeightsError, match=message):
        AttNet().load_pretrained(state)


@pytest.mark.quick
def test_a_file_without_attention_may_lack_nothing_else():
    model = ShuffleNet(0.5)
    state = model.state_dict()
    del state['stage2.0.branch1.0.weight']
    with pytest.raises(WeightsError, match='missing .stage2.0.branch1.0.we'):
        model.load_pretrained(state)


# -------------------------------------------------------------- the registry

@pytest.mark.parametrize('make', [
    AttNet, lambda: AttNet('none'), ShuffleNet, lambda: ShuffleNet(0.5),
    *MOBILE])
@pytest.mark.parametrize('bare', [False, True])
def test_a_state_dict_rebuilds_its_network(make, bare):
    model = make()
    again = shufflenet.rebuild(model.state_dict(),
                               None if bare else model.config)
    assert again.config == model.config and type(again) is type(model)
    assert again.state_dict().keys() == model.state_dict().keys()


def test_a_checkpoint_that_says_one_network_and_holds_another_is_refused(
        tmp_path):
    path = tmp_path / 'x.pkl'
    model = ShuffleNet(0.5)
    for config in (AttNet().config, ShuffleNet().config,
                   {'network': 'mobile', 'backbone': 'mobilenet_v2'}):
        torch.save({'network': config, 'model': model.state_dict()}, path)
        with pytest.raises(WeightsError) as caught:
            load_network(path, shufflenet.rebuild)
        said = str(caught.value)
        assert said.startswith(f'{path}: ') and '\n' not in said
        assert config['network'] in said and "'shufflenet 0.5'" in said


@pytest.mark.quick
def test_weights_of_no_network_of_ours_are_refused():
    with pytest.raises(WeightsError, match='of ResNet-50, ShuffleNetV2, mob'):
        shufflenet.rebuild({'features.0.0.weight': torch.zeros(1)})


def test_the_command_line_names_the_backbones_that_there_are():
    assert BACKBONES == ('shufflenet', *shufflenet.MARKS)
    for name in BACKBONES:
        config = shufflenet.make_network(name).config
        assert config.get('backbone', config['network']) == name


def test_a_third_partys_weights_give_their_own_answers(third_party):
    """Against torchvision's network with HopeNet's heads, built by hand."""
    model, _ = load_network(third_party, shufflenet.rebuild)
    state = weights.plain_keys(torch.load(third_party, weights_only=True))
    reference = get_model('shufflenet_v2_x1_0')
    reference.fc = torch.nn.Identity()
    images = torch.randint(256, (4, 3, 224, 224), dtype=torch.uint8)
    mean, std = (torch.tensor(values)[:, None, None] for values in (
        hopenet.PIXEL_MEAN, hopenet.PIXEL_STD))
    heads = [torch.nn.Linear(1024, 66) for _ in range(3)]
    reference.load_state_dict({key: value for key, value in state.items()
                               if not key.startswith('fc_')}, strict=False)
    for axis, head in zip(('yaw', 'pitch', 'roll'), heads):
        head.load_state_dict({name: state[f'fc_{axis}.{name}']
                              for name in ('weight', 'bias')})
    with torch.inference_mode():
        seen = reference.eval()((images - mean) / std)
        expected = torch.stack([head(seen) for head in heads], 1)
    found = model.eval().predict(images)
    torch.testing.assert_close(found.logits, expected, rtol=0, atol=1e-4)
    fast = fusion.for_inference(model).predict(images)
    assert np.abs(fast.angles - found.angles).max() < 1e-3


# ------------------------------------------------------- a network's methods

@pytest.fixture
def tiny():
    class Tiny(hopenet.PoseNetwork):
        """Sees the mean colour of an image's left half."""

        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.norm = torch.nn.BatchNorm2d(3)
            self.add_heads(3, {'network': 'tiny'})

        def maps(self, x):
            """Maps (N, 3, H, W) to (N, 3, H, 2)."""
            return self.norm(x[..., :2])
    return Tiny()


IMAGES = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 4), np.uint8)


@pytest.mark.quick
def test_an_answer_is_the_networks_on_normalised_pixels(tiny):
    found = tiny.eval().predict(IMAGES)
    with torch.no_grad():
        logits = tiny(tiny.normalize(torch.from_numpy(IMAGES)))
    assert torch.equal(found.logits, logits)
    np.testing.assert_array_equal(found.angles, tiny.decode(logits).numpy())
    np.testing.assert_array_equal(found.bin_std, tiny.bin_std(logits).numpy())
    angles = torch.rand(5, 3) * 90
    assert torch.equal(tiny.loss(logits, angles, 1.5),
                       hopenet.pose_loss(logits, angles, 1.5))


@pytest.mark.quick
def test_an_answer_on_two_mirror_images_is_the_mean_of_theirs(tiny):
    tiny.eval()
    both = tiny.predict(IMAGES, flip=True)
    plain, mirrored = (tiny.predict(torch.from_numpy(images))
                       for images in (IMAGES, IMAGES[..., ::-1].copy()))
    np.testing.assert_allclose(both.bin_std,
                               (plain.bin_std + mirrored.bin_std) / 2)
    assert (plain.bin_std != mirrored.bin_std).all()
    # Of small angles, the mean rotation has nearly the mean angles.
    np.testing.assert_allclose(both.angles, (
        plain.angles + mirrored.angles * pose.MIRROR) / 2, atol=0.2)
    assert np.abs(both.angles - plain.angles).max() > 0.4
    assert torch.equal(both.logits, plain.logits)


def test_the_pixels_statistics_go_with_the_network_and_in_no_file(tiny):
    assert not any('pixel' in key for key in tiny.state_dict())
    moved = copy.deepcopy(tiny).to('meta')
    assert moved.pixel_mean.is_meta and moved.pixel_std.is_meta
    program = torch.export.export(tiny.eval(), (tiny.normalize(
        torch.from_numpy(IMAGES)),))
    assert not any('pixel' in key for key in program.state_dict)


@pytest.mark.quick
@pytest.mark.parametrize('as_published', [False, True])
def test_pretrained_statistics_stay_and_fresh_ones_are_live(tiny,
                                                            as_published):
    tiny.eval().set_train_mode(as_published)
    assert tiny.norm.training == (not as_published)
    tiny.pretrained_norms = ['norm']
    tiny.set_train_mode(as_published)
    assert not tiny.norm.training
    assert tiny.fc_yaw.training == (not as_published)
