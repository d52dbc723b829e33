"""Export ResNet-50 with seeded weights: `python -m examples.resnet.export FOLDER`."""

from pathlib import Path

import paddle
from paddle import nn
from paddle.static import InputSpec
from paddle.vision.models import resnet50
from paddle.vision.models.resnet import BottleneckBlock

from examples import _saving

CALIBRATION_IMAGES = 4
BRANCH_SCALE = 0.2


def build() -> nn.Layer:
    """ResNet-50 whose random weights behave like trained ones: `image` -> 1000 logits.

    With fresh weights, activations grow with depth and so does every rounding error, and the logits
    are mostly a part that no image changes. Here each residual branch starts small, as training
    leaves it, and one batch of seeded noise images sets the statistics of the batch norms and
    centres and scales the classifier: over such images a logit has mean 0 and deviation about 1.
    """
    model = resnet50(pretrained=False)
    for layer in model.sublayers():
        if isinstance(layer, BottleneckBlock):
            layer.bn3.weight.set_value(layer.bn3.weight * BRANCH_SCALE)
        elif isinstance(layer, nn.BatchNorm2D):
            layer._momentum = 0.0  # the running statistics become those of the next batch
    model.train()
    with paddle.no_grad():
        logits = model(paddle.randn([CALIBRATION_IMAGES, 3, 224, 224])).numpy()
    classifier = model.fc
    scale = 1 / logits.std(axis=0).mean()
    classifier.weight.set_value(classifier.weight.numpy() * scale)
    classifier.bias.set_value((classifier.bias.numpy() - logits.mean(axis=0)) * scale)
    return model


def export(folder: Path) -> Path:
    """Write resnet.json and resnet.pdiparams.

    The input is `image` float32 [batch, 3, 224, 224], batch dynamic; the output is float32 logits
    [batch, 1000], no softmax.
    """
    return _saving.save(build, folder, "resnet", InputSpec([None, 3, 224, 224], "float32", "image"))


if __name__ == "__main__":
    _saving.run(export)
