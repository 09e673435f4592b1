"""The convention of yaw, pitch and roll, and rotations.

Angles are in degrees, in the order yaw, pitch, roll, with the signs of
300W-LP: positive yaw turns the face towards the left of the image, positive
pitch lifts the chin, positive roll tilts the head clockwise as we see it.

They are the Euler angles of 3DDFA's R = Rx(pitch) Ry(yaw) Rz(roll), written
here, by `rotation_matrix`, in image axes: x to the right, y down, z to us.
SciPy makes the same matrix by

    Rotation.from_euler('XYZ', [pitch, -yaw, roll], degrees=True).as_matrix()

OpenCV (cv2.RQDecomp3x3, and what is written after cv2.solvePnP) takes a
rotation apart in the other order, Rz Ry Rx.  Its numbers are far from these in
profile: yaw 68, pitch 26.9, roll 30 is x -3.7, y -70.4, z 14.3 there.  Compare
matrices, not angles.

Near 90 degrees of yaw pitch and roll turn about nearly the same axis, and
only their sum, or difference, is well determined; the rotation itself is.
"""
import numpy as np

AXES = ('yaw', 'pitch', 'roll')
PROFILE = 70  # degrees between a face in profile and the camera, at least
MIRROR = (-1, 1, -1)  # factors of yaw, pitch and roll in a mirror image
LEAST_SPREAD = 0.1  # degrees, of an answer in a mean: none is that sure

# The protocol keeps angles within +-99 degrees.  An angle of exactly 99
# degrees, stored as float32 radians, comes back up to 4e-6 degrees larger.
MAX_ANGLE = 99.0
ROUNDING = 1e-4


def beyond_range(angles):
    """Says which angle (degrees) is beyond +-99, or returns None."""
    for axis, angle in zip(AXES, angles):
        if abs(angle) > MAX_ANGLE + ROUNDING:
            return f'{axis} of {angle:.2f} degrees is beyond +-99'
    return None


def rotation_matrix(angles):
    """Returns the rotation of a head in image axes (right, down, to us).

    The columns are the head's own axes: to its right side as we see it,
    towards its chin, out of its face.  From angles (..., 3), degrees, to
    float64 (..., 3, 3).
    """
    yaw, pitch, roll = np.moveaxis(np.radians(angles), -1, 0)
    cy, sy = np.cos(yaw), np.sin(yaw)
    cp, sp = np.cos(pitch), np.sin(pitch)
    cr, sr = np.cos(roll), np.sin(roll)
    rows = [[cy * cr, -cy * sr, -sy],
            [cp * sr - sp * sy * cr, cp * cr + sp * sy * sr, -sp * cy],
            [cp * sy * cr + sp * sr, sp * cr - cp * sy * sr, cp * cy]]
    return np.stack([np.stack(row, -1) for row in rows], -2)


def angles_of(rotation):
    """Returns the angles of rotations: the inverse of `rotation_matrix`.

    From (..., 3, 3) to float64 (..., 3), degrees, with the yaw within +-90.
    At +-90 pitch and roll are one turn, of which pitch takes all.
    """
    rotation = np.asarray(rotation, float)
    yaw = np.arcsin(-rotation[..., 0, 2].clip(-1, 1))
    locked = np.hypot(rotation[..., 0, 0], rotation[..., 0, 1]) < 1e-9
    pitch = np.where(
        locked, np.arctan2(rotation[..., 2, 1], rotation[..., 1, 1]),
        np.arctan2(-rotation[..., 1, 2], rotation[..., 2, 2]))
    roll = np.where(
        locked, 0, np.arctan2(-rotation[..., 0, 1], rotation[..., 0, 0]))
    return np.degrees(np.stack((yaw, pitch, roll), -1))


def facing(angles):
    """Says where a face in profile looks: 'faces left, chin down 20'.

    There pitch and roll may jump together, and the words may not.  Returns ''
    for a face within PROFILE degrees of the camera.
    """
    x, y, z = rotation_matrix(angles)[:, 2]
    if z > np.cos(np.radians(PROFILE)) or abs(x) < abs(y):
        return ''
    chin = round(np.degrees(np.arcsin(-y)))  # y points down
    return ('faces ' + ('left' if x < 0 else 'right')
            + (f', chin {"up" if chin > 0 else "down"} {abs(chin)}'
               if chin else ''))


