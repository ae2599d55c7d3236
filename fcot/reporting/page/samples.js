// The rationale browser.

const NAMES = {
  zero_shot: 'Zero-shot', zero_shot_cot: 'Zero-shot-CoT', few_shot_cot: 'Few-shot-CoT', fine_tune: 'Fine-tune',
  fine_tune_cot: 'Fine-tune-CoT', tailored: 'Tailored',
};

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
    const needles = needlesOf(query);
    const wanted = wantedRuns(data, filters);
    const test = verdictTest(filters.verdict || '');
    const found = from.filter((problem) => {
      if (filters.task && data.tasks[problem.task] !== filters.task) return false;
      const part = ofRuns(problem, wanted);
      if (wanted && !part.answers.length && !part.completions.length) return false;
      if (test && !test(part)) return false;
      if (filters.mark && !part.answers.some((answer) => answer.marks.includes(filters.mark))) return false;
      const text = hay.get(problem);
      return needles.every((needle) => text.includes(needle) || problem.name.toLowerCase().startsWith(needle));
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
      make('input', { type: 'search', name: 'q', autocomplete: 'off', spellcheck: 'false', placeholder: 'every word must occur, and every "phrase"' })),
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
    // One that nobody asked for goes; of another one the neighbours, and what is marked in it, are others now.
    show(linked ? open : found.length === data.problems.length ? first() : found[0], false);
    const less = found.length ? '' : ': fewer words or filters find more';
    told.textContent = `${plural(found.length, 'problem')}${found.length < data.problems.length ? ` of ${count(data.problems.length)}` : ''}${less}`;
  };
  const set = (changed) => {
    filters = { ...filters, ...changed };
    narrow();
    remember(true);
  };
  const go = (problem) => { if (!problem) return; linked = true; show(problem, true); remember(false); };

  function show(problem, byUser) {
    open = problem;
    list.choose(problem);
    if (!problem) { detail.replaceChildren(); return; }
    const part = ofRuns(problem, wantedRuns(data, filters));
    const steps = [['Previous', -1], ['Next', 1]].map(([label, by]) => button(label, () => go(list.neighbour(by)), { disabled: !list.neighbour(by) }));
    const link = button('Copy link', () => copy(`${location.href.split('#')[0]}#${linkTo(problem)}`, link));
    detail.replaceChildren(
      make('div', { class: 'bar' }, make('h3', { tabindex: '-1' }, make('bdi', {}, problem.name)), make('div', {}, ...steps, link)),
      ...questionBlock(problem), ...(part.answers.length ? answersPart(data, part.answers) : []),
      ...(part.completions.length ? completionsPart(data, part.completions) : []));
    highlight(detail, needlesOf(filters.q || ''));
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
    filters = {};
    for (const control of place.querySelectorAll('[name]')) {
      control.value = others[control.name] || '';
      if (control.selectedIndex === -1) control.value = ''; // a link to what is no longer a choice
      if (control.value) filters[control.name] = control.value;
    }
    linked = byName.has(sample);
    open = byName.get(sample);
    narrow();
    if (sample !== undefined && !linked) detail.replaceChildren(make('p', { class: 'note' }, make('bdi', {}, `${sample} is not in this page.`)));
    if (sample !== undefined || Object.keys(others).length) place.scrollIntoView();
    if (linked && detail.getBoundingClientRect().top > window.innerHeight * 0.6) detail.scrollIntoView(); // on a phone it is below the list
  };
  window.addEventListener('popstate', follow);
  narrow();
  follow();
}
