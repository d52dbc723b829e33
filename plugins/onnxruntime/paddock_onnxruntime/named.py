"""A model whose nodes are named by their index, so that what onnxruntime says of a node can be traced to it.

onnxruntime knows nodes by name only, merges some and renames others; what it makes of a node keeps the name's
beginning (`p12` becomes `p12_token_1` or `p12/MatMulAddFusion`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddock.graph import Graph, Node

DATA_FOLDER = "session.model_external_initializers_file_folder_path"


@dataclass(frozen=True)
class Source:
    """A model for a session: its content, and the folder that its external data lie in."""

    content: bytes
    folder: Path


def name(index: int) -> str:
    """The name of a node of the model."""
    return f"p{index}"


def index(given: str) -> int | None:
    """The node that a name stands for; None for what onnxruntime put in by itself."""
    found = re.match(r"p(\d+)(?!\d)", given)
    return None if found is None else int(found[1])


def full_name(given: str) -> str:
    """The name that a node of the model or of its bodies had, without what onnxruntime wrote behind it; "" for none."""
    found = re.match(r"p\d+(?:\.\w+\.\d+)*(?!\d)", given)
    return "" if found is None else found[0]


def name_nodes(proto: Any) -> None:
    """Names every node of a model, and those in its bodies."""
    for number, node in enumerate(proto.graph.node):
        node.name = name(number)
        _name_bodies(node, node.name)


def named_bodies(node: Node, given: str) -> Iterator[tuple[Graph, str]]:
    """The bodies of a node of this name, each with what its own nodes' names begin with, without their number."""
    for attribute, value in node.attributes.items():
        for body in value if isinstance(value, list) else [value]:
            if isinstance(body, dict) and "subgraph" in body:
                yield node.subgraphs[body["subgraph"]], f"{given}.{attribute}"


def _name_bodies(node: Any, prefix: str) -> None:
    for attribute in node.attribute:
        for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            for number, inner in enumerate(body.node):
                inner.name = f"{prefix}.{attribute.name}.{number}"
                _name_bodies(inner, inner.name)
