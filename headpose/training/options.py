"""The command lines of training, test, generator and export.

Nothing here imports PyTorch: --help and mistakes are answered at once.
"""
import argparse
import math
import os

CROP_SIZES = 32, 4096  # pixels: the least and the most of a checkpoint's
SHIPPED = 'checkpoints/shufflenet_faces.pkl'
# A network's name on the command line, and its checkpoint's.
CHECKPOINTS = {'attnet': 'checkpoints/resnet.pkl',
               'shufflenet': 'checkpoints/shufflenet.pkl'}
# Of the compact networks, torchvision's names beside the document's.
BACKBONES = ('shufflenet', 'mobilenet_v2', 'mobilenet_v3_large',
             'mobilenet_v3_small', 'efficientnet_b0', 'efficientnet_lite0')
# The spellings in use: the releases', the document's and HopeNet's options.
DATASETS = {'AFLW2000': 'AFLW2000', 'AFLW2000-3D': 'AFLW2000',
            '300W_LP': '300W_LP', '300W-LP': '300W_LP',
            'Pose_300W_LP': '300W_LP', 'BIWI': 'BIWI'}
# torchrun sets all of these; one alone is left over from another program.
TORCHRUN = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR')
LABELS = {'metavar': 'FILE.csv', 'help': "a table of your own images, boxes "
          'and angles instead of .mat files; see headpose/readers/table.py'}
LABELS_FORMAT = {'choices': ('table', 'opal23'), 'help':
                 "--labels: the sign of yaw as in this project (table), or "
                 "Opal23's, the opposite; default: as the columns' names say"}


def number(kind, low, high=math.inf):
    """Returns an argparse type: an int or float from `low` to `high`."""
    def checked(text):
        value = kind(text)
        if not low <= value <= high:  # NaN, too
            raise ValueError
        return value
    checked.__name__ = f'{kind.__name__} of at least {low}' + (
        f' and at most {high}' if high < math.inf else '')  # for its message
    return checked


def cores():
    """Returns how many cores this process may use."""
    if hasattr(os, 'sched_getaffinity'):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def torchrun_value(name, default):
    """Returns a number that torchrun set for this process, or the default."""
    if all(key in os.environ for key in TORCHRUN):
        return int(os.environ.get(name, default))
    return default


def checkpoint_path(text):
    """Parses --output, a name that ends in .pkl."""
    if not os.path.basename(text).removesuffix('.pkl') or text[-4:] != '.pkl':
        raise argparse.ArgumentTypeError(
            f'{text!r} is no name that ends in .pkl')
    return text


def sibling(output, ending):
    """Returns the path of a file that is named after the best checkpoint."""
    return str(output).removesuffix('.pkl') + ending


def plain_parser(description):
    """Returns a parser that shows a script's docstring as it is."""
    return argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter)


def new_parser(description):
    """Returns a parser with --gpu."""
    parser = plain_parser(description)
    parser.add_argument(
        '--gpu', type=number(int, -1), default=0, metavar='N',
        help='GPU to run on, -1 for the CPU; default: 0, or the CPU')
    return parser


def base_parser(description, dataset, data_dir):
    """Returns a parser of what training and testing have in common."""
    parser = new_parser(description)
    add = parser.add_argument
    add('--dataset', choices=DATASETS, default=dataset, metavar='NAME',
        help=', '.join(DATASETS))
    add('--data_dir', default=data_dir, metavar='DIR',
        help=f'folder of the data set; default: {data_dir}')
    add('--filename_list', metavar='FILE',
        help='default: filename_list.txt in the data folder; with --labels, '
        'all rows')
    add('--labels', **LABELS)
    add('--labels_format', **LABELS_FORMAT)
    add('--skip_bad', action='store_true',
        help='--labels: check all rows, and leave bad ones out')
    add('--batch_size', type=number(int, 1), default=32, metavar='N')
    add('--landmarks', choices=('visible', 'raw'), default='visible',
        help="box around AFLW2000's visible landmarks, or (the published "
        'protocol) all, with those at x=-1; default: visible')
    share = cores() // torchrun_value('LOCAL_WORLD_SIZE', 1)
    add('--workers', type=number(int, 0), metavar='N',
        default=max(1, min(8, share)),
        help='processes that load images; default: the cores, at most 8')
    return parser


def check_boxes(parser, options):
    """Ends the script where a data set has no boxes of its own."""
    if options.dataset == 'BIWI' and not options.labels:
        parser.error('argument --dataset: BIWI has no face boxes; --labels '
                     "takes Opal23's, annotations/biwi_ann.txt of "
                     'https://github.com/pcr-upm/opal23_headpose')


