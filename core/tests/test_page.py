"""The plan as a page: whole, self-contained, safe against names, the same for equal plans; layers respect edges."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paddock.graph import Graph, Node, Range, Value
from paddock.memory_plan import MemoryPlan, PlannedBuffer, SegmentMemory
from paddock.model import Model
from paddock.page import page
from paddock.page_data import page_data, traces
from paddock.page_layout import GAP, arrange
from paddock.plan import (
    Means,
    NodePlacement,
    NodePrecision,
    Placement,
    Plan,
    Precision,
    PrecisionPlan,
    Remedy,
    SearchStep,
    Segment,
    Setting,
    Verdict,
)

HOSTILE = (
    "</script><script>alert(1)</script>", "</script ", "<!--<script ",
    '"><img src=x onerror=alert(1)>', "a\nb\x00\x07", "'; alert(1); '", "<!--",
    "\u6f22\u5b57\u202e\u2028", "\ud800", "https://example.org/x.js", "]]>", "&lt;b&gt;", "{{x}}", "__proto__",
)  # fmt: skip


def chain(count: int, names: Sequence[str] = ()) -> Graph:
    """A chain with a weight in each node, and every third value read again five nodes later."""
    name = [names[i % len(names)] if names else f"value {i}" for i in range(count + 1)]
    values = [Value(name[i], "float32", ("n", 8)) for i in range(count + 1)] + [Value("w", "float32", (8,))]
    nodes = []
    for i in range(count):
        inputs = (i, count + 1, *((i - 5,) if i >= 5 and i % 3 == 0 else ()))
        nodes.append(Node(i, f"Op{i % 4}" if not names else name[i], inputs, (i + 1,), name[i]))
    bounds = {"n": Range(1, 2, 4)}
    return Graph(tuple(nodes), tuple(values), (0,), (count,), {count + 1: 32}, "net", bounds=bounds)


def planned(graph: Graph, segments: int = 1, text: str = "plain", layout: bool = True) -> Plan:
    count = len(graph.nodes)
    step = max(1, -(-count // segments))
    adapters = [f"cpu/{text}", f"gpu/{text}"]
    cut = [tuple(range(at, min(count, at + step))) for at in range(0, count, step)]
    parts = tuple(Segment(i, adapters[i % 2], nodes, (), ()) for i, nodes in enumerate(cut))
    placed = tuple(
        NodePlacement(n, graph.nodes[n].op, part.adapter, Verdict.yes(text, text)) for part in parts for n in part.nodes
    )
    memory = tuple(
        SegmentMemory(
            part.index, part.adapter, nodes=len(part.nodes), arena=384, bound=256, proven=False,
            layout=tuple(
                PlannedBuffer((graph.values[n + 1].name,), graph.nodes[n].label, i, i + 2, 128 * (i % 3), 128)
                for i, n in enumerate(part.nodes)
            ) if layout else (),
        )
        for part in parts
    )  # fmt: skip
    half = tuple(NodePrecision(n, graph.nodes[n].op, "float16" if n % 2 else "float32", text) for n in range(count))
    precision = PrecisionPlan(
        Precision.FP16, Means.CAST, reason=text, nodes=half, casts=tuple((v.name, "float16") for v in graph.values[:1]),
        searched=(SearchStep(1, 0.5, None, None, False, text),),
    )  # fmt: skip
    return Plan(
        "m" * 64, "onnx", adapters[0], f"0 ({text})", precision, Placement(placed, parts),
        MemoryPlan(memory, owned=64, limit=4096, measured=512), {text: f"[{text}]"},
        settings=(Setting(text, text, text, text),), remedies=(Remedy(text, text, text, False, text),),
        versions={text: text}, reference=(text,), budget=text, notes=(text,),
    )  # fmt: skip


class _Page(HTMLParser):
    """Elements with their attributes, the content of scripts and styles, and the text outside of these."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.content: dict[str, list[str]] = {"script": [], "style": []}
        self.words: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "input"):
            self.open.append(tag)
        if tag in self.content:
            self.content[tag].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        where = self.open[-1] if self.open else ""
        if where in self.content:
            self.content[where][-1] += data
        else:
            self.words.append(data)

    @property
    def data(self) -> Any:
        return json.loads(self.content["script"][0])


def parsed(html: str) -> _Page:
    found = _Page(html)
    assert not found.open, "every element is closed"
    return found


@pytest.fixture(scope="module")
def whole() -> _Page:
    return parsed(page(chain(12), planned(chain(12), 3)))


