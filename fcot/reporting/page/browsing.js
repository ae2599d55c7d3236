// What both browsers are made of: the data, texts with what differs marked, cards, a list of any length.

const ROW = 56; // pixels, as .row in page.css
const FOLD = 4000; // characters of a text that are shown at first
const CARDS = 6; // answers or completions that are shown at first
const MOST_MARKS = 2000; // places where what is searched for stands
const MOST_STEPS = 400; // of an answer that are compared: the comparison is quadratic

// ---- data ---------------------------------------------------------------------------------------------------------------

async function inflate(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('deflate'));
  return JSON.parse(await new Response(stream).text());
}

/** The rows of the file with names; see samples.py. */
function named(data) {
  data.problems = data.problems.map(([task, name, question, gold, completions, answers, paths]) => ({
    task, name, question, gold,
    completions: completions.map(([round, index, rationale, prediction, correct, reason, group]) => (
      { round, index, text: String(rationale ?? ''), prediction, correct, reason, runs: data.groups[group] })),
    answers: answers.map(([run, text, prediction, correct, complete, tokens, marks, equation]) => (
      { run, text: String(text ?? ''), prediction, correct, complete, tokens: tokens ?? 0, marks, equation })),
    paths: paths.map(([run, events]) => ({ run, events })),
  }));
  const order = new Intl.Collator('en', { numeric: true });
  data.problems.sort((a, b) => a.task - b.task || order.compare(a.name, b.name));
  return data;
}

const haystack = (problem) => [
  problem.question || '', problem.gold || '', ...problem.completions.map((one) => one.text), ...problem.answers.map((one) => one.text),
].join('\n').toLowerCase();

// ---- texts, steps and what differs in them ------------------------------------------------------------------------------

const stepsOf = (text) => text.match(/[^]+?(?:\n+|[.!?]+\s+|$)/g) || [];

/** What makes two steps the same: their equations, or all their words where they have none. */
function gist(step) {
  const equations = step.match(/[-+*/x×÷=().,\d\s%$€£]*=[-+*/x×÷=().,\d\s%$€£]*/g);
  return equations ? equations.join(';').replace(/[^-+*/x×÷=.\d;]/g, '').replace(/\.(?!\d)/g, '') : step.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, ' ').trim();
}

/** Which of a text's steps another one does not have in the same order (the longest common subsequence is left unmarked). */
function differing(text, other) {
  const steps = stepsOf(text).slice(0, MOST_STEPS).map(gist);
  const others = stepsOf(other).slice(0, MOST_STEPS).map(gist);
  const longest = Array.from({ length: steps.length + 1 }, () => new Uint16Array(others.length + 1));
  for (let i = steps.length - 1; i >= 0; i--) {
    for (let j = others.length - 1; j >= 0; j--) {
      longest[i][j] = steps[i] === others[j] ? longest[i + 1][j + 1] + 1 : Math.max(longest[i + 1][j], longest[i][j + 1]);
    }
  }
  const marked = new Set();
  for (let i = 0, j = 0; i < steps.length;) {
    if (j < others.length && steps[i] === others[j]) { i++; j++; }
    else if (j < others.length && longest[i][j + 1] >= longest[i + 1][j]) j++;
    else marked.add(i++);
  }
  return marked;
}

/** A text as it is, steps marked, a very long one folded. */
function textBlock(text, marked = new Set()) {
  const whole = String(text ?? '').trim();
  const block = make('p', { class: 'text', dir: 'auto' });
  const fill = (shown) => block.replaceChildren(...stepsOf(shown).map((step, number) => {
    const bare = step.trimEnd();
    return marked.has(number) && bare ? make('span', {}, make('mark', {}, bare), step.slice(bare.length)) : visible(step);
  }));
  if (!whole) return make('p', { class: 'note' }, 'empty');
  if (whole.length <= FOLD) { fill(whole); return block; }
  fill(whole.slice(0, FOLD));
  const more = button(`Show all ${count(whole.length)} characters`, () => { fill(whole); more.remove(); });
  return make('div', {}, block, more);
}

const verdict = (good, label) => make('span', { class: good === null ? 'verdict' : `verdict ${good ? 'good' : 'bad'}` }, label);

/** A card: who, verdict, text, notes. */
function card(title, badge, text, notes, control = null, marked = new Set()) {
  const lines = notes.filter(Boolean).map((note) => make('p', { class: 'note' }, make('bdi', {}, note)));
  return make('article', { class: 'card' }, make('header', {}, make('bdi', {}, title), badge), textBlock(text, marked), ...lines, control);
}

/** Cards, of which the first few are shown. */
function cards(all) {
  const box = make('div', { class: 'cards' }, ...all.slice(0, CARDS).map((draw) => draw()));
  if (all.length <= CARDS) return box;
  const more = button(`Show ${count(all.length - CARDS)} more`, () => { box.append(...all.slice(CARDS).map((draw) => draw())); more.remove(); });
  return make('div', {}, box, more);
}

