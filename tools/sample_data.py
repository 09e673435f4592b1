"""Renders a small data set of heads in the layout of the real releases.

    python -m tools.sample_data data/sample

writes 300W_LP/ (100 photographs in 3 renderings each) and AFLW2000/ (100
images) with .jpg and .mat files.  It shows that everything runs, and trains
to something; its errors say nothing about real faces.

A head is made of ellipsoids, lit and painted; the landmarks are a face's
(millimetres, in the axes of `pose.rotation_matrix`: right, down, out of
the face, the origin between the ears).
"""
import argparse
import contextlib
import io
import os
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor

import cv2
import numpy as np
import scipy.io

import filename_generator
from headpose.geometry.pose import rotation_matrix

SIDE = 450  # pixels, as in both releases

# Degrees: yaw, pitch and roll lie within.  Pitch and roll vary widely, so that
# it shows whether they are learnt; beyond this yaw only their sum can be seen.
MOST = (75, 40, 40)

# The point of the head (millimetres) that stays where it is in all renderings
# of a photograph, and with it, about, the face in the crop.  In 300W-LP it is
# (0, 9, 56), by the translations in Pose_Para of its renderings.  This one is
# further back: the nose then lies, at each yaw, where it lies in the box of
# the landmarks that AFLW2000's layout shows.
PIVOT = (0, 0, 40)

BANNER = """
***************************************************************************
  No data set in data/: this runs on a small sample of rendered heads, and
  its figures say nothing about real faces.

  300W-LP and AFLW2000-3D are at
      http://www.cbsr.ia.ac.cn/users/xiangyuzhu/projects/3DDFA/main.htm
  Unpack them as data/300W_LP and data/AFLW2000, then
      python filename_generator.py --dataset 300W-LP
      python filename_generator.py --dataset AFLW2000
***************************************************************************
"""


def mirrored(points):
    """Returns points of the face's left image half, from the right half's."""
    return np.array(points[::-1]) * [-1, 1, 1]


# The 68 landmarks of 300-W, in its order.
_JAW = np.array([(0, 75, 83), (16, 73, 78), (32, 67, 66), (46, 57, 50),
                 (58, 44, 33), (67, 27, 20), (72, 8, 12), (75, -12, 8),
                 (76, -32, 5)])
_BROW = [(12, -50, 92), (23, -56, 91), (36, -57, 86), (48, -53, 77),
         (57, -44, 65)]
_NOSE = [(0, -36, 86), (0, -24, 91), (0, -12, 97), (0, 0, 101),
         (-14, 11, 84), (-7, 13, 88), (0, 15, 90), (7, 13, 88), (14, 11, 84)]
_EYE = np.array([(17, -33, 76), (25, -38, 78), (34, -38, 77), (44, -32, 70),
                 (35, -28, 75), (26, -28, 76)])
_MOUTH = [(-26, 33, 76), (-16, 28, 85), (-6, 25, 90), (0, 26, 91),
          (6, 25, 90), (16, 28, 85), (26, 33, 76), (17, 40, 83), (8, 44, 87),
          (0, 45, 88), (-8, 44, 87), (-17, 40, 83), (-22, 33, 78),
          (-7, 31, 88), (0, 31, 89), (7, 31, 88), (22, 33, 78), (7, 36, 88),
          (0, 37, 88), (-7, 36, 88)]
LANDMARKS = np.concatenate((
    mirrored(_JAW[1:]), _JAW, mirrored(_BROW), _BROW, _NOSE,
    (_EYE * [-1, 1, 1])[[3, 2, 1, 0, 5, 4]], _EYE, _MOUTH)).astype(float)

# AFLW's 21: brows, eyes, ears and nose, mouth, chin.
LANDMARKS_21 = np.concatenate((
    mirrored(_BROW[::2]), _BROW[::2],
    [(-44, -32, 70), (-30, -33, 78), (-17, -33, 76),
     (17, -33, 76), (30, -33, 78), (44, -32, 70),
     (-82, -5, 0), (-14, 11, 84), (0, 0, 101), (14, 11, 84), (82, -5, 0),
     (-26, 33, 76), (0, 34, 89), (26, 33, 76), (0, 75, 83)])).astype(float)