def test_it_needs_nothing_from_elsewhere(whole: _Page) -> None:
    for tag, attributes in whole.elements:
        assert tag not in ("link", "iframe", "img", "object", "embed", "base", "form", "a")
        assert not {"src", "href", "style", "srcset", "action", "data"} & set(attributes)
        assert not [name for name in attributes if name.startswith("on")], "no inline handlers: the policy stops them"
    own = "".join((*whole.content["style"], whole.content["script"][1]))
    assert not re.search(r"https?:|//[a-z]|url\(|@import|\beval\b|innerHTML|outerHTML|document\.write|Function\(", own)
    assert not re.search(r"fetch\(|XMLHttpRequest|WebSocket|\bimport\b|setAttribute\('(style|on)", own)


def test_its_policy_admits_exactly_what_stands_in_it(whole: _Page) -> None:
    policy = next(a["content"] for _, a in whole.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and "default-src 'none'" in policy and "unsafe" not in policy
    for text in (whole.content["style"][0], whole.content["script"][1]):
        assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy
    assert len(whole.content["style"]) == 1 and len(whole.content["script"]) == 2


def test_the_script_finds_every_element_it_asks_for(whole: _Page) -> None:
    ids = {attributes["id"] for _, attributes in whole.elements if "id" in attributes}
    asked = set(re.findall(r"(?:byId|canvas|getElementById)\('([a-z]+)'", whole.content["script"][1]))
    assert len(asked) > 10 and asked <= ids
    used = set(re.findall(r"colors\.(\w+)", whole.content["script"][1])) | {"halo-edge"}
    assert used <= set(re.findall(r"--([\w-]+):", whole.content["style"][0]))


def test_every_node_and_buffer_is_in_its_data(whole: _Page) -> None:
    graph, data = chain(12), whole.data
    text, boxes = data["text"], data["boxes"]
    assert (data["inputs"], data["nodes"], len(boxes["x"])) == (1, 12, 14)
    for node in graph.nodes:
        box = data["inputs"] + node.index
        assert (text[boxes["type"][box]], text[boxes["name"][box]]) == (node.op, node.name)
        assert boxes["segment"][box] == node.index // 4 and boxes["answer"][box] == "yes"
        assert text[boxes["dtype"][box]] == ("float16" if node.index % 2 else "float32")
        assert boxes["held"][box] == [1, 32]
    found = [
        (text[names[0]], lower, upper, offset, size, linked)
        for segment in data["memory"]
        for names, lower, upper, offset, size, linked in zip(
            *(segment["buffers"][name] for name in ("values", "lower", "upper", "offset", "size", "boxes")), strict=True
        )
    ]
    expected = [
        (b.values[0], b.lower, b.upper, b.offset, b.size, [1 + at * 4 + i])
        for at, segment in enumerate(planned(graph, 3).memory.segments)
        for i, b in enumerate(segment.layout)
    ]
    assert found == expected
    assert len(data["edges"]["from"]) == 11 + 2 + 2, "between nodes, again, from the input and to the output"


def test_sizes_are_of_the_type_that_is_made_and_of_the_largest_extent(whole: _Page) -> None:
    data = whole.data
    values, text = data["values"], data["text"]
    made = {text[n]: (text[values["dtype"][i]], values["bytes"][i]) for i, n in enumerate(values["name"])}
    assert made["value 1"] == ("float32", 4 * 8 * 4) and made["value 2"] == ("float16", 4 * 8 * 2)
    assert text[values["shape"][0]] == "4\u00d78"


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_breaks_out(name: str) -> None:
    graph = chain(4, [name])
    html = page(graph, planned(graph, 2, name))
    found, plain = parsed(html), parsed(page(chain(4, ["n"]), planned(chain(4, ["n"]), 2, "n")))
    assert [tag for tag, _ in found.elements] == [tag for tag, _ in plain.elements]
    assert found.content["script"][1] == plain.content["script"][1]
    assert name in found.data["text"], "the data has it as it is"
    assert not {"<", ">", "&"} & set(found.content["script"][0]), "nothing in the data can open or close anything"
    assert html.encode(), "it can be written"
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", html)


def test_equal_plans_give_equal_bytes() -> None:
    first, second = (page(chain(30), planned(chain(30), 3)) for _ in range(2))
    assert first.encode() == second.encode()


def test_names_that_are_not_unique_are_not_linked() -> None:
    graph = chain(6, ["same"])
    data = page_data(graph, planned(graph))
    assert all(not linked for linked in data["memory"][0]["buffers"]["boxes"])
    traced = {0: {"same": (2, 4, 99)}}
    data = page_data(graph, planned(graph), traced)
    assert all(linked == [3, 5] for linked in data["memory"][0]["buffers"]["boxes"]), "what is traced needs no names"


def test_values_of_a_converted_segment_are_traced_to_the_nodes() -> None:
    source = Model("paddle", {}, "f", chain(2))
    made = Model("onnx", {}, "f", chain(3), source, ((0,), (), (0, 1)))
    assert traces(made, source) == {"value 1": (0,), "value 2": (), "value 3": (0, 1)}


@pytest.mark.parametrize("segments", [0, 1])
def test_what_is_empty_is_a_page_too(segments: int) -> None:
    empty = Graph((), (), (), ())
    plan = planned(empty, 1) if segments else Plan(
        "m", "onnx", "a/b", "0", PrecisionPlan(Precision.FP32), Placement((), ()), MemoryPlan(), {}
    )  # fmt: skip
    assert parsed(page(empty, plan)).data["boxes"]["x"] == []


def test_a_plan_without_a_layout_and_values_that_nobody_knows() -> None:
    values = (Value("x"), Value("y", None, None), Value("s", "string", (None,)), Value("c", "float32", (2,)))
    nodes = (Node(7, "Odd", (0, None, 3), (1, None, 2)),)
    graph = Graph(nodes, values, (0, 3), (1, 3, 1), {3: 8})
    plan = planned(chain(1), layout=False)
    data = parsed(page(graph, plan)).data
    assert data["inputs"] == 1 and data["nodes"] == 1 and len(data["boxes"]["x"]) == 5
    assert data["boxes"]["segment"][1] == -1 and data["boxes"]["adapter"][1] == -1
    assert data["memory"][0]["buffers"]["size"] == []


@pytest.mark.parametrize(("count", "most"), [(1000, 1 << 20), (5000, 3 << 20)])
def test_a_large_graph_stays_a_page(count: int, most: int) -> None:
    graph = chain(count)
    assert len(page(graph, planned(graph, 8))) < most


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[float], list[tuple[int, int]], int]:
    count = draw(st.integers(1, 16))
    above = draw(st.lists(st.integers(0, 2**count - 1), min_size=count, max_size=count))
    sparse = draw(st.integers(0, 2**count - 1))
    edges = [
        (a, b) for b in range(count) for a in range(b) if above[b] >> a & 1 and (a + 1 == b or not sparse >> a & 1)
    ]
    widths = draw(st.lists(st.floats(6, 300), min_size=count, max_size=count))
    return widths, edges, draw(st.integers(0, min(3, count)))