def turned(angles, degrees):
    """Returns the angles (3,) of a head whose picture is turned clockwise.

    The turn is no addition to roll: it comes after the head's own rotation.
    """
    turn = rotation_matrix((0, 0, degrees))
    return angles_near(turn @ rotation_matrix(angles), angles)


def angles_near(rotation, angles):
    """Returns the angles (..., 3) of rotations, the nearer to `angles`.

    Two triples within +-180 degrees mean the same rotation; one of them has
    its yaw beyond +-90.
    """
    first = angles_of(rotation)
    triples = np.stack((first, first * (-1, 1, 1) + 180))
    triples = (triples + 180) % 360 - 180  # (2, ..., 3)
    apart = np.abs(triples - angles).sum(-1)
    return np.where((apart[0] <= apart[1])[..., None], *triples)


def mean_angles(angles, weights=None):
    """Returns the angles of mean rotations.

    This is the chordal mean: that of the matrices, projected by its singular
    value decomposition (Moakher 2002, "Means and averaging in the group of
    rotations", section 3.1).  A mean of the angles would be wrong where they
    wrap around, and near 90 degrees of yaw.

    From array-like (K, N, 3), degrees, K answers for each of N heads, and
    `weights`, (K,) or (K, N), to float64 (N, 3), near to the first answers'
    numbers.
    """
    rotations = rotation_matrix(angles)
    if weights is not None:
        weights = np.asarray(weights, float)
        rotations *= weights.reshape(*weights.shape, *[1] * (4 - weights.ndim))
    left, _, right = np.linalg.svd(rotations.sum(0))
    # A mean of rotations that are far apart can be nearest to a reflection.
    left[..., -1] *= np.linalg.det(left @ right)[..., None]
    return angles_near(left @ right, np.asarray(angles)[0])


def is_mirrored(look):
    """Says whether a look, numbered from 1, is at the mirror image.

    Every other one is: an error towards one side has the other sign there, and
    the two cancel in the mean.
    """
    return look % 2 == 0


def best_guess(angles, spreads):
    """Returns the mean of several answers, the surer ones weighing more.

    An answer weighs as the inverse of its variance, the spread squared: of
    unbiased, independent answers that is the mean with the least variance.
    From array-like (K, N, 3) and (K, N), degrees, K answers for each of N
    heads, to angles (N, 3), NaN where an answer is, and spreads (N,).
    """
    angles = np.asarray(angles, float)
    weights = 1 / np.square(np.maximum(spreads, LEAST_SPREAD))
    means = np.full(angles.shape[1:], np.nan)
    known = np.isfinite(angles).all((0, 2))
    means[known] = mean_angles(angles[:, known], weights[:, known])
    return means, np.average(spreads, axis=0, weights=weights)


def rotation_errors(predicted, true):
    """Returns the errors of rotations, all (N, 3), in degrees.

    That is the angle of the rotation from one to the other, (N,), and the
    angles between their axis vectors, (N, 3), whose mean is MAEV (Cao et al.,
    WACV 2021; their left vector is the opposite of our right one).
    """
    difference = rotation_matrix(predicted) - rotation_matrix(true)
    # From chords, which are exact where the angle is small: unit vectors at
    # an angle are 2 sin(angle / 2) apart, rotations sqrt(2) times as far.
    chords = np.linalg.norm(difference, axis=-2)
    whole = np.linalg.norm(chords, axis=-1) / np.sqrt(2)
    geodesic, vectors = (2 * np.degrees(np.arcsin(np.minimum(chord / 2, 1)))
                         for chord in (whole, chords))
    return geodesic, vectors


def angles_text(errors):
    """Formats the mean of errors (N, 3), degrees, for a line of output."""
    means = [*errors.mean(0), errors.mean()]
    return ', '.join(f'{name}: {mean:.4f}' for name, mean
                     in zip(('Yaw', 'Pitch', 'Roll', 'MAE'), means))
