"""A picture and a face box to a training crop: everything random.

An image is a uint8 array (H, W, 3), RGB; a box is x_min, y_min, x_max, y_max
in pixels; angles are yaw, pitch, roll in degrees; `size` is the side of the
crop, pixels.  All functions are pure: their randomness is `draws`, a `Draws`.
"""
import collections
import functools
import math
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from headpose.geometry.crop import (PROTOCOL_K, PROTOCOL_SIDE, TRAIN_SIDE,
                                    expand_box, resized)
from headpose.geometry.pose import (MIRROR, beyond_range, rotation_matrix,
                                    turned)

MARGIN = 0.2, 0.4  # k of `expand_box`
# AFLW2000's box of the visible ones of 21 landmarks, beside one of all 68:
# width, height, and how far its centre lies nearer to the nose in profile.
# Medians, with YuNet's box as the measure of both: sizes of 222 re-crops and
# 201 of checkpoints/README.md's images within 30 degrees of yaw, the centre
# of 40 and 89 beyond 60.
VISIBLE, TO_THE_NOSE = (0.84, 0.89), 0.08
UPRIGHT = 10.0     # degrees of a crop's turn up to which the box is known
BLURRED = 0.05     # share of the training images
# Pillow's ImageFilter.BLUR, which HopeNet uses.
BLUR = np.ones((5, 5), np.float32) / 16
BLUR[1:4, 1:4] = 0

# The amounts follow the failures of networks trained without them, see
# checkpoints/README.md.  Of the relit images, the share with each change:
SIDE_LIT, CONTRASTED, GREY, NOISY = 0.5, 0.3, 0.2, 0.35
DARKEST = 0.95           # share of the light that the dark side may lose
GAMMA = 0.45, 2.2        # exponents, log-uniform
CONTRAST = 0.6, 2.5      # factors, log-uniform
NOISE = 2.0, 16.0        # standard deviation, grey levels
NOISE_TILE = 512         # pixels, side of the tile that noise is cut from

# Share of the occluded images; the others get a patch of one colour.
GLASSES, PHOTOGRAPH = 0.4, 0.3
PATCH_DEPTH = 0.1, 0.45  # of a patch inside the face box, in box heights
PATCH_WIDTH = 0.3, 1.2   # of a patch along the box's edge, in box heights
MOST_COVERED = 1 / 3     # of the face box, by a patch
# An eye in the head's own axes (to its right side as we see it, to the chin,
# out of the face), from the centre of the face box, in box heights.
EYE = np.array([0.22, -0.25, 0.22])
LENS = 0.17, 0.13        # half axes, in box heights


class Draws(collections.namedtuple(
        'Draws', 'margin shift_x shift_y flip blur '  # HopeNet's
        'jitter_x jitter_y jitter_size turn coarse coarse_by '
        'brightness contrast saturation '
        'light side side_angle side_depth side_edge side_offset '
        'gamma contrasted contrasted_by grey '
        'noise noise_by noise_x noise_y '
        'occlude occluder patch_angle patch_depth patch_width patch_round '
        'red green blue other')):
    """The random numbers of one training image, each in [0, 1)."""

    @property
    def flipped(self):
        """Whether the image is mirrored."""
        return bool(self.flip < 0.5)


class Augmentation(NamedTuple):
    """Augmentation beyond HopeNet's margin, shift, flip and blur."""
    rotate: float = 0.0          # largest turn in the plane, degrees
    box_jitter: float = 0.0      # largest move and scaling, of the box's size
    color_jitter: float = 0.0    # of brightness, contrast and saturation
    low_resolution: float = 0.0  # share of the images with fewer pixels
    light: float = 0.0           # share of the images under other light
    occlude: float = 0.0         # share of the images with something in front
    # Frame faces as the test's crops do, not by HopeNet's margin and shift.
    test_framing: bool = False

    def weakened(self, factor):
        """Returns the same with amounts and shares times a factor.

        The box's jitter stays: boxes differ as much in tests.
        """
        return self._replace(**{
            name: factor * value for name, value in self._asdict().items()
            if name not in ('box_jitter', 'test_framing')})


def between(limits, draw):
    """Maps a number in [0, 1) evenly into an interval."""
    return limits[0] + (limits[1] - limits[0]) * float(draw)


