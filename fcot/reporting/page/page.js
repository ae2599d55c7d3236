'use strict';
// The page's behaviour: theme, charts, copy buttons, and the two browsers. Text of runs enters the document as text nodes only.
(() => {
const ROW = 56; // pixels, as .row in page.css
const FOLD = 4000; // characters of a text that are shown at first
const CARDS = 6; // answers or completions that are shown at first
const MOST_STEPS = 400; // of an answer that are compared: the comparison is quadratic
const NAMES = {
  zero_shot: 'Zero-shot', zero_shot_cot: 'Zero-shot-CoT', few_shot_cot: 'Few-shot-CoT', fine_tune: 'Fine-tune',
  fine_tune_cot: 'Fine-tune-CoT', tailored: 'Tailored',
};

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

// ---- theme -------------------------------------------------------------------------------------------------------------

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

// ---- charts and code ---------------------------------------------------------------------------------------------------

/** Colours follow the text's, so that themes and print need no second drawing. */
function chartConfig(room) {
  const axis = { labelColor: 'currentColor', titleColor: 'currentColor', tickColor: 'currentColor', domainColor: 'currentColor',
    gridColor: 'currentColor', gridOpacity: 0.12, tickOpacity: 0.4, domainOpacity: 0.4, titleFontWeight: 'normal' };
  const named = { labelColor: 'currentColor', titleColor: 'currentColor' };
  const below = room < 560 ? { orient: 'bottom', columns: 1 } : {}; // beside the picture there would be no picture left
  return {
    background: null, font: getComputedStyle(document.body).fontFamily, axis, legend: { ...named, ...below, labelLimit: 280 }, header: named,
    title: { color: 'currentColor', subtitleColor: 'currentColor' }, view: { stroke: null },
    text: { color: 'currentColor' }, rule: { color: 'currentColor' },
  };
}

/** The width a chart of one view asks for; null for one of several views, or of steps, which scrolls in its box. */
function ownWidth(spec) {
  const { row, column, facet } = spec.encoding || {};
  if (!(spec.mark || spec.layer) || row || column || facet || typeof spec.width === 'object') return null;
  return spec.width || 640;
}

/** Draw; what axes and legend take too much is taken from the width of the picture. */
async function drawChart(place) {
  const spec = JSON.parse(find('script', place.parentElement).textContent);
  const room = place.clientWidth;
  const options = { renderer: 'svg', actions: false, ast: true, config: chartConfig(room) }; // ast: without eval
  const width = ownWidth(spec);
  try {
    if (width === null) { await window.vegaEmbed(place, spec, options); return; }
    const first = Math.min(width, room);
    await window.vegaEmbed(place, { ...spec, width: first }, options);
    const over = find('svg', place).getBoundingClientRect().width - room;
    if (over > 0) await window.vegaEmbed(place, { ...spec, width: Math.max(100, Math.floor(first - over)) }, options);
  } catch (error) {
    place.replaceChildren(make('p', { class: 'note' }, `This chart cannot be drawn: ${error.message}`));
  }
}

function drawCharts() {
  const places = [...document.querySelectorAll('.plot')];
  const widths = new Map();
  const drawChanged = () => places.forEach((place) => {
    if (widths.get(place) === place.clientWidth || !place.clientWidth) return;
    widths.set(place, place.clientWidth);
    drawChart(place);
  });
  drawChanged();
  let waiting = 0;
  window.addEventListener('resize', () => { clearTimeout(waiting); waiting = setTimeout(drawChanged, 150); });
}

async function copy(text, control) {
  const label = control.textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch { // not allowed from a file in every browser
    const area = make('textarea', { class: 'hidden' });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand('copy');
    area.remove();
    control.focus();
  }
  control.textContent = 'Copied';
  tell('Copied');
  setTimeout(() => { control.textContent = label; }, 1500);
}

function addCopyButtons() {
  for (const box of document.querySelectorAll('.copied')) {
    const control = button('Copy', () => copy(find('code', box).textContent, control), { class: '' });
    box.append(control);
  }
}

/** For browsers whose style sheets cannot open folded blocks on paper. */
function openForPrint() {
  let opened = [];
  window.addEventListener('beforeprint', () => {
    opened = [...document.querySelectorAll('details:not([open])')];
    opened.forEach((one) => { one.open = true; });
  });
  window.addEventListener('afterprint', () => opened.forEach((one) => { one.open = false; }));
}

// ---- data --------------------------------------------------------------------------------------------------------------

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

// ---- texts, steps and what differs in them -----------------------------------------------------------------------------

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

// ---- a list of any length ----------------------------------------------------------------------------------------------

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

// ---- the rationale browser ---------------------------------------------------------------------------------------------

const outcome = (answers) => answers.reduce((n, one) => n + one.correct, 0);
const VERDICTS = {
  right: ['student right', (one) => one.answers.some((answer) => answer.correct)],
  wrong: ['student wrong', (one) => one.answers.some((answer) => !answer.correct)],
  disagree: ['runs disagree', (one) => outcome(one.answers) > 0 && outcome(one.answers) < one.answers.length],
  all_right: ['all runs right', (one) => one.answers.length > 0 && outcome(one.answers) === one.answers.length],
  all_wrong: ['all runs wrong', (one) => one.answers.length > 0 && outcome(one.answers) === 0],
  kept: ['teacher: some kept', (one) => one.completions.some((completion) => completion.reason === null)],
  refused: ['teacher: some refused', (one) => one.completions.some((completion) => completion.reason !== null)],
};

/** The test of a verdict's name; `refused:REASON` is about one reason. */
function verdictTest(name) {
  const reason = name.startsWith('refused:') ? name.slice(8) : null;
  return reason === null ? (VERDICTS[name] || [])[1] : (one) => one.completions.some((completion) => completion.reason === reason);
}

/** Those of a problem's answers and completions that belong to a run or method. */
function ofRuns(problem, wanted) {
  return wanted === null ? problem : {
    answers: problem.answers.filter((one) => wanted.has(one.run)),
    completions: problem.completions.filter((one) => one.runs.some((run) => wanted.has(run))),
  };
}

/** Runs that the method and run filters let through, null for all. */
function wantedRuns(data, filters) {
  if (!filters.method && !filters.run) return null;
  const numbers = data.runs.map((run, number) => ((!filters.method || run.method === filters.method) && (!filters.run || run.label === filters.run) ? number : -1));
  return new Set(numbers.filter((number) => number >= 0));
}

/** `search(filters)` -> problems. A query that continues the last one looks only through what that found. */
function makeSearch(data) {
  const hay = new Map(data.problems.map((problem) => [problem, haystack(problem)]));
  let last = { query: '', fixed: '', found: data.problems };
  return (filters) => {
    const { q = '', ...others } = filters;
    const query = q.toLowerCase();
    const fixed = JSON.stringify(others);
    const from = fixed === last.fixed && query.startsWith(last.query) ? last.found : data.problems;
    const needles = query.split(/\s+/).filter(Boolean);
    const wanted = wantedRuns(data, filters);
    const test = verdictTest(filters.verdict || '');
    const found = from.filter((problem) => {
      if (filters.task && data.tasks[problem.task] !== filters.task) return false;
      const part = ofRuns(problem, wanted);
      if (wanted && !part.answers.length && !part.completions.length) return false;
      if (test && !test(part)) return false;
      if (filters.mark && !part.answers.some((answer) => answer.marks.includes(filters.mark))) return false;
      const text = hay.get(problem);
      return needles.every((needle) => text.includes(needle));
    });
    last = { query, fixed, found };
    return found;
  };
}

/** A row's two lines: the question, and how runs and teacher did. */
function summary(problem) {
  const parts = [];
  const kept = problem.completions.filter((one) => one.reason === null).length;
  if (problem.answers.length) parts.push(`runs ${outcome(problem.answers)}/${problem.answers.length} right`);
  if (problem.completions.length) parts.push(`teacher ${kept}/${problem.completions.length} kept`);
  return [problem.question ?? '(question unknown)', [...parts, problem.name].join(' · ')];
}

function questionBlock(problem) {
  const unknown = 'The question is not in the files of these runs: none of them was tested on it.';
  return [
    problem.question === null ? make('p', { class: 'note' }, unknown) : make('p', { class: 'text question', dir: 'auto' }, problem.question),
    make('p', { class: 'gold' }, 'Gold answer: ', make('strong', {}, make('bdi', {}, problem.gold ?? 'none'))),
  ];
}

/** Student answers side by side; steps that differ from the one they are compared with are marked. */
function answersPart(data, answers) {
  const place = make('div');
  const draw = (reference) => {
    const draws = answers.map((one) => () => {
      const marked = answers.length < 2 ? new Set() : one === reference
        ? (answers.length === 2 ? differing(one.text.trim(), answers.find((other) => other !== one).text.trim()) : new Set())
        : differing(one.text.trim(), reference.text.trim());
      const notes = [
        `answer: ${one.prediction === null ? 'none found' : one.prediction} · ${plural(one.tokens, 'token')}${one.complete ? '' : ', cut off'}`,
        one.marks.length ? `${one.marks.map(words).join(', ')}${one.equation ? ` (${one.equation})` : ''}` : '',
      ];
      const compare = answers.length < 2 ? null : one === reference ? make('p', { class: 'note' }, 'the others are compared with this one')
        : button('Compare with this', () => { draw(one); tell('Compared with another answer'); });
      return card(data.runs[one.run].label, verdict(Boolean(one.correct), one.correct ? 'right' : 'wrong'), one.text, notes, compare, marked);
    });
    place.replaceChildren(cards(draws));
  };
  draw(answers.find((one) => one.correct) || answers[0]);
  const told = answers.length < 2 ? null : make('p', { class: 'note' }, 'Marked: steps that the answer compared with does not have. Equations are compared by their numbers, other sentences by their words.');
  return [make('h4', {}, 'Student answers'), told, place].filter(Boolean);
}

function completionsPart(data, completions) {
  const ordered = [...completions].sort((a, b) => (a.reason !== null) - (b.reason !== null) || a.round - b.round);
  const draws = ordered.map((one) => () => card(
    `completion ${one.index + 1}${one.round > 1 ? ` of round ${one.round}` : ''}`,
    verdict(one.reason === null, one.reason === null ? 'kept' : `refused: ${words(one.reason)}`), one.text,
    [`answer: ${one.prediction === null ? 'none found' : one.prediction}`,
      one.runs.length === data.runs.length ? '' : `used by ${one.runs.length > 4 ? plural(one.runs.length, 'run') : one.runs.map((run) => data.runs[run].label).join('; ')}`]));
  return [make('h4', {}, 'Teacher completions'), cards(draws)];
}

const linkTo = (problem) => `sample=${problem.name.split('/').map(encodeURIComponent).join('/')}`;

/** Names and values of the address after #; a bare #section has none. */
const inAddress = () => (location.hash.includes('=') ? Object.fromEntries(new URLSearchParams(location.hash.slice(1))) : {});

function filterControls(data, set) {
  const reasons = [...new Set(data.problems.flatMap((one) => one.completions.map((completion) => completion.reason)))].filter((reason) => reason !== null).sort();
  const marks = [...new Set(data.problems.flatMap((one) => one.answers.flatMap((answer) => answer.marks)))].sort();
  const methods = [...new Set(data.runs.map((run) => run.method))];
  const verdicts = [...Object.entries(VERDICTS).map(([name, [label]]) => [name, label]), ...reasons.map((reason) => [`refused:${reason}`, `teacher refused: ${words(reason)}`])];
  const select = (name, label, options) => choice(label, [['', 'all'], ...options], (event) => set({ [name]: event.target.value }), { name });
  return [
    make('label', { class: 'search' }, 'Search questions, rationales and answers',
      make('input', { type: 'search', name: 'q', autocomplete: 'off', spellcheck: 'false', placeholder: 'every word must occur' })),
    make('div', { class: 'filters' }, select('task', 'Task', [...new Set(data.tasks)].map((task) => [task, task])),
    select('method', 'Method', methods.map((method) => [method, NAMES[method] || method])),
    select('run', 'Run', [...new Set(data.runs.map((run) => run.label))].map((label) => [label, label])),
    select('verdict', 'Verdict', verdicts),
    select('mark', 'Error', marks.map((mark) => [mark, words(mark)]))),
  ];
}

function sampleBrowser(place, data) {
  const search = makeSearch(data);
  const byName = new Map(data.problems.map((problem) => [problem.name, problem]));
  let filters = {};
  let open = null;
  let linked = false; // whether the address names what is open
  const told = make('p', { class: 'note', role: 'status' });
  const detail = make('div', { class: 'detail' });
  const list = makeList('sample-list', 'Problems', summary, (problem) => go(problem));

  const address = () => `#${[...(linked ? [linkTo(open)] : []), ...Object.entries(filters).filter(([, value]) => value).map(([name, value]) => `${name}=${encodeURIComponent(value)}`)].join('&')}`;
  const remember = (replace) => {
    const next = address() === '#' ? '#samples' : address();
    if (next !== location.hash) history[replace ? 'replaceState' : 'pushState'](null, '', next);
  };
  const narrow = () => {
    const found = search(filters);
    list.set(found);
    if (open && !linked && found.length) show(found[0], false); // nobody asked for the one that is open
    told.textContent = `${plural(found.length, 'problem')}${found.length < data.problems.length ? ` of ${count(data.problems.length)}` : ''}`;
  };
  const set = (changed) => {
    filters = { ...filters, ...changed };
    narrow();
    if ('run' in changed || 'method' in changed) show(open, false);
    remember(true);
  };
  const go = (problem) => { linked = true; show(problem, true); remember(false); };

  function show(problem, byUser) {
    open = problem;
    list.choose(problem);
    const part = ofRuns(problem, wantedRuns(data, filters));
    const steps = [['Previous', -1], ['Next', 1]].map(([label, by]) => button(label, () => go(list.neighbour(by)), { disabled: !list.neighbour(by) }));
    const link = button('Copy link', () => copy(`${location.href.split('#')[0]}#${linkTo(problem)}`, link));
    detail.replaceChildren(
      make('div', { class: 'bar' }, make('h3', { tabindex: '-1' }, make('bdi', {}, problem.name)), make('div', {}, ...steps, link)),
      ...questionBlock(problem), ...(part.answers.length ? answersPart(data, part.answers) : []),
      ...(part.completions.length ? completionsPart(data, part.completions) : []));
    arrive(detail, byUser);
  }

  const controls = filterControls(data, set);
  layOut(place, controls, told, list, detail);
  const box = find('input[name=q]', place);
  let waiting = 0;
  box.addEventListener('input', () => { clearTimeout(waiting); waiting = setTimeout(() => set({ q: box.value }), 30); });
  box.addEventListener('keydown', (event) => {
    if (event.key === 'ArrowDown') { event.preventDefault(); list.enter(); }
  });
  detail.addEventListener('keydown', (event) => { if (event.key === 'Escape') list.enter(); });

  /** What is shown where the address names no sample: one on which runs disagree, if there is one. */
  const first = () => data.problems.find(VERDICTS.disagree[1]) || data.problems.find((one) => one.answers.length) || data.problems[0];

  /** What the address says; one that names another part of the page says nothing about this one. */
  const follow = () => {
    if (location.hash && location.hash !== '#samples' && !location.hash.includes('=')) return;
    const { sample, ...others } = inAddress();
    filters = others;
    for (const control of place.querySelectorAll('[name]')) control.value = filters[control.name] || '';
    narrow();
    linked = byName.has(sample);
    show(linked ? byName.get(sample) : first(), false);
    if (sample !== undefined && !linked) detail.replaceChildren(make('p', { class: 'note' }, make('bdi', {}, `${sample} is not in this page.`)));
    if (sample !== undefined) place.scrollIntoView();
  };
  window.addEventListener('popstate', follow);
  narrow();
  show(first(), false);
  follow();
}

// ---- paths through the rounds ------------------------------------------------------------------------------------------

/** From 0 to 1, how well each exam or test of a path went. */
const scores = (path) => path.events.flatMap(([kind, , a, b, c]) => (kind === 'exam' ? [a / (b || 1)] : kind === 'test' ? [c] : []));
const change = (path) => { const all = scores(path); return all.length < 2 ? 0 : Math.sign(all[all.length - 1] - all[0]); };

/** An exam; mistakes that the teacher was shown stand beside what it wrote on them. */
function examStep([, round, right, asked, mistakes, good], path) {
  const badge = verdict(right === asked, `${right} of ${asked} right`);
  const shown = new Set(path.events.flatMap(([kind, of, , texts]) => (kind === 'feedback' && of === round ? texts : [])));
  const others = mistakes.filter((text) => !shown.has(text));
  const draws = others.map((text) => () => card('answer', verdict(false, 'wrong'), text, []));
  if (good.length) draws.push(() => card('answer', verdict(true, 'right'), good[0], []));
  const label = `${shown.size ? 'Other answers' : 'Answers'} (${draws.length})`;
  const more = draws.length ? make('details', { open: !shown.size }, make('summary', {}, label), cards(draws)) : '';
  return make('li', {}, make('h4', {}, `Exam before round ${round} `, badge), more);
}

function feedbackStep([, round, , mistakes, rationale, answer, kept, reason]) {
  const badge = kept === null ? verdict(null, 'not judged') : verdict(Boolean(kept), kept ? 'kept' : `refused: ${words(reason)}`);
  const shown = mistakes.map((text, number) => card(`the student's mistake${mistakes.length > 1 ? ` ${number + 1}` : ''}`, verdict(false, 'wrong'), text, []));
  const title = mistakes.length ? 'the teacher on it' : 'another rationale';
  return make('li', {}, make('h4', {}, `Learnt in round ${round}`), make('div', { class: 'cards' }, ...shown, card(title, badge, rationale, [`answer: ${String(answer ?? '').trim()}`])));
}

const testStep = ([, round, text, prediction, correct]) => make('li', {}, make('h4', {}, `Test after round ${round}`),
  make('div', { class: 'cards' }, card(`answer: ${prediction === null ? 'none found' : prediction}`, verdict(Boolean(correct), correct ? 'right' : 'wrong'), text, [])));

const STEPS = { exam: examStep, feedback: feedbackStep, test: testStep };

function pathBrowser(place, data) {
  const paths = data.problems.flatMap((problem) => problem.paths.map((path) => ({ problem, ...path })));
  const runs = [...new Set(paths.map((path) => path.run))].sort((a, b) => a - b);
  const filters = { run: String(runs[0]), kind: 'exam', change: '' };
  const told = make('p', { class: 'note', role: 'status' });
  const detail = make('div', { class: 'detail' });
  const describe = (path) => [path.problem.question ?? '(question unknown)', `${scores(path).map((score) => `${Math.round(100 * score)} %`).join(' → ')} · ${path.problem.name}`];
  const list = makeList('path-list', 'Paths', describe, (path) => show(path, true));

  function show(path, byUser) {
    list.choose(path);
    detail.replaceChildren(make('div', { class: 'bar' }, make('h3', { tabindex: '-1' }, make('bdi', {}, path.problem.name))),
      ...questionBlock(path.problem), make('ol', { class: 'steps' }, ...path.events.map((event) => STEPS[event[0]](event, path))));
    arrive(detail, byUser);
  }
  const narrow = (changed) => {
    Object.assign(filters, changed);
    const found = paths.filter((path) => String(path.run) === filters.run && (filters.change === '' || change(path) === Number(filters.change))
      && path.events.some(([kind]) => kind === 'test') === (filters.kind === 'test'));
    list.set(found);
    told.textContent = plural(found.length, 'problem');
    if (found.length) show(found[0], false); else detail.replaceChildren();
  };
  const control = (label, name, options) => choice(label, options, (event) => narrow({ [name]: event.target.value }), { name });
  layOut(place, [make('div', { class: 'filters' },
    control('Run', 'run', runs.map((run) => [String(run), data.runs[run].label])),
    control('Problems', 'kind', [['exam', 'trained on: exams and feedback'], ['test', 'of the test: answers after each round']]),
    control('Change from first to last', 'change', [['', 'all'], ['1', 'better'], ['0', 'neither'], ['-1', 'worse']])),
  ], told, list, detail);
  detail.addEventListener('keydown', (event) => { if (event.key === 'Escape') list.enter(); });
  narrow({});
}

// ---- start -------------------------------------------------------------------------------------------------------------

async function fillBrowsers() {
  const places = [...document.querySelectorAll('[data-browser]')];
  if (!places.length) return;
  try {
    const data = named(await inflate(find('#data').textContent));
    find('#data').remove(); // megabytes that are not needed twice
    for (const place of places) (place.dataset.browser === 'samples' ? sampleBrowser : pathBrowser)(place, data);
    const section = location.hash && !location.hash.includes('=') && document.getElementById(location.hash.slice(1));
    if (section) section.scrollIntoView(); // what stands above it has grown since the browser went there
  } catch (error) {
    for (const place of places) place.replaceChildren(make('p', { class: 'note' }, `The samples cannot be shown in this browser: ${error.message}`));
    throw error;
  }
}

function start() {
  const control = find('#theme');
  control.hidden = false;
  control.addEventListener('click', switchTheme);
  dark.addEventListener('change', () => showTheme(remembered()));
  showTheme(remembered());
  openForPrint();
  addCopyButtons();
  if (window.vegaEmbed) drawCharts();
  fillBrowsers();
}

showTheme(remembered()); // before anything is painted
document.addEventListener('DOMContentLoaded', start);
})();
