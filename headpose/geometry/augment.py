"""Training crops under other light, and with things in front of the face.

An image is a uint8 array (H, W, 3), RGB.  Amounts follow what networks that
are trained without them get wrong: faces lit from one side, dark glasses,
hands and cloth (checkpoints/README.md has the figures).
"""
from typing import NamedTuple

import cv2
import numpy as np

from headpose.geometry.pose import rotation_matrix

# Of the images whose light is changed, the share with each change.
SIDE_LIT, CONTRASTED, GREY, NOISY = 0.5, 0.3, 0.2, 0.35
DARKEST = 0.95           # of the light, taken from the dark side
GAMMA = 0.45, 2.2        # exponents, drawn evenly in their logarithm
CONTRAST = 0.6, 2.5      # factors, likewise
NOISE = 2.0, 16.0        # standard deviation, grey levels
NOISE_TILE = 512         # pixels, side of the noise that crops cut from

# Of the images with something in front, the share with each kind; the rest
# have a patch of one colour.
GLASSES, PHOTOGRAPH = 0.4, 0.3
PATCH_DEPTH = 0.1, 0.45  # how far a patch reaches into the face, in heights
PATCH_WIDTH = 0.3, 1.2   # its extent along the face's edge, in heights
# A lens in the head's own axes (to its right side as we see it, to the chin,
# out of the face), from the centre of the face box, in its heights.
EYE = np.array([0.22, -0.25, 0.22])
LENS = 0.17, 0.13        # half axes


class Draws(NamedTuple):
    """The random numbers of one training image, each in [0, 1)."""
    margin: float
    shift_x: float
    shift_y: float
    flip: float
    blur: float
    jitter_x: float
    jitter_y: float
    jitter_size: float
    turn: float
    coarse: float
    coarse_by: float
    brightness: float
    contrast: float
    saturation: float
    light: float
    side: float
    side_angle: float
    side_depth: float
    side_edge: float
    side_offset: float
    gamma: float
    contrasted: float
    contrasted_by: float
    grey: float
    noise: float
    noise_by: float
    noise_x: float
    noise_y: float
    occlude: float
    occluder: float
    patch_angle: float
    patch_depth: float
    patch_width: float
    patch_round: float
    red: float
    green: float
    blue: float
    other: float


def between(limits, draw):
    """Maps a number in [0, 1) evenly into an interval."""
    low, high = limits
    return low + (high - low) * float(draw)


def log_between(limits, draw):
    """Maps a number in [0, 1) into an interval, evenly in the logarithm."""
    low, high = limits
    return low * (high / low) ** float(draw)


# -------------------------------------------------------------------- light

def relit(image, draws):
    """Changes the light of a picture.

    The gamma always; one side darker, more or less contrast, grey, and the
    noise of a sensor each in a share of the pictures.

    Args:
        image: uint8 array (H, W, 3).
        draws: `Draws`.
    """
    levels = np.arange(256) / 255
    curve = 255 * levels ** log_between(GAMMA, draws.gamma)
    image = curve.astype(np.float32)[image]
    if draws.grey < GREY:
        image = np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None],
                          3, 2)
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
    """Returns factors (H, W) of a light that comes from one side.

    From 1 on one side to as little as 1 - DARKEST on the other, in any
    direction, across an edge that is as soft as the picture is wide, or hard.
    """
    height, width = shape
    angle = 2 * np.pi * draws.side_angle
    across = ((np.arange(width) / width - 0.5) * np.cos(angle)
              + (np.arange(height)[:, None] / height - 0.5) * np.sin(angle))
    softness = log_between((0.02, 0.3), draws.side_edge)
    offset = between((-0.2, 0.2), draws.side_offset)
    dark = 1 / (1 + np.exp(-(across - offset) / softness))
    return (1 - DARKEST * draws.side_depth * dark).astype(np.float32)


def noise(shape, draws):
    """Returns normally distributed numbers (H, W, 3), float32.

    A part of one tile, at a drawn place: quicker than numbers of its own.
    """
    if not hasattr(noise, 'tile'):
        noise.tile = np.random.default_rng(0).standard_normal(
            (NOISE_TILE, NOISE_TILE, 3), np.float32)
    down, across = (int(draw * NOISE_TILE)
                    for draw in (draws.noise_y, draws.noise_x))
    rows, columns = (np.arange(start, start + side) % NOISE_TILE
                     for start, side in zip((down, across), shape))
    return noise.tile[rows[:, None], columns]


# ---------------------------------------------------------- things in front

def occluded(image, center, height, angles, draws, other=None):
    """Puts something in front of a face.

    Dark glasses, or a patch that reaches into the face from any side.

    Args:
        image: uint8 array (H, W, 3).
        center: (x, y) of the face box, pixels.
        height: of the face box, pixels.
        angles: degrees: yaw, pitch, roll.
        draws: `Draws`.
        other: returns another picture, an array, to cut the patch from; None
            for patches of one colour alone.
    """
    image = image.copy()
    if draws.occluder < GLASSES:
        return with_glasses(image, center, height, angles, draws)
    color = 255 * np.array([draws.red, draws.green, draws.blue])
    mask = patch_mask(image.shape[:2], center, height, draws)
    if other and draws.occluder < GLASSES + PHOTOGRAPH:
        image[mask] = cv2.resize(other(), image.shape[1::-1])[mask]
    else:
        image[mask] = color
    return image


def with_glasses(image, center, height, angles, draws):
    """Draws dark lenses over both eyes, in place, and the bridge between."""
    rotation = rotation_matrix(angles)
    tint = 70 * np.array([draws.red, draws.green, draws.blue])
    around = np.linspace(0, 2 * np.pi, 24)
    covered = image.copy()
    outline = np.stack((LENS[0] * np.cos(around), LENS[1] * np.sin(around),
                        0 * around), 1) * between((0.8, 1.4),
                                                  draws.patch_width)
    bridge = []
    for side in (-1, 1):
        lens = EYE * (side, 1, 1) + outline
        points = center + height * lens @ rotation[:2].T
        cv2.fillConvexPoly(covered, np.rint(points).astype(int),
                           tint.tolist(), cv2.LINE_AA)
        bridge.append(np.rint(points.mean(0)).astype(int).tolist())
    cv2.line(covered, *bridge, tint.tolist(), max(1, round(height / 30)),
             cv2.LINE_AA)
    opacity = between((0.75, 1), draws.patch_depth)
    return cv2.addWeighted(covered, opacity, image, 1 - opacity, 0)


def patch_mask(shape, center, height, draws):
    """Returns where a patch covers a picture, a bool array (H, W).

    A rectangle or an ellipse, half of which lies beyond the face's edge.
    """
    angle = 2 * np.pi * draws.patch_angle
    depth = between(PATCH_DEPTH, draws.patch_depth) * height
    width = between(PATCH_WIDTH, draws.patch_width) * height
    out = np.array([np.cos(angle), np.sin(angle)])
    place = np.add(center, out * height / 2)
    box = (place.tolist(), (2 * depth, width), np.degrees(angle))
    mask = np.zeros(shape, np.uint8)
    if draws.patch_round < 0.5:
        cv2.ellipse(mask, box, 1, cv2.FILLED)
    else:
        cv2.fillConvexPoly(mask, np.rint(cv2.boxPoints(box)).astype(int), 1)
    return mask.astype(bool)
