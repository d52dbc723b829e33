"""The models of the zoo that are no examples: built with paddle.nn, saved with seeded weights.

Random weights behave like trained ones as far as a check by numbers needs: batch norms know what reaches them, residual
branches are small, and outputs vary with the inputs. All is float32 but indices; B is the batch.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn
from paddle.static import InputSpec
from paddle.vision.models import resnet18
from paddle.vision.models.resnet import BasicBlock

from examples import _saving
from examples.encoder.export import Config as EncoderConfig
from examples.encoder.export import Encoder

SIDE, CLASSES, STRIDES = 320, 80, (8, 16, 32)
"""The detector's images, what it tells apart, and the cells that its three heads look at, in pixels."""
FARTHEST = 8.0
"""How many of its cells a box may extend from their centre."""
FRAMES, BANDS, LETTERS = 100, 80, 64
"""What the recurrent net listens to, and what it spells."""
TABLES, ROWS, WIDTH, NUMBERS = 26, 10_000, 16, 13
"""The recommender's categories, the values of each, the numbers that stand for one, and its plain numbers."""
BRANCH_SCALE = 0.2


def settle(model: nn.Layer, *inputs: Tensor) -> nn.Layer:
    """Sets the statistics of the batch norms by one batch, as training would have."""
    for layer in model.sublayers():
        if isinstance(layer, nn.BatchNorm2D):
            layer._momentum = 0.0  # the running statistics become those of the next batch
    model.train()
    with paddle.no_grad():
        model(*inputs)
    model.eval()
    return model


def small_resnet() -> nn.Layer:
    """ResNet-18: `image` [B, 3, 224, 224] -> logits [B, 1000]."""
    model = resnet18(pretrained=False)
    for layer in model.sublayers():
        if isinstance(layer, BasicBlock):
            layer.bn2.weight.set_value(layer.bn2.weight * BRANCH_SCALE)
    return settle(model, paddle.randn([4, 3, 224, 224]))


