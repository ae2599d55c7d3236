// The rationale browser.

const NAMES = {
  zero_shot: 'Zero-shot', zero_shot_cot: 'Zero-shot-CoT', few_shot_cot: 'Few-shot-CoT', fine_tune: 'Fine-tune',
  fine_tune_cot: 'Fine-tune-CoT', tailored: 'Tailored', as_trained: 'As trained', on_policy: 'On-policy',
};

const countRight = (answers) => answers.reduce((n, answer) => n + answer.correct, 0);
const VERDICTS = {
  right: ['student right', (problem) => problem.answers.some((answer) => answer.correct)],
  wrong: ['student wrong', (problem) => problem.answers.some((answer) => !answer.correct)],
  disagree: ['runs disagree', (problem) => countRight(problem.answers) > 0 && countRight(problem.answers) < problem.answers.length],
  all_right: ['all runs right', (problem) => problem.answers.length > 0 && countRight(problem.answers) === problem.answers.length],
  all_wrong: ['all runs wrong', (problem) => problem.answers.length > 0 && countRight(problem.answers) === 0],
  kept: ['teacher: some kept', (problem) => problem.completions.some((completion) => completion.reason === null)],
  refused: ['teacher: some rejected', (problem) => problem.completions.some((completion) => completion.reason !== null)],
  marked: ['marked', null], // depends on the reader's marks
};

/** The predicate of a verdict filter; `refused:REASON` selects completions that were rejected for that reason. */
function verdictTest(name) {
  const reason = name.startsWith('refused:') ? name.slice(8) : null;
  return reason === null ? (VERDICTS[name] || [])[1] : (problem) => problem.completions.some((completion) => completion.reason === reason);
}

/** A problem's answers and completions that belong to the wanted runs; null wants all. */
function ofRuns(problem, wanted) {
  return wanted === null ? problem : {
    answers: problem.answers.filter((answer) => wanted.has(answer.run)),
    completions: problem.completions.filter((completion) => completion.runs.some((run) => wanted.has(run))),
  };
}

/** The numbers of the runs that pass the method and run filters; null without such a filter. */
function wantedRuns(data, filters) {
  if (!filters.method && !filters.run) return null;
  const numbers = data.runs.map((run, number) => ((!filters.method || run.method === filters.method) && (!filters.run || run.label === filters.run) ? number : -1));
  return new Set(numbers.filter((number) => number >= 0));
}

/** Return a function from filters to the matching problems. A query that extends the last one searches the last matches only. */
function makeSearch(data, marks) {
  const textOf = new Map(data.problems.map((problem) => [problem, searchableText(problem)]));
  let last = { query: '', fixed: '', matches: data.problems };
  return (filters) => {
    const { q = '', ...others } = filters;
    const query = q.toLowerCase();
    const fixed = JSON.stringify(others);
    const candidates = fixed === last.fixed && query.startsWith(last.query) ? last.matches : data.problems;
    const terms = searchTerms(query);
    const wanted = wantedRuns(data, filters);
    const test = filters.verdict === 'marked' ? null : verdictTest(filters.verdict || '');
    const matches = candidates.filter((problem) => {
      if (filters.task && data.tasks[problem.task] !== filters.task) return false;
      const part = ofRuns(problem, wanted);
      if (wanted && !part.answers.length && !part.completions.length) return false;
      if (test && !test(part)) return false;
      if (filters.verdict === 'marked' && !part.completions.some((completion) => marks.has(problem, completion))) return false;
      if (filters.mark && !part.answers.some((answer) => answer.marks.includes(filters.mark))) return false;
      const text = textOf.get(problem);
      return terms.every((term) => text.includes(term) || problem.name.toLowerCase().startsWith(term));
    });
    last = { query, fixed, matches };
    return matches;
  };
}

/** A row's two lines: the question, and the counts of right answers, kept and marked completions. */
function summary(problem, marks) {
  const parts = [];
  const marked = problem.completions.filter((completion) => marks.has(problem, completion)).length;
  const kept = problem.completions.filter((completion) => completion.reason === null).length;
  if (problem.answers.length) parts.push(`runs ${countRight(problem.answers)}/${problem.answers.length} right`);
  if (problem.completions.length) parts.push(`teacher ${kept}/${problem.completions.length} kept`);
  if (marked) parts.push(`${count(marked)} marked`);
  return [problem.question ?? '(question unknown)', [...parts, problem.name].join(' · ')];
}

function questionBlock(problem) {
  const unknown = 'The question is not in the files of these runs: none of them was tested on it.';
  return [
    problem.question === null ? make('p', { class: 'note' }, unknown) : make('p', { class: 'text question', dir: 'auto' }, problem.question),
    make('p', { class: 'gold' }, 'Gold answer: ', make('strong', {}, make('bdi', {}, problem.gold ?? 'none')),
      problem.id === null ? null : ' · id: ', problem.id === null ? null : make('bdi', {}, problem.id)),
  ];
}

