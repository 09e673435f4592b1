"""One picture and one face box to one crop: the test's, and training's.

An image is a uint8 array (H, W, 3), RGB, or a Pillow image; a box is
x_min, y_min, x_max, y_max in pixels; angles are yaw, pitch, roll in degrees.
"""
import math
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from headpose.geometry.augment import Draws, occluded, relit
from headpose.geometry.pose import MIRROR, beyond_range, turned

# The published margins around the landmarks, in box sizes, for margin k.
TRAIN_SIDE, PROTOCOL_SIDE = 0.6, 2.0  # left and right of the face
ABOVE, BELOW = 2.0, 0.6
PROTOCOL_K = 0.2
# What HopeNet crops BIWI's frames with around a detector's box
# (natanielruiz/deep-head-pose, code/datasets.py, class BIWI; its boxes are
# not published), and FSA-Net around MTCNN's (shamangary/FSA-Net,
# data/TYY_create_db_biwi.py, --ad).
HOPENET_K, HOPENET_ABOVE = 0.35, 1.0
FSANET_MARGIN = 0.4

# Pillow's ImageFilter.BLUR, which HopeNet blurs training images with.
BLUR = np.ones((5, 5), np.float32) / 16
BLUR[1:4, 1:4] = 0

# What can be cropped: sides of a face box, pixels (of more, the test's crop
# would have more pixels than Pillow takes without a warning); its longer side
# over its shorter (3.3 at most in AFLW2000); its size over the picture's; and
# sides of a picture.
MIN_BOX, MAX_BOX = 4, 5000
MAX_SHAPE = 10
MAX_SHARE = 4
MIN_PICTURE = 8

BLURRED = 0.05  # share of the training images

DRAWS = len(Draws._fields)  # random numbers for a training image


class Augmentation(NamedTuple):
    """What training may do beyond HopeNet's margin, shift, flip and blur."""
    rotate: float = 0.0          # turn by up to so many degrees, in the plane
    box_jitter: float = 0.0      # move and scale the box by up to this share
    color_jitter: float = 0.0    # change brightness, contrast and saturation
    low_resolution: float = 0.0  # of this share of the images, up to 4 times
    light: float = 0.0           # other light in this share of the images
    occlude: float = 0.0         # something in front of this share of them

    def weakened(self, factor):
        """Returns the same with every amount and share times a factor."""
        return Augmentation(*(factor * value for value in self))


def expand_box(box, k, side, above=ABOVE):
    """Adds the published margins to a face box.

    Each line measures the box that the lines before have grown already; this
    is the published crop, and figures compare only if it is kept.

    Args:
        box: x_min, y_min, x_max, y_max, pixels.
        k: the margin, in box sizes: 0.2 to 0.4 in training, 0.2 in tests.
        side: TRAIN_SIDE or PROTOCOL_SIDE.
        above: of the face.

    Returns:
        Four ints; they may lie outside the image.
    """
    x_min, y_min, x_max, y_max = map(float, box)
    x_min -= side * k * abs(x_max - x_min)
    y_min -= above * k * abs(y_max - y_min)
    x_max += side * k * abs(x_max - x_min)
    y_max += BELOW * k * abs(y_max - y_min)
    return int(x_min), int(y_min), int(x_max), int(y_max)


