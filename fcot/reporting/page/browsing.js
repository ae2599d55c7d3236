// Parts that both browsers share: the data, texts with marked differences, cards, a list of any length.

const ROW = 56; // height of a row in pixels, as .row in page.css
const FOLD = 4000; // characters of a longer text that are shown before it is expanded
const CARDS = 6; // answers or completions that are shown before the list is expanded
const MOST_MARKS = 2000; // highlighted matches of a search
const MOST_STEPS = 400; // compared steps of an answer: the comparison takes quadratic time

// ---- data ---------------------------------------------------------------------------------------------------------------

async function inflate(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('deflate'));
  return JSON.parse(await new Response(stream).text());
}

/** Turn the lists of the embedded JSON (see samples.py) into objects, and sort the problems by dataset and name. */
function toObjects(data) {
  data.problems = data.problems.map(([task, name, question, gold, completions, answers, paths, id]) => ({
    task, name, question, gold, id,
    completions: completions.map(([round, index, rationale, prediction, correct, reason, group, score, wrongStep]) => (
      { round, index, text: String(rationale ?? ''), prediction, correct, reason, score, wrongStep, runs: data.groups[group] })),
    answers: answers.map(([run, text, prediction, correct, complete, tokens, marks, equation]) => (
      { run, text: String(text ?? ''), prediction, correct, complete, tokens: tokens ?? 0, marks, equation })),
    paths: paths.map(([run, events]) => ({ run, events })),
  }));
  const order = new Intl.Collator('en', { numeric: true });
  data.problems.sort((a, b) => a.task - b.task || order.compare(a.name, b.name));
  return data;
}

const searchableText = (problem) => [
  problem.question || '', problem.gold || '', problem.id || '', ...problem.completions.map((completion) => completion.text),
  ...problem.answers.map((answer) => answer.text),
].join('\n').toLowerCase();

// ---- texts and their steps ----------------------------------------------------------------------------------------------

const stepsOf = (text) => text.match(/[^]+?(?:\n+|[.!?]+\s+|$)/g) || [];

/** The part of a step that is compared: its equations or, without any, its words. Steps with the same part count as equal. */
function comparedPart(step) {
  const equations = step.match(/[-+*/x×÷=().,\d\s%$€£]*=[-+*/x×÷=().,\d\s%$€£]*/g);
  return equations ? equations.join(';').replace(/[^-+*/x×÷=.\d;]/g, '').replace(/\.(?!\d)/g, '') : step.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, ' ').trim();
}

/** The numbers of a text's steps that are not in its longest common subsequence of steps with another text. */
function differing(text, other) {
  const steps = stepsOf(text).slice(0, MOST_STEPS).map(comparedPart);
  const others = stepsOf(other).slice(0, MOST_STEPS).map(comparedPart);
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

/** A paragraph with the text verbatim and the given steps marked; a very long text is folded. */
function textBlock(text, marked = new Set()) {
  const trimmed = String(text ?? '').trim();
  const block = make('p', { class: 'text', dir: 'auto' });
  const fill = (shown) => block.replaceChildren(...stepsOf(shown).map((step, number) => {
    const bare = step.trimEnd();
    return marked.has(number) && bare ? make('span', {}, make('mark', {}, bare), step.slice(bare.length)) : visible(step);
  }));
  if (!trimmed) return make('p', { class: 'note' }, 'empty');
  if (trimmed.length <= FOLD) { fill(trimmed); return block; }
  fill(trimmed.slice(0, FOLD));
  const expand = button(`Show all ${count(trimmed.length)} characters`, () => { fill(trimmed); expand.remove(); });
  return make('div', {}, block, expand);
}

const verdict = (good, label) => make('span', { class: good === null ? 'verdict' : `verdict ${good ? 'good' : 'bad'}` }, label);

/** A card with title and badge above a text, and notes and a control below it. */
function card(title, badge, text, notes, control = null, marked = new Set()) {
  const lines = notes.filter(Boolean).map((note) => make('p', { class: 'note' }, make('bdi', {}, note)));
  return make('article', { class: 'card' }, make('header', {}, make('bdi', {}, title), badge), textBlock(text, marked), ...lines, control);
}

/** A grid of cards, made by the given functions; only the first few are made before the reader expands it. */
function cards(makers) {
  const box = make('div', { class: 'cards' }, ...makers.slice(0, CARDS).map((makeCard) => makeCard()));
  if (makers.length <= CARDS) return box;
  const expand = button(`Show ${count(makers.length - CARDS)} more`, () => { box.append(...makers.slice(CARDS).map((makeCard) => makeCard())); expand.remove(); });
  return make('div', {}, box, expand);
}

/** The search terms of a query: words, and phrases in quotation marks. */
const searchTerms = (query) => [...query.toLowerCase().replace(/[\u201c\u201d\u201e\u00ab\u00bb]/g, '"').matchAll(/"([^"]*)"?|([^\s"]+)/g)].map(([, phrase, word]) => phrase ?? word).filter(Boolean);

/** Highlight the search terms in an element without changing its text nodes. */
function highlight(place, terms) {
  if (!window.Highlight) return;
  const matches = new Highlight();
  const walker = document.createTreeWalker(place, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const text = node.data.toLowerCase();
    if (text.length !== node.length) continue; // lower case of a letter has several characters, so positions differ
    for (const term of terms) {
      for (let at = text.indexOf(term); at >= 0 && matches.size < MOST_MARKS; at = text.indexOf(term, at + term.length)) {
        matches.add(new StaticRange({ startContainer: node, startOffset: at, endContainer: node, endOffset: at + term.length }));
      }
    }
  }
  CSS.highlights.set('search', matches);
}

// ---- a list of any length -----------------------------------------------------------------------------------------------

/** A list that only creates the visible rows. Arrow keys move, Enter opens. `describe(item)` returns a row's two lines. */
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
    /** Replace the items. The list scrolls to the chosen item, or to the top if it is gone. */
    set: (list) => {
      items = list;
      inner.style.height = `${items.length * ROW}px`;
      box.scrollTop = 0;
      move(Math.max(0, items.indexOf(chosen)));
    },
    redraw: draw,
    choose: (item) => { chosen = item; const place = items.indexOf(item); if (place >= 0) move(place); else draw(); },
    neighbor: (by) => items[items.indexOf(chosen) + by],
  };
}

/** A select element with its label; `options` are pairs of value and label. */
function choice(label, options, onchange, attributes = {}) {
  const control = make('select', { onchange, ...attributes }, ...options.map(([value, text]) => make('option', { value }, text)));
  return make('label', {}, label, control);
}

/** Arrange a browser: filters and status above, list at the left, detail at the right. */
function layOut(place, filters, status, list, detail) {
  place.replaceChildren(
    ...filters, status, make('div', { class: 'panes' }, make('div', { class: 'list' }, list.box), detail));
}

/** Move focus to an opened item, and scroll to it on a phone, where it is below the list. */
function focusDetail(detail, byUser) {
  if (!byUser) return;
  find('h3', detail).focus({ preventScroll: true });
  if (detail.getBoundingClientRect().top > window.innerHeight * 0.6 || detail.getBoundingClientRect().top < 0) detail.scrollIntoView();
}
