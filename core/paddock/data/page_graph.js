
// The graph: boxes in layers from the top down, drawn on a canvas, only what is in view and only as fine as can be seen.
const HIGH = 26, PITCH = 66, PAD = 12;
const view = {scale: 1, x: 0, y: 0}; // screen = world * scale + (x, y)
let camera = view; // what is being drawn through
let fold = null; // the whole graph, its layers cut into columns: a camera each, with the place it draws in
const layers = Array.from({length: data.extent[2]}, () => []);
for (let box = 0; box < count; box++) layers[boxes.layer[box]].push(box);
for (const layer of layers) layer.sort((a, b) => boxes.x[a] - boxes.x[b]);
const top = (box) => boxes.layer[box] * PITCH - HIGH / 2;
const outgoing = Array.from({length: count}, () => []), incoming = Array.from({length: count}, () => []);
const many = new Set(boxes.segment.filter((segment) => segment >= 0)).size > 1;
const lines = edges.from.map((from, i) => {
  const to = edges.to[i], flat = edges.bends[i], points = [[boxes.x[from], top(from) + HIGH]];
  for (let k = 0; k < flat.length; k += 2) points.push([flat[k], flat[k + 1] * PITCH]);
  points.push([boxes.x[to], top(to)]);
  const xs = points.map((p) => p[0]);
  outgoing[from].push(i);
  incoming[to].push(i);
  const classes = edges.values[i].map(typeClass);
  const kind = ['narrower', 'narrow', 'wide', 'plain'].find((each) => classes.includes(each)) || 'other';
  const crosses = isNode(from) && isNode(to) && boxes.segment[from] !== boxes.segment[to];
  return {from, to, points, kind, crosses, left: Math.min(...xs), right: Math.max(...xs), top: points[0][1], bottom: points[points.length - 1][1]};
});
const graph = canvas('graph', drawGraph), strip = canvas('strip', drawStrip);

function trace(context, line, straight) {
  const points = line.points;
  context.moveTo(points[0][0], points[0][1]);
  for (let i = 1; i < points.length; i++) {
    const [x0, y0] = points[i - 1], [x1, y1] = points[i];
    if (straight || x0 === x1) context.lineTo(x1, y1);
    else {
      // Bends turn within one layer's height, and run straight before it.
      const turn = Math.min(Math.abs(y1 - y0), PITCH), from = y1 - Math.sign(y1 - y0) * turn;
      if (from !== y0) context.lineTo(x0, from);
      context.bezierCurveTo(x0, from + (y1 - from) * .5, x1, y1 - (y1 - from) * .5, x1, y1);
    }
  }
}
const inView = (line, area) => line.right >= area.left && line.left <= area.right && line.bottom >= area.top && line.top <= area.bottom;
function areaOf(width, height, by = view, x = 0, y = 0) {
  return {left: (x - by.x) / by.scale - 20, right: (x + width - by.x) / by.scale + 20,
    top: (y - by.y) / by.scale - 20, bottom: (y + height - by.y) / by.scale + 20};
}
function* shown(area) {
  const first = Math.max(0, Math.floor((area.top - HIGH) / PITCH)), last = Math.min(layers.length - 1, Math.ceil((area.bottom + HIGH) / PITCH));
  for (let at = first; at <= last; at++) {
    const layer = layers[at];
    for (const box of layer) {
      if (boxes.x[box] + boxes.w[box] / 2 >= area.left && boxes.x[box] - boxes.w[box] / 2 <= area.right) yield box;
    }
  }
}

