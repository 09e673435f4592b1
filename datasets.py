"""300W-LP and AFLW2000-3D: from .jpg and .mat files to batches of tensors.

Angles are in degrees, in the order yaw, pitch, roll.  An image is a uint8
array (size, size, 3), RGB; it becomes a network's float input on the device
(`hopenet.normalize`), where that costs least.

PyTorch, which takes seconds to import, is imported where batches are made:
filename_generator.py and the scripts' --help do without.
"""
import math
import os
import re
import signal
from typing import NamedTuple

import cv2
import numpy as np
import scipy.io
import simplejpeg
from PIL import Image
from scipy.spatial.transform import Rotation
from tqdm import tqdm

# The protocol keeps what lies within +-99 degrees.  An angle of exactly 99
# degrees, stored as float32 radians, comes back up to 4e-6 degrees larger.
MAX_ANGLE = 99.0
ROUNDING = 1e-4

# The published margins around the landmarks, in box sizes, for margin k.
TRAIN_SIDE, PROTOCOL_SIDE = 0.6, 2.0  # left and right of the face
ABOVE, BELOW = 2.0, 0.6
PROTOCOL_K = 0.2

# Pillow's ImageFilter.BLUR, which HopeNet blurs training images with.
BLUR = np.ones((5, 5), np.float32) / 16
BLUR[1:4, 1:4] = 0

DRAWS = 14  # random numbers for a training image

# The spellings in use: the releases', the document's and HopeNet's options.
DATASETS = {'AFLW2000': 'AFLW2000', 'AFLW2000-3D': 'AFLW2000',
            '300W_LP': '300W_LP', '300W-LP': '300W_LP',
            'Pose_300W_LP': '300W_LP'}


class DataError(ValueError):
    """A file of the data set that cannot be used; the message names it."""


class Augmentation(NamedTuple):
    """What training may do beyond HopeNet's margin, shift, flip and blur."""
    rotate: float = 0.0          # turn by up to so many degrees, in the plane
    box_jitter: float = 0.0      # move and scale the box by up to this share
    color_jitter: float = 0.0    # change brightness, contrast and saturation
    low_resolution: float = 0.0  # of this share of the images, up to 4 times


class Annotations(NamedTuple):
    """What the .mat files of N listed images say, in the list's order."""
    names: list         # N strings, without extension
    angles: np.ndarray  # (N, 3) float32, degrees: yaw, pitch, roll
    boxes: np.ndarray   # (N, 4) float64, pixels: x_min, y_min, x_max, y_max


# ------------------------------------------------------------- annotations

def read_mat(path):
    """Reads one .mat file of 300W-LP or AFLW2000.

    Returns:
        angles: float64 array (3,), degrees: yaw, pitch, roll.
        pt2d: float64 array (2, K), the landmarks' x and y in pixels.

    Raises:
        DataError: the file is missing, damaged, or has no finite Pose_Para
            and pt2d.
    """
    try:
        # All of it: asked for two fields, SciPy misses a truncated rest.
        mat = scipy.io.loadmat(path)
        pose, pt2d = mat['Pose_Para'], mat['pt2d']
        pose = np.asarray(pose, np.float64).ravel()
        pt2d = np.asarray(pt2d, np.float64)
    except FileNotFoundError:
        raise DataError(f'{path}: no such file') from None
    except KeyError as error:
        raise DataError(f'{path}: has no {error.args[0]}') from None
    # loadmat documents no list of errors: damaged bytes raise what they may.
    except Exception as error:
        raise DataError(f'{path}: not a readable .mat file '
                        f'({str(error) or type(error).__name__})') from None
    if pose.size < 3 or pt2d.ndim != 2 or len(pt2d) != 2 or not pt2d.size:
        raise DataError(f'{path}: expected Pose_Para with at least 3 values '
                        f'and pt2d of shape (2, K), found {pose.size} and '
                        f'{pt2d.shape}')
    if not (np.isfinite(pose[:3]).all() and np.isfinite(pt2d).all()):
        raise DataError(f'{path}: Pose_Para or pt2d is not finite')
    return np.degrees(pose[[1, 0, 2]]), pt2d  # the file: pitch, yaw, roll