def training_parser(description, network):
    """Returns a parser whose defaults are the recipe that train.sh repeats."""
    parser = base_parser(description, 'Pose_300W_LP', './data/300W_LP/')
    add = parser.add_argument
    if network == 'attnet':
        add('--attention', choices=('cbam', 'none'), default='cbam',
            help="none: HopeNet's plain ResNet-50")
    else:
        add('--backbone', choices=BACKBONES, default='shufflenet',
            help='default: shufflenet')
        add('--width', type=float, choices=(0.5, 1.0, 1.5, 2.0), default=1.0,
            help="shufflenet's channel multiplier; default: 1.0")
    add('--num_epochs', type=number(int, 1), default=25, metavar='N')
    add('--lr', type=number(float, 0), default=1e-5, help='base rate')
    add('--lr_steps', type=number(int, 1), nargs='*', default=[8, 18],
        metavar='EPOCH', help='epochs after which it falls to a tenth')
    add('--head_factor', type=number(float, 0), default=5,
        help='learning rate of the heads over the base; default: 5')
    add('--one_cycle', action='store_true',
        help='instead of --lr_steps, warm up for a tenth of the epochs, then '
        'fall along a cosine, step by step')
    add('--weight_decay', type=number(float, 0), default=0.0,
        help='of weights; biases and batch norms have none')
    add('--ema', type=number(float, 0, 0.999999), default=0.0,
        metavar='DECAY', help='validate and keep an exponential moving '
        'average of the weights, e.g. 0.999')
    add('--alpha', type=number(float, 0), default=2.0,
        help='weight of the squared error in the loss')
    add('--soft_bins', action='store_true',
        help='share an angle between its two nearest bins, which decode to '
        'it; a bin alone decodes to its lower edge')
    add('--find_box', nargs='?', const='also', choices=('also', 'only'),
        help="learn the face's box, too, around which a test can crop again "
        "(--looks); only: leave all else of --pretrained's network as it is")
    add('--image_size', type=number(int, 64, CROP_SIZES[1]), default=[224],
        nargs='+', dest='image_sizes', metavar='PIXELS',
        help='side of the crops; several share the epochs equally, and the '
        'last is that of validation')
    add('--no_augment', dest='augment', action='store_false',
        help='train on the fixed crops of the test protocol')
    add('--split', choices=('photo', 'image'), default='photo',
        help='9:1 by photograph (default), or literally by image')
    add('--validation_list', metavar='FILE', help='names of images, as in a '
        'filename list: these validate, all others train, instead of 9:1')
    add('--split_seed', type=number(int, 0), default=0, metavar='N')
    add('--seed', type=number(int, 0), default=0, metavar='N',
        help='of initial weights, order and augmentation')
    add('--pretrained', default='imagenet', metavar='imagenet|none|FILE',
        help="torchvision's ImageNet weights (default), a fresh start, or a "
        "file: torchvision's, the CBAM release's, or a trained network's, "
        'which goes on with its heads')
    add('--batch_norms', choices=('frozen', 'live'), default='frozen',
        help="--pretrained's statistics: kept (default), or estimated anew")
    add('--output', type=checkpoint_path, metavar='FILE.pkl',
        help='best checkpoint; others are named after it; default: '
        + CHECKPOINTS[network] + (
            ', or after the --backbone' if network == 'shufflenet' else ''))
    add_augmentation(parser.add_argument_group(
        "augmentation beyond HopeNet's"))
    add_run_options(parser.add_argument_group('long runs'))
    add_cost_options(parser.add_argument_group('memory and speed'))
    return parser


def add_augmentation(group):
    """Adds the options of `headpose.geometry.augment`."""
    add = group.add_argument
    add('--test_framing', action='store_true',
        help="frame faces as the test's crops do, which show more around "
        "them than HopeNet's training crops")
    add('--rotate', type=number(float, 0), default=0.0, metavar='DEGREES',
        help='turn each image in its plane, by up to so much')
    for name, most, text in (
            ('--box_jitter', 0.5, 'scale the face box by up to this share of '
             'its size, and move it by up to half of that'),
            ('--color_jitter', 0.9, 'change brightness, contrast and '
             'saturation by up to this'),
            ('--low_resolution', 1, 'blur this share of the images'),
            ('--light', 1, 'change the light of this share of the images: one '
             'side darker, gamma, contrast, grey, noise'),
            ('--occlude', 1, 'put dark glasses or a patch over this share of '
             'the faces'),
            ('--weak_end', 1, 'in this last share of the epochs, do all of '
             'this but --box_jitter a quarter as much')):
        add(name, type=number(float, 0, most), default=0.0, metavar='SHARE',
            help=text)