function drawHalos(context, visible, seen) {
  const bySegment = new Map();
  for (const box of visible) {
    if (boxes.segment[box] < 0) continue;
    if (!bySegment.has(boxes.segment[box])) bySegment.set(boxes.segment[box], {boxes: [], lines: []});
    bySegment.get(boxes.segment[box]).boxes.push(box);
  }
  for (const line of seen) {
    const segment = boxes.segment[line.from];
    if (segment >= 0 && segment === boxes.segment[line.to] && bySegment.has(segment)) bySegment.get(segment).lines.push(line);
  }
  for (const [, found] of [...bySegment].sort((a, b) => a[0] - b[0])) {
    const tint = adapterColor(boxes.adapter[found.boxes[0]]);
    for (const [grow, color, alpha] of [[PAD + 1.5 / Math.max(camera.scale, .2), tint, .55], [PAD, colors.halo, 1]]) {
      context.globalAlpha = alpha;
      // One path for all, so that what overlaps is not painted twice.
      context.fillStyle = context.strokeStyle = color;
      context.lineWidth = grow * 2;
      context.lineJoin = 'round';
      context.beginPath();
      for (const box of found.boxes) context.roundRect(boxes.x[box] - boxes.w[box] / 2 - grow, top(box) - grow, boxes.w[box] + 2 * grow, HIGH + 2 * grow, grow);
      context.fill();
      context.beginPath();
      for (const line of found.lines) trace(context, line, false);
      context.stroke();
    }
  }
  context.globalAlpha = 1;
}
function strokeLines(context, found, color, width, dash, straight) {
  if (!found.length) return;
  context.beginPath();
  for (const line of found) trace(context, line, straight);
  context.strokeStyle = color;
  context.lineWidth = width;
  context.setLineDash(dash);
  context.stroke();
  context.setLineDash([]);
}
function edgeColor(kind) {
  return {narrow: colors.narrow, narrower: colors.narrower, wide: colors.wide}[kind] || colors.edge;
}
function drawGraph(context, width, height) {
  context.fillStyle = colors.sunk;
  context.fillRect(0, 0, width, height);
  if (!count) {
    context.fillStyle = colors.mute;
    context.font = '14px ' + colors.sans;
    context.fillText('The graph has no nodes.', 20, 34);
  }
  if (!fold) { drawThrough(context, view, areaOf(width, height)); return; }
  fold.forEach((column, index) => {
    context.save();
    context.beginPath();
    context.rect(column.left, column.top, column.width, column.height);
    context.clip();
    drawThrough(context, column, areaOf(column.width, column.height, column, column.left, column.top));
    context.restore();
    if (!index) return;
    context.fillStyle = colors.line;
    context.fillRect(column.left - 4, 12, 1, height - 24);
  });
}
function drawThrough(context, through, area) {
  camera = through;
  const visible = [...shown(area)], seen = lines.filter((line) => inView(line, area));
  const {scale} = camera, coarse = scale < .3, thin = Math.max(1.2, .9 / scale);
  context.save();
  context.translate(camera.x, camera.y);
  context.scale(scale, scale);
  if (many && visible.length < 4000) drawHalos(context, visible, seen);
  const focus = state.hover >= 0 ? state.hover : state.chosen;
  const groups = new Map();
  for (const line of seen) {
    const key = line.kind + (line.crosses ? '/crosses' : '');
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(line);
  }
  for (const [key, found] of groups) {
    const [kind, crosses] = key.split('/');
    const color = crosses && kind !== 'narrow' && kind !== 'narrower' ? colors.fg : edgeColor(kind);
    const dash = coarse ? [] : crosses ? [6, 4] : kind === 'other' ? [1.5, 3] : [];
    context.globalAlpha = coarse && (crosses || found.length > 3000) ? .4 : .9;
    strokeLines(context, found, color, kind === 'narrow' || kind === 'narrower' ? thin * 1.3 : thin, dash, coarse);
  }
  context.globalAlpha = 1;
  if (focus >= 0) {
    const near = [...outgoing[focus], ...incoming[focus]].map((i) => lines[i]).filter((line) => inView(line, area));
    strokeLines(context, near, colors.accent, thin * 2, [], coarse);
  }
  if (!coarse) for (const line of near(visible)) arrow(context, line);
  for (const box of visible) drawBox(context, box, coarse);
  if (scale > .72) drawTypes(context, visible);
  for (const box of new Set([state.chosen, focus])) if (box >= 0) ring(context, box, box === state.chosen);
  for (const box of state.buffer || state.chosenBuffer ? linkedTo(state.buffer || state.chosenBuffer) : []) ring(context, box, true);
  context.restore();
}
function near(visible) {
  return visible.flatMap((box) => incoming[box].map((i) => lines[i]));
}
const linkedTo = (buffer) => data.memory[buffer.memory].buffers.boxes[buffer.index];
function arrow(context, line) {
  const [x, y] = line.points[line.points.length - 1];
  context.fillStyle = line.kind === 'plain' || line.kind === 'other' ? colors.edge : edgeColor(line.kind);
  context.beginPath();
  context.moveTo(x, y);
  context.lineTo(x - 3.2, y - 6);
  context.lineTo(x + 3.2, y - 6);
  context.fill();
}
function drawBox(context, box, coarse) {
  const x = boxes.x[box] - boxes.w[box] / 2, y = top(box), w = boxes.w[box];
  const color = isNode(box) ? adapterColor(boxes.adapter[box]) : colors.mute;
  context.globalAlpha = state.matches && !state.matches.has(box) ? .18 : 1;
  if (coarse) {
    context.fillStyle = color;
    context.fillRect(x, y, w, HIGH);
    context.globalAlpha = 1;
    return;
  }
  context.beginPath();
  context.roundRect(x, y, w, HIGH, isNode(box) ? 5 : HIGH / 2);
  context.fillStyle = colors.node;
  context.fill();
  const before = context.globalAlpha;
  context.globalAlpha = before * .13;
  context.fillStyle = color;
  context.fill();
  context.globalAlpha = before;
  context.strokeStyle = color;
  context.lineWidth = 1.2;
  context.setLineDash(boxes.answer[box] === 'provisional' ? [4, 3] : []);
  context.stroke();
  context.setLineDash([]);
  context.fillStyle = isNode(box) ? colors.fg : colors.mute;
  context.font = (isNode(box) ? '500 ' : '') + '12px ' + colors.sans;
  context.textAlign = 'center';
  context.textBaseline = 'middle';
  context.fillText(shortened(context, text[boxes.label[box]], w - 12), boxes.x[box], y + HIGH / 2 + .5);
  const kind = classes[boxes.dtype[box]];
  if (kind === 'narrow' || kind === 'narrower') {
    context.fillStyle = edgeColor(kind);
    context.beginPath();
    context.arc(x + w - 1, y + 1, 4, 0, 7);
    context.fill();
  }
  context.globalAlpha = 1;
}
function drawTypes(context, visible) {
  context.font = '10px ' + colors.mono;
  context.textAlign = 'left';
  context.textBaseline = 'middle';
  for (const box of visible) {
    const value = boxes.out[box][0];
    if (value === undefined) continue;
    const kind = typeClass(value), words = text[values.short[value]] + ' ' + text[values.shape[value]];
    context.fillStyle = kind === 'narrow' || kind === 'narrower' ? edgeColor(kind) : colors.mute;
    context.globalAlpha = state.matches && !state.matches.has(box) ? .18 : 1;
    const shownWords = words.length > 26 ? words.slice(0, 25) + '\u2026' : words, across = context.measureText(shownWords).width + 6;
    const left = boxes.x[box] - across / 2;
    const ink = context.fillStyle;
    context.fillStyle = many && boxes.segment[box] >= 0 ? colors.halo : colors.sunk;
    context.fillRect(left, top(box) + HIGH + 5, across, 13);
    context.fillStyle = ink;
    context.fillText(shownWords, left + 3, top(box) + HIGH + 12);
  }
  context.globalAlpha = 1;
}
function ring(context, box, strong) {
  context.beginPath();
  const grow = 3 + 2 / camera.scale * .3;
  context.roundRect(boxes.x[box] - boxes.w[box] / 2 - grow, top(box) - grow, boxes.w[box] + 2 * grow, HIGH + 2 * grow, 8);
  context.strokeStyle = colors.accent;
  context.lineWidth = (strong ? 2.6 : 1.8) / Math.min(1, camera.scale * 1.4);
  context.stroke();
}

