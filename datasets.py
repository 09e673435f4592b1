"""Images and labels to batches: the 9:1 split and the loaders.

An image is a uint8 array (size, size, 3), RGB; `model.normalize` makes it a
network's float input.
"""
import collections
import dataclasses
import functools
import os
import signal

import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, default_collate

from headpose.errors import DataError, fault
from headpose.files import printable
from headpose.geometry.augment import (Augmentation, Draws, augmented_crop,
                                       box_in_crop, shrinkage)
from headpose.geometry.crop import crop_problem, next_box, protocol_crop
from headpose.readers import lists, pairs
from headpose.readers.images import check_image, read_image

WEAK = 0.25  # of the augmentation is left at the end of a run
VALIDATION_SHARE = 0.1  # of all images; with whole groups it is at least that
LEAST_SHARE, MOST_SHARE = 0.05, 0.2  # beyond these a split is far from 9:1
PREFETCHED = 2  # batches of a DataLoader's worker, PyTorch's default
ORDER, AUGMENTATION = 0, 1  # independent streams of random numbers


def read_annotations(data_dir, filename_list=None, landmarks='visible',
                     labels=None, dataset=None, labels_format=None,
                     skip_bad=False):
    """Returns the `lists.Annotations` of a data set.

    Args:
        data_dir: the folder that names are relative to.
        filename_list: names; None: all of a table's.
        landmarks: see `mat.face_box`.
        labels: a table, see `readers.table`; None: the .mat files.
        dataset: 'BIWI' has only boxes in its table, see `readers.biwi`.
        labels_format: the sign of yaw, see `table.read_table`.
        skip_bad: name a table's bad rows, and leave them out.

    Raises:
        DataError: a file is missing, damaged or out of range.
    """
    if not os.path.isdir(data_dir):
        raise fault(data_dir, 'no such data folder')
    if labels:
        return pairs.read_annotations(data_dir, labels, filename_list,
                                      dataset, labels_format, skip_bad)
    return lists.read_annotations(data_dir, filename_list, landmarks)


@dataclasses.dataclass
class PoseDataset:
    """Images and angles, by index; for a DataLoader.

    A training image's changes are a function of (seed, epoch, index) alone.
    """
    annotations: lists.Annotations
    size: int = 224  # of the crops, pixels; or a list, one for each epoch
    # Of training crops, or a list, one for each epoch; None: the test crops.
    augmentation: Augmentation = None
    seed: int = 0           # of the augmentation
    protocol: str = 'ours'  # of the test crops, see `crop.protocol_crop`
    # Indices of the images that `augment.occluded` cuts patches from; None:
    # patches of one colour.
    textures: list = None
    with_boxes: bool = False  # say where training crops show the face

    def __len__(self):
        return len(self.annotations.names)

    def path(self, index):
        """Returns the path of an image."""
        return os.path.join(self.annotations.data_dir,
                            self.annotations.images[index])

    def image(self, index):
        """Returns an image as it is, an upright RGB array."""
        return read_image(self.path(index))

    def texture(self, draw):
        """Returns a training picture to cut a patch from, an RGB array."""
        index = self.textures[int(draw * len(self.textures))]
        return read_image(self.path(index), fast=True, shrink=2)

    def next_boxes(self, indices, shares):
        """Returns the boxes (N, 4) around which a next look crops.

        Args:
            indices: of the test crops, (M,).
            shares: the boxes found in them, (M, 4), see `crop.next_box`.
        """
        boxes = self.annotations.boxes.copy()
        picture_size = functools.cache(check_image)  # of several faces
        for index, found in zip(indices, shares):
            boxes[index] = next_box(found, boxes[index], self.size,
                                    *picture_size(self.path(index)))
        return boxes

    def __getitem__(self, key):
        """Returns an image (size, size, 3), angles (3,), index and box (4,).

        The box, see `augment.box_in_crop`, is NaN but for `with_boxes`.

        Args:
            key: (epoch, index), as `EpochBatchSampler` yields them.

        Raises:
            DataError: the image is damaged, or the face box outside of it.
        """
        epoch, index = key
        box = self.annotations.boxes[index]
        angles = self.annotations.angles[index]
        size, shrink = of_epoch(self.size, epoch), 1
        augmentation = of_epoch(self.augmentation, epoch)
        if augmentation:
            draws = Draws(*epoch_draws(len(self), self.seed, epoch)[index])
            shrink = shrinkage(box, angles[0], draws, size, augmentation)
        image = read_image(self.path(index), bool(augmentation), shrink)
        if problem := crop_problem(
                box, *np.multiply(image.shape[1::-1], shrink)):
            raise fault(self.path(index), problem)
        face = np.full(4, np.nan, np.float32)
        if augmentation:
            if self.with_boxes:
                face = box_in_crop(box, angles, draws, size, augmentation)
            texture = self.textures and functools.partial(self.texture,
                                                          draws.other)
            image, angles = augmented_crop(image, box, angles, draws, size,
                                           augmentation, shrink, texture)
        else:
            image = np.array(protocol_crop(Image.fromarray(image), box, size,
                                           self.protocol))
        return image, angles.astype(np.float32), index, face


