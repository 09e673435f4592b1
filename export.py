"""Writes a network for other runtimes: as ONNX, or as a torch.export program.

    python export.py model.onnx --raw
    python export.py model.pt2 --snapshot checkpoints/resnet.pkl

The name's ending, .onnx or .pt2, says which.  Inputs and outputs are printed;
batches may have any size; angles are decoded inside, and checked against
PyTorch to 0.001 degrees.  Without --raw, which takes uint8 RGB pixels (N, H,
W, 3), you normalise yourself.  ONNX needs onnx, onnxruntime and onnxscript.

What the network must be given is the test's crop around a face box (brows to
chin, as in demo.py's poses.csv); transforms.py makes it without PyTorch:

    import numpy as np, onnxruntime
    from PIL import Image, ImageOps
    from transforms import protocol_crop

    picture = ImageOps.exif_transpose(Image.open('photo.jpg')).convert('RGB')
    crop = protocol_crop(picture, box=(121, 184, 324, 385), size=96)
    session = onnxruntime.InferenceSession('model.onnx')
    angles, = session.run(['angles'], {'images': np.array(crop)[None]})

`size` is the side of the images that the network was trained on, as printed.
In words, for a box of width w and height h: 0.4 w more on the left, 0.56 w on
the right, 0.4 h above, 0.168 h below, cut to whole pixels and black beyond the
picture, which stands upright as its EXIF says; the shorter side resized to
`size`, bilinear with antialiasing; the middle square.
"""
import importlib
import os
import sys

from options import parse_export

if __name__ == '__main__':  # --help and mistakes do not wait for PyTorch
    parse_export(__doc__)

import torch
from torch import nn

from checkpoint import load_network, trained_size
from hopenet import AttNet, decode, normalize
from pose import AXES
from shufflenet import ShuffleNet
from utils import RunError, atomic, run_script

try:  # optional packages, for .onnx alone
    import onnx
    import onnxruntime
    importlib.import_module('onnxscript')  # torch.onnx.export needs it
except ImportError as error:
    MISSING = error.name or error
else:
    MISSING = None

TOLERANCE = 1e-3  # degrees between PyTorch's angles and the written network's
OPSET = 18  # of ONNX: what PyTorch writes; any other it converts afterwards


class Exported(nn.Module):
    """A network with its decoding, and if `raw` its normalisation.

    Args:
        model: a `hopenet.PoseNetwork`.
        raw: take uint8 RGB pixels (N, H, W, 3), not normalised float pixels
            (N, 3, H, W).
    """

    def __init__(self, model, raw):
        super().__init__()
        self.model = model
        self.raw = raw

    def forward(self, images):
        """Returns logits (N, 3, 66) and angles (N, 3) in degrees."""
        if self.raw:  # (N, H, W, 3) to (N, 3, H, W)
            images = normalize(images.permute(0, 3, 1, 2).float())
        logits = self.model(images)
        return logits, decode(logits)


def export(path, snapshot, raw=False):
    """Writes a network as .onnx or .pt2 and checks it against PyTorch.

    Args:
        path: of the file to write.
        snapshot: checkpoint of either network, or a bare state dict.
        raw: see `Exported`.

    Raises:
        RunError: another extension; a package is missing; the file cannot be
            written; or the written network's angles differ by TOLERANCE.
        WeightsError: the snapshot cannot be used.
    """
    writers = {'.onnx': write_onnx, '.pt2': write_pt2}
    extension = os.path.splitext(path)[1]
    if extension not in writers:
        raise RunError(f'{path}: the name ends in none of '
                       + ', '.join(writers))
    if extension == '.onnx' and MISSING:
        raise RunError(f'{path}: needs {MISSING}: pip install onnx '
                       'onnxruntime onnxscript')
    model, content = load_network(snapshot, AttNet, ShuffleNet)
    size = trained_size(content)
    network = Exported(model, raw).eval()
    pixels = torch.randint(
        256, (3, size, size, 3) if raw else (3, 3, size, size),
        dtype=torch.uint8)
    images = pixels if raw else normalize(pixels)
    with torch.no_grad():
        program = torch.export.export(
            network, (images,),
            dynamic_shapes=({0: torch.export.Dim('batch')},))
        expected = network(images[:2])[1]  # another batch than it has seen
    with atomic(path) as temporary:
        angles = writers[extension](temporary, program, images[:2])
        apart = abs(expected - angles).max().item()
        if not apart < TOLERANCE:  # NaN, too
            raise RunError(f'{path}: angles differ from PyTorch by {apart} '
                           'degrees, nothing is written')
    print(f'{path}: {interface(size, raw)}; within {apart:.0e} degrees of '
          'PyTorch')


def write_pt2(path, program, images):
    """Writes a torch.export program; returns the angles that it gives."""
    torch.export.save(program, path)
    return torch.export.load(path).module()(images)[1].detach()


def write_onnx(path, program, images):
    """Writes ONNX; returns the angles that onnxruntime gives."""
    torch.onnx.export(program, f=path, input_names=['images'],
                      output_names=['logits', 'angles'], opset_version=OPSET,
                      external_data=False, verbose=False)
    onnx.checker.check_model(path, full_check=True)
    session = onnxruntime.InferenceSession(path)
    angles, = session.run(['angles'], {'images': images.numpy()})
    return torch.from_numpy(angles)


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
    export(options.path, options.snapshot, options.raw)


if __name__ == '__main__':
    sys.exit(run_script(main))
