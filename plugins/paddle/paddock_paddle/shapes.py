"""Carries symbolic extents through a program, whose own types say only "-1" for whatever is not fixed.

A symbol is carried where Paddle's own rule for the operation leaves no doubt that the extent is the operand's;
everywhere else the extent stays unknown. The rules are those of paddle/phi/infermeta.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paddock.graph import Dim, Shape

Known = Shape | None


@dataclass(frozen=True)
class Site:
    """One operation as the rules see it.

    `operands` are the operands' shapes (None: unknown or left out), `constants` the numbers of operands that are
    constants of the program, `declared` the result's shape with -1 where it is dynamic.
    """

    operands: Sequence[Known]
    constants: Sequence[Sequence[int] | None]
    attributes: Mapping[str, Any]
    declared: tuple[int, ...]

    def operand(self, position: int) -> Known:
        """An operand's shape; None where it is unknown or there is no such operand."""
        return self.operands[position] if position < len(self.operands) else None

    def numbers(self, position: int, attribute: str) -> Sequence[int] | None:
        """What stands in an attribute or, where it came as an operand, in that constant."""
        given = self.attributes.get(attribute)
        if given is None:
            return self.constants[position] if position < len(self.constants) else None
        listed = given if isinstance(given, list) else [given]
        return listed if all(type(item) is int for item in listed) else None


Rule = Callable[[Site], Known]


def carried(op: str, site: Site) -> Shape:
    """The declared shape of a result with symbols where they are certain, None where the extent is unknown."""
    rule = _RULES.get(op)
    offered = rule(site) if rule is not None and -1 in site.declared else None
    if offered is None or len(offered) != len(site.declared):
        offered = (None,) * len(site.declared)
    return tuple(o if d == -1 else d for d, o in zip(site.declared, offered, strict=True))


def _same(site: Site) -> Known:
    return site.operand(0)


def _broadcast(first: int, last: int | None) -> Rule:
    def rule(site: Site) -> Known:
        shapes = site.operands[first:last]
        rank = len(site.declared)
        if any(shape is None or len(shape) > rank for shape in shapes):
            return None
        padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes if shape is not None]
        return tuple(_one_extent(dims) for dims in zip(*padded, strict=True))

    return rule


def _one_extent(dims: Sequence[Dim]) -> Dim:
    """What extents broadcast to: the only one that is not 1, where there is only one."""
    wide = {dim for dim in dims if dim != 1}
    return wide.pop() if len(wide) == 1 else None if wide else 1


def _batch(site: Site) -> Known:
    """Convolution and pooling: axis 0 of the operand, the rest by the program's own types."""
    shape = site.operand(0)
    return (shape[0], *(None,) * (len(site.declared) - 1)) if shape else None


def _all_but(position: int, attribute: str) -> Rule:
    """Every axis as in the operand, except those that the operation names."""

    def rule(site: Site) -> Known:
        shape, axes = site.operand(0), site.numbers(position, attribute)
        if shape is None or not axes:
            return None
        named = {axis % len(shape) for axis in axes} if shape else set()
        return tuple(None if axis in named else dim for axis, dim in enumerate(shape))

    return rule


def _reduced(position: int, attribute: str) -> Rule:
    def rule(site: Site) -> Known:
        shape, axes = site.operand(0), site.numbers(position, attribute)
        if not shape or not axes:
            return None
        named = {axis % len(shape) for axis in axes}
        if len(site.declared) == len(shape):  # reduced axes are kept, as 1
            return tuple(1 if axis in named else dim for axis, dim in enumerate(shape))
        return tuple(dim for axis, dim in enumerate(shape) if axis not in named)

    return rule


def _sliced(site: Site) -> Known:
    shape, axes = site.operand(0), site.numbers(0, "axes")
    dropped = site.attributes.get("decrease_axis", [])
    if not shape or not axes or not isinstance(dropped, list):
        return None
    gone = {axis % len(shape) for axis in dropped if type(axis) is int}
    cut = {axis % len(shape) for axis in axes}
    return tuple(None if axis in cut else dim for axis, dim in enumerate(shape) if axis not in gone)


def _transposed(site: Site) -> Known:
    shape, order = site.operand(0), site.numbers(1, "perm")
    if shape is None or order is None or sorted(axis % max(len(shape), 1) for axis in order) != list(range(len(shape))):
        return None
    return tuple(shape[axis] for axis in order)


def _product(site: Site) -> Known:
    left, right = site.operand(0), site.operand(1)
    if left is None or right is None or len(left) < 2 or len(right) < 2:
        return None
    rank = len(site.declared)
    pads = [(1,) * (rank - len(side)) + tuple(side[:-2]) for side in (left, right)]
    if any(len(pad) != rank - 2 for pad in pads):
        return None
    rows = left[-1] if site.attributes.get("transpose_x") else left[-2]
    columns = right[-2] if site.attributes.get("transpose_y") else right[-1]
    return (*(_one_extent(dims) for dims in zip(*pads, strict=True)), rows, columns)


