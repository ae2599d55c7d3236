// The browser of paths through the rounds.

/** The share of right answers, 0 to 1, in each exam or test of a path. */
const scores = (path) => path.events.flatMap(([kind, , a, b, c]) => (kind === 'exam' ? [a / (b || 1)] : kind === 'test' ? [c] : []));
const change = (path) => { const all = scores(path); return all.length < 2 ? 0 : Math.sign(all[all.length - 1] - all[0]); };

/** An exam with the student's answers, except mistakes that were sent to the teacher: these are shown with its feedback. */
function examStep([, round, right, total, mistakes, rightAnswers], path) {
  const badge = verdict(right === total, `${right} of ${total} right`);
  const sent = new Set(path.events.flatMap(([kind, of, , texts]) => (kind === 'feedback' && of === round ? texts : [])));
  const others = mistakes.filter((text) => !sent.has(text));
  const makers = others.map((text) => () => card('answer', verdict(false, 'wrong'), text, []));
  if (rightAnswers.length) makers.push(() => card('answer', verdict(true, 'right'), rightAnswers[0], []));
  const label = `${sent.size ? 'Other answers' : 'Answers'} (${makers.length})`;
  const answers = makers.length ? make('details', { open: !sent.size }, make('summary', {}, label), cards(makers)) : '';
  return make('li', {}, make('h4', {}, `Exam before round ${round} `, badge), answers);
}

function feedbackStep([, round, , mistakes, rationale, answer, kept, reason]) {
  const badge = kept === null ? verdict(null, 'no verdict') : verdict(Boolean(kept), kept ? 'kept' : `rejected: ${words(reason)}`);
  const mistakeCards = mistakes.map((text, number) => card(`the student's mistake${mistakes.length > 1 ? ` ${number + 1}` : ''}`, verdict(false, 'wrong'), text, []));
  const title = mistakes.length ? "the teacher's feedback" : 'another rationale';
  return make('li', {}, make('h4', {}, `Learned in round ${round}`), make('div', { class: 'cards' }, ...mistakeCards, card(title, badge, rationale, [`answer: ${String(answer ?? '').trim()}`])));
}

const testStep = ([, round, text, prediction, correct]) => make('li', {}, make('h4', {}, `Test after round ${round}`),
  make('div', { class: 'cards' }, card(`answer: ${prediction === null ? 'none found' : prediction}`, verdict(Boolean(correct), correct ? 'right' : 'wrong'), text, [])));

const STEPS = { exam: examStep, feedback: feedbackStep, test: testStep };

function pathBrowser(place, data) {
  const paths = data.problems.flatMap((problem) => problem.paths.map((path) => ({ problem, ...path })));
  const runs = [...new Set(paths.map((path) => path.run))].sort((a, b) => a - b);
  const filters = { run: String(runs[0]), kind: 'exam', change: '' };
  const status = make('p', { class: 'note', role: 'status' });
  const detail = make('div', { class: 'detail' });
  const describe = (path) => [path.problem.question ?? '(question unknown)', `${scores(path).map((score) => `${Math.round(100 * score)} %`).join(' → ')} · ${path.problem.name}`];
  const list = makeList('path-list', 'Paths', describe, (path) => show(path, true));

  function show(path, byUser) {
    list.choose(path);
    detail.replaceChildren(make('div', { class: 'bar' }, make('h3', { tabindex: '-1' }, make('bdi', {}, path.problem.name))),
      ...questionBlock(path.problem), make('ol', { class: 'steps' }, ...path.events.map((event) => STEPS[event[0]](event, path))));
    focusDetail(detail, byUser);
  }
  const applyFilters = (changed) => {
    Object.assign(filters, changed);
    const matches = paths.filter((path) => String(path.run) === filters.run && (filters.change === '' || change(path) === Number(filters.change))
      && path.events.some(([kind]) => kind === 'test') === (filters.kind === 'test'));
    list.set(matches);
    status.textContent = plural(matches.length, 'problem');
    if (matches.length) show(matches[0], false); else detail.replaceChildren();
  };
  const control = (label, name, options) => choice(label, options, (event) => applyFilters({ [name]: event.target.value }), { name });
  layOut(place, [make('div', { class: 'filters' },
    control('Run', 'run', runs.map((run) => [String(run), data.runs[run].label])),
    control('Problems', 'kind', [['exam', 'train problems: exams and feedback'], ['test', 'test problems: answers after each round']]),
    control('Change from first to last', 'change', [['', 'all'], ['1', 'better'], ['0', 'unchanged'], ['-1', 'worse']])),
  ], status, list, detail);
  detail.addEventListener('keydown', (event) => { if (event.key === 'Escape') list.enter(); });
  applyFilters({});
}