def face_box(pt2d, landmarks='visible'):
    """Returns the landmarks' box: x_min, y_min, x_max, y_max.

    AFLW2000 marks landmarks that cannot be seen with x = -1 (their y is then
    452).  'visible' leaves them out; 'raw', the published protocol, takes
    them for points of the face.

    Args:
        pt2d: array (2, K).
        landmarks: 'visible' or 'raw'.

    Raises:
        DataError: the box has no area.
    """
    if landmarks == 'visible':
        pt2d = pt2d[:, pt2d[0] != -1]
    if not pt2d.size or np.ptp(pt2d, axis=1).min() <= 0:
        raise DataError('the landmarks of pt2d span no box')
    return np.concatenate((pt2d.min(1), pt2d.max(1)))


def beyond_range(angles):
    """Says which angle (degrees) is beyond +-99, or returns None."""
    for axis, angle in zip(('yaw', 'pitch', 'roll'), angles):
        if abs(angle) > MAX_ANGLE + ROUNDING:
            return f'{axis} of {angle:.2f} degrees is beyond +-99'
    return None


def read_list(path):
    """Returns the names in a filename_list.txt, one a line.

    Raises:
        DataError: there is no such file, or it is empty.
    """
    try:
        with open(path, encoding='utf-8') as file:
            names = [line.strip() for line in file if line.strip()]
    except OSError as error:
        raise DataError(f'{path}: {error.strerror}; filename_generator.py '
                        'writes the list') from None
    except UnicodeDecodeError:
        raise DataError(f'{path}: is not a text file') from None
    if not names:
        raise DataError(f'{path}: lists no image')
    return names


def read_annotations(data_dir, filename_list, landmarks='visible'):
    """Reads the .mat files of all listed images, once, before any training.

    Args:
        data_dir: the folder that the listed names are relative to.
        filename_list: a file that filename_generator.py wrote.
        landmarks: see `face_box`.

    Raises:
        DataError: a listed file is missing, damaged or out of range.
    """
    if not os.path.isdir(data_dir):
        raise DataError(f'{data_dir}: no such data folder')
    names = read_list(filename_list)
    angles, boxes = np.empty((len(names), 3)), np.empty((len(names), 4))
    bar = tqdm(names, 'reading .mat files', leave=False, disable=None)
    for row, name in enumerate(bar):
        path = os.path.join(data_dir, name)
        if not os.path.isfile(path + '.jpg'):
            raise DataError(f'{path}.jpg: no such file, but '
                            f'{filename_list} lists it')
        angles[row], pt2d = read_mat(path + '.mat')
        beyond = beyond_range(angles[row])
        if beyond:
            raise DataError(f'{path}.mat: {beyond}; filename_generator.py '
                            'leaves such images out of the list')
        try:
            boxes[row] = face_box(pt2d, landmarks)
        except DataError as error:
            raise DataError(f'{path}.mat: {error}') from None
    angles = angles.clip(-MAX_ANGLE, MAX_ANGLE).astype(np.float32)
    return Annotations(names, angles, boxes)


# ------------------------------------------------------------------- crops

def expand_box(box, k, side):
    """Adds the published margins to a face box.

    Each line measures the box that the lines before have grown already; this
    is the published crop, and figures compare only if it is kept.

    Args:
        box: x_min, y_min, x_max, y_max, pixels.
        k: the margin, in box sizes: 0.2 to 0.4 in training, 0.2 in tests.
        side: TRAIN_SIDE or PROTOCOL_SIDE.

    Returns:
        Four ints; they may lie outside the image.
    """
    x_min, y_min, x_max, y_max = map(float, box)
    x_min -= side * k * abs(x_max - x_min)
    y_min -= ABOVE * k * abs(y_max - y_min)
    x_max += side * k * abs(x_max - x_min)
    y_max += BELOW * k * abs(y_max - y_min)
    return int(x_min), int(y_min), int(x_max), int(y_max)


