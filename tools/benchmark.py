"""Times this project against what the document's code did, in one run.

    python -m tools.benchmark             a table, and output/benchmark.json
    python -m tools.benchmark --quick     seconds: only that everything runs

Both sides take turns, so that a machine whose speed drifts slows both; the
ratio is the median over the rounds' ratios.  Each part, (a) to (g), has a
process of its own, except in --quick.  The other side is
`tools.original`: two .mat files, Pillow and float pixels for each image;
float32, NCHW, gradients everywhere and full-size pooling kernels for each
step.  With HEADPOSE_REAL_DATA the images are the real 300W-LP pairs in it,
else rendered ones; and with faces68/ and AFLW2000_recropped/ in it, exports of
the shipped network are measured on these.
"""
import argparse
import contextlib
import datetime
import itertools
import json
import multiprocessing
import os
import platform
import tempfile
import time
from concurrent import futures
from functools import partial
from statistics import median

import cv2
import numpy as np
import pandas as pd
import torch
import torchvision
from torch.utils.data import DataLoader

import datasets
import export
import filename_generator
import utils
from headpose import files
from headpose.geometry.augment import Augmentation
from headpose.networks.fusion import for_inference
from headpose.readers import lists
from headpose.training import engine
from headpose.training.checkpoint import read_checkpoint, trained_size
from headpose.training.options import SHIPPED, training_parser
from headpose.training.recipe import Recipe
from hopenet import AttNet, pose_loss
from shufflenet import ShuffleNet
from tests.helpers import OneBatch
from tools import original, sample_data

try:  # tools.gpu does without
    import onnxruntime
    import openvino
except ImportError as error:
    MISSING = error.name
else:
    MISSING = None

PARTS = 'abcdefg'
EPOCH = 55_102    # images: nine tenths of 300W-LP's 61,225
PAIRS = 61_225
BATCHES = {AttNet: (32,), ShuffleNet: (32, 128)}  # on a CPU
GPU_BATCHES = (32, 128)
SIZES = (96, 224)  # pixels of the crops that other runtimes take
PRECISIONS = ('float32', 'fp16', 'int8')  # of the shipped network's exports


def letters(text):
    """Parses --only."""
    if not set(text) <= set(PARTS):
        raise ValueError
    return text


def parse(argv=None):
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quick', action='store_true',
                        help='tiny sizes and one round')
    parser.add_argument('--gpu', type=int, default=0, metavar='N',
                        help='GPU to run on, -1 for the CPU')
    parser.add_argument('--rounds', type=int, default=5, metavar='N')
    parser.add_argument('--only', type=letters, default=PARTS,
                        metavar='LETTERS',
                        help='these parts alone, such as fg')
    parser.add_argument('--output', default='output/benchmark.json',
                        metavar='FILE')
    options = parser.parse_args(argv)
    on_gpu = options.gpu >= 0 and torch.cuda.is_available()
    options.device = f'cuda:{options.gpu}' if on_gpu else 'cpu'
    options.size = 64 if options.quick else 224
    if options.quick:
        options.rounds = 1
    return options


def seconds(function, device):
    """Returns how long a call takes, the device's work included."""
    start = time.perf_counter()
    function()
    if device != 'cpu':
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def take_turns(ours, theirs, options, images, rounds=None):
    """Times two functions in turn, after a round that does not count.

    Returns:
        A dict: images/s of both, and the ratio.
    """
    times = [(seconds(ours, options.device), seconds(theirs, options.device))
             for _ in range(1 + (rounds or options.rounds))][1:]
    mine, other = (images / median(column) for column in zip(*times))
    return {'here': mine, 'original': other,
            'ratio': median(b / a for a, b in times)}


def find_data(folder, real=None, photographs=16):
    """Returns a 300W_LP folder with images, and its list's names and path.

    Args:
        folder: for what is written.
        real: folder of the real data sets, or None for rendered images.
        photographs: number of rendered ones, in 4 renderings each.
    """
    data = os.path.join(real or folder, '300W_LP')
    if not real:
        sample_data.write_sample(folder, photographs, renderings=4, images=0)
    filename_list = listed('300W_LP', data, folder)
    return data, list(lists.read_list(filename_list)), filename_list


