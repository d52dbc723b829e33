"""Train the decoder briefly on a small text and export it: `python -m examples.deepseek.train FOLDER`.

With random weights the best routed experts of a token win by chance and the logits follow nothing; so a comparison of
precisions says little. Here a smaller decoder of the same structure learns to guess the next byte of `text`, and the
windows that judge it are held out. About a minute on one core; on one machine the same bytes come out every time.
"""

import argparse
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from numpy.typing import NDArray
from paddle import Tensor, nn
from paddle.static import InputSpec

from examples import _saving
from examples.deepseek import text
from examples.deepseek.model import Config, Decoder, Experts

NAME = "decoder_trained"
CONFIG = Config(
    vocabulary=128,
    hidden=128,
    kv_lora_rank=32,
    plain_head=32,
    rotary_head=16,
    value_head=32,
    dense_width=256,
    expert_width=64,
)
WINDOW = 48
STEPS = 150
BATCH = 16
RATE = 3e-3
BALANCE = 0.01
CALIBRATION_STEP = 3  # every third window that trained: 36 of 110


@dataclass(frozen=True)
class Score:
    """How well a decoder guesses the next byte: cross-entropy in nats, share of right first guesses.

    `margin` is the median distance between a token's last kept and first dropped expert, in sigmoid scores; `busiest`
    and `idlest` are the largest and smallest share of the choices that any expert of any layer gets.
    """

    loss: float
    accuracy: float
    margin: float
    busiest: float
    idlest: float


@dataclass(frozen=True)
class Trained:
    """Weights by name, and the scores on the held-out windows before and after."""

    weights: dict[str, NDArray[np.float32]]
    before: Score
    after: Score


def train(config: Config = CONFIG, steps: int = STEPS) -> Trained:
    """Train from a fixed seed. The caller's random state is kept."""
    kept, held = text.split()
    judges = text.windows(held, WINDOW)
    state = paddle.get_rng_state()
    try:
        paddle.seed(0)
        decoder = Decoder(config)
        before = score(decoder, judges)
        with differentiable(decoder):
            _learn(decoder, kept, steps)
        after = score(decoder, judges)
    finally:
        paddle.set_rng_state(state)
    return Trained({name: value.numpy() for name, value in decoder.state_dict().items()}, before, after)


def _learn(decoder: Decoder, tokens: NDArray[np.int64], steps: int) -> None:
    """AdamW on random windows of `tokens` [N], the rate falling along a cosine."""
    rate = paddle.optimizer.lr.CosineAnnealingDecay(RATE, steps)
    clip = nn.ClipGradByGlobalNorm(1.0)
    optimizer = paddle.optimizer.AdamW(rate, parameters=decoder.parameters(), weight_decay=0.1, grad_clip=clip)
    rng = np.random.default_rng(0)
    decoder.train()
    with routing(decoder) as scores:
        for _ in range(steps):
            begins = rng.integers(0, len(tokens) - WINDOW, BATCH)
            batch = tokens[begins[:, None] + np.arange(WINDOW + 1)]
            scores.clear()
            loss = cross_entropy(decoder(paddle.to_tensor(batch[:, :-1])), batch[:, 1:])
            (loss + BALANCE * imbalance(scores, decoder)).backward()
            optimizer.step()
            optimizer.clear_grad()
            rate.step()


def score(decoder: Decoder, judges: NDArray[np.int64]) -> Score:
    """The decoder on windows [N, WINDOW]."""
    decoder.eval()
    with paddle.no_grad(), routing(decoder) as scores:
        logits = decoder(paddle.to_tensor(judges))[:, :-1]
        loss = float(cross_entropy(logits, judges[:, 1:]))
    guesses = logits.numpy().argmax(axis=-1)
    taken = _experts(decoder)[0].config.experts_per_token
    ranked = [np.sort(each.numpy(), axis=-1) for each in scores]
    margins = np.concatenate([(each[..., -taken] - each[..., -taken - 1]).ravel() for each in ranked])
    chosen = [chosen_experts(each, taken).mean(axis=[0, 1]).numpy() / taken for each in scores]
    return Score(
        loss,
        float((guesses == judges[:, 1:]).mean()),
        float(np.median(margins)),
        float(np.max(chosen)),
        float(np.min(chosen)),
    )


def cross_entropy(logits: Tensor, wanted: NDArray[np.int64]) -> Tensor:
    """Mean cross-entropy of logits [B, S, vocabulary] with the tokens [B, S]."""
    return F.cross_entropy(logits.reshape([-1, logits.shape[-1]]), paddle.to_tensor(wanted.reshape(-1)))


