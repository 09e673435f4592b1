"""Evaluation in several looks: each crops around the box found before."""
from datasets import evaluation_loader
from headpose.errors import RunError
from headpose.geometry.crop import next_box
from headpose.readers.images import check_image
from headpose.training.engine import evaluate


def evaluate_looks(model, annotations, looks=1, flip=False, **crops):
    """Yields the `Evaluation` of each look, and its `datasets.PoseDataset`.

    The first crops around the labels' boxes, as published; the next around
    the faces' boxes that the network found in the crops before.

    Args:
        model: a `hopenet.PoseNetwork`.
        annotations: see `datasets.read_annotations`.
        looks: their number; for more than one the network needs a `BoxHead`.
        flip: see `engine.evaluate`.
        crops: options of `datasets.evaluation_loader`.
    """
    if looks > 1 and not model.box_head:
        raise RunError('--looks: this network finds no box; one that does is '
                       'trained with --find_box')
    for look in range(1, looks + 1):
        loader = evaluation_loader(annotations, **crops)
        result = evaluate(model, loader, flip=flip)
        yield result, loader.dataset
        if look < looks:
            annotations = annotations._replace(
                boxes=next_boxes(result, loader.dataset))


def next_boxes(result, dataset):
    """Returns the boxes (N, 4) to crop around in the look after a result."""
    boxes = dataset.annotations.boxes.copy()
    sizes = {}
    for index, shares in zip(result.indices, result.boxes):
        path = dataset.path(index)
        if path not in sizes:
            sizes[path] = check_image(path)
        boxes[index] = next_box(shares, boxes[index], dataset.size,
                                *sizes[path])
    return boxes