// The strip at the left: the whole graph in its order from the top, squeezed, with the part in view.
let stripPicture = null;
const stripY = (layer, height) => 6 + (layer + .5) * (height - 12) / Math.max(1, data.extent[2]);
function paintStrip() {
  if (!strip.width) return;
  stripPicture = document.createElement('canvas');
  stripPicture.width = strip.element.width;
  stripPicture.height = strip.element.height;
  const context = stripPicture.getContext('2d'), [left, right] = data.extent, {width, height} = strip;
  context.scale(strip.ratio, strip.ratio);
  const each = Math.max(1, (height - 12) / Math.max(1, data.extent[2]) * .62);
  for (let box = 0; box < count; box++) {
    const w = Math.max(2, boxes.w[box] / Math.max(1, right - left) * (width - 10));
    context.fillStyle = isNode(box) ? adapterColor(boxes.adapter[box]) : colors.mute;
    context.globalAlpha = state.matches ? state.matches.has(box) ? 1 : .12 : .75;
    context.fillRect(5 + (boxes.x[box] - left) / Math.max(1, right - left) * (width - 10) - w / 2, stripY(boxes.layer[box], height) - each / 2, w, each);
  }
}
let stripMatches = null;
function drawStrip(context, width, height) {
  if (stripMatches !== state.matches || !stripPicture) { stripMatches = state.matches; paintStrip(); }
  context.fillStyle = colors.panel;
  context.fillRect(0, 0, width, height);
  if (stripPicture && stripPicture.width) context.drawImage(stripPicture, 0, 0, width, height);
  const area = fold ? {top: -PITCH, bottom: data.extent[2] * PITCH} : areaOf(graph.width, graph.height);
  const from = stripY(Math.max(-.5, area.top / PITCH), height), to = stripY(Math.min(data.extent[2] - .5, area.bottom / PITCH), height);
  context.fillStyle = colors.accent;
  context.globalAlpha = .14;
  context.fillRect(1, from, width - 2, Math.max(4, to - from));
  context.globalAlpha = 1;
  context.strokeStyle = colors.accent;
  context.lineWidth = 1;
  context.strokeRect(1.5, from + .5, width - 3, Math.max(4, to - from));
  const focus = state.hover >= 0 ? state.hover : state.chosen;
  if (focus >= 0) {
    context.fillStyle = colors.hot;
    context.fillRect(0, stripY(boxes.layer[focus], height) - 1, width, 2);
  }
}
themed.push(() => { stripPicture = null; });
strip.resized = () => { stripPicture = null; };
function scrollTo(event) {
  const place = strip.element.getBoundingClientRect();
  const layer = (event.clientY - place.top - 6) / Math.max(1, place.height - 12) * data.extent[2] - .5;
  if (fold) { fold = null; view.scale = .9; }
  view.y = graph.height / 2 - layer * PITCH * view.scale;
  settle();
  if (event.type === 'pointerdown') centerOn(layer);
  repaint();
}
// Sideways to where that layer is.
function centerOn(layer) {
  const found = layers[Math.max(0, Math.min(layers.length - 1, Math.round(layer)))];
  if (found && found.length) view.x = graph.width / 2 - (boxes.x[found[0]] + boxes.x[found[found.length - 1]]) / 2 * view.scale;
}
strip.element.addEventListener('pointerdown', (event) => { strip.element.setPointerCapture(event.pointerId); scrollTo(event); });
strip.element.addEventListener('pointermove', (event) => { if (event.buttons) scrollTo(event); });

