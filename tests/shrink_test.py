"""Images that are read at a fraction of their size, for small crops."""
import cv2
import numpy as np
import pytest

import datasets
from headpose.geometry.augment import (BLURRED, Augmentation, shrinkage,
                                       training_crop)
from headpose.readers.images import read_image
from headpose.readers.lists import read_annotations
from tests.draws import drawn

pytestmark = pytest.mark.quick
# Neither flipped nor blurred; with a jitter, a smaller box in its place.
DRAWS = drawn(margin=0.0, shift_x=0.3, shift_y=0.6, jitter_size=0.0)


@pytest.mark.parametrize('extension', ['.jpg', '.png'])
@pytest.mark.parametrize('times', [1, 2, 4, 8])
def test_an_image_is_read_smaller(tmp_path, extension, times):
    path = str(tmp_path / f'x{extension}')
    picture = np.repeat(np.arange(203, dtype=np.uint8)[:, None], 150, 1)
    cv2.imwrite(path, np.dstack([picture] * 3))
    image = read_image(path, shrink=times)
    assert image.shape == (-(-203 // times), -(-150 // times), 3)
    # Each pixel is the mean of those that it stands for.
    expected = np.arange(203)[:203 // times * times].reshape(-1, times).mean(1)
    assert np.abs(image[:len(expected), 9, 0] - expected).max() < 2


def test_only_images_with_pixels_to_spare_are_read_smaller():
    box = 100, 100, 300, 320  # with its margins 250 x 340 pixels
    assert shrinkage(box, 0, DRAWS, 224) == 1
    assert shrinkage(box, 0, DRAWS, 64) == 2
    assert shrinkage(np.multiply(box, 2), 0, DRAWS, 64) == 4
    assert shrinkage(np.multiply(box, 100), 0, DRAWS, 64) == 8
    assert shrinkage(box, 0, DRAWS._replace(blur=BLURRED / 2), 64) == 1
    assert shrinkage(box, 0, DRAWS, 64, Augmentation(box_jitter=0.6)) == 1


@pytest.mark.parametrize('turn', [0.0, 25.0])
@pytest.mark.parametrize('flip', [0.1, 0.9])
@pytest.mark.parametrize('size', [64, 96])  # resized by Pillow, by OpenCV
@pytest.mark.parametrize('box', [(103, 96, 301, 309), (-40, 210, 171, 399)])
def test_the_crop_of_a_smaller_image_lies_where_the_whole_ones_does(
        turn, flip, size, box):
    y, x = np.mgrid[:400, :400]
    whole = np.dstack([127 + 100 * np.sin(x / 40), 127 + 100 * np.cos(y / 30),
                       (x + y) / 4]).astype(np.uint8)
    half = whole.reshape(200, 2, 200, 2, 3).mean((1, 3)).round()
    draws = DRAWS._replace(flip=flip)
    exact = training_crop(whole, box, draws, size, turn)
    ours = training_crop(half.astype(np.uint8), box, draws, size, turn,
                         shrink=2)
    assert np.abs(exact.astype(int) - ours).mean() < 1


def test_a_data_sets_small_crops_are_within_a_grey_level(sample, monkeypatch):
    folder = sample / '300W_LP'
    items = datasets.PoseDataset(read_annotations(
        folder, folder / 'filename_list.txt'), 48, Augmentation())
    read = []
    monkeypatch.setattr(datasets, 'read_image', lambda path, fast, shrink: (
        read.append(shrink), read_image(path, fast, shrink))[1])
    small = [items[0, index][0].astype(int) for index in range(len(items))]
    assert sum(times > 1 for times in read) > len(items) / 2
    monkeypatch.setattr(datasets, 'shrinkage', lambda *_: 1)
    apart = [np.abs(items[0, index][0] - crop).mean()
             for index, crop in enumerate(small)]
    assert np.mean(apart) < 1
