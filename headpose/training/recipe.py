"""How a network is trained: the values of a run, and its learning rates."""
import dataclasses
import math

from headpose.geometry.augment import Augmentation

RISE = 0.1            # share of a cycle in which the rates rise
START = 1 / 25        # of its own rate, where a group's starts
END = START / 10_000  # and where it ends


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The values of a run, under the names of the scripts' options.

    The defaults are the document's, in float32.  `one_cycle` is that of Smith
    and Topin (2019).
    """
    num_epochs: int = 25         # with those before a resume
    lr: float = 1e-5             # of the backbone
    lr_steps: tuple = (8, 18)    # epochs after which it falls to a tenth
    one_cycle: bool = False      # instead, rise, then fall along cosines
    alpha: float = 2.0           # weight of the squared error in the loss
    soft_bins: bool = False      # an angle shared by its two nearest bins
    ema: float = 0.0             # decay of the weights' average; 0: none
    patience: int | None = None  # epochs without a lower validation loss
    as_published: bool = False   # eval mode after the first epoch
    amp: str = 'off'             # or 'bf16' or 'fp16'
    accumulate: int = 1          # parts of a batch, one after the other
    channels_last: bool = True   # memory layout of the weights
    compile: bool = False        # by torch.compile

    @classmethod
    def from_options(cls, options):
        """Returns the recipe of a training script's options."""
        return cls(
            num_epochs=options.num_epochs, lr=options.lr,
            lr_steps=options.lr_steps, one_cycle=options.one_cycle,
            alpha=options.alpha, soft_bins=options.soft_bins,
            ema=options.ema, patience=options.patience,
            as_published=options.as_published, amp=options.amp,
            accumulate=options.accumulate, compile=options.compile,
            channels_last=options.channels_last)

    def lr_factor(self, progress):
        """Returns the common factor of all rates after so many epochs."""
        if not self.one_cycle:
            return 0.1 ** sum(progress >= step for step in self.lr_steps)
        share = progress / self.num_epochs
        if share < RISE:
            return cosine(START, 1.0, share / RISE)
        return cosine(1.0, END, (share - RISE) / (1 - RISE))

    def set_rates(self, optimizer, progress):
        """Sets the rates of an optimizer's groups after so many epochs."""
        for group in optimizer.param_groups:
            group.setdefault('initial_lr', group['lr'])
            group['lr'] = group['initial_lr'] * self.lr_factor(progress)


def augmentation_of(options):
    """Returns the `Augmentation` of a training script's options, or None."""
    if not options.augment:
        return None
    return Augmentation(
        rotate=options.rotate, box_jitter=options.box_jitter,
        color_jitter=options.color_jitter, light=options.light,
        low_resolution=options.low_resolution, occlude=options.occlude,
        test_framing=options.test_framing)


def cosine(start, end, share):
    """Returns a value on the way from `start` to `end`, along a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
