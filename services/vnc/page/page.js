import RFB from '/novnc/core/rfb.js';

const byId = (id) => document.getElementById(id);
const root = document.documentElement;

/** Reconnects wait this long, in `ms`, and the last one for ever after */
const BACK_OFF = [400, 1000, 2000, 4000, 8000, 15000];
/** Between two typed characters, in `ms`: slower than any guest's keyboard queue */
const TYPE_INTERVAL = 8;
const VIEW_KEY = 'console-view';

const KEYSYMS = {
  ControlLeft: 0xffe3,
  AltLeft: 0xffe9,
  MetaLeft: 0xffe7,
  Delete: 0xffff,
  Tab: 0xff09,
  Escape: 0xff1b,
  PrintScreen: 0xff61,
  F1: 0xffbe,
  F2: 0xffbf,
  F4: 0xffc1,
};

let rfb;
let attempts = 0;
let retryTimer;
let retryAt = 0;
let view = 'fit';
let watchOnly = false;
let typing;

// The token has done its work when this script runs: the page's answer has set the session cookie. Taken out of the
// address bar, it gets into no history, screenshot or shared link.
if (new URLSearchParams(location.search).has('token')) history.replaceState(null, '', '/');

// ---- connection ----

function connect() {
  clearTimeout(retryTimer);
  setState('connecting');
  const scheme = location.protocol === 'https:' ? 'wss' : 'ws';
  const client = new RFB(byId('screen'), `${scheme}://${location.host}/websocket`, { shared: true });
  rfb = client;
  client.background = 'transparent';
  client.focusOnClick = true;
  client.addEventListener('connect', () => {
    attempts = 0;
    byId('ghost').hidden = true;
    setState('connected');
    applyView();
    client.viewOnly = watchOnly;
    if (document.activeElement === document.body || document.activeElement === null) client.focus();
  });
  client.addEventListener('disconnect', (event) => lost(client, event.detail.clean));
  client.addEventListener('desktopname', (event) => setName(event.detail.name));
  client.addEventListener('securityfailure', (event) => toast(event.detail.reason || 'The server refused this viewer'));
  client.addEventListener('bell', ring);
}

async function lost(client, clean) {
  if (client !== rfb) return;
  rfb = undefined;
  keepPicture(client);
  typing?.abort();
  // A console that has ended, or was started anew, does not know this session any more
  const answer = await fetch('/', { method: 'HEAD', cache: 'no-store' }).catch(() => undefined);
  if (rfb !== undefined) return; // connected meanwhile
  if (answer?.status === 403) {
    setState('ended');
    return;
  }
  const wait = BACK_OFF[Math.min(attempts, BACK_OFF.length - 1)] * (0.85 + Math.random() * 0.3);
  attempts++;
  retryAt = Date.now() + wait;
  setState('waiting', clean);
  retryTimer = setTimeout(connect, wait);
}

/** The client takes its canvas away; the last picture stays, dimmed, until there is a new one. */
function keepPicture(client) {
  const ghost = byId('ghost');
  let picture;
  try {
    picture = client.getImageData();
  } catch {
    return; // it never had one
  }
  ghost.width = picture.width;
  ghost.height = picture.height;
  ghost.getContext('2d').putImageData(picture, 0, 0);
  ghost.hidden = false;
}

function setState(state) {
  root.dataset.state = state;
  const texts = { connecting: 'Connecting', connected: 'Connected', waiting: 'Disconnected', ended: 'Ended' };
  byId('status-text').textContent = texts[state];
  for (const button of document.querySelectorAll('[data-needs="connected"]')) button.disabled = state !== 'connected';
  const cover = byId('cover');
  cover.hidden = state === 'connected';
  byId('retry').hidden = state === 'connecting';
  byId('cover-title').textContent =
    state === 'connecting' ? 'Connecting' : state === 'ended' ? 'This console has ended' : 'Connection lost';
  byId('cover-text').textContent =
    state === 'ended' ? 'If the machine was started again, open the new URL that it printed.' : '';
  if (state === 'waiting') countDown();
}

function countDown() {
  if (root.dataset.state !== 'waiting') return;
  const seconds = Math.max(0, Math.ceil((retryAt - Date.now()) / 1000));
  byId('cover-text').textContent = seconds > 0 ? `Trying again in ${seconds} s` : 'Trying again';
  setTimeout(countDown, 250);
}