def imbalance(scores: list[Tensor], decoder: Decoder) -> Tensor:
    """What each layer's share of choices and mean score of its experts have in common; 1 a layer when even."""
    config = _experts(decoder)[0].config
    total = paddle.zeros([])
    for each in scores:
        share = chosen_experts(each, config.experts_per_token).mean(axis=[0, 1]) / config.experts_per_token
        likely = (each / each.sum(axis=-1, keepdim=True)).mean(axis=[0, 1])
        total = total + (share * likely).sum() * config.routed_experts
    return total


def chosen_experts(scores: Tensor, taken: int) -> Tensor:
    """1 where an expert is among a token's best, [B, S, E] -> [B, S, E]."""
    _, best = paddle.topk(scores, taken, axis=-1)
    return F.one_hot(best, scores.shape[-1]).sum(axis=-2)


@contextmanager
def routing(decoder: Decoder) -> Iterator[list[Tensor]]:
    """Collects the routers' scores [B, S, E], layer by layer, of the calls made within."""
    scores: list[Tensor] = []

    def keep(layer: nn.Layer, inputs: Any, output: Tensor) -> None:
        scores.append(F.sigmoid(output))

    hooks = [each.router.register_forward_post_hook(keep) for each in _experts(decoder)]
    try:
        yield scores
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def differentiable(decoder: Decoder) -> Iterator[None]:
    """Within, the experts compute by `grouped`: Paddle 3.3.1 has no gradient for their own broadcast product."""
    layers = _experts(decoder)
    for layer in layers:
        layer.forward = functools.partial(grouped, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def grouped(layer: Experts, x: Tensor) -> Tensor:
    """What `Experts.forward` computes, with a row for every token: [B, S, D] -> [B, S, D]."""
    config = layer.config
    rows = x.reshape([1, -1, config.hidden]).expand([config.routed_experts, -1, -1])  # [E, B * S, D]
    inner = F.silu(rows @ layer.gate) * (rows @ layer.up)
    weight = layer.route(x).reshape([-1, config.routed_experts]).transpose([1, 0]).unsqueeze(-1)  # [E, B * S, 1]
    routed = (inner @ layer.down * weight).sum(axis=0).reshape(x.shape)
    output: Tensor = layer.shared(x) + routed * config.routed_scale
    return output


def _experts(decoder: Decoder) -> list[Experts]:
    return [layer for layer in decoder.sublayers() if isinstance(layer, Experts)]


def export(folder: Path, config: Config = CONFIG, steps: int = STEPS) -> tuple[Path, Trained]:
    """Train; write decoder_trained.json and .pdiparams, and windows to judge and to calibrate by.

    The input is `tokens` int64 [batch, sequence], both dynamic, the bytes of ASCII text; the output is float32 logits
    [batch, sequence, vocabulary] of the next byte. The windows are `tokens` [1, 48], one to a file: those of
    decoder_trained_samples/ are held out, those of decoder_trained_calibration/ have trained.
    """
    trained = train(config, steps)
    path = _saving.save(_restored(config, trained), folder, NAME, InputSpec([None, None], "int64", "tokens"))
    kept, held = text.split()
    _write(folder / f"{NAME}_samples", text.windows(held, WINDOW))
    _write(folder / f"{NAME}_calibration", text.windows(kept, WINDOW)[::CALIBRATION_STEP])
    return path, trained


def _restored(config: Config, trained: Trained) -> Callable[[], nn.Layer]:
    def build() -> nn.Layer:
        decoder = Decoder(config)
        decoder.set_state_dict(trained.weights)
        return decoder

    return build


def _write(folder: Path, windows: NDArray[np.int64]) -> None:
    """One .npz a window; what an earlier export left is removed, so that no window is in two places."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("window*.npz"):
        old.unlink()
    for number, window in enumerate(windows):
        np.savez(folder / f"window{number:03d}.npz", tokens=window[None])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train the decoder briefly, export it, print what it learnt.")
    parser.add_argument("folder", type=Path, help="where the .json, the .pdiparams and the windows go")
    path, trained = export(parser.parse_args().folder)
    print(path)
    for moment, found in (("before", trained.before), ("after", trained.after)):
        print(
            f"{moment:6} held-out loss {found.loss:.3f}, next-byte top-1 {found.accuracy:.3f}, routing margin"
            f" {found.margin:.4f}, experts get {found.idlest:.3f} to {found.busiest:.3f} of the choices"
        )
