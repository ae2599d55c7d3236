// Helpers that create elements, and the theme. Text of runs enters the document as text nodes only.

const find = (selector, within = document) => within.querySelector(selector);
const words = (code) => String(code).replaceAll('_', ' ');
const count = (n) => n.toLocaleString('en');
const plural = (n, singular, many = `${singular}s`) => `${count(n)} ${n === 1 ? singular : many}`;

/** Replace control characters by their Unicode pictures. */
const visible = (text) => text.replace(/[\0-\x08\x0b\x0c\x0e-\x1f\x7f]/g, (control) => String.fromCharCode(control === '\x7f' ? 0x2421 : 0x2400 + control.charCodeAt(0)));

/** Create an element. Attributes that begin with "on" are event listeners; children that are strings become text. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? '' : value);
  }
  element.append(...children.filter((child) => child !== null).map((child) => (typeof child === 'string' ? visible(child) : child)));
  return element;
}

const button = (label, onclick, attributes = {}) => make('button', { type: 'button', class: 'quiet', onclick, ...attributes }, label);

/** Announce a message to screen readers. */
function announce(message) { find('#announcement').textContent = message; }

// ---- theme --------------------------------------------------------------------------------------------------------------

const dark = window.matchMedia('(prefers-color-scheme: dark)');

/** The theme chosen on an earlier visit, or null. Some browsers deny storage to pages opened from a file. */
function storedTheme() {
  try { return localStorage.getItem('fcot-theme'); } catch { return null; }
}

function showTheme(chosen) {
  const theme = chosen || (dark.matches ? 'dark' : 'light');
  document.documentElement.dataset.theme = theme;
  const control = find('#theme');
  if (control) control.textContent = theme === 'dark' ? 'Light mode' : 'Dark mode';
}

function switchTheme() {
  const theme = document.documentElement.dataset.theme === 'dark' ? 'light' : 'dark';
  showTheme(theme);
  try { localStorage.setItem('fcot-theme', theme); } catch { /* storage is denied: the choice ends with this visit */ }
}