def of_epoch(value, epoch):
    """Returns a value, or the entry of a list for an epoch, from 1."""
    if isinstance(value, list):  # a longer run goes on with the last entry
        return value[min(max(epoch, 1), len(value)) - 1]
    return value


def seeded(stream, seed, epoch):
    """Returns the generator of a stream of random numbers in an epoch."""
    return torch.Generator().manual_seed(
        2 * (seed * 1_000_003 + epoch) + stream)


@functools.lru_cache(maxsize=1)
def epoch_draws(count, seed, epoch):
    """Returns an epoch's random numbers: (count, fields of `Draws`)."""
    generator = seeded(AUGMENTATION, seed, epoch)
    return torch.rand(count, len(Draws._fields), generator=generator).numpy()


@dataclasses.dataclass
class EpochBatchSampler:
    """Yields lists of (epoch, index), the keys of `PoseDataset`.

    Processes share each batch; every image is given to one of them.  In
    training every process has a part of each batch: fewer images than
    processes, at the end of an epoch, join the batch before.
    """
    indices: np.ndarray    # of the images
    batch_size: int        # of all processes, at least one image each
    shuffle: bool = False  # in training: an order of (seed, epoch) alone
    seed: int = 0
    rank: int = 0          # of this process
    world_size: int = 1    # number of processes
    epoch: int = 0         # set by the training loop

    def __post_init__(self):
        self.indices = np.asarray(self.indices)

    def sizes(self):
        """Returns the number of images of each batch, in all processes."""
        return [len(batch) for batch in self._split(self.indices)]

    def _split(self, order):
        starts = range(0, len(order), self.batch_size)
        batches = [order[start:start + self.batch_size] for start in starts]
        if not self.shuffle:  # processes without a part have fewer batches
            return [batch for batch in batches if len(batch) > self.rank]
        if len(batches) > 1 and len(batches[-1]) < self.world_size:
            batches[-2:] = [np.concatenate(batches[-2:])]
        return batches

    def __len__(self):
        return len(self._split(self.indices))

    def __iter__(self):
        order = self.indices
        if self.shuffle:
            order = order[torch.randperm(len(order), generator=seeded(
                ORDER, self.seed, self.epoch)).numpy()]
        for batch in self._split(order):
            yield [(self.epoch, index)
                   for index in batch[self.rank::self.world_size].tolist()]


def split_keys(annotations, by='photo'):
    """Returns each image's key, and their kind; a split keeps a key together.

    By 'photo' the renderings of a photograph, or a group's images, are on one
    side; by 'image', the document's literal split, nearly every validation
    image has a sibling in training.  The faces of an image are on one side.
    """
    names = [os.path.splitext(image)[0] for image in annotations.images]
    if by == 'image':
        return names, 'images'
    if annotations.groups:
        return joined(annotations.groups, names), 'groups'
    return list(map(lists.photograph, names)), 'photographs'


def joined(groups, names):
    """Returns each face's group; groups that meet in an image become one."""
    joins, first = {}, {}

    def end(group):
        while group in joins:
            group = joins[group]
        return group

    for group, name in zip(groups, names):
        one, other = end(group), end(first.setdefault(name, group))
        if one != other:
            joins[one] = other
    return list(map(end, groups))