def _looked_up(site: Site) -> Known:
    indices, table = site.operand(0), site.operand(1)
    return (*indices, table[-1]) if indices is not None and table else None


def _joined(site: Site) -> Known:
    parts, axes = site.operands[:-1], site.constants[-1] if site.constants else None
    whole = [part for part in parts if part]
    if not whole or not axes or any(len(part) != len(whole[0]) for part in whole):
        return None
    axis = axes[0] % len(whole[0])
    return tuple(None if i == axis else _known_extent(dims) for i, dims in enumerate(zip(*whole, strict=True)))


def _stacked(site: Site) -> Known:
    whole = [part for part in site.operands if part is not None]
    axes = site.numbers(len(site.operands), "axis")
    if not whole or not axes or any(len(part) != len(whole[0]) for part in whole):
        return None
    axis = axes[0] % (len(whole[0]) + 1)
    dims = [_known_extent(dims) for dims in zip(*whole, strict=True)]
    return (*dims[:axis], len(site.operands), *dims[axis:])


def _known_extent(dims: Sequence[Dim]) -> Dim:
    """Extents that must be equal for the operation to run at all: whichever is known."""
    return next((dim for dim in dims if dim is not None), None)


def _reordered(site: Site) -> Known:
    """Reshape and its kin keep the number of elements: one unknown extent on each side is the same, if the rest is."""
    shape = site.operand(0)
    if shape is None:
        return None
    wanted = site.constants[1] if len(site.constants) > 1 else None
    given: list[Dim] = [None if dim == -1 else dim for dim in site.declared]
    if wanted is not None and len(wanted) == len(given):
        for axis, extent in enumerate(wanted):  # a 0 takes the operand's extent on that axis
            if extent == 0 and axis < len(shape):
                given[axis] = shape[axis]
    here, there = list(shape), list(given)
    for dim in given:
        if isinstance(dim, str) and dim in here:
            here.remove(dim)
            there.remove(dim)
    open_here = [dim for dim in here if not isinstance(dim, int)]
    if len(open_here) == 1 and sum(dim is None for dim in there) == 1 and not any(isinstance(d, str) for d in there):
        sizes = [math.prod(dim for dim in dims if isinstance(dim, int)) for dims in (here, there)]
        if sizes[0] == sizes[1] > 0:
            given[given.index(None)] = open_here[0]
    return tuple(given)


def _each(rule: Rule, names: str) -> dict[str, Rule]:
    return {f"pd_op.{name}": rule for name in names.split()}


_RULES: Mapping[str, Rule] = {
    **_each(
        _same,
        "abs assign batch_norm batch_norm_ bitwise_not cast ceil clip cos cumsum dropout elu erf exp floor full_like "
        "gelu group_norm hardsigmoid hardswish hardtanh instance_norm isfinite isinf isnan layer_norm leaky_relu log "
        "log1p log2 log_softmax logical_not logsigmoid mish pow prelu reciprocal relu relu6 rms_norm round rsqrt scale "
        "selu sigmoid sign silu sin sinh softmax softplus softsign sqrt square swish tan tanh tanh_shrink tril triu",
    ),
    **_each(
        _broadcast(0, 2),
        "add atan2 bitwise_and bitwise_or divide elementwise_pow equal floor_divide fmax fmin greater_equal "
        "greater_than less_equal less_than logical_and logical_or logical_xor maximum minimum multiply not_equal "
        "remainder subtract",
    ),
    **_each(
        _batch,
        "bicubic_interp bilinear_interp conv2d conv2d_transpose conv3d depthwise_conv2d depthwise_conv2d_transpose "
        "nearest_interp pad3d pool2d pool3d",
    ),
    **_each(_reduced(1, "axis"), "all any argmax argmin logsumexp max mean min prod sum"),
    **_each(_reordered, "flatten reshape squeeze unsqueeze"),
    "pd_op.embedding": _looked_up,
    "pd_op.matmul": _product,
    "pd_op.slice": _sliced,
    "pd_op.topk": _all_but(2, "axis"),
    "pd_op.transpose": _transposed,
    "pd_op.where": _broadcast(0, 3),
    # These give a sequence; every part has the same extents but on that axis.
    "pd_op.split": _all_but(2, "axis"),
    "pd_op.split_with_num": _all_but(1, "axis"),
    # These take a sequence: its parts come first among the operands.
    "pd_op.concat": _joined,
    "pd_op.stack": _stacked,
}
"""By operation; each answers for the first result, and for a sequence for each of its parts."""
