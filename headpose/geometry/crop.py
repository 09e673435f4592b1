"""A picture and a face box to the test's crop.

An image is RGB, a uint8 array (H, W, 3) or a Pillow image; a box is x_min,
y_min, x_max, y_max in pixels.
"""
import math

import cv2
import numpy as np
from PIL import Image

# The published margins around the landmarks, in box sizes, for margin k.
TRAIN_SIDE, PROTOCOL_SIDE = 0.6, 2.0  # left and right of the face
ABOVE, BELOW = 2.0, 0.6
PROTOCOL_K = 0.2
# HopeNet's margin around a detector's box in BIWI (natanielruiz/
# deep-head-pose, code/datasets.py, class BIWI), and FSA-Net's around MTCNN's
# (shamangary/FSA-Net, data/TYY_create_db_biwi.py, --ad).
HOPENET_K, HOPENET_ABOVE = 0.35, 1.0
FSANET_MARGIN = 0.4

# Limits of what can be cropped.
MIN_BOX, MAX_BOX = 4, 5000  # pixels; Pillow's limit is near
MAX_SHAPE = 10   # longer side over shorter; 3.3 at most in AFLW2000
MAX_SHARE = 4    # size over the picture's
MIN_PICTURE = 8  # pixels


def expand_box(box, k, side, above=ABOVE):
    """Adds the published margins to a face box.

    Each line measures the box that the lines before have grown already; this
    is the published crop, and figures compare only if it is kept.  `k` is the
    margin in box sizes, 0.2 to 0.4 in training, 0.2 in tests; `side` and
    `above` are its factors.  The four ints may lie outside the image.
    """
    x_min, y_min, x_max, y_max = map(float, box)
    x_min -= side * k * abs(x_max - x_min)
    y_min -= above * k * abs(y_max - y_min)
    x_max += side * k * abs(x_max - x_min)
    y_max += BELOW * k * abs(y_max - y_min)
    return int(x_min), int(y_min), int(x_max), int(y_max)


def crop_problem(box, width=math.inf, height=math.inf):
    """Says why a face cannot be cropped from a picture, or returns None."""
    if not np.isfinite(box).all():
        return 'the face box is not finite'
    x_min, y_min, x_max, y_max = map(float, box)
    wide, high = x_max - x_min, y_max - y_min
    size = f'the face box of {wide:.1f} x {high:.1f} pixels is'
    if min(wide, high) < MIN_BOX:
        return f'{size} too small: {MIN_BOX} are the least'
    if max(wide, high) > MAX_BOX:
        return f'{size} too large: {MAX_BOX:,} are the most'
    if max(wide, high) > MAX_SHAPE * min(wide, high):
        return f'{size} no face: one side is over {MAX_SHAPE} times the other'
    if min(width, height) < MIN_PICTURE:
        return (f'the picture of {width} x {height} pixels is too small: '
                f'{MIN_PICTURE} are the least')
    if max(wide, high) > MAX_SHARE * max(width, height):
        return (f'{size} over {MAX_SHARE} times as large as the picture of '
                f'{width} x {height}')
    if (min(x_max, width) - max(x_min, 0) < 1
            or min(y_max, height) - max(y_min, 0) < 1):
        return f'{size} outside the picture of {width} x {height}'
    return None


def resized(width, height, shorter):
    """Returns a size of the same shape whose shorter side is `shorter`."""
    if width <= height:
        return shorter, max(shorter, int(shorter * height / width))
    return max(shorter, int(shorter * width / height)), shorter


def protocol_crop(image, box, size=224, protocol='ours'):
    """Crops a face as the published test does, step by step, with Pillow.

    From a Pillow image to one of `size` pixels a side, black beyond the edges.
    The protocol is 'ours'; 'hopenet', with HopeNet's margins for BIWI; or
    'fsanet', see `fsanet_crop`.
    """
    if protocol == 'fsanet':
        return Image.fromarray(fsanet_crop(np.asarray(image), box, size))
    image = image.crop(
        expand_box(box, HOPENET_K, TRAIN_SIDE, HOPENET_ABOVE)
        if protocol == 'hopenet' else
        expand_box(box, PROTOCOL_K, PROTOCOL_SIDE))
    width, height = resized(*image.size, size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left = round((width - size) / 2)
    top = round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def box_in_picture(shares, box, size):
    """Returns a box that was found in `protocol_crop`'s crop of another.

    Args:
        shares: the found box in the crop, (4,), as shares of its side.
        box: that the crop was made around.
        size: of the crop, pixels.

    Returns:
        The found box in the picture, array (4,), pixels.
    """
    part = expand_box(box, PROTOCOL_K, PROTOCOL_SIDE)
    sides = np.subtract(part[2:], part[:2])
    scaled = np.array(resized(*sides, size))
    corner = np.round((scaled - size) / 2)
    pixels = np.reshape(shares, (2, 2)) * size + corner
    return (pixels * sides / scaled + part[:2]).ravel()


def next_box(shares, box, size, width, height):
    """Returns the box to crop around next; see `box_in_picture`.

    That is the found one, or, where it cannot be cropped from the picture of
    that width and height, the one before.
    """
    found = box_in_picture(shares, box, size)
    return box if crop_problem(found, width, height) else found


def mirrored_shares(boxes):
    """Returns boxes in the mirrored crop, (N, 4), as shares of its side."""
    return np.column_stack((1 - boxes[:, 2], boxes[:, 1],
                            1 - boxes[:, 0], boxes[:, 3]))


def fsanet_crop(image, box, size):
    """Crops a face as FSA-Net does in BIWI, from and to uint8 (H, W, 3).

    The margin around a detector's box ends at the picture's edges, and the
    rest is stretched to a square of `size` pixels.
    """
    height, width = image.shape[:2]
    x_min, y_min, x_max, y_max = map(float, box)
    across = FSANET_MARGIN * (x_max - x_min)
    down = FSANET_MARGIN * (y_max - y_min)
    left, top = max(int(x_min - across), 0), max(int(y_min - down), 0)
    right = min(int(x_max + across), width - 1)
    bottom = min(int(y_max + down), height - 1)
    return cv2.resize(image[top:bottom + 1, left:right + 1], (size, size))
