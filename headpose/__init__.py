"""Estimates the yaw, pitch and roll of heads in pictures and films.

    import headpose

    estimator = headpose.Estimator()
    for head in estimator('photo.jpg'):  # file, Pillow image or RGB array, too
        print(head.box, head.yaw, head.pitch, head.roll, head.rotation)

`headpose.track` follows heads through a film, `headpose.draw` draws them;
what a user can mend is a `headpose.UserError`.
"""
from typing import TYPE_CHECKING

from headpose.errors import UserError

if TYPE_CHECKING:
    from headpose.inference.api import Estimator, Head, draw, track

__all__ = ['Estimator', 'Head', 'UserError', 'draw', 'track']


def __getattr__(name):
    """Imports OpenCV and onnxruntime when they are first used (PEP 562).

    The training scripts import this package, too, and need neither.
    """
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from headpose.inference import api
    return getattr(api, name)


def __dir__():
    """Lists the public names, for completion, before they are imported."""
    return sorted([*globals(), *__all__])
