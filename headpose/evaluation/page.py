"""The page of a report: tables, plots and the worst images, in one file."""
import base64
import io
import json
import os

import cv2
import jinja2
import numpy as np
from matplotlib.figure import Figure

from headpose.evaluation.metrics import COLUMNS, with_mean
from headpose.geometry.draw import draw_pose
from headpose.geometry.pose import AXES

WORST, TILE = 12, 220  # pictures on a page, and their size in pixels


def report_page(report, result, dataset):
    """Returns report.html; Args: see `report.write_report`."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(os.path.dirname(__file__)),
        autoescape=True)
    templates.filters['cell'] = cell
    plots = io.BytesIO()
    plot_result(result).savefig(plots, dpi=80)
    return templates.get_template('report.html').render(
        report, axes=[{'': name, **row}
                      for name, row in report['axes'].items()],
        plots=base64.b64encode(plots.getvalue()).decode(),
        worst=worst_faces(result, dataset),
        origin={key: json.dumps(report[key], indent=1, default=str)
                for key in ('provenance', 'validation') if report[key]})


def cell(value):
    """Returns a value as a table shows it."""
    if isinstance(value, float):
        return '-' if np.isnan(value) else f'{value:.2f}'
    return str(value)


def draw_face(dataset, index, angles, cube=False):
    """Reads an image and draws a pose onto its face; see `draw.draw_pose`.

    Returns the image, and of the face's box centre and half its larger side.
    """
    image = np.ascontiguousarray(dataset.image(index)[..., ::-1])  # BGR
    box = dataset.annotations.boxes[index].reshape(2, 2)
    center, size = box.mean(0), np.ptp(box, axis=0).max() / 2
    draw_pose(image, angles, center, size, cube)
    return image, center, size


def worst_faces(result, dataset):
    """Yields the `WORST` images: JPEG, name, error and both poses, texts."""
    errors = result.errors.mean(1)
    for row in np.argsort(-errors, kind='stable')[:WORST]:
        index = result.indices[row]
        image, center, size = draw_face(dataset, index, result.predicted[row])
        # The face, and half its size around it, fill a small square.
        scale = TILE / max(4 * size, 1)
        move = np.column_stack([np.eye(2) * scale, TILE / 2 - center * scale])
        tile = cv2.warpAffine(image, move, (TILE, TILE))
        jpeg = cv2.imencode('.jpg', tile)[1]
        yield {'jpeg': base64.b64encode(jpeg).decode(),
               'name': dataset.annotations.names[index],
               'error': f'{errors[row]:.1f}',
               'predicted': '%.1f, %.1f, %.1f' % tuple(result.predicted[row]),
               'true': '%.1f, %.1f, %.1f' % tuple(result.true[row])}


def plot_result(result):
    """Returns a figure: errors by share, certainty and yaw; each axis."""
    figure = Figure((15, 9), layout='constrained')
    (curves, coverage, yaw), scatter = figure.subplots(2, 3)
    errors = with_mean(result.errors)
    share = np.linspace(0, 100, len(errors) + 1)
    for values, label in zip(errors.T, COLUMNS):
        curves.step([0, *np.sort(values)], share, where='post', label=label)
    # The few worst errors would squeeze all others to the left.
    curves.set(title='images with at most this error', xlabel='degrees',
               ylabel='% of images', xlim=(0, np.quantile(errors, 0.98) + 1))
    curves.legend()
    means = errors[np.argsort(result.bin_std, kind='stable'), 3]
    coverage.plot(share[1:], np.cumsum(means) / np.arange(1, len(means) + 1))
    coverage.set(title='error of the images with the least spread',
                 xlabel='% of images kept', ylabel='MAE, degrees',
                 ylim=(0, None))
    dots = {'s': 14, 'alpha': 0.6, 'linewidths': 0}
    yaw.scatter(result.true[:, 0], errors[:, 3], **dots)
    yaw.set(title='mean of the three errors', xlabel='true yaw, degrees',
            ylabel='degrees', xlim=(-100, 100))
    for column, axes in enumerate(scatter):
        axes.axline((0, 0), slope=1, color='gray', linewidth=1)
        axes.scatter(result.true[:, column], result.predicted[:, column],
                     **dots)
        axes.set(title=AXES[column], xlabel='true, degrees',
                 ylabel='predicted, degrees', aspect='equal',
                 xlim=(-100, 100), ylim=(-100, 100))
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    return figure
