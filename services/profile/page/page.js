// Draws the flame graph of one profile. Everything is in this file; the data is text of the guest's and goes into the
// page as text alone.

const data = JSON.parse(document.getElementById('data').textContent);
const byId = (id) => document.getElementById(id);
const root = document.documentElement;

const ROW = 22;
const MIN_WIDTH = 0.4;
const TEXT_MIN_WIDTH = 26;
const ZOOM_MS = 190;
const HOT_ROWS = 60;
const FONT = '12px ui-monospace, "SF Mono", Menlo, "DejaVu Sans Mono", monospace';

// Nodes in depth-first order: [name, depth, start, value, self], the root first
const { names, nodes, facts } = data;
const count = nodes.length / 5;
const nameOf = (node) => nodes[node * 5];
const depthOf = (node) => nodes[node * 5 + 1];
const startOf = (node) => nodes[node * 5 + 2];
const weightOf = (node) => nodes[node * 5 + 3];
const selfOf = (node) => nodes[node * 5 + 4];
const total = count > 0 ? weightOf(0) : 0;

const parents = new Int32Array(count);
let deepest = 0;
{
  const open = [];
  for (let node = 0; node < count; node++) {
    const depth = depthOf(node);
    parents[node] = depth === 0 ? -1 : open[depth - 1];
    open[depth] = node;
    deepest = Math.max(deepest, depth);
  }
}
/** 0 user, 1 supervisor, 2 machine, 3 none: from the frame under the root */
const MODES = [
  { name: 'user', label: 'User mode', hue: 152 },
  { name: 'supervisor', label: 'Supervisor mode (kernel)', hue: 24 },
  { name: 'machine', label: 'Machine mode (firmware)', hue: 268 },
];
const modes = new Uint8Array(count).fill(3);
for (let node = 1; node < count; node++) {
  modes[node] =
    depthOf(node) === 1 ? MODES.findIndex(({ name }) => name === names[nameOf(node)]) & 3 : modes[parents[node]];
}

const state = { node: 0, start: 0, width: total, flipped: false, hover: -1, order: 'self' };
let matches;
let dark = false;

// --- colours --------------------------------------------------------------------------------------------------

function hash(text) {
  let value = 2166136261;
  for (let i = 0; i < text.length; i++) value = Math.imul(value ^ text.charCodeAt(i), 16777619);
  return (value >>> 0) / 4294967296;
}
const jitter = names.map(hash);

function colour(mode, name, faded) {
  const spread = jitter[name];
  const hue = mode === 3 ? 215 : MODES[mode].hue + (spread - 0.5) * 34;
  const saturation = mode === 3 ? 12 : dark ? 58 : 74;
  const light = dark ? 40 + spread * 12 : 66 + spread * 11;
  return `hsl(${hue} ${faded ? saturation * 0.3 : saturation}% ${faded ? (dark ? 22 : 86) : light}%)`;
}

// --- layout and drawing ---------------------------------------------------------------------------------------

const scroll = byId('scroll');
const canvas = byId('graph');
const context = canvas.getContext('2d');
let width = 0;
let height = 0;
/** How far the view is from the root's edge, in pixels: it stays when the window changes its size */
let fromRoot = 0;

const lowest = () => scroll.scrollHeight - scroll.clientHeight;
function showFrom(distance) {
  fromRoot = distance;
  scroll.scrollTop = state.flipped ? lowest() - distance : distance;
}

function resize() {
  width = scroll.clientWidth;
  const rows = (deepest + 1) * ROW + 2;
  byId('size').style.height = `${Math.max(rows, scroll.clientHeight - 1)}px`;
  height = scroll.clientHeight;
  const scale = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  context.setTransform(scale, 0, 0, scale, 0, 0);
  showFrom(fromRoot);
  draw();
}

const contentHeight = () => Math.max((deepest + 1) * ROW, height - 2);
const rowTop = (depth) => (state.flipped ? contentHeight() - (depth + 1) * ROW : depth * ROW) - scroll.scrollTop;

function onPath(node) {
  for (let at = state.node; at >= 0; at = parents[at]) if (at === node) return true;
  return false;
}

function draw() {
  const style = getComputedStyle(root);
  const background = style.getPropertyValue('--bg');
  const text = style.getPropertyValue('--text');
  const accent = style.getPropertyValue('--accent');
  context.fillStyle = background;
  context.fillRect(0, 0, width, height);
  context.font = FONT;
  context.textBaseline = 'middle';
  const letter = context.measureText('m').width;
  const perUnit = width / state.width;
  for (let node = 0; node < count; node++) {
    const left = (startOf(node) - state.start) * perUnit;
    const wide = weightOf(node) * perUnit;
    const from = Math.max(0, left);
    const to = Math.min(width, left + wide);
    if (to - from < MIN_WIDTH) continue;
    const top = rowTop(depthOf(node));
    if (top > height || top + ROW < 0) continue;
    const matched = matches?.has(nameOf(node));
    const above = wide > width + 0.5 && node !== state.node && onPath(node);
    const faded = above || (matches !== undefined && !matched);
    context.fillStyle = colour(modes[node], nameOf(node), faded);
    const gap = to - from > 3 ? 1 : 0;
    box(from, top + 1, to - from - gap, ROW - 2, Math.min(3, (to - from) / 4));
    if (matched || node === state.hover) {
      context.strokeStyle = accent;
      context.lineWidth = node === state.hover ? 2 : 1.5;
      context.stroke();
    }
    const room = to - from - 10;
    if (room < TEXT_MIN_WIDTH - 10) continue;
    const fits = Math.floor(room / letter);
    const label = names[nameOf(node)];
    context.fillStyle = dark ? (faded ? text : '#fff') : '#1d1208';
    context.globalAlpha = faded ? 0.55 : 1;
    if (fits >= 3) {
      context.fillText(label.length <= fits ? label : `${label.slice(0, fits - 1)}…`, from + 6, top + ROW / 2 + 0.5);
    }
    context.globalAlpha = 1;
  }
}