def resized(width, height, shorter):
    """Returns a size of the same shape whose shorter side is `shorter`."""
    if width <= height:
        return shorter, max(shorter, int(shorter * height / width))
    return max(shorter, int(shorter * width / height)), shorter


def protocol_crop(image, box, size=224):
    """Crops a face as the published test does, with Pillow, step by step.

    Args:
        image: RGB PIL image; what a crop has outside of it is black.
        box: of the landmarks, see `face_box`.
        size: side of the result, pixels.

    Returns:
        RGB PIL image, size x size.
    """
    image = image.crop(expand_box(box, PROTOCOL_K, PROTOCOL_SIDE))
    width, height = resized(*image.size, size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left = round((width - size) / 2)
    top = round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def training_crop(image, box, draws, size=224, turn=0.0):
    """Crops a face with HopeNet's random margin, shift, flip and blur.

    The steps are those of HopeNet's transforms, in OpenCV, and what they make
    differs from Pillow's by a fraction of a grey level.

    Args:
        image: uint8 array (H, W, 3).
        box: of the landmarks, see `face_box`.
        draws: five numbers in [0, 1): margin, shift across and down, flip,
            blur.
        size: side of the result, pixels.
        turn: degrees, clockwise, about the centre of the crop.

    Returns:
        The crop, a uint8 array (size, size, 3), and whether it is flipped.
    """
    flip = bool(draws[3] < 0.5)
    x_min, y_min, x_max, y_max = expand_box(box, 0.2 + 0.2 * draws[0],
                                            TRAIN_SIDE)
    wide, high = x_max - x_min, y_max - y_min
    width, height = resized(wide, high, round(size * 240 / 224))
    left = int(draws[1] * (width - size + 1))
    top = int(draws[2] * (height - size + 1))
    # What a turn brings in from beyond the box.
    rim = math.ceil(0.21 * size * wide / width) if turn else 0
    face = cut(image, x_min - rim, y_min - rim, x_max + rim, y_max + rim)
    if rim:
        old = face.shape
        width = round(old[1] * width / wide)
        height = round(old[0] * height / high)
        left += rim * width / old[1]
        top += rim * height / old[0]
    else:
        face, height, top = rows_around(face, height, top, size)
    if draws[4] < 0.05:
        face = cv2.filter2D(face, -1, BLUR)
    face = resize(face, width, height)
    if not turn:
        if flip:  # of the crop alone, which therefore lies on the other side
            left = width - size - left
        face = face[top:top + size, left:left + size]
        return cv2.flip(face, 1) if flip else face, flip
    if flip:
        face = cv2.flip(face, 1)
    # From the crop's pixels to the face's: a turn about the centre, a shift.
    matrix = cv2.getRotationMatrix2D((size / 2 - 0.5, size / 2 - 0.5), turn, 1)
    matrix[:, 2] += left, top
    return cv2.warpAffine(face, matrix, (size, size), flags=cv2.INTER_LINEAR
                          | cv2.WARP_INVERSE_MAP), flip


def rows_around(image, height, top, size):
    """Cuts rows off that a resized image's crop would cut off afterwards.

    The rows that are left start and end where rows of the result do, to 3
    hundredths of a pixel.

    Args:
        image: array (H, W, 3), to be resized to `height` rows.
        height: rows of the result.
        top: the crop's first row in it.
        size: the crop's rows.

    Returns:
        The image's rows, and the `height` and `top` that fit them.
    """
    scale = len(image) / height

    def fits(row):  # the first row and the end always do
        return abs(row * scale - round(row * scale)) < 0.03

    first = next(filter(fits, range(top, -1, -1)))
    last = next(filter(fits, range(top + size, height + 1)))
    return (image[round(first * scale):round(last * scale)], last - first,
            top - first)


def cut(image, x_min, y_min, x_max, y_max):
    """Returns a part of an image (H, W, 3), black where it lies outside."""
    height, width = image.shape[:2]
    rims = (max(0, -y_min), max(0, y_max - height),
            max(0, -x_min), max(0, x_max - width))
    if any(rims):
        if x_max <= 0 or y_max <= 0 or x_min >= width or y_min >= height:
            return np.zeros((y_max - y_min, x_max - x_min, 3), image.dtype)
        part = image[max(0, y_min):y_max, max(0, x_min):x_max]
        return cv2.copyMakeBorder(part, *rims, cv2.BORDER_CONSTANT)
    return image[y_min:y_max, x_min:x_max]


def resize(image, width, height):
    """Resizes an image (H, W, 3) as Pillow does, faster where it can be."""
    if max(image.shape[1] / width, image.shape[0] / height) > 1.25:
        # OpenCV reads 2x2 pixels; to shrink by more, Pillow reads them all.
        return np.array(Image.fromarray(image).resize(
            (width, height), Image.Resampling.BILINEAR))
    return cv2.resize(image, (width, height))


def jittered(box, amount, draws):
    """Returns a box moved by up to half of `amount`, and scaled by up to it.

    Detectors, and AFLW2000's 21 landmarks, frame a face otherwise than
    300W-LP's 68 do.

    Args:
        box: x_min, y_min, x_max, y_max.
        amount: share of the box's size.
        draws: three numbers in [0, 1): across, down, size.
    """
    across, down, scale = amount * (2 * np.asarray(draws) - 1)
    size = np.subtract(box[2:], box[:2])
    center = np.add(box[2:], box[:2]) / 2 + size * (across, down) / 2
    half = size * (1 + scale) / 2
    return np.concatenate((center - half, center + half))


def turned(angles, degrees):
    """Returns the angles of a head whose picture is turned clockwise.

    Not an addition to roll: the turn comes after the head's own rotation.

    Args:
        angles: array (3,), degrees: yaw, pitch, roll.
        degrees: of the turn.

    Returns:
        float64 array (3,): of the two triples that mean the new rotation,
        the one nearer to the old.
    """
    # 3DDFA's R = Rx Ry Rz, all of the inverse sense, in axes with y upwards.
    head = Rotation.from_euler('XYZ', np.negative(angles)[[1, 0, 2]],
                               degrees=True)
    turn = Rotation.from_euler('Z', -degrees, degrees=True)
    pitch, yaw, roll = -(turn * head).as_euler('XYZ', degrees=True)
    triples = np.array([[yaw, pitch, roll],
                        [180 - yaw, pitch + 180, roll + 180]])
    triples = (triples + 180) % 360 - 180
    return min(triples, key=lambda triple: np.abs(triple - angles).sum())


def recolored(image, amount, draws):
    """Changes brightness, contrast and saturation, each by up to `amount`.

    Args:
        image: uint8 array (H, W, 3), RGB.
        amount: share of the value, below 1.
        draws: three numbers in [0, 1).
    """
    brightness, contrast, saturation = 1 + amount * (2 * draws - 1)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    middle = grey.mean() * brightness * (1 - contrast)
    image = cv2.addWeighted(image, saturation,
                            cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB),
                            1 - saturation, 0)
    return cv2.addWeighted(image, brightness * contrast, image, 0, middle)