def listed(dataset, data, folder):
    """Writes the list of a data set's images; returns its path."""
    path = os.path.join(folder, f'{os.path.basename(data)}.txt')
    filename_generator.main(['--dataset', dataset, '--output', path,
                             '--dataset_path', data])
    return path


def input_pipeline(data, filename_list, options):
    """(a) Training images a second, by number of workers.

    0 workers is the work itself, on one core: it is measured for small crops,
    too, beside those of 224 pixels.
    """
    annotations = lists.read_annotations(data, filename_list)
    count = 64 if options.quick else 1024
    indices = [i % len(annotations.names) for i in range(count)]
    dataset = datasets.PoseDataset(annotations, 224, Augmentation())
    old = torch.utils.data.Subset(
        original.TrainingSet(data, annotations.names), indices)
    workers = [n for n in (0, 1, 2, 4, 8, 16) if n <= os.cpu_count()]
    for number in workers[:2] if options.quick else workers:
        ours = datasets.make_loader(
            dataset, datasets.EpochBatchSampler(indices, 32), number)
        theirs = DataLoader(old, 32, num_workers=number,
                            persistent_workers=number > 0)
        yield {'what': f'(a) loading, {number} workers', 'unit': 'images/s',
               **take_turns(lambda: list(map(len, ours)),
                            lambda: list(map(len, theirs)), options, count)}
    small, whole = (datasets.make_loader(
        datasets.PoseDataset(annotations, size, Augmentation()),
        datasets.EpochBatchSampler(indices, 32), 0) for size in SIZES)
    yield against('224 pixels', {
        'what': f'(a) loading, {SIZES[0]} pixels, 0 workers',
        'unit': 'images/s',
        **take_turns(lambda: list(map(len, small)),
                     lambda: list(map(len, whole)), options, count)})


def against(what, row):
    """Returns a row whose ratio is to something else than the original."""
    rate = row.pop('original')
    return {**row, 'note': f'ratio: to {what}, {rate:.1f} {row["unit"]}'}


def stepper(network, batch, options, amp='auto'):
    """Returns a function that takes a training step of the recipe's."""
    model = pretrained(network).to(options.device,
                                   memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameter_groups(1e-5),
                                  weight_decay=0, fused=True)
    loader = OneBatch(*random_batch(batch, options))
    precision = utils.choose_precision(amp, options.device,
                                       model.config['network'])
    trainer = engine.Trainer(model, optimizer, Recipe(amp=precision),
                             options.device)
    return partial(engine.train_epoch, trainer, loader)


def plain_stepper(network, batch, options):
    """Returns a function that takes a step as the document's code did."""
    model = original.plain(network()).to(options.device).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-5, foreach=False)
    images, angles = random_batch(batch, options)
    images = images.float() / 255

    def step():
        optimizer.zero_grad()
        logits = model(images.to(options.device))
        pose_loss(logits, angles.to(options.device)).mean().backward()
        optimizer.step()
    return step


def pretrained(network):
    """Returns a network in the state that ImageNet weights leave it in."""
    model = network()
    model.load_pretrained(model.state_dict())
    return model


def random_batch(batch, options):
    """Returns uint8 images and angles."""
    shape = batch, 3, options.size, options.size
    return (torch.randint(256, shape, dtype=torch.uint8),
            torch.rand(batch, 3) * 60 - 30)


def training_steps(options):
    """(b) Training images a second, and on a GPU the memory's peak."""
    for network in (AttNet, ShuffleNet):
        batches = BATCHES[network] if options.device == 'cpu' else GPU_BATCHES
        for batch in (4,) if options.quick else batches:
            steps = [make(network, batch, options)
                     for make in (stepper, plain_stepper)]
            row = take_turns(*steps, options, batch)
            note = ''
            if options.device != 'cpu':
                note = ' against '.join(peak(step) for step in steps)
            yield {'what': f'(b) step, {network.title}, batch {batch}',
                   'unit': 'images/s', **row, 'note': note}
        if options.device == 'cpu':
            batch = 4 if options.quick else 32
            yield against('float32', {
                'what': f'(b) step, {network.title}, batch {batch}, bf16',
                'unit': 'images/s', **take_turns(
                    stepper(network, batch, options, 'bf16'),
                    stepper(network, batch, options, 'off'), options, batch)})


