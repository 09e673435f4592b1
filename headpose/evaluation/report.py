"""From a network's answers to what people read: lines, tables, files.

`--report DIR` of a testing script writes report.json and report.html, a page
for people.  Both hold errors with 95% bootstrap intervals, by range of each
angle, the rotation's geodesic error, curves, the worst images, and where the
checkpoint comes from.
"""
import json
import os

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

from headpose.errors import RunError
from headpose.evaluation.page import draw_face, report_page
from headpose.files import atomic, digest
from headpose.geometry.pose import AXES, aligned, angles_text, rotation_errors

RANGES = ((0, 30), (30, 60), (60, 90))  # degrees, of a table of errors
COVERAGES = (100, 95, 90, 80, 70, 60, 50)  # % of the images
ALIGNED = tuple(f'aligned_{axis}' for axis in (*AXES, 'mae'))
RESAMPLES = 2000  # of the bootstrap


# ---------------------------------------------------------------- one test

def present(result, data, content, snapshot, filename_list, landmarks,
            image_size, flip=False, predictions=None, save_viz=False,
            cube=False, report=None, labels=None):
    """Prints a test's result and writes the files that are asked for.

    Args:
        result: an `engine.Evaluation`.
        data: the `datasets.PoseDataset` that it is of.
        content: of the tested checkpoint, see `checkpoint.read_checkpoint`.
        snapshot: its path.
        filename_list, labels, landmarks, image_size: how the images were
            chosen and cropped, see `datasets.evaluation_loader`.
        flip: whether mirror images were asked, too, see `engine.predict`.
        predictions: path of a CSV of all answers.
        save_viz: draw them into output/images; `cube` draws cubes.
        report: folder for report.html and report.json.

    Raises:
        RunError: a file cannot be written, or an answer is not a number.
    """
    print_result(result)
    names = data.annotations.names
    if predictions:
        write_predictions(predictions, result, names)
    if save_viz:
        save_pictures('output/images', result, data, cube)
    lost = ~np.isfinite(result.predicted).all(1)
    if lost.any():
        name = names[result.indices[lost.argmax()]]
        raise RunError(f'{snapshot}: {lost.sum()} of {len(lost)} answers are '
                       f'no numbers, the first is that on {name}')
    more = print_sequences(result, data.annotations)
    if report:
        write_report(report, result, data, content, {
            'checkpoint': str(snapshot), 'sha256': digest(snapshot),
            'data_dir': str(data.data_dir),
            'filename_list': str(filename_list or labels),
            'landmarks': landmarks, 'image_size': image_size, 'flip': flip,
            'images': len(result.indices), 'crop': data.protocol,
            'labels': labels and str(labels),
            'labels_sha256': data.annotations.table, **more})


def print_result(result):
    """Prints the test line, a table by |yaw|, and a warning if need be."""
    errors = result.errors
    print('Test error in degrees of the model on the '
          f'{len(errors)} test images. {angles_text(errors)}')
    print(range_table(result, 0).to_string(index=False, na_rep='-',
                                           float_format='%.4f'))
    constant = np.abs(result.true - np.median(result.true, 0))
    if len(errors) > 1 and errors.mean() > 0.8 * constant.mean():
        print(f'Warning: one constant answer for all images would have an MAE '
              f'of {constant.mean():.4f}: the model has collapsed, or the '
              "crops, or the labels' signs, are not those of its training")


def range_table(result, axis):
    """Returns counts and mean errors by the size of one true angle.

    Args:
        result: an `engine.Evaluation`.
        axis: 0, 1 or 2 for |yaw|, |pitch| or |roll|.

    Returns:
        A DataFrame, a row for each of `RANGES`: range, images, the errors of
        yaw, pitch and roll, MAE, the rotation's geodesic error; the errors of
        no image are NaN.
    """
    errors, size = result.errors, np.abs(result.true[:, axis])
    geodesic, _ = rotation_errors(result.predicted, result.true)
    rows = []
    for low, high in RANGES:
        # The last range takes the few angles beyond 90 degrees, too.
        inside = (size >= low) & ((size < high) | (high == 90))
        means = ([*errors[inside].mean(0), errors[inside].mean(),
                  geodesic[inside].mean()] if any(inside) else [np.nan] * 5)
        rows.append([f'{low}-{high}', inside.sum(), *means])
    return pd.DataFrame(rows, columns=[f'|{AXES[axis]}|', 'images', *AXES,
                                       'MAE', 'rotation'])


