"""Files to tensors: .mat reading, crops, augmentation, the split."""
import io
import os
import shutil

import numpy as np
import pytest
import scipy.io
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms as published

import datasets
import loaders
import pose
import transforms
from datasets import DataError
from hopenet import normalize
from pose import rotation_matrix
from tests import original, sample_data

COORDINATE = st.floats(-500, 900)


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
    angles, pt2d = datasets.read_mat(mat(GOOD_MAT))
    np.testing.assert_allclose(angles, [-20, 10, 30], rtol=1e-6)
    np.testing.assert_array_equal(pt2d, POINTS)


@pytest.mark.parametrize('fields, message', [
    ({'Pose_Para': POSE}, 'has no pt2d'),
    ({'pt2d': POINTS}, 'has no Pose_Para'),
    ({'Pose_Para': POSE * np.nan, 'pt2d': POINTS}, 'not finite'),
    ({'Pose_Para': POSE, 'pt2d': POINTS * np.inf}, 'not finite'),
    ({'Pose_Para': POSE[:, :2], 'pt2d': POINTS}, 'at least 3'),
    ({'Pose_Para': POSE, 'pt2d': POINTS.T}, r'shape \(2, K\)'),
    ({'Pose_Para': 'text', 'pt2d': POINTS}, 'not a readable'),
    ({'Pose_Para': POSE, 'pt2d': np.zeros((2, 0))}, r'shape \(2, K\)')])
def test_a_bad_mat_is_named(mat, fields, message):
    path = mat(mat_bytes(**fields))
    with pytest.raises(DataError, match=message) as caught:
        datasets.read_mat(path)
    assert str(caught.value).startswith(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture],
          deadline=None)
@given(st.integers(0, len(GOOD_MAT) - 1), st.binary(max_size=8))
def test_damaged_bytes_end_in_a_data_error_or_numbers(mat, cut, tail):
    try:
        angles, pt2d = datasets.read_mat(mat(GOOD_MAT[:cut] + tail))
    except DataError:
        return
    assert np.isfinite(angles).all() and pt2d.shape[0] == 2


def test_only_the_raw_protocol_takes_unseen_landmarks_for_the_face():
    pt2d = np.array([[-1, 100, 200, -1], [452, 110, 210, 452]])
    assert datasets.face_box(pt2d).tolist() == [100, 110, 200, 210]
    assert datasets.face_box(pt2d, 'raw').tolist() == [-1, 110, 200, 452]


@pytest.mark.parametrize('pt2d', [
    [[-1, -1], [452, 452]], [[5, 5], [1, 9]], [[-1, 4], [452, 7]]])
def test_landmarks_without_a_box_are_refused(pt2d):
    with pytest.raises(DataError, match='span no box'):
        datasets.face_box(np.array(pt2d))


def test_the_range_is_the_bins():
    import hopenet
    assert pose.MAX_ANGLE == -hopenet.MIN_ANGLE == (
        hopenet.MIN_ANGLE + hopenet.NUM_BINS * hopenet.BIN_WIDTH)


# --------------------------------------------------------------------- crops

boxes = st.tuples(COORDINATE, COORDINATE, st.floats(8, 500),
                  st.floats(8, 500)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))


@given(boxes, st.floats(0.2, 0.4), st.sampled_from([0.6, 2.0]))
def test_margins_are_the_published(box, k, side):
    assert transforms.expand_box(box, k, side) == original.margins(
        box, k, side)