/** What is searched for: words, and phrases between quotation marks. */
const needlesOf = (query) => [...query.toLowerCase().replace(/[\u201c\u201d\u201e\u00ab\u00bb]/g, '"').matchAll(/"([^"]*)"?|([^\s"]+)/g)].map(([, phrase, word]) => phrase ?? word).filter(Boolean);

/** Mark where they stand in a place; its text stays as it is. */
function highlight(place, needles) {
  if (!window.Highlight) return;
  const found = new Highlight();
  const walker = document.createTreeWalker(place, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const text = node.data.toLowerCase();
    if (text.length !== node.length) continue; // a letter that has no small form of one character
    for (const needle of needles) {
      for (let at = text.indexOf(needle); at >= 0 && found.size < MOST_MARKS; at = text.indexOf(needle, at + needle.length)) {
        found.add(new StaticRange({ startContainer: node, startOffset: at, endContainer: node, endOffset: at + needle.length }));
      }
    }
  }
  CSS.highlights.set('search', found);
}

// ---- a list of any length -----------------------------------------------------------------------------------------------

/** Rows that exist only where they are seen; arrow keys move, Enter opens. `describe(item)` gives a row's two lines. */
function makeList(id, label, describe, open) {
  let items = [];
  let active = 0;
  let chosen = null;
  const inner = make('div', { role: 'presentation' });
  const box = make('div', { id, class: 'rows', role: 'listbox', tabindex: '0', 'aria-label': label }, inner);

  const row = (number) => {
    const item = items[number];
    return make('div', {
      id: `${id}-${number}`, role: 'option', class: number === active ? 'row active' : 'row', style: `top:${number * ROW}px`,
      'aria-selected': String(item === chosen), 'aria-setsize': items.length, 'aria-posinset': number + 1,
      onclick: () => { active = number; open(item); },
    }, ...describe(item).map((line) => make('span', { dir: 'auto' }, line)));
  };
  const draw = () => {
    const first = Math.max(0, Math.floor(box.scrollTop / ROW) - 4);
    const last = Math.min(items.length, Math.ceil((box.scrollTop + (box.clientHeight || 640)) / ROW) + 4);
    inner.replaceChildren(...Array.from({ length: Math.max(0, last - first) }, (_, offset) => row(first + offset)));
    if (items.length) box.setAttribute('aria-activedescendant', `${id}-${active}`);
    else box.removeAttribute('aria-activedescendant');
  };
  const move = (number) => {
    active = Math.max(0, Math.min(items.length - 1, number));
    const top = active * ROW;
    if (top < box.scrollTop) box.scrollTop = top;
    else if (top + ROW > box.scrollTop + box.clientHeight) box.scrollTop = top + ROW - box.clientHeight;
    draw();
  };
  const page = () => Math.max(1, Math.floor(box.clientHeight / ROW) - 1);
  const keys = {
    ArrowDown: () => move(active + 1), ArrowUp: () => move(active - 1), PageDown: () => move(active + page()), PageUp: () => move(active - page()),
    Home: () => move(0), End: () => move(items.length - 1),
    Enter: () => items[active] && open(items[active]), ' ': () => items[active] && open(items[active]),
  };
  box.addEventListener('scroll', () => requestAnimationFrame(draw), { passive: true });
  box.addEventListener('keydown', (event) => {
    if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
  });
  return {
    box,
    enter: () => { box.focus(); move(active); },
    /** Show other items, from the top unless the chosen one is among them. */
    set: (list) => {
      items = list;
      inner.style.height = `${items.length * ROW}px`;
      box.scrollTop = 0;
      move(Math.max(0, items.indexOf(chosen)));
    },
    choose: (item) => { chosen = item; const place = items.indexOf(item); if (place >= 0) move(place); else draw(); },
    neighbour: (by) => items[items.indexOf(chosen) + by],
  };
}

/** A labelled choice; `options` are [value, label]. */
function choice(label, options, onchange, attributes = {}) {
  const control = make('select', { onchange, ...attributes }, ...options.map(([value, text]) => make('option', { value }, text)));
  return make('label', {}, label, control);
}

/** Filters above, list at the left, detail at the right. */
function layOut(place, filters, told, list, detail) {
  place.replaceChildren(
    ...filters, told, make('div', { class: 'panes' }, make('div', { class: 'list' }, list.box), detail));
}

/** Where the eyes and the keyboard go after opening; on a phone the detail stands below the list. */
function arrive(detail, byUser) {
  if (!byUser) return;
  find('h3', detail).focus({ preventScroll: true });
  if (detail.getBoundingClientRect().top > window.innerHeight * 0.6 || detail.getBoundingClientRect().top < 0) detail.scrollIntoView();
}
