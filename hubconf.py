"""The networks for torch.hub, in eval mode.

    model = torch.hub.load('OWNER/REPOSITORY', 'shufflenet_faces')
    angles = model.predict(crops).angles    # degrees: yaw, pitch, roll

`predict` takes uint8 RGB crops (N, 3, H, W), tensor or array.  They are the
test's crop around a face box, 128 pixels a side for `shufflenet_faces` and
224 for the others; headpose.geometry.crop.protocol_crop makes it.  Answers of
`shufflenet_faces` have `boxes`, too, for a second look (crop.next_box).
"""
import os

from headpose.training.checkpoint import download, load_network
from hopenet import AttNet
from shufflenet import ShuffleNet, rebuild

dependencies = ['torch', 'torchvision', 'numpy', 'cv2']
FACES = os.path.join(os.path.dirname(os.path.abspath(__file__)),
                     'checkpoints', 'shufflenet_faces.pkl')


def shufflenet_faces():
    """Returns the trained ShuffleNetV2 that comes with the repository."""
    return load_network(FACES, rebuild)[0].eval()


def attnet(pretrained=False, attention='cbam'):
    """Returns ResNet-50 with untrained pose heads.

    `pretrained` loads ImageNet's weights, which torchvision downloads; the
    attention is 'cbam', as the document's, or 'none', as HopeNet's.
    """
    return prepared(AttNet(attention), pretrained)


def shufflenet(width=1.0, pretrained=False):
    """Returns ShuffleNetV2, 0.5, 1, 1.5 or 2 times as wide; see `attnet`."""
    return prepared(ShuffleNet(width), pretrained)


def prepared(model, pretrained):
    """Returns a network in eval mode, with ImageNet's weights if asked."""
    if pretrained:
        model.load_pretrained(download(model.imagenet_weights))
    return model.eval()