# What the head is made of: name, centre, half axes (millimetres).
ELLIPSOIDS = (
    ('skin', (0, -30, -5), (78, 95, 92)),
    ('skin', (0, 25, 25), (62, 54, 64)),
    ('skin', (0, -6, 82), (14, 24, 21)),
    ('skin', (-80, -20, -5), (7, 24, 15)),
    ('skin', (80, -20, -5), (7, 24, 15)),
    ('skin', (0, 115, -15), (44, 80, 44)),
    ('hair', (0, -38, -14), (86, 99, 97)))


def cast(rotation, across, down):
    """Finds what each pixel of a view sees of the head, orthographically.

    Args:
        rotation: (3, 3), see `pose.rotation_matrix`.
        across, down: the pixels' places, millimetres from the head's origin,
            float32 arrays (W,) and (H,).

    Returns:
        depth: (H, W), millimetres towards us; -inf beside the head.
        normals: (H, W, 3), in the view's axes, not of unit length.
        hair: (H, W) bool.
    """
    right, below, toward = rotation.astype(np.float32)
    depth = np.full((len(down), len(across)), -np.inf, np.float32)
    normals = np.zeros((*depth.shape, 3), np.float32)
    hair = np.zeros(depth.shape, bool)
    for kind, center, axes in ELLIPSOIDS:
        center, axes = np.float32(center), np.float32(axes)
        # Only the pixels of the ellipsoid's bounding box can see it.
        reach = np.linalg.norm(rotation * axes, axis=1)
        middle = rotation @ center
        window = (slice(*np.searchsorted(down, middle[1]
                                         + [-reach[1], reach[1]])),
                  slice(*np.searchsorted(across, middle[0]
                                         + [-reach[0], reach[0]])))
        origin = (across[window[1], None] * right
                  + down[window[0], None, None] * below)
        start, step = (origin - center) / axes, toward / axes
        a, b = step @ step, start @ step
        root = b * b - a * ((start * start).sum(-1) - 1)
        t = (np.sqrt(np.maximum(root, 0)) - b) / a
        hit = origin + t[..., None] * toward
        seen = (root > 0) & (t > depth[window])
        if kind == 'hair':  # leaves the face and the neck free
            seen &= hit[..., 1] + 0.75 * hit[..., 2] < -22
        depth[window][seen] = t[seen]
        hair[window][seen] = kind == 'hair'
        normals[window][seen] = ((hit - center)[seen] / axes ** 2
                                 @ rotation.T.astype(np.float32))
    return depth, normals, hair


def paint(points, hair, person):
    """Returns the head's colours (K, 3) from the points (K, 3) on it."""
    x, y, z = points.T
    front = (z > 30) & ~hair
    side = np.abs(x)
    color = np.where(hair[:, None], person['hair'], person['skin'])

    def spot(center, radii, paint_color):
        inside = (((side - center[0]) / radii[0]) ** 2
                  + ((y - center[1]) / radii[1]) ** 2 < 1) & front
        color[inside] = paint_color

    spot((30, -33), (14, 6), (235, 235, 235))
    spot((30, -33), (6, 6), person['iris'])
    spot((30, -33), (2.5, 2.5), (15, 15, 15))
    spot((36, -54), (24, 4), person['hair'] * 0.8)
    spot((0, 35), (26, 9), person['lips'])
    spot((0, 34), (22, 1.5), person['lips'] * 0.4)
    spot((7, 13), (4, 2.5), person['skin'] * 0.35)
    return color


