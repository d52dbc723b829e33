
// What both pictures share: the data, the colors, what is pointed at and chosen, and the details of it.
const data = JSON.parse(document.getElementById('data').textContent);
const {text, boxes, values, edges} = data;
const count = boxes.x.length;
const byId = (id) => document.getElementById(id);
const isNode = (box) => box >= data.inputs && box < data.inputs + data.nodes;

const state = {hover: -1, chosen: -1, matches: null, buffer: null, chosenBuffer: null, memory: 0};
const painters = [];
let waiting = false;
function repaint() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; for (const paint of painters) paint(); });
}

const colors = {};
const names = ['bg', 'panel', 'sunk', 'line', 'fg', 'mute', 'faint', 'accent', 'hot', 'warn', 'node', 'edge', 'halo',
  'halo-edge', 'narrow', 'narrower', 'wide', 'a0', 'a1', 'a2', 'a3', 'a4', 'a5', 'a6', 'a7', 'mono', 'sans', 'sat', 'light'];
const themed = [];
function readColors() {
  const style = getComputedStyle(document.documentElement);
  for (const name of names) colors[name] = style.getPropertyValue('--' + name).trim();
  for (const redo of themed) redo();
  repaint();
}
const adapterColor = (adapter) => adapter < 0 ? colors.faint : colors['a' + adapter % 8];
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', readColors);
byId('theme').addEventListener('click', () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
  root.dataset.theme = dark ? 'light' : 'dark';
  readColors();
});

// Which types a value's edge is drawn in: the plain float32 is not colored.
const NARROW = new Set(['float16', 'bfloat16']), NARROWER = new Set(['int8', 'uint8', 'int4', 'uint4', 'float8e4m3fn',
  'float8e4m3fnuz', 'float8e5m2', 'float8e5m2fnuz', 'float4e2m1']), PLAIN = new Set(['float32', '']);
function dtypeClass(dtype) {
  const each = dtype.split(' and ');
  if (each.some((name) => NARROWER.has(name))) return 'narrower';
  if (each.some((name) => NARROW.has(name))) return 'narrow';
  if (each.every((name) => PLAIN.has(name))) return 'plain';
  return each.includes('float64') ? 'wide' : 'other';
}
const classes = text.map(dtypeClass);
const typeClass = (value) => classes[values.dtype[value]];

function bytes(size) {
  if (size < 0) return 'unknown size';
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let at = 0;
  while (size >= 1024 && at < 4) { size /= 1024; at++; }
  const tenths = size * 10; // halves to even, so that the same bytes read the same here and in the tables
  const whole = Math.round(tenths) - (tenths % 1 === .5 && Math.round(tenths) % 2 ? 1 : 0);
  return (at ? (whole / 10).toFixed(1) : String(size)) + ' ' + units[at];
}

// Fits a canvas to its place, and calls `draw` with its size in CSS pixels.
function canvas(id, draw) {
  const element = byId(id), context = element.getContext('2d');
  const made = {element, context, width: 0, height: 0, resized: () => {}};
  const fit = () => {
    const place = element.getBoundingClientRect(), ratio = devicePixelRatio || 1;
    if (!place.width || !place.height) return;
    const width = Math.round(place.width), height = Math.round(place.height);
    if (width === made.width && height === made.height && made.ratio === ratio) return;
    Object.assign(made, {width, height, ratio});
    element.width = Math.round(width * ratio);
    element.height = Math.round(height * ratio);
    made.resized();
    repaint();
  };
  made.fit = fit;
  new ResizeObserver(fit).observe(element);
  painters.push(() => {
    if (!made.width) return;
    context.setTransform(made.ratio, 0, 0, made.ratio, 0, 0);
    draw(context, made.width, made.height);
  });
  return made;
}
function shortened(context, words, room) {
  if (context.measureText(words).width <= room) return words;
  let low = 0, high = words.length;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (context.measureText(words.slice(0, middle) + '\u2026').width <= room) low = middle; else high = middle - 1;
  }
  return low ? words.slice(0, low) + '\u2026' : '';
}

// Which buffers a node makes, and which ones it reads from.
const made = new Map();
data.memory.forEach((segment, memory) => segment.buffers.boxes.forEach((linked, index) => {
  for (const box of linked) {
    if (!made.has(box)) made.set(box, []);
    made.get(box).push({memory, index});
  }
}));
const read = (box) => boxes.in[box].flatMap((value) => made.get(values.maker[value]) || []);
const readers = Array.from({length: values.name.length}, () => []);
for (let box = 0; box < count; box++) for (const value of boxes.in[box]) readers[value].push(box);

