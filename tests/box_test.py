"""The face's box: found in a crop, and cropped around again."""
import functools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import datasets
import test_shufflenet
import train_shufflenet
from headpose.errors import RunError, UserError
from headpose.geometry import augment, crop
from headpose.geometry.pose import best_guess
from headpose.inference.backends import OnnxNetwork, TorchNetwork
from headpose.inference.estimator import Estimator
from headpose.inference.looks import look_at
from headpose.networks import portable
from headpose.readers.images import read_image
from headpose.training.checkpoint import load_network, trained_size
from headpose.training.looks import evaluate_looks
from headpose.training.options import SHIPPED
from hopenet import BOX_HEAD, USUAL_BOX, AttNet, BoxHead, box_loss
from shufflenet import MobileNetwork, ShuffleNet, rebuild
from tests.conftest import ROOT
from tests.draws import drawn
from tests.helpers import evaluation_options, last, run_options, train

SIDES = st.floats(20, 300)


@pytest.fixture(scope='module')
def trained(sample, tmp_path_factory):
    """A folder with a network that was trained with its box."""
    folder = tmp_path_factory.mktemp('box')
    train(sample, folder, '--find_box', '--box_jitter', 0.3)
    return folder


# ------------------------------------------------------------------- geometry

@settings(deadline=None, max_examples=60)
@given(st.tuples(SIDES, SIDES, SIDES, SIDES), st.sampled_from([64, 128, 224]))
def test_a_point_of_the_crop_is_found_again_in_the_picture(sides, size):
    """A bright dot in a picture, and where the test's crop shows it."""
    x, y, width, height = sides
    if max(width, height) > 4 * min(width, height):
        return
    picture = np.zeros((700, 700), np.float32)
    dot = np.array([x + width / 2, y + height / 2])
    row, column = np.mgrid[:700, :700] + 0.5
    sigma = min(width, height) / 8
    picture = 255 * np.exp(-((column - dot[0]) ** 2 + (row - dot[1]) ** 2)
                           / (2 * sigma ** 2))
    box = (x, y, x + width, y + height)
    made = np.asarray(crop.protocol_crop(
        Image.fromarray(np.uint8(picture)).convert('RGB'), box, size))[..., 0]
    weights = made.astype(float) ** 2
    row, column = (np.mgrid[:size, :size] + 0.5) / size
    place = [(weights * axis).sum() / weights.sum() for axis in (column, row)]
    found = crop.box_in_picture([*place, *place], box, size)
    np.testing.assert_allclose(found[:2], dot, atol=0.02 * max(sides[2:]) + 1)
    np.testing.assert_array_equal(found[:2], found[2:])


def test_the_usual_box_gives_the_box_before():
    found = crop.box_in_picture(USUAL_BOX, (300, 200, 500, 400), 128)
    np.testing.assert_allclose(found, (300, 200, 500, 400), atol=3)


@pytest.mark.parametrize('shares', [
    [0.5, 0.5, 0.5, 0.5], [0.9, 0.2, 0.1, 0.8], [np.nan] * 4,
    [40, 40, 41, 41], [0.1, 0.1, 30, 30]])
def test_a_box_that_cannot_be_cropped_leaves_the_one_before(shares):
    box = np.array([30.0, 40, 90, 100])
    assert crop.next_box(shares, box, 128, 200, 150) is box
    moved = crop.next_box([0.2, 0.3, 0.7, 0.8], box, 128, 200, 150)
    assert not crop.crop_problem(moved, 200, 150) and (moved != box).all()


@pytest.mark.parametrize('flip', [0.1, 0.9])
def test_a_training_crop_shows_the_face_where_its_box_says(flip):
    """Around a drawn box: a white face on black."""
    image = np.zeros((300, 300, 3), np.uint8)
    face = 110, 90, 170, 160
    image[face[1]:face[3], face[0]:face[2]] = 255
    for more in ({}, {'test_framing': True}):
        augmentation = augment.Augmentation(box_jitter=0.4, **more)
        draws = drawn(flip=flip, jitter_x=0.9, jitter_y=0.2, jitter_size=0.8,
                      margin=0.7, shift_x=0.3, shift_y=0.6, blur=0.9,
                      light=0.9, occlude=0.9, coarse=0.9)
        angles = np.float32([40, 0, 0])
        made, _ = augment.augmented_crop(image, face, angles, draws, 128,
                                         augmentation)
        shares = augment.box_in_crop(face, angles, draws, 128, augmentation)
        rows, columns = np.nonzero(made[..., 0] > 127)
        np.testing.assert_allclose(
            shares * 128, [columns.min(), rows.min(), columns.max() + 1,
                           rows.max() + 1], atol=2)