def noise_image(width, height, seed=0):
    """A smooth random picture, so that a shifted crop would show."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (height // 12 + 1, width // 12 + 1, 3))
    return Image.fromarray(small.astype(np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC)


angles = st.tuples(*[st.floats(-99, 99)] * 3).map(np.array)


@given(angles)
def test_a_rotation_gives_its_angles_back(triple):
    back = pose.angles_near(rotation_matrix(triple), triple)
    np.testing.assert_allclose(rotation_matrix(back), rotation_matrix(triple),
                               atol=1e-7)
    if abs(abs(triple[0]) - 90) > 0.1:  # there pitch and roll are one turn
        np.testing.assert_allclose(back, triple, atol=1e-5)


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
    ours = np.array(transforms.protocol_crop(image, box, size))
    ours = normalize(torch.from_numpy(ours).permute(2, 0, 1)[None])[0]
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def grey_levels_apart(image, box, draws, size=224, ours=None):
    """Mean difference of the fast crop from Pillow's, inside the image."""
    ours, flipped = transforms.training_crop(
        np.asarray(image) if ours is None else ours, box, draws, size)
    theirs, flip = original.training_crop(image, box, draws, size)
    assert flipped == flip
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
        annotations = datasets.read_annotations(folder / dataset,
                                                lists[dataset])
        rng = np.random.default_rng(0)
        for name, box in zip(annotations.names, annotations.boxes):
            path = folder / dataset / f'{name}.jpg'
            image = Image.open(path).convert('RGB')
            draws = (*rng.random(4), 1)
            apart.append(grey_levels_apart(
                image, box, draws, ours=datasets.read_image(path, fast=True)))
    assert len(apart) == 81
    print(f'mean {np.mean(apart):.2f}, largest {max(apart):.2f} grey levels')
    assert max(apart) < 1


# ------------------------------------------- augmentation beyond HopeNet's