class Conv(nn.Sequential):
    """Convolution, batch norm and SiLU."""

    def __init__(self, inputs: int, outputs: int, size: int = 3, stride: int = 1) -> None:
        convolution = nn.Conv2D(inputs, outputs, size, stride, padding=size // 2, bias_attr=False)
        super().__init__(convolution, nn.BatchNorm2D(outputs), nn.Silu())


class Stage(nn.Layer):
    """A cross-stage partial block as in YOLOv8: half of the channels go through residual branches, all are joined."""

    def __init__(self, inputs: int, outputs: int, depth: int) -> None:
        super().__init__()
        half = outputs // 2
        self.into = Conv(inputs, outputs, 1)
        self.branches = nn.LayerList(nn.Sequential(Conv(half, half), Conv(half, half)) for _ in range(depth))
        self.join = Conv(half * (2 + depth), outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.into(x).chunk(2, axis=1))
        for branch in self.branches:
            parts.append(parts[-1] + branch(parts[-1]))
        joined: Tensor = self.join(paddle.concat(parts, axis=1))
        return joined


class Pyramid(nn.Layer):
    """Spatial pyramid pooling: what stands near, nearer and nearest, beside one another."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.into, self.join = Conv(channels, channels // 2, 1), Conv(channels * 2, channels, 1)
        self.pool = nn.MaxPool2D(5, 1, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.into(x)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        joined: Tensor = self.join(paddle.concat(parts, axis=1))
        return joined


class Detector(nn.Layer):
    """In the manner of YOLOv8n, but that it enlarges as YOLOv6 does: `image` [B, 3, 320, 320] -> [B, 2100, 4 + 80].

    Boxes in pixels, and scores. oneDNN has no kernel for the nearest neighbours of YOLOv8's own enlargement.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(Conv(3, 16, stride=2), Conv(16, 32, stride=2), Stage(32, 32, 1))
        self.eighth = nn.Sequential(Conv(32, 64, stride=2), Stage(64, 64, 2))
        self.sixteenth = nn.Sequential(Conv(64, 128, stride=2), Stage(128, 128, 2))
        self.last = nn.Sequential(Conv(128, 256, stride=2), Stage(256, 256, 1), Pyramid(256))
        self.up16, self.up8 = Stage(384, 128, 1), Stage(192, 64, 1)
        self.double32, self.double16 = nn.Conv2DTranspose(256, 256, 2, 2), nn.Conv2DTranspose(128, 128, 2, 2)
        self.to16, self.down16 = Conv(64, 64, stride=2), Stage(192, 128, 1)
        self.to32, self.down32 = Conv(128, 128, stride=2), Stage(384, 256, 1)
        self.heads = nn.LayerList(
            nn.Sequential(Conv(channels, 64), nn.Conv2D(64, 4 + CLASSES, 1)) for channels in (64, 128, 256)
        )
        cells = [SIDE // stride for stride in STRIDES]
        rows = [paddle.arange(n, dtype="float32") + 0.5 for n in cells]
        grids = [paddle.stack(paddle.meshgrid(r, r)[::-1], axis=-1).reshape([-1, 2]) for r in rows]
        self.register_buffer("centres", paddle.concat([g * s for g, s in zip(grids, STRIDES, strict=True)]))
        sizes = [paddle.full([n * n, 1], float(stride)) for n, stride in zip(cells, STRIDES, strict=True)]
        self.register_buffer("sizes", paddle.concat(sizes))

    def forward(self, image: Tensor) -> Tensor:
        eighth = self.eighth(self.stem(image))
        sixteenth = self.sixteenth(eighth)
        last = self.last(sixteenth)
        middle = self.up16(paddle.concat([self.double32(last), sixteenth], axis=1))
        fine = self.up8(paddle.concat([self.double16(middle), eighth], axis=1))
        middle = self.down16(paddle.concat([self.to16(fine), middle], axis=1))
        coarse = self.down32(paddle.concat([self.to32(middle), last], axis=1))
        scales = (fine, middle, coarse)
        found = [self.heads[n](scale).flatten(2).transpose([0, 2, 1]) for n, scale in enumerate(scales)]
        raw = paddle.concat(found, axis=1)  # [B, 2100, 84]
        near, far = (FARTHEST * F.sigmoid(raw[:, :, i : i + 2]) * self.sizes for i in (0, 2))
        boxes = paddle.concat([self.centres - near, self.centres + far], axis=-1)
        return paddle.concat([boxes, F.sigmoid(raw[:, :, 4:])], axis=-1)


class Listener(nn.Layer):
    """A bidirectional LSTM of two layers, as speech recognisers have: `frames` [B, 100, 80] -> letters [B, 100, 64]."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(BANDS, 256, num_layers=2, direction="bidirect")
        self.letters = nn.Linear(512, LETTERS)

    def forward(self, frames: Tensor) -> Tensor:
        heard, _ = self.recurrent(frames)
        letters: Tensor = self.letters(heard)
        return letters


class Sharpener(nn.Layer):
    """In the manner of EDSR, 8 blocks of 32 channels: `image` [B, 3, 96, 96] -> [B, 3, 192, 192]."""

    def __init__(self, channels: int = 32, blocks: int = 8) -> None:
        super().__init__()

        def convolution(inputs: int, outputs: int) -> nn.Conv2D:
            return nn.Conv2D(inputs, outputs, 3, padding=1)

        self.head = convolution(3, channels)
        self.blocks = nn.LayerList(
            nn.Sequential(convolution(channels, channels), nn.ReLU(), convolution(channels, channels))
            for _ in range(blocks)
        )
        self.body, self.up = convolution(channels, channels), convolution(channels, channels * 4)
        self.tail = convolution(channels, 3)

    def forward(self, image: Tensor) -> Tensor:
        head = self.head(image)
        x = head
        for block in self.blocks:
            x = x + BRANCH_SCALE * block(x)
        sharp: Tensor = self.tail(F.pixel_shuffle(self.up(self.body(x) + head), 2))
        return sharp


class Recommender(nn.Layer):
    """In the manner of DLRM: `numbers` [B, 13], `categories` int64 [B, 26] -> the chance of a click [B, 1].

    All tables are one, in which each category has its own rows; what is fed are numbers of rows.
    """

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(TABLES * ROWS, WIDTH, weight_attr=nn.initializer.Normal(std=0.3))
        pairs = [(i, j) for i in range(TABLES + 1) for j in range(i)]
        self.register_buffer("pairs", paddle.to_tensor([i * (TABLES + 1) + j for i, j in pairs], dtype="int64"))
        self.bottom = _perceptron(NUMBERS, 512, 256, WIDTH)
        self.top = _perceptron(WIDTH + len(pairs), 512, 256)
        self.chance = nn.Linear(256, 1)

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        dense = self.bottom(numbers)
        features = paddle.concat([dense.unsqueeze(1), self.table(categories)], axis=1)  # [B, 27, 16]
        products = paddle.matmul(features, features, transpose_y=True).flatten(1)
        crossed = paddle.index_select(products, self.pairs, axis=1)
        return F.sigmoid(self.chance(self.top(paddle.concat([dense, crossed], axis=1))))


def _perceptron(*widths: int) -> nn.Sequential:
    layers: list[nn.Layer] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers)


def _encoder() -> nn.Layer:
    # What sentence embedders have: six layers of 384, 22 million parameters with the vocabulary.
    return Encoder(EncoderConfig(hidden=384, layers=6, heads=12, width=1536))


def _image(side: int) -> InputSpec:
    return InputSpec([None, 3, side, side], "float32", "image")


def resnet18_export(folder: Path) -> Path:
    """Write resnet18.json and .pdiparams."""
    return _saving.save(small_resnet, folder, "resnet18", _image(224))


def detector(folder: Path) -> Path:
    """Write detector.json and .pdiparams."""
    return _saving.save(lambda: settle(Detector(), paddle.randn([4, 3, SIDE, SIDE])), folder, "detector", _image(SIDE))


def listener(folder: Path) -> Path:
    """Write listener.json and .pdiparams."""
    return _saving.save(Listener, folder, "listener", InputSpec([None, FRAMES, BANDS], "float32", "frames"))


def embedder(folder: Path) -> Path:
    """Write embedder.json and .pdiparams; the inputs are the encoder example's."""
    inputs = (InputSpec([None, 128], "int64", name) for name in ("tokens", "mask"))
    return _saving.save(_encoder, folder, "embedder", *inputs)


def sharpener(folder: Path) -> Path:
    """Write sharpener.json and .pdiparams."""
    return _saving.save(Sharpener, folder, "sharpener", _image(96))


def recommender(folder: Path) -> Path:
    """Write recommender.json and .pdiparams."""
    inputs = InputSpec([None, NUMBERS], "float32", "numbers"), InputSpec([None, TABLES], "int64", "categories")
    return _saving.save(Recommender, folder, "recommender", *inputs)