def test_the_box_of_a_turned_face_is_not_known():
    angles, box = np.float32([0, 0, 0]), (100, 50, 200, 150)
    for draw, known in ((0.5, True), (0.66, True), (0.7, False), (0.0, False)):
        shares = augment.box_in_crop(
            box, angles, drawn(turn=draw), 64, augment.Augmentation(30.0))
        assert np.isfinite(shares).all() == known


def test_glasses_lie_on_the_face_however_its_box_was_drawn():
    image = np.full((300, 300, 3), 200, np.uint8)
    face, angles = (110, 90, 170, 160), np.float32([0, 0, 0])
    augmentation = augment.Augmentation(box_jitter=0.4, occlude=1.0)
    for move in (0.0, 0.99):
        draws = drawn(flip=0.9, jitter_x=move, jitter_y=move, blur=0.9,
                      occlude=0.0, occluder=0.0, light=0.9, coarse=0.9)
        made, _ = augment.augmented_crop(image, face, angles, draws, 128,
                                         augmentation)
        left, top, right, bottom = 128 * augment.box_in_crop(
            face, angles, draws, 128, augmentation)
        rows, columns = np.nonzero(made[..., 0] < 150)
        assert len(rows)
        assert np.mean(columns) == pytest.approx((left + right) / 2, abs=4)
        assert top < np.mean(rows) < (top + bottom) / 2


# -------------------------------------------------------------------- network

@pytest.mark.parametrize('make', [
    lambda: ShuffleNet(0.5), lambda: AttNet('none'),
    lambda: MobileNetwork('mobilenet_v3_small')])
@pytest.mark.parametrize('size', [64, 96])
def test_each_network_finds_boxes_at_any_size(make, size):
    model = make().eval()
    model.add_box_head()
    images = np.random.default_rng(0).integers(0, 256, (2, 3, size, size),
                                               np.uint8)
    found = model.predict(images)
    assert found.boxes.shape == (2, 4) and np.isfinite(found.boxes).all()
    again = rebuild(model.state_dict(), model.config)
    assert again.config == model.config
    again.load_state_dict(model.state_dict())
    np.testing.assert_array_equal(again.eval().predict(images).boxes,
                                  found.boxes)


def test_the_box_head_sees_where_something_is():
    """A dot's place is learnt, whatever the size of the features' map."""
    torch.manual_seed(0)
    head = BoxHead(1)
    optimizer = torch.optim.Adam(head.parameters(), 3e-3)

    def dots(side, count=64):
        place = torch.randint(side, (count, 2))
        maps = torch.zeros(count, 1, side, side)
        maps[torch.arange(count), 0, place[:, 1], place[:, 0]] = side ** 2 / 8
        center = (place + 0.5) / side
        return maps, torch.cat((center - 0.1, center + 0.1), 1)

    for _ in range(600):
        maps, boxes = dots(4)
        optimizer.zero_grad()
        box_loss(head(maps), boxes).mean().backward()
        optimizer.step()
    with torch.no_grad():
        for side, most in ((4, 0.02), (7, 0.12)):
            maps, boxes = dots(side)
            assert (head(maps) - boxes).abs().mean() < most


def test_unknown_boxes_teach_nothing_and_the_features_are_left_alone():
    features = torch.rand(3, 8, 2, 2, requires_grad=True)
    head = BoxHead(8)
    boxes = torch.tensor([[0.1, 0.1, 0.9, 0.9]] * 3)
    boxes[1] = torch.nan
    losses = box_loss(head(features), boxes)
    assert (losses > 0).tolist() == [True, False, True]
    losses.sum().backward()
    assert features.grad is None
    assert all(parameter.grad.isfinite().all()
               for parameter in head.parameters())


def test_a_mirrored_crop_has_its_boxes_mirrored():
    model = ShuffleNet(0.5).eval()
    model.add_box_head()
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64),
                                               np.uint8)
    both = model.predict(images, flip=True).boxes
    mirrored = model.predict(images[..., ::-1].copy(), flip=True).boxes
    np.testing.assert_allclose(crop.mirrored_shares(both), mirrored,
                               atol=1e-5)


