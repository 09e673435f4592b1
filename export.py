"""Writes a network for other runtimes: as ONNX, or as a torch.export program.

    python export.py model.onnx --raw
    python export.py model.onnx --raw --int8 --data_dir data/300W_LP
    python export.py model.pt2 --snapshot checkpoints/resnet.pkl

The name's ending, .onnx or .pt2, says which.  Inputs and outputs are printed,
and noted in an .onnx file's metadata; batches may have any size; angles are
decoded inside, and checked against PyTorch to 0.001 degrees.  Without --raw,
which takes uint8 RGB pixels (N, H, W, 3), you normalise yourself.  Writing
ONNX needs onnx, onnxruntime and onnxscript; tools/README.md says what --int8,
whose ranges come from training crops of --data_dir, and --fp16 cost and save.

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

`size` is the side of the images that the network was trained on.  In words,
for a box of width w and height h: 0.4 w more on the left, 0.56 w on the right,
0.4 h above, 0.168 h below, cut to whole pixels and black beyond the picture,
which stands upright as its EXIF says; the shorter side resized to `size`,
bilinear with antialiasing; the middle square.
"""
import contextlib
import importlib
import io
import itertools
import os
import sys

from headpose.training.options import parse_export

if __name__ == '__main__':  # --help and mistakes do not wait for PyTorch
    parse_export(__doc__)

import numpy as np
import torch
from torch import nn

from cbam import CBAM
from datasets import training_loaders
from headpose.errors import RunError, run_main
from headpose.files import atomic
from headpose.geometry.pose import AXES
from headpose.training.checkpoint import load_network, trained_size
from hopenet import NUM_BINS, PIXEL_MEAN, PIXEL_STD, decode, normalize
from shufflenet import rebuild

try:  # optional packages, for .onnx alone
    import onnx
    import onnxruntime
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process
    importlib.import_module('onnxscript')  # torch.onnx.export needs it
except ImportError as error:
    MISSING = error.name or error
else:
    MISSING = None

# Degrees between PyTorch's angles and the written network's: the largest, on
# random pixels; of int8 the mean, on training crops.  The shipped network's
# are 4e-5, 0.3 and 0.5, and what exceeds these has lost more than precision.
TOLERANCES = {'float32': 1e-3, 'fp16': 0.5, 'int8': 2.0}
OPSET = 18  # of ONNX: what PyTorch writes; any other it converts afterwards
# What is computed in 8 bits: convolutions, what they absorb, and what only
# moves numbers.  The heads and the attention's gates, which are small and
# decide much, are not among them.
INT8_OPERATORS = ('Conv', 'Relu', 'MaxPool', 'Concat', 'Split', 'Reshape',
                  'Transpose')
CALIBRATION = 40, 8  # batches of training crops, and images in each
PERCENTILE = 99.99  # of a tensor's values are within its 8 bits' range
# For an .onnx file's metadata: what the docstring above says in words, and
# what hopenet.py says of the angles.
MARGINS = '0.4 w left, 0.56 w right, 0.4 h above, 0.168 h below'
CONVENTION = ('degrees, signs of 300W-LP: positive yaw turns the face towards '
              'the left of the image, positive pitch lifts the chin, positive '
              'roll tilts the head clockwise as we see it')


class PortableGate(nn.Module):
    """CBAM's channel gate in operations that every runtime has in full.

    The same sums: the perceptron's layers are convolutions of one pixel, for
    OpenCV has its products for a batch of one only.

    Args:
        gate: a `cbam.ChannelGate`.
    """

    def __init__(self, gate):
        super().__init__()
        self.mlp = nn.Sequential(*[
            pixel_convolution(layer) if isinstance(layer, nn.Linear)
            else layer for layer in gate.mlp])

    def forward(self, x):
        """Maps (N, C, H, W) to the same shape."""
        gate = (self.mlp(x.mean((2, 3), keepdim=True))
                + self.mlp(x.amax((2, 3), keepdim=True)))
        return x * torch.sigmoid(gate)


def pixel_convolution(linear):
    """Returns a linear layer as a convolution of (N, C, 1, 1)."""
    layer = nn.Conv2d(linear.in_features, linear.out_features, 1)
    layer.weight = nn.Parameter(linear.weight[:, :, None, None])
    layer.bias = linear.bias
    return layer


class MeanPool(nn.Module):
    """The average of each channel, in one operation.

    PyTorch's adaptive pooling is exported as a gathering of indices.
    """

    def forward(self, x):
        """Maps (N, C, H, W) to (N, C, 1, 1)."""
        return x.mean((2, 3), keepdim=True)


