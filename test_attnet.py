"""Tests a ResNet-50, with CBAM or without, on AFLW2000-3D.

    python test_attnet.py --snapshot ./checkpoints/resnet.pkl

`--labels` tests on data of your own (headpose/readers/table.py),
`--dataset BIWI` on the Kinect database (headpose/readers/biwi.py).
"""
import sys

import test_shufflenet
from headpose.errors import run_main


def main(argv=None):
    """Runs the test; `argv` is a list of options, for tests."""
    test_shufflenet.main(argv, __doc__, 'attnet')


if __name__ == '__main__':
    sys.exit(run_main(main))