function point(box, buffer) {
  const same = state.hover === box && (state.buffer || {}).index === (buffer || {}).index &&
    (state.buffer || {}).memory === (buffer || {}).memory;
  if (same) return;
  state.hover = box;
  state.buffer = buffer || null;
  details();
  repaint();
}
function choose(box, buffer, quiet) {
  state.chosen = box;
  state.chosenBuffer = buffer || null;
  state.hover = -1;
  state.buffer = null;
  const shown = buffer || (made.get(box) || [])[0];
  if (shown && shown.memory !== state.memory) showSegment(shown.memory);
  if (box >= 0 && !quiet) reveal(box);
  details();
  repaint();
}
byId('clear').addEventListener('click', () => choose(-1));

// Details are built as elements, never as markup: what a model calls its parts is only ever text.
function element(kind, words, name) {
  const made = document.createElement(kind);
  if (words !== undefined) made.textContent = words;
  if (name) made.className = name;
  return made;
}
function button(words, act) {
  const made = element('button', words, 'link');
  made.type = 'button';
  made.addEventListener('click', act);
  return made;
}
function row(into, name, ...parts) {
  const made = element('div', undefined, 'row'), cell = element('div');
  made.append(element('span', name), cell);
  cell.append(...parts);
  into.append(made);
}
const label = (box) => isNode(box) ? '#' + boxes.index[box] + ' ' + text[boxes.type[box]] : text[boxes.name[box]] || text[boxes.type[box]];
function describeValue(value) {
  const line = element('div', undefined, 'value');
  const dtype = text[values.dtype[value]] || 'unknown type', stated = text[values.stated[value]];
  line.append(element('span', text[values.name[value]] + ' '), element('code', dtype + ' ' + text[values.shape[value]]),
    ' ' + bytes(values.bytes[value]));
  if (stated !== text[values.dtype[value]]) line.append(' (' + stated + ' in the model)');
  for (const to of values.casts[value]) line.append(', cast to ' + text[to]);
  return line;
}
function describeBox(into, box) {
  into.append(element('h3', label(box)));
  if (text[boxes.name[box]] && isNode(box)) into.append(element('p', text[boxes.name[box]], 'name'));
  if (isNode(box)) {
    const on = element('span'), swatch = element('i', undefined, 'swatch a' + boxes.adapter[box] % 8);
    on.append(swatch, (data.adapters[boxes.adapter[box]] || 'nobody') + (boxes.segment[box] < 0 ? '' : ', segment ' + boxes.segment[box]));
    row(into, 'runs on', on);
    const answer = boxes.answer[box];
    const source = text[boxes.source[box]];
    if (answer) row(into, 'verdict', element('span', answer, 'answer ' + answer), ' ' + text[boxes.reason[box]], element('code', source ? ' ' + source : ''));
    const dtype = text[boxes.dtype[box]];
    if (dtype) row(into, 'computes in', element('b', dtype), text[boxes.why[box]] ? ': ' + text[boxes.why[box]] : '');
    const held = boxes.held[box];
    if (held[0]) row(into, 'constants', held[0] + ', ' + bytes(held[1]));
  }
  for (const value of boxes.in[box]) {
    const line = describeValue(value), maker = values.maker[value];
    if (maker >= 0) line.prepend(button('\u2191', () => choose(maker)), ' ');
    const here = text[boxes.dtype[box]], there = maker < 0 ? '' : text[boxes.dtype[maker]];
    if (here && there && here !== there && text[values.stated[value]] === 'float32') line.append(', read in ' + here);
    row(into, 'reads', line);
  }
  for (const value of boxes.out[box]) {
    const line = describeValue(value), after = readers[value];
    after.slice(0, 12).forEach((reader) => { const link = button('\u2193', () => choose(reader)); link.title = label(reader); line.append(' ', link); });
    if (after.length > 12) line.append(' and ' + (after.length - 12) + ' more readers');
    if (!after.length) line.append(', nobody reads it');
    row(into, 'makes', line);
  }
  for (const found of made.get(box) || []) row(into, 'memory', button(place(found), () => choose(box, found, true)));
}
function place(found) {
  const segment = data.memory[found.memory], all = segment.buffers, i = found.index;
  return bytes(all.size[i]) + ' at ' + bytes(all.offset[i]) + ', alive from ' + all.lower[i] + ' to ' + (all.upper[i] - 1) +
    (data.memory.length > 1 ? ' of segment ' + segment.segment : '');
}
function describeBuffer(into, found) {
  const all = data.memory[found.memory].buffers, i = found.index, held = all.values[i];
  into.append(element('h3', held.length ? text[held[0]] : 'inside a body'));
  into.append(element('p', 'made by ' + text[all.label[i]], 'name'));
  row(into, 'size', bytes(all.size[i]), element('code', '  ' + all.size[i] + ' B'));
  row(into, 'offset', bytes(all.offset[i]), element('code', '  ' + all.offset[i] + ' B'));
  row(into, 'alive', 'from ' + all.lower[i] + ' to ' + (all.upper[i] - 1) + ' in the order of execution of segment ' + data.memory[found.memory].segment);
  if (held.length > 1) row(into, 'shared by', ...held.map((name) => element('div', text[name], 'value')));
  for (const box of all.boxes[i]) row(into, 'node', button(label(box), () => choose(box, found)));
  if (!all.boxes[i].length) row(into, 'node', element('span', 'none of the model bears its name: it is of the converted segment', 'hint'));
}
// What makes the peak of the segment that is shown: the answer to the first question asked of it.
function describePeak(into) {
  const segment = data.memory[state.memory];
  if (!segment || segment.peaks[0] === segment.peaks[1]) return;
  const all = segment.buffers, at = segment.peaks[0], peak = Math.max(...segment.alive);
  const there = all.size.map((_, i) => i).filter((i) => all.lower[i] <= at && at < all.upper[i] && all.size[i])
    .sort((a, b) => all.size[b] - all.size[a]);
  into.append(element('h4', 'Alive at the peak, ' + bytes(peak) + ' at position ' + at + (data.memory.length > 1 ? ' of segment ' + segment.segment : '')));
  const large = there.filter((i, place) => place < 8 && all.size[i] >= peak / 100);
  for (const i of large) {
    const line = element('div', undefined, 'peak'), told = element('div');
    told.append(button(all.values[i].length ? text[all.values[i][0]] : 'inside a body', () => choose(all.boxes[i].length ? all.boxes[i][0] : -1, {memory: state.memory, index: i})));
    told.append(element('div', text[all.label[i]], 'name'));
    line.append(element('span', bytes(all.size[i])), element('span', Math.round(all.size[i] / peak * 100) + ' %'), told);
    into.append(line);
  }
  if (there.length > large.length) into.append(element('p', there.length - large.length + ' more', 'hint'));
}
function details() {
  const into = byId('details'), parts = document.createDocumentFragment();
  const buffer = state.buffer || (state.hover < 0 ? state.chosenBuffer : null);
  const box = state.hover >= 0 ? state.hover : state.chosen;
  if (buffer) describeBuffer(parts, buffer);
  else if (box >= 0) describeBox(parts, box);
  else {
    const hint = element('p', undefined, 'hint'), keys = (...all) => all.flatMap((key) => [element('kbd', key), ' ']);
    hint.append('Point at a node or a buffer to see it here, click to hold it. In the graph ', ...keys('\u2191', '\u2193', '\u2190', '\u2192'),
      'follow edges, ', ...keys('+', '-', '0', '1'), 'zoom, ', ...keys('/'), 'finds, ', ...keys('Esc'), 'lets go. Drag or scroll to move, Ctrl and scroll to zoom.');
    parts.append(hint);
    describePeak(parts);
  }
  into.replaceChildren(parts);
  byId('clear').hidden = state.chosen < 0 && !state.chosenBuffer;
}

