"""Light, occlusion and the place of the face in a training crop."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headpose.geometry import augment
from headpose.geometry.augment import Draws
from headpose.geometry.pose import rotation_matrix
from tests.draws import drawn

pytestmark = pytest.mark.quick

EVEN = np.full((96, 96, 3), 120, np.uint8)
CENTER, EXTENT = np.array([48.0, 50]), np.array([56.0, 60])
DRAW = st.floats(0, 1, exclude_max=True, width=32)
DRAWS = st.tuples(*[DRAW] * len(Draws._fields)).map(lambda d: Draws(*d))
NONE = 0.99  # a share's draw that leaves the image alone
SAME_GAMMA = -np.log(0.45) / np.log(2.2 / 0.45)  # the draw of exponent 1


def lit(**fields):
    """An even grey picture with the changes that these draws ask for."""
    return augment.relit(EVEN, drawn(**{
        'gamma': SAME_GAMMA, 'side': NONE, 'grey': NONE, 'noise': NONE,
        'contrasted': NONE, **fields})).astype(float)


# ----------------------------------------------------------------------- light

def test_light_changes_nothing_but_what_is_drawn():
    assert np.abs(lit() - EVEN).max() <= 1
    assert lit(gamma=0).mean() > 150 and lit(gamma=0.99).mean() < 60


@pytest.mark.parametrize('angle, dark', [
    (0, np.s_[:, -9:]), (0.25, np.s_[-9:]), (0.5, np.s_[:, :9]),
    (0.75, np.s_[:9])])
def test_a_crop_lit_from_a_side_is_darker_on_the_other(angle, dark):
    image = lit(side=0, side_angle=angle, side_depth=0.99, side_edge=0.3)
    light = image[::-1, ::-1][dark]
    assert light.mean() > 110 and image[dark].mean() < 0.2 * light.mean()
    weak = lit(side=0, side_angle=angle, side_depth=0.1, side_edge=0.3)
    assert weak[dark].mean() > 0.85 * weak[::-1, ::-1][dark].mean()


def test_grey_has_equal_channels_and_noise_its_deviation():
    colours = EVEN + np.arange(0, 90, 30, np.uint8)
    grey = augment.relit(colours, drawn(grey=0))
    assert (grey == grey[..., :1]).all()
    noisy = lit(noise=0, noise_by=0.5)
    assert noisy.std() == pytest.approx(9, rel=0.05)
    np.testing.assert_array_equal(noisy, lit(noise=0, noise_by=0.5))
    assert (noisy != lit(noise=0, noise_by=0.5, noise_x=0.1)).any()


def test_contrast_stretches_around_the_mean():
    picture = np.dstack([np.tile(np.arange(100, 140, dtype=np.uint8),
                                 (40, 1))] * 3)
    low, high = (augment.relit(picture, drawn(
        gamma=SAME_GAMMA, contrasted=0, contrasted_by=by)).astype(float)
        for by in (0, 0.999))
    assert low.std() == pytest.approx(0.6 * picture.std(), rel=0.05)
    assert high.std() == pytest.approx(2.5 * picture.std(), rel=0.05)
    assert abs(low.mean() - high.mean()) < 1.5


# ------------------------------------------------------------------- occlusion

@pytest.mark.parametrize('angles', [(0, 0, 0), (0, 0, 30), (30, 0, 0)])
def test_glasses_lie_on_both_eyes(angles):
    image = augment.occluded(EVEN, CENTER, EXTENT, angles,
                             drawn(occluder=0, red=0, green=0, blue=0))
    dark = np.argwhere(image.max(2) < 60)[:, ::-1]  # x, y
    eyes = np.array([augment.EYE * (side, 1, 1) for side in (-1, 1)])
    eyes = CENTER + EXTENT[1] * eyes @ rotation_matrix(angles)[:2].T
    nearer = np.linalg.norm(dark[:, None] - eyes, axis=2).argmin(1)
    for eye in (0, 1):
        found = dark[nearer == eye]
        assert np.abs(found.mean(0) - eyes[eye]).max() < 3
        # Of two half axes, 0.17 and 0.13, enlarged by at most 1.4.
        assert np.abs(found - eyes[eye]).max() < 0.26 * EXTENT[1]
    assert (image[70:] == 120).all()  # the mouth is free


@settings(deadline=None, max_examples=150)
@given(DRAWS, st.floats(0.5, 1.6))
def test_a_patch_covers_a_part_of_the_face_and_at_most_a_third(draws, shape):
    extent = 60 * np.array([shape, 1])
    mask = augment.patch_mask((120, 120), np.array([60.0, 60]), extent, draws)
    left, top, right, bottom = np.rint(np.concatenate(
        (60 - extent / 2, 60 + extent / 2))).astype(int)
    covered = mask[top:bottom, left:right].mean()
    assert covered <= 0.34  # a box of whole pixels
    if 0.8 < shape < 1.2 and draws.patch_depth > 0.5:
        assert covered > 0.01


def test_a_patch_has_one_colour_or_another_pictures_pixels():
    other = np.random.default_rng(0).integers(0, 100, (96, 96, 3), np.uint8)
    draws = drawn(occluder=0.5, red=0.8, green=0.9, blue=0.99)
    mask = augment.patch_mask((96, 96), CENTER, EXTENT, draws)
    one = augment.occluded(EVEN, CENTER, EXTENT, (0, 0, 0), draws)
    np.testing.assert_array_equal(np.unique(one[mask], axis=0),
                                  [[204, 229, 252]])
    photograph = augment.occluded(EVEN, CENTER, EXTENT, (0, 0, 0), draws,
                                  lambda: other)
    np.testing.assert_array_equal(photograph[mask], other[mask])
    for image in (one, photograph):
        assert (image[~mask] == 120).all() and 0.02 < mask.mean() < 0.3
    never = augment.occluded(EVEN, CENTER, EXTENT, (0, 0, 0),
                             draws._replace(occluder=0.9), lambda: other)
    np.testing.assert_array_equal(never, one)


@pytest.mark.parametrize('field, amount', [('light', 'light'),
                                           ('occlude', 'occlude')])
def test_each_comes_in_its_share_of_the_images(field, amount):
    def made(draw, share):
        return augment.augmented_crop(
            EVEN, (20, 20, 70, 70), np.zeros(3), drawn(gamma=0, **{
                field: draw}), 64, augment.Augmentation(**{amount: share}))[0]
    plain = made(0.5, 0.0)
    np.testing.assert_array_equal(made(0.31, 0.3), plain)
    assert (made(0.29, 0.3) != plain).any()


def test_draws_are_all_that_is_random():
    draws = Draws(*np.random.default_rng(1).random(len(Draws._fields)))
    draws = draws._replace(light=0, occlude=0, noise=0, coarse=0)
    more = augment.Augmentation(20, 0.2, 0.2, 0.5, 0.5, 0.5)
    image = EVEN.copy()
    first, again = (augment.augmented_crop(
        image, (20, 20, 70, 70), np.float32([10, 5, 0]), draws, 64, more)
        for _ in range(2))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    np.testing.assert_array_equal(image, EVEN)


# ------------------------------------------------------- the face in its crop

@settings(deadline=None, max_examples=40)
@given(DRAWS, st.sampled_from([64, 224]), st.sampled_from([0.0, -25.0, 40.0]),
       st.floats(100, 190), st.floats(100, 190), st.floats(60, 150),
       st.floats(0.8, 1.25))
def test_a_face_is_where_its_dot_is(draws, size, turn, x, y, height, shape):
    box = np.array([x, y, x + height * shape, y + height])
    dot = (box[:2] + box[2:]) / 2
    picture = np.zeros((400, 400, 3), np.uint8)
    row, column = np.mgrid[:400, :400] + 0.5
    blob = 250 * np.exp(-((column - dot[0]) ** 2 + (row - dot[1]) ** 2) / 50)
    picture[...] = blob[..., None]
    made = augment.training_crop(picture, box, draws, size, turn)[..., 0]
    center, extent = augment.face_in_crop(box, box, draws, size, turn)
    weights = made.astype(float) + 1e-9
    row, column = np.mgrid[:size, :size] + 0.5
    found = [(weights * axis).sum() / weights.sum() for axis in (column, row)]
    margin = 12 * size / 64
    if (center > margin).all() and (center < size - margin).all():
        np.testing.assert_allclose(found, center, atol=0.012 * size + 0.3)
    assert extent[0] / extent[1] == pytest.approx(shape, rel=0.05)
    assert 0.2 * size < extent[1] < 1.1 * size