def log_between(limits, draw):
    """Maps a number in [0, 1) log-uniformly into an interval."""
    return limits[0] * (limits[1] / limits[0]) ** float(draw)


def augmented_crop(image, box, angles, draws, size,
                   augmentation=Augmentation(), shrink=1, other=None):
    """Returns a training crop and the angles of the head in it."""
    face, box = box, drawn_box(box, angles[0], draws, augmentation)
    turn, angles = head_turn(angles, draws, augmentation)
    image = training_crop(image, box, draws, size, turn, shrink,
                          augmentation.test_framing)
    if draws.occlude < augmentation.occlude:
        image = occluded(image, *face_in_crop(
            face, box, draws, size, turn, augmentation.test_framing),
            angles, draws, other)
    if draws.light < augmentation.light:
        image = relit(image, draws)
    if draws.coarse < augmentation.low_resolution:
        image = coarsened(image, draws.coarse_by)
    if augmentation.color_jitter:
        image = recolored(image, augmentation.color_jitter, draws)
    return image, angles


def head_turn(angles, draws, augmentation):
    """Returns a crop's turn, degrees clockwise, and the head's angles in it.

    A head for which the network would have no bins is not turned.
    """
    if draws.flipped:
        angles = angles * np.float32(MIRROR)
    turn = augmentation.rotate * (2 * float(draws.turn) - 1)
    new = turned(angles, turn) if turn else angles
    return (0.0, angles) if beyond_range(new) else (turn, new)


def box_in_crop(box, angles, draws, size, augmentation):
    """Returns where `augmented_crop` shows the face's box, float32 (4,).

    x_min, y_min, x_max, y_max are shares of the crop's side, and NaN where the
    crop is turned by more than UPRIGHT: the box of a turned face is another.
    """
    turn, _ = head_turn(angles, draws, augmentation)
    if abs(turn) > UPRIGHT:
        return np.full(4, np.nan, np.float32)
    center, extent = face_in_crop(
        box, drawn_box(box, angles[0], draws, augmentation), draws, size,
        turn, augmentation.test_framing)
    return np.float32(np.concatenate((center - extent / 2,
                                      center + extent / 2)) / size)


def training_crop(image, box, draws, size=224, turn=0.0, shrink=1,
                  test_framing=False):
    """Crops a face with HopeNet's random margin, shift, flip and blur.

    HopeNet's own crops, by Pillow, differ by a fraction of a grey level.
    `turn` is in degrees, clockwise, about the centre of the crop; `shrink` is
    how many times smaller the image is than the box says; for `test_framing`
    see `framing`.
    """
    part, (width, height), (left, top) = framing(box, draws, size, bool(turn),
                                                 test_framing)
    if shrink > 1:
        face = resized_part(image, np.divide(part, shrink), width, height)
    else:
        face = cut(image, *part)
        if not turn:
            face, height, top = rows_around(face, height, top, size)
        if draws.blur < BLURRED:
            face = cv2.filter2D(face, -1, BLUR)
        face = resize(face, width, height)
    if turn:
        return turned_crop(face, left, top, size, turn, draws.flipped)
    if draws.flipped:  # the crop alone is mirrored, hence on the other side
        left = width - size - left
        return cv2.flip(face[top:top + size, left:left + size], 1)
    return face[top:top + size, left:left + size]


def framing(box, draws, size, with_rim=False, test_framing=False):
    """Returns HopeNet's random margin and shift of a training crop.

    That is the box with its margin, four ints; the width and height that it
    is resized to; and the crop's left and top in it, once mirrored if it is.
    `with_rim` adds the pixels around that a turn brings into the crop.

    With `test_framing` the crop is `protocol_crop`'s, of the mirrored image
    if it is mirrored.  HopeNet's training crops show 1.3 box widths on
    average and have the face in the middle; the test's show 1.6 box heights,
    and have it left of the middle.
    """
    if test_framing:
        part = mirrored(expand_box(mirrored(box, draws.flipped), PROTOCOL_K,
                                   PROTOCOL_SIDE), draws.flipped)
        wide, high = part[2] - part[0], part[3] - part[1]
        width, height = resized(wide, high, size)
        left, top = round((width - size) / 2), round((height - size) / 2)
    else:
        low, high = MARGIN
        part = expand_box(box, low + (high - low) * draws.margin, TRAIN_SIDE)
        wide, high = part[2] - part[0], part[3] - part[1]
        width, height = resized(wide, high, round(size * 240 / 224))
        left = int(draws.shift_x * (width - size + 1))
        top = int(draws.shift_y * (height - size + 1))
    if with_rim:
        # Half of a square's diagonal is 0.21 sides longer than half a side.
        rim = math.ceil(0.21 * size * wide / width)
        part = tuple(np.add(part, (-rim, -rim, rim, rim)).tolist())
        across, down = wide + 2 * rim, high + 2 * rim
        width = round(across * width / wide)
        height = round(down * height / high)
        left += rim * width / across
        top += rim * height / down
    return part, (width, height), (left, top)