# ------------------------------------------------------------------- training

def test_a_run_with_boxes_goes_on_and_is_tested_in_several_looks(
        trained, sample, tmp_path, capsys):
    model, checkpoint = load_network(trained / 'net.pkl', rebuild)
    assert model.box_head and checkpoint['network']['box_head']
    test_shufflenet.main(map(str, evaluation_options(
        sample, trained / 'net.pkl', '--looks', 3, '--report', tmp_path)))
    first, second = capsys.readouterr().out.split('Mean of 3')
    assert first.count('Test error') == second.count('Test error') == 1
    report = json.loads((tmp_path / 'report.json').read_text())
    assert report['protocol']['looks'] == 3
    assert f'{report["axes"]["MAE"]["error"]:.4f}' in second
    # One more epoch, in a folder of its own.
    before = last(trained)
    train_shufflenet.main(run_options(
        sample, tmp_path, '--find_box', '--box_jitter', 0.3, '--num_epochs',
        4, '--lr_steps', 2, '--resume', trained / 'net_last.pkl'))
    after = last(tmp_path)['model']
    assert any(not torch.equal(before['model'][key], after[key])
               for key in after if key.startswith(BOX_HEAD))


def test_the_angles_learn_the_same_without_the_box(trained, sample, tmp_path):
    plain = train(sample, tmp_path, '--box_jitter', 0.3)
    assert 'box_head' not in plain['network']
    both = last(trained)['model']
    assert both.keys() - plain['model'].keys() == {
        key for key in both if key.startswith(BOX_HEAD)}
    assert all(torch.equal(both[key], value)
               for key, value in plain['model'].items())


def test_only_the_box_is_learnt_where_asked(sample, trained, tmp_path, capsys):
    train(sample, tmp_path)
    start = torch.load(tmp_path / 'net.pkl', weights_only=True)['model']
    train_shufflenet.main(run_options(
        sample, tmp_path, '--overwrite', '--find_box', 'only', '--pretrained',
        tmp_path / 'net.pkl', '--lr', 0.01))
    assert "the box's head starts fresh" in capsys.readouterr().out
    kept = torch.load(tmp_path / 'net.pkl', weights_only=True)
    assert all(torch.equal(kept['model'][key], value)
               for key, value in start.items())
    assert kept['epoch'] == 3  # the last: all have the same MAE
    maes = [row['mae'] for row in last(tmp_path)['log']]
    assert len({*maes}) == 1


@pytest.mark.parametrize('options, message', [
    (['--find_box', '--no_augment'], 'one place'),
    (['--find_box', 'only'], '--pretrained FILE')])
def test_a_box_that_cannot_be_learnt_is_refused(sample, tmp_path, capsys,
                                                options, message):
    with pytest.raises(SystemExit):
        train_shufflenet.main(run_options(sample, tmp_path, *options))
    assert message in capsys.readouterr().err


def test_other_protocols_look_once(capsys):
    with pytest.raises(SystemExit):
        test_shufflenet.main(['--dataset', 'BIWI', '--labels', 'x.csv',
                              '--protocol', 'fsanet', '--looks', '2'])
    assert '--looks: more than one are for' in capsys.readouterr().err


def test_a_network_without_boxes_looks_once(sample):
    annotations = datasets.read_annotations(
        sample / 'AFLW2000', sample / 'AFLW2000' / 'filename_list.txt')
    with pytest.raises(RunError, match='--find_box'):
        list(evaluate_looks(ShuffleNet(0.5), annotations,
                            datasets.evaluation_loader, 2))


def test_test_table_and_estimator_look_alike(sample):
    model, checkpoint = load_network(ROOT / SHIPPED, rebuild)
    model, size = model.eval(), trained_size(checkpoint)
    folder = sample / 'AFLW2000'
    annotations = datasets.read_annotations(folder,
                                            folder / 'filename_list.txt')
    tested = [result.predicted for result, _ in evaluate_looks(
        model, annotations, functools.partial(
            datasets.evaluation_loader, image_size=size), 3)]
    images = [read_image(folder / name) for name in annotations.images]
    network = TorchNetwork(model, size)
    looked, _ = zip(*look_at(network, [*map(Image.fromarray, images)],
                             annotations.boxes))
    np.testing.assert_allclose(tested, looked, atol=1e-3)
    estimator = Estimator(network, looks=3)
    estimated = [estimator.angles(image, [box])[0][0]
                 for image, box in zip(images, annotations.boxes)]
    np.testing.assert_allclose(tested[2], estimated, atol=1e-3)
    assert np.abs(tested[2] - tested[0]).max() > 0.1


