"""Evaluation in several looks: each crops around the box found before."""
from datasets import evaluation_loader
from headpose.errors import RunError
from headpose.geometry.crop import next_box
from headpose.geometry.pose import best_guess
from headpose.readers.images import check_image
from headpose.training.engine import evaluate


def evaluate_looks(model, annotations, looks=1, flip=False, **crops):
    """Yields an `Evaluation`, and its `datasets.PoseDataset`, for each look.

    The first look is at crops around the labels' boxes, as published; the
    next at crops around the boxes that the network found in those before.
    The answers after several looks are their `pose.best_guess`.

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
    seen = []
    for look in range(1, looks + 1):
        loader = evaluation_loader(annotations, **crops)
        seen.append(evaluate(model, loader, flip=flip))
        yield summed_up(seen), loader.dataset
        if look < looks:
            annotations = annotations._replace(
                boxes=next_boxes(seen[-1], loader.dataset))


def summed_up(results):
    """Returns the `Evaluation` of several looks: the last, with their mean."""
    if len(results) == 1:
        return results[0]
    angles, spreads = best_guess([each.predicted for each in results],
                                 [each.bin_std for each in results])
    return results[-1]._replace(predicted=angles, bin_std=spreads)


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
