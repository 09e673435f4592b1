"""The command lines of the tools: report.py, demo.py, export.py.

As in options.py, nothing here imports PyTorch.
"""
import os

from options import (DATASETS, LABELS, SHIPPED, check_boxes, new_parser,
                     number, plain_parser)


def box(text):
    """Parses --box."""
    x_min, y_min, x_max, y_max = map(float, text.split(','))
    if not (x_max - x_min >= 8 and y_max - y_min >= 8):
        raise ValueError
    return x_min, y_min, x_max, y_max


# For argparse's message.
box.__name__ = 'box x_min,y_min,x_max,y_max of at least 8 pixels'


def parse_report(description, argv=None):
    """Parses the command line of report.py."""
    parser = plain_parser(description)
    commands = parser.add_subparsers(dest='command', required=True)
    compare = commands.add_parser(
        'compare', help='say which of two reports is better on their common '
        'images')
    compare.add_argument('first', metavar='A', help='folder of --report, or '
                         'its report.json')
    compare.add_argument('second', metavar='B')
    tables = commands.add_parser(
        'tables', help="print the document's two tables with these reports'")
    tables.add_argument('reports', nargs='+', metavar='REPORT')
    return parser.parse_args(argv)


def parse_demo(description, argv=None):
    """Parses demo.py's command line; returns the options."""
    parser = new_parser(description)
    add = parser.add_argument
    add('inputs', nargs='+', metavar='INPUT',
        help='picture, folder of pictures, video, address (http, rtsp), or '
        "number or device of a camera")
    add('--recursive', action='store_true',
        help='look for pictures in subfolders, too')
    add('--snapshot', default=SHIPPED, metavar='FILE',
        help='checkpoint of either network, bare state dict, or .onnx file '
        'of export.py, which needs no PyTorch; default: ' + SHIPPED)
    add('--image_size', type=number(int, 64), metavar='PIXELS',
        help='default: what the network was trained at, or 224')
    add('--flip', action='store_true',
        help='give the mean rotation of each crop and of its mirror image')
    add('--output', default='output/demo', metavar='DIR')
    add('--overwrite', action='store_true',
        help="replace an earlier run's results in DIR")
    add('--detector', metavar='yunet|cascades|FILE.onnx',
        help="OpenCV's YuNet, fetched once; its cascades; or YuNet's file; "
        'default: yunet, or the cascades where it cannot be fetched')
    add('--min_score', type=number(float, 0, 1), default=0.6,
        metavar='SCORE', help='the least score of a face that YuNet finds; '
        'default: 0.6')
    add('--box', type=box, metavar='X0,Y0,X1,Y1',
        help="no detection: the face's box, brows to chin, in pixels (with a "
        'minus: --box=-5,...)')
    add('--whole', action='store_true',
        help="no detection: each picture is a whole crop of one head, as "
        "loose as the test's")
    add('--cube', action='store_true', help='draw cubes instead of axes')
    add('--json', action='store_true', help='poses.json, not poses.csv')
    add('--matrix', action='store_true',
        help='rows have the rotation matrix, too')
    add('--smooth', type=number(float, 0, 0.99), default=0.0,
        metavar='WEIGHT', help="video: weight of the frames before in a "
        "face's rotation; default: 0")
    add('--no_window', action='store_true', help='camera: write video only')
    return parser.parse_args(argv)


def parse_export(description, argv=None):
    """Parses export.py's command line; returns the options."""
    parser = plain_parser(description)
    add = parser.add_argument
    add('path', metavar='FILE', help='.onnx or .pt2 file to write')
    add('--snapshot', default=SHIPPED, metavar='FILE',
        help='checkpoint of either network, or a bare state dict; default: '
        + SHIPPED)
    add('--raw', action='store_true',
        help='take uint8 RGB pixels (N, H, W, 3); normalisation inside')
    precision = parser.add_mutually_exclusive_group()
    for name, what in (('int8', 'smaller and faster: 8-bit convolutions, '
                        'their ranges measured on training crops'),
                       ('fp16', 'half the size: 16-bit floats')):
        precision.add_argument(
            f'--{name}', dest='precision', action='store_const', const=name,
            default='float32', help=f'.onnx: {what}')
    add('--data_dir', default='./data/300W_LP/', metavar='DIR',
        help="--int8: the training crops' data set; default: "
        './data/300W_LP/')
    add('--filename_list', metavar='FILE',
        help='--int8: default: filename_list.txt in the data folder; with '
        '--labels, all rows')
    add('--labels', **LABELS)
    add('--dataset', choices=list(DATASETS), default='300W_LP',
        help='--int8: BIWI for its poses, with boxes by --labels')
    options = parser.parse_args(argv)
    check_boxes(parser, options)
    if options.precision != 'float32' and options.path.endswith('.pt2'):
        parser.error(f'argument --{options.precision}: is for .onnx files')
    if options.filename_list is None and not options.labels:
        options.filename_list = os.path.join(options.data_dir,
                                             'filename_list.txt')
    return options
