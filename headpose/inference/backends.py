"""A network in onnxruntime, or a PyTorch module: crops to angles.

A backend has the `size` of its crops and a `usual_spread`, beyond which its
answers are unsure, degrees.  It is called with crops, uint8 arrays (N, size,
size, 3), RGB.  PyTorch itself is not imported.
"""
import dataclasses
import os

import numpy as np

from headpose.errors import InputError
from headpose.files import printable
from headpose.geometry.crop import mirrored_shares
from headpose.geometry.pose import MIRROR, mean_angles

try:  # optional: for .onnx alone
    import onnxruntime
except ImportError:
    onnxruntime = None

# Made from checkpoints/shufflenet_faces.pkl; tests/README.md has the command.
NETWORK = os.path.join(os.path.dirname(os.path.dirname(__file__)), 'models',
                       'shufflenet_faces.onnx')
# Degrees: of 95% of the faces on which that network was tested, the spread is
# no larger (checkpoints/README.md).
USUAL_SPREAD = 15.1
OUTPUTS = ['angles', 'spread']  # of an export, beside its logits
BOXES = 'boxes'  # of an export whose network finds them


@dataclasses.dataclass
class TorchNetwork:
    """A network in PyTorch."""
    model: object  # a `hopenet.PoseNetwork`, on its device, in eval mode
    size: int      # side of the crops, pixels
    usual_spread: float = np.inf

    def __call__(self, crops, flip=False):
        """Returns angles (N, 3), the bins' std (N,) and boxes (N, 4).

        Both are in degrees; the boxes are the faces' in the crops, shares of
        their side: x_min, y_min, x_max, y_max; None of a network that finds
        none.

        Args:
            crops: uint8 (N, H, W, 3), RGB.
            flip: give the mean of each crop and its mirror image.
        """
        found = self.model.predict(crops.transpose(0, 3, 1, 2), flip)
        return found.angles, found.bin_std, found.boxes


class OnnxNetwork:
    """A network that export.py wrote, in onnxruntime.

    Args:
        path: of the .onnx file.
        image_size: side of the crops as asked for; None for the file's own.
    """

    def __init__(self, path, image_size=None):
        name = printable(path)
        if not onnxruntime:
            raise InputError(f'{name}: needs pip install onnxruntime')
        options = onnxruntime.SessionOptions()
        # Threads that wait in a loop between two pictures take the cores from
        # the detector: 0.15 s a picture instead of 0.12.
        options.add_session_config_entry('session.intra_op.allow_spinning',
                                         '0')
        try:
            with open(path, 'rb') as file:
                self.session = onnxruntime.InferenceSession(file.read(),
                                                            options)
        except Exception as error:  # onnxruntime documents no list
            reason = getattr(error, 'strerror', type(error).__name__)
            raise InputError(f'{name}: cannot be run by onnxruntime '
                             f'({reason}); export.py makes such files'
                             ) from None
        self.input, *_ = self.session.get_inputs()
        outputs = {output.name for output in self.session.get_outputs()}
        if (self.input.type != 'tensor(uint8)' or self.input.shape[3:] != [3]
                or not outputs.issuperset(OUTPUTS)):
            raise InputError(f'{name}: does not turn uint8 pixels '
                             '(N, H, W, 3) into angles and spread; export it '
                             'anew with export.py')
        self.outputs = OUTPUTS + [BOXES] * (BOXES in outputs)
        self.size = self.input.shape[1]
        self.usual_spread = USUAL_SPREAD if path == NETWORK else np.inf
        if image_size not in (None, self.size):
            raise InputError(f'{name}: takes crops of {self.size} pixels, '
                             f'not of {image_size} (--image_size)')

    def __call__(self, crops, flip=False):
        """Returns what `TorchNetwork.__call__` does."""
        angles, bin_std, *boxes = self.run(crops)
        if flip:
            mirrored, others, *other_boxes = self.run(crops[:, :, ::-1])
            angles = mean_angles((angles, mirrored * MIRROR))
            bin_std = (bin_std + others) / 2
            boxes = [(found + mirrored_shares(other)) / 2
                     for found, other in zip(boxes, other_boxes)]
        return angles, bin_std, boxes[0] if boxes else None

    def run(self, crops):
        """Returns the network's own outputs."""
        return self.session.run(
            self.outputs, {self.input.name: np.ascontiguousarray(crops)})
