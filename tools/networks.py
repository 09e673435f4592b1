"""Compares networks by their reports: error, parameters and time.

    python -m tools.networks NAME=REPORT ... --picture .github/networks.png

NAME is attnet, hopenet (without attention) or one of --backbone's, REPORT a
folder that --report wrote.  Prints a table, and draws the errors over the
time of one image.  The time is measured here, on a fresh network, exported to
.onnx and run by onnxruntime on one thread: the medians of rounds in which
the networks take turns.
"""
import argparse
import json
import os
import tempfile
import time
from statistics import median

import numpy as np
import onnxruntime
import torch
from matplotlib.figure import Figure

import export
from headpose.files import atomic
from headpose.training.options import BACKBONES
from hopenet import AttNet
from shufflenet import make_network
from tools.tables import markdown

ROUNDS = 25
NETWORKS = ('attnet', 'hopenet', *BACKBONES)


def parse(argv=None):
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('reports', nargs='+', metavar='NAME=REPORT',
                        help='a name more than once: further seeds')
    parser.add_argument('--picture', metavar='FILE')
    options = parser.parse_args(argv)
    pairs = [text.partition('=')[::2] for text in options.reports]
    for name, _ in pairs:
        if name not in NETWORKS:
            parser.error(f'{name!r} is none of ' + ', '.join(NETWORKS))
    options.reports = [(name, read(path)) for name, path in pairs]
    return options


def read(folder):
    """Returns the content of a report.json."""
    with open(os.path.join(folder, 'report.json'), encoding='utf-8') as file:
        return json.load(file)


def exported(name, size, folder):
    """Writes a fresh network for crops of size x size; returns its path."""
    torch.manual_seed(0)
    model = (make_network(name) if name in BACKBONES else
             AttNet('cbam' if name == 'attnet' else 'none'))
    snapshot, path = (os.path.join(folder, name + ending)
                      for ending in ('.pkl', '.onnx'))
    torch.save({'network': model.config, 'model': model.state_dict(),
                'options': {'image_size': size}}, snapshot)
    export.main([path, '--snapshot', snapshot])
    return path


def milliseconds(paths, size):
    """Returns the median time of one image for each network, by name."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = {name: onnxruntime.InferenceSession(path, options)
                for name, path in paths.items()}
    image = np.random.default_rng(0).integers(0, 256, (1, size, size, 3),
                                              np.uint8)
    times = {name: [] for name in sessions}
    for _ in range(ROUNDS):
        for name, session in sessions.items():
            start = time.process_time()
            session.run(['angles'], {'images': image})
            times[name].append(time.process_time() - start)
    return {name: 1000 * median(values) for name, values in times.items()}


def row(name, report, taken):
    """Returns a row of the table, strings."""
    axes = report['axes']
    mae = axes['MAE']
    errors = [f'{axes[axis]["error"]:.2f}' for axis in ('yaw', 'pitch',
                                                        'roll')]
    return [name, str(report['provenance']['options']['seed']), *errors,
            f'{mae["error"]:.2f} ({mae["low"]:.2f}–{mae["high"]:.2f})',
            f'{report["network"]["parameters"]:,}', f'{taken:.1f} ms']


def plot(reports, times):
    """Returns a figure of the errors over the times."""
    figure = Figure((7, 4), layout='constrained')
    axes = figure.subplots()
    named = set()
    for name, report in reports:
        mae = report['axes']['MAE']
        axes.errorbar(times[name], mae['error'], capsize=3, fmt='o',
                      color=f'C{NETWORKS.index(name)}', yerr=[
                          [mae['error'] - mae['low']],
                          [mae['high'] - mae['error']]])
        if name not in named:
            axes.annotate(name, (times[name], mae['error']), xytext=(6, 4),
                          textcoords='offset points', fontsize=8)
        named.add(name)
    images = reports[0][1]['protocol']['images']
    axes.set(xlabel='one image, ms (onnxruntime, one thread)', xscale='log',
             ylabel='MAE, degrees, with its 95% interval',
             title=f'{images:,} re-crops, the same images seen')
    ticks = [1, 2, 3, 5, 10, 20, 40, 80]
    axes.set_xticks(ticks, ticks)
    axes.minorticks_off()
    axes.set_xlim(0.8 * min(times.values()), 1.5 * max(times.values()))
    axes.grid(alpha=0.3)
    return figure


def main(argv=None):
    """Prints the table and draws the picture."""
    options = parse(argv)
    size, = {report['protocol']['image_size']
             for _, report in options.reports}
    with tempfile.TemporaryDirectory() as folder:
        times = milliseconds({
            name: exported(name, size, folder)
            for name in dict.fromkeys(name for name, _ in options.reports)
        }, size)
    print(markdown(
        ['network', 'seed', 'yaw', 'pitch', 'roll', 'MAE', 'parameters',
         f'one image of {size} px'],
        [row(name, report, times[name])
         for name, report in options.reports]), end='')
    if options.picture:
        with atomic(options.picture) as path:
            plot(options.reports, times).savefig(path, dpi=90)


if __name__ == '__main__':
    main()
