"""A small decoder in the manner of DeepSeek-V2 and V3.

Latent attention (the keys and values of all heads come from one low-rank vector, the rotary part is
kept apart from it) and a mixture of experts (shared experts always, routed experts by the top-k of
a sigmoid gate); the first layer has a plain feed-forward, as DeepSeek's does. It prefills: whole
sequences in, logits for every position out, no cache.

Every expert runs on every token and a top-k mask weighs them. That is wasteful and exact, and its
shapes do not depend on the data, so that every backend can compile it.

Shapes: B batch, S sequence, D hidden, H heads, E routed experts. All is float32 but the tokens.
"""

from dataclasses import dataclass

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn
from paddle.nn.initializer import Normal

MASKED = -1e4  # no weight left after softmax, and still a number in fp16


@dataclass(frozen=True)
class Config:
    """The sizes of a decoder. The defaults give 3.1 million parameters."""

    vocabulary: int = 512
    hidden: int = 256
    layers: int = 3
    dense_layers: int = 1
    heads: int = 4
    kv_lora_rank: int = 64
    plain_head: int = 64  # the part of a query or key that knows no position
    rotary_head: int = 32  # the part that rotates; even
    value_head: int = 64
    rotary_base: float = 10_000.0
    dense_width: int = 512
    expert_width: int = 128
    routed_experts: int = 8
    experts_per_token: int = 2
    shared_experts: int = 1
    routed_scale: float = 1.0


def projection(inputs: int, outputs: int, gain: float = 1.0) -> nn.Linear:
    """A linear map without bias that turns unit variance into variance `gain ** 2`."""
    return nn.Linear(inputs, outputs, weight_attr=Normal(std=gain * inputs**-0.5), bias_attr=False)


class RMSNorm(nn.Layer):
    """[..., size] -> [..., size], divided by the root mean square of the last axis."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.scale = self.create_parameter([size], default_initializer=Normal(mean=1.0, std=0.1))

    def forward(self, x: Tensor) -> Tensor:
        return x * paddle.rsqrt((x * x).mean(axis=-1, keepdim=True) + 1e-6) * self.scale


class RotaryTable(nn.Layer):
    """Positions float32 [S] -> cosine and sine, each [S, 1, size]: they broadcast over heads."""

    def __init__(self, size: int, base: float) -> None:
        super().__init__()
        frequency = base ** (-paddle.arange(0, size, 2, dtype="float32") / size)
        self.register_buffer("frequency", paddle.concat([frequency, frequency]))

    def forward(self, position: Tensor) -> tuple[Tensor, Tensor]:
        angle = (position.unsqueeze(-1) * self.frequency).unsqueeze(1)
        return angle.cos(), angle.sin()


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn the pairs (x[i], x[i + size / 2]) of x [B, S, heads, size] by their position's angle."""
    first, second = paddle.split(x, 2, axis=-1)
    return x * cosine + paddle.concat([-second, first], axis=-1) * sine


