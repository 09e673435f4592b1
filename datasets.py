"""Images and labels to batches: the 9:1 split and the loaders.

An image is a uint8 array (size, size, 3), RGB; it becomes a network's float
input on the device (`hopenet.normalize`), where that costs least.
"""
import collections
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
                                       shrinkage)
from headpose.geometry.crop import crop_problem, protocol_crop
from headpose.readers import biwi, table
from headpose.readers.images import read_image
from headpose.readers.lists import photograph, read_annotations
from headpose.training.options import DATASETS

WEAK = 0.25  # of the augmentation is left at the end of a run
# Of all images, in validation: beyond these 9:1 is no longer what was asked.
LEAST_SHARE, MOST_SHARE = 0.05, 0.2


class PoseDataset:
    """Images and angles, by index; for a DataLoader.

    A training image is changed at random, as a function of (seed, epoch,
    index) alone: neither the order nor the number of workers matters.

    Args:
        data_dir: the folder that the annotations' names are relative to.
        annotations: of all listed images; a split picks among the indices.
        size: side of the crops, pixels; or a list, one for each epoch.
        augment: training crops; else the protocol's test crop.
        seed: of the augmentation.
        more: augmentation beyond HopeNet's; or a list, one for each epoch.
        protocol: of the test crop, see `crop.protocol_crop`.
        textures: indices of the images that patches are cut from, see
            `augment.occluded`; None for patches of one colour.
    """

    def __init__(self, data_dir, annotations, size=224, augment=False,
                 seed=0, more=Augmentation(), protocol='ours',
                 textures=None):
        self.data_dir = data_dir
        self.annotations = annotations
        self.size = size
        self.augment = augment
        self.seed = seed
        self.more = more
        self.protocol = protocol
        self.textures = textures
        self._draws = None, None  # cached: (epoch, its random numbers)

    def __len__(self):
        return len(self.annotations.names)

    def path(self, index):
        """Returns the path of an image."""
        return os.path.join(self.data_dir, self.annotations.images[index])

    def draws(self, epoch):
        """Returns the random numbers of an epoch, (N, fields of `Draws`)."""
        if self._draws[0] != epoch:
            generator = torch.Generator().manual_seed(
                self.seed * 1_000_003 + epoch)
            self._draws = epoch, torch.rand(
                len(self), len(Draws._fields), generator=generator).numpy()
        return self._draws[1]

    def texture(self, draw):
        """Returns a training picture to cut a patch from, an RGB array."""
        index = self.textures[int(draw * len(self.textures))]
        return read_image(self.path(index), fast=True, shrink=2)

    def __getitem__(self, key):
        """Returns an image, its angles and its index.

        Args:
            key: (epoch, index), as `Batches` yields them.

        Returns:
            uint8 array (size, size, 3), float32 array (3,), int.

        Raises:
            DataError: the image is missing or damaged, or its face box lies
                outside it.
        """
        epoch, index = key
        path, box = self.path(index), self.annotations.boxes[index]
        angles = self.annotations.angles[index]
        size, shrink = of_epoch(self.size, epoch), 1
        if self.augment:
            draws = Draws(*self.draws(epoch)[index])
            more = of_epoch(self.more, epoch)
            shrink = shrinkage(box, draws, size, more.box_jitter)
        image = read_image(path, self.augment, shrink)
        problem = crop_problem(box, *np.multiply(image.shape[1::-1], shrink))
        if problem:
            raise fault(path, problem)
        if self.augment:
            other = self.textures and functools.partial(self.texture,
                                                        draws.other)
            image, angles = augmented_crop(image, box, angles, draws, size,
                                           more, shrink, other)
        else:
            image = np.array(protocol_crop(Image.fromarray(image), box, size,
                                           self.protocol))
        return image, angles.astype(np.float32), index


def of_epoch(value, epoch):
    """Returns what of a list is for an epoch, counted from 1; or the value.

    Epochs beyond its end have its last entry.
    """
    if isinstance(value, list):
        return value[min(max(epoch, 1), len(value)) - 1]
    return value