def mirrored(box, flipped=True):
    """Returns a box in the image mirrored at x = 0, or as it is."""
    x_min, y_min, x_max, y_max = box
    return (-x_max, y_min, -x_min, y_max) if flipped else tuple(box)


def face_in_crop(face, box, draws, size, turn=0.0, test_framing=False):
    """Returns the centre and extent, (2,) each, of a face box in a crop.

    The crop is `training_crop`'s around another box, the drawn one.
    """
    part, resized_to, corner = framing(box, draws, size,
                                       test_framing=test_framing)
    scale = np.divide(resized_to, np.subtract(part[2:], part[:2]))
    center = (np.add(face[:2], face[2:]) / 2 - part[:2]) * scale
    if draws.flipped:  # the crop's corner is one of the mirrored image
        center[0] = resized_to[0] - center[0]
    center -= corner
    cosine, sine = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    center = (center - size / 2) @ [[cosine, sine], [-sine, cosine]]
    return center + size / 2, np.subtract(face[2:], face[:2]) * scale


def turned_crop(face, left, top, size, turn, flip):
    """Cuts a turned crop out of a face, mirrored first if `flip`."""
    if flip:
        face = cv2.flip(face, 1)
    # From the crop's pixels to the face's: a turn about the centre, a shift.
    matrix = cv2.getRotationMatrix2D((size / 2 - 0.5, size / 2 - 0.5), turn, 1)
    matrix[:, 2] += left, top
    return cv2.warpAffine(face, matrix, (size, size), flags=cv2.INTER_LINEAR
                          | cv2.WARP_INVERSE_MAP)


def shrinkage(box, yaw, draws, size, augmentation=Augmentation()):
    """Returns how many times smaller an image may be read for its crop.

    At 96 pixels the crops of 51 images of 300W-LP differ by 0.8 grey levels
    on average from those of the whole images.
    """
    if draws.blur < BLURRED:
        return 1  # the blur is of the image's own pixels
    box = drawn_box(box, yaw, draws, augmentation)
    (x_min, y_min, x_max, y_max), resized_to, _ = framing(
        box, draws, size, test_framing=augmentation.test_framing)
    shorter = min(x_max - x_min, y_max - y_min)
    return max(times for times in (1, 2, 4, 8)
               if times == 1 or shorter > times * min(resized_to))