def coverage_table(result):
    """Returns the error against the share of images that are kept.

    Those are kept whose bins' probabilities lie closest together: the
    selective risk of Geifman and El-Yaniv (NIPS 2017), with the spread as the
    confidence.

    Args:
        result: an `engine.Evaluation`.

    Returns:
        A DataFrame, a row for each of `COVERAGES`: % kept, images, the
        largest spread among them, MAE.
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


def write_predictions(path, result, names):
    """Writes a CSV: name, predicted and true angles, spread, by image."""
    table = pd.DataFrame({'name': [names[i] for i in result.indices]})
    for suffix, angles in (('', result.predicted), ('_true', result.true)):
        for column, axis in enumerate(AXES):
            table[axis + suffix] = angles[:, column]
    table['spread'] = result.bin_std
    with atomic(path) as temporary:
        # Escapes bytes of a name that are no UTF-8.
        table.to_csv(temporary, index=False, float_format='%.4f',
                     errors='backslashreplace')


def save_pictures(folder, result, dataset, cube=False):
    """Draws each image's predicted pose, and writes both poses below it.

    Args:
        folder: where the pictures go, under the images' own names.
        result: an `engine.Evaluation`.
        dataset: has `path(index)` and `annotations`.
        cube: see `draw.draw_pose`.

    Raises:
        RunError: a picture cannot be written.
    """
    for row, index in enumerate(tqdm(result.indices, desc='drawing',
                                     disable=None, leave=False)):
        image, *_ = draw_face(dataset, index, result.predicted[row], cube)
        for line, (label, angles) in enumerate((
                ('predicted', result.predicted), ('true', result.true))):
            text = label + ' %.1f %.1f %.1f' % tuple(angles[row])
            place = (5, image.shape[0] - 25 + 18 * line)
            for color, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):
                cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX,
                            0.5, color, width, cv2.LINE_AA)
        name = dataset.annotations.names[index]
        with atomic(os.path.join(folder, f'{name}.jpg')) as path:
            # Not imwrite: a name that is no UTF-8 ends the process in it.
            with open(path, 'wb') as file:
                file.write(cv2.imencode('.jpg', image)[1])


# --------------------------------------------------------------- the report

def write_report(folder, result, dataset, content, protocol):
    """Writes report.html, a page that needs no other file, and report.json.

    Args:
        folder: where to.
        result, content: see `present`.
        dataset: a `datasets.PoseDataset`.
        protocol: plain dict: what was tested, on which images, how.

    Raises:
        RunError: a file cannot be written.
    """
    names = [dataset.annotations.names[i] for i in result.indices]
    report = report_content(result, names, content, protocol)
    # JSON has no NaN; it becomes null.
    numbers = json.loads(json.dumps(report, default=str),
                         parse_constant=lambda _: None)
    page = report_page(report, result, dataset)
    for name, text in (('report.html', page),
                       ('report.json', json.dumps(numbers, indent=1))):
        with atomic(os.path.join(folder, name)) as path:
            with open(path, 'w', encoding='utf-8',
                      errors='backslashreplace') as file:
                file.write(text)


def with_mean(errors):
    """Appends the mean of each row: (N, 3) to (N, 4)."""
    return np.column_stack([errors, errors.mean(1)])


def bootstrap(values):
    """Returns 95% intervals of means over images, by the bootstrap.

    Percentiles of the means of `RESAMPLES` samples, drawn with replacement
    (Efron and Tibshirani 1993, chapter 13); the same for the same values.
    Of few images they are too narrow: of 10 with exponential errors, 86%
    held the true mean, of 200, 94% (300 trials each).

    Args:
        values: (N, K), a row an image.

    Returns:
        (2, K), the lower and the upper ends: NaN for a single image, which
        says nothing about others.
    """
    count = len(values)
    if count < 2:
        return np.full((2, values.shape[1]), np.nan)
    rng = np.random.default_rng(0)
    # How often each image is in a sample; in parts, for their memory.
    means = [rng.multinomial(count, np.full(count, 1 / count), 100) @ values
             for _ in range(RESAMPLES // 100)]
    return np.quantile(np.concatenate(means) / count, (0.025, 0.975), axis=0)


def axis_table(predicted, true):
    """Returns the error of each axis, and of their mean, with its interval.

    Args:
        predicted, true: (N, 3) degrees: yaw, pitch, roll.

    Returns:
        A DataFrame with rows yaw, pitch, roll and MAE: the mean absolute
        error, the ends of its 95% interval, the median of absolute errors,
        and the bias, the mean of predicted minus true.
    """
    errors = with_mean(np.abs(predicted - true))
    low, high = bootstrap(errors)
    return pd.DataFrame({
        'error': errors.mean(0), 'low': low, 'high': high,
        'median': np.median(errors, 0),
        'bias': [*(predicted - true).mean(0), np.nan]}, [*AXES, 'MAE'])


def report_content(result, names, content, protocol):
    """Returns what report.json holds, as plain types; NaN where no number.

    Args:
        result: an `engine.Evaluation`.
        names: of the images, in its order.
        content, protocol: see `write_report`.
    """
    geodesic, vectors = rotation_errors(result.predicted, result.true)
    return {
        'protocol': protocol,
        'network': size_of(content['model']),
        'provenance': content.get('provenance'),
        'validation': content.get('validation'),
        'axes': axis_table(result.predicted, result.true).to_dict('index'),
        'rotation': {
            'geodesic_mean': float(geodesic.mean()),
            'geodesic_median': float(np.median(geodesic)),
            **dict(zip(('right_vector', 'down_vector', 'front_vector'),
                       vectors.mean(0).tolist())),
            'maev': float(vectors.mean())},
        'ranges': {axis: range_table(result, column).to_dict('records')
                   for column, axis in enumerate(AXES)},
        'coverage': coverage_table(result).to_dict('records'),
        'rows': [{'name': name, 'predicted': predicted, 'true': true,
                  'spread': spread}
                 for name, predicted, true, spread in zip(
                     names, result.predicted.tolist(), result.true.tolist(),
                     result.bin_std.tolist())]}


def size_of(state):
    """Returns what a state dict says of a network's cost.

    Returns:
        A dict: its number of parameters, layers that only old releases have
        included, and the bytes of all its tensors.
    """
    counted = ('running_mean', 'running_var', 'num_batches_tracked')
    return {'parameters': sum(value.numel() for key, value in state.items()
                              if not key.endswith(counted)),
            'bytes': sum(value.numel() * value.element_size()
                         for value in state.values())}


# ----------------------------------------------------------- BIWI, by sequence

def by_sequence(result, names, frames):
    """Returns what is reported of BIWI beside the test line.

    Args:
        result: an `engine.Evaluation`.
        names: of all images, by its indices.
        frames: the numbers of frames in the folder, by sequence.

    Returns:
        A dict of numbers: sequences, frames tested, and those of these
        sequences in the folder; the mean rotation error; and after alignment
        by sequence (see `pose.aligned`) the mean errors of yaw, pitch and
        roll, their mean, and the mean rotation error.
    """
    sequences = np.array([os.path.basename(os.path.dirname(names[index]))
                          for index in result.indices])
    turned = np.empty_like(result.predicted, float)
    for each in set(sequences):
        inside = sequences == each
        turned[inside] = aligned(result.predicted[inside],
                                 result.true[inside])
    errors = np.abs(turned - result.true).mean(0)
    plain, after = (float(rotation_errors(angles, result.true)[0].mean())
                    for angles in (result.predicted, turned))
    return {'sequences': len(set(sequences)), 'tested': len(sequences),
            'frames': sum(frames[each] for each in set(sequences)),
            'rotation': plain,
            **dict(zip(ALIGNED, [*errors.tolist(), float(errors.mean())])),
            'aligned_rotation': after}


def print_sequences(result, annotations):
    """Prints what `by_sequence` finds of BIWI, of other data nothing.

    Args:
        result: an `engine.Evaluation`.
        annotations: of its images.

    Returns:
        A dict for the report: 'BIWI' to what was found, or nothing.
    """
    if not annotations.frames:
        return {}
    found = by_sequence(result, annotations.names, annotations.frames)
    left_out = found['frames'] - found['tested']
    angles = ', '.join(f'{name}: {found[key]:.4f}' for name, key in zip(
        ('Yaw', 'Pitch', 'Roll', 'MAE'), ALIGNED))
    print(f'BIWI: {found["tested"]:,} of {found["frames"]:,} frames of '
          f'{found["sequences"]} sequences, {left_out:,} left out. Rotation: '
          f'{found["rotation"]:.4f}')
    print(f'Aligned by sequence: {angles}, Rotation: '
          f'{found["aligned_rotation"]:.4f}')
    return {'BIWI': found}
