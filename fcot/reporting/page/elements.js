// Elements made of plain text, and the theme. Text of runs enters the document as text nodes only.

const find = (selector, within = document) => within.querySelector(selector);
const words = (code) => String(code).replaceAll('_', ' ');
const count = (n) => n.toLocaleString('en');
const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

/** Control characters as their pictures. */
const visible = (text) => text.replace(/[\0-\x08\x0b\x0c\x0e-\x1f\x7f]/g, (one) => String.fromCharCode(one === '\x7f' ? 0x2421 : 0x2400 + one.charCodeAt(0)));

/** An element; children that are strings become text. */
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

/** Say something to who does not see the page. */
function tell(message) { find('#told').textContent = message; }

// ---- theme --------------------------------------------------------------------------------------------------------------

const dark = window.matchMedia('(prefers-color-scheme: dark)');

/** What was chosen before; a browser may refuse storage to files. */
function remembered() {
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
  try { localStorage.setItem('fcot-theme', theme); } catch { /* then it is not remembered */ }
}