def resized_part(image, part, width, height):
    """Returns a box (floats) of an image, resized; black beyond its edges."""
    scale = (part[2:] - part[:2]) / (width, height)
    if scale.max() < 1.5:
        # OpenCV reads 2x2 pixels, which is enough here, and faster.
        matrix = np.column_stack((np.diag(scale),
                                  part[:2] + scale / 2 - 0.5))
        return cv2.warpAffine(image, matrix, (width, height),
                              flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    least, most = np.floor(part[:2]), np.ceil(part[2:])
    face = cut(image, *map(int, least), *map(int, most))
    return np.array(Image.fromarray(face).resize(
        (width, height), Image.Resampling.BILINEAR,
        box=(*(part[:2] - least), *(part[2:] - least))))


def rows_around(image, height, top, size):
    """Cuts off rows that the crop would cut off after resizing.

    Of `height` rows of the result the crop has `size` from `top` on.  Returns
    the image's rows, and the `height` and `top` that fit them.
    """
    scale = len(image) / height

    def fits(row):  # the image's rows, to 3 hundredths of a pixel
        return abs(row * scale - round(row * scale)) < 0.03

    first = next(filter(fits, range(top, -1, -1)))
    last = next(filter(fits, range(top + size, height + 1)))
    return (image[round(first * scale):round(last * scale)], last - first,
            top - first)


def cut(image, x_min, y_min, x_max, y_max):
    """Returns a part of an image (H, W, 3), black beyond its edges."""
    height, width = image.shape[:2]
    rims = (max(0, -y_min), max(0, y_max - height),
            max(0, -x_min), max(0, x_max - width))
    if any(rims):
        if x_max <= 0 or y_max <= 0 or x_min >= width or y_min >= height:
            return np.zeros((y_max - y_min, x_max - x_min, 3), image.dtype)
        part = image[max(0, y_min):y_max, max(0, x_min):x_max]
        return cv2.copyMakeBorder(part, *rims, cv2.BORDER_CONSTANT)
    return image[y_min:y_max, x_min:x_max]


def resize(image, width, height):
    """Resizes an image (H, W, 3) as Pillow does, faster where possible."""
    if max(image.shape[1] / width, image.shape[0] / height) > 1.25:
        # OpenCV reads 2x2 pixels; to shrink by more, Pillow reads them all.
        return np.array(Image.fromarray(image).resize(
            (width, height), Image.Resampling.BILINEAR))
    return cv2.resize(image, (width, height))


def drawn_box(box, yaw, draws, augmentation):
    """Returns the box that a training crop is made from.

    With `test_framing` it lies anywhere between the label's and the smaller
    one that AFLW2000's visible landmarks have; then comes the jitter.
    """
    if augmentation.test_framing:
        size, center = np.subtract(box[2:], box[:2]), np.add(box[2:],
                                                             box[:2]) / 2
        center[0] -= (draws.margin * TO_THE_NOSE * np.sin(np.radians(yaw))
                      * size[0])
        half = size * (1 + draws.margin * np.subtract(VISIBLE, 1)) / 2
        box = np.concatenate((center - half, center + half))
    if augmentation.box_jitter:
        box = jittered(box, augmentation.box_jitter, draws)
    return box


def jittered(box, amount, draws):
    """Returns a box moved by up to half of `amount`, and scaled by up to it.

    Detectors, and AFLW2000's 21 landmarks, frame a face otherwise than
    300W-LP's 68 landmarks do.
    """
    across, down, scale = amount * (2 * np.array(
        [draws.jitter_x, draws.jitter_y, draws.jitter_size]) - 1)
    size = np.subtract(box[2:], box[:2])
    center = np.add(box[2:], box[:2]) / 2 + size * (across, down) / 2
    half = size * (1 + scale) / 2
    return np.concatenate((center - half, center + half))


def recolored(image, amount, draws):
    """Changes brightness, contrast and saturation by up to `amount` < 1."""
    brightness, contrast, saturation = 1 + amount * (2 * np.array(
        [draws.brightness, draws.contrast, draws.saturation]) - 1)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    middle = grey.mean() * brightness * (1 - contrast)
    image = cv2.addWeighted(image, saturation,
                            cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB),
                            1 - saturation, 0)
    return cv2.addWeighted(image, brightness * contrast, image, 0, middle)


def coarsened(image, draw):
    """Simulates low resolution: shrinks by up to 4 and enlarges again."""
    size = image.shape[1::-1]
    small = [max(1, round(side / (1 + 3 * draw))) for side in size]
    return cv2.resize(cv2.resize(image, small, interpolation=cv2.INTER_AREA),
                      size, interpolation=cv2.INTER_LINEAR)


def relit(image, draws):
    """Changes gamma, and in a share of images grey, light, contrast, noise."""
    levels = np.arange(256) / 255
    curve = 255 * levels ** log_between(GAMMA, draws.gamma)
    image = curve.astype(np.float32)[image]
    if draws.grey < GREY:
        image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY),
                             cv2.COLOR_GRAY2RGB)
    if draws.side < SIDE_LIT:
        image *= side_light(image.shape[:2], draws)[..., None]
    if draws.contrasted < CONTRASTED:
        mean = image.mean()
        image = (image - mean) * log_between(
            CONTRAST, draws.contrasted_by) + mean
    if draws.noise < NOISY:
        image += between(NOISE, draws.noise_by) * noise(image.shape[:2],
                                                        draws)
    return image.clip(0, 255).astype(np.uint8)


