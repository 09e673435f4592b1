"""Random numbers of a training image, as a test wants them."""
from headpose.geometry.augment import Draws


def drawn(**fields):
    """Returns `Draws` that change nothing but by these fields."""
    return Draws(*[0.5] * len(Draws._fields))._replace(**fields)