function zoom(factor, x = graph.width / 2, y = graph.height / 2) {
  if (fold) {
    if (factor > 1) unfold(x, y);
    return;
  }
  const scale = Math.max(.005, Math.min(3, view.scale * factor));
  view.x = x - (x - view.x) * scale / view.scale;
  view.y = y - (y - view.y) * scale / view.scale;
  view.scale = scale;
  settle();
  repaint();
}
// A graph higher than its place fills it; a lower one stays in sight.
function settle() {
  const high = data.extent[2] * PITCH * view.scale, low = graph.height - 40 - high;
  view.y = low < 40 ? Math.max(low, Math.min(40, view.y)) : Math.max(40, Math.min(low, view.y));
}
function fit() {
  const [left, right, depth] = data.extent, high = depth * PITCH;
  view.scale = Math.min(1.2, (graph.width - 40) / Math.max(1, right - left), (graph.height - 40) / Math.max(1, high));
  view.x = graph.width / 2 - (left + right) / 2 * view.scale;
  view.y = graph.height / 2 - (high - PITCH) / 2 * view.scale;
  settle();
  const best = folded();
  fold = best.length > 1 && best[0].scale > view.scale * 1.3 ? best : null;
  repaint();
}
// A deep graph is a thread when it is seen whole: its layers in as many columns as let it be largest.
function folded() {
  const depth = data.extent[2];
  let best = [];
  for (let columns = 1; columns <= Math.min(40, depth); columns++) {
    const each = Math.ceil(depth / columns), found = [];
    for (let from = 0; from < depth; from += each) {
      let left = Infinity, right = -Infinity;
      for (const layer of layers.slice(from, from + each)) for (const box of layer) {
        left = Math.min(left, boxes.x[box] - boxes.w[box] / 2);
        right = Math.max(right, boxes.x[box] + boxes.w[box] / 2);
      }
      found.push({from, each, left, right});
    }
    const wide = found.reduce((sum, column) => sum + column.right - column.left + 40, 0);
    const scale = Math.min(1, (graph.width - 24 - 8 * found.length) / wide, (graph.height - 32) / (each * PITCH));
    if (scale <= 0 || best.length && scale <= best[0].scale) continue;
    let x = 12 + (graph.width - 24 - 8 * found.length - wide * scale) / 2;
    best = found.map((column) => {
      const width = (column.right - column.left + 40) * scale;
      const made = {scale, left: x, top: 16, width, height: each * PITCH * scale, from: column.from, each,
        x: x + (20 - column.left) * scale, y: 16 - (column.from - .5) * PITCH * scale};
      x += width + 8;
      return made;
    });
  }
  return best;
}
const columnAt = (x) => fold.find((column) => x < column.left + column.width + 4) || fold[fold.length - 1];
// From the whole to the place that is pointed at.
function unfold(x, y) {
  const column = columnAt(x), wx = (x - column.x) / column.scale, wy = (y - column.y) / column.scale;
  fold = null;
  view.scale = .9;
  view.x = graph.width / 2 - wx * view.scale;
  view.y = graph.height / 2 - wy * view.scale;
  settle();
  repaint();
}
function readable() {
  if (fold) start(); else zoom(1 / view.scale);
}
function start() {
  fold = null;
  view.scale = 1;
  view.y = 40;
  centerOn(0);
  repaint();
}
function reveal(box) {
  if (fold) {
    fold = null;
    view.scale = .9;
    view.x = view.y = 1e9;
  }
  if (view.scale < .5) zoom(.9 / view.scale);
  const x = boxes.x[box] * view.scale + view.x, y = boxes.layer[box] * PITCH * view.scale + view.y;
  if (x < 90 || x > graph.width - 90) view.x += graph.width / 2 - x;
  if (y < 50 || y > graph.height - 50) view.y += graph.height / 2 - y;
  settle();
}
function boxAt(x, y) {
  const by = fold ? columnAt(x) : view;
  if (fold && (y < by.top || y > by.top + by.height)) return -1;
  const wx = (x - by.x) / by.scale, wy = (y - by.y) / by.scale, layer = Math.round(wy / PITCH);
  if (layer < 0 || layer >= layers.length || Math.abs(wy - layer * PITCH) > HIGH / 2 + 3 / by.scale) return -1;
  const slack = 2 / by.scale, found = layers[layer].find((box) => Math.abs(boxes.x[box] - wx) <= boxes.w[box] / 2 + slack);
  return found === undefined ? -1 : found;
}
let drag = null;
const tip = byId('tip');
function showTip(box, x, y) {
  tip.hidden = box < 0;
  if (box < 0) return;
  const value = boxes.out[box][0], dtype = text[boxes.dtype[box]];
  tip.textContent = label(box) + (isNode(box) && text[boxes.name[box]] ? '\n' + text[boxes.name[box]] : '') +
    (dtype ? '\ncomputes in ' + dtype : '') +
    (value === undefined ? '' : '\n' + text[values.dtype[value]] + ' ' + text[values.shape[value]] + ', ' + bytes(values.bytes[value]));
  const left = graph.element.offsetLeft + x + 14;
  tip.style.left = Math.max(4, Math.min(left, graph.element.offsetLeft + graph.width - tip.offsetWidth - 6)) + 'px';
  tip.style.top = (y + 18 + tip.offsetHeight > graph.height ? y - tip.offsetHeight - 10 : y + 18) + 'px';
}
graph.element.addEventListener('pointerdown', (event) => {
  graph.element.setPointerCapture(event.pointerId);
  drag = {x: event.offsetX, y: event.offsetY, far: false};
});
graph.element.addEventListener('pointermove', (event) => {
  if (drag && event.buttons) {
    const dx = event.offsetX - drag.x, dy = event.offsetY - drag.y;
    if (!drag.far && Math.hypot(dx, dy) < 4) return;
    Object.assign(drag, {x: event.offsetX, y: event.offsetY, far: true});
    if (fold) return;
    view.x += dx;
    view.y += dy;
    settle();
    showTip(-1);
    repaint();
    return;
  }
  const box = boxAt(event.offsetX, event.offsetY);
  graph.element.style.cursor = box < 0 ? 'grab' : 'pointer';
  point(box);
  showTip(box, event.offsetX, event.offsetY);
});
graph.element.addEventListener('pointerup', (event) => {
  if (drag && !drag.far) choose(boxAt(event.offsetX, event.offsetY), null, !fold);
  drag = null;
});
graph.element.addEventListener('pointerleave', () => { point(-1); showTip(-1); });
graph.element.addEventListener('wheel', (event) => {
  const step = event.deltaMode === 1 ? 24 : 1;
  if (event.ctrlKey || event.metaKey) zoom(Math.exp(-event.deltaY * step * .004), event.offsetX, event.offsetY);
  else {
    // At the graph's end the page scrolls on.
    const before = view.y;
    if (fold) return;
    if (event.shiftKey) view.x -= event.deltaY * step;
    else {
      view.y -= event.deltaY * step;
      settle();
      if (view.y === before && Math.abs(event.deltaY) >= Math.abs(event.deltaX)) return;
      view.x -= event.deltaX * step;
    }
    repaint();
  }
  showTip(-1);
  event.preventDefault();
}, {passive: false});
graph.element.addEventListener('keydown', (event) => {
  const at = state.chosen, key = event.key;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (key === '+' || key === '=') zoom(1.3);
  else if (key === '-') zoom(1 / 1.3);
  else if (key === '0') fit();
  else if (key === '1') readable();
  else if (key === 'Escape') choose(-1);
  else if (key === 'Home') choose(layers.length ? layers[0][0] : -1);
  else if (key === 'End') choose(layers.length ? layers[layers.length - 1][0] : -1);
  else if (key.startsWith('Arrow')) {
    if (at < 0) { if (count) choose(layers[0][0]); }
    else {
      const layer = layers[boxes.layer[at]], place = layer.indexOf(at);
      const next = key === 'ArrowDown' ? outgoing[at].map((i) => edges.to[i])[0] : key === 'ArrowUp' ? incoming[at].map((i) => edges.from[i])[0] :
        layer[place + (key === 'ArrowRight' ? 1 : -1)];
      if (next !== undefined) choose(next);
    }
  } else return;
  event.preventDefault();
});
byId('in').addEventListener('click', () => zoom(1.3));
byId('out').addEventListener('click', () => zoom(1 / 1.3));
byId('one').addEventListener('click', readable);
byId('fit').addEventListener('click', fit);

function legend() {
  const into = byId('legend'), uses = new Map(), kinds = new Map();
  const item = (kind, words) => { const made = element('span'); made.append(element('i', undefined, kind), words); into.append(made); };
  for (let box = 0; box < count; box++) if (isNode(box)) uses.set(boxes.adapter[box], (uses.get(boxes.adapter[box]) || 0) + 1);
  for (const [adapter, uses_] of [...uses].sort((a, b) => a[0] - b[0])) item('swatch a' + adapter % 8, (data.adapters[adapter] || 'nobody') + ' ' + uses_);
  for (const value of edges.values.flat()) {
    const kind = typeClass(value);
    if (!kinds.has(kind)) kinds.set(kind, new Set());
    for (const name of (text[values.dtype[value]] || 'unknown').split(' and ')) if (dtypeClass(name) === kind) kinds.get(kind).add(name);
  }
  for (const kind of ['plain', 'narrow', 'narrower', 'wide', 'other']) if (kinds.has(kind)) item('dash ' + kind, [...kinds.get(kind)].sort().join(', '));
  if (lines.some((line) => line.crosses)) item('dash cross', 'between segments');
}
legend();
let began = false;
graph.resized = () => { if (!began) { began = true; start(); } else if (fold) fit(); };
