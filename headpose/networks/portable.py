"""A network as a file for other runtimes: ONNX, or a torch.export program.

It takes uint8 RGB pixels (N, H, W, 3) and gives logits (N, 3, bins), angles
(N, 3) and `spread`, the bins' standard deviation (N,), in degrees; a network
with a `hopenet.BoxHead` also gives its boxes (N, 4).
"""
import contextlib
import io

import torch
from torch import nn

from headpose.errors import RunError
from headpose.files import atomic

# Degrees between PyTorch's angles and the file's: the largest, on random
# pixels; of int8 the mean, on training crops.  The shipped network's are 3e-5,
# 0.3 and up to 1.8; more than these is more than lost precision.
TOLERANCES = {'float32': 1e-3, 'fp16': 0.5, 'int8': 3.0}
OUTPUTS = ['logits', 'angles', 'spread', 'boxes']  # the last not always
# Computed in 8 bits: convolutions, what they absorb, and what only moves
# numbers; not the heads and the attention's gates, small and decisive.
INT8_OPERATORS = ('Conv', 'Relu', 'Clip', 'MaxPool', 'Concat', 'Split',
                  'Reshape', 'Transpose')
PERCENTILE = 99.99  # of a tensor's values are within its 8 bits' range


class PortableGate(nn.Module):
    """A `cbam.ChannelGate` for OpenCV, without matrix products of batches."""

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
    """Average pooling: PyTorch exports its adaptive one as many gathers."""

    def forward(self, x):
        """Maps (N, C, H, W) to (N, C, 1, 1)."""
        return x.mean((2, 3), keepdim=True)


class Portable(nn.Module):
    """A `hopenet.PoseNetwork`, changed in place, for uint8 (N, H, W, 3)."""

    def __init__(self, model):
        super().__init__()
        for module in list(model.modules()):
            for name, child in module.named_children():
                if name == 'ChannelGate':
                    setattr(module, name, PortableGate(child))
                elif isinstance(child, nn.AdaptiveAvgPool2d):
                    setattr(module, name, MeanPool())
        self.model = model.eval()

    def forward(self, images):
        """Maps images to logits, angles, standard deviation and boxes."""
        count, height, width, channels = images.shape
        # Without the line of pixels onnxruntime moves the change of axes
        # behind the normalisation, which then takes a quarter of an 8-bit
        # network's time.
        pixels = self.model.normalize(
            images.permute(0, 3, 1, 2).reshape(count, channels, 1, -1))
        pixels = pixels.reshape(count, channels, height, width)
        dtype = next(self.model.parameters()).dtype
        logits, boxes = self.model(pixels.to(dtype), with_boxes=True)
        logits = logits.float()
        axes, bins = logits.shape[1:]
        # OpenCV adds axes of its own before.
        return (logits.reshape(-1, axes, bins),
                self.model.decode(logits).reshape(-1, axes),
                self.model.bin_std(logits).reshape(-1),
                *([] if boxes is None else [boxes.float().reshape(-1, 4)]))


def write(path, model, size, precision, batches, notes):
    """Writes a network as .onnx or .pt2 and checks its angles.

    `model`, a `hopenet.PoseNetwork`, is of no use afterwards; `size` is the
    images' side in pixels.  An .onnx file has a precision, a key of
    TOLERANCES, and `notes`, a dict of strings; for int8, batches of training
    crops, uint8 tensors (N, size, size, 3), show the ranges of values.

    Returns the degrees between PyTorch's angles and the file's; RunError if
    they are more than TOLERANCES has, or a package is missing.
    """
    network = Portable(model)
    sample = torch.randint(256, (3, size, size, 3), dtype=torch.uint8)
    batches = batches or [sample[:2]]  # of another size than the exporter's
    with torch.no_grad():
        expected = torch.cat([network(batch)[1] for batch in batches])
        if precision == 'fp16':
            for part in model.children():  # the normalisation stays float32
                part.half()
        program = torch.export.export(
            network, (sample,),
            dynamic_shapes=({0: torch.export.Dim('batch')},))
    with atomic(path) as temporary:
        if path.endswith('.pt2'):
            angles = write_pt2(temporary, program, batches)
        else:
            angles = write_onnx(temporary, program, batches, precision, notes)
        apart = (expected - angles).abs()
        apart = (apart.mean() if precision == 'int8' else apart.max()).item()
        if not apart < TOLERANCES[precision]:  # NaN, too
            raise RunError(f'{path}: angles differ from PyTorch by {apart} '
                           'degrees, nothing is written')
    return apart


