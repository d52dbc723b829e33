"""What every example's export shares: a seeded build, one way to save, one command line."""

import argparse
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import paddle
from paddle import nn
from paddle.base import framework
from paddle.static import InputSpec


def save(build: Callable[[], nn.Layer], folder: Path, name: str, *inputs: InputSpec) -> Path:
    """Build a layer from a fixed seed, save it as a PIR inference program, return the `.json`.

    The weights go to `folder/name.pdiparams` next to it. Paddle numbers parameters and the
    `struct_name` of operators through a whole process; here both start from zero, so that every
    export writes the same bytes. The caller's random state is kept.
    """
    labels = patch.object(framework, "_name_struct", new_callable=framework.NameStruct)
    state = paddle.get_rng_state()
    try:
        paddle.seed(0)
        with paddle.utils.unique_name.guard(), labels:
            layer = build()
            layer.eval()
            folder.mkdir(parents=True, exist_ok=True)
            paddle.jit.save(layer, str(folder / name), input_spec=list(inputs))
    finally:
        paddle.set_rng_state(state)
    return folder / f"{name}.json"


def run(export: Callable[[Path], Path]) -> None:
    """Command line of one example: `python -m examples.NAME.export FOLDER`."""
    parser = argparse.ArgumentParser(description="Export one example model, print the .json path.")
    parser.add_argument("folder", type=Path, help="where the .json and .pdiparams go")
    print(export(parser.parse_args().folder))
