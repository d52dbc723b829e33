
// The memory over time: one rectangle a buffer, from its first to its last position, at its offset; as high as its size.
const span = {from: 0, to: 1};
const EDGE = {left: 66, right: 14, top: 18, bottom: 26};
let drawn = null; // what was drawn last, for pointing: scales of x and y
const hashes = new Map();
function hashed(at) {
  if (!hashes.has(at)) {
    let hash = 2166136261; // FNV-1a
    for (const letter of text[at]) hash = Math.imul(hash ^ letter.codePointAt(0), 16777619) >>> 0;
    hashes.set(at, hash);
  }
  return hashes.get(at);
}
// The same operator has the same hue on every page, the same buffer the same shade of it.
function bufferColor(all, i) {
  const shade = all.values[i].length ? hashed(all.values[i][0]) % 7 - 3 : 0;
  return 'hsl(' + hashed(all.op[i]) % 360 + ' ' + colors.sat + ' ' + (parseFloat(colors.light) + 2 * shade) + '%)';
}
const memory = canvas('memory', drawMemory);

function showSegment(index) {
  state.memory = index;
  span.from = 0;
  span.to = Math.max(1, (data.memory[index] || {nodes: 1}).nodes);
  [...byId('segments').children].forEach((tab, at) => {
    tab.setAttribute('aria-selected', at === index);
    tab.tabIndex = at === index ? 0 : -1;
    if (at === index && data.memory.length > 1) tab.scrollIntoView({block: 'nearest', inline: 'nearest'});
  });
  caption();
  details();
  repaint();
}
function caption() {
  const segment = data.memory[state.memory], into = byId('caption');
  into.textContent = '';
  if (!segment) { into.textContent = 'No memory is planned.'; return; }
  const by = {backend: 'The backend lays them out itself; this is the best layout of its graph.',
    paddock: 'Paddock runs with these very offsets.', none: 'Nothing is reused: they take the sum of all.'}[segment.by] || 'Laid out by ' + segment.by + '.';
  const proof = segment.proven ? ', proven least' : '';
  into.textContent = segment.buffers.size.length + ' intermediates in ' + bytes(segment.arena) + proof + '; at most ' +
    bytes(segment.bound) + ' alive at once. ' + by + (segment.unknown ? ' ' + segment.unknown + ' values of unknown size are not shown.' : '');
}
function ticks(limit, room) {
  const unit = 1024 ** Math.floor(Math.log2(Math.max(1, limit)) / 10);
  const each = limit / unit / Math.max(1, Math.floor(room / 46)), power = 10 ** Math.floor(Math.log10(each));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= each) * unit, found = [];
  for (let at = 0; at <= limit && found.length < 40; at += step) found.push(at);
  return found;
}
function lit() {
  const focus = state.buffer || (state.hover < 0 && state.chosenBuffer);
  if (focus) return {strong: [focus], weak: []};
  const box = state.hover >= 0 ? state.hover : state.chosen;
  const found = box < 0 ? null : {strong: made.get(box) || [], weak: read(box)};
  return found && found.strong.length + found.weak.length ? found : null;
}
function drawMemory(context, width, height) {
  const segment = data.memory[state.memory];
  context.fillStyle = colors.panel;
  context.fillRect(0, 0, width, height);
  context.textBaseline = 'middle';
  if (!segment || !segment.buffers.size.length) {
    context.fillStyle = colors.mute;
    context.font = '13px ' + colors.sans;
    context.textAlign = 'center';
    context.fillText(segment && segment.arena ? 'The layout of this segment is not told.' : 'There are no intermediates.', width / 2, height / 2);
    drawn = null;
    return;
  }
  const all = segment.buffers, limit = Math.max(segment.arena, segment.bound, 1) * 1.04;
  const right = width - EDGE.right, bottom = height - EDGE.bottom;
  const x = (at) => EDGE.left + (at - span.from) / (span.to - span.from) * (right - EDGE.left);
  const y = (at) => bottom - at / limit * (bottom - EDGE.top);
  drawn = {span: {...span}, right, bottom, limit};
  context.font = '11px ' + colors.sans;
  context.textAlign = 'right';
  for (const tick of ticks(limit, bottom - EDGE.top)) {
    context.fillStyle = colors.line;
    context.fillRect(EDGE.left, Math.round(y(tick)), right - EDGE.left, 1);
    context.fillStyle = colors.mute;
    context.fillText(bytes(tick).replace('.0 ', ' '), EDGE.left - 8, y(tick));
  }
  context.textAlign = 'center';
  const each = Math.max(1, Math.ceil((span.to - span.from) / Math.max(1, (right - EDGE.left) / 60)));
  const round = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000].find((n) => n >= each) || each;
  for (let at = Math.ceil(span.from / round) * round; at <= span.to; at += round) {
    context.fillStyle = colors.mute;
    const words = String(at);
    context.fillText(words, Math.min(x(at), width - 3 - context.measureText(words).width / 2), bottom + 13);
  }
  const light = lit(), strong = new Set(), weak = new Set();
  for (const [from, into] of light ? [[light.strong, strong], [light.weak, weak]] : []) {
    for (const each of from) if (each.memory === state.memory) into.add(each.index);
  }
  context.save();
  context.beginPath();
  context.rect(EDGE.left, 0, right - EDGE.left, bottom + 1);
  context.clip();
  for (let i = 0; i < all.size.length; i++) {
    if (all.upper[i] < span.from || all.lower[i] > span.to) continue;
    const left = x(all.lower[i]), w = Math.max(1, x(all.upper[i]) - left), high = y(all.offset[i] + all.size[i]);
    const h = Math.max(.75, y(all.offset[i]) - high);
    context.globalAlpha = !light || strong.has(i) ? 1 : weak.has(i) ? .75 : .3;
    context.fillStyle = bufferColor(all, i);
    context.fillRect(left, high, w, h);
    if (w > 3 && h > 3) {
      context.strokeStyle = colors.panel;
      context.lineWidth = 1;
      context.strokeRect(left + .5, high + .5, w - 1, h - 1);
    }
    if (w > 44 && h > 13) {
      context.fillStyle = colors.fg;
      context.textAlign = 'left';
      context.fillText(shortened(context, text[all.op[i]].replace(/^.*\.(?=.)/, ''), w - 10), left + 6, high + h / 2 + .5);
    }
  }
  context.globalAlpha = 1;
  for (const [group, color] of [[weak, colors.faint], [strong, colors.accent]]) {
    for (const i of group) {
      const left = x(all.lower[i]), high = y(all.offset[i] + all.size[i]);
      context.strokeStyle = color;
      context.lineWidth = 2;
      context.strokeRect(left - 1, high - 1, Math.max(3, x(all.upper[i]) - left) + 2, Math.max(3, y(all.offset[i]) - high) + 2);
    }
  }
  // What is alive, as steps: where it lies below the rectangles' top, the layout has holes.
  context.beginPath();
  segment.positions.forEach((at, i) => {
    context.lineTo(x(at), y(i ? segment.alive[i - 1] : 0));
    context.lineTo(x(at), y(segment.alive[i]));
  });
  context.strokeStyle = colors.fg;
  const dense = segment.positions.length * (span.to - span.from) / segment.nodes > (right - EDGE.left) / 2;
  context.lineWidth = dense ? .8 : 1.2;
  context.globalAlpha = dense ? .55 : 1;
  context.stroke();
  context.restore();
  const same = segment.arena === segment.bound;
  line(context, y(segment.bound), right, same ? bytes(segment.arena) + ', bound and height' : bytes(segment.bound) + ', bound: largest sum alive', colors.accent, same || y(segment.bound) - y(segment.arena) < 15);
  if (!same) line(context, y(segment.arena), right, bytes(segment.arena) + ', height of the layout', colors.hot, true);
}
function line(context, at, right, words, color, above) {
  context.strokeStyle = color;
  context.lineWidth = 1.4;
  context.setLineDash([7, 4]);
  context.beginPath();
  context.moveTo(EDGE.left, at);
  context.lineTo(right, at);
  context.stroke();
  context.setLineDash([]);
  context.font = '600 11px ' + colors.sans;
  context.textAlign = 'right';
  const across = context.measureText(words).width, y = at + (above ? -9 : 9);
  context.globalAlpha = .85;
  context.fillStyle = colors.panel;
  context.fillRect(right - across - 8, y - 7, across + 8, 14);
  context.globalAlpha = 1;
  context.fillStyle = color;
  context.fillText(words, right - 4, y);
}
function bufferAt(px, py) {
  const segment = data.memory[state.memory];
  if (!segment || !drawn || px < EDGE.left || px > drawn.right || py > drawn.bottom) return -1;
  const all = segment.buffers, perX = (drawn.right - EDGE.left) / (span.to - span.from), perY = (drawn.bottom - EDGE.top) / drawn.limit;
  const at = (px - EDGE.left) / perX + span.from, height = (drawn.bottom - py) / perY;
  let best = -1, nearest = 5;
  for (let i = 0; i < all.size.length; i++) {
    // Thin ones can be hit from a few pixels away; what is right under the pointer comes first.
    const dx = Math.max(all.lower[i] - at, at - all.upper[i], 0) * perX, dy = Math.max(all.offset[i] - height, height - all.offset[i] - all.size[i], 0) * perY;
    const away = dx + dy;
    if (away < nearest) { nearest = away; best = i; }
  }
  return best;
}
let pulled = null;
memory.element.addEventListener('pointerdown', (event) => { memory.element.setPointerCapture(event.pointerId); pulled = {x: event.offsetX, far: false}; });
memory.element.addEventListener('pointermove', (event) => {
  if (pulled && event.buttons) {
    const moved = event.offsetX - pulled.x;
    if (!pulled.far && Math.abs(moved) < 4) return;
    Object.assign(pulled, {x: event.offsetX, far: true});
    shift(-moved * (span.to - span.from) / Math.max(1, memory.width - EDGE.left - EDGE.right));
    return;
  }
  const index = bufferAt(event.offsetX, event.offsetY);
  if (index < 0) { point(-1); return; }
  const buffer = {memory: state.memory, index}, linked = linkedTo(buffer);
  point(linked.length ? linked[0] : -1, buffer);
});
memory.element.addEventListener('pointerup', (event) => {
  if (pulled && !pulled.far) pick(bufferAt(event.offsetX, event.offsetY));
  pulled = null;
});
memory.element.addEventListener('pointerleave', () => point(-1));
function pick(index) {
  if (index < 0) { choose(-1); return; }
  const buffer = {memory: state.memory, index}, linked = linkedTo(buffer);
  choose(linked.length ? linked[0] : -1, buffer);
}
function shift(by) {
  const whole = Math.max(1, data.memory[state.memory].nodes), length = span.to - span.from;
  span.from = Math.max(0, Math.min(whole - length, span.from + by));
  span.to = span.from + length;
  repaint();
}
memory.element.addEventListener('wheel', (event) => {
  if (!drawn) return;
  const whole = Math.max(1, data.memory[state.memory].nodes);
  if (event.ctrlKey || event.metaKey) {
    const at = span.from + (event.offsetX - EDGE.left) / Math.max(1, drawn.right - EDGE.left) * (span.to - span.from);
    const length = Math.max(2, Math.min(whole, (span.to - span.from) * Math.exp(event.deltaY * (event.deltaMode === 1 ? 24 : 1) * .004)));
    span.from = at - (at - span.from) * length / (span.to - span.from);
    span.to = span.from + length;
    shift(0);
  } else if (Math.abs(event.deltaX) > Math.abs(event.deltaY) || event.shiftKey) {
    shift((event.deltaX || event.deltaY) * (span.to - span.from) / memory.width);
  } else return;
  event.preventDefault();
}, {passive: false});
memory.element.addEventListener('keydown', (event) => {
  const segment = data.memory[state.memory];
  if (!segment || event.ctrlKey || event.metaKey || event.altKey) return;
  const order = segment.buffers.size.map((_, i) => i).sort((a, b) => segment.buffers.lower[a] - segment.buffers.lower[b] || segment.buffers.offset[a] - segment.buffers.offset[b]);
  const at = state.chosenBuffer && state.chosenBuffer.memory === state.memory ? order.indexOf(state.chosenBuffer.index) : -1;
  if (event.key === 'ArrowRight' && order.length) pick(order[Math.min(order.length - 1, at + 1)]);
  else if (event.key === 'ArrowLeft' && order.length) pick(order[Math.max(0, at - 1)]);
  else if (event.key === 'Enter' && state.chosen >= 0) byId('graph').focus();
  else if (event.key === 'Escape') choose(-1);
  else if (event.key === '0') showSegment(state.memory);
  else return;
  event.preventDefault();
});

data.memory.forEach((segment, index) => {
  const tab = element('button');
  tab.type = 'button';
  tab.setAttribute('role', 'tab');
  tab.append(element('i', undefined, 'swatch a' + segment.adapter % 8), 'segment ' + segment.segment + ', ' + bytes(segment.arena));
  tab.title = data.adapters[segment.adapter] + ' on the ' + segment.kind;
  tab.addEventListener('click', () => showSegment(index));
  tab.addEventListener('keydown', (event) => {
    const next = index + (event.key === 'ArrowRight' ? 1 : event.key === 'ArrowLeft' ? -1 : 0);
    if (next !== index && data.memory[next]) { showSegment(next); byId('segments').children[next].focus(); event.preventDefault(); }
  });
  byId('segments').append(tab);
});

readColors();
showSegment(data.memory.reduce((best, segment, index) => segment.arena > data.memory[best].arena ? index : best, 0));
for (const each of [graph, strip, memory]) each.fit();