function box(x, y, w, h, radius) {
  context.beginPath();
  context.roundRect(x, y, w, h, radius);
  context.fill();
}

// --- what is under the pointer --------------------------------------------------------------------------------

function nodeAt(x, y) {
  const perUnit = width / state.width;
  const row = y + scroll.scrollTop;
  const depth = Math.floor((state.flipped ? contentHeight() - row : row) / ROW);
  const at = state.start + x / perUnit;
  for (let node = 0; node < count; node++) {
    if (depthOf(node) !== depth) continue;
    const start = startOf(node);
    if (at >= start && at < start + weightOf(node)) return weightOf(node) * perUnit >= MIN_WIDTH ? node : -1;
  }
  return -1;
}

const percent = (value, of) => {
  const share = of === 0 ? 0 : (100 * value) / of;
  return `${share >= 99.95 ? 100 : share.toFixed(share < 10 ? 2 : 1)} %`;
};
const number = (value) => value.toLocaleString('en-US');

function showTip(node, x, y) {
  const tip = byId('tip');
  tip.replaceChildren();
  const title = document.createElement('b');
  title.textContent = names[nameOf(node)];
  const list = document.createElement('dl');
  const row = (label, value) => {
    for (const [tag, content] of [
      ['dt', label],
      ['dd', `${number(value)}`],
      ['dd', percent(value, total)],
    ]) {
      const cell = document.createElement(tag);
      cell.textContent = content;
      list.append(cell);
    }
  };
  row('with callees', weightOf(node));
  row('itself', selfOf(node));
  if (state.node !== 0) {
    for (const [tag, content] of [
      ['dt', 'of what is shown'],
      ['dd', ''],
      ['dd', percent(Math.min(weightOf(node), state.width), weightOf(state.node))],
    ]) {
      const cell = document.createElement(tag);
      cell.textContent = content;
      list.append(cell);
    }
  }
  tip.append(title, list);
  tip.hidden = false;
  const { offsetWidth, offsetHeight } = tip;
  tip.style.left = `${Math.max(8, Math.min(x + 14, innerWidth - offsetWidth - 8))}px`;
  tip.style.top = `${y + offsetHeight + 24 > innerHeight ? y - offsetHeight - 10 : y + 16}px`;
}

canvas.addEventListener('pointermove', (event) => {
  const box = canvas.getBoundingClientRect();
  const node = nodeAt(event.clientX - box.left, event.clientY - box.top);
  canvas.style.cursor = node >= 0 ? 'pointer' : 'default';
  if (node !== state.hover) {
    state.hover = node;
    draw();
  }
  if (node < 0) byId('tip').hidden = true;
  else showTip(node, event.clientX, event.clientY);
});
canvas.addEventListener('pointerleave', () => {
  state.hover = -1;
  byId('tip').hidden = true;
  draw();
});
canvas.addEventListener('click', (event) => {
  const box = canvas.getBoundingClientRect();
  const node = nodeAt(event.clientX - box.left, event.clientY - box.top);
  if (node >= 0) zoom(node);
});
scroll.addEventListener('scroll', () => {
  fromRoot = state.flipped ? lowest() - scroll.scrollTop : scroll.scrollTop;
  draw();
});

// --- zoom -----------------------------------------------------------------------------------------------------

let animation = 0;
function zoom(node) {
  state.node = node;
  byId('reset').disabled = node === 0;
  byId('tip').hidden = true;
  const from = { start: state.start, width: state.width };
  const to = { start: startOf(node), width: Math.max(1, weightOf(node)) };
  const began = performance.now();
  cancelAnimationFrame(animation);
  const still = matchMedia('(prefers-reduced-motion: reduce)').matches;
  const step = (now) => {
    const part = still ? 1 : Math.min(1, (now - began) / ZOOM_MS);
    const eased = 1 - (1 - part) ** 3;
    state.start = from.start + (to.start - from.start) * eased;
    state.width = from.width + (to.width - from.width) * eased;
    draw();
    if (part < 1) animation = requestAnimationFrame(step);
  };
  step(began);
  showPath();
}