def chosen_split(annotations, validation_list=None):
    """Returns one's own split, or None.

    Args:
        validation_list: names of images that validate; None: the table's
            column split says it, if there is one.

    Returns:
        Lists of the training and the validation indices; whose split it is.

    Raises:
        DataError: the choice does not fit the images.
    """
    if validation_list:
        validates = listed(annotations, validation_list)
        origin = printable(validation_list)
    elif annotations.sides:
        validates, origin = column_split(annotations), 'the column split'
    else:
        return None
    training = np.flatnonzero(np.logical_not(validates)).tolist()
    validation = np.flatnonzero(validates).tolist()
    if not (training and validation):
        raise DataError(f'{origin}: leaves no image to '
                        + ('validate on' if training else 'train on'))
    return training, validation, origin


def listed(annotations, validation_list):
    """Returns whether a list names each face's image, N bools."""
    names = [lists.normal(os.path.splitext(image)[0])
             for image in annotations.images]
    chosen, known = {}, {*names}
    for name, number in lists.read_list(validation_list).items():
        chosen[lists.normal(name)] = number
        if lists.normal(name) not in known:
            raise fault(validation_list, f'line {number}: {printable(name)} '
                        'is none of the images (a name is without .jpg, as '
                        'in a filename list)')
    return [name in chosen for name in names]


def column_split(annotations):
    """Returns whether a table's column has each face validate, N bools."""
    sides = {}
    for name, image, side in zip(annotations.names, annotations.images,
                                 annotations.sides):
        if side not in ('train', 'validation'):
            raise DataError(f'{printable(name)}: its split is {side!r}, '
                            'wanted are train and validation')
        if sides.setdefault(image, side) != side:
            raise fault(image, 'is on both sides of the split')
    return [side == 'validation' for side in annotations.sides]


def split_indices(keys, seed=0):
    """Divides images into sorted indices of training and validation, 9:1.

    Args:
        keys: of all images, see `split_keys`.
        seed: of the split's own generator.
    """
    by_key, validation = {}, []
    for index, key in enumerate(keys):
        by_key.setdefault(key, []).append(index)
    members = list(by_key.values())
    if len(members) < 2:
        raise DataError('the split needs 2 photographs or groups, and all '
                        f'images are of {printable(keys[0])} (--split image '
                        'divides these)')
    order = torch.randperm(
        len(members), generator=torch.Generator().manual_seed(seed))
    for position in order[:-1].tolist():  # leaves one key to train on
        if len(validation) >= VALIDATION_SHARE * len(keys):
            break
        validation += members[position]
    return sorted(set(range(len(keys))) - set(validation)), sorted(validation)


def print_split(keys, kind, training, validation, origin=None):
    """Prints each side's numbers, and whether the split is far from 9:1.

    Of one's own split, which has an `origin`, what is on both sides is said.
    """
    counts = [f'{len(indices):,} images' + (
        '' if kind == 'images' else
        f' of {len({keys[index] for index in indices}):,} {kind}')
        for indices in (training, validation)]
    print(f'{counts[0]} to train on, {counts[1]} to validate on'
          + (f', by {origin}' if origin else ''))
    if origin:
        both = ({keys[index] for index in training}
                & {keys[index] for index in validation})
        if both:
            print(f'{len(both):,} of the {kind} '
                  f'{"is" if len(both) == 1 else "are"} on both sides')
        return
    if kind != 'images' and not (LEAST_SHARE <= len(validation) / len(keys)
                                 <= MOST_SHARE):
        (largest, count), = collections.Counter(keys).most_common(1)
        print(f'This split is not 9:1: the largest of the {kind} is '
              f'{printable(largest)}, with {count:,} images; --split image '
              'divides them. (Without groups, names that differ in the '
              'number at their end count as one photograph.)')


def make_loader(dataset, batch_sampler, num_workers=0, device='cpu'):
    """Returns a DataLoader of `collate`'s batches, pinned for a GPU."""
    # In a forked worker, ending OpenCV's own threads would hang.
    cv2.setNumThreads(1)
    return DataLoader(dataset, batch_sampler=batch_sampler,
                      num_workers=num_workers, pin_memory=device != 'cpu',
                      persistent_workers=num_workers > 0,
                      worker_init_fn=start_worker, collate_fn=collate)


