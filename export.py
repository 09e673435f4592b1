"""Writes a network for other runtimes: as ONNX, or as a torch.export program.

    python export.py model.onnx
    python export.py model.onnx --int8 --data_dir data/300W_LP
    python export.py model.pt2 --snapshot checkpoints/resnet.pkl

The name's ending, .onnx or .pt2, says which.  The network takes uint8 RGB
pixels (N, H, W, 3), in batches of any size, and gives logits (N, 3, 66),
angles (N, 3) and `spread` (N,), the bins' standard deviation, in degrees; and,
if it finds them, the faces' boxes (N, 4): x_min, y_min, x_max, y_max as shares
of the crop's side.  The angles are checked against PyTorch to 0.001 degrees.
An .onnx file's metadata say what it takes, too.  Writing ONNX needs onnx,
onnxruntime and onnxscript; tools/README.md says what --int8, whose ranges come
from training crops of --data_dir, and --fp16 cost and save.

An .onnx file opens in onnxruntime 1.15, OpenVINO 2025.0, OpenCV 4.9 (cv2.dnn)
and what came since.  OpenVINO computes in bfloat16 where the CPU has it, 0.1
degrees apart on average and 1.9 at most, on 1,955 faces; float32 is its
{'INFERENCE_PRECISION_HINT': 'f32'}.

What the network must be given is the test's crop around a face box (brows to
chin, as in demo.py's poses.csv); headpose makes it without PyTorch:

    import numpy as np, onnxruntime
    from PIL import Image, ImageOps
    from headpose.geometry.crop import protocol_crop

    session = onnxruntime.InferenceSession('model.onnx')
    size = int(session.get_modelmeta().custom_metadata_map['image_size'])
    picture = ImageOps.exif_transpose(Image.open('photo.jpg')).convert('RGB')
    crop = protocol_crop(picture, box=(121, 184, 324, 385), size=size)
    angles, = session.run(['angles'], {'images': np.array(crop)[None]})

`size` is the side of the images that the network was trained on; with the
boxes, headpose.geometry.crop.next_box frames a second look.  In words,
for a box of width w and height h: 0.4 w more on the left, 0.56 w on the right,
0.4 h above, 0.168 h below, cut to whole pixels and black beyond the picture,
which stands upright as its EXIF says; the shorter side resized to `size`,
bilinear with antialiasing; the middle square.
"""
import sys

from headpose.errors import run_main
from headpose.geometry.pose import AXES
from headpose.training.options import (DATASETS, LABELS, SHIPPED, check_boxes,
                                       name_list, plain_parser)

CALIBRATION = 320  # training crops that show the ranges of values
# For an .onnx file's metadata: the docstring's last sentence, and pose.py's
# first.
MARGINS = '0.4 w left, 0.56 w right, 0.4 h above, 0.168 h below'
CONVENTION = ('degrees, signs of 300W-LP: positive yaw turns the face towards '
              'the left of the image, positive pitch lifts the chin, positive '
              'roll tilts the head clockwise as we see it')
INPUT = 'uint8 RGB (N, H, W, 3)'


def parse_options(argv=None):
    """Parses the command line."""
    parser = plain_parser(__doc__)
    add = parser.add_argument
    add('path', metavar='FILE', help='.onnx or .pt2 file to write')
    add('--snapshot', default=SHIPPED, metavar='FILE',
        help='checkpoint of either network, or a bare state dict; default: '
        + SHIPPED)
    precision = parser.add_mutually_exclusive_group()
    for name, text in (('int8', 'smaller and faster: 8-bit convolutions, '
                        'their ranges measured on training crops'),
                       ('fp16', 'half the size: 16-bit floats')):
        precision.add_argument(
            f'--{name}', dest='precision', action='store_const', const=name,
            default='float32', help=f'.onnx: {text}')
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
    if not options.path.endswith(('.onnx', '.pt2')):
        parser.error(f'{options.path}: the name ends in none of .onnx, .pt2')
    if options.precision != 'float32' and options.path.endswith('.pt2'):
        parser.error(f'argument --{options.precision}: is for .onnx files')
    name_list(options)
    return options


def main(argv=None):
    """Runs the command; `argv` is a list of options, for tests."""
    options = parse_options(argv)

    import numpy as np  # slow imports
    import torch

    from datasets import PoseDataset, read_annotations
    from headpose.geometry.augment import Augmentation
    from headpose.networks.portable import write
    from headpose.training.checkpoint import load_network, trained_size
    from shufflenet import rebuild

    model, checkpoint = load_network(options.snapshot, rebuild)
    size, batches = trained_size(checkpoint), None
    if options.precision == 'int8':
        crops = PoseDataset(read_annotations(
            options.data_dir, options.filename_list, labels=options.labels,
            dataset=options.dataset), size, Augmentation())
        order = np.random.default_rng(0).permutation(len(crops))
        # Of few images each is taken several times, changed anew.
        keys = [divmod(number, len(crops)) for number in range(CALIBRATION)]
        batches = torch.from_numpy(np.stack([
            crops[epoch, order[place]][0] for epoch, place in keys])).split(8)
    angles = ', '.join(AXES)
    apart = write(
        options.path, model, size, options.precision, batches,
        {'image_size': str(size), 'margins': MARGINS, 'angles': angles,
         'input': INPUT, 'convention': CONVENTION})
    print(f'{options.path}: input images: {INPUT}, H = W = {size}; outputs '
          f'logits (N, 3, 66), angles (N, 3): {angles} and spread (N,) in '
          'degrees' + ', boxes (N, 4)' * bool(model.box_head)
          + f'; within {apart:.0e} degrees of PyTorch'
          + ' on average' * (options.precision == 'int8'))


if __name__ == '__main__':
    sys.exit(run_main(main))
