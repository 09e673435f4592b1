"""Files to tensors: .mat reading, crops, augmentation, the split."""
import io
import os
import shutil
import signal
import struct
import zlib

import cv2
import numpy as np
import pytest
import scipy.io
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms as published

import datasets
from headpose.errors import DataError
from headpose.geometry import augment, crop as crops, pose
from headpose.geometry.augment import Draws
from headpose.geometry.pose import rotation_matrix
from headpose.readers import lists
from headpose.readers.images import check_image, read_image
from headpose.readers.lists import (Annotations, photograph, read_annotations,
                                    read_list)
from headpose.readers.mat import face_box, read_mat
from headpose.readers.pool import map_files
from tests.draws import drawn
from tests.helpers import loaders
from tools import original, sample_data

pytestmark = pytest.mark.quick
COORDINATE = st.floats(-500, 900)
PLAIN = augment.Augmentation()  # HopeNet's


def mat_bytes(**fields):
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, fields)
    return buffer.getvalue()


POSE = np.radians([[10.0, -20.0, 30.0, 0, 0, 0, 1]]).astype(np.float32)
POINTS = np.array([[100.0, 200.0, 150.0], [120.0, 110.0, 260.0]])
GOOD_MAT = mat_bytes(Pose_Para=POSE, pt2d=POINTS)


@pytest.fixture
def mat(tmp_path):
    """Writes a .mat file of the given bytes; returns its path."""
    def write(data):
        path = tmp_path / 'x.mat'
        path.write_bytes(data)
        return str(path)
    return write


# ---------------------------------------------------------------- .mat files

def test_the_angles_are_yaw_pitch_roll_in_degrees(mat):
    angles, pt2d = read_mat(mat(GOOD_MAT))
    np.testing.assert_allclose(angles, [-20, 10, 30], rtol=1e-6)
    np.testing.assert_array_equal(pt2d, POINTS)


@pytest.mark.parametrize('fields, message', [
    ({'Pose_Para': POSE}, 'has no pt2d'),
    ({'pt2d': POINTS}, 'has no Pose_Para'),
    ({'Pose_Para': POSE * np.nan, 'pt2d': POINTS}, 'not finite'),
    ({'Pose_Para': POSE, 'pt2d': POINTS * np.inf}, 'not finite'),
    ({'Pose_Para': POSE[:, :2], 'pt2d': POINTS}, 'at least 3'),
    ({'Pose_Para': POSE, 'pt2d': POINTS.T}, r'shape \(2, K\)'),
    ({'Pose_Para': 'text', 'pt2d': POINTS}, 'no array of real'),
    ({'Pose_Para': POSE + 1j, 'pt2d': POINTS}, 'Para is no array of real'),
    ({'Pose_Para': POSE.astype(object), 'pt2d': POINTS}, 'no array of real'),
    ({'Pose_Para': {'a': POSE}, 'pt2d': POINTS}, 'no array of real'),
    ({'Pose_Para': POSE, 'pt2d': np.zeros((2, 0))}, r'shape \(2, K\)'),
    ({'Pose_Para': POSE, 'pt2d': np.dstack([POINTS, POINTS])},
     r'shape \(2, K\)')])
def test_a_bad_mat_is_named(mat, fields, message):
    path = mat(mat_bytes(**fields))
    with pytest.raises(DataError, match=message) as caught:
        read_mat(path)
    assert str(caught.value).startswith(path)


def deadly(path, *_):
    """Crashes on some files, as SciPy does."""
    if '_bad' in path:
        os.kill(os.getpid(), signal.SIGKILL)
    if '_wrong' in path:
        raise DataError(path)
    return path


@pytest.mark.parametrize('workers', [1, 2])
def test_files_that_crash_a_worker_are_named_and_the_rest_is_read(workers):
    names = [str(number) for number in range(150)]
    for number in (3, 70, 71, 149):
        names[number] += '_bad'
    names[72] = '72_wrong'
    results = map_files(deadly, [(name,) for name in names], workers)
    for name, result in zip(names, results, strict=True):
        assert isinstance(result, str) == ('_' not in name)
        assert str(result) == name + (
            ': the process that read this file crashed, or ran out of memory'
            if '_bad' in name else '')


def test_a_listed_mat_that_crashes_scipy_is_named(broken, monkeypatch):
    for path in list(broken.glob('image00004.*')):
        path.rename(path.with_stem('4_bad'))
    (broken / 'filename_list.txt').write_text('4_bad\n')
    monkeypatch.setattr(lists, 'read_labels', deadly)
    with pytest.raises(DataError, match='4_bad.mat: the process that read'):
        read(broken)


@pytest.mark.parametrize('kind', [0, 1, 128, 255])
def test_what_may_crash_scipy_is_named(tmp_path, kind):
    # The type of Pose_Para's numbers, single precision, after its name.
    tag, path = GOOD_MAT.index(b'Pose_Para') + 16, tmp_path / 'x.mat'
    assert GOOD_MAT[tag:tag + 8] == struct.pack('<II', 7, 28)
    path.write_bytes(GOOD_MAT[:tag] + bytes([kind]) + GOOD_MAT[tag + 1:])
    error, = map_files(read_mat, [(path,)])
    assert isinstance(error, DataError) and str(error).startswith(f'{path}: ')


def test_a_mat_of_matlab_73_says_so(mat):
    head = b'MATLAB 7.3 MAT-file'.ljust(124) + b'\0\2IM'
    with pytest.raises(DataError, match='save it with -v7'):
        read_mat(mat(head.ljust(512, b'\0') + b'\x89HDF\r\n\x1a\n'))


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / 'pipe.mat')
    (tmp_path / 'folder.mat').mkdir()
    for name in ('pipe', 'folder'):
        with pytest.raises(DataError, match=f'{name}.mat: is not a file'):
            read_mat(tmp_path / f'{name}.mat')
    with open(tmp_path / 'large.mat', 'wb') as file:
        file.truncate(2 ** 22 + 1)  # it takes no place on the disk
    with pytest.raises(DataError, match='bytes, more than 4,194,304'):
        read_mat(tmp_path / 'large.mat')


