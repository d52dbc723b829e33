"""A linear layer and a rotary embedding: a few lines that Paddle with oneDNN gets wrong.

As far as seen: `cos` and `sin` read one angle, Paddle's `inplace_pass` marks both as free to
overwrite it, and behind a oneDNN layout transfer, which shares the buffer, one reads what the other
has written. Nothing is reported. `delete_pass("inplace_pass")` makes the answer right.

Export it: `python -m examples.rotary.export FOLDER`.
"""

from pathlib import Path

import paddle
from paddle import Tensor, nn
from paddle.static import InputSpec

from examples import _saving

WIDTH = 256


class Rotary(nn.Layer):
    """`x` float32 [batch, sequence, WIDTH] -> float32 of the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Linear(WIDTH, WIDTH, bias_attr=False)

    def forward(self, x: Tensor) -> Tensor:
        position = paddle.arange(0, paddle.shape(x)[1], dtype="float32")
        angle = position.unsqueeze(1) * paddle.ones([1, WIDTH])  # [sequence, WIDTH]
        turned: Tensor = paddle.cos(angle) * x + paddle.sin(angle) * self.turn(x)
        return turned


def export(folder: Path) -> Path:
    """Write rotary.json and rotary.pdiparams; the input is `x` float32 [batch, sequence, WIDTH]."""
    return _saving.save(Rotary, folder, "rotary", InputSpec([None, None, WIDTH], "float32", "x"))


if __name__ == "__main__":
    _saving.run(export)
