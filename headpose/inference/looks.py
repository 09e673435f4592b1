"""Several looks at the same faces, each around the boxes found before."""
import numpy as np

from headpose.geometry.crop import mirrored_shares, next_box, protocol_crop
from headpose.geometry.pose import MIRROR, best_guess, is_mirrored

LOOKS = 3  # at a face, by default


def look_at(network, pictures, boxes, looks=LOOKS, flip=False):
    """Yields angles (N, 3) and the bins' std (N,), degrees, after each look.

    The first look is at crops around the given boxes, the next at crops around
    those that the network found before, every other one at their mirror
    images; what is yielded is the `pose.best_guess` of all looks so far.  A
    network that finds no box looks once.

    Args:
        network: a backend, see backends.py.
        pictures: Pillow images, one for each of the N faces.
        boxes: the faces', (N, 4), pixels.
        looks: their number.
        flip: let each look be at the crops and at their mirror images.
    """
    seen = []
    for look in range(1, looks + 1):
        crops = np.stack([
            np.asarray(protocol_crop(picture, box, network.size))
            for picture, box in zip(pictures, boxes)])
        mirrored = is_mirrored(look)
        if mirrored:
            crops = np.ascontiguousarray(crops[:, :, ::-1])
        angles, bin_std, found = network(crops, flip)
        seen.append((angles * MIRROR if mirrored else angles, bin_std))
        yield best_guess(*zip(*seen)) if seen[1:] else seen[0]
        if found is None:
            break
        if mirrored:
            found = mirrored_shares(found)
        boxes = [next_box(shares, box, network.size, *picture.size)
                 for shares, box, picture in zip(found, boxes, pictures)]
