"""Small Paddle models, exported once for all tests of this distribution."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with NAME.json and NAME.pdiparams of every model below."""
    pytest.importorskip("paddle")
    folder = tmp_path_factory.mktemp("paddle-models")
    _export(folder)
    return folder


def _export(folder: Path) -> None:
    import paddle
    from paddle import nn
    from paddle.nn import functional
    from paddle.static import InputSpec
    from paddle.vision.models import resnet18

    paddle.seed(0)

    def save(name: str, layer: Any, *inputs: tuple[str, str, list[int | None]]) -> None:
        layer.eval()
        specs = [InputSpec(shape, dtype, called) for called, dtype, shape in inputs]
        paddle.jit.save(layer, str(folder / name), input_spec=specs)

    class Layer(nn.Layer):  # type: ignore[misc]
        """A layer of parts and a function of them."""

        def __init__(self, parts: dict[str, Any], weights: dict[str, list[int]] | None = None) -> None:
            super().__init__()
            for name, part in parts.items():
                setattr(self, name, part)
            for name, shape in (weights or {}).items():
                setattr(self, name, self.create_parameter(shape))

    class Linear(Layer):
        def forward(self, x: Any) -> Any:
            return functional.relu(self.a(x))

    class Embedding(Layer):
        def forward(self, ids: Any) -> Any:
            x = self.table(ids)
            x = self.norm(x + self.place(paddle.arange(paddle.shape(ids)[1])))
            q, k, v = paddle.split(self.qkv(x), 3, axis=-1)
            x = x + functional.softmax(paddle.matmul(q, k, transpose_y=True) * 0.3, axis=-1) @ v
            best, where = paddle.topk(x, 4, axis=-1)
            return {"hidden": x, "best": best, "where": where}

    class Condition(Layer):
        def forward(self, x: Any) -> Any:
            return paddle.static.nn.cond(x.sum() > 0, lambda: self.a(x) + 1, lambda: x * 2)

    class Loop(Layer):
        def forward(self, x: Any) -> Any:
            start = paddle.full([1], 0, "int64")
            _, y = paddle.static.nn.while_loop(lambda i, y: i < 3, lambda i, y: [i + 1, self.a(y)], [start, x])
            return y

    class Mixed(Layer):
        def __init__(self) -> None:
            super().__init__({}, {"w": [3, 4]})
            self.register_buffer("steps", paddle.to_tensor([0, 1, 2], dtype="int64"))
            self.register_buffer("brain", paddle.ones([2, 2], dtype="bfloat16"))
            self.register_buffer("factor", paddle.to_tensor(2.5))

        def forward(self, x: Any, flag: Any, scale: Any, ids: Any) -> Any:
            y = paddle.where(flag, x * scale, -x)
            # Not `ids + 1`: paddle.jit.save (3.3.1) saves that as `ids`.
            more = self.brain.astype("float32") * self.factor, flag.logical_not()
            return y.sum(), self.steps, ids + ids, y @ self.w.t(), *more

    class Through(Layer):
        def forward(self, x: Any) -> Any:
            return x * self.w, x

    class Rotary(Layer):
        def forward(self, x: Any) -> Any:
            steps = paddle.arange(0, paddle.shape(x)[1], dtype="float32")
            angle = steps.unsqueeze(-1) * paddle.ones([1, 256])
            return x * angle.cos() + self.a(x) * angle.sin()

    class Resize(Layer):
        def forward(self, x: Any) -> Any:
            return functional.interpolate(self.a(x), scale_factor=2, mode="bilinear")

    class Gathers(Layer):
        def forward(self, ids: Any, x: Any) -> Any:
            row = paddle.gather(self.w, ids.cast("int64"), axis=0) + paddle.index_select(self.w, ids, axis=0)
            twice = paddle.stack([x, x]), paddle.concat([x, x], 0)
            return row, paddle.gather(x, ids, axis=1), *twice, functional.one_hot(ids, 5)

    class Infinite(Layer):
        def forward(self, x: Any) -> Any:
            return paddle.clip(x * self.w, -1.0, float("inf"))

    class Singular(Layer):
        def forward(self, x: Any) -> Any:
            return paddle.linalg.svd(self.a(x))[1]

    class Mean(Layer):
        def forward(self, x: Any) -> Any:
            return self.a(x * paddle.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6))

    class Softmax(Layer):
        def forward(self, x: Any) -> Any:
            return functional.softmax(self.a(x), -1)

    class Recurrent(Layer):
        def forward(self, x: Any) -> Any:
            return self.a(x)[0]

    class Pool(nn.Layer):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return functional.adaptive_avg_pool2d(x, 7)

    class Weightless(nn.Layer):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return x * 2 + 1

    def attention() -> Layer:
        parts = {"table": nn.Embedding(50, 16), "place": nn.Embedding(64, 16), "norm": nn.LayerNorm(16)}
        return Embedding({**parts, "qkv": nn.Linear(16, 48)})

    rows: tuple[int | None, ...] = (None, 4)
    image: tuple[int | None, ...] = (None, 3, 32, 32)
    recipes: list[tuple[str, Callable[[], Any], list[tuple[str, str, list[int | None]]]]] = [
        ("linear", lambda: Linear({"a": nn.Linear(4, 3)}), [("x", "float32", [*rows])]),
        ("embedding", attention, [("ids", "int64", [None, None])]),
        ("condition", lambda: Condition({"a": nn.Linear(4, 4)}), [("x", "float32", [*rows])]),
        ("loop", lambda: Loop({"a": nn.Linear(4, 4)}), [("x", "float32", [*rows])]),
        (
            "mixed",
            Mixed,
            [
                ("x", "float32", [*rows]),
                ("flag", "bool", [*rows]),
                ("scale", "float32", []),
                ("ids", "int64", [2, 2]),
            ],
        ),
        ("through", lambda: Through({}, {"w": [4]}), [("x", "float32", [*rows])]),
        ("rotary", lambda: Rotary({"a": nn.Linear(256, 256, bias_attr=False)}), [("x", "float32", [None, None, 256])]),
        ("resize", lambda: Resize({"a": nn.Conv2D(3, 4, 3)}), [("x", "float32", [None, 3, 16, 16])]),
        ("gathers", lambda: Gathers({}, {"w": [5, 4]}), [("ids", "int64", [None]), ("x", "float32", [2, None])]),
        ("infinite", lambda: Infinite({}, {"w": [4]}), [("x", "float32", [*rows])]),
        ("weightless", Weightless, [("x", "float32", [*rows])]),
        ("complex", lambda: Through({}, {"w": [4]}), [("x", "complex64", [*rows])]),
        ("singular", lambda: Singular({"a": nn.Linear(4, 4)}), [("x", "float32", [4, 4])]),
        ("mean", lambda: Mean({"a": nn.Linear(16, 16)}), [("x", "float32", [None, None, 16])]),
        ("softmax", lambda: Softmax({"a": nn.Linear(4, 4)}), [("x", "float32", [None, None, 4])]),
        ("recurrent", lambda: Recurrent({"a": nn.LSTM(4, 3)}), [("x", "float32", [None, 5, 4])]),
        ("pool", Pool, [("x", "float32", [None, 3, None, None])]),
        ("resnet", lambda: resnet18(num_classes=10), [("x", "float32", [*image])]),
    ]
    for name, build, inputs in recipes:
        save(name, build(), *inputs)