def coarsened(image, draw):
    """Takes the detail out that a picture of up to 4 times fewer has not."""
    size = image.shape[1::-1]
    small = [max(1, round(side / (1 + 3 * draw))) for side in size]
    return cv2.resize(cv2.resize(image, small, interpolation=cv2.INTER_AREA),
                      size, interpolation=cv2.INTER_LINEAR)


# ---------------------------------------------------------------- loading

def read_training_image(path):
    """Reads a JPEG as an RGB array (H, W, 3), quickly.

    Colours are interpolated between their samples as simply as can be; the
    mean difference from Pillow is 0.4 grey levels (51 images of 300W-LP).

    Raises:
        OSError: the file is missing or damaged.
    """
    with open(path, 'rb') as file:
        data = file.read()
    try:
        return simplejpeg.decode_jpeg(data, fastupsample=True)
    except ValueError:  # whatever is odd about a file, Pillow decides
        return np.asarray(Image.open(path).convert('RGB'))


class PoseDataset:
    """Images and angles, by index; for a DataLoader.

    A training image is changed at random, as a function of (seed, epoch,
    index) alone: neither the order nor the number of workers matters.

    Args:
        data_dir: the folder that the annotations' names are relative to.
        annotations: of all listed images; a split picks among the indices.
        size: side of the crops, pixels.
        augment: training crops; else the protocol's test crop.
        seed: of the augmentation.
        more: augmentation beyond HopeNet's.
    """

    def __init__(self, data_dir, annotations, size=224, augment=False,
                 seed=0, more=Augmentation()):
        self.data_dir = data_dir
        self.annotations = annotations
        self.size = size
        self.augment = augment
        self.seed = seed
        self.more = more
        self._draws = None, None  # the epoch that they are for, and they

    def __len__(self):
        return len(self.annotations.names)

    def path(self, index):
        """Returns the path of an image."""
        return os.path.join(self.data_dir,
                            self.annotations.names[index] + '.jpg')

    def draws(self, epoch):
        """Returns the random numbers of an epoch, (N, DRAWS) in [0, 1)."""
        if self._draws[0] != epoch:
            import torch

            generator = torch.Generator().manual_seed(
                self.seed * 1_000_003 + epoch)
            self._draws = epoch, torch.rand(
                len(self), DRAWS, generator=generator).numpy()
        return self._draws[1]

    def __getitem__(self, key):
        """Returns an image, its angles and its index.

        Args:
            key: (epoch, index), as `Batches` yields them.

        Returns:
            uint8 array (size, size, 3), float32 array (3,), int.

        Raises:
            DataError: the image is missing or damaged.
        """
        epoch, index = key
        path, box = self.path(index), self.annotations.boxes[index]
        angles = self.annotations.angles[index]
        try:
            if self.augment:
                image, angles = self.augmented(
                    read_training_image(path), box, angles,
                    self.draws(epoch)[index])
            else:
                image = np.array(protocol_crop(
                    Image.open(path).convert('RGB'), box, self.size))
        except (OSError, SyntaxError) as error:  # Pillow raises both
            raise DataError(f'{path}: cannot be read as an image '
                            f'({error})') from None
        return image, angles.astype(np.float32), index

    def augmented(self, image, box, angles, draws):
        """Returns a training crop and the angles of the head in it.

        Args:
            image: RGB array (H, W, 3).
            box: of the landmarks.
            angles: (3,) degrees.
            draws: DRAWS numbers in [0, 1).
        """
        more, turn = self.more, 0.0
        if more.box_jitter:
            box = jittered(box, more.box_jitter, draws[5:8])
        if draws[3] < 0.5:  # as training_crop flips
            angles = angles * np.float32([-1, 1, -1])
        if more.rotate:
            turn = more.rotate * (2 * float(draws[8]) - 1)
            new = turned(angles, turn)
            if beyond_range(new):
                turn = 0.0  # there are no bins for the head so turned
            else:
                angles = new
        image, _ = training_crop(image, box, draws, self.size, turn)
        if draws[9] < more.low_resolution:
            image = coarsened(image, draws[10])
        if more.color_jitter:
            image = recolored(image, more.color_jitter, draws[11:14])
        return image, angles