/** Student answers side by side; steps that differ from the reference answer are marked. */
function answersPart(data, answers) {
  const place = make('div');
  const draw = (reference) => {
    const makers = answers.map((answer) => () => {
      const marked = answers.length < 2 ? new Set() : answer === reference
        ? (answers.length === 2 ? differing(answer.text.trim(), answers.find((other) => other !== answer).text.trim()) : new Set())
        : differing(answer.text.trim(), reference.text.trim());
      const notes = [
        `answer: ${answer.prediction === null ? 'none found' : answer.prediction} · ${plural(answer.tokens, 'token')}${answer.complete ? '' : ', cut off'}`,
        answer.marks.length ? `${answer.marks.map(words).join(', ')}${answer.equation ? ` (${answer.equation})` : ''}` : '',
      ];
      const compare = answers.length < 2 ? null : answer === reference ? make('p', { class: 'note' }, 'reference answer: the others are compared with it')
        : button('Compare with this', () => { draw(answer); announce('Reference answer changed'); });
      return card(data.runs[answer.run].label, verdict(Boolean(answer.correct), answer.correct ? 'right' : 'wrong'), answer.text, notes, compare, marked);
    });
    place.replaceChildren(cards(makers));
  };
  draw(answers.find((answer) => answer.correct) || answers[0]);
  const legend = answers.length < 2 ? null : make('p', { class: 'note' }, 'Marked: steps that differ from the reference answer. Equations are compared by their numbers, other sentences by their words.');
  return [make('h4', {}, 'Student answers'), legend, place].filter(Boolean);
}

/** A button that marks a completion; null where it cannot be marked. */
function markButton(marks, problem, completion) {
  if (!markable(completion)) return null;
  const control = button('', () => marks.toggle(problem, completion));
  const show = () => {
    const marked = marks.has(problem, completion);
    control.setAttribute('aria-pressed', String(marked));
    control.textContent = marked ? 'Marked' : 'Mark';
  };
  control.addEventListener('marks', show); // after any change of the marks
  show();
  return control;
}

function completionsPart(data, problem, completions, marks) {
  const ordered = [...completions].sort((a, b) => (a.reason !== null) - (b.reason !== null) || a.round - b.round);
  const makers = ordered.map((completion) => () => {
    const { index, round, text, prediction, reason, score, wrongStep, runs } = completion;
    const judged = wrongStep === 0 ? 'judge: all steps follow' : `judge: step ${wrongStep} is wrong`;
    const users = runs.length > 4 ? plural(runs.length, 'run') : runs.map((run) => data.runs[run].label).join('; ');
    return card(
      `completion ${index + 1}${round > 1 ? ` of round ${round}` : ''}`,
      verdict(reason === null, reason === null ? 'kept' : `rejected: ${words(reason)}`), text,
      [`answer: ${prediction === null ? 'none found' : prediction}`, (score ?? null) === null ? '' : `score: ${score} (lower is better)`,
        (wrongStep ?? null) === null ? '' : judged, runs.length === data.runs.length ? '' : `used by ${users}`],
      markButton(marks, problem, completion));
  });
  return [make('h4', {}, 'Teacher completions'), cards(makers)];
}

const linkTo = (problem) => `sample=${problem.name.split('/').map(encodeURIComponent).join('/')}`;

/** The names and values after # in the address; empty for the anchor of a section. */
const addressValues = () => (location.hash.includes('=') ? Object.fromEntries(new URLSearchParams(location.hash.slice(1))) : {});

function filterControls(data, set) {
  const reasons = [...new Set(data.problems.flatMap((problem) => problem.completions.map((completion) => completion.reason)))].filter((reason) => reason !== null).sort();
  const marks = [...new Set(data.problems.flatMap((problem) => problem.answers.flatMap((answer) => answer.marks)))].sort();
  const methods = [...new Set(data.runs.map((run) => run.method))];
  const verdicts = [...Object.entries(VERDICTS).map(([name, [label]]) => [name, label]), ...reasons.map((reason) => [`refused:${reason}`, `teacher: some rejected (${words(reason)})`])];
  const select = (name, label, options) => choice(label, [['', 'all'], ...options], (event) => set({ [name]: event.target.value }), { name });
  return [
    make('label', { class: 'search' }, 'Search questions, rationales and answers',
      make('input', { type: 'search', name: 'q', autocomplete: 'off', spellcheck: 'false', placeholder: 'words and "phrases", all of which must occur' })),
    make('div', { class: 'filters' }, select('task', 'Task', [...new Set(data.tasks)].map((task) => [task, task])),
    select('method', 'Method', methods.map((method) => [method, NAMES[method] || method])),
    select('run', 'Run', [...new Set(data.runs.map((run) => run.label))].map((label) => [label, label])),
    select('verdict', 'Verdict', verdicts),
    select('mark', 'Error', marks.map((mark) => [mark, words(mark)]))),
  ];
}