def write_pt2(path, program, batches):
    """Writes a torch.export program; returns its angles on the batches."""
    torch.export.save(program, path)
    network = torch.export.load(path).module()
    return torch.cat([network(batch)[1].detach() for batch in batches])


def write_onnx(path, program, batches, precision, notes):
    """Writes ONNX; returns onnxruntime's angles on the batches."""
    try:
        import onnx  # optional packages
        import onnxruntime

        outputs = program.graph_signature.user_outputs
        torch.onnx.export(program, f=path, input_names=['images'],
                          output_names=OUTPUTS[:len(outputs)],
                          external_data=False,
                          opset_version=18,  # the exporter's own
                          verbose=False)
    except ImportError as error:
        raise RunError(f'.onnx needs {error.name}: pip install onnx '
                       'onnxruntime onnxscript') from None
    if precision == 'int8':
        quantize(path, batches)
    model = onnx.load(path)
    # Older runtimes refuse the newest version of the format, and operator sets
    # that no node uses.
    domains = {node.domain for node in model.graph.node}
    needed = [entry for entry in model.opset_import if entry.domain in domains]
    del model.opset_import[:]
    model.opset_import.extend(needed)
    model.ir_version = onnx.helper.find_min_ir_version_for(needed)
    onnx.helper.set_model_props(model, notes)
    onnx.save(model, path)
    onnx.checker.check_model(path, full_check=True)
    session = onnxruntime.InferenceSession(path)
    return torch.cat([
        torch.from_numpy(session.run(['angles'], {'images': batch.numpy()})[0])
        for batch in batches])


def quantize(path, batches):
    """Quantises an ONNX file's network, in place; `batches` as in `write`."""
    import onnx  # optional packages
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with contextlib.redirect_stdout(io.StringIO()):  # a line each batch
        quant_pre_process(path, path, skip_symbolic_shape=True)
        quantization.quantize_static(
            path, path, CalibrationReader(batches), per_channel=True,
            op_types_to_quantize=INT8_OPERATORS,
            nodes_to_exclude=float_nodes(onnx.load(path).graph),
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            reduce_range=True,  # of 7 bits: sums of 8 overflow without VNNI
            calibrate_method=quantization.CalibrationMethod.Percentile,
            extra_options={'CalibPercentile': PERCENTILE,
                           'CalibStridedMinMax': 1})


def float_nodes(graph):
    """Returns the names of an ONNX graph's nodes that stay in float32.

    Those before the first convolution, which normalise; the attention's
    gates, small numbers that scale all others; and the heads and decoding.
    """
    nodes = list(graph.node)  # in the order of computation
    kinds = [node.op_type for node in nodes]
    gates = [node for node in nodes
             if any('.cbam.' in name for name in node.input)]
    fed = {node.input[0] for node in gates}
    gates += [node for node in nodes if fed.intersection(node.output)]
    return [node.name for node in nodes[:kinds.index('Conv')] + gates
            + nodes[kinds.index('Gemm'):]]


class CalibrationReader:
    """Batches as onnxruntime's calibration reads them, one at a time."""

    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def set_range(self, start_index, end_index):
        """Selects a part of the batches."""
        self.part = iter(self.batches[start_index:end_index])

    def get_next(self):
        """Returns the next input, or None after the last."""
        return next(({'images': batch.numpy()} for batch in self.part), None)