def permutation(count, seed):
    """Returns 0 to count - 1 in an order of the seed alone, an array."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator).numpy()


class Batches:
    """Yields lists of (epoch, index), the keys of `PoseDataset`.

    Several processes share each batch: its size is that of all their parts.
    No image is given twice, and none is left out, but for one case: at the
    end of a training epoch, a batch with fewer images than processes.

    Args:
        indices: the images to go through.
        batch_size: of all processes; the last batch has what is left.
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
        # In training every process must have a part, to take each step; in
        # evaluation those without simply do nothing.
        least = self.world if self.shuffle else self.rank + 1
        starts = range(0, len(order), self.batch_size)
        batches = [order[start:start + self.batch_size] for start in starts]
        return [batch for batch in batches if len(batch) >= least]

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


def photograph(name):
    """Returns the photograph that a rendering was made from.

    `AFW/AFW_134212_1_3` and `AFW_Flip/AFW_134212_1_5` both come from
    `AFW/AFW_134212_1`; a name without a rendering's number is its own.
    """
    folder, base = os.path.split(name)
    return os.path.join(folder.removesuffix('_Flip'),
                        re.sub(r'_\d+$', '', base))


def split(names, by='photo', seed=0, share=0.1):
    """Divides the images into training and validation, 9:1.

    Args:
        names: of all images.
        by: 'photo' keeps all renderings of a photograph on one side; 'image'
            is the document's literal split, in which nearly every validation
            image has a sibling in training.
        seed: of the split's own generator.
        share: of the validation images; with 'photo' at least that.

    Returns:
        Two sorted lists of indices: training, validation.

    Raises:
        DataError: there are not two groups to divide.
    """
    groups = {}
    for index, name in enumerate(names):
        key = photograph(name) if by == 'photo' else index
        groups.setdefault(key, []).append(index)
    if len(groups) < 2:
        raise DataError(
            'the split needs at least 2 images' if by == 'image' else
            'the split needs at least 2 photographs, and the list has only '
            f'renderings of {photograph(names[0])} (--split image divides '
            'these)')
    groups = list(groups.values())
    validation, order = [], permutation(len(groups), seed)
    for position in order[:-1]:  # one group at least is left to train on
        if len(validation) >= share * len(names):
            break
        validation += groups[position]
    training = sorted(set(range(len(names))) - set(validation))
    return training, sorted(validation)


