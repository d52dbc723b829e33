"""Export MobileNetV2 with seeded weights: `python -m examples.mobilenet.export FOLDER`."""

from pathlib import Path

import paddle
from paddle import nn
from paddle.static import InputSpec
from paddle.vision.models import mobilenet_v2

from examples import _saving

CALIBRATION_IMAGES = 8


def build() -> nn.Layer:
    """MobileNetV2 whose random weights behave like trained ones: `image` -> 1000 logits.

    With fresh weights the batch norms know nothing of what reaches them, and the logits are mostly a part that no
    image changes. Here one batch of seeded noise images sets the statistics of the batch norms, so that each gives
    mean 0 and deviation 1, and centres and scales the classifier: over such images a logit has mean 0 and deviation
    about 1. The residual branches need no damping as ResNet's do: at most three follow one another.
    """
    model = mobilenet_v2(pretrained=False)
    for layer in model.sublayers():
        if isinstance(layer, nn.BatchNorm2D):
            layer._momentum = 0.0  # the running statistics become those of the next batch
    images = paddle.randn([CALIBRATION_IMAGES, 3, 224, 224])
    with paddle.no_grad():
        model.train()
        model(images)
        model.eval()  # the classifier is centred without its dropout
        logits = model(images).numpy()
    classifier = model.classifier[-1]
    scale = 1 / logits.std(axis=0).mean()
    classifier.weight.set_value(classifier.weight.numpy() * scale)
    classifier.bias.set_value((classifier.bias.numpy() - logits.mean(axis=0)) * scale)
    return model


def export(folder: Path) -> Path:
    """Write mobilenet.json and mobilenet.pdiparams.

    The input is `image` float32 [batch, 3, 224, 224], batch dynamic; the output is float32 logits [batch, 1000], no
    softmax.
    """
    return _saving.save(build, folder, "mobilenet", InputSpec([None, 3, 224, 224], "float32", "image"))


if __name__ == "__main__":
    _saving.run(export)