def as_scipy_has_it(path):
    fields = scipy.io.loadmat(path)
    pose, pt2d = (np.asarray(fields[name], np.float64)
                  for name in ('Pose_Para', 'pt2d'))
    angles, points = read_mat(path)
    np.testing.assert_array_equal(points, pt2d)
    np.testing.assert_array_equal(angles,
                                  np.degrees(pose.ravel()[[1, 0, 2]]))


def test_real_mats_are_those_that_scipy_reads(real):
    paths = sorted(real[0].glob('AFLW2000/*.mat'))
    for path in paths + sorted(real[0].glob('300W_LP/*/*.mat')):
        as_scipy_has_it(path)
    assert len(paths) == 31


def test_only_the_raw_protocol_takes_unseen_landmarks_for_the_face():
    pt2d = np.array([[-1, 100, 200, -1], [452, 110, 210, 452]])
    assert face_box(pt2d).tolist() == [100, 110, 200, 210]
    assert face_box(pt2d, 'raw').tolist() == [-1, 110, 200, 452]


def test_landmarks_at_the_left_edge_are_seen():
    pt2d = np.array([[-1, 0, 200, -0.5], [452, 110, 210, 50]])
    assert face_box(pt2d).tolist() == [-0.5, 50, 200, 210]
    pt2d = np.array([[-1, 0, 200], [452, 110, 210]])
    assert face_box(pt2d).tolist() == [0, 110, 200, 210]
    # Beyond the edge they are estimated, and part of the face.
    pt2d = np.array([[-1, -20, 200], [452, 110, 210]])
    assert face_box(pt2d).tolist() == [-20, 110, 200, 210]


@pytest.mark.parametrize('pt2d', [
    [[-1, -1], [452, 452]], [[5, 5], [1, 9]], [[-1, 4], [452, 7]]])
def test_landmarks_without_a_box_are_refused(pt2d):
    with pytest.raises(DataError, match='span no box'):
        face_box(np.array(pt2d))


def test_the_range_is_the_bins():
    import hopenet
    assert pose.MAX_ANGLE == -hopenet.MIN_ANGLE == (
        hopenet.MIN_ANGLE + hopenet.NUM_BINS * hopenet.BIN_WIDTH)


# --------------------------------------------------------------------- crops

boxes = st.tuples(COORDINATE, COORDINATE, st.floats(8, 500),
                  st.floats(8, 500)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))


@settings(deadline=None)
@given(boxes, st.floats(0.2, 0.4), st.sampled_from([0.6, 2.0]))
def test_margins_are_the_published(box, k, side):
    assert crops.expand_box(box, k, side) == original.margins(
        box, k, side)


def noise_image(width, height, seed=0):
    """A smooth random picture, so that a shifted crop would show."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (height // 12 + 1, width // 12 + 1, 3))
    return Image.fromarray(small.astype(np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC)


angles = st.tuples(*[st.floats(-99, 99)] * 3).map(np.array)


@settings(deadline=None)
@given(angles)
def test_a_rotation_gives_its_angles_back(triple):
    back = pose.angles_near(rotation_matrix(triple), triple)
    np.testing.assert_allclose(rotation_matrix(back), rotation_matrix(triple),
                               atol=1e-7)
    if abs(abs(triple[0]) - 90) > 0.1:  # there pitch and roll are one turn
        np.testing.assert_allclose(back, triple, atol=1e-5)


@settings(deadline=None)
@given(angles, angles)
def test_a_mean_rotation_is_halfway(one, other):
    mean, = pose.mean_angles([[one], [other]])
    apart, _ = pose.rotation_errors(np.array([one, other, one]),
                                    np.array([mean, mean, other]))
    if apart[2] < 179:  # opposite rotations have many means
        np.testing.assert_allclose(apart[:2], apart[2] / 2, atol=1e-4)


def test_a_mean_of_equal_answers_keeps_a_yaw_beyond_90():
    answer = np.array([[94.0, 10, -20], [-93.0, 5, 8]])
    np.testing.assert_allclose(pose.mean_angles([answer, answer]), answer)


@settings(deadline=None, max_examples=40)
@given(boxes, st.sampled_from([64, 224]))
def test_the_protocol_crop_is_the_published_pipeline(box, size):
    image = noise_image(450, 450)
    steps = published.Compose([
        published.Resize(size), published.CenterCrop(size),
        published.ToTensor(),
        published.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])
    expected = steps(image.crop(original.margins(box, 0.2, 2)))
    to_input = published.Compose(steps.transforms[2:])
    ours = to_input(crops.protocol_crop(image, box, size))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def grey_levels_apart(image, box, draws, size=224, ours=None):
    """Mean difference of the fast crop from Pillow's, inside the image."""
    ours = augment.training_crop(
        np.asarray(image) if ours is None else ours, box,
        drawn(**dict(zip(Draws._fields, draws))), size)
    theirs, _ = original.training_crop(image, box, draws, size)
    # A picture of ones in the same crop shows what is inside the image.
    white = Image.new('RGB', image.size, (255, 255, 255))
    inside = np.asarray(original.training_crop(
        white, box, (*draws[:4], 1), size)[0]) == 255
    difference = np.abs(ours.astype(float) - np.asarray(theirs, float))
    return difference[inside].mean()


DRAWS = st.tuples(*[st.floats(0, 1, exclude_max=True)] * 5)