def permutation(count, seed):
    """Returns 0 to count - 1 in an order of the seed alone, an array."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator).numpy()


class Batches:
    """Yields lists of (epoch, index), the keys of `PoseDataset`.

    Several processes share each batch: its size is that of all their parts.
    No image is given twice, and none is left out.  In training every process
    has a part of each batch: where fewer images than processes are left at
    the end of an epoch, they join the batch before.

    Args:
        indices: the images to go through.
        batch_size: of all processes, at least one image each; the last batch
            has what is left.
        shuffle: training: a new order each epoch, of (seed, epoch) alone.
        seed: of the order.
        rank: of this process.
        world: the number of processes.
    """

    def __init__(self, indices, batch_size, shuffle=False, seed=0, rank=0,
                 world=1):
        self.indices = np.asarray(indices)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world = world
        self.epoch = 0

    def sizes(self):
        """Returns the number of images of each batch, in all processes."""
        return [len(batch) for batch in self._split(self.indices)]

    def _split(self, order):
        starts = range(0, len(order), self.batch_size)
        batches = [order[start:start + self.batch_size] for start in starts]
        if not self.shuffle:  # processes without a part simply do nothing
            return [batch for batch in batches if len(batch) > self.rank]
        if len(batches) > 1 and len(batches[-1]) < self.world:
            batches[-2:] = [np.concatenate(batches[-2:])]
        return batches

    def __len__(self):
        return len(self._split(self.indices))

    def __iter__(self):
        order = self.indices
        if self.shuffle:
            order = order[permutation(len(order),
                                      self.seed * 1_000_003 + self.epoch)]
        for batch in self._split(order):
            yield [(self.epoch, index)
                   for index in batch[self.rank::self.world].tolist()]


def read_data(data_dir, filename_list, landmarks='visible', labels=None,
              dataset=None):
    """Returns the `Annotations` of a data set, whatever holds its labels.

    Args:
        data_dir: the folder that names are relative to.
        filename_list: names; None: all of a table's.
        landmarks: see `mat.face_box`.
        labels: a table, see headpose/readers/table.py; None: the .mat files.
        dataset: one of the names in `options.DATASETS`, or None; BIWI has
            only boxes in its table, see headpose/readers/biwi.py.

    Raises:
        DataError: something is missing, damaged or out of range.
    """
    if DATASETS.get(dataset) == 'BIWI':
        return biwi.read_annotations(data_dir, labels, filename_list)
    if labels:
        return table.read_annotations(data_dir, labels, filename_list)
    return read_annotations(data_dir, filename_list, landmarks)


def split_keys(names, by='photo', groups=None):
    """Returns what each image's side of a split goes by, a list.

    Args:
        names: of all images.
        by: 'photo' or 'image', see `split_names`.
        groups: of all images, or None: their photographs.
    """
    if by == 'image':
        return list(range(len(names)))
    return groups or list(map(photograph, names))


def split_names(names, by='photo', seed=0, share=0.1, groups=None):
    """Divides the images into training and validation, 9:1.

    Args:
        names: of all images.
        by: 'photo' keeps all renderings of a photograph on one side; 'image'
            is the document's literal split, in which nearly every validation
            image has a sibling in training.
        seed: of the split's own generator.
        share: of the validation images; with 'photo' at least that.
        groups: of all images, what 'photo' keeps together instead.

    Returns:
        Two sorted lists of indices: training, validation.

    Raises:
        DataError: there are not two groups to divide.
    """
    members = {}
    for index, key in enumerate(split_keys(names, by, groups)):
        members.setdefault(key, []).append(index)
    if len(members) < 2:
        raise DataError(
            'the split needs at least 2 images' if by == 'image' else
            f'the split needs at least 2 groups, and all images are of '
            f'{printable(groups[0])} (--split image divides these)' if groups
            else 'the split needs at least 2 photographs, and the list has '
            f'only renderings of {photograph(names[0])} (--split image '
            'divides these)')
    members = list(members.values())
    validation, order = [], permutation(len(members), seed)
    for position in order[:-1]:  # one group at least is left to train on
        if len(validation) >= share * len(names):
            break
        validation += members[position]
    training = sorted(set(range(len(names))) - set(validation))
    return training, sorted(validation)


def check_split(names, training, validation, by='photo', groups=None):
    """Says how many images, and photographs, are on either side of a split.

    Args:
        names: of all images.
        training, validation: see `split_names`, as are `by`, `groups`.

    Raises:
        DataError: a split by photograph is far from 9:1.
    """
    keys = split_keys(names, by, groups)
    what = 'groups' if groups else 'photographs'
    counts = [f'{len(indices):,} images' + (
        '' if by == 'image' else ' of '
        f'{len({keys[index] for index in indices}):,} {what}')
        for indices in (training, validation)]
    text = f'{counts[0]} to train on, {counts[1]} to validate on'
    share = len(validation) / len(names)
    if by == 'photo' and not LEAST_SHARE <= share <= MOST_SHARE:
        largest, count = collections.Counter(keys).most_common(1)[0]
        raise DataError(
            f'the split by group is not 9:1: {text}. The largest group is '
            f'{printable(largest)}, with {count:,}; --split_seed draws '
            'others, --split image pays no heed to groups' if groups else
            f'the split by photograph is not 9:1: {text}. Names that differ '
            'in the number at their end are taken for renderings of one '
            f'photograph, {printable(largest)} for {count:,} of them; if they '
            'are not, --split image')
    print(text)


def make_loader(dataset, batches, workers=0, device='cpu'):
    """Returns a DataLoader of `collate`'s batches.

    Args:
        dataset: a `PoseDataset`.
        batches: `Batches` of its indices.
        workers: processes that load images.
        device: that the batches will go to; for a GPU their memory is pinned.
    """
    # The workers are the parallelism.  OpenCV's own threads must end before
    # the workers are forked: in a copy of the process, ending them hangs.
    cv2.setNumThreads(1)
    return DataLoader(dataset, batch_sampler=batches, num_workers=workers,
                      pin_memory=device != 'cpu',
                      persistent_workers=workers > 0,
                      worker_init_fn=start_worker, collate_fn=collate)


def collate(items):
    """Makes a batch of `PoseDataset`'s items.

    From a worker the images come in shared memory.  The rest is so small that
    it comes faster in the message itself, hence as arrays.

    Returns:
        uint8 tensor (N, 3, size, size), in memory channels last, as the
        networks want it; float32 array (N, 3), degrees; int64 array (N,).
    """
    images, angles, indices = zip(*items)
    images = default_collate([torch.from_numpy(image) for image in images])
    return images.permute(0, 3, 1, 2), np.stack(angles), np.array(indices)


def start_worker(_):
    """Leaves Ctrl-C, which reaches workers too, to the process in charge."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def training_loaders(data_dir, filename_list, batch_size=32,
                     image_size=224, landmarks='visible', augment=True,
                     more=Augmentation(), split='photo', split_seed=0,
                     seed=0, workers=0, device='cpu', rank=0, world=1,
                     labels=None, dataset=None, num_epochs=1,
                     image_sizes=None, weak_end=0.0):
    """Returns the shuffled training and the fixed validation loader.

    Args:
        data_dir, filename_list, landmarks, labels, dataset: see
            `read_data`.
        batch_size: of all processes together.
        image_size: side of the crops, pixels.
        augment: False trains on the test protocol's fixed crops.
        more: augmentation beyond HopeNet's.
        split, split_seed: see `split_names`.
        seed: of the order and of the augmentation.
        workers: processes that load images.
        device: that the batches will go to.
        rank, world: of this process, and the number of processes.
        num_epochs: of the run, which these share out:
        image_sizes: sides of the training crops, one after the other, in
            equal parts of the run; None for `image_size` throughout.
        weak_end: the last share of the run, whose training crops have a
            quarter of `more`.

    Raises:
        DataError: see `read_data`, `split_names` and `check_split`; or there
            are fewer training images than processes.
    """
    annotations = read_data(data_dir, filename_list, landmarks, labels,
                            dataset)
    names, groups = annotations.names, annotations.groups
    training, validation = split_names(names, split, split_seed,
                                       groups=groups)
    check_split(names, training, validation, split, groups)
    if len(training) < world:
        raise DataError(f'{filename_list or labels}: {len(training)} training '
                        f'images are too few for {world} processes')
    sizes = image_sizes or [image_size]
    train_set = PoseDataset(
        data_dir, annotations,
        [sizes[epoch * len(sizes) // num_epochs]
         for epoch in range(num_epochs)], augment, seed,
        [more.weakened(WEAK) if epoch >= num_epochs * (1 - weak_end) else more
         for epoch in range(num_epochs)], textures=training)
    val_set = PoseDataset(data_dir, annotations, image_size)
    return tuple(
        make_loader(dataset, Batches(indices, batch_size, shuffle, seed,
                                     rank, world), workers, device)
        for dataset, indices, shuffle in (
            (train_set, training, True), (val_set, validation, False)))


def evaluation_loader(data_dir, filename_list, batch_size=32, image_size=224,
                      landmarks='visible', workers=0, device='cpu', rank=0,
                      world=1, labels=None, dataset=None, protocol='ours'):
    """Returns the loader of all listed images, in the list's order.

    Args and errors: as in `training_loaders`; `protocol` as in `PoseDataset`.
    """
    annotations = read_data(data_dir, filename_list, landmarks, labels,
                            dataset)
    items = PoseDataset(data_dir, annotations, image_size, protocol=protocol)
    batches = Batches(range(len(items)), batch_size, rank=rank, world=world)
    return make_loader(items, batches, workers, device)
