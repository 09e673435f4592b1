"""Angles, boxes and pixels, without PyTorch and without files."""