class Exported(nn.Module):
    """A network with its decoding, and if `raw` its normalisation.

    These are in float32, also where the network is not.

    Args:
        model: a `hopenet.PoseNetwork`; parts of it are replaced.
        raw: take uint8 RGB pixels (N, H, W, 3), not normalised float pixels
            (N, 3, H, W).
    """

    def __init__(self, model, raw):
        super().__init__()
        for module in list(model.modules()):
            if isinstance(module, CBAM):
                module.ChannelGate = PortableGate(module.ChannelGate)
            for name, child in module.named_children():
                if isinstance(child, nn.AdaptiveAvgPool2d):
                    setattr(module, name, MeanPool())
        self.model = model
        self.raw = raw

    def forward(self, images):
        """Returns logits (N, 3, 66) and angles (N, 3) in degrees."""
        if self.raw:
            images = normalize_rows(images)
        dtype = next(self.model.parameters()).dtype
        logits = self.model(images.to(dtype)).float()
        angles = decode(logits)
        # OpenCV adds axes of its own before.
        return (logits.reshape(-1, len(AXES), NUM_BINS),
                angles.reshape(-1, len(AXES)))


def normalize_rows(images):
    """Turns uint8 pixels (N, H, W, 3) into a network's float input.

    As `hopenet.normalize` does, but a row of pixels at a time: onnxruntime
    moves the change of the axes behind these operations, and three numbers
    at a time they then take a third of an 8-bit network's time.
    """
    count, height, width, channels = images.shape
    mean, std = (torch.tensor(values).repeat(width)
                 for values in (PIXEL_MEAN, PIXEL_STD))
    rows = images.reshape(count, height, width * channels).float()
    images = ((rows - mean) / std).reshape(count, height, width, channels)
    return images.permute(0, 3, 1, 2)


def export(path, snapshot, raw=False, precision='float32', **data):
    """Writes a network as .onnx or .pt2 and checks it against PyTorch.

    Args:
        path: of the file to write.
        snapshot: checkpoint of either network, or a bare state dict.
        raw: see `Exported`.
        precision: of an .onnx file's network: a key of TOLERANCES.
        data: for int8, the training images whose crops show the ranges of
            values: see `training_crops`.

    Raises:
        RunError: another extension; a package is missing; the file cannot be
            written; or the written network's angles differ by TOLERANCES.
        WeightsError: the snapshot cannot be used.
        DataError: the training images cannot be used.
    """
    writers = {'.onnx': write_onnx, '.pt2': write_pt2}
    extension = os.path.splitext(path)[1]
    if extension not in writers:
        raise RunError(f'{path}: the name ends in none of '
                       + ', '.join(writers))
    if extension == '.onnx' and MISSING:
        raise RunError(f'{path}: needs {MISSING}: pip install onnx '
                       'onnxruntime onnxscript')
    model, content = load_network(snapshot, rebuild)
    size = trained_size(content)
    network = Exported(model, raw).eval()
    shown = for_network(torch.randint(256, (3, 3, size, size),
                                      dtype=torch.uint8), raw)
    crops = [shown[:2]]  # another batch than the exporter sees
    if precision == 'int8':
        crops = [for_network(batch, raw)
                 for batch in training_crops(size, **data)]
    with torch.no_grad():
        expected = torch.cat([network(batch)[1] for batch in crops])
        if precision == 'fp16':
            network.model.half()
        program = torch.export.export(
            network, (shown,),
            dynamic_shapes=({0: torch.export.Dim('batch')},))
    with atomic(path) as temporary:
        angles = writers[extension](temporary, program, crops, precision,
                                    metadata(size, raw))
        apart = distance(expected, angles, precision)
        if not apart < TOLERANCES[precision]:  # NaN, too
            raise RunError(f'{path}: angles differ from PyTorch by {apart} '
                           'degrees, nothing is written')
    print(f'{path}: {interface(size, raw)}; within {apart:.0e} degrees of '
          'PyTorch' + ' on average' * (precision == 'int8'))


def for_network(pixels, raw):
    """Turns uint8 pixels (N, 3, H, W) into an exported network's input."""
    if raw:
        return pixels.permute(0, 2, 3, 1).contiguous()
    return normalize(pixels).contiguous()


def training_crops(size, data_dir, filename_list, labels=None, dataset=None):
    """Returns batches of training crops, uint8 tensors (N, 3, size, size).

    Args:
        size: side of the crops, pixels.
        data_dir, filename_list, labels, dataset: see
            `datasets.training_loaders`.
    """
    batches, count = CALIBRATION
    loader, _ = training_loaders(data_dir, filename_list, count, size,
                                 labels=labels, dataset=dataset)
    return [images for images, *_ in itertools.islice(loader, batches)]


