"""The rendered sample: both of its data sets show the face alike."""
import numpy as np
import pytest
import scipy.io

from headpose.geometry import crop
from headpose.geometry.pose import rotation_matrix
from headpose.readers import lists, mat
from tools import sample_data


@pytest.fixture(scope='module')
def larger(tmp_path_factory):
    """A sample of as many images in either layout, for statistics."""
    folder = tmp_path_factory.mktemp('larger')
    sample_data.write_sample(folder, photographs=16, renderings=3, images=48)
    return folder


def seen(folder):
    """Reads where the protocol's crops show the face.

    Returns:
        angles: (N, 3) degrees.
        noses: (N, 2), the tip's place from the crop's centre, in crop sides.
        scales: (N,), crop sides a metre.
    """
    rows = []
    for path in sorted(folder.rglob('*.mat')):
        angles, pt2d = mat.read_mat(path)
        x, y, _, scale = scipy.io.loadmat(path)['Pose_Para'][0, 3:7]
        origin = np.array([x, sample_data.SIDE - y])
        nose = origin + scale * 1000 * (
            rotation_matrix(angles)[:2] @ sample_data.LANDMARKS[30])
        box = np.reshape(crop.expand_box(
            mat.face_box(pt2d), crop.PROTOCOL_K,
            crop.PROTOCOL_SIDE), (2, 2))
        side = np.ptp(box, axis=0).min()
        rows.append((angles, (nose - box.mean(0)) / side,
                     scale * 1e6 / side))
    return map(np.array, zip(*rows))


def test_validation_and_test_crops_show_the_face_alike(larger):
    places, sizes = [], []
    for dataset in ('300W_LP', 'AFLW2000'):
        angles, noses, scales = seen(larger / dataset)
        toward = -np.sign(angles[:, 0])  # positive yaw: to the left
        across, yaw = noses[:, 0] * toward, np.abs(angles[:, 0])
        places.append([across[(low <= yaw) & (yaw < low + 30)].mean()
                       for low in (0, 30, 60)])
        sizes.append(scales.mean())
    # A nose that its photograph's box does not follow lies up to 0.16 apart.
    np.testing.assert_allclose(*places, atol=0.1)
    assert sizes[0] == pytest.approx(sizes[1], rel=0.1)


def test_renderings_keep_the_face_in_place(larger):
    for first in (larger / '300W_LP').rglob('*_0.mat'):
        places = []
        for path in first.parent.glob(first.stem[:-1] + '?.mat'):
            angles, _ = mat.read_mat(path)
            x, y, _, scale = scipy.io.loadmat(path)['Pose_Para'][0, 3:7]
            places.append([x, -y] + scale * 1000 * (
                rotation_matrix(angles)[:2] @ sample_data.PIVOT))
        # Persons are stretched, which Pose_Para does not say, by up to 7%.
        assert len(places) == 3 and np.ptp(places, axis=0).max() < 6


def test_both_data_sets_hold_the_same_poses(larger):
    spreads = []
    for dataset in ('300W_LP', 'AFLW2000'):
        angles, _, _ = seen(larger / dataset)
        assert np.abs(angles).max() < 91
        # A constant's error: what a network must beat.
        spreads.append(np.abs(angles - np.median(angles, 0)).mean(0))
    np.testing.assert_allclose(*spreads, rtol=0.35)
    assert np.min(spreads) > 14


def test_the_sample_claims_to_be_no_release(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sample_data.write_sample, '__defaults__', (2, 2, 3))
    folder = tmp_path / 'sample'
    sample_data.main([str(folder)])
    said = capsys.readouterr().out
    assert 'No data set in data/' in said and str(folder) in said
    assert 'whole release' not in said and '.partial' not in said
    for dataset, count in (('300W_LP', 4), ('AFLW2000', 3)):
        names = lists.read_list(folder / dataset / 'filename_list.txt')
        assert len(names) == count
