"""Small Paddle models for adapters to be tested with: seeded, the batch open, written by Paddle itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from paddock.errors import NotAvailable

from paddock_paddle import sdk

Inputs = tuple[tuple[str, str, tuple[int | None, ...]], ...]
"""Name, dtype and shape of each input."""


def write(name: str, folder: Path) -> None:
    """Writes the example `name` into `folder`, as `NAME.json` and `NAME.pdiparams`; imports Paddle."""
    paddle = sdk.import_quietly("paddle")
    paddle.seed(7)
    layer, inputs = EXAMPLES[name](paddle)
    layer.eval()
    specs = [paddle.static.InputSpec(list(shape), dtype, called) for called, dtype, shape in inputs]
    try:
        paddle.jit.save(layer, str(folder / name), input_spec=specs)
    except Exception as error:
        raise NotAvailable(f"Paddle cannot write its own example {name}: {sdk.short(error)}") from error


def _layer(paddle: Any, forward: Callable[..., Any], **parts: Any) -> Any:
    """A layer of parts and a function of it and its inputs."""

    class Layer(paddle.nn.Layer):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            for name, part in parts.items():
                setattr(self, name, part)

    Layer.forward = forward
    return Layer()


def _mlp(paddle: Any) -> tuple[Any, Inputs]:
    nn = paddle.nn

    def forward(self: Any, x: Any) -> Any:
        return self.last(nn.functional.relu(self.first(x)))

    return _layer(paddle, forward, first=nn.Linear(16, 33), last=nn.Linear(33, 10)), (("x", "float32", (None, 16)),)


def _two_by_two(paddle: Any) -> tuple[Any, Inputs]:
    nn = paddle.nn

    def forward(self: Any, left: Any, right: Any) -> Any:
        one = nn.functional.relu(self.left(left))
        return self.head(one), nn.functional.relu(one + self.right(right))

    layer = _layer(paddle, forward, left=nn.Linear(9, 7), right=nn.Linear(5, 7), head=nn.Linear(7, 4))
    return layer, (("left", "float32", (None, 9)), ("right", "float32", (None, 5)))


def _residual(paddle: Any) -> tuple[Any, Inputs]:
    nn = paddle.nn

    def forward(self: Any, image: Any) -> Any:
        x = nn.functional.relu(self.norm(self.stem(image)))
        x = nn.functional.relu(x + self.inner(x))
        return self.head(self.pool(x).flatten(1))

    layer = _layer(
        paddle, forward, stem=nn.Conv2D(3, 8, 3, padding=1), norm=nn.BatchNorm2D(8),
        inner=nn.Conv2D(8, 8, 3, padding=1), pool=nn.AdaptiveAvgPool2D(1), head=nn.Linear(8, 10),
    )  # fmt: skip
    return layer, (("image", "float32", (None, 3, 15, 13)),)


def _transformer(paddle: Any) -> tuple[Any, Inputs]:
    nn = paddle.nn

    def forward(self: Any, tokens: Any) -> Any:
        x = self.table(tokens)
        query, key, value = self.query(x), self.key(x), self.value(x)
        weights = nn.functional.softmax(paddle.matmul(query, key, transpose_y=True) * 0.25)
        return self.head(self.norm(x + paddle.matmul(weights, value)))

    parts = {name: nn.Linear(16, 16) for name in ("query", "key", "value")}
    layer = _layer(paddle, forward, table=nn.Embedding(50, 16), norm=nn.LayerNorm(16), head=nn.Linear(16, 6), **parts)
    return layer, (("tokens", "int64", (None, 7)),)


EXAMPLES: Mapping[str, Callable[[Any], tuple[Any, Inputs]]] = {
    "mlp": _mlp,
    "two_by_two": _two_by_two,
    "residual": _residual,
    "transformer": _transformer,
}