def make_loader(dataset, batches, workers=0, pin_memory=False):
    """Returns a DataLoader of `collate`'s batches."""
    from torch.utils.data import DataLoader

    # The workers are the parallelism.  OpenCV's own threads must end before
    # the workers are forked: in a copy of the process, ending them hangs.
    cv2.setNumThreads(1)
    return DataLoader(dataset, batch_sampler=batches, num_workers=workers,
                      pin_memory=pin_memory, persistent_workers=workers > 0,
                      worker_init_fn=start_worker, collate_fn=collate)


def collate(items):
    """Makes a batch of `PoseDataset`'s items.

    From a worker the images come in shared memory.  The rest is so small that
    it comes faster in the message itself, hence as arrays.

    Returns:
        uint8 tensor (N, 3, size, size), in memory channels last, as the
        networks want it; float32 array (N, 3), degrees; int64 array (N,).
    """
    import torch
    from torch.utils.data import default_collate

    images, angles, indices = zip(*items)
    images = default_collate([torch.from_numpy(image) for image in images])
    return images.permute(0, 3, 1, 2), np.stack(angles), np.array(indices)


def start_worker(_):
    """Leaves Ctrl-C, which reaches workers too, to the process in charge."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def training_loaders(options):
    """Returns the shuffled training and the fixed validation loader.

    Args:
        options: see `utils.start`.
    """
    annotations = read_annotations(options.data_dir, options.filename_list,
                                   options.landmarks)
    training, validation = split(annotations.names, options.split,
                                 options.split_seed)
    more = Augmentation(*(getattr(options, name)
                          for name in Augmentation._fields))
    train_set = PoseDataset(options.data_dir, annotations, options.image_size,
                            options.augment, options.seed, more)
    val_set = PoseDataset(options.data_dir, annotations, options.image_size)
    return tuple(
        make_loader(dataset, Batches(indices, options.batch_size, shuffle,
                                     options.seed, options.rank,
                                     options.world),
                    options.workers, options.pin_memory)
        for dataset, indices, shuffle in (
            (train_set, training, True), (val_set, validation, False)))


def evaluation_loader(options):
    """Returns the loader of all listed images, in the list's order."""
    annotations = read_annotations(options.data_dir, options.filename_list,
                                   options.landmarks)
    dataset = PoseDataset(options.data_dir, annotations, options.image_size)
    batches = Batches(range(len(dataset)), options.batch_size,
                      rank=options.rank, world=options.world)
    return make_loader(dataset, batches, options.workers, options.pin_memory)
