"""Export an encoder of BERT-base's size with seeded weights: `python -m examples.encoder.export FOLDER`.

With weights from a plain random start every attention is nearly uniform, each layer averages the tokens, and after
twelve of them what is left is a vector common to all. Here the scores have deviation 2, so that a query picks some
keys as a trained one does, and the branches are half as strong as the residual: about half of the output's variance
tells one token from another.

Shapes: B batch, S sequence, D hidden, H heads. All is float32 but the tokens and the mask.
"""

from dataclasses import dataclass
from pathlib import Path

import paddle.nn.functional as F
from paddle import Tensor, nn
from paddle.nn.initializer import Normal
from paddle.static import InputSpec

from examples import _saving

MASKED = -1e4  # no weight left after softmax, and still a number in fp16
BRANCH_SCALE = 0.5
SCORE_SCALE = 2.0


@dataclass(frozen=True)
class Config:
    """The sizes of an encoder. The defaults are BERT-base's, but for the sequence, which is fixed."""

    vocabulary: int = 30_522
    sequence: int = 128
    hidden: int = 768
    layers: int = 12
    heads: int = 12
    width: int = 3072


def projection(inputs: int, outputs: int, gain: float = 1.0) -> nn.Linear:
    """A linear map that turns unit variance into variance `gain ** 2`, with a small bias."""
    return nn.Linear(inputs, outputs, weight_attr=Normal(std=gain * inputs**-0.5), bias_attr=Normal(std=0.02))


def norm(size: int) -> nn.LayerNorm:
    """Layer normalisation whose scales and shifts are not all 1 and 0, so that leaving them out shows."""
    return nn.LayerNorm(size, weight_attr=Normal(mean=1.0, std=0.1), bias_attr=Normal(std=0.02))


class Attention(nn.Layer):
    """Multi-head attention, [B, S, D] -> [B, S, D]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads, self.head = config.heads, config.hidden // config.heads
        self.query = projection(config.hidden, config.hidden, gain=SCORE_SCALE**0.5)
        self.key = projection(config.hidden, config.hidden, gain=SCORE_SCALE**0.5)
        self.value = projection(config.hidden, config.hidden)
        self.output = projection(config.hidden, config.hidden, gain=BRANCH_SCALE)

    def _split(self, x: Tensor) -> Tensor:
        """[B, S, D] -> [B, H, S, D / H]."""
        return x.reshape([0, 0, self.heads, self.head]).transpose([0, 2, 1, 3])

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Attend. `mask` [B, 1, 1, S] is added to the scores."""
        query, key, value = self._split(self.query(x)), self._split(self.key(x)), self._split(self.value(x))
        scores = query @ key.transpose([0, 1, 3, 2]) * self.head**-0.5 + mask  # [B, H, S, S]
        attended = (F.softmax(scores, axis=-1) @ value).transpose([0, 2, 1, 3])
        output: Tensor = self.output(attended.reshape([0, 0, self.heads * self.head]))
        return output


class Block(nn.Layer):
    """Attention, then a feed-forward, each normalised after the residual as BERT does; [B, S, D] -> [B, S, D]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.attention_norm = norm(config.hidden)
        self.up = projection(config.hidden, config.width)
        self.down = projection(config.width, config.hidden, gain=BRANCH_SCALE)
        self.output_norm = norm(config.hidden)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.attention_norm(x + self.attention(x, mask))
        output: Tensor = self.output_norm(x + self.down(F.gelu(self.up(x))))
        return output


class Encoder(nn.Layer):
    """Tokens int64 [B, S] and a mask int64 [B, S] (1 counts, 0 is padding) -> float32 [B, S, D]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        shape = [1, config.sequence, config.hidden]
        self.embedding = nn.Embedding(config.vocabulary, config.hidden, weight_attr=Normal())
        self.position = self.create_parameter(shape, default_initializer=Normal(std=0.5))
        self.norm = norm(config.hidden)
        self.blocks = nn.LayerList(Block(config) for _ in range(config.layers))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        masked = (1.0 - mask.astype("float32")).unsqueeze([1, 2]) * MASKED  # [B, 1, 1, S]
        x = self.norm(self.embedding(tokens) + self.position)
        for block in self.blocks:
            x = block(x, masked)
        return x


def export(folder: Path, config: Config = Config()) -> Path:
    """Write encoder.json and encoder.pdiparams.

    The inputs are `tokens` int64 [batch, 128] and `mask` int64 [batch, 128], 1 where a token counts and 0 where it
    is padding, batch dynamic; the output is float32 [batch, 128, 768]. What stands at padded positions is computed
    like the rest and means nothing.
    """
    inputs = (InputSpec([None, config.sequence], "int64", name) for name in ("tokens", "mask"))
    return _saving.save(lambda: Encoder(config), folder, "encoder", *inputs)


if __name__ == "__main__":
    _saving.run(export)