def in_plane(degrees):
    """The rotation of a picture, clockwise, in axes right, down, to us."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


YAW = st.floats(-89, 89)
OTHER = st.floats(-99, 99)


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
        angles, _ = datasets.read_mat(path)
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
    box, draws = (150, 140, 290, 300), np.array([0.4, 0.5, 0.5, flip, 1])
    turned, _ = transforms.training_crop(np.asarray(image), box, draws, size,
                                         30.0)
    straight, _ = transforms.training_crop(np.asarray(image), box, draws, size)
    by_hand = Image.fromarray(straight).rotate(-30, Image.Resampling.BILINEAR)
    row, column = np.mgrid[:size, :size] - (size - 1) / 2
    inside = np.hypot(row, column) < size * 0.45
    apart = np.abs(turned.astype(float) - np.asarray(by_hand, float))
    assert apart[inside].mean() < 6
    wrong = Image.fromarray(straight).rotate(30, Image.Resampling.BILINEAR)
    apart = np.abs(turned.astype(float) - np.asarray(wrong, float))
    assert apart[inside].mean() > 15
    assert turned[0, 0].any()  # the picture's own pixels, not a black corner


def test_more_augmentation_is_off_by_default_and_labels_follow(sample,
                                                               annotations):
    plain = loaders.PoseDataset(sample / '300W_LP', annotations, 64, True)
    more = loaders.PoseDataset(
        sample / '300W_LP', annotations, 64, True,
        more=transforms.Augmentation(30, 0.2, 0.3, 1.0))
    turns = []
    for index in range(24):
        (image, angles, _), (other, new, _) = plain[0, index], more[0, index]
        assert other.shape == image.shape and (image != other).any()
        turn = in_plane(60 * more.draws(0)[index, 8] - 30)
        expected = turn @ rotation_matrix(angles)
        if np.abs(expected - rotation_matrix(new)).max() < 1e-4:
            turns.append(index)
        else:  # it would have been out of range
            assert (new == angles).all()
        assert pose.beyond_range(new) is None
    assert len(turns) > 12


@given(boxes, st.floats(0, 0.5), st.tuples(*[st.floats(0, 1)] * 3))
def test_a_jittered_box_is_near_the_box(box, amount, draws):
    size = np.array([box[2] - box[0], box[3] - box[1]])
    new = transforms.jittered(box, amount, draws)
    grown = (new[2:] - new[:2]) / size
    moved = np.abs((new[2:] + new[:2]) / 2 - np.add(box[2:], box[:2]) / 2)
    assert (np.abs(grown - 1) <= amount + 1e-9).all()
    assert (moved <= amount * size / 2 + 1e-6).all()


def test_colours_and_detail():
    image = np.asarray(noise_image(64, 48))
    same = transforms.recolored(image, 0.5, np.full(3, 0.5))
    np.testing.assert_array_equal(same, image)
    bright = transforms.recolored(image, 0.5, np.array([1, 0.5, 0.5]))
    assert bright.mean() > image.mean() * 1.2
    grey = transforms.recolored(image, 1, np.array([0.5, 0.5, 0]))
    assert np.ptp(grey.astype(int), axis=2).max() <= 1
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    coarse = transforms.coarsened(noise, 1.0)
    assert coarse.shape == noise.shape and coarse.std() < noise.std() / 2


# ----------------------------------------------------------------- data sets

@pytest.fixture
def annotations(sample):
    folder = sample / '300W_LP'
    return datasets.read_annotations(folder, folder / 'filename_list.txt')


def test_every_real_pair_is_read(real):
    folder, lists = real
    for dataset, count in (('300W_LP', 51), ('AFLW2000', 30)):
        annotations = datasets.read_annotations(folder / dataset,
                                                lists[dataset])
        assert len(annotations.names) == count
        items = loaders.PoseDataset(folder / dataset, annotations)
        for index in range(count):
            image, angles, _ = items[0, index]
            assert image.shape == (224, 224, 3) and image.std() > 5
            mat = scipy.io.loadmat(folder / dataset
                                   / f'{annotations.names[index]}.mat')
            pitch, yaw, roll = np.degrees(mat['Pose_Para'][0, :3])
            np.testing.assert_allclose(angles, [yaw, pitch, roll], rtol=1e-5)


def test_augmentation_depends_on_seed_epoch_and_index_alone(sample,
                                                            annotations):
    def crops(seed, epoch, workers, order):
        items = loaders.PoseDataset(sample / '300W_LP', annotations, 64, True,
                                    seed)
        batches = loaders.Batches(order, 5)
        batches.epoch = epoch
        loader = loaders.make_loader(items, batches, workers)
        images, angles, indices = zip(*loader)
        back = np.concatenate(indices).argsort()
        return torch.cat(images)[back], np.concatenate(angles)[back]

    images, angles = crops(3, 1, 0, range(24))
    again = crops(3, 1, 2, list(reversed(range(24))))
    assert torch.equal(images, again[0])
    np.testing.assert_array_equal(angles, again[1])
    for other in (crops(4, 1, 0, range(24)), crops(3, 2, 0, range(24))):
        assert not torch.equal(images, other[0])


def test_a_flip_negates_yaw_and_roll(sample, annotations):
    items = loaders.PoseDataset(sample / '300W_LP', annotations, 64, True)
    signs = {True: [], False: []}
    for epoch in range(4):
        for index in range(24):
            _, angles, _ = items[epoch, index]
            flipped = items.draws(epoch)[index, 3] < 0.5
            sign = [-1, 1, -1] if flipped else 1
            np.testing.assert_array_equal(angles,
                                          annotations.angles[index] * sign)
            signs[bool(flipped)].append(index)
    assert all(signs.values())
    # The annotations themselves are never changed.
    again = datasets.read_annotations(
        sample / '300W_LP', sample / '300W_LP' / 'filename_list.txt')
    np.testing.assert_array_equal(again.angles, annotations.angles)


def test_validation_is_never_augmented(sample, annotations):
    items = loaders.PoseDataset(sample / '300W_LP', annotations, 64)
    assert all((items[1, index][0] == items[2, index][0]).all()
               for index in range(24))


def test_images_are_rgb(tmp_path):
    blue = Image.new('RGB', (300, 300), (0, 0, 255))
    blue.save(tmp_path / 'x.jpg')
    annotations = datasets.Annotations(
        ['x'], np.zeros((1, 3), np.float32),
        np.array([[100., 100, 200, 200]]), ['x.jpg'])
    for augment in (False, True):
        items = loaders.PoseDataset(tmp_path, annotations, 64, augment)
        red, _, blue = items[0, 0][0].transpose(2, 0, 1)
        assert blue.min() > 250 > 5 > red.max()


# --------------------------------------------------------- batches and split

@given(st.integers(1, 50), st.integers(1, 60), st.booleans())
def test_each_image_is_in_one_batch(count, batch_size, shuffle):
    batches = loaders.Batches(range(count), batch_size, shuffle)
    listed = [key for batch in batches for key in batch]
    assert sorted(listed) == [(0, index) for index in range(count)]
    assert len(list(batches)) == len(batches)


def test_the_order_changes_with_epoch_and_seed():
    def order(epoch, seed):
        batches = loaders.Batches(range(50), 50, True, seed)
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
    assert datasets.photograph(name) == expected


@given(st.integers(2, 40), st.integers(1, 17), st.integers(0, 9))
def test_the_split_keeps_photographs_whole(photographs, renderings, seed):
    names = [f'AFW/AFW_{photo}_1_{rendering}' for photo in range(photographs)
             for rendering in range(renderings)]
    training, validation = loaders.split_names(names, seed=seed)
    assert sorted(training + validation) == list(range(len(names)))
    sides = [{datasets.photograph(names[i]) for i in side}
             for side in (training, validation)]
    assert sides[0] and sides[1] and not sides[0] & sides[1]
    assert len(validation) < 0.1 * len(names) + renderings
    assert loaders.split_names(names, seed=seed) == (training, validation)


def test_the_documents_split_is_by_image():
    names = [f'AFW/AFW_{i // 10}_1_{i % 10}' for i in range(200)]
    training, validation = loaders.split_names(names, 'image')
    assert len(training) == 180 and len(validation) == 20
    assert validation != loaders.split_names(names, 'image', seed=1)[1]


def test_one_photograph_cannot_be_split():
    names = ['AFW/AFW_1_1_0', 'AFW/AFW_1_1_1']
    with pytest.raises(DataError, match='--split image'):
        loaders.split_names(names)
    assert loaders.split_names(names, 'image') in (([0], [1]), ([1], [0]))


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
        angles, _ = datasets.read_mat(path)
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


def read(folder):
    return datasets.read_annotations(folder, folder / 'filename_list.txt')


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


@pytest.mark.parametrize('augment', [False, True])
def test_a_truncated_image_is_named(broken, augment):
    path = broken / 'image00004.jpg'
    path.write_bytes(path.read_bytes()[:9000])
    items = loaders.PoseDataset(broken, read(broken), 64, augment)
    index = items.annotations.names.index('image00004')
    with pytest.raises(DataError, match='image00004.jpg: cannot be read'):
        items[0, index]


@pytest.mark.parametrize('mode', ['L', 'CMYK', 'RGB'])
def test_jpegs_of_any_colours_are_read(tmp_path, mode):
    image = noise_image(90, 70).convert(mode)
    image.save(tmp_path / 'x.jpg', quality=95)
    read = datasets.read_image(tmp_path / 'x.jpg', fast=True)
    expected = np.asarray(Image.open(tmp_path / 'x.jpg').convert('RGB'))
    assert read.shape == (70, 90, 3)
    assert np.abs(read.astype(int) - expected).mean() < 5


def test_bytes_after_a_jpeg_do_no_harm(broken):
    path = broken / 'image00004.jpg'
    before = datasets.read_image(path, fast=True)
    path.write_bytes(path.read_bytes() + b'\0' * 500)
    np.testing.assert_array_equal(before, datasets.read_image(path, fast=True))


def test_lists(tmp_path):
    with pytest.raises(DataError, match='filename_generator.py writes'):
        datasets.read_list(tmp_path / 'none.txt')
    empty = tmp_path / 'empty.txt'
    empty.write_text('\n\n')
    with pytest.raises(DataError, match='empty.txt: lists no image'):
        datasets.read_list(empty)
    empty.write_bytes(b'\xff\xfe\x00')
    with pytest.raises(DataError, match='not a text file'):
        datasets.read_list(empty)
    with pytest.raises(DataError, match='no such data folder'):
        datasets.read_annotations(tmp_path / 'nowhere', empty)
