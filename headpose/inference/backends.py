"""A network in PyTorch, for the estimator: the one room that needs it here."""
import torch

from headpose.errors import InputError


class TorchNetwork:
    """A network in PyTorch.

    Args:
        model: on the device, in eval mode.
        predict: a function of the model, images, the device and `flip` that
            returns angles and spreads first, see `engine.predict`.
        device: 'cpu' or 'cuda:N'.
        size: side of the crops, pixels.
    """

    def __init__(self, model, predict, device, size):
        self.model = model
        self.predict = predict
        self.device = device
        self.size = size

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
            return self.predict(self.model, images, self.device,
                                flip)[:2]
        except torch.OutOfMemoryError:
            raise InputError('the GPU has too little memory left; --gpu -1 '
                             'runs on the CPU') from None
