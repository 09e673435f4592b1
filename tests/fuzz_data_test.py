"""Damaged and hostile .mat files, images, lists and folders, at random.

    HEADPOSE_FUZZ=20000 python -m pytest tests/fuzz_data_test.py

Whatever is in a file: no traceback, no crash of this process, nothing
changed but the output, and no silent difference: what the generator lists,
training and test read, and what they refuse it does not list.
"""
import io
import os
import shutil
from functools import cache

import numpy as np
import pytest
import scipy.io
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from PIL import Image

import datasets
import filename_generator
from headpose.errors import DataError
from headpose.geometry.augment import Augmentation
from headpose.readers import lists, mat
from headpose.readers.images import check_image, read_image
from headpose.readers.pool import map_files

# A longer profile by hand: see tests/README.md.
EXAMPLES = os.environ.get('HEADPOSE_FUZZ')
often = settings(  # by default the same examples each time
    max_examples=int(EXAMPLES or 100), derandomize=not EXAMPLES,
    deadline=None, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture,
                           HealthCheck.too_slow, HealthCheck.data_too_large])
seldom = settings(often, max_examples=max(20, int(EXAMPLES or 0) // 50))

ANGLES = np.array([-25.0, 5, 11])  # yaw, pitch, roll
POINTS = np.array([[20.0, 60, 40, -1], [15.0, 20, 58, 452]])


# -------------------------------------------------------------------- damage

@st.composite
def damages(draw):
    """Draws what happens to a file: a list of (place, bytes gone, new)."""
    place = st.floats(0, 1) | st.just(1.0)
    byte = st.tuples(place, st.just(1), st.binary(min_size=1, max_size=1))
    piece = st.tuples(
        place, st.sampled_from([0, 1, 4, 30, 10 ** 6]),
        st.binary(max_size=4) | st.sampled_from(
            [bytes(30), b'\xff\xd9', b'\xff\xd8', bytes(512)]))
    return draw(st.lists(byte | piece, min_size=1, max_size=3))


def damaged(data, damage):
    """Returns bytes with the damage done to them."""
    for place, gone, new in damage:
        start = round(place * len(data))
        data = data[:start] + new + data[start + gone:]
    return data


@cache
def mats():
    """Good .mat files: packed or not, alone or among other arrays."""
    yaw, pitch, roll = np.radians(ANGLES)
    fields = {'Pose_Para': np.float32([[pitch, yaw, roll, 1, 2, 3, 4]]),
              'pt2d': POINTS}
    others = {'a': {'b': np.ones((2, 3)), 'c': 'text'}, 'd': True,
              'e': np.array([1, 'f'], object), 'roi': np.int16([[1, 2, 3]])}
    files = []
    for content in (fields, others | fields, fields | others):
        for packed in (False, True):
            buffer = io.BytesIO()
            scipy.io.savemat(buffer, content, do_compression=packed)
            files.append((packed, buffer.getvalue()))
    return files


@cache
def images():
    """Good images of 80 x 64 pixels: kind and bytes."""
    small = np.random.default_rng(0).integers(0, 256, (8, 10, 3), np.uint8)
    image = Image.fromarray(small).resize((80, 64), Image.Resampling.BICUBIC)
    files = []
    for mode, kind, how in (
            ('RGB', 'JPEG', {}), ('RGB', 'JPEG', {'progressive': True}),
            ('RGB', 'JPEG', {'subsampling': 0, 'quality': 95}),
            ('RGB', 'JPEG', {'restart_marker_blocks': 4}),
            ('L', 'JPEG', {}), ('CMYK', 'JPEG', {}), ('RGB', 'PNG', {}),
            ('P', 'PNG', {}), ('RGBA', 'PNG', {})):
        buffer = io.BytesIO()
        image.convert(mode).save(buffer, kind, **how)
        files.append((kind, buffer.getvalue()))
    return files


def outcome(function, path, *args, **kwargs):
    """Returns what a reader returns, or None where it refuses the file."""
    try:
        return function(path, *args, **kwargs)
    except DataError as error:
        assert str(error).startswith(f'{path}: ')
        assert len(str(error).splitlines()) == 1
        return None


# --------------------------------------------------------------------- tests

@pytest.mark.quick
@seldom
@given(st.lists(st.tuples(st.sampled_from(range(6)), damages()), min_size=5,
                max_size=20))
def test_damaged_mats(tmp_path, cases):
    paths = [f'{tmp_path}/{number}.mat' for number in range(len(cases))]
    for path, (which, damage) in zip(paths, cases):
        with open(path, 'wb') as file:
            file.write(damaged(mats()[which][1], damage))
    # Some crash SciPy.
    results = map_files(mat.read_mat, [(path,) for path in paths], 1)
    for path, (which, _), result in zip(paths, cases, results, strict=True):
        packed, bad = mats()[which][0], isinstance(result, DataError)
        event(f'packed: {packed}, read: {not bad}')
        if bad:
            assert str(result).startswith(f'{path}: ')
            assert len(str(result).splitlines()) == 1
            continue
        angles, pt2d = result
        assert angles.shape == (3,) and np.isfinite(angles).all()
        assert pt2d.shape[0] == 2 and np.isfinite(pt2d).all()
        if packed:  # it has checksums: what is read is what was written
            np.testing.assert_allclose(angles, ANGLES, rtol=1e-6)
            np.testing.assert_array_equal(pt2d, POINTS)


@pytest.mark.quick
@often
@given(st.sampled_from(range(9)), damages())
def test_damaged_images(tmp_path, which, damage):
    kind, data = images()[which]
    path = tmp_path / 'x.jpg'
    path.write_bytes(data)
    good = read_image(path)
    path.write_bytes(damaged(data, damage))
    size = outcome(check_image, path)
    slow = outcome(read_image, path)
    fast = outcome(read_image, path, fast=True)
    event(f'{kind}, read: {size is not None}')
    assert (size is None) == (slow is None) == (fast is None)
    if size is not None:
        assert slow.shape == fast.shape == (size[1], size[0], 3)
        assert slow.dtype == fast.dtype == np.uint8
    if size is not None and kind == 'PNG':  # it has checksums
        np.testing.assert_array_equal(slow, good)


LINES = st.lists(
    st.text(max_size=8) | st.binary(max_size=8).map(
        lambda line: line.decode('utf-8', 'surrogateescape'))
    | st.lists(st.sampled_from(['a', 'b', '..', '.', '', '/', 'a.jpg', '#',
                                '\ufeff', 'x y', ' ']), max_size=4).map(
        '/'.join), max_size=6)


@pytest.mark.quick
@often
@given(LINES, st.sampled_from(['\n', '\r\n', '\r']), st.booleans())
def test_hostile_lists(tmp_path, lines, end, mark):
    path = tmp_path / 'list.txt'
    data = end.join(lines).encode('utf-8', 'surrogateescape')
    path.write_bytes(b'\xef\xbb\xbf' * mark + data)
    names = outcome(lists.read_list, path)
    event(f'read: {names is not None}')
    if names is None:
        return
    assert len(set(names)) == len(names) > 0
    for name in names:
        assert not os.path.isabs(name) and '\0' not in name
        assert name == os.path.normpath(name)
        assert not name.startswith('../') and name != '..'
    listable = [name for name in names if lists.can_be_listed(name)]
    for name in set(names) - set(listable):  # as `a /` comes to be
        assert name != name.strip() or name.startswith('\ufeff')
    if listable:
        filename_generator.write_list(path, listable)
        assert list(lists.read_list(path)) == listable


NAMES = st.lists(
    st.text(st.characters(blacklist_characters='/\0',
                          blacklist_categories=['Cs']), min_size=1,
            max_size=6)
    | st.binary(min_size=1, max_size=6).map(lambda name: os.fsdecode(
        name.replace(b'/', b'').replace(b'\0', b'') or b'x')),
    min_size=1, max_size=5, unique=True)


def write_folder(folder, names, data):
    """Writes pairs of these names, some damaged; returns what it wrote."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in ['good', *names]:
        extension = data.draw(st.sampled_from(['.jpg', '.jpg', '.PNG']))
        for ending, files in (('.mat', mats()), (extension, images())):
            content = data.draw(st.sampled_from(files))[1]
            if name != 'good' and data.draw(st.integers(0, 3)) == 0:
                content = damaged(content, data.draw(damages()))
            (folder / f'{name}{ending}').write_bytes(content)
    return contents(folder)


def contents(folder):
    """Returns the bytes of the files in a folder, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@seldom
@given(NAMES, st.data())
def test_hostile_folders(tmp_path, capsys, run, names, data):
    before = write_folder(tmp_path / 'data', names, data)
    folder = tmp_path / 'data'
    status, out, err = run(
        filename_generator, '--dataset', 'AFLW2000', '--dataset_path', folder,
        '--workers', 1, '--skip_bad', '--output', tmp_path / 'list.txt')
    assert status == 0, err  # one pair at least is good
    assert 'Traceback' not in err
    assert contents(folder) == before
    listed = list(lists.read_list(tmp_path / 'list.txt'))
    dropped, bad = out.count('\ndropped ') + out.startswith('dropped '), len(
        err.splitlines())
    event(f'bad: {bad > 0}')
    found = {os.path.splitext(name)[0] for name in before
             if not name.startswith('._')}
    assert len(listed) + dropped + bad >= len(found)
    # What is listed is read, by test and training; what is bad is not.
    annotations = lists.read_annotations(folder, tmp_path / 'list.txt')
    for augmentation in (None, Augmentation()):
        items = datasets.PoseDataset(annotations, 64, augmentation)
        for index in range(len(listed)):
            image, angles, *_ = items[0, index]
            assert image.shape == (64, 64, 3) and np.isfinite(angles).all()
    for name in found - set(listed):
        if lists.can_be_listed(name) and os.path.normpath(name) == name:
            assert refused(folder, name, tmp_path / 'one.txt')


def refused(folder, name, path):
    """Says whether the readers refuse a pair that somebody lists by hand."""
    filename_generator.write_list(path, [name])
    try:
        annotations = lists.read_annotations(folder, path)
        datasets.PoseDataset(annotations, 64)[0, 0]
    except DataError as error:
        return len(str(error).splitlines()) == 1
    return False


@pytest.mark.quick
def test_the_files_that_are_damaged_are_good(tmp_path):
    for packed, data in mats():
        (tmp_path / 'x.mat').write_bytes(data)
        angles, pt2d = mat.read_mat(tmp_path / 'x.mat')
        np.testing.assert_allclose(angles, ANGLES, rtol=1e-6)
        np.testing.assert_array_equal(pt2d, POINTS)
    for kind, data in images():
        (tmp_path / 'x').write_bytes(data)
        assert check_image(tmp_path / 'x') == (80, 64)
        assert read_image(tmp_path / 'x').shape == (64, 80, 3)
    with pytest.raises(DataError):
        read_image(tmp_path / 'none')