byId('retry').addEventListener('click', () => {
  attempts = 0;
  connect();
});
document.addEventListener('visibilitychange', () => {
  if (!document.hidden && root.dataset.state === 'waiting') connect();
});
window.addEventListener('online', () => {
  if (root.dataset.state === 'waiting') connect();
});

function setName(name) {
  const shown = name || 'Console';
  byId('name').textContent = shown;
  document.title = `${shown} – console`;
}

function ring() {
  byId('screen').classList.add('bell');
  setTimeout(() => byId('screen').classList.remove('bell'), 120);
}

// ---- size ----

function applyView() {
  if (rfb === undefined) return;
  rfb.scaleViewport = view !== 'actual';
  rfb.resizeSession = view === 'guest';
  rfb.clipViewport = false;
}

function setView(next) {
  view = next;
  for (const item of document.querySelectorAll('[data-view]')) {
    item.setAttribute('aria-checked', String(item.dataset.view === next));
  }
  try {
    localStorage.setItem(VIEW_KEY, next);
  } catch {
    // private windows may have no storage: the choice then lasts as long as the page
  }
  applyView();
}

function showSize() {
  const canvas = byId('screen').querySelector('canvas');
  const text = canvas && canvas.width > 0 ? `${canvas.width} × ${canvas.height}` : '';
  if (byId('size').textContent !== text) byId('size').textContent = text;
}
new MutationObserver(showSize).observe(byId('screen'), { subtree: true, attributes: true, childList: true });

// ---- menus ----

function openMenu(button) {
  closeMenus();
  const menu = byId(button.getAttribute('aria-controls'));
  menu.hidden = false;
  button.setAttribute('aria-expanded', 'true');
  menu.querySelector('button').focus();
}

function closeMenus() {
  for (const button of document.querySelectorAll('[aria-haspopup="menu"][aria-expanded="true"]')) {
    byId(button.getAttribute('aria-controls')).hidden = true;
    button.setAttribute('aria-expanded', 'false');
  }
}

for (const button of document.querySelectorAll('[aria-haspopup="menu"]')) {
  const menu = byId(button.getAttribute('aria-controls'));
  button.addEventListener('click', () => {
    if (menu.hidden) openMenu(button);
    else closeMenus();
  });
  button.addEventListener('keydown', (event) => {
    if (event.key !== 'ArrowDown') return;
    event.preventDefault();
    openMenu(button);
  });
  menu.addEventListener('keydown', (event) => {
    const items = [...menu.querySelectorAll('button')];
    const at = items.indexOf(document.activeElement);
    const moves = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: items.length - 1 };
    if (event.key === 'Escape') {
      closeMenus();
      button.focus();
    } else if (event.key === 'Tab') {
      closeMenus();
    } else if (event.key in moves) {
      event.preventDefault();
      items.at(moves[event.key] % items.length).focus();
    }
  });
}
document.addEventListener('pointerdown', (event) => {
  if (!event.target.closest('.menu')) closeMenus();
});

byId('keys-menu').addEventListener('click', (event) => {
  const item = event.target.closest('[data-keys]');
  if (item === null) return;
  closeMenus();
  press(item.dataset.keys.split(' '));
  toast(`${item.firstElementChild.textContent} sent`);
  rfb?.focus();
});
byId('view-menu').addEventListener('click', (event) => {
  const item = event.target.closest('[data-view]');
  if (item === null) return;
  closeMenus();
  setView(item.dataset.view);
  rfb?.focus();
});
byId('watch-only').addEventListener('click', () => {
  watchOnly = !watchOnly;
  byId('watch-only').setAttribute('aria-checked', String(watchOnly));
  if (rfb !== undefined) rfb.viewOnly = watchOnly;
  closeMenus();
  toast(watchOnly ? 'Input is off' : 'Input is on');
});

// The way out for the keyboard: while the guest has it, every other combination is the guest's
window.addEventListener(
  'keydown',
  (event) => {
    if (!(event.ctrlKey && event.altKey && event.shiftKey)) return;
    if (!byId('screen').contains(document.activeElement)) return;
    event.stopPropagation(); // the guest does not get the last of the three
    event.preventDefault();
    byId('keys').focus();
  },
  true,
);
// noVNC lets go of all keys when the window loses the focus; the same must hold when only the screen does
byId('screen').addEventListener('focusout', () => window.dispatchEvent(new Event('blur')));