// Search, by operator, name or the name of a value that a node makes.
const search = byId('search'), results = byId('results');
function find() {
  const words = search.value.trim().toLowerCase();
  results.replaceChildren();
  if (!words) {
    state.matches = null;
    byId('found').textContent = '';
    results.hidden = true;
    repaint();
    return;
  }
  const has = text.map((entry) => entry.toLowerCase().includes(words)), found = [];
  for (let box = 0; box < count; box++) {
    if (has[boxes.type[box]] || has[boxes.name[box]] || boxes.out[box].some((value) => has[values.name[value]]) ||
      '#' + boxes.index[box] === words) found.push(box);
  }
  state.matches = new Set(found);
  byId('found').textContent = found.length + ' of ' + count;
  for (const box of found.slice(0, 60)) {
    const item = element('li'), link = button(label(box), () => { results.hidden = true; choose(box); byId('graph').focus(); });
    link.className = '';
    link.append(element('small', text[boxes.name[box]]));
    item.append(link);
    results.append(item);
  }
  results.hidden = !found.length;
  repaint();
}
search.addEventListener('input', find);
search.addEventListener('focus', () => { if (results.childElementCount) results.hidden = false; });
search.parentElement.addEventListener('focusout', (event) => { if (!search.parentElement.contains(event.relatedTarget)) results.hidden = true; });
search.parentElement.addEventListener('keydown', (event) => {
  const links = [...results.querySelectorAll('button')], at = links.indexOf(document.activeElement);
  if (event.key === 'ArrowDown' && links.length) links[Math.min(at + 1, links.length - 1)].focus();
  else if (event.key === 'ArrowUp' && at >= 0) (links[at - 1] || search).focus();
  else if (event.key === 'Enter' && at < 0 && links.length) links[0].click();
  else if (event.key === 'Escape') { search.value = ''; find(); search.focus(); }
  else return;
  event.preventDefault();
});
document.addEventListener('keydown', (event) => {
  if (event.key === '/' && !/^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement.tagName)) { event.preventDefault(); search.focus(); }
});