function showPath() {
  const path = [];
  for (let node = state.node; node >= 0; node = parents[node]) path.unshift(node);
  const bar = byId('path');
  bar.replaceChildren();
  for (const [index, node] of path.entries()) {
    if (index > 0) bar.append('›');
    const button = document.createElement('button');
    button.type = 'button';
    button.textContent = names[nameOf(node)];
    button.addEventListener('click', () => zoom(node));
    bar.append(button);
  }
  bar.scrollLeft = bar.scrollWidth;
}

// --- search ---------------------------------------------------------------------------------------------------

function search(text) {
  const output = byId('matched');
  if (text === '') {
    matches = undefined;
    output.value = '';
    draw();
    return;
  }
  const expression = /^\/(.+)\/(i?)$/.exec(text);
  let test = (name) => name.toLowerCase().includes(text.toLowerCase());
  if (expression !== null) {
    try {
      const pattern = new RegExp(expression[1], expression[2]);
      test = (name) => pattern.test(name);
    } catch {
      test = () => false; // not finished yet
    }
  }
  matches = new Set();
  for (const [index, name] of names.entries()) if (test(name)) matches.add(index);
  // What a match covers, once where it calls itself
  let covered = 0;
  let until = -1;
  for (let node = 0; node < count; node++) {
    if (startOf(node) < until || !matches.has(nameOf(node))) continue;
    covered += weightOf(node);
    until = startOf(node) + weightOf(node);
  }
  output.value = percent(covered, total);
  draw();
}

// --- hottest functions ----------------------------------------------------------------------------------------

const self = new Float64Array(names.length);
const whole = new Float64Array(names.length);
const modeOfName = new Uint8Array(names.length).fill(3);
{
  const open = [];
  for (let node = 0; node < count; node++) {
    const depth = depthOf(node);
    const name = nameOf(node);
    if (depth > 1) {
      self[name] += selfOf(node);
      if (!open.slice(2, depth).includes(name)) whole[name] += weightOf(node);
      modeOfName[name] = modes[node];
    }
    open[depth] = name;
  }
}

function showHot() {
  const values = state.order === 'self' ? self : whole;
  const rows = [...names.keys()]
    .filter((name) => values[name] > 0)
    .sort((a, b) => values[b] - values[a])
    .slice(0, HOT_ROWS);
  const list = byId('hot');
  list.replaceChildren();
  for (const name of rows) {
    const item = document.createElement('li');
    const label = document.createElement('span');
    label.className = 'name';
    label.textContent = names[name];
    label.title = names[name];
    const share = document.createElement('span');
    share.className = 'share';
    share.textContent = percent(values[name], total);
    const bar = document.createElement('span');
    bar.className = 'bar';
    bar.style.setProperty('--swatch', colour(modeOfName[name], name, false));
    bar.style.setProperty('--width', `${(100 * values[name]) / values[rows[0]]}%`);
    item.append(label, share, bar);
    item.addEventListener('click', () => {
      const input = byId('search');
      const chosen = input.value === names[name] ? '' : names[name];
      input.value = chosen;
      search(chosen);
    });
    list.append(item);
  }
}

// --- the rest -------------------------------------------------------------------------------------------------

function setTheme(next) {
  dark = next === 'dark';
  root.dataset.theme = next;
  showHot();
  const legend = byId('legend');
  legend.replaceChildren();
  for (const [mode, { label, name }] of MODES.entries()) {
    if (!names.includes(name)) continue;
    const item = document.createElement('span');
    item.textContent = label;
    item.style.setProperty('--swatch', `hsl(${MODES[mode].hue} ${dark ? '58% 46%' : '74% 70%'})`);
    legend.append(item);
  }
  const keys = document.createElement('div');
  keys.className = 'keys';
  for (const [key, does] of [
    ['/', ' search  '],
    ['Esc', ' reset  '],
    ['click', ' zoom'],
  ]) {
    const cap = document.createElement('kbd');
    cap.textContent = key;
    keys.append(cap, does);
  }
  legend.append(keys);
  draw();
}

byId('facts').textContent = facts;
byId('search').addEventListener('input', (event) => search(event.target.value.trim()));
byId('reset').addEventListener('click', () => zoom(0));
byId('flip').addEventListener('click', () => {
  state.flipped = !state.flipped;
  showFrom(0);
  scroll.scrollIntoView({ block: 'nearest' }); // where the page itself scrolls
  draw();
});
byId('theme').addEventListener('click', () => setTheme(dark ? 'light' : 'dark'));
for (const tab of document.querySelectorAll('.tabs button')) {
  tab.addEventListener('click', () => {
    state.order = tab.dataset.order;
    for (const other of document.querySelectorAll('.tabs button')) {
      other.setAttribute('aria-selected', String(other === tab));
    }
    showHot();
  });
}
addEventListener('keydown', (event) => {
  const input = byId('search');
  if (event.key === '/' && document.activeElement !== input) {
    event.preventDefault();
    input.focus();
  } else if (event.key === 'Escape') {
    input.value = '';
    input.blur();
    search('');
    zoom(0);
  }
});
new ResizeObserver(resize).observe(scroll);
setTheme(matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light');
showPath();
resize();