@settings(deadline=None, max_examples=60)
@given(st.tuples(st.floats(60, 200), st.floats(60, 200),
                 st.floats(120, 200), st.floats(120, 200)), DRAWS)
def test_the_fast_training_crop_is_hopenets(corner_and_size, draws):
    x, y, width, height = corner_and_size
    box = (x, y, x + width, y + height)
    assert grey_levels_apart(noise_image(450, 450), box, draws) < 1


def test_large_pictures_are_shrunk_with_all_their_pixels():
    image = noise_image(1800, 1500)
    for draws in ((0.5, 0.3, 0.9, 0, 1), (0.1, 0.8, 0.2, 1, 0)):
        box = (500, 400, 1200, 1100)
        assert grey_levels_apart(image, box, draws) < 1


def test_real_training_crops_are_hopenets(real):
    folder, lists = real
    apart = []
    for dataset in ('300W_LP', 'AFLW2000'):
        annotations = read_annotations(folder / dataset, lists[dataset])
        rng = np.random.default_rng(0)
        for name, box in zip(annotations.names, annotations.boxes):
            path = folder / dataset / f'{name}.jpg'
            image = Image.open(path).convert('RGB')
            draws = (*rng.random(4), 1)
            apart.append(grey_levels_apart(
                image, box, draws, ours=read_image(path, fast=True)))
    assert len(apart) == 81
    print(f'mean {np.mean(apart):.2f}, largest {max(apart):.2f} grey levels')
    assert max(apart) < 1


# ----------------------------------------------------- what cannot be cropped

@pytest.mark.parametrize('box, size, problem', [
    ((10, 10, 60, 70), (90, 80), None),
    ((-9, -9, 60, 70), (90, 80), None),       # reaches out of the picture
    ((10, 10, 14, 14), (90, 80), None),
    ((10, 10, 10.2, 40), (90, 80), 'too small: 4 are the least'),
    ((10, 10, 11, 310), (450, 450), 'too small'),
    ((10, 10, 16, 310), (450, 450), 'over 10 times'),
    ((-9000, -9000, 9000, 9000), (450, 450), 'too large: 5,000'),
    ((-900, -900, 901, 900), (450, 450), 'over 4 times as large'),
    ((500, 10, 600, 110), (450, 450), 'outside the picture of 450 x 450'),
    ((10, -200, 110, 0.5), (450, 450), 'outside the picture'),
    ((1e300, 0, 1e300, 50), (450, 450), 'too small'),
    ((1e9, 10, 1e9 + 100, 110), (450, 450), 'outside the picture'),
    ((np.nan, 0, 50, 50), (90, 80), 'not finite'),
    ((0, 0, 50, np.inf), (90, 80), 'not finite'),
    ((0, 0, 5, 5), (7, 90), 'picture of 7 x 90 pixels is too small')])
def test_what_cannot_be_cropped_is_said(box, size, problem):
    said = crops.crop_problem(box, *size)
    assert said is None if problem is None else problem in said
    assert said is None or '\n' not in said


def test_the_largest_box_is_cropped_without_a_warning(recwarn):
    image = Image.new('RGB', (1300, 1300))
    box = (-1800, -1800, 3200, 3200)
    assert crops.crop_problem(box, *image.size) is None
    assert crops.protocol_crop(image, box, 64).size == (64, 64)
    assert not recwarn.list


SIDES = st.integers(1, 90)
CORNERS = st.floats(-300, 300) | st.floats(-20, 90)
LENGTHS = st.floats(0, 300) | st.floats(0, 30)


@settings(deadline=None, max_examples=200)
@given(st.tuples(SIDES, SIDES), st.tuples(CORNERS, CORNERS, LENGTHS, LENGTHS),
       st.lists(st.floats(0, 1, exclude_max=True, width=32),
                min_size=len(Draws._fields),
                max_size=len(Draws._fields)),
       st.sampled_from([0.0, 45.0, 180.0]), st.sampled_from([0.0, 0.5]),
       st.sampled_from([64, 97]), st.booleans())
def test_whatever_passes_can_be_cropped(sides, box, draws, rotate, jitter,
                                        size, test_framing):
    box = (box[0], box[1], box[0] + box[2], box[1] + box[3])
    if crops.crop_problem(box, *sides):
        return
    image = np.full((sides[1], sides[0], 3), 200, np.uint8)
    crop = np.array(crops.protocol_crop(Image.fromarray(image), box, size))
    assert crop.shape == (size, size, 3)
    crop, angles = augment.augmented_crop(
        image, box, np.float32([10, 20, 30]), Draws(*draws), size,
        augment.Augmentation(rotate, jitter, 0.5, 1.0, 0.5, 0.5,
                             test_framing))
    assert crop.shape == (size, size, 3) and crop.dtype == np.uint8
    assert np.isfinite(angles).all()


def test_training_and_test_refuse_what_cannot_be_cropped(broken):
    set_points(broken / 'image00004.mat', [[10, 10.2], [10, 40]])
    with pytest.raises(DataError, match='image00004.mat: the face box of 0.2'):
        read(broken)
    set_points(broken / 'image00004.mat', [[900, 990], [10, 99]])
    for augmentation in (None, PLAIN):
        items = datasets.PoseDataset(read(broken), 64, augmentation)
        with pytest.raises(DataError, match='00004.jpg: .* outside the pict'):
            items[0, items.annotations.names.index('image00004')]


# ------------------------------------------- augmentation beyond HopeNet's