def make_person(rng):
    """Draws what stays the same in all renderings of a photograph."""
    light = np.float32([rng.uniform(-1, 1), rng.uniform(-1, 0.3), 1])
    skin = np.array([rng.uniform(90, 210), rng.uniform(0.68, 0.85),
                     rng.uniform(0.75, 0.9)])
    skin = skin[0] * np.array([skin[1] * skin[2], skin[1], 1.0])  # BGR
    hair = rng.uniform(15, 160) * np.array([0.4, 0.6, 0.8]) ** rng.uniform(
        0.2, 1.3)
    return {'skin': skin, 'hair': hair, 'light': light / np.linalg.norm(light),
            'ambient': rng.uniform(0.35, 0.6),
            'iris': rng.uniform(20, 120, 3),
            'lips': skin * [0.6, 0.6, 0.95],
            'scale': rng.uniform(0.95, 1.35),
            'center': rng.uniform(200, 250, 2),
            'stretch': rng.uniform(0.93, 1.07, 2),
            'background': make_background(rng)}


def make_background(rng):
    """Returns a blurred picture of random shapes (SIDE, SIDE, 3)."""
    color = rng.uniform(40, 210, 3)
    image = np.full((SIDE, SIDE, 3), color, np.float32)
    for _ in range(12):
        center = tuple(int(v) for v in rng.integers(0, SIDE, 2))
        cv2.circle(image, center, int(rng.integers(15, 120)),
                   color + rng.uniform(-40, 40, 3), -1)
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(1, 12))
    cv2.ellipse(image, (SIDE // 2, SIDE + 40), (190, 130), 0, 0, 360,
                rng.uniform(20, 230, 3), -1)
    return image


def project(points, angles, person):
    """Projects points (K, 3) on the head: returns (2, K) pixels."""
    scale = person['scale'] * person['stretch']
    seen = points @ rotation_matrix(angles)[:2].T * scale
    return (seen + person['center']).T


def render(angles, person, rng):
    """Renders a head.

    Args:
        angles: degrees: yaw, pitch, roll.
        person: see `make_person`.
        rng: draws the sensor's noise.

    Returns:
        The image, uint8 (SIDE, SIDE, 3), BGR, and the depth map (SIDE,
        SIDE) in millimetres, -inf beside the head.
    """
    rotation = rotation_matrix(angles)
    scale = person['scale'] * person['stretch']
    pixels = np.arange(SIDE, dtype=np.float32)
    across, down = ((pixels - person['center'][axis]) / scale[axis]
                    for axis in (0, 1))
    depth, normals, hair = cast(rotation, across.astype(np.float32),
                                down.astype(np.float32))
    row, column = np.nonzero(np.isfinite(depth))
    points = np.stack((across[column], down[row], depth[row, column]), 1)
    normals = normals[row, column]
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    shade = person['ambient'] + (1 - person['ambient']) * np.maximum(
        normals @ person['light'], 0)
    image = person['background'].copy()
    image[row, column] = paint(points @ rotation, hair[row, column],
                               person) * shade[:, None]
    image = cv2.GaussianBlur(image, (0, 0), 0.8)
    image += rng.standard_normal((SIDE, SIDE, 1), np.float32) * 4
    return image.clip(0, 255).astype(np.uint8), depth


def visible(points, angles, person, depth):
    """Says which points (K, 3) are not hidden behind the head: (K,) bool."""
    pixels = project(points, angles, person).round().astype(int)
    inside = ((pixels >= 0) & (pixels < SIDE)).all(0)
    column, row = pixels.clip(0, SIDE - 1)
    nearest = depth[row, column]
    # Landmarks stand up to a centimetre beside the ellipsoids' surface.
    return inside & (points @ rotation_matrix(angles)[2] > nearest - 12)


def write_pair(path, image, angles, person, **fields):
    """Writes the .jpg and the .mat, with the releases' fields and types."""
    yaw, pitch, roll = np.radians(angles)
    x, y = person['center']
    pose = [pitch, yaw, roll, x, SIDE - y, 0, person['scale'] / 1000]
    if not cv2.imwrite(path + '.jpg', image):
        raise OSError(f'{path}.jpg: OpenCV wrote nothing')
    scipy.io.savemat(path + '.mat', {
        'Pose_Para': np.array([pose], np.float32),
        'roi': np.array([[0, 0, SIDE, SIDE]], np.int16), **fields})


def write_photograph(folder, photo, renderings=3, seed=0):
    """Writes one photograph of 300W_LP and its renderings, turned further."""
    forms = ('AFW/AFW_{:06}_1', 'HELEN/HELEN_{:06}_1',
             'IBUG/IBUG_image_{:03}_1', 'LFPW/LFPW_image_train_{:04}')
    rng = np.random.default_rng([seed, photo])
    person = make_person(rng)
    path = os.path.join(folder, forms[photo % 4].format(photo + 1))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    # Each is tilted, too, where the release's follow the photograph's pitch
    # and roll: of so few photographs a network would learn these by heart.
    poses = rng.uniform(-1, 1, (renderings, 3)) * MOST
    side = 1 if photo % 8 < 4 else -1
    poses[:, 0] = side * np.linspace(rng.uniform(-30, 30),
                                     rng.uniform(45, MOST[0]), renderings)
    # As in the release: every rendering's pt2d is the photograph's.
    pt2d = project(LANDMARKS, poses[0], person)
    pivot = project(np.array([PIVOT]), poses[0], person)[:, 0]
    for rendering, angles in enumerate(poses):
        moved = project(np.array([PIVOT]), angles, person)[:, 0]
        person['center'] = person['center'] + pivot - moved
        image, _ = render(angles, person, rng)
        write_pair(f'{path}_{rendering}', image, angles, person, pt2d=pt2d)


def write_single(folder, number, seed=1):
    """Writes one image of AFLW2000: 21 landmarks, the hidden at x = -1."""
    os.makedirs(folder, exist_ok=True)
    rng = np.random.default_rng([seed, number])
    person = make_person(rng)
    angles = rng.uniform(-1, 1, 3) * MOST
    image, depth = render(angles, person, rng)
    seen = visible(LANDMARKS_21, angles, person, depth)
    pt2d = np.where(seen, project(LANDMARKS_21, angles, person),
                    [[-1], [452]])
    pt3d = np.vstack((project(LANDMARKS, angles, person), LANDMARKS
                      @ rotation_matrix(angles)[2] * person['scale']))
    write_pair(os.path.join(folder, f'image{number + 2:05}'), image, angles,
               person, pt2d=pt2d, pt3d_68=pt3d.astype(np.float32))


def write_sample(folder, photographs=100, renderings=3, images=100):
    """Writes both samples; the same numbers give the same files."""
    with ProcessPoolExecutor() as pool:
        jobs = [pool.submit(write_photograph,
                            os.path.join(folder, '300W_LP'), photo,
                            renderings) for photo in range(photographs)]
        jobs += [pool.submit(write_single,
                             os.path.join(folder, 'AFLW2000'), number)
                 for number in range(images)]
        for job in jobs:
            job.result()


def main(argv=None):
    """Says that this is the sample; renders it, unless it is there."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('folder')
    folder = parser.parse_args(argv).folder
    print(BANNER)
    if os.path.isdir(folder):
        return
    try:
        render_sample(folder)
    except OSError as error:
        sys.exit(f'{folder}: cannot be written ({error})')


def render_sample(folder):
    """Renders both samples, with their lists, into a new folder."""
    print(f'Rendering the sample into {folder} ...')
    # Under its own name only when complete: an interrupted one is redone.
    partial = f'{folder}.partial'
    shutil.rmtree(partial, ignore_errors=True)
    write_sample(partial)
    for dataset in ('300W_LP', 'AFLW2000'):
        # Unsaid: what it counts is a release's, which this does not claim
        # to be, and the folder's name is not yet the final one.
        with contextlib.redirect_stdout(io.StringIO()):
            filename_generator.main([
                '--dataset', dataset,
                '--dataset_path', os.path.join(partial, dataset)])
    os.rename(partial, folder)


if __name__ == '__main__':
    main()
