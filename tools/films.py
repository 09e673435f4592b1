"""Measures what following costs and saves: films of moving faces.

    python -m tools.films DATA

Eight films are made of re-crops in DATA/AFLW2000_recropped, which move, turn,
grow, enter, leave and cross.  Printed are, for each film, the share of the
faces of full looks (--every_frame) that following finds in the same frame, the
frames in which two faces have each other's track, and the mean difference of
the angles; then what `--smooth auto` leaves of the jitter of a head at rest,
and by how many frames it is late at 60 degrees a second, on heads rendered by
tools/sample_data.py; then frames a second and CPU time of whole commands, with
drawing and H.264, for one face.  Other commands, as of another commit, are
timed in turns with these by --demo FILE, its demo.py.
"""
import argparse
import glob
import os
import resource
import subprocess
import sys
import tempfile
import time

import cv2
import numpy as np

from headpose.geometry.pose import mean_angles, rotation_errors
from headpose.inference.detector import iou
from headpose.inference.estimator import Estimator
from headpose.inference.tracker import Follower
from headpose.inference.video import Moving, recording
from tools.sample_data import make_person, render

RATE, SECONDS = 30, 6
SIZE = 640, 480
SAME = 0.3  # IoU of two boxes of one face
SPEED_FILMS = {(640, 480): 240, (1280, 720): 240}  # size: number of frames


def sways(amount, period, t):
    """Returns a swing of `amount` at t seconds."""
    return amount * np.sin(2 * np.pi * t / period)


# For each film a function of t (seconds) for each face: centre x and y and
# width of the pasted re-crop, pixels at SIZE, and its turn, degrees.
PATHS = {
    'still': [lambda t: (320, 240, 260, 0)],
    'moving': [lambda t: (320 + sways(180, 3, t), 240 + sways(60, 2, t), 220,
                          0)],
    'turning': [lambda t: (320, 240, 260, sways(40, 3, t))],
    'growing': [lambda t: (320, 240, 240 + sways(160, 4, t), 0)],
    'entering': [lambda t: (160, 240, 220, 0),
                 lambda t: (900 - 150 * t, 240, 220, 0)],
    'leaving': [lambda t: (200 - 120 * t, 240, 220, 0),
                lambda t: (450, 240, 220, sways(15, 2, t))],
    'crossing': [lambda t: (60 + 90 * t, 200, 200, 0),
                 lambda t: (580 - 90 * t, 280, 200, 0)],
    'three': [lambda t: (130 + sways(40, 2, t), 140, 160, 0),
              lambda t: (330, 330 + sways(60, 3, t), 160, sways(25, 3, t)),
              lambda t: (520 + sways(60, 4, t), 160, 160, 0)]}


def film(faces, paths, size=SIZE, frames=RATE * SECONDS):
    """Yields BGR pictures of a film, made of pictures and their paths."""
    width, height = size
    scale = width / SIZE[0]
    noise = np.random.default_rng(0).integers(60, 190, (9, 12, 3), np.uint8)
    background = cv2.resize(noise, size, interpolation=cv2.INTER_CUBIC)
    for number in range(frames):
        image = background.copy()
        for face, path in zip(faces, paths):
            x, y, wide, turn = path(number / RATE)
            side = face.shape[1]
            matrix = cv2.getRotationMatrix2D(
                (side / 2, face.shape[0] / 2), turn, scale * wide / side)
            matrix[:, 2] += scale * x - side / 2, scale * y - face.shape[0] / 2
            cv2.warpAffine(face, matrix, size, dst=image,
                           borderMode=cv2.BORDER_TRANSPARENT)
        yield image


def nearest(head, others):
    """Returns the index of the head that is the same face, or None."""
    if not others:
        return None
    overlaps = iou(np.array(head.box), np.array([one.box for one in others]))
    best = int(overlaps.argmax())
    return best if overlaps[best] > SAME else None


def compare(images, estimator):
    """Returns counts of a film, followed and looked at frame by frame.

    Returns:
        Faces of full looks, those of them that following has, frames with
        swapped tracks, and angle differences (N, 3), degrees.
    """
    follow, look = Follower(estimator), Follower(estimator, every_frame=True)
    faces = found = swapped = 0
    apart, partner = [], {}
    for number, image in enumerate(images):
        followed, whole = (each(image, number / RATE)[0]
                           for each in (follow, look))
        faces += len(whole)
        bad = False
        for head in whole:
            other = nearest(head, followed)
            if other is None:
                continue
            found += 1
            apart.append(np.subtract(head.angles, followed[other].angles))
            track = followed[other].track
            bad |= track in partner.values() and partner.get(
                head.track, track) != track
            partner.setdefault(head.track, track)
        swapped += bad
    return faces, found, swapped, np.abs(apart)