def in_plane(degrees):
    """The rotation of a picture, clockwise, in axes right, down, to us."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


YAW = st.floats(-89, 89)
OTHER = st.floats(-99, 99)


@settings(deadline=None)
@given(YAW, OTHER, OTHER, st.floats(-90, 90))
def test_a_turned_heads_angles_are_the_rotation_matrixs(yaw, pitch, roll,
                                                        degrees):
    new = pose.turned(np.array([yaw, pitch, roll]), degrees)
    np.testing.assert_allclose(
        rotation_matrix(new),
        in_plane(degrees) @ rotation_matrix([yaw, pitch, roll]), atol=1e-6)


def test_a_small_turn_is_near_whatever_the_yaw():
    for yaw in (-94.0, -80, 0, 80, 94):
        angles = np.array([yaw, 5, -8])
        assert np.abs(pose.turned(angles, 1e-3) - angles).max() < 0.1
    np.testing.assert_allclose(pose.turned(np.zeros(3), 20), [0, 0, 20],
                               atol=1e-9)


def test_real_heads_turned_by_hand_have_the_turned_angles(real):
    for path in sorted((real[0] / 'AFLW2000').glob('*.mat')):
        angles, _ = read_mat(path)
        seen = scipy.io.loadmat(path)['pt3d_68'].T.astype(float)
        for degrees in (-40, 25):
            by_hand = seen @ in_plane(degrees).T
            fitted, before = (fitted_rotation(sample_data.LANDMARKS, points)
                              for points in (by_hand, seen))
            # The fit's own error, some 2 degrees, turns with the head.
            error = before @ rotation_matrix(angles).T
            expected = (in_plane(degrees) @ error @ in_plane(-degrees)
                        @ rotation_matrix(pose.turned(angles, degrees)))
            np.testing.assert_allclose(fitted, expected, atol=1e-6)


@pytest.mark.parametrize('flip', [0.1, 0.9])
@pytest.mark.parametrize('size', [64, 224])
def test_a_turned_crop_is_the_crop_of_a_turned_picture(size, flip):
    image = noise_image(450, 450)
    box, draws = (150, 140, 290, 300), drawn(margin=0.4, flip=flip)
    turned, straight = (
        augment.training_crop(np.asarray(image), box, draws, size, turn)
        for turn in (30.0, 0.0))
    by_hand = Image.fromarray(straight).rotate(-30, Image.Resampling.BILINEAR)
    row, column = np.mgrid[:size, :size] - (size - 1) / 2
    inside = np.hypot(row, column) < size * 0.45
    apart = np.abs(turned.astype(float) - np.asarray(by_hand, float))
    assert apart[inside].mean() < 6
    wrong = Image.fromarray(straight).rotate(30, Image.Resampling.BILINEAR)
    apart = np.abs(turned.astype(float) - np.asarray(wrong, float))
    assert apart[inside].mean() > 15
    assert turned[0, 0].any()  # the picture's own pixels, not a black corner


def test_more_augmentation_is_off_by_default_and_labels_follow(
        annotations):
    plain = datasets.PoseDataset(annotations, 64, PLAIN)
    more = datasets.PoseDataset(
        annotations, 64, augment.Augmentation(30, 0.2, 0.3, 1.0))
    turns = []
    for index in range(24):
        (image, angles, *_), (other, new, *_) = plain[0, index], more[0, index]
        assert other.shape == image.shape and (image != other).any()
        draws = augment.Draws(*datasets.epoch_draws(24, 0, 0)[index])
        turn = in_plane(60 * draws.turn - 30)
        expected = turn @ rotation_matrix(angles)
        if np.abs(expected - rotation_matrix(new)).max() < 1e-4:
            turns.append(index)
        else:  # it would have been out of range
            assert (new == angles).all()
        assert pose.beyond_range(new) is None
    assert len(turns) > 12


@settings(deadline=None)
@given(boxes, st.floats(0, 0.5), st.tuples(*[st.floats(0, 1)] * 3))
def test_a_jittered_box_is_near_the_box(box, amount, draws):
    size = np.array([box[2] - box[0], box[3] - box[1]])
    new = augment.jittered(box, amount, drawn(**dict(zip(
        ('jitter_x', 'jitter_y', 'jitter_size'), draws))))
    grown = (new[2:] - new[:2]) / size
    moved = np.abs((new[2:] + new[:2]) / 2 - np.add(box[2:], box[:2]) / 2)
    assert (np.abs(grown - 1) <= amount + 1e-9).all()
    assert (moved <= amount * size / 2 + 1e-6).all()


def test_colours_and_detail():
    image = np.asarray(noise_image(64, 48))
    same = augment.recolored(image, 0.5, drawn())
    np.testing.assert_array_equal(same, image)
    bright = augment.recolored(image, 0.5, drawn(brightness=1))
    assert bright.mean() > image.mean() * 1.2
    grey = augment.recolored(image, 1, drawn(saturation=0))
    assert np.ptp(grey.astype(int), axis=2).max() <= 1
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    coarse = augment.coarsened(noise, 1.0)
    assert coarse.shape == noise.shape and coarse.std() < noise.std() / 2


def test_low_resolution_is_up_to_four_times_fewer_pixels():
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    for draw, small in ((0, (64, 48)), (1 / 3, (32, 24)), (1, (16, 12))):
        expected = cv2.resize(
            cv2.resize(noise, small, interpolation=cv2.INTER_AREA), (64, 48),
            interpolation=cv2.INTER_LINEAR)
        np.testing.assert_array_equal(augment.coarsened(noise, draw),
                                      expected)


def test_low_resolution_is_of_its_share_of_the_images():
    image, box = np.asarray(noise_image(300, 300)), (80, 80, 220, 220)

    def crop(draw, share):
        return augment.augmented_crop(
            image, box, np.zeros(3), drawn(coarse=draw, coarse_by=1), 64,
            augment.Augmentation(low_resolution=share))[0]

    plain = crop(0.0, 0.0)
    np.testing.assert_array_equal(crop(0.31, 0.3), plain)
    np.testing.assert_array_equal(crop(0.29, 0.3),
                                  augment.coarsened(plain, 1.0))


# ----------------------------------------------------------------- data sets

@pytest.fixture
def annotations(sample):
    folder = sample / '300W_LP'
    return read_annotations(folder, folder / 'filename_list.txt')


def test_every_real_pair_is_read(real):
    folder, lists = real
    for dataset, count in (('300W_LP', 51), ('AFLW2000', 30)):
        annotations = read_annotations(folder / dataset, lists[dataset])
        assert len(annotations.names) == count
        items = datasets.PoseDataset(annotations)
        for index in range(count):
            image, angles, *_ = items[0, index]
            assert image.shape == (224, 224, 3) and image.std() > 5
            mat = scipy.io.loadmat(folder / dataset
                                   / f'{annotations.names[index]}.mat')
            pitch, yaw, roll = np.degrees(mat['Pose_Para'][0, :3])
            np.testing.assert_allclose(angles, [yaw, pitch, roll], rtol=1e-5)


def test_augmentation_depends_on_seed_epoch_and_index_alone(annotations):
    def crops(seed, epoch, workers, order):
        items = datasets.PoseDataset(annotations, 64, PLAIN, seed)
        batches = datasets.EpochBatchSampler(order, 5)
        batches.epoch = epoch
        loader = datasets.make_loader(items, batches, workers)
        images, angles, indices, _ = zip(*loader)
        back = np.concatenate(indices).argsort()
        return torch.cat(images)[back], np.concatenate(angles)[back]

    images, angles = crops(3, 1, 0, range(24))
    again = crops(3, 1, 2, list(reversed(range(24))))
    assert torch.equal(images, again[0])
    np.testing.assert_array_equal(angles, again[1])
    for other in (crops(4, 1, 0, range(24)), crops(3, 2, 0, range(24))):
        assert not torch.equal(images, other[0])


def test_a_flip_negates_yaw_and_roll(sample, annotations):
    items = datasets.PoseDataset(annotations, 64, PLAIN)
    signs = {True: [], False: []}
    for epoch in range(4):
        for index in range(24):
            _, angles, *_ = items[epoch, index]
            flipped = augment.Draws(
                *datasets.epoch_draws(24, 0, epoch)[index]).flipped
            sign = [-1, 1, -1] if flipped else 1
            np.testing.assert_array_equal(angles,
                                          annotations.angles[index] * sign)
            signs[bool(flipped)].append(index)
    assert all(signs.values())
    # The annotations themselves are never changed.
    again = read_annotations(
        sample / '300W_LP', sample / '300W_LP' / 'filename_list.txt')
    np.testing.assert_array_equal(again.angles, annotations.angles)


def test_validation_is_never_augmented(annotations):
    items = datasets.PoseDataset(annotations, 64)
    assert all((items[1, index][0] == items[2, index][0]).all()
               for index in range(24))


def pixels(loader, epoch):
    """All images of a loader in an epoch, in the order of their indices."""
    loader.batch_sampler.epoch = epoch
    images, _, indices, _ = zip(*loader)
    return torch.cat(images)[np.concatenate(indices).argsort()]


def test_training_changes_its_images_and_validation_never(annotations):
    # The test protocol's crops.
    fixed = pixels(datasets.evaluation_loader(annotations, image_size=64), 0)
    for augmentation in (augment.Augmentation(20, 0.2, 0.2, 0.5), None):
        training, validation = datasets.training_loaders(
            annotations, image_sizes=(64,), augmentation=augmentation)
        for side, changes in ((training, augmentation is not None),
                              (validation, False)):
            crops = fixed[np.sort(side.batch_sampler.indices)]
            same = [torch.equal(pixels(side, epoch), crops)
                    for epoch in (1, 2)]
            assert same == [not changes] * 2


def test_each_size_has_an_equal_part_of_the_epochs(annotations):
    training, validation = datasets.training_loaders(
        annotations, image_sizes=(32, 64), num_epochs=5, weak_end=0.3,
        augmentation=augment.Augmentation(20, box_jitter=0.3))
    assert training.dataset.size == [32, 32, 32, 64, 64]
    assert [more.rotate for more in training.dataset.augmentation] == [
        20, 20, 20, 20, 5]
    assert {more.box_jitter for more in training.dataset.augmentation} == {0.3}
    assert validation.dataset.size == 64


def test_images_are_rgb(tmp_path):
    blue = Image.new('RGB', (300, 300), (0, 0, 255))
    blue.save(tmp_path / 'x.jpg')
    annotations = Annotations(
        tmp_path, ['x'], np.zeros((1, 3), np.float32),
        np.array([[100., 100, 200, 200]]), ['x.jpg'])
    for augmentation in (None, PLAIN):
        items = datasets.PoseDataset(annotations, 64, augmentation)
        red, _, blue = items[0, 0][0].transpose(2, 0, 1)
        assert blue.min() > 250 > 5 > red.max()


# --------------------------------------------------------- batches and split

@settings(deadline=None)
@given(st.integers(1, 50), st.integers(1, 60), st.booleans())
def test_each_image_is_in_one_batch(count, batch_size, shuffle):
    batches = datasets.EpochBatchSampler(range(count), batch_size, shuffle)
    listed = [key for batch in batches for key in batch]
    assert sorted(listed) == [(0, index) for index in range(count)]
    assert len(list(batches)) == len(batches)


@settings(deadline=None)
@given(st.integers(3, 60), st.integers(2, 5), st.integers(0, 9),
       st.integers(0, 3))
def test_every_process_has_a_part_of_each_training_batch(count, world, more,
                                                         epoch):
    if count < world:
        return
    ranks = [datasets.EpochBatchSampler(range(count), world + more, True, 0,
                                        rank, world)
             for rank in range(world)]
    for rank in ranks:
        rank.epoch = epoch
    steps = list(zip(*ranks, strict=True))
    assert all(len(part) > 0 for parts in steps for part in parts)
    assert [sum(map(len, parts)) for parts in steps] == ranks[0].sizes()
    assert len(steps) == len(ranks[-1])
    seen = sorted(index for parts in steps for part in parts
                  for _, index in part)
    assert seen == list(range(count))
    # One process sees the same images in the same steps, but for the last.
    alone = datasets.EpochBatchSampler(range(count), world + more, True)
    alone.epoch = epoch
    for parts, whole in list(zip(steps, alone))[:-1]:
        assert {key for part in parts for key in part} == set(whole)


def test_three_processes_train_on_the_last_image_too():
    sizes = [datasets.EpochBatchSampler(range(13), 6, True, 0, rank, 3).sizes()
             for rank in range(3)]
    assert sizes == [[6, 7]] * 3


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(2, 5), st.integers(0, 9))
def test_evaluation_shares_each_batch_without_rest(count, world, more):
    parts = [key for rank in range(world)
             for part in datasets.EpochBatchSampler(
                 range(count), world + more, rank=rank, world_size=world)
             for key in part]
    assert sorted(parts) == [(0, index) for index in range(count)]


def test_fewer_images_than_processes_are_refused(annotations):
    with pytest.raises(DataError, match='are too few for 40 processes'):
        datasets.training_loaders(annotations, batch_size=64, world_size=40)


def test_the_order_changes_with_epoch_and_seed():
    def order(epoch, seed):
        batches = datasets.EpochBatchSampler(range(50), 50, True, seed)
        batches.epoch = epoch
        return [index for _, index in next(iter(batches))]
    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(2, 0) and order(1, 0) != order(1, 1)


@pytest.mark.parametrize('name, expected', [
    ('AFW/AFW_134212_1_3', 'AFW/AFW_134212_1'),
    ('AFW_Flip/AFW_134212_1_3', 'AFW/AFW_134212_1'),
    ('HELEN/HELEN_232194_1_0', 'HELEN/HELEN_232194_1'),
    ('image00002', 'image00002')])
def test_photographs(name, expected):
    assert photograph(name) == expected


def test_order_and_augmentation_are_drawn_independently():
    # PyTorch makes a number in [0, 1) of 24 random bits, and a place in an
    # order of the same bits' remainder.
    shared = 0
    for seed in range(20):
        sampler = datasets.EpochBatchSampler(range(16), 16, True, seed)
        draws = datasets.epoch_draws(16, seed, 0)
        shared += int(draws[0, 0] * 2 ** 24) % 16 == (
            next(iter(sampler))[0][1])
    assert shared < 10


@settings(deadline=None)
@given(st.integers(2, 40), st.integers(1, 17), st.integers(0, 9))
def test_the_split_keeps_photographs_whole(photographs, renderings, seed):
    names = [f'AFW/AFW_{photo}_1_{rendering}' for photo in range(photographs)
             for rendering in range(renderings)]
    keys, _ = datasets.split_keys(named(names))
    training, validation = datasets.split_indices(keys, seed)
    assert sorted(training + validation) == list(range(len(names)))
    sides = [{photograph(names[i]) for i in side}
             for side in (training, validation)]
    assert sides[0] and sides[1] and not sides[0] & sides[1]
    assert len(validation) < 0.1 * len(names) + renderings
    assert datasets.split_indices(keys, seed) == (training, validation)


def named(names):
    """Annotations of which a split needs no more than names and images."""
    return Annotations('', names, None, None,
                       [f'{name}.jpg' for name in names])


def test_the_documents_split_is_by_image():
    names = [f'AFW/AFW_{i // 10}_1_{i % 10}' for i in range(200)]
    keys, _ = datasets.split_keys(named(names), 'image')
    training, validation = datasets.split_indices(keys)
    assert len(training) == 180 and len(validation) == 20
    assert validation != datasets.split_indices(keys, 1)[1]


def test_one_photograph_cannot_be_split():
    names = named(['AFW/AFW_1_1_0', 'AFW/AFW_1_1_1'])
    with pytest.raises(DataError, match='AFW/AFW_1_1 .--split image'):
        datasets.split_indices(datasets.split_keys(names)[0])
    keys, _ = datasets.split_keys(names, 'image')
    assert datasets.split_indices(keys) in (([0], [1]), ([1], [0]))


def test_both_sides_of_the_split_are_said_at_the_start(annotations, capsys):
    datasets.training_loaders(annotations)
    assert capsys.readouterr().out == (
        '21 images of 7 photographs to train on, 3 images of 1 photographs '
        'to validate on\n')
    datasets.training_loaders(annotations, split='image')
    assert capsys.readouterr().out == (
        '21 images to train on, 3 images to validate on\n')


@pytest.mark.parametrize('cam, web', [(45, 6), (6, 45), (200, 3), (20, 10)])
def test_a_split_that_is_far_from_nine_to_one_says_so(cam, web, capsys):
    names = named([f'cam_{number:04}' for number in range(cam)]
                  + [f'web_{number:04}' for number in range(web)])
    keys, kind = datasets.split_keys(names)
    splits = [datasets.split_indices(keys, seed) for seed in range(8)]
    assert any(len(split[1]) == max(cam, web) for split in splits)
    for split in splits:
        datasets.print_split(keys, kind, *split)
        first, *more = capsys.readouterr().out.splitlines()
        assert f'{len(split[0])} images of 1 photographs to train' in first
        assert f'{len(split[1])} images of 1 photographs to val' in first
        if 0.05 < len(split[1]) / len(keys) < 0.2:
            assert not more
        else:
            largest = 'cam' if cam > web else 'web'
            assert 'not 9:1' in more[0] and '--split image' in more[0]
            assert f'{largest}, with {max(cam, web)} images' in more[0]
    keys, kind = datasets.split_keys(names, 'image')
    datasets.print_split(keys, kind, *datasets.split_indices(keys))
    assert capsys.readouterr().out.count('\n') == 1


@pytest.mark.parametrize('validation, far', [
    (4, True), (5, False), (20, False), (21, True)])
def test_where_a_split_is_far_from_nine_to_one(validation, far, capsys):
    keys, indices = [f'photo{number}' for number in range(100)], range(100)
    datasets.print_split(keys, 'photographs', indices[validation:],
                         indices[:validation])
    assert ('not 9:1' in capsys.readouterr().out) == far


# ------------------------------------------------------------ the renderer

def test_the_sample_has_the_releases_fields(sample):
    pair = scipy.io.loadmat(sample / '300W_LP/AFW/AFW_000001_1_1.mat')
    first = scipy.io.loadmat(sample / '300W_LP/AFW/AFW_000001_1_0.mat')
    assert pair['Pose_Para'].shape == (1, 7)
    assert pair['Pose_Para'].dtype == np.float32
    assert pair['pt2d'].shape == (2, 68) and pair['roi'].shape == (1, 4)
    np.testing.assert_array_equal(pair['pt2d'], first['pt2d'])
    assert Image.open(
        sample / '300W_LP/AFW/AFW_000001_1_1.jpg').size == (450, 450)
    hidden = 0
    for path in (sample / 'AFLW2000').glob('*.mat'):
        pt2d = scipy.io.loadmat(path)['pt2d']
        assert pt2d.shape == (2, 21)
        assert (pt2d[1, pt2d[0] == -1] == 452).all()
        hidden += (pt2d[0] == -1).sum()
    assert hidden > 20


def test_the_sample_is_the_same_each_time(sample, tmp_path):
    sample_data.write_photograph(str(tmp_path), 0, renderings=3)
    for path in tmp_path.rglob('*.jpg'):
        twin = sample / '300W_LP' / path.relative_to(tmp_path)
        assert path.read_bytes() == twin.read_bytes()


def fitted_rotation(points, seen):
    """The rotation of an orthographic fit: points (K, 3) to seen (K, 3)."""
    points, seen = points - points.mean(0), seen - seen.mean(0)
    u, _, vt = np.linalg.svd(seen.T @ points)
    return u @ np.diag([1, 1, np.linalg.det(u @ vt)]) @ vt


def test_the_renderers_face_has_the_real_convention(real):
    apart = []
    for path in sorted((real[0] / 'AFLW2000').glob('*.mat')):
        angles, _ = read_mat(path)
        seen = scipy.io.loadmat(path)['pt3d_68'].T.astype(float)
        fitted = fitted_rotation(sample_data.LANDMARKS, seen)
        cosine = (np.trace(rotation_matrix(angles).T @ fitted) - 1) / 2
        apart.append(np.degrees(np.arccos(min(cosine, 1))))
    assert len(apart) == 31
    assert np.median(apart) < 2 and max(apart) < 5


# ------------------------------------------------------------ bad data files

@pytest.fixture
def broken(sample, tmp_path):
    """A copy of the AFLW2000 sample that a test may damage."""
    folder = tmp_path / 'AFLW2000'
    shutil.copytree(sample / 'AFLW2000', folder)
    return folder


def set_pose(path, degrees):
    fields = scipy.io.loadmat(path)
    fields['Pose_Para'][0, 1] = np.radians(degrees)
    scipy.io.savemat(path, {key: value for key, value in fields.items()
                            if not key.startswith('__')})


def set_points(path, points):
    fields = scipy.io.loadmat(path)
    scipy.io.savemat(path, {'Pose_Para': fields['Pose_Para'],
                            'pt2d': np.array(points, float)})


def read(folder):
    return read_annotations(folder, folder / 'filename_list.txt')


def test_99_degrees_are_in_and_99_01_out(broken):
    set_pose(broken / 'image00004.mat', 99)
    assert read(broken).angles.max() == 99
    set_pose(broken / 'image00004.mat', 99.01)
    with pytest.raises(DataError, match='image00004.mat: yaw of 99.01'):
        read(broken)


def test_a_listed_image_must_be_there(broken):
    os.remove(broken / 'image00004.jpg')
    with pytest.raises(DataError, match='image00004.jpg: no such file'):
        read(broken)


@pytest.mark.parametrize('augmentation', [None, PLAIN])
def test_a_truncated_image_is_named(broken, augmentation):
    path = broken / 'image00004.jpg'
    path.write_bytes(path.read_bytes()[:9000])
    items = datasets.PoseDataset(read(broken), 64, augmentation)
    index = items.annotations.names.index('image00004')
    with pytest.raises(DataError, match='image00004.jpg: cannot be read'):
        items[0, index]


def test_half_a_scan_with_an_end_marker_is_named(broken):
    path = broken / 'image00004.jpg'
    data = path.read_bytes()
    items = [datasets.PoseDataset(read(broken), 64, augmentation)
             for augmentation in (None, PLAIN)]
    index = items[0].annotations.names.index('image00004')
    path.write_bytes(data[:len(data) // 2] + b'\xff\xd9')
    for item in items:
        with pytest.raises(DataError, match='00004.jpg: cannot be read'):
            item[0, index]
    with pytest.raises(DataError, match='00004.jpg: cannot be read'):
        check_image(path)


def test_changed_bytes_are_found_by_all_readers_or_by_none(tmp_path):
    buffer = io.BytesIO()
    noise_image(300, 300).save(buffer, 'JPEG', quality=95)
    data, rng, found = buffer.getvalue(), np.random.default_rng(0), 0
    path = tmp_path / 'x.jpg'
    for _ in range(40):
        place = rng.integers(len(data) // 3, len(data) - 40)
        path.write_bytes(data[:place] + rng.bytes(30) + data[place + 30:])
        verdicts = {is_read(check_image, path),
                    is_read(read_image, path),
                    is_read(read_image, path, fast=True)}
        assert len(verdicts) == 1
        found += False in verdicts
    # The rest are bits that mean another picture: a JPEG has no checksum.
    assert found >= 25


def is_read(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except DataError:
        return False
    return True


@pytest.mark.parametrize('mode', ['L', 'CMYK', 'RGB'])
@pytest.mark.parametrize('how', [
    {'quality': 95}, {'progressive': True}, {'subsampling': 0},
    {'subsampling': 1}, {'quality': 20, 'optimize': True}])
def test_jpegs_are_read_with_pillows_pixels(tmp_path, mode, how):
    image, path = noise_image(91, 70).convert(mode), tmp_path / 'x.jpg'
    image.save(path, **how)
    expected = np.asarray(Image.open(path).convert('RGB'))
    np.testing.assert_array_equal(read_image(path), expected)
    fast = read_image(path, fast=True)
    assert np.abs(fast.astype(int) - expected).mean() < 5
    assert check_image(path) == (91, 70)


def test_real_images_are_read_with_pillows_pixels(real):
    for path in sorted(real[0].glob('AFLW2000/*.jpg')):
        with Image.open(path) as image:
            np.testing.assert_array_equal(read_image(path),
                                          np.asarray(image.convert('RGB')))


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGB', 'RGBA'])
def test_pngs_are_read(tmp_path, mode):
    path = tmp_path / 'x.png'
    noise_image(91, 70).convert(mode).save(path)
    expected = np.asarray(Image.open(path).convert('RGB'))
    np.testing.assert_array_equal(read_image(path), expected)
    assert check_image(path) == (91, 70)


def png_chunk(kind, data):
    return (struct.pack('>I', len(data)) + kind + data
            + struct.pack('>I', zlib.crc32(kind + data)))


def refused_images():
    """Bytes of images that must be refused, and why."""
    buffer = io.BytesIO()
    noise_image(91, 70).save(buffer, 'PNG')
    png = buffer.getvalue()
    start = png.index(b'IDAT') + 50
    yield png[:start] + b'\0' + png[start + 1:], 'cannot be read'
    yield png[:-30], 'cannot be read'
    yield (b'\x89PNG\r\n\x1a\n' + png_chunk(b'IHDR', struct.pack(
        '>IIBBBBB', 65000, 65000, 8, 2, 0, 0, 0)) + png_chunk(
            b'IDAT', zlib.compress(bytes(9))) + png_chunk(b'IEND', b''),
        'pixels are more than 178,956,970|exceeds limit')
    for mode, kind in (('I;16', 'PNG'), ('F', 'TIFF'), ('I', 'TIFF')):
        buffer = io.BytesIO()
        Image.new(mode, (91, 70)).save(buffer, kind)
        yield buffer.getvalue(), 'more than 8 bits'
    buffer = io.BytesIO()
    noise_image(91, 70).save(buffer, 'JPEG')
    jpeg = bytearray(buffer.getvalue())
    place = jpeg.index(b'\xff\xc0') + 5
    jpeg[place:place + 4] = struct.pack('>HH', 65000, 65000)
    yield bytes(jpeg), 'pixels are more than 178,956,970'
    yield b'', 'cannot be read'
    yield b'%!PS-Adobe-3.0 EPSF-3.0\n', 'cannot be read'


@pytest.mark.parametrize('data, message', list(refused_images()))
def test_images_that_cannot_be_used_are_named(tmp_path, data, message):
    path = tmp_path / 'x.png'
    path.write_bytes(data)
    for read_it in (read_image, check_image):
        with pytest.raises(DataError, match=message) as caught:
            read_it(path)
        assert str(caught.value).startswith(f'{path}: ')
        assert '\n' not in str(caught.value)


def test_bytes_after_a_jpeg_do_no_harm(broken):
    path = broken / 'image00004.jpg'
    before = read_image(path, fast=True)
    path.write_bytes(path.read_bytes() + b'\0' * 500)
    np.testing.assert_array_equal(before, read_image(path, fast=True))


def test_lists(tmp_path):
    with pytest.raises(DataError, match='filename_generator.py writes'):
        read_list(tmp_path / 'none.txt')
    empty = tmp_path / 'empty.txt'
    empty.write_text('\n\n')
    with pytest.raises(DataError, match='empty.txt: lists no image'):
        read_list(empty)
    empty.write_bytes(b'\xff\xfe\x00')
    with pytest.raises(DataError, match='not a text file'):
        read_list(empty)
    with pytest.raises(DataError, match='no such data folder'):
        datasets.read_annotations(tmp_path / 'nowhere', empty)


@pytest.mark.quick
def test_a_shared_memory_too_small_for_the_loaders_is_said(
        sample, monkeypatch, capsys):
    """As Docker's 64 MB; PyTorch's processes end there with a bus error."""
    def said(**more):
        loaders(sample, **{'batch_size': 32, 'image_sizes': [224], **more})
        return capsys.readouterr().out.count('--shm-size')
    monkeypatch.setattr(os, 'statvfs', lambda _: os.statvfs_result(
        (4096, 4096, 16384, 16384, 16384, 0, 0, 0, 0, 255)))
    assert said(num_workers=8) == 1
    assert said(num_workers=8, rank=1, world_size=2) == 0  # one says it
    assert said(num_workers=8, batch_size=4) == 0
    assert said(num_workers=0) == 0
