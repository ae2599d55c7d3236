// The browser of paths through the rounds.

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