function sampleBrowser(place, data) {
  const marks = makeMarks(data, () => { controlsOfMarks.describe(); list.redraw(); redraw(); });
  const search = makeSearch(data, marks);
  const byName = new Map(data.problems.map((problem) => [problem.name, problem]));
  let filters = {};
  let open = null;
  let linked = false; // whether the address names the open problem
  const status = make('p', { class: 'note', role: 'status' });
  const detail = make('div', { class: 'detail' });
  let listed = [];
  const list = makeList('sample-list', 'Problems', (problem) => summary(problem, marks), (problem) => go(problem));
  const controlsOfMarks = markControls(data, marks, () => listed.map((problem) => [problem, ofRuns(problem, wantedRuns(data, filters)).completions]),
    () => wantedRuns(data, filters));

  const address = () => `#${[...(linked ? [linkTo(open)] : []), ...Object.entries(filters).filter(([, value]) => value).map(([name, value]) => `${name}=${encodeURIComponent(value)}`)].join('&')}`;
  const remember = (replace) => {
    const next = address() === '#' ? '#samples' : address();
    if (next !== location.hash) history[replace ? 'replaceState' : 'pushState'](null, '', next);
  };
  const applyFilters = () => {
    const matches = search(filters);
    listed = matches;
    list.set(matches);
    // A problem that the reader opened stays, and is drawn again: its neighbors and highlights have changed. Otherwise the first match is shown.
    show(linked ? open : matches.length === data.problems.length ? first() : matches[0], false);
    const hint = matches.length ? '' : ': use fewer words or filters';
    status.textContent = `${plural(matches.length, 'problem')}${matches.length < data.problems.length ? ` of ${count(data.problems.length)}` : ''}${hint}`;
  };
  const set = (changed) => {
    filters = { ...filters, ...changed };
    applyFilters();
    remember(true);
  };
  const go = (problem) => { if (!problem) return; linked = true; show(problem, true); remember(false); };

  function show(problem, byUser) {
    open = problem;
    list.choose(problem);
    if (!problem) { detail.replaceChildren(); return; }
    const part = ofRuns(problem, wantedRuns(data, filters));
    const steps = [['Previous', -1], ['Next', 1]].map(([label, by]) => button(label, () => go(list.neighbor(by)), { disabled: !list.neighbor(by) }));
    const link = button('Copy link', () => copy(`${location.href.split('#')[0]}#${linkTo(problem)}`, link));
    detail.replaceChildren(
      make('div', { class: 'bar' }, make('h3', { tabindex: '-1' }, make('bdi', {}, problem.name)), make('div', {}, ...steps, link)),
      ...questionBlock(problem), ...(part.answers.length ? answersPart(data, part.answers) : []),
      ...(part.completions.length ? completionsPart(data, problem, part.completions, marks) : []));
    highlight(detail, searchTerms(filters.q || ''));
    focusDetail(detail, byUser);
  }

  /** Draw the open problem's marks again. Its cards stay, so that the reader's place and focus do. */
  const redraw = () => { for (const control of detail.querySelectorAll('button[aria-pressed]')) control.dispatchEvent(new Event('marks')); };

  const hasCompletions = data.problems.some((problem) => problem.completions.some(markable));
  const controls = filterControls(data, set);
  layOut(place, hasCompletions ? [...controls, controlsOfMarks.bar] : controls, status, list, detail);
  const box = find('input[name=q]', place);
  let timer = 0;
  box.addEventListener('input', () => { clearTimeout(timer); timer = setTimeout(() => set({ q: box.value }), 30); });
  box.addEventListener('keydown', (event) => {
    if (event.key === 'ArrowDown') { event.preventDefault(); list.enter(); }
  });
  detail.addEventListener('keydown', (event) => { if (event.key === 'Escape') list.enter(); });

  /** The problem that is shown if the address names none: preferably one on which runs disagree. */
  const first = () => data.problems.find(VERDICTS.disagree[1]) || data.problems.find((problem) => problem.answers.length) || data.problems[0];

  /** Apply the filters and the sample in the address. The anchor of another section changes nothing here. */
  const followAddress = () => {
    if (location.hash && location.hash !== '#samples' && !location.hash.includes('=')) return;
    const { sample, ...others } = addressValues();
    filters = {};
    for (const control of place.querySelectorAll('[name]')) {
      control.value = others[control.name] || '';
      if (control.selectedIndex === -1) control.value = ''; // the link names a value that this report does not have
      if (control.value) filters[control.name] = control.value;
    }
    linked = byName.has(sample);
    open = byName.get(sample);
    applyFilters();
    if (sample !== undefined && !linked) detail.replaceChildren(make('p', { class: 'note' }, make('bdi', {}, `${sample} is not on this page.`)));
    if (sample !== undefined || Object.keys(others).length) place.scrollIntoView();
    if (linked && detail.getBoundingClientRect().top > window.innerHeight * 0.6) detail.scrollIntoView(); // on a phone it is below the list
  };
  window.addEventListener('popstate', followAddress);
  applyFilters();
  followAddress();
}