def add_run_options(group):
    """Adds the options of long runs."""
    add = group.add_argument
    add('--resume', nargs='?', const='', metavar='FILE',
        help="go on with an interrupted run; default: the output's _last.pkl")
    add('--override', action='store_true',
        help='resume although options differ; they apply from there on')
    add('--overwrite', action='store_true',
        help="replace another run's checkpoints of the same name")
    add('--patience', type=number(int, 1), metavar='N',
        help='stop when the validation loss has not fallen for N epochs')
    add('--deterministic', action='store_true',
        help='the same result each time on a GPU, too; slower')
    add('--as_published', action='store_true',
        help="repeat the released code's accidents, listed at the start")


def add_cost_options(group):
    """Adds the options that trade memory, time and precision."""
    add = group.add_argument
    add('--amp', choices=('auto', 'bf16', 'fp16', 'off'), default='auto',
        help='mixed precision; auto: bf16 where it is faster')
    add('--channels_last', action=argparse.BooleanOptionalAction,
        default=True, help='memory layout of images')
    add('--compile', action='store_true',
        help='torch.compile: minutes at the start, then faster steps')
    add('--accumulate', type=number(int, 1), default=1, metavar='N',
        help='compute each batch in N parts, one after the other')


def evaluation_parser(description, snapshot):
    """Returns the parser of a testing script, with its default checkpoint."""
    parser = base_parser(description, 'AFLW2000', './data/AFLW2000/')
    add = parser.add_argument
    add('--snapshot', default=snapshot, metavar='FILE',
        help=f'checkpoint, or a state dict of HopeNet; default: {snapshot}')
    add('--image_size', type=number(int, 64), metavar='PIXELS',
        help='default: what the checkpoint was trained at, or 224')
    add('--protocol', choices=('ours', 'hopenet', 'fsanet'), default='ours',
        help="BIWI: crop as HopeNet's or FSA-Net's code does; default: ours")
    add('--looks', type=number(int, 1), default=1, metavar='N',
        help='give the mean of N answers, also to the files: of the '
        'published crop, and of crops around the box that a network with '
        '--find_box found before, every other one mirrored; default: 1, as '
        'published')
    add('--flip', action='store_true',
        help='give the mean rotation of each crop and of its mirror image')
    add('--predictions', metavar='FILE.csv',
        help="write each image's name, angles, true angles and spread")
    add('--save_viz', action='store_true',
        help='draw predicted axes into output/images')
    add('--cube', action='store_true', help='--save_viz draws cubes')
    add('--report', metavar='DIR',
        help='write report.html and its numbers, report.json')
    return parser


def parse_training(description, network, argv=None):
    """Parses a training script's options; `image_size` is validation's."""
    parser = training_parser(description, network)
    options = checked(parser, parser.parse_args(argv))
    backbone = getattr(options, 'backbone', network)
    if backbone != network and (options.as_published or options.width != 1):
        parser.error('argument --backbone: --as_published and --width are of '
                     f'{network} alone')
    options.output = options.output or CHECKPOINTS.get(
        backbone, f'checkpoints/{backbone}.pkl')
    if options.find_box and not options.augment:
        parser.error('argument --find_box: with --no_augment every crop has '
                     'the box in one place')
    if options.find_box == 'only' and options.pretrained in ('none',
                                                             'imagenet'):
        parser.error('argument --find_box: only needs the trained network '
                     'of --pretrained FILE')
    options.image_size = options.image_sizes[-1]
    if options.as_published:
        options.split = 'image'
    if options.resume == '':
        options.resume = sibling(options.output, '_last.pkl')
    return options


def parse_evaluation(description, network, argv=None):
    """Parses the command line of a testing script; see `parse_training`."""
    parser = evaluation_parser(description, CHECKPOINTS[network])
    options = checked(parser, parser.parse_args(argv))
    if options.protocol != 'ours' and options.dataset != 'BIWI':
        parser.error('argument --protocol: is for --dataset BIWI')
    if options.protocol != 'ours' and options.looks > 1:
        parser.error('argument --looks: more than one are for --protocol ours')
    return options


def checked(parser, options):
    """Completes and checks the options of training or testing."""
    check_boxes(parser, options)
    if options.skip_bad and not options.labels:
        parser.error('argument --skip_bad: is for --labels')
    name_list(options)
    processes = torchrun_value('WORLD_SIZE', 1)
    if options.batch_size < processes:
        parser.error(f'--batch_size {options.batch_size} is less than the '
                     f'{processes} processes that share a batch')
    return options


def name_list(options):
    """Takes the data folder's list, unless a table lists the images."""
    if options.filename_list is None and not options.labels:
        options.filename_list = os.path.join(options.data_dir,
                                             'filename_list.txt')
