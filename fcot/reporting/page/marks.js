// Marked completions: the reader's choice. It stays in this browser, and is saved as a file that curation.golden reads.

/** A number that differs between texts, as far as one page needs it (FNV-1a). */
function hashOf(text) {
  let hash = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
  return (hash >>> 0).toString(36);
}

/** Only completions of round 1 have a number that curation.golden knows. */
const markable = (completion) => completion.round === 1;

/** The marks of a page. `onchange` is called after each change. */
function makeMarks(data, onchange) {
  const place = `fcot-marks ${location.pathname}`;
  // A mark names its text, so that it never belongs to another completion after the page was made again.
  const keyOf = (problem, completion) => `${completion.index}:${hashOf(`${problem.question}\n${completion.text}`)}`;
  let keys = new Set();
  try { keys = new Set(JSON.parse(localStorage.getItem(place) || '[]')); } catch { /* storage is denied or damaged: no marks */ }
  const changed = () => {
    try { localStorage.setItem(place, JSON.stringify([...keys])); } catch { /* storage is denied: the marks end with this visit */ }
    onchange();
  };
  const has = (problem, completion) => markable(completion) && keys.has(keyOf(problem, completion));
  return {
    has,
    any: (problem) => problem.completions.some((completion) => has(problem, completion)),
    toggle: (problem, completion) => {
      const key = keyOf(problem, completion);
      if (!keys.delete(key)) keys.add(key);
      changed();
    },
    /** Mark the completions of some problems that curation kept; `parts` are problems with the completions that are shown. */
    addKept: (parts) => {
      for (const [problem, completions] of parts) {
        for (const completion of completions) if (markable(completion) && completion.reason === null) keys.add(keyOf(problem, completion));
      }
      changed();
    },
    clear: () => { keys.clear(); changed(); },
    /** All marked completions of the page, with their problems. */
    list: () => data.problems.flatMap((problem) => problem.completions.filter((completion) => has(problem, completion)).map((completion) => ({ problem, completion }))),
  };
}

const countMarks = (marks) => `${plural(marks.length, 'completion')} of ${plural(new Set(marks.map(({ problem }) => problem)).size, 'problem')}`;

/** The file for curation.golden: rows as in curated.jsonl, by which a completion is found although rows of the data were moved. */
function goldenFile(marks) {
  return marks.map(({ problem, completion }) => `${JSON.stringify({
    sample_index: Number(problem.name.match(/\/(-?\d+)(?:~\d+)?$/)[1]), completion_index: completion.index,
    ...(problem.question === null ? {} : { question: problem.question }), ...(problem.id === null ? {} : { id: problem.id }),
  })}\n`).join('');
}

/** Save the marks as a file, or say why not. Returns what to do next. */
function saveMarks(data, marks) {
  const runs = data.runs.map((run, number) => number).filter((number) => marks.every(({ completion }) => completion.runs.includes(number)));
  if (!marks.length) return 'Nothing is marked: open a problem and mark its completions.';
  if (!runs.length) return 'The marked completions are of several runs: choose one under Run, then save its marks.';
  const name = `golden-${data.runs[runs[0]].task.replace(/[^\w.-]/g, '_')}.jsonl`;
  const link = make('a', { href: URL.createObjectURL(new Blob([goldenFile(marks)], { type: 'application/jsonl' })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  const rejected = marks.filter(({ completion }) => completion.reason !== null).length;
  const filters = rejected ? ` "curation.filters=[golden]" (curation had rejected ${rejected} of them)` : '';
  return `Saved ${countMarks(marks)}. To train on them, add to the run's command: curation=golden curation.golden=${name}${filters}`;
}

/** The controls above the list. `shown()` gives the problems in the list with their visible completions, `wanted()` the filtered runs. */
function markControls(data, marks, shown, wanted) {
  const status = make('p', { class: 'note', role: 'status' });
  const inScope = () => marks.list().filter(({ completion }) => wanted() === null || completion.runs.some((run) => wanted().has(run)));
  const describe = () => { status.textContent = `${countMarks(marks.list())} marked`; };
  const bar = make('div', { class: 'marks' }, status, make('div', {},
    make('button', { type: 'button', onclick: () => marks.addKept(shown()) }, 'Mark what curation kept'),
    make('button', { type: 'button', onclick: () => marks.clear() }, 'Clear marks'),
    make('button', { type: 'button', onclick: () => { status.textContent = saveMarks(data, inScope()); } }, 'Save marks')));
  describe();
  return { bar, describe };
}