# ------------------------------------------------------------------ inference

@pytest.fixture(scope='module')
def exported(trained):
    """The trained network as an .onnx file."""
    model, _ = load_network(trained / 'net.pkl', rebuild)
    portable.write(str(trained / 'net.onnx'), model, 64, 'float32', None, {})
    return trained / 'net.onnx'


def test_an_export_finds_the_boxes_that_pytorch_finds(trained, exported):
    model, _ = load_network(trained / 'net.pkl', rebuild)
    crops = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3),
                                              np.uint8)
    ours, theirs = TorchNetwork(model.eval(), 64), OnnxNetwork(str(exported))
    for flip in (False, True):
        for one, other in zip(ours(crops, flip), theirs(crops, flip)):
            np.testing.assert_allclose(one, other, atol=1e-3)


class Finder:
    """A network that knows where a white square lies."""
    size, usual_spread = 64, np.inf

    def __call__(self, crops, flip=False):
        """Returns yaw and pitch that tell where the square lies."""
        rows = []
        for image in crops:
            row, column = np.nonzero(image[..., 0] > 127)
            rows.append([column.min(), row.min(), column.max() + 1,
                         row.max() + 1])
        boxes = np.array(rows) / self.size
        left, top, right, _ = boxes.T
        return (np.column_stack((left + right - 1, top, 0 * top)),
                np.ones(len(crops)), boxes)


def test_an_estimator_looks_again_around_the_box_that_it_found():
    picture = np.zeros((400, 400, 3), np.uint8)
    face = 150, 120, 230, 200
    picture[face[1]:face[3], face[0]:face[2]] = 255
    expected, _ = Estimator(Finder(), looks=1).angles(picture, [face])
    loosely = 140, 130, 240, 215
    once, thrice = (Estimator(Finder(), looks=looks).angles(
        picture, [loosely])[0] for looks in (1, 3))
    # A third of the mean is the first look.
    np.testing.assert_allclose(thrice - expected, (once - expected) / 3,
                               atol=0.03)
    assert np.abs(once - expected).max() > 0.06


def test_every_other_look_is_at_the_mirror_image():
    class Recorder(Finder):
        def __init__(self):
            self.crops = []

        def __call__(self, crops, flip=False):
            self.crops.append(crops)
            return super().__call__(crops)
    picture, recorder = np.zeros((300, 300, 3), np.uint8), Recorder()
    picture[120:180, 130:190] = 255
    Estimator(recorder, looks=4).angles(picture, [(130, 120, 190, 180)])
    # The published crop shows the face left of its middle.
    sides = [crops[..., :32, 0].mean() > crops[..., 32:, 0].mean()
             for crops in recorder.crops]
    assert sides == [True, False, True, False]


def test_a_network_without_boxes_looks_at_a_face_once():
    class Blind(Finder):
        calls = 0

        def __call__(self, crops, flip=False):
            self.calls += 1
            return (*super().__call__(crops)[:2], None)
    picture, blind = np.full((100, 100, 3), 255, np.uint8), Blind()
    Estimator(blind, looks=3).angles(picture, [(20, 20, 60, 60)])
    assert blind.calls == 1


@pytest.mark.parametrize('looks', [0, -1, 2.5, '3', None])
def test_an_odd_number_of_looks_is_refused(looks):
    with pytest.raises(UserError, match='no number from 1'):
        Estimator(Finder(), looks=looks)


def test_surer_answers_weigh_more_in_the_mean_of_looks():
    angles = np.array([[[10.0, 0, 0], [10, 0, 0]], [[40, 0, 0], [40, 0, 0]]])
    means, spreads = best_guess(angles, [[2.0, 4], [4, 0]])
    np.testing.assert_allclose(means[:, 0], [16, 40], atol=0.5)
    assert 2 < spreads[0] < 3 and spreads[1] < 0.1
    once, spread = best_guess(angles[:1], [[2.0, 4]])
    np.testing.assert_allclose(once, angles[0], atol=1e-9)
    np.testing.assert_allclose(spread, [2, 4])
    angles[0, 0, 0] = np.nan
    lost, _ = best_guess(angles, [[2.0, 4], [4, 0]])
    assert np.isnan(lost[0]).all() and np.isfinite(lost[1]).all()
