"""A checkpoint's network for demo.py: the half of it that needs PyTorch."""
import os

import torch

from checkpoint import crop_size, load_network
from detect import InputError
from engine import predict
from hopenet import AttNet, for_inference
from options import SHIPPED
from shufflenet import NETWORKS
from utils import RunError, init_process
from weights import WeightsError

HERE = os.path.dirname(os.path.abspath(__file__))


class TorchNetwork:
    """A network in PyTorch.

    Args:
        snapshot: checkpoint of either network, or a bare state dict; the
            shipped one is found beside this file, from any folder.
        gpu: number of the GPU, -1 for the CPU.
        image_size: side of the crops; None for the checkpoint's own.

    Raises:
        InputError: the checkpoint or the GPU cannot be used.
    """

    def __init__(self, snapshot, gpu=-1, image_size=None):
        if snapshot == SHIPPED and not os.path.exists(snapshot):
            beside = os.path.join(HERE, snapshot)
            snapshot = beside if os.path.exists(beside) else snapshot
        try:
            self.device = init_process(gpu)
            model, content = load_network(snapshot, AttNet, *NETWORKS)
        except (RunError, WeightsError) as error:
            failure = InputError(str(error))
            failure.status = getattr(error, 'status', 1)
            raise failure from None
        self.size = crop_size(snapshot, content, image_size)
        self.model = for_inference(model.to(self.device))

    @torch.inference_mode()
    def __call__(self, crops, flip=False):
        """Returns angles (N, 3) in degrees and spreads (N,).

        Args:
            crops: uint8 (N, H, W, 3), RGB.
            flip: give the mean of each crop and its mirror image.

        Raises:
            InputError: the GPU's memory is too small.
        """
        # (N, H, W, 3) to (N, 3, H, W)
        images = torch.from_numpy(crops).permute(0, 3, 1, 2)
        try:
            return predict(self.model, images, self.device, flip)[:2]
        except torch.OutOfMemoryError:
            raise InputError('the GPU has too little memory left; --gpu -1 '
                             'runs on the CPU') from None