def peak(step):
    """Returns the GPU memory of a step, weights of both sides included."""
    torch.cuda.reset_peak_memory_stats()
    step()
    return f'{torch.cuda.max_memory_allocated() / 2 ** 30:.2f} GiB'


def epochs(data, filename_list, options):
    """(c) A real epoch's throughput, over that on images in memory."""
    annotations = lists.read_annotations(data, filename_list)
    for network, count in ((AttNet, 64), (ShuffleNet, 512)):
        if options.device != 'cpu':
            count = 2048
        if options.quick:
            count = 8
        recipe = training_parser('', 'attnet')
        workers = recipe.get_default('workers')
        model = pretrained(network).to(options.device,
                                       memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(model.parameter_groups(1e-5),
                                      fused=True)
        batches = datasets.EpochBatchSampler(
            [i % len(annotations.names) for i in range(count)],
            recipe.get_default('batch_size'))
        loader = datasets.make_loader(
            datasets.PoseDataset(annotations, options.size, Augmentation()),
            batches, workers, options.device)
        amp = utils.choose_precision('auto', options.device,
                                     model.config['network'])
        trainer = engine.Trainer(model, optimizer, Recipe(amp=amp),
                                 options.device)
        row = take_turns(
            partial(engine.train_epoch, trainer, loader),
            partial(engine.train_epoch, trainer, InMemory(loader)),
            options, count, 3)
        yield {'what': f'(c) epoch, {network.title}, '
               f'{workers} workers', 'unit': 'images/s',
               'here': row['here'], 'ratio': row['ratio'],
               'note': 'over that on images in memory'}


class InMemory(list):
    """The batches of a loader, loaded beforehand."""

    def __init__(self, loader):
        super().__init__(loader)
        self.batch_sampler = loader.batch_sampler


@torch.inference_mode()
def inference(options):
    """(d) Latency at batch 1, throughput at batch 32, on a GPU at 128."""
    large = 32 if options.device == 'cpu' else 128
    for network in (AttNet, ShuffleNet):
        model = network().to(options.device).eval()
        fast = for_inference(model)
        plain = original.plain(model)
        for batch, repeats in ((1, 10), (large, 1)):
            x = torch.rand(batch, 3, options.size, options.size,
                           device=options.device)
            row = take_turns(lambda: [fast(x) for _ in range(repeats)],
                             lambda: [plain(x) for _ in range(repeats)],
                             options, batch * repeats)
            if batch == 1:
                row['note'] = (f'{1000 / row["here"]:.1f} ms against '
                               f'{1000 / row["original"]:.1f} ms')
            yield {'what': f'(d) inference, {network.title}, batch {batch}',
                   'unit': 'images/s', **row}


# ------------------------------------------------------- other runtimes

@contextlib.contextmanager
def one_thread():
    """Lets PyTorch have one thread, as `session` and `compiled` do.

    Several are each runtime's own way of sharing work and of waiting, which
    depends on the machine and on what else it does.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def session(path):
    """Returns a function that runs an .onnx file in onnxruntime."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    network = onnxruntime.InferenceSession(path, settings)
    return lambda images: network.run(['angles'], {'images': images})[0]


def compiled(path):
    """Returns a function that runs an .onnx file in OpenVINO, in float32."""
    network = openvino.Core().compile_model(path, 'CPU', {
        'INFERENCE_PRECISION_HINT': 'f32', 'INFERENCE_NUM_THREADS': 1})
    return lambda images: network([images])['angles']


def in_turns(functions, images, options):
    """Times functions in turn, on one thread, after an uncounted round.

    Args:
        functions: by name.
        images: what each is called with, of N images.

    Returns:
        A dict of lists: images/s of each function, by round.
    """
    repeats = 1 if options.quick else max(1, 32 // len(images))
    rates = {name: [] for name in functions}
    with one_thread():
        for _ in range(1 + options.rounds):
            for name, run in functions.items():
                taken = seconds(lambda: [run(images) for _ in range(repeats)],
                                'cpu')
                rates[name].append(len(images) * repeats / taken)
    return {name: values[1:] for name, values in rates.items()}


def beside(rates, base):
    """Yields name, images/s and the ratio to `base`, of `in_turns`."""
    for name, values in rates.items():
        yield name, median(values), median(
            a / b for a, b in zip(values, rates[base]))


def answers(model, images):
    """Returns a network's logits of pixels, as exports take them."""
    return model(model.normalize(
        torch.from_numpy(images).permute(0, 3, 1, 2)))


@torch.inference_mode()
def runtimes(folder, options):
    """(f) Both networks, not trained, in other runtimes; one thread each."""
    for network, size in itertools.product(
            (AttNet, ShuffleNet), SIZES[:1] if options.quick else SIZES):
        model, path = network().eval(), os.path.join(folder, 'network.onnx')
        snapshot = os.path.join(folder, 'network.pkl')
        torch.save({'network': model.config, 'model': model.state_dict(),
                    'options': {'image_size': size}}, snapshot)
        export.main([path, '--snapshot', snapshot])
        fast = for_inference(model)
        functions = {
            'plain PyTorch': partial(answers, model),
            'folded': partial(answers, fast),
            'onnxruntime': session(path), 'OpenVINO': compiled(path)}
        for batch in (1,) if options.quick else (1, 32):
            rates = in_turns(functions, np.random.default_rng(0).integers(
                0, 256, (batch, size, size, 3), np.uint8), options)
            for name, rate, ratio in beside(rates, 'onnxruntime'):
                yield {'what': f'(f) {network.title}, {size} px, batch '
                       f'{batch}, {name}', 'unit': 'images/s', 'here': rate,
                       'ratio': ratio, 'note': 'ratio: to onnxruntime'}


def shipped_exports(folder, options):
    """(g) The shipped network's exports: error, size, throughput.

    Their ranges are of crops of faces68, which it was trained on.
    """
    real = os.environ.get('HEADPOSE_REAL_DATA', '')
    faces, heads = (os.path.join(real, name) for name in (
        'faces68', 'AFLW2000_recropped'))
    if options.quick or not (os.path.isdir(faces) and os.path.isdir(heads)):
        return
    filename_list = listed('300W_LP', faces, folder)
    paths = {precision: os.path.join(folder, f'{precision}.onnx')
             for precision in PRECISIONS}
    for precision, path in paths.items():
        export.main([path, *[f'--{precision}'] * (precision != 'float32'),
                     '--data_dir', faces, '--filename_list', filename_list])
    images, true = test_crops(heads, listed('AFLW2000', heads, folder))
    functions = {name: session(path) for name, path in paths.items()}
    functions['OpenVINO'] = compiled(paths['float32'])
    functions['OpenVINO, int8'] = compiled(paths['int8'])
    rates = in_turns(functions, images[:32], options)
    for name, rate, ratio in beside(rates, 'float32'):
        angles = np.concatenate([
            functions[name](images[start:start + 32])
            for start in range(0, len(images), 32)])
        path = paths['int8' if 'int8' in name else
                     name if name in paths else 'float32']
        size = os.path.getsize(path) / os.path.getsize(paths['float32'])
        yield {'what': f'(g) shipped network, batch 32, {name}', 'unit':
               'images/s', 'here': rate, 'ratio': ratio, 'note':
               f'MAE {np.abs(angles - true).mean():.3f} on {len(true):,} '
               f're-crops, size {size:.2f}, ratio: to float32'}


def test_crops(data, filename_list):
    """Returns a data set's crops for the shipped network, and angles (N, 3).

    The crops are a uint8 array (N, size, size, 3).
    """
    loader = datasets.evaluation_loader(
        lists.read_annotations(data, filename_list),
        image_size=trained_size(read_checkpoint(SHIPPED)))
    images, angles = zip(*[batch[:2] for batch in loader])
    return (torch.cat(images).permute(0, 2, 3, 1).contiguous().numpy(),
            np.concatenate(angles))


def mat_reading(data, filename_list, options):
    """(e) All of 300W-LP's .mat files, as a training reads them.

    Args:
        data: the folder.
        filename_list: of some of them, which are read again and again.
        options: see `parse`.
    """
    count = len(lists.read_list(filename_list))
    repeats = 1 if options.quick else max(1, 6000 // count)
    taken = median(
        seconds(lambda: [lists.read_annotations(data, filename_list)
                         for _ in range(repeats)], 'cpu')
        for _ in range(options.rounds)) / repeats
    yield {'what': '(e) .mat files', 'unit': 'files/s', 'here': count / taken,
           'note': f'{PAIRS:,} in {PAIRS * taken / count:.1f} s'}


def machine(options):
    """Returns what the figures depend on."""
    name = platform.processor() or platform.machine()
    try:
        with open('/proc/cpuinfo', encoding='utf-8') as file:
            name = next(line.split(':')[1].strip() for line in file
                        if line.startswith('model name'))
    except (OSError, StopIteration):
        pass  # another system: its own name is the best there is
    return {'date': datetime.datetime.now().isoformat(' ', 'seconds'),
            'device': (name if options.device == 'cpu' else
                       torch.cuda.get_device_name(options.device)),
            'cores': os.cpu_count(), 'threads': torch.get_num_threads(),
            'python': platform.python_version(),
            'torch': torch.__version__,
            'torchvision': torchvision.__version__,
            'opencv': cv2.__version__, 'image size': options.size,
            'images': ('real' if os.environ.get('HEADPOSE_REAL_DATA') else
                       'rendered')}


def projections(rows):
    """Returns, for each network, what the whole recipe takes."""
    for row in rows:
        if row['what'].startswith('(c)'):
            hours = 25 * EPOCH / row['here'] / 3600
            yield (f'25 epochs of {EPOCH:,} images, '
                   f'{row["what"].split(", ")[1]}: {hours:.1f} hours')


def measure(letter, options, folder, data, filename_list):
    """Measures a part; prints and returns its rows.

    Args:
        letter: of the part.
        options: see `parse`.
        folder: for what is written.
        data, filename_list: see `find_data`.
    """
    part = {'a': lambda: input_pipeline(data, filename_list, options),
            'b': lambda: training_steps(options),
            'c': lambda: epochs(data, filename_list, options),
            'd': lambda: inference(options),
            'e': lambda: mat_reading(data, filename_list, options),
            'f': lambda: runtimes(folder, options),
            'g': lambda: shipped_exports(folder, options)}[letter]
    rows = []
    for row in part():
        rows.append(row)
        print(f'  {row["what"]}: {row["here"]:.1f} {row["unit"]}'
              + (f', ratio {row["ratio"]:.2f}' if 'ratio' in row else ''),
              flush=True)
    return rows


def apart(function, *args):
    """Calls a function in a process of its own; returns what it returns.

    What one part leaves behind, memory for one, changes what the next one
    measures; and with all in one, OpenVINO's part was followed by a crash.
    """
    with futures.ProcessPoolExecutor(
            1, multiprocessing.get_context('spawn')) as pool:
        return pool.submit(function, *args).result()


def main(argv=None):
    """Measures, prints the table and writes the JSON."""
    options = parse(argv)
    facts, rows = machine(options), []
    print(', '.join(f'{key} {value}' for key, value in facts.items()))
    chosen = options.only
    if MISSING:
        print(f'{MISSING} is not installed: no row (f), (g)')
    if MISSING or options.device != 'cpu':
        chosen = chosen.translate(str.maketrans('', '', 'fg'))
    with tempfile.TemporaryDirectory() as folder:
        data, _, filename_list = find_data(
            folder, os.environ.get('HEADPOSE_REAL_DATA'))
        for letter in chosen:
            given = letter, options, folder, data, filename_list
            rows += (measure(*given) if options.quick else
                     apart(measure, *given))
    table = pd.DataFrame(rows, columns=['what', 'here', 'original', 'unit',
                                        'ratio', 'note'])
    print(table.to_string(index=False, na_rep='', float_format='%.2f'))
    for line in projections(rows):
        print(line)
    with files.atomic(options.output) as path:
        with open(path, 'w', encoding='utf-8') as file:
            json.dump({'machine': facts, 'rows': rows}, file, indent=1)


if __name__ == '__main__':
    main()
