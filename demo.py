"""Finds the heads in your own pictures and video, and draws their pose.

    python demo.py photo.jpg                     into output/demo/
    python demo.py holiday/ clip.mp4 --cube      folders and video, too
    python demo.py 0                             camera 0, in a window
    python demo.py --snapshot model.pkl x.jpg    your network, in PyTorch

Angles are in degrees: yaw, pitch, roll, with 300W-LP's signs (README.md has
a picture of them).  They are printed.  Drawn pictures, video and poses.csv
(--json: poses.json), with a row for each face, go to output/demo/ (--output)
under their inputs' names; existing files are replaced with --overwrite alone,
inputs never.  An input that cannot be used is named and skipped, and the exit
status is then 1.

A row has the input (file) and the drawn file (drawn); in video the frame, its
time (seconds) and the person (track: one number while the face is seen, and
for a second without it); the face, from left to right, as numbered in the
picture; its box, brows to chin; the detector's score; yaw, pitch, roll; the
spread of the bins' probabilities in degrees, small where the network is sure
(no interval with a known probability), and whether it is above that of 95% of
the test's faces (unsure); and the unit vector out of the face, x to the right,
y down, z to us.  Near 90 degrees of yaw pitch and roll turn
about the same axis and may jump together: use the vector, or --matrix, there.
A picture without a face has a row without angles.

Pictures are JPEG, PNG, WebP, TIFF, BMP, JPEG 2000, AVIF and, with
pillow-heif, HEIC, upright as their EXIF says; animated GIF, PNG, WebP and
AVIF are video.  Video is what FFmpeg reads, files and addresses (http, https,
rtsp); the drawn video is H.264 in MP4, with the frames' own times and, where
an MP4 can hold it, the sound.  Ctrl-C ends the run, and rows and video are
whole; rows are written as they come, so that nothing that ends the run takes
them away.

The network is checkpoints/shufflenet_faces.pkl, exported to headpose/models/
so that it runs on the CPU without PyTorch; checkpoints/README.md says how it
was trained, how well, and under which terms.  Faces are found by OpenCV's
YuNet, at the scales and turns that a picture needs: on re-crops of AFLW2000's
images 1,973 of 1,983 (tools/README.md has more figures).  In video they are
followed from frame to frame, and searched for everywhere once a second.
"""
import sys

from headpose.errors import InputError, run_main, signals_noted
from headpose.files import printable
from headpose.training.options import new_parser, number


def box(text):
    """Parses --box."""
    x_min, y_min, x_max, y_max = map(float, text.split(','))
    if not (x_max - x_min >= 8 and y_max - y_min >= 8):
        raise ValueError
    return x_min, y_min, x_max, y_max


def smoothing(text):
    """Parses --smooth."""
    return text if text == 'auto' else number(float, 0, 0.99)(text)


# For argparse's message.
smoothing.__name__ = "'auto', or float of at least 0 and at most 0.99"
box.__name__ = 'box x_min,y_min,x_max,y_max of at least 8 pixels'


