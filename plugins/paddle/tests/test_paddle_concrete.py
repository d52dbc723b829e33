"""Inner shapes told without a run: what Paddle has when it does run, at every value."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paddock.errors import ModelError
from paddock.model import Model
from paddock_paddle import concrete, sdk
from paddock_paddle.format import PaddleFormat, open_program
from paddock_paddle.neutral import FETCH, neutral

FORMAT = PaddleFormat()
Shapes = Mapping[str, tuple[int, ...]]


def opened(stem: Path) -> Model:
    files = FORMAT.locate(stem)
    assert files is not None
    return Model("paddle", files, "", FORMAT.read(files))


def ran(model: Model, inputs: Shapes, folder: Path) -> dict[int, tuple[int, ...]]:
    """The shape of every tensor that a node makes, each of them fetched in one run."""
    import paddle

    program = open_program(model.files)
    found = neutral(program, model.files["program"].stem)
    made: dict[int, int] = {}
    for node in found.graph.nodes:
        op = program.block.ops[found.nodes[node.index]]
        ids = op.inputs if node.op == FETCH else [identity for identity, _ in op.outputs]
        pairs = zip(node.outputs, ids, strict=True)
        made.update((v, i) for v, i in pairs if v is not None and found.graph.values[v].kind == "tensor")
    data = concrete.with_fetches(model.files["program"], program.block, inputs, list(made.values()))
    (folder / "all.json").write_text(json.dumps(data))
    if "params" in model.files:
        shutil.copy(model.files["params"], folder / "all.pdiparams")
    draw = np.random.default_rng(0)
    feeds = {}
    for value in model.graph.input_values:
        shape = inputs[value.name]
        whole = value.dtype is not None and not value.dtype.startswith("float")
        feeds[value.name] = (draw.integers(0, 2, shape) if whole else draw.normal(size=shape)).astype(value.dtype)
    paddle.enable_static()
    try:
        executor = paddle.static.Executor(paddle.CPUPlace())
        runnable, _, fetches = paddle.static.load_inference_model(str(folder / "all"), executor)
        arrays = executor.run(runnable, feed=feeds, fetch_list=fetches)
    finally:
        paddle.disable_static()
    return {index: np.shape(array) for index, array in zip(made, arrays, strict=True)}


def compared(model: Model, inputs: Shapes, folder: Path) -> set[str]:
    """The names of the tensors that are not told; all others are told as they run."""
    found, real = FORMAT.shapes_at(model, inputs), ran(model, inputs, folder)
    assert {index: found[index] for index in real if index in found} == {i: s for i, s in real.items() if i in found}
    values = model.graph.values
    assert all(found[i] == inputs[values[i].name] for i in model.graph.inputs)
    assert all(found[i] == values[i].shape for i in model.graph.initializers)
    return {value.name for i, value in enumerate(values) if value.kind == "tensor" and i not in found}


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("rotary", {"x": (3, 5, 256)}),
        ("embedding", {"ids": (3, 7)}),
        ("gathers", {"ids": (2,), "x": (2, 5)}),
        ("mixed", {"x": (3, 4), "flag": (3, 4), "scale": (), "ids": (2, 2)}),
        ("condition", {"x": (3, 4)}),
        ("loop", {"x": (3, 4)}),
        ("through", {"x": (3, 4)}),
        ("pool", {"x": (2, 3, 20, 30)}),
        ("resnet", {"x": (2, 3, 32, 32)}),
    ],
)
def test_what_is_told_is_what_a_run_has(name: str, inputs: Shapes, models: Path, tmp_path: Path) -> None:
    assert compared(opened(models / name), inputs, tmp_path) == set()


def saved(compute: Callable[[Any, Any], Any], folder: Path, shape: Sequence[int | None] = (None, None, 4)) -> Model:
    """A model of `compute(x, w)` for x of this shape and a weight w of [8, 4, 5]."""
    import paddle
    from paddle.static import InputSpec

    class Layer(paddle.nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.w = self.create_parameter([8, 4, 5])

        def forward(self, x: Any) -> Any:
            return compute(x, self.w)

    paddle.jit.save(Layer(), str(folder / "m"), input_spec=[InputSpec([*shape], "float32", "x")])
    return opened(folder / "m")


def test_computed_extents_are_told(models: Path, tmp_path: Path) -> None:
    import paddle

    def compute(x: Any, w: Any) -> Any:
        rows, steps = paddle.shape(x)[0], paddle.shape(x)[1]
        wide = x.reshape([rows * 2, -1]), x.tile([steps, 1, 1]), x[:, : steps // 2], paddle.ones([steps, rows]).tril()
        return *wide, paddle.arange(rows * steps), paddle.topk(x, 2, -1)[1], x @ w[0]

    assert compared(saved(compute, tmp_path), {"x": (2, 6, 4)}, tmp_path) == set()


@pytest.mark.parametrize("shape", [(None, None, 4), (2, 3, 4)])
def test_what_the_program_declares_wrongly_is_told_as_it_runs(shape: Any, models: Path, tmp_path: Path) -> None:
    """paddle.jit.save (3.3.1) declares 1 where two operands broadcast to 8, if an extent beside it is open."""
    model = saved(lambda x, w: x.unsqueeze(1).matmul(w).sum(1), tmp_path, shape)
    assert compared(model, {"x": (2, 3, 4)}, tmp_path) == set()
    (product,) = (n.outputs[0] for n in model.graph.nodes if n.op == "pd_op.matmul")
    assert product is not None
    assert FORMAT.shapes_at(model, {"x": (2, 3, 4)})[product] == (2, 8, 3, 5)


def test_what_hangs_on_data_is_left_out(models: Path, tmp_path: Path) -> None:
    model = saved(lambda x, w: ((x > 0).nonzero() + 1, x @ w[0]), tmp_path)
    left = compared(model, {"x": (2, 3, 4)}, tmp_path)
    assert {name.rpartition(".")[0] for name in left if name.startswith("pd_op.")} == {"pd_op.nonzero.0"}


def test_inputs_that_contradict_the_model_are_refused(models: Path) -> None:
    model = opened(models / "rotary")
    for inputs, says in (
        ({"y": (1,)}, "no input 'y'"),
        ({"x": (3, 5)}, "not as"),
        ({"x": (3, 5, 255)}, "not as"),
        ({"x": (3, -5, 256)}, "not as"),
    ):
        with pytest.raises(ModelError, match=says):
            FORMAT.shapes_at(model, inputs)


def test_operands_that_do_not_fit_raise_nothing(models: Path) -> None:
    model = opened(models / "mixed")
    found = FORMAT.shapes_at(model, {"x": (3, 4), "flag": (2, 4)})
    assert [found.get(index) for index in model.graph.inputs[:2]] == [(3, 4), (2, 4)]


def test_without_paddle_only_what_the_program_states_is_known(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(sdk, "import_quietly", missing)
    model = opened(models / "rotary")
    stated = {
        index: value.shape
        for index, value in enumerate(model.graph.values)
        if value.shape is not None and all(isinstance(dim, int) for dim in value.shape)
    }
    assert FORMAT.shapes_at(model, {"x": (3, 5, 256)}) == {**stated, model.graph.inputs[0]: (3, 5, 256)}


def test_a_program_that_has_changed_is_refused(models: Path) -> None:
    model, other = opened(models / "rotary"), opened(models / "mean")
    with pytest.raises(ModelError, match="has changed since"):
        FORMAT.shapes_at(Model("paddle", other.files, "", model.graph), {"x": (3, 5, 256)})