def check_shared_memory(num_workers, batch_size, image_size):
    """Says where /dev/shm cannot hold the batches that workers prepare."""
    needed = num_workers * PREFETCHED * batch_size * image_size ** 2 * 3
    if hasattr(os, 'statvfs') and os.path.isdir('/dev/shm'):  # of Linux
        status = os.statvfs('/dev/shm')
        free = status.f_bavail * status.f_frsize
        if free < needed:
            print(f'/dev/shm has {free / 1e6:.0f} MB free, and the batches '
                  f'of --workers need {needed / 1e6:.0f}: fewer --workers, '
                  'or, in Docker, --shm-size 2g')


def collate(items):
    """Makes a batch of `PoseDataset`'s items.

    Returns:
        uint8 tensor (N, 3, size, size), channels last in memory; float32
        array (N, 3), degrees; int64 array (N,); float32 array (N, 4), the
        boxes.  (Few numbers come from a worker faster as arrays: a tensor
        comes in shared memory.)
    """
    images, angles, indices, boxes = zip(*items)
    images = default_collate([torch.from_numpy(image) for image in images])
    return (images.permute(0, 3, 1, 2), np.stack(angles), np.array(indices),
            np.stack(boxes))


def start_worker(_):
    """Leaves Ctrl-C, which reaches workers too, to the process in charge."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def training_loaders(annotations, *, batch_size=32, image_sizes=(224,),
                     num_epochs=1, augmentation=Augmentation(), weak_end=0.0,
                     split='photo', split_seed=0, validation_list=None,
                     seed=0, with_boxes=False, num_workers=0, device='cpu',
                     rank=0, world_size=1):
    """Returns the shuffled training and the fixed validation loader.

    Args:
        annotations: see `read_annotations`.
        batch_size: of all processes together.
        image_sizes: sides of the training crops, pixels: each has an equal
            part of the epochs; the last is that of the validation crops.
        augmentation: beyond HopeNet's; None trains on the test crops.
        weak_end: last share of the run, which has a quarter of it.
        split, split_seed: 'photo' or 'image', see `split_keys`, and its seed.
        validation_list: see `chosen_split`.
        seed: of the order and of the augmentation.
        with_boxes: see `PoseDataset`, of the training crops.
        num_workers: processes that load images.
        rank, world_size: of this process, and the number of processes.

    Raises:
        DataError: there are too few images to divide.
    """
    keys, kind = split_keys(annotations, split)
    training, validation, *origin = (
        chosen_split(annotations, validation_list)
        or split_indices(keys, split_seed))
    print_split(keys, kind, training, validation, *origin)
    if len(training) < world_size:
        raise fault(annotations.data_dir, f'{len(training)} training images '
                    f'are too few for {world_size} processes')
    sizes = [image_sizes[epoch * len(image_sizes) // num_epochs]
             for epoch in range(num_epochs)]
    by_epoch = augmentation and [
        augmentation.weakened(WEAK) if epoch >= num_epochs * (1 - weak_end)
        else augmentation for epoch in range(num_epochs)]
    if rank == 0:
        check_shared_memory(num_workers, batch_size, max(sizes))
    sides = ((PoseDataset(annotations, sizes, by_epoch, seed,
                          textures=training, with_boxes=with_boxes),
              training, True),
             (PoseDataset(annotations, image_sizes[-1]), validation, False))
    return tuple(
        make_loader(dataset, EpochBatchSampler(
            indices, batch_size, shuffle, seed, rank, world_size),
            num_workers, device) for dataset, indices, shuffle in sides)


def evaluation_loader(annotations, *, batch_size=32, image_size=224,
                      protocol='ours', num_workers=0, device='cpu', rank=0,
                      world_size=1):
    """Returns the loader of all images, in the list's order.

    Args: see `training_loaders` and `PoseDataset`.
    """
    if rank == 0:
        check_shared_memory(num_workers, batch_size, image_size)
    items = PoseDataset(annotations, image_size, protocol=protocol)
    sampler = EpochBatchSampler(range(len(items)), batch_size, rank=rank,
                                world_size=world_size)
    return make_loader(items, sampler, num_workers, device)