class LatentAttention(nn.Layer):
    """Causal multi-head latent attention, [B, S, D] -> [B, S, D]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        plain, rotary, heads = config.plain_head, config.rotary_head, config.heads
        self.query = projection(config.hidden, heads * (plain + rotary))
        self.compress = projection(config.hidden, config.kv_lora_rank + rotary)
        self.norm = RMSNorm(config.kv_lora_rank)
        self.expand = projection(config.kv_lora_rank, heads * (plain + config.value_head))
        self.output = projection(heads * config.value_head, config.hidden)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor, mask: Tensor) -> Tensor:
        """Attend. `cosine`, `sine` [S, 1, rotary_head]; `mask` [S, S], added to the scores."""
        c = self.config
        head = c.plain_head + c.rotary_head

        query = self.query(x).reshape([0, 0, c.heads, head])
        plain_query, rotary_query = query.split([c.plain_head, c.rotary_head], axis=-1)
        query = paddle.concat([plain_query, rotate(rotary_query, cosine, sine)], axis=-1)

        latent, rotary_key = self.compress(x).split([c.kv_lora_rank, c.rotary_head], axis=-1)
        expanded = self.expand(self.norm(latent)).reshape([0, 0, c.heads, -1])
        plain_key, value = expanded.split([c.plain_head, c.value_head], axis=-1)
        rotary_key = rotate(rotary_key.unsqueeze(2), cosine, sine)  # one for all heads
        key = paddle.concat([plain_key, rotary_key.tile([1, 1, c.heads, 1])], axis=-1)

        query, value = query.transpose([0, 2, 1, 3]), value.transpose([0, 2, 1, 3])  # [B, H, S, .]
        scores = query @ key.transpose([0, 2, 3, 1]) * head**-0.5 + mask  # [B, H, S, S]
        attended = (F.softmax(scores, axis=-1) @ value).transpose([0, 2, 1, 3])
        output: Tensor = self.output(attended.reshape([0, 0, c.heads * c.value_head]))
        return output


class FeedForward(nn.Layer):
    """The gated feed-forward, [B, S, D] -> [B, S, D]."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate = projection(hidden, width)
        self.up = projection(hidden, width)
        self.down = projection(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return output


class Experts(nn.Layer):
    """Shared experts plus the best routed experts of each token, [B, S, D] -> [B, S, D]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        hidden, width, experts = config.hidden, config.expert_width, config.routed_experts
        self.router = projection(hidden, experts)
        self.shared = FeedForward(hidden, width * config.shared_experts)
        self.gate = self._stack(experts, hidden, width)
        self.up = self._stack(experts, hidden, width)
        self.down = self._stack(experts, width, hidden)

    def _stack(self, experts: int, inputs: int, outputs: int) -> Tensor:
        """One weight for all experts, [E, inputs, outputs]."""
        shape = [experts, inputs, outputs]
        return self.create_parameter(shape, default_initializer=Normal(std=inputs**-0.5))

    def route(self, x: Tensor) -> Tensor:
        """The weight of each expert for each token, [B, S, E]: zero but for the best, sum 1."""
        scores = F.sigmoid(self.router(x))
        _, best = paddle.topk(scores, self.config.experts_per_token, axis=-1)
        kept = scores * F.one_hot(best, self.config.routed_experts).sum(axis=-2)
        return kept / kept.sum(axis=-1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.route(x).transpose([0, 2, 1]).unsqueeze(-1)  # [B, E, S, 1]
        each = x.unsqueeze(1)  # [B, 1, S, D], broadcast over the experts
        inner = F.silu(each @ self.gate) * (each @ self.up)  # [B, E, S, expert_width]
        routed = (inner @ self.down * weight).sum(axis=1)
        output: Tensor = self.shared(x) + routed * self.config.routed_scale
        return output


class Block(nn.Layer):
    """Attention, then a feed-forward, each on the normalised residual; [B, S, D] -> [B, S, D]."""

    def __init__(self, config: Config, feed_forward: nn.Layer) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden)
        self.attention = LatentAttention(config)
        self.feed_forward_norm = RMSNorm(config.hidden)
        self.feed_forward = feed_forward

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor, mask: Tensor) -> Tensor:
        attended: Tensor = x + self.attention(self.attention_norm(x), cosine, sine, mask)
        output: Tensor = attended + self.feed_forward(self.feed_forward_norm(attended))
        return output


class Decoder(nn.Layer):
    """Tokens int64 [B, S] -> logits float32 [B, S, vocabulary]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocabulary, config.hidden, weight_attr=Normal())
        self.rotary = RotaryTable(config.rotary_head, config.rotary_base)
        self.blocks = nn.LayerList(
            Block(
                config,
                FeedForward(config.hidden, config.dense_width) if index < config.dense_layers else Experts(config),
            )
            for index in range(config.layers)
        )
        self.norm = RMSNorm(config.hidden)
        self.head = projection(config.hidden, config.vocabulary, gain=2.0)

    def forward(self, tokens: Tensor) -> Tensor:
        position = paddle.arange(0, paddle.shape(tokens)[1], dtype="float32")  # [S]
        cosine, sine = self.rotary(position)
        future = position.unsqueeze(0) > position.unsqueeze(1)  # [S, S]: key after query
        mask = future.astype("float32") * MASKED
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, cosine, sine, mask)
        logits: Tensor = self.head(self.norm(x))
        return logits
