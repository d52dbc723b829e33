"""Export one linear layer, 768 to 1024: `python -m examples.linear.export FOLDER`."""

from pathlib import Path

from paddle import nn
from paddle.static import InputSpec

from examples import _saving

INPUTS, OUTPUTS = 768, 1024


def export(folder: Path) -> Path:
    """Write linear.json and linear.pdiparams.

    The input is `x` float32 [batch, 768], batch dynamic; the output is float32 [batch, 1024]. Paddle's own initial
    weights (Xavier, bias zero) keep the variance of the input.
    """
    return _saving.save(lambda: nn.Linear(INPUTS, OUTPUTS), folder, "linear", InputSpec([None, INPUTS], "float32", "x"))


if __name__ == "__main__":
    _saving.run(export)
