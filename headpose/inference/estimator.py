"""A picture to the angles of the heads in it; networks in onnxruntime.

PyTorch is an optional package here: a network that export.py wrote as .onnx
runs without it.  For a checkpoint `load` is handed the function that needs
it.
"""
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from headpose.errors import InputError
from headpose.files import printable
from headpose.geometry.crop import crop_problem, protocol_crop
from headpose.geometry.pose import AXES, MAX_ANGLE, MIRROR, mean_angles

try:  # optional: for .onnx alone
    import onnxruntime
except ImportError:
    onnxruntime = None

ORDER = ', '.join(AXES)  # of a network's angles, as export.py notes it
# ImageNet's, of networks that take normalised pixels: hopenet.py's.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Heads(NamedTuple):
    """The N heads in a picture, from left to right."""
    boxes: np.ndarray    # (N, 4) pixels: x_min, y_min, x_max, y_max
    scores: np.ndarray   # (N,) 0 to 1; NaN where there is none
    angles: np.ndarray   # (N, 3) degrees: yaw, pitch, roll
    spreads: np.ndarray  # (N,) degrees: of the bins' probabilities


class Estimator:
    """Finds heads and their angles.

    Args:
        detector: see `detector.make_detector`.
        network: see `load`.
        flip: give the mean rotation of each crop and of its mirror image.
    """

    def __init__(self, detector, network, flip=False):
        self.detector = detector
        self.network = network
        self.flip = flip

    def __call__(self, image):
        """Looks at a picture.

        Args:
            image: BGR, (H, W, 3).

        Returns:
            The `Heads` in it, and lines about boxes that cannot be used.
        """
        boxes, scores = self.detector(image)
        boxes = boxes.round(2)  # as they are noted: they give the crop again
        height, width = image.shape[:2]
        problems = [crop_problem(box, width, height) for box in boxes]
        good = [not problem for problem in problems]
        boxes, scores = boxes[good], scores[good]
        problems = [problem for problem in problems if problem]
        if not len(boxes):
            return Heads(boxes, scores, np.empty((0, 3)),
                         np.empty(0)), problems
        angles, spreads = self.angles(image, boxes)
        finite = np.isfinite(angles).all(1)
        problems += ['the network gives no finite angles'] * sum(~finite)
        return Heads(*(value[finite] for value in (
            boxes, scores, angles, spreads))), problems

    def angles(self, image, boxes):
        """Returns angles (N, 3) and spreads (N,) for boxes (N, 4)."""
        picture = Image.fromarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
        return self.network(np.stack([
            np.asarray(protocol_crop(picture, box, self.network.size))
            for box in boxes]), self.flip)


class OnnxNetwork:
    """A network that export.py wrote, in onnxruntime.

    Args:
        path: of the .onnx file.
        image_size: side of the crops, for a file that does not say it.

    Raises:
        InputError: it cannot be run, or does not say what it takes.
    """

    def __init__(self, path, image_size=None):
        if not onnxruntime:
            raise InputError(f'{printable(path)}: needs onnxruntime: pip '
                             'install onnxruntime')
        # Its threads would wait for work in a loop between two pictures, and
        # take the cores from the detector: 0.15 s a picture instead of 0.12.
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry('session.intra_op.allow_spinning',
                                         '0')
        try:
            with open(path, 'rb') as file:
                self.session = onnxruntime.InferenceSession(file.read(),
                                                            options)
        except OSError as error:
            raise InputError(f'{printable(path)}: {error.strerror} '
                             '(--snapshot)') from None
        except Exception as error:  # onnxruntime documents no list
            raise InputError(f'{printable(path)}: cannot be run by '
                             f'onnxruntime ({type(error).__name__})') from None
        said = self.session.get_modelmeta().custom_metadata_map
        outputs = {output.name for output in self.session.get_outputs()}
        if not {'logits', 'angles'} <= outputs:
            raise InputError(f'{printable(path)}: has no outputs logits and '
                             'angles; export.py writes them')
        if said.get('angles', ORDER) != ORDER:
            raise InputError(f'{printable(path)}: its angles are '
                             f'{said["angles"]}, not {ORDER}')
        size = image_size or said.get('image_size', '')
        if not str(size).isdecimal():
            raise InputError(f'{printable(path)}: does not say the size of '
                             'its crops; export it anew, or give --image_size')
        self.size = int(size)
        self.input = self.session.get_inputs()[0]
        self.raw = self.input.type == 'tensor(uint8)'

    def __call__(self, crops, flip=False):
        """Returns angles (N, 3) in degrees and spreads (N,).

        Args:
            crops: uint8 (N, H, W, 3), RGB.
            flip: see `Estimator`.
        """
        angles, spreads = self.run(crops)
        if flip:
            mirrored, others = self.run(crops[:, :, ::-1])
            angles = mean_angles((angles, mirrored * MIRROR))
            spreads = (spreads + others) / 2
        return angles, spreads

    def run(self, crops):
        """Returns the network's own angles (N, 3) and spreads (N,)."""
        images = np.ascontiguousarray(crops)
        if not self.raw:  # (N, H, W, 3) to (N, 3, H, W)
            images = ((images / 255 - MEAN) / STD).astype(np.float32)
            images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        logits, angles = self.session.run(['logits', 'angles'],
                                          {self.input.name: images})
        return angles, spread(logits)


def spread(logits):
    """Returns the bins' spread (N,), degrees, as `hopenet.spread` does.

    Args:
        logits: (N, 3, bins).
    """
    logits = np.asarray(logits, float)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    index = np.arange(logits.shape[-1])
    mean = (weights * index).sum(-1, keepdims=True)  # (N, 3, 1)
    variance = (weights * (index - mean) ** 2).sum(-1)  # (N, 3)
    return np.sqrt(variance.mean(1)) * 2 * MAX_ANGLE / len(index)


def load(snapshot, torch_network, gpu=-1, image_size=None):
    """Returns a network: a function of crops, and their `size`.

    Args:
        snapshot: .onnx file, checkpoint of either network, or a bare state
            dict.
        torch_network: a function of `snapshot`, `gpu` and `image_size` that
            returns the network of a checkpoint.
        gpu: number of the GPU, -1 for the CPU; an .onnx file runs on the CPU.
        image_size: side of the crops; None for the file's own.

    Raises:
        InputError: it cannot be used.
    """
    if snapshot.lower().endswith('.onnx'):
        return OnnxNetwork(snapshot, image_size)
    try:
        return torch_network(snapshot, gpu, image_size)
    except ImportError as error:
        raise InputError(f'{printable(snapshot)}: a checkpoint needs PyTorch '
                         f'({error}); an .onnx file of export.py does not'
                         ) from None