def rendered(yaws, person, estimator):
    """Returns the angles (N, 3) of a rendered head, as found and smoothed."""
    followers = Follower(estimator), Follower(estimator, 'auto')
    noise = np.random.default_rng(0)
    angles = []
    for number, yaw in enumerate(yaws):
        image, _ = render((yaw, -5, 3), person, noise)
        image = image.clip(0, 255).astype(np.uint8)
        angles.append([follow(image, number / RATE)[0][0].angles
                       for follow in followers])
    return np.array(angles).swapaxes(0, 1)


def steadiness(person, estimator):
    """Returns the share of the jitter that is left, and the lag in frames."""
    at_rest = rendered([10] * 60, person, estimator)[:, 15:]
    jitter = [np.square(rotation_errors(
        each, mean_angles(each[:, None]))[0]).mean() ** 0.5
        for each in at_rest]
    turn = np.arange(-30, 30, 60 / RATE)
    found, smoothed = rendered([-30] * 15 + turn.tolist() + [30] * 5, person,
                               estimator)[..., 0]
    times = np.arange(len(found))
    during = slice(16, 15 + len(turn))
    lags = np.arange(0, 5, 0.1)
    errors = [np.square(np.interp(times - lag, times, found)
                        - smoothed)[during].mean() for lag in lags]
    return jitter[1] / jitter[0], lags[np.argmin(errors)]


def timed(command):
    """Returns the seconds, of the clock and of the CPU, that a command took.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, (after.ru_utime + after.ru_stime
                  - before.ru_utime - before.ru_stime)


def print_speed(faces, demos, runs):
    """Prints frames a second and CPU time a frame of whole commands."""
    with tempfile.TemporaryDirectory() as folder:
        for size, frames in SPEED_FILMS.items():
            path = os.path.join(folder, 'film.mp4')
            moving = Moving()
            moving.rate = RATE
            with recording(path, moving) as recorder:
                for number, image in enumerate(film(
                        faces, PATHS['moving'], size, frames)):
                    recorder.write(image, number / RATE)
            output = ['--output', os.path.join(folder, 'out'), '--overwrite']
            commands = {'followed': [demos[0]],
                        '--every_frame': [demos[0], '--every_frame'],
                        **{demo: [demo] for demo in demos[1:]}}
            times = {name: [] for name in commands}
            for _ in range(runs):  # in turns: machines are noisy
                for name, command in commands.items():
                    times[name].append(timed(
                        [sys.executable, *command, path, *output]))
            for name, values in times.items():
                wall, cpu = np.median(values, 0)
                print(f'{size[0]}x{size[1]}, {name}: {frames / wall:.1f} '
                      f'frames/s, {1000 * cpu / frames:.1f} ms of CPU a frame',
                      flush=True)


def main():
    """Prints everything."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data', metavar='DATA')
    parser.add_argument('--demo', metavar='FILE', help='another demo.py')
    parser.add_argument('--runs', type=int, default=3, metavar='N')
    options = parser.parse_args()
    paths = sorted(glob.glob(os.path.join(
        options.data, 'AFLW2000_recropped', '*.jpg')))
    estimator = Estimator()
    faces = [face for face in map(cv2.imread, paths[2:400:16])
             if len(estimator.detector(face).boxes) == 1]
    print(f'{"film":10} {"faces":>6} {"found":>7} {"swapped":>8} angles')
    for number, (name, ways) in enumerate(PATHS.items()):
        count, found, swapped, apart = compare(
            film(faces[number:], ways), estimator)
        print(f'{name:10} {count:6} {found / count:7.2%} {swapped:8} '
              f'{apart.mean():.2f}', flush=True)
    for seed in range(5):
        left, late = steadiness(make_person(np.random.default_rng([3, seed])),
                                estimator)
        print(f'rendered head {seed}: {left:.2f} of the jitter is left, '
              f'{late:.1f} frames late', flush=True)
    demo = os.path.join(os.path.dirname(os.path.dirname(
        os.path.abspath(__file__))), 'demo.py')
    print_speed(faces, [demo] + [options.demo] * bool(options.demo),
                options.runs)


if __name__ == '__main__':
    main()
