"""What a test says and writes: lines, a CSV, pictures, and a report.

A report is report.json and report.html: errors with intervals and by range,
the rotation's, curves, the worst images, the checkpoint's origin.
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


def present(results, checkpoint, options, image_size):
    """Prints a test's results and writes the files that are asked for.

    Of the results, see `looks.evaluate_looks`, the last look's is written.
    Raises RunError if a file cannot be written, or an answer is no number.
    """
    for look, (result, data) in enumerate(results, 1):
        if look in (1, len(results)):
            print_result(result, look)
    annotations = data.annotations
    if options.predictions:
        write_predictions(options.predictions, result, annotations.names)
    if options.save_viz:
        save_pictures('output/images', result, data, options.cube)
    lost = ~np.isfinite(result.predicted).all(1)
    if lost.any():
        name = annotations.names[result.indices[lost.argmax()]]
        raise RunError(f'{options.snapshot}: {lost.sum()} of {len(lost)} '
                       f'answers are no numbers, the first is that on {name}')
    more = print_sequences(result, annotations)
    if options.report:
        write_report(options.report, result, data, checkpoint, {
            'checkpoint': options.snapshot, 'sha256': digest(options.snapshot),
            'data_dir': options.data_dir,
            'filename_list': options.filename_list or options.labels,
            'landmarks': options.landmarks, 'image_size': image_size,
            'flip': options.flip, 'looks': options.looks,
            'images': len(result.indices),
            'crop': data.protocol, 'labels': options.labels,
            'labels_sha256': annotations.table, **more})


def print_result(result, look=1):
    """Prints the test line, a table by |yaw|, and a warning if need be."""
    errors = result.errors
    if look > 1:
        print(f'Mean of {look} looks, each after the first cropped around the '
              'box found before, every other one mirrored (not the published '
              'protocol):')
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
    """Prints BIWI's errors by sequence; returns more of the protocol."""
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
    """Draws each image's predicted pose, and writes both poses below it."""
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
    """Writes report.html, a page that needs no other file, and report.json."""
    annotations = dataset.annotations
    groups = annotations.groups and [annotations.groups[index]
                                     for index in result.indices]
    report = {
        'protocol': protocol,
        'groups': len({*groups}) if groups else None,
        'network': network_size(checkpoint['model']),
        'provenance': checkpoint.get('provenance'),
        'validation': checkpoint.get('validation'),
        'axes': axis_table(result, groups).to_dict('index'),
        'rotation': rotation_summary(result),
        'ranges': {axis: range_table(result, column).to_dict('records')
                   for column, axis in enumerate(AXES)},
        'coverage': coverage_table(result).to_dict('records'),
        'rows': [{'name': annotations.names[index],
                  'group': groups and annotations.groups[index],
                  'predicted': predicted, 'true': true, 'spread': spread}
                 for index, predicted, true, spread in zip(
                     result.indices, result.predicted.tolist(),
                     result.true.tolist(), result.bin_std.tolist())]}
    # JSON has no NaN: null takes its place.
    numbers = json.loads(json.dumps(report, default=str),
                         parse_constant=lambda _: None)
    for name, text in (('report.html', report_page(report, result, dataset)),
                       ('report.json', json.dumps(numbers, indent=1))):
        with atomic(os.path.join(folder, name)) as path, open(
                path, 'w', encoding='utf-8',
                errors='backslashreplace') as file:
            file.write(text)


def network_size(state):
    """Returns the number of parameters in a state dict, and its bytes."""
    buffers = ('running_mean', 'running_var', 'num_batches_tracked')
    return {'parameters': sum(value.numel() for key, value in state.items()
                              if not key.endswith(buffers)),
            'bytes': sum(value.numel() * value.element_size()
                         for value in state.values())}
