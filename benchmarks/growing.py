"""A model run in many shapes, and how large the process becomes; runs in a child process."""

from __future__ import annotations

import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from paddock.deployment import deploy

SAMPLES = 100
"""How often the resident size is taken."""
MODELS: Mapping[str, Mapping[str, Mapping[str, list[int]]]] = {
    "attention": {"image": {"min": [1, 3, 8, 8], "max": [2, 3, 64, 64]}},
    "decoder": {"tokens": {"min": [1, 4], "max": [8, 64]}},
}
"""The config's shapes for each model."""


def measure(adapter: str, model: Path, name: str, runs: int, count: int) -> tuple[int, list[float]]:
    """How many shapes there were, and the resident MB after the first run and after each share; runs in a child."""
    hardware, _, backend = adapter.partition("/")
    config = {"hardware": hardware, "backend": backend, "shapes": MODELS[name], "accuracy": {"verify": "off"}}
    draw = np.random.default_rng(0)
    (entry,) = MODELS[name].values()
    drawn = draw.integers(entry["min"], entry["max"], size=(4 * count, len(entry["max"])), endpoint=True)
    shapes = list(dict.fromkeys(tuple(shape) for shape in drawn.tolist()))[:count]
    order = [entry["max"], *(shapes[i] for i in draw.integers(len(shapes), size=runs - 1))]
    with deploy(model, config) as deployment:
        (given,) = deployment.interface.input_values
        feed = np.ones(int(np.prod(entry["max"])), given.dtype or "float32")
        places = {  # the largest outputs, of which the others take the front
            output: np.empty(array.size, array.dtype)
            for output, array in deployment.run({given.name: feed.reshape(entry["max"])}).items()
        }
        fitting: dict[tuple[int, ...], dict[str, tuple[int, ...]]] = {}
        sizes = [_resident()]
        for number, shape in enumerate(order, 1):
            feeds = {given.name: feed[: int(np.prod(shape))].reshape(shape)}
            known = fitting.get(tuple(shape))
            if known is None:
                fitting[tuple(shape)] = {output: array.shape for output, array in deployment.run(feeds).items()}
            else:
                deployment.run(feeds, into={o: places[o][: int(np.prod(s))].reshape(s) for o, s in known.items()})
            if number * SAMPLES // runs >= len(sizes):
                sizes.append(_resident())
    return len(shapes), sizes


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def save(name: str, folder: Path) -> Path:
    """A model in Paddle's format, which every adapter takes; runs in a child."""
    if name == "decoder":
        from examples.export import EXPORTS

        return EXPORTS["deepseek"](folder / "deepseek")
    import paddle
    from paddle.nn import Conv2D, LayerNorm, Linear
    from paddle.nn.functional import relu, softmax

    class Attention(paddle.nn.Layer):  # type: ignore[misc]
        """Two convolutions, and attention over the positions of what they give."""

        def __init__(self) -> None:
            super().__init__()
            self.first = Conv2D(3, 16, 3, padding=1)
            self.second = Conv2D(16, 16, 3, stride=2, padding=1)
            self.query, self.key, self.value = Linear(16, 32), Linear(16, 32), Linear(16, 32)
            self.norm = LayerNorm(32)
            self.out = Linear(32, 16)

        def forward(self, image: Any) -> Any:
            x = relu(self.second(relu(self.first(image))))
            x = paddle.transpose(paddle.flatten(x, 2), [0, 2, 1])
            scores = paddle.matmul(self.query(x), self.key(x), transpose_y=True) * 0.18
            return softmax(self.out(self.norm(paddle.matmul(softmax(scores), self.value(x)))))

    layer = Attention()
    layer.eval()
    spec = paddle.static.InputSpec([None, 3, None, None], "float32", "image")
    paddle.jit.save(layer, str(folder / name), input_spec=[spec])
    return folder / f"{name}.json"