def side_light(shape, draws):
    """Returns factors (H, W), 1 - DARKEST to 1, of a light from one side."""
    height, width = shape
    angle = 2 * np.pi * draws.side_angle
    across = ((np.arange(width) / width - 0.5) * np.cos(angle)
              + (np.arange(height)[:, None] / height - 0.5) * np.sin(angle))
    softness = log_between((0.02, 0.3), draws.side_edge)
    offset = between((-0.2, 0.2), draws.side_offset)
    dark = 1 / (1 + np.exp(-(across - offset) / softness))
    return (1 - DARKEST * draws.side_depth * dark).astype(np.float32)


@functools.cache
def noise_tile():
    """Returns normally distributed numbers; to cut is faster than to draw."""
    return np.random.default_rng(0).standard_normal(
        (NOISE_TILE, NOISE_TILE, 3), np.float32)


def noise(shape, draws):
    """Returns normally distributed numbers (H, W, 3), float32."""
    rows, columns = (
        np.arange(int(draw * NOISE_TILE), int(draw * NOISE_TILE) + side)
        % NOISE_TILE for draw, side in zip((draws.noise_y, draws.noise_x),
                                           shape))
    return noise_tile()[rows[:, None], columns]


def occluded(image, center, extent, angles, draws, other=None):
    """Puts dark glasses on a face, or a patch over a part of it.

    For `center` and `extent` see `face_in_crop`; `other` is a function that
    returns another picture, to cut a patch from.
    """
    if draws.occluder < GLASSES:
        return with_glasses(image, center, extent[1], angles, draws)
    mask = patch_mask(image.shape[:2], center, extent, draws)
    image = image.copy()
    if other and draws.occluder < GLASSES + PHOTOGRAPH:
        image[mask] = cv2.resize(other(), image.shape[1::-1])[mask]
    else:
        image[mask] = 255 * np.array([draws.red, draws.green, draws.blue])
    return image


def with_glasses(image, center, height, angles, draws):
    """Draws dark lenses over both eyes, and their bridge, into a copy."""
    rotation = rotation_matrix(angles)
    tint = (70 * np.array([draws.red, draws.green, draws.blue])).tolist()
    around = np.linspace(0, 2 * np.pi, 24)
    outline = np.stack((LENS[0] * np.cos(around), LENS[1] * np.sin(around),
                        0 * around), 1) * between((0.8, 1.4),
                                                  draws.patch_width)
    covered, bridge = image.copy(), []
    for side in (-1, 1):
        lens = EYE * (side, 1, 1) + outline
        points = center + height * lens @ rotation[:2].T
        cv2.fillConvexPoly(covered, np.rint(points).astype(int), tint,
                           cv2.LINE_AA)
        bridge.append(np.rint(points.mean(0)).astype(int).tolist())
    cv2.line(covered, *bridge, tint, max(1, round(height / 30)), cv2.LINE_AA)
    opacity = between((0.75, 1), draws.patch_depth)
    return cv2.addWeighted(covered, opacity, image, 1 - opacity, 0)


def patch_mask(shape, center, extent, draws):
    """Returns a bool array (H, W), true where a patch covers a crop.

    It is a rectangle or an ellipse, half of which lies beyond the face's
    edge.  One that covers more than MOST_COVERED of the face is made smaller.
    """
    angle, height = 2 * np.pi * draws.patch_angle, extent[1]
    place = np.add(center, [np.cos(angle) * height / 2,
                            np.sin(angle) * height / 2]).tolist()
    width = between(PATCH_WIDTH, draws.patch_width) * height
    depth = between(PATCH_DEPTH, draws.patch_depth) * height
    (left, top), (right, bottom) = (
        np.rint(np.add(center, sign * extent / 2)).astype(int).clip(0)
        for sign in (-1, 1))
    while True:
        box = place, (2 * depth, width), np.degrees(angle)
        mask = np.zeros(shape, np.uint8)
        if draws.patch_round < 0.5:
            cv2.ellipse(mask, box, 1, cv2.FILLED)
        else:
            cv2.fillConvexPoly(mask, np.rint(cv2.boxPoints(box)).astype(int),
                               1)
        covered = mask[top:bottom, left:right].sum()
        if covered <= MOST_COVERED * extent.prod():
            return mask.astype(bool)
        depth *= 0.9