def distance(expected, angles, precision):
    """Returns what TOLERANCES speaks of: degrees between angles (N, 3)."""
    apart = (expected - angles).abs()
    return (apart.mean() if precision == 'int8' else apart.max()).item()


def write_pt2(path, program, crops, *_):
    """Writes a torch.export program; returns its angles of the crops."""
    torch.export.save(program, path)
    network = torch.export.load(path).module()
    return torch.cat([network(batch)[1].detach() for batch in crops])


def write_onnx(path, program, crops, precision, properties):
    """Writes ONNX; returns the angles (N, 3) that onnxruntime gives.

    Args:
        path: of the file.
        program: what torch.export made.
        crops: batches of the network's input.
        precision: see `export`.
        properties: dict of strings, the file's metadata.
    """
    torch.onnx.export(program, f=path, input_names=['images'],
                      output_names=['logits', 'angles'], opset_version=OPSET,
                      external_data=False, verbose=False)
    if precision == 'int8':
        quantize(path, crops)
    model = onnx.load(path)
    # The packages name operator sets that no node uses, and their own version
    # of the format; with what is needed, older runtimes open the file, too.
    domains = {node.domain for node in model.graph.node}
    needed = [entry for entry in model.opset_import if entry.domain in domains]
    del model.opset_import[:]
    model.opset_import.extend(needed)
    model.ir_version = onnx.helper.find_min_ir_version_for(needed)
    onnx.helper.set_model_props(model, properties)
    onnx.save(model, path)
    onnx.checker.check_model(path, full_check=True)
    session = onnxruntime.InferenceSession(path)
    return torch.from_numpy(np.concatenate([
        session.run(['angles'], {'images': batch.numpy()})[0]
        for batch in crops]))


def quantize(path, crops):
    """Makes 8-bit integers of an ONNX file's network, in place.

    Args:
        path: of the file.
        crops: batches of its input, for the ranges of values.
    """
    quiet = contextlib.redirect_stdout(io.StringIO())  # a line each batch
    with quiet:
        quant_pre_process(path, path, skip_symbolic_shape=True)
        quantization.quantize_static(
            path, path, Crops(crops), per_channel=True,
            op_types_to_quantize=INT8_OPERATORS,
            nodes_to_exclude=float_nodes(onnx.load(path).graph),
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.Percentile,
            extra_options={'CalibPercentile': PERCENTILE,
                           'CalibStridedMinMax': 1})


def float_nodes(graph):
    """Returns the names of an ONNX graph's nodes that stay in float32.

    Those before the first convolution, which normalise; the attention's
    gates, small numbers that scale all others; and the heads and decoding.

    Args:
        graph: of `Exported`, its nodes in the order of computation.
    """
    kinds = [node.op_type for node in graph.node]
    start, stop = kinds.index('Conv'), kinds.index('Gemm')
    gates = [node for node in graph.node
             if any('.cbam.' in name for name in node.input)]
    fed = {node.input[0] for node in gates}
    gates += [node for node in graph.node if fed.intersection(node.output)]
    return [node.name for node in
            [*graph.node[:start], *gates, *graph.node[stop:]]]


class Crops:
    """Batches as onnxruntime's calibration reads them, one at a time.

    Args:
        batches: of a network's input.
    """

    def __init__(self, batches):
        self.batches = batches
        self.next = iter(())

    def __len__(self):
        return len(self.batches)

    def set_range(self, start_index, end_index):
        """Starts anew, with a part of the batches."""
        self.next = iter(self.batches[start_index:end_index])

    def get_next(self):
        """Returns the next input, or None after the last."""
        return next(({'images': batch.numpy()} for batch in self.next), None)


def metadata(size, raw):
    """Returns what an .onnx file says of itself, a dict of strings."""
    return {'image_size': str(size), 'margins': MARGINS,
            'angles': ', '.join(AXES),
            'input': ('uint8 RGB (N, H, W, 3)' if raw else
                      'float RGB (N, 3, H, W), normalised'),
            'convention': CONVENTION}


def interface(size, raw):
    """Says in a line what an exported network takes and returns."""
    kind = ('uint8 RGB pixels (N, H, W, 3)' if raw else
            'float RGB pixels (N, 3, H, W), (pixel / 255 - mean) / std of '
            'ImageNet')
    return (f'input images: {kind}, H = W = {size}; outputs logits '
            f'(N, 3, 66) and angles (N, 3): {", ".join(AXES)} in degrees')


def main(argv=None):
    """Runs the command; `argv` is a list of options, for tests."""
    options = parse_export(__doc__, argv)
    export(**vars(options))


if __name__ == '__main__':
    sys.exit(run_main(main))
