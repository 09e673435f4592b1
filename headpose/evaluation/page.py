"""The page of a report: tables, plots and the worst images, in one file."""
import base64
import html
import io
import json

import cv2
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from headpose.geometry.draw import draw_pose
from headpose.geometry.pose import AXES

WORST, TILE = 12, 220  # pictures on a page, and their size in pixels
PAGE_START = '''<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><title>Head pose: the test</title>
<style>
body { font: 15px sans-serif; max-width: 1000px; margin: 2em auto; }
table { border-collapse: collapse; margin-bottom: 1em; }
th, td { padding: 2px 10px; border-bottom: 1px solid #ddd; }
th { text-align: left; vertical-align: top; }
td { white-space: pre-wrap; overflow-wrap: anywhere; }
img { max-width: 100%; }
figure { display: inline-block; width: 220px; margin: 0 12px 12px 0;
         overflow-wrap: anywhere; font-size: 13px; vertical-align: top; }
</style>
<h1>Head pose: the test</h1>
'''


def draw_face(dataset, index, angles, cube=False):
    """Reads an image and draws a pose onto its face; see `draw.draw_pose`.

    Returns:
        The image, a uint8 array (H, W, 3), BGR; the centre (x, y) of the
        face's box and half its larger side, pixels.
    """
    # Not imread: a name that is no UTF-8 ends the process in it.
    image = cv2.imdecode(np.fromfile(dataset.path(index), np.uint8),
                         cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    box = dataset.annotations.boxes[index].reshape(2, 2)
    center, size = box.mean(0), np.ptp(box, axis=0).max() / 2
    draw_pose(image, angles, center, size, cube)
    return image, center, size


def plot_result(result):
    """Returns a figure: errors by share, spread and yaw; each axis."""
    figure = Figure((15, 9), layout='constrained')
    (curves, coverage, yaw), scatter = figure.subplots(2, 3)
    share = np.linspace(0, 100, len(result.errors) + 1)
    errors = np.column_stack([result.errors, result.errors.mean(1)])
    for values, label in zip(errors.T, (*AXES, 'mean of the three')):
        curves.step([0, *np.sort(values)], share, where='post', label=label)
    # The few worst errors would squeeze all others to the left.
    curves.set(title='images with at most this error', xlabel='degrees',
               ylabel='% of images', xlim=(0, np.quantile(errors, 0.98) + 1))
    curves.legend()
    means = result.errors.mean(1)[np.argsort(result.bin_std, kind='stable')]
    coverage.plot(share[1:], np.cumsum(means) / np.arange(1, len(means) + 1))
    coverage.set(title='error of the images with the least spread',
                 xlabel='% of images kept', ylabel='MAE, degrees',
                 ylim=(0, None))
    yaw.scatter(result.true[:, 0], result.errors.mean(1), s=14, alpha=0.6,
                linewidths=0)
    yaw.set(title='mean of the three errors', xlabel='true yaw, degrees',
            ylabel='degrees', xlim=(-100, 100))
    for column, axes in enumerate(scatter):
        axes.axline((0, 0), slope=1, color='gray', linewidth=1)
        axes.scatter(result.true[:, column], result.predicted[:, column],
                     s=14, alpha=0.6, linewidths=0)
        axes.set(title=AXES[column], xlabel='true, degrees',
                 ylabel='predicted, degrees', aspect='equal',
                 xlim=(-100, 100), ylim=(-100, 100))
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    return figure


def picture(kind, data):
    """Returns an HTML image that holds its own bytes, 'png' or 'jpeg'."""
    return (f'<img alt="" src="data:image/{kind};base64,'
            f'{base64.b64encode(data).decode()}">')


def gallery(result, dataset):
    """Returns HTML of the `WORST` images: faces, names and both poses."""
    errors = result.errors.mean(1)
    parts = []
    for row in np.argsort(-errors, kind='stable')[:WORST]:
        index = result.indices[row]
        image, center, size = draw_face(dataset, index, result.predicted[row])
        # The face, and half its size around it, fill a small square.
        scale = TILE / max(4 * size, 1)
        move = np.column_stack([np.eye(2) * scale, TILE / 2 - center * scale])
        tile = cv2.warpAffine(image, move, (TILE, TILE))
        jpeg = cv2.imencode('.jpg', tile)[1].tobytes()
        lines = [html.escape(dataset.annotations.names[index]),
                 f'error {errors[row]:.1f}'] + [
                     f'{label} %.1f, %.1f, %.1f' % tuple(angles[row])
                     for label, angles in (('predicted', result.predicted),
                                           ('true', result.true))]
        parts.append(f'<figure>{picture("jpeg", jpeg)}<figcaption>'
                     f'{"<br>".join(lines)}</figcaption></figure>')
    return '\n'.join(parts)


def facts(values):
    """Returns an HTML table of a dict's names and values."""
    rows = [f'<tr><th>{html.escape(name)}</th><td>'
            + html.escape(f'{value:.2f}' if isinstance(value, float)
                          else str(value)) + '</td></tr>'
            for name, value in values.items()]
    return f'<table>{"".join(rows)}</table>'


def report_page(report, result, dataset):
    """Returns report.html.

    Args:
        report: see `report.report_content`.
        result: an `engine.Evaluation`.
        dataset: a `datasets.PoseDataset`.
    """
    style = {'na_rep': '-', 'float_format': '%.2f', 'border': 0}
    plots = io.BytesIO()
    plot_result(result).savefig(plots, dpi=80)
    axes = pd.DataFrame.from_dict(report['axes'], orient='index')
    origin = {key: json.dumps(report[key], indent=1, default=str)
              for key in ('provenance', 'validation') if report[key]}
    parts = [
        ('Protocol', facts(report['protocol'])),
        ('Absolute errors, with 95% bootstrap intervals, degrees',
         axes.to_html(**style)),
        ('Errors of the whole rotation, degrees', facts(report['rotation'])),
        ('Mean absolute errors by the size of the true angle, degrees',
         ''.join(pd.DataFrame(rows).to_html(index=False, **style)
                 for rows in report['ranges'].values())),
        ('Mean absolute error of the images that are kept, if those with the '
         'least spread of the bins are', pd.DataFrame(
             report['coverage']).to_html(index=False, **style)),
        ('Plots', picture('png', plots.getvalue())),
        ('The worst images: yaw, pitch, roll, degrees',
         gallery(result, dataset)),
        ('What the checkpoint says', facts(origin) if origin else
         '<p>a bare state dict: no provenance</p>')]
    return PAGE_START + '\n'.join(f'<h2>{title}</h2>\n{body}'
                                  for title, body in parts)