@given(graphs())
@settings(max_examples=80, deadline=None)
def test_every_edge_goes_down_and_no_two_boxes_overlap(found: tuple[list[float], list[tuple[int, int]], int]) -> None:
    widths, edges, sources = found
    drawing = arrange(widths, edges, range(sources))
    assert len(drawing.layers) == len(drawing.centers) == len(widths) and len(drawing.bends) == len(edges)
    for (above, below), bends in zip(edges, drawing.bends, strict=True):
        levels = [drawing.layers[above], *(level for _, level in bends), drawing.layers[below]]
        assert all(a < b for a, b in pairwise(levels))
    for layer in set(drawing.layers):
        row = sorted((drawing.centers[b], widths[b]) for b in range(len(widths)) if drawing.layers[b] == layer)
        for (left, wide), (right, wider) in pairwise(row):
            assert right - left >= (wide + wider) / 2 + GAP - 1e-6
    for center, width in zip(drawing.centers, widths, strict=True):
        assert drawing.left - 1e-6 <= center - width / 2 and center + width / 2 <= drawing.right + 1e-6


def test_a_box_stands_below_all_that_it_reads() -> None:
    assert arrange([50.0] * 5, [(0, 1), (1, 2), (2, 4), (0, 3), (3, 4)], [0]).layers == (0, 1, 2, 1, 3)


def test_a_constant_stands_above_its_reader_and_an_input_too() -> None:
    edges = [(0, 2), (2, 3), (3, 4), (4, 5), (1, 5), (6, 5)]
    drawing = arrange([50.0] * 7, [(a, b) for a, b in edges if a < b], [0, 1])
    assert drawing.layers[0] == 0 and drawing.layers[1] == drawing.layers[5] - 1


def test_edges_that_are_too_long_run_beside_the_drawing() -> None:
    count = 4000
    edges = [(i, i + 1) for i in range(count - 1)] + [(i, count - 1) for i in range(30)]
    drawing = arrange([50.0] * count, edges, [0])
    lanes = [bends for bends in drawing.bends if len(bends) == 2 and bends[0][0] > 25]
    assert lanes and all(x <= drawing.right for bends in lanes for x, _ in bends)
    assert sum(map(len, drawing.bends)) < 8 * count
