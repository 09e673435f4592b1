"""Evaluation in several looks: each crops around the box found before."""
from headpose.errors import RunError
from headpose.geometry.pose import best_guess, is_mirrored
from headpose.training.engine import evaluate


def evaluate_looks(model, annotations, make_loader, looks=1, flip=False):
    """Yields an `Evaluation`, and its `datasets.PoseDataset`, for each look.

    The first look is at crops around the labels' boxes, as published; the
    next at crops around the boxes that the network found in those before,
    every other one (`pose.is_mirrored`) at their mirror images.  The answers
    after several looks are their `pose.best_guess`.

    Args:
        model: a `hopenet.PoseNetwork`.
        annotations: see `datasets.read_annotations`.
        make_loader: returns the loader of annotations, such as
            `datasets.evaluation_loader`.
        looks: their number; for more than one the network needs a `BoxHead`.
        flip: see `engine.evaluate`.
    """
    if looks > 1 and not model.box_head:
        raise RunError('--looks: this network finds no box; training with '
                       '--find_box only adds that to it')
    seen = []
    for look in range(1, looks + 1):
        loader = make_loader(annotations)
        seen.append(evaluate(model, loader, flip=flip,
                             mirrored=is_mirrored(look)))
        yield summed_up(seen), loader.dataset
        if look < looks:
            annotations = annotations._replace(boxes=loader.dataset.next_boxes(
                seen[-1].indices, seen[-1].boxes))


def summed_up(results):
    """Returns the `Evaluation` of several looks: the last, with their mean."""
    if len(results) == 1:
        return results[0]
    angles, spreads = best_guess([each.predicted for each in results],
                                 [each.bin_std for each in results])
    return results[-1]._replace(predicted=angles, bin_std=spreads)
