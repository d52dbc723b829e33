"""Export the DeepSeek-style decoder: `python -m examples.deepseek.export FOLDER`."""

from pathlib import Path

from paddle.static import InputSpec

from examples import _saving
from examples.deepseek.model import Config, Decoder


def export(folder: Path) -> Path:
    """Write deepseek.json and deepseek.pdiparams.

    The input is `tokens` int64 [batch, sequence], both dynamic; the output is float32 logits
    [batch, sequence, vocabulary].
    """
    tokens = InputSpec([None, None], "int64", "tokens")
    return _saving.save(lambda: Decoder(Config()), folder, "deepseek", tokens)


if __name__ == "__main__":
    _saving.run(export)
