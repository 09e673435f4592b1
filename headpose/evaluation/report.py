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
from headpose.evaluation.metrics import (axis_table, coverage_table,
                                         range_table, rotation_summary,
                                         sequence_summary)
from headpose.evaluation.page import draw_face, report_page
from headpose.files import atomic, digest
from headpose.geometry.pose import AXES, angles_text


def present(result, data, checkpoint, snapshot, filename_list, landmarks,
            image_size, flip=False, predictions=None, save_viz=False,
            cube=False, report=None, labels=None):
    """Prints a test's result and writes the files that are asked for.

    Args:
        result: an `engine.Evaluation`.
        data: the `datasets.PoseDataset` that it is of.
        checkpoint: the tested one, see `checkpoint.read_checkpoint`.
        snapshot: its path.
        filename_list, labels, landmarks, image_size: how the images were
            chosen and cropped, see `datasets.evaluation_loader`.
        flip: whether answers are means with those on mirror images.
        predictions: path of a CSV of all answers.
        save_viz: draw them into output/images; `cube` draws cubes.
        report: folder for report.html and report.json.

    Raises:
        RunError: a file cannot be written, or an answer is not a number.
    """
    print_result(result)
    annotations = data.annotations
    if predictions:
        write_predictions(predictions, result, annotations.names)
    if save_viz:
        save_pictures('output/images', result, data, cube)
    lost = ~np.isfinite(result.predicted).all(1)
    if lost.any():
        name = annotations.names[result.indices[lost.argmax()]]
        raise RunError(f'{snapshot}: {lost.sum()} of {len(lost)} answers are '
                       f'no numbers, the first is that on {name}')
    more = print_sequences(result, annotations)
    if report:
        write_report(report, result, data, checkpoint, {
            'checkpoint': str(snapshot), 'sha256': digest(snapshot),
            'data_dir': str(data.annotations.data_dir),
            'filename_list': str(filename_list or labels),
            'landmarks': landmarks, 'image_size': image_size, 'flip': flip,
            'images': len(result.indices), 'crop': data.protocol,
            'labels': labels and str(labels),
            'labels_sha256': annotations.table, **more})


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


def print_sequences(result, annotations):
    """Prints the errors by sequence if the images are BIWI's.

    Returns:
        A dict for the report's protocol: 'BIWI' to `sequence_summary`, or
        nothing.
    """
    if not annotations.frames:
        return {}
    found = sequence_summary(result, annotations.names, annotations.frames)
    angles = ', '.join(f'{name}: {found[f"aligned_{name.lower()}"]:.4f}'
                       for name in ('Yaw', 'Pitch', 'Roll', 'MAE'))
    print(f'BIWI: {found["tested"]:,} of {found["frames"]:,} frames of '
          f'{found["sequences"]} sequences, '
          f'{found["frames"] - found["tested"]:,} left out. Rotation: '
          f'{found["rotation"]:.4f}')
    print(f'Aligned by sequence: {angles}, Rotation: '
          f'{found["aligned_rotation"]:.4f}')
    return {'BIWI': found}


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
        dataset: a `datasets.PoseDataset`.
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
            # cv2.imwrite ends the process at a name that is no UTF-8.
            cv2.imencode('.jpg', image)[1].tofile(path)


def write_report(folder, result, dataset, checkpoint, protocol):
    """Writes report.html, a page that needs no other file, and report.json.

    Args:
        folder: of both files.
        result, checkpoint: see `present`.
        dataset: a `datasets.PoseDataset`.
        protocol: plain dict: the tested network, the images, the crops.

    Raises:
        RunError: a file cannot be written.
    """
    names = [dataset.annotations.names[i] for i in result.indices]
    report = report_content(result, names, checkpoint, protocol)
    # JSON has no NaN; it becomes null.
    numbers = json.loads(json.dumps(report, default=str),
                         parse_constant=lambda _: None)
    page = report_page(report, result, dataset)
    for name, text in (('report.html', page),
                       ('report.json', json.dumps(numbers, indent=1))):
        with atomic(os.path.join(folder, name)) as path, open(
                path, 'w', encoding='utf-8',
                errors='backslashreplace') as file:
            file.write(text)


def report_content(result, names, checkpoint, protocol):
    """Returns what report.json holds, as plain types; NaN where no number.

    Args:
        result: an `engine.Evaluation`.
        names: of the images, in its order.
        checkpoint, protocol: see `write_report`.
    """
    return {
        'protocol': protocol,
        'network': network_size(checkpoint['model']),
        'provenance': checkpoint.get('provenance'),
        'validation': checkpoint.get('validation'),
        'axes': axis_table(result).to_dict('index'),
        'rotation': rotation_summary(result),
        'ranges': {axis: range_table(result, column).to_dict('records')
                   for column, axis in enumerate(AXES)},
        'coverage': coverage_table(result).to_dict('records'),
        'rows': [{'name': name, 'predicted': predicted, 'true': true,
                  'spread': spread}
                 for name, predicted, true, spread in zip(
                     names, result.predicted.tolist(), result.true.tolist(),
                     result.bin_std.tolist())]}


def network_size(state):
    """Returns the number of parameters in a state dict, and its bytes."""
    buffers = ('running_mean', 'running_var', 'num_batches_tracked')
    return {'parameters': sum(value.numel() for key, value in state.items()
                              if not key.endswith(buffers)),
            'bytes': sum(value.numel() * value.element_size()
                         for value in state.values())}
