"""Errors of a test: by axis, by range, by certainty, and by sequence.

`result` is an `engine.Evaluation` throughout, angles are in degrees.
"""
import os

import numpy as np
import pandas as pd
from scipy.spatial.transform import Rotation

from headpose.geometry.pose import (AXES, angles_near, rotation_errors,
                                    rotation_matrix)

COLUMNS = (*AXES, 'MAE')
RANGES = ((0, 30), (30, 60), (60, 90))  # degrees, of a table of errors
COVERAGES = (100, 95, 90, 80, 70, 60, 50)  # % of the images
RESAMPLES = 2000  # of the bootstrap


def with_mean(errors):
    """Appends the mean of each row: (N, 3) to (N, 4)."""
    return np.column_stack([errors, errors.mean(1)])


def bootstrap(values, groups=None):
    """Returns 95% intervals of means over images, by the bootstrap.

    Percentiles of the means of `RESAMPLES` samples, drawn with replacement
    (Efron and Tibshirani 1993, chapter 13); the same for the same values.
    Images of one group (a person, a video) are alike: groups are drawn, and
    means taken over their images (Davison and Hinkley 1997, section 3.8).
    The intervals of few images are too narrow: of 10 with exponential errors
    86% held the true mean, of 200, 94% (300 trials each).

    From values (N, K) of N images, and N strings, their groups, or None if
    each is its own, to (2, K), lower and upper ends; NaN for a single group.
    """
    sums, sizes = values, np.ones(len(values))
    if groups:
        table = pd.DataFrame(values).groupby(np.asarray(groups), sort=False)
        sums, sizes = table.sum().to_numpy(), table.size().to_numpy()
    count = len(sums)
    if count < 2:
        return np.full((2, values.shape[1]), np.nan)
    rng = np.random.default_rng(0)
    means = []
    for _ in range(RESAMPLES // 100):  # a hundred samples fit into memory
        drawn = rng.multinomial(count, np.full(count, 1 / count), 100)
        means.append(drawn @ sums / (drawn @ sizes)[:, None])
    return np.quantile(np.concatenate(means), (0.025, 0.975), axis=0)


def axis_table(result, groups=None):
    """Returns a DataFrame with rows yaw, pitch, roll and MAE.

    `groups`, see `bootstrap`, are the images'; `low` and `high` the ends of
    the error's 95% interval; the bias is the mean of predicted minus true.
    """
    errors = with_mean(result.errors)
    low, high = bootstrap(errors, groups)
    bias = (result.predicted - result.true).mean(0)
    return pd.DataFrame({
        'error': errors.mean(0), 'low': low, 'high': high,
        'median': np.median(errors, 0), 'bias': [*bias, np.nan]}, COLUMNS)


def range_table(result, axis):
    """Returns counts and mean errors by the size of one true angle.

    `axis` is 0, 1 or 2 for |yaw|, |pitch| or |roll|.  The last row of the
    DataFrame has the angles beyond 90 degrees, too; NaN is that of no image.
    """
    edges = [low for low, _ in RANGES] + [np.inf]
    table = pd.DataFrame(with_mean(result.errors), columns=COLUMNS)
    table['rotation'] = rotation_errors(result.predicted, result.true)[0]
    groups = table.groupby(pd.cut(
        np.abs(result.true[:, axis]), edges, right=False,
        labels=[f'{low}-{high}' for low, high in RANGES]), observed=False)
    means = groups.mean()
    means.insert(0, 'images', groups.size())
    return means.rename_axis(f'|{AXES[axis]}|').reset_index()


def coverage_table(result):
    """Returns the error against the share of images that are kept.

    A row for each of `COVERAGES` has the images of the smallest `bin_std`:
    the selective risk of Geifman and El-Yaniv (NIPS 2017).
    """
    errors = result.errors.mean(1)
    order = np.argsort(result.bin_std, kind='stable')
    rows = []
    for share in COVERAGES:
        kept = order[:max(1, round(len(order) * share / 100))]
        rows.append([share, len(kept), result.bin_std[kept[-1]],
                     errors[kept].mean()])
    return pd.DataFrame(rows, columns=['% kept', 'images', 'spread up to',
                                       'MAE'])


def rotation_summary(result):
    """Returns the mean `rotation_errors`, a dict."""
    geodesic, vectors = rotation_errors(result.predicted, result.true)
    return {'geodesic_mean': float(geodesic.mean()),
            'geodesic_median': float(np.median(geodesic)),
            **dict(zip(('right_vector', 'down_vector', 'front_vector'),
                       vectors.mean(0).tolist())),
            'maev': float(vectors.mean())}


def aligned(predicted, true):
    """Returns predictions without the rotation that all have in common.

    Two data sets may disagree on the frontal pose; within one sequence they
    differ by one rotation of the head's axes.  As in Cobo et al. (Opal23,
    Pattern Recognition 2024), this is the intrinsic mean of the rotations
    from the predictions to the truth, without those of 90 degrees and more.
    Both are array-like (N, 3), degrees, and so is the result, float64.
    """
    rotations = rotation_matrix(predicted)
    apart = Rotation.from_matrix(
        np.swapaxes(rotations, 1, 2) @ rotation_matrix(true))
    apart = apart[apart.magnitude() < np.pi / 2]
    mean = apart[0] if len(apart) else Rotation.identity()
    for _ in range(1000 if len(apart) else 0):  # about five are enough
        step = Rotation.from_rotvec((mean.inv() * apart).as_rotvec().mean(0))
        mean *= step
        if step.magnitude() < 1e-9:
            break
    return angles_near(rotations @ mean.as_matrix(), true)


def sequence_summary(result, names, frames):
    """Returns the numbers of BIWI's sequences, and errors after alignment.

    `names` are those of all images, `frames` the numbers of frames in the
    folder by sequence.  `aligned_` are mean errors after `aligned`.
    """
    sequences = np.array([os.path.basename(os.path.dirname(names[index]))
                          for index in result.indices])
    turned = np.empty_like(result.predicted, float)
    for sequence in set(sequences):
        inside = sequences == sequence
        turned[inside] = aligned(result.predicted[inside],
                                 result.true[inside])
    errors = with_mean(np.abs(turned - result.true)).mean(0)
    before, after = (float(rotation_errors(angles, result.true)[0].mean())
                     for angles in (result.predicted, turned))
    return {'sequences': len(set(sequences)), 'tested': len(sequences),
            'frames': sum(frames[sequence] for sequence in set(sequences)),
            'rotation': before,
            **{f'aligned_{name.lower()}': float(error)
               for name, error in zip(COLUMNS, errors)},
            'aligned_rotation': after}