def parse_demo(argv=None):
    """Parses the command line; returns the options."""
    parser = new_parser(__doc__)
    add = parser.add_argument
    add('inputs', nargs='+', metavar='INPUT',
        help='picture, folder of pictures, video, address (http, rtsp), or '
        'number or device of a camera')
    add('--recursive', action='store_true', help='search subfolders, too')
    add('--snapshot', metavar='FILE',
        help='.onnx file of export.py; or checkpoint of either network, or '
        'bare state dict, which need PyTorch and use --gpu; default: '
        'headpose/models/shufflenet_faces.onnx')
    add('--image_size', type=number(int, 64), metavar='PIXELS',
        help='default: what the network was trained at, or 224')
    add('--flip', action='store_true',
        help='give the mean rotation of each crop and of its mirror image')
    add('--looks', type=number(int, 1), default=3, metavar='N',
        help='give the mean of N answers, each after the first of a crop '
        'around the face that the network found before, every other one '
        'mirrored (a network that finds none looks once); default: 3')
    add('--output', default='output/demo', metavar='DIR')
    add('--overwrite', action='store_true', help='replace existing files')
    add('--detector', metavar='FILE.onnx', help='another YuNet')
    add('--min_score', type=number(float, 0, 1), default=0.6,
        metavar='SCORE', help='the least score of a face; default: 0.6')
    add('--box', type=box, metavar='X0,Y0,X1,Y1',
        help="no detection: the face's box, brows to chin, in pixels (with a "
        'minus: --box=-5,...)')
    add('--whole', action='store_true',
        help='no detection: each picture is a whole crop of one head, as '
        "loose as the test's")
    add('--cube', action='store_true', help='draw cubes instead of axes')
    add('--json', action='store_true',
        help='poses.json (JSON Lines), not poses.csv')
    add('--matrix', action='store_true',
        help='rows have the rotation matrix, too, row by row')
    add('--smooth', type=smoothing, metavar='WEIGHT',
        help='video: steady the rotations by this weight of the frames '
        'before; auto: more while a head rests than while it turns; default: '
        "auto in a camera's window, else 0")
    add('--every_frame', action='store_true',
        help='video: look for faces everywhere in each frame; by default '
        'they are followed, and searched for once a second')
    add('--fps', type=number(float, 1e-3, 1e5), metavar='RATE',
        help='frame rate of films that have none, as raw H.264; default: 25')
    add('--no_window', action='store_true',
        help='camera: write video only; the window is closed by q')
    return parser.parse_args(argv)


def load_backend(snapshot=None, gpu=-1, image_size=None):
    """Returns the network of an .onnx file, or of a checkpoint.

    PyTorch, which is optional here and takes seconds, is imported for
    checkpoints alone; an .onnx file runs on the CPU.
    """
    from headpose.inference.backends import (NETWORK, OnnxNetwork,
                                             TorchNetwork)

    snapshot = snapshot or NETWORK
    if snapshot.lower().endswith('.onnx'):
        return OnnxNetwork(snapshot, image_size)
    try:
        from headpose.networks.fusion import for_inference
        from headpose.training.checkpoint import crop_size, load_network
        from shufflenet import rebuild
        from utils import init_process
    except ImportError as error:
        raise InputError(f'{printable(snapshot)}: a checkpoint needs PyTorch '
                         f'({error}); an .onnx file of export.py does not'
                         ) from None
    device = init_process(gpu)
    model, content = load_network(snapshot, rebuild)
    return TorchNetwork(for_inference(model.to(device)),
                        crop_size(snapshot, content, image_size))


def main(argv=None):
    """Runs the command; `argv` is a list of options, for tests."""
    options = parse_demo(argv)

    from tqdm import tqdm

    from headpose.inference.detector import YUNET, make_detector
    from headpose.inference.estimator import Estimator
    from headpose.inference.inputs import find_inputs
    from headpose.inference.output import OutputPaths, PoseTable
    from headpose.inference.pipeline import Pipeline

    found, bad = find_inputs(options.inputs, options.recursive,
                             options.output)
    for message in bad:
        print(message, file=sys.stderr)
    if found:
        table = 'poses.json' if options.json else 'poses.csv'
        paths = OutputPaths(options.output, found, table, options.overwrite)
        detector = make_detector(
            options.detector or YUNET, box=options.box, whole=options.whole,
            min_score=options.min_score)
        network = load_backend(options.snapshot, options.gpu,
                               options.image_size)
        with (signals_noted() as received,
              PoseTable(paths.table, matrix=options.matrix) as table):
            pipeline = Pipeline(
                Estimator(network, detector, flip=options.flip,
                          looks=options.looks), table,
                tqdm, cube=options.cube, smooth=options.smooth,
                every_frame=options.every_frame, fps=options.fps,
                window=not options.no_window, received=received)
            bad += pipeline.draw_all(found, paths.stems)
    if bad:
        raise InputError(f'{len(bad)} inputs could not be used, named above')


if __name__ == '__main__':
    sys.exit(run_main(main))
