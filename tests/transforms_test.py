"""The crop's limits and the augmentation's amounts, to the pixel."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from headpose.geometry import augment, crop
from tests.draws import drawn

PICTURE = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)


# ----------------------------------------------------- what cannot be cropped

@pytest.mark.parametrize('box, size, problem', [
    ((0, 0, 10, 100), (90, 80), None),          # exactly 10 times as high
    ((0, 0, 100, 10), (90, 80), None),
    ((0, 0, 101, 10), (190, 80), 'over 10 times'),
    ((0, 0, 8, 8), (8, 90), None),
    ((0, 0, 8, 8), (90, 7), 'too small'),
    # The picture's longer side counts: a strip may be all of a face.
    ((-100, -100, 260, 260), (20, 90), None),   # exactly 4 times as large
    ((-100, -100, 260, 261), (90, 20), 'over 4 times'),
    # A pixel of the picture has to be in the box, on each side.
    ((-49, 10, 1, 60), (90, 80), None),
    ((-49, 10, 0.9, 60), (90, 80), 'outside'),
    ((10, -49, 60, 1), (90, 80), None),
    ((10, -49, 60, 0.9), (90, 80), 'outside'),
    ((89, 10, 139, 60), (90, 80), None),
    ((89.1, 10, 139, 60), (90, 80), 'outside'),
    ((10, 79, 60, 129), (90, 80), None),
    ((10, 79.1, 60, 129), (90, 80), 'outside')])
def test_the_last_box_that_can_be_cropped_and_the_first_that_cannot(
        box, size, problem):
    said = crop.crop_problem(box, *size)
    assert said is None if problem is None else problem in said
    if said is None:
        image = crop.protocol_crop(Image.new('RGB', size), box, 32)
        assert image.size == (32, 32)


def test_a_box_is_judged_before_its_picture_is_known():
    assert crop.crop_problem((-9, -9, 60, 70)) is None
    assert 'too small' in crop.crop_problem((0, 0, 3.9, 30))
    assert 'too large' in crop.crop_problem((0, 0, 5001, 3000))


def test_a_training_crop_is_for_networks_of_224_pixels_unless_told():
    image = augment.training_crop(PICTURE, (5, 5, 30, 25), drawn())
    assert image.shape == (224, 224, 3)


@pytest.mark.parametrize('flip', [False, True])
@pytest.mark.parametrize('size', [12, 13])
@pytest.mark.parametrize('turn', [90.0, 180.0, -90.0])
def test_a_crop_turns_about_its_centre(turn, size, flip):
    image = augment.turned_crop(PICTURE, 14, 9, size, turn, flip)
    face = PICTURE[:, ::-1] if flip else PICTURE
    straight = face[9:9 + size, 14:14 + size]
    np.testing.assert_array_equal(image, np.rot90(straight, -turn // 90))


# ------------------------------------------------------------- parts, resized

def assert_black_outside(x, y, wide, high):
    framed = np.pad(PICTURE, ((130, 130), (130, 130), (0, 0)))
    np.testing.assert_array_equal(
        augment.cut(PICTURE, x, y, x + wide, y + high),
        framed[y + 130:y + high + 130, x + 130:x + wide + 130])


@settings(deadline=None)
@given(st.integers(-60, 60), st.integers(-60, 60), st.integers(1, 60),
       st.integers(1, 60))
def test_a_part_is_black_outside_the_picture_and_nowhere_else(x, y, wide,
                                                              high):
    assert_black_outside(x, y, wide, high)


@pytest.mark.parametrize('x, y, wide, high', [
    (-50, 0, 50, 30), (0, -50, 40, 50), (40, 0, 10, 30), (0, 30, 40, 20),
    (-5, -5, 5, 5), (-9, 0, 49, 30), (0, 0, 40, 31), (39, 29, 1, 1)])
def test_a_part_that_ends_where_the_picture_does(x, y, wide, high):
    assert_black_outside(x, y, wide, high)


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([64, 224]))
def test_a_size_keeps_its_shape_and_covers_the_crop(width, height, shorter):
    new = crop.resized(width, height, shorter)
    assert min(new) == shorter
    assert (new[0] <= new[1]) == (width <= height) or new[0] == new[1]
    exact = shorter * max(width, height) / min(width, height)
    assert exact - 1 < max(new) <= max(exact, shorter)


# ----------------------------------------------------- amounts of augmentation

def test_the_largest_jitter_is_as_large_as_it_says():
    box = np.array([100.0, 200, 200, 240])

    def jittered(x, y, size):
        return augment.jittered(box, 0.3, drawn(
            jitter_x=x, jitter_y=y, jitter_size=size)).tolist()
    assert jittered(0.5, 0.5, 0.5) == box.tolist()
    # 0.15 of its 100 and 40 pixels to each side; its size by 0.3.
    assert jittered(1, 0.5, 0.5) == pytest.approx([115, 200, 215, 240])
    assert jittered(0, 0.5, 0.5) == pytest.approx([85, 200, 185, 240])
    assert jittered(0.5, 1, 0.5) == pytest.approx([100, 206, 200, 246])
    assert jittered(0.5, 0, 0.5) == pytest.approx([100, 194, 200, 234])
    assert jittered(0.5, 0.5, 1) == pytest.approx([85, 194, 215, 246])
    assert jittered(0.5, 0.5, 0) == pytest.approx([115, 206, 185, 234])


def middle_tones():
    """A picture that no change below drives into black or white."""
    rng = np.random.default_rng(0)
    return rng.integers(90, 150, (48, 64, 3)).astype(np.uint8)


def changed(**fields):
    """What draws make of the middle tones by up to 0.4, as floats."""
    return augment.recolored(middle_tones(), 0.4,
                             drawn(**fields)).astype(float)


GREY = np.array([0.299, 0.587, 0.114])  # of red, green, blue


@pytest.mark.parametrize('draw, factor', [(0, 0.6), (0.25, 0.8), (1, 1.4)])
def test_colours_change_by_the_factor_that_is_drawn(draw, factor):
    image = middle_tones().astype(float)
    # Brightness: every pixel.
    np.testing.assert_allclose(changed(brightness=draw), image * factor,
                               atol=0.51)
    # Contrast: the distance from the mean grey, which stays.
    mean = (image @ GREY).mean()
    np.testing.assert_allclose(changed(contrast=draw),
                               mean + (image - mean) * factor, atol=0.6)
    # Saturation: the distance from the pixel's own grey, which stays.
    grey = (image @ GREY)[..., None]
    np.testing.assert_allclose(changed(saturation=draw),
                               grey + (image - grey) * factor, atol=1.1)


def test_brightness_and_contrast_together_move_the_mean_by_brightness_alone():
    image, new = middle_tones().astype(float), changed(
        brightness=0.75, contrast=0.0)
    assert (new @ GREY).mean() == pytest.approx(
        1.2 * (image @ GREY).mean(), abs=0.5)
    assert new.std() == pytest.approx(1.2 * 0.6 * image.std(), rel=0.05)


def test_no_augmentation_is_beyond_hopenets_unless_asked_for():
    assert not any(augment.Augmentation())


@pytest.mark.parametrize('flipped', [False, True])
@pytest.mark.parametrize('box', [(241.4, 174.7, 487.9, 470.2),
                                 (80, 240, 432, 496), (8, 12, 208, 240)])
def test_a_crop_framed_as_the_tests_is_the_tests(box, flipped):
    image = Image.fromarray(PICTURE).resize((800, 600))
    size, framed = 48, augment.Augmentation(test_framing=True)
    draws = drawn(flip=0.0 if flipped else 0.9, margin=0.0, shift_x=0.9)
    angles = np.float32([10, 20, 30])
    ours, labels = augment.augmented_crop(np.asarray(image), box, angles,
                                          draws, size, framed)
    if flipped:
        image = ImageOps.mirror(image)
        box = (800 - box[2], box[1], 800 - box[0], box[3])
    theirs = np.asarray(crop.protocol_crop(image, box, size))
    near = np.abs(ours.astype(float) - theirs)
    assert np.mean(near) < 4  # the box's whole pixels, rounded once more
    moved = np.abs(ours[:, 2:].astype(float) - theirs[:, :-2])
    assert near.mean() < moved.mean() / 2
    np.testing.assert_array_equal(labels,
                                  [-10, 20, -30] if flipped else angles)
    place, extent = augment.face_in_crop(box, box, draws._replace(flip=0.9),
                                         size, test_framing=True)
    assert place[0] < size / 2 - 1  # left of the middle, mirrored or not
    mirror_place, same = augment.face_in_crop(
        augment.mirrored(box), augment.mirrored(box),
        draws._replace(flip=0.0), size, test_framing=True)
    assert mirror_place == pytest.approx(place, abs=1.5)
    assert same == pytest.approx(extent, abs=1.5)


@pytest.mark.parametrize('yaw, left, right', [
    (0, 0.08, 0.92), (-90, 0.16, 1.0), (90, 0.0, 0.84)])
def test_boxes_lie_between_the_labels_and_visible_landmarks(yaw, left, right):
    """Positive yaw turns the nose to the left."""
    framed, box = augment.Augmentation(test_framing=True), (100, 50, 200, 150)

    def made(draw, augmentation=framed):
        return augment.drawn_box(box, yaw, drawn(margin=draw), augmentation)

    np.testing.assert_allclose(made(0.0), box)
    np.testing.assert_allclose(made(1.0, augment.Augmentation()), box)
    expected = [100 + 100 * left, 55.5, 100 + 100 * right, 144.5]
    np.testing.assert_allclose(made(1.0), expected, atol=0.01)
    np.testing.assert_allclose(made(0.5), np.add(box, expected) / 2,
                               atol=0.01)


def test_each_augmentation_takes_its_own_draws():
    image = np.asarray(Image.fromarray(PICTURE).resize((200, 150)))
    box, angles = (60, 40, 130, 110), np.float32([10, 20, 30])

    def made(amounts, **fields):
        return augment.augmented_crop(
            image, box, angles, drawn(**fields), 32,
            augment.Augmentation(**amounts))[0]

    # Values in the middle leave everything as it is.
    np.testing.assert_array_equal(made({'box_jitter': 0.3,
                                        'color_jitter': 0.3}), made({}))
    for amount, used in (
            ('box_jitter', ('jitter_x', 'jitter_y', 'jitter_size')),
            ('color_jitter', ('brightness', 'contrast', 'saturation')),
            ('rotate', ('turn',))):
        amounts = {amount: 30 if amount == 'rotate' else 0.3}
        for field in augment.Draws._fields[5:]:
            same = np.array_equal(made(amounts, **{field: 0.9}),
                                  made(amounts))
            assert same == (field not in used), (amount, field)


def test_a_head_that_cannot_be_turned_is_left_upright_and_whole():
    image = np.asarray(Image.fromarray(PICTURE).resize((200, 150)))
    box, angles = (60, 40, 130, 110), np.float32([20, 10, -98])

    def made(rotate, turn):
        return augment.augmented_crop(image, box, angles, drawn(turn=turn), 32,
                                      augment.Augmentation(rotate))
    upright, _ = made(0, 0.5)
    pixels, kept = made(45, 0.0)  # a roll of -143 degrees has no bin
    np.testing.assert_array_equal(pixels, upright)
    np.testing.assert_array_equal(kept, angles)
    pixels, turned = made(45, 1.0)  # and of -53 has
    assert (pixels != upright).any() and turned[2] > -90


# ------------------------------------------------------------ smaller pictures

@pytest.mark.parametrize('draw, margin', [(0.0, 0.2), (0.5, 0.3)])
def test_a_picture_is_halved_where_its_crop_keeps_twice_the_pixels(draw,
                                                                   margin):
    for side in range(60, 260):
        box = (0, 0, side, side)
        left, top, right, bottom = crop.expand_box(
            box, margin, crop.TRAIN_SIDE)
        spare = min(right - left, bottom - top) / round(64 * 240 / 224)
        times = augment.shrinkage(box, 0, drawn(margin=draw), 64)
        assert spare > times or times == 1
        assert times == 8 or spare <= 2 * times