def crop_problem(box, width=math.inf, height=math.inf):
    """Says in a line why a face cannot be cropped, or returns None.

    Of what passes, `protocol_crop` and `augmented_crop` make crops, whatever
    the draws.

    Args:
        box: x_min, y_min, x_max, y_max, pixels.
        width, height: of the picture; infinite where it is not known yet.
    """
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
    """Crops a face as the published test does, with Pillow, step by step.

    Args:
        image: RGB PIL image; what a crop has outside of it is black.
        box: of the landmarks, see `face_box`.
        size: side of the result, pixels.
        protocol: 'ours'; 'hopenet', whose margins are those for BIWI; or
            'fsanet', see `fsanet_crop`.

    Returns:
        RGB PIL image, size x size.
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


def fsanet_crop(image, box, size):
    """Crops a face as FSA-Net does in BIWI: one margin, and no more shape.

    The margin ends with the picture, and what is left is stretched to a
    square.  Source: see FSANET_MARGIN.

    Args:
        image: uint8 array (H, W, 3).
        box: a detector's.
        size: side of the result, pixels.

    Returns:
        uint8 array (size, size, 3).
    """
    height, width = image.shape[:2]
    x_min, y_min, x_max, y_max = map(float, box)
    across = FSANET_MARGIN * (x_max - x_min)
    down = FSANET_MARGIN * (y_max - y_min)
    left, top = max(int(x_min - across), 0), max(int(y_min - down), 0)
    right = min(int(x_max + across), width - 1)
    bottom = min(int(y_max + down), height - 1)
    return cv2.resize(image[top:bottom + 1, left:right + 1], (size, size))


def training_crop(image, box, draws, size=224, turn=0.0, shrink=1):
    """Crops a face with HopeNet's random margin, shift, flip and blur.

    The steps are those of HopeNet's transforms, in OpenCV, and what they make
    differs from Pillow's by a fraction of a grey level.

    Args:
        image: uint8 array (H, W, 3).
        box: of the landmarks, see `face_box`.
        draws: five numbers in [0, 1): margin, shift across and down, flip,
            blur.
        size: side of the result, pixels.
        turn: degrees, clockwise, about the centre of the crop.
        shrink: how many times smaller the image is than the box says, see
            `shrinkage`.

    Returns:
        The crop, a uint8 array (size, size, 3), and whether it is flipped.
    """
    flip = bool(draws[3] < 0.5)
    (x_min, y_min, x_max, y_max), (width, height), (left, top) = framing(
        box, draws, size)
    wide, high = x_max - x_min, y_max - y_min
    # What a turn brings in from beyond the box.
    rim = math.ceil(0.21 * size * wide / width) if turn else 0
    part = x_min - rim, y_min - rim, x_max + rim, y_max + rim
    if rim:
        across, down = wide + 2 * rim, high + 2 * rim
        width = round(across * width / wide)
        height = round(down * height / high)
        left += rim * width / across
        top += rim * height / down
    if shrink > 1:
        face = resized_part(image, np.divide(part, shrink), width, height)
    else:
        face = cut(image, *part)
        if not rim:
            face, height, top = rows_around(face, height, top, size)
        if draws[4] < BLURRED:
            face = cv2.filter2D(face, -1, BLUR)
        face = resize(face, width, height)
    if not turn:
        if flip:  # of the crop alone, which therefore lies on the other side
            left = width - size - left
        face = face[top:top + size, left:left + size]
        return cv2.flip(face, 1) if flip else face, flip
    return turned_crop(face, left, top, size, turn, flip), flip


def framing(box, draws, size):
    """Returns what a training crop shows: HopeNet's margin and shift.

    Args:
        box: of the landmarks.
        draws: margin, shift across and down, in [0, 1).
        size: side of the crop, pixels.

    Returns:
        The box with its margin, four ints; the width and height that it is
        resized to; and the crop's left and top in it.
    """
    part = expand_box(box, 0.2 + 0.2 * draws[0], TRAIN_SIDE)
    width, height = resized(part[2] - part[0], part[3] - part[1],
                            round(size * 240 / 224))
    left = int(draws[1] * (width - size + 1))
    top = int(draws[2] * (height - size + 1))
    return part, (width, height), (left, top)


def face_in_crop(box, draws, size, turn=0.0):
    """Returns where the face box lies in a training crop.

    Args: as for `training_crop`.

    Returns:
        Its centre, array (2,), and its height, pixels.
    """
    part, resized_to, corner = framing(box, draws, size)
    scale = np.divide(resized_to, np.subtract(part[2:], part[:2]))
    center = (np.add(box[:2], box[2:]) / 2 - part[:2]) * scale - corner
    if draws[3] < 0.5:
        center[0] = size - center[0]
    cosine, sine = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    center = (center - size / 2) @ [[cosine, sine], [-sine, cosine]]
    return center + size / 2, (box[3] - box[1]) * scale[1]


def turned_crop(face, left, top, size, turn, flip):
    """Cuts a crop out of a face that is turned, and flipped before.

    Args:
        face: array (H, W, 3).
        left, top: of the crop in it, floats.
        size: side of the crop.
        turn: degrees, see `training_crop`.
        flip: mirror the face.
    """
    if flip:
        face = cv2.flip(face, 1)
    # From the crop's pixels to the face's: a turn about the centre, a shift.
    matrix = cv2.getRotationMatrix2D((size / 2 - 0.5, size / 2 - 0.5), turn, 1)
    matrix[:, 2] += left, top
    return cv2.warpAffine(face, matrix, (size, size), flags=cv2.INTER_LINEAR
                          | cv2.WARP_INVERSE_MAP)


def shrinkage(box, draws, size, jitter=0.0):
    """Returns how many times smaller an image may be read for its crop.

    What is left has at least the pixels of the crop.  At 96 pixels the crops
    of 51 images of 300W-LP then differ by 0.8 grey levels on average from
    those of the whole images (1.4 at most), and loading is 1.8 times as fast.

    Args:
        box: of the landmarks.
        draws: of the image, as `augmented_crop` takes them.
        size: side of the crop, pixels.
        jitter: `Augmentation.box_jitter`.
    """
    if draws[4] < BLURRED:
        return 1  # the blur is of the image's own pixels
    if jitter:
        box = jittered(box, jitter, draws[5:8])
    x_min, y_min, x_max, y_max = expand_box(box, 0.2 + 0.2 * draws[0],
                                            TRAIN_SIDE)
    shorter = min(x_max - x_min, y_max - y_min)
    return max(times for times in (1, 2, 4, 8)
               if times == 1 or shorter > times * size * 240 / 224)


def resized_part(image, part, width, height):
    """Returns a part of an image, resized; black where it lies outside.

    Args:
        image: array (H, W, 3).
        part: x_min, y_min, x_max, y_max, floats.
        width, height: of the result.
    """
    scale = (part[2:] - part[:2]) / (width, height)
    if scale.max() < 1.5:
        # OpenCV reads 2x2 pixels, which is enough; and is the faster.
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
    """Cuts rows off that a resized image's crop would cut off afterwards.

    The rows that are left start and end where rows of the result do, to 3
    hundredths of a pixel.

    Args:
        image: array (H, W, 3), to be resized to `height` rows.
        height: rows of the result.
        top: the crop's first row in it.
        size: the crop's rows.

    Returns:
        The image's rows, and the `height` and `top` that fit them.
    """
    scale = len(image) / height

    def fits(row):  # the first row and the end always do
        return abs(row * scale - round(row * scale)) < 0.03

    first = next(filter(fits, range(top, -1, -1)))
    last = next(filter(fits, range(top + size, height + 1)))
    return (image[round(first * scale):round(last * scale)], last - first,
            top - first)


def cut(image, x_min, y_min, x_max, y_max):
    """Returns a part of an image (H, W, 3), black where it lies outside."""
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
    """Resizes an image (H, W, 3) as Pillow does, faster where it can be."""
    if max(image.shape[1] / width, image.shape[0] / height) > 1.25:
        # OpenCV reads 2x2 pixels; to shrink by more, Pillow reads them all.
        return np.array(Image.fromarray(image).resize(
            (width, height), Image.Resampling.BILINEAR))
    return cv2.resize(image, (width, height))


def jittered(box, amount, draws):
    """Returns a box moved by up to half of `amount`, and scaled by up to it.

    Detectors, and AFLW2000's 21 landmarks, frame a face otherwise than
    300W-LP's 68 do.

    Args:
        box: x_min, y_min, x_max, y_max.
        amount: share of the box's size.
        draws: three numbers in [0, 1): across, down, size.
    """
    across, down, scale = amount * (2 * np.asarray(draws) - 1)
    size = np.subtract(box[2:], box[:2])
    center = np.add(box[2:], box[:2]) / 2 + size * (across, down) / 2
    half = size * (1 + scale) / 2
    return np.concatenate((center - half, center + half))


def recolored(image, amount, draws):
    """Changes brightness, contrast and saturation, each by up to `amount`.

    Args:
        image: uint8 array (H, W, 3), RGB.
        amount: share of the value, below 1.
        draws: three numbers in [0, 1).
    """
    brightness, contrast, saturation = 1 + amount * (
        2 * np.asarray(draws) - 1)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    middle = grey.mean() * brightness * (1 - contrast)
    image = cv2.addWeighted(image, saturation,
                            cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB),
                            1 - saturation, 0)
    return cv2.addWeighted(image, brightness * contrast, image, 0, middle)


def coarsened(image, draw):
    """Takes the detail out that a picture of up to 4 times fewer has not."""
    size = image.shape[1::-1]
    small = [max(1, round(side / (1 + 3 * draw))) for side in size]
    return cv2.resize(cv2.resize(image, small, interpolation=cv2.INTER_AREA),
                      size, interpolation=cv2.INTER_LINEAR)


def augmented_crop(image, box, angles, draws, size, more=Augmentation(),
                   shrink=1, other=None):
    """Returns a training crop and the angles of the head in it.

    Args:
        image: RGB array (H, W, 3).
        box: of the landmarks.
        angles: (3,) degrees.
        draws: `Draws`, or as many numbers in [0, 1).
        size: side of the crop, pixels.
        more: augmentation beyond HopeNet's.
        shrink: see `training_crop`.
        other: see `augment.occluded`.
    """
    draws = Draws(*draws)
    turn = 0.0
    if more.box_jitter:
        box = jittered(box, more.box_jitter, draws[5:8])
    if draws.flip < 0.5:  # as training_crop flips
        angles = angles * np.float32(MIRROR)
    if more.rotate:
        turn = more.rotate * (2 * float(draws.turn) - 1)
        new = turned(angles, turn)
        if beyond_range(new):
            turn = 0.0  # there are no bins for the head so turned
        else:
            angles = new
    image, _ = training_crop(image, box, draws, size, turn, shrink)
    if draws.occlude < more.occlude:
        image = occluded(image, *face_in_crop(box, draws, size, turn), angles,
                         draws, other)
    if draws.light < more.light:
        image = relit(image, draws)
    if draws.coarse < more.low_resolution:
        image = coarsened(image, draws.coarse_by)
    if more.color_jitter:
        image = recolored(image, more.color_jitter, draws[11:14])
    return image, angles