// ---- keys and text ----

function press(codes) {
  for (const code of codes) rfb?.sendKey(KEYSYMS[code], code, true);
  for (const code of codes.toReversed()) rfb?.sendKey(KEYSYMS[code], code, false);
}

/** The keysym of a character that a US keyboard has, or undefined. */
function keysymOf(character) {
  if (character === '\n') return 0xff0d;
  if (character === '\t') return 0xff09;
  const point = character.codePointAt(0);
  return point >= 0x20 && point <= 0x7e ? point : undefined;
}

function splitText(text) {
  const characters = [...text.replaceAll('\r\n', '\n')];
  return {
    keysyms: characters.map(keysymOf).filter((keysym) => keysym !== undefined),
    missing: new Set(characters.filter((character) => keysymOf(character) === undefined)),
  };
}

async function typeKeysyms(keysyms, signal, onProgress) {
  for (const [index, keysym] of keysyms.entries()) {
    if (signal.aborted || rfb === undefined) return false;
    // No code: the server finds the key and the Shift that it needs
    rfb.sendKey(keysym, null, true);
    rfb.sendKey(keysym, null, false);
    onProgress((index + 1) / keysyms.length);
    await new Promise((resolve) => setTimeout(resolve, TYPE_INTERVAL));
  }
  return true;
}

const dialog = byId('type-dialog');
byId('type').addEventListener('click', () => {
  checkText();
  dialog.showModal();
  byId('type-text').focus();
});
byId('type-text').addEventListener('input', checkText);

function checkText() {
  const { keysyms, missing } = splitText(byId('type-text').value);
  const note = byId('type-note');
  note.classList.toggle('warn', missing.size > 0);
  note.textContent = missing.size > 0 ? `Left out, not on a US keyboard: ${[...missing].slice(0, 12).join(' ')}` : '';
  byId('type-send').disabled = keysyms.length === 0;
}

byId('type-send').addEventListener('click', async () => {
  const text = byId('type-text').value + (byId('type-enter').checked ? '\n' : '');
  const { keysyms } = splitText(text);
  const progress = byId('type-progress');
  typing = new AbortController();
  byId('type-send').disabled = true;
  progress.hidden = false;
  const whole = await typeKeysyms(keysyms, typing.signal, (part) => {
    progress.value = part;
  });
  typing = undefined;
  progress.hidden = true;
  if (whole) {
    byId('type-text').value = '';
    dialog.close();
    toast(keysyms.length === 1 ? '1 key typed' : `${keysyms.length} keys typed`);
  }
  checkText();
});
dialog.addEventListener('close', () => {
  typing?.abort();
  rfb?.focus();
});

// ---- screenshot, full screen ----

byId('shot').addEventListener('click', () => {
  rfb?.toBlob((blob) => {
    if (blob === null) return toast('There is no picture yet');
    const link = document.createElement('a');
    const stamp = new Date().toISOString().slice(0, 19).replaceAll(':', '-');
    link.download = `${byId('name').textContent.replaceAll(/[^\w.-]+/g, '-')}-${stamp}.png`;
    link.href = URL.createObjectURL(blob);
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    toast('Screenshot saved');
  }, 'image/png');
});

byId('full').addEventListener('click', async () => {
  if (document.fullscreenElement) await document.exitFullscreen();
  else await root.requestFullscreen().catch(() => toast('This browser refuses full screen'));
  rfb?.focus();
});
document.addEventListener('fullscreenchange', () => {
  byId('full').setAttribute('aria-pressed', String(document.fullscreenElement !== null));
});

let toastTimer;
function toast(text) {
  const element = byId('toast');
  element.textContent = text;
  element.classList.add('shown');
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => element.classList.remove('shown'), 2200);
}

// ---- start ----

let saved = null;
try {
  saved = localStorage.getItem(VIEW_KEY);
} catch {
  // see setView
}
setView(['fit', 'actual', 'guest'].includes(saved) ? saved : 'fit');
connect();

/** For scripts and tests that drive the page. */
globalThis.caissonConsole = {
  get client() {
    return rfb;
  },
  get state() {
    return root.dataset.state;
  },
};
