// Charts, code to be copied, and paper.

/** Colours follow the text's, so that themes and print need no second drawing. */
function chartConfig(room) {
  const axis = { labelColor: 'currentColor', titleColor: 'currentColor', tickColor: 'currentColor', domainColor: 'currentColor',
    gridColor: 'currentColor', gridOpacity: 0.12, tickOpacity: 0.4, domainOpacity: 0.4, titleFontWeight: 'normal' };
  const named = { labelColor: 'currentColor', titleColor: 'currentColor' };
  const below = room < 560 ? { orient: 'bottom', columns: 1 } : {}; // beside the picture there would be no picture left
  return {
    background: null, font: getComputedStyle(document.body).fontFamily, axis, legend: { ...named, ...below }, header: named,
    title: { color: 'currentColor', subtitleColor: 'currentColor', limit: room - 8 }, view: { stroke: null },
    text: { color: 'currentColor' }, rule: { color: 'currentColor' },
  };
}

/** The width a chart of one view asks for; null for one of several views, or of steps, which scrolls in its box. */
function ownWidth(spec) {
  const { row, column, facet } = spec.encoding || {};
  if (!(spec.mark || spec.layer) || row || column || facet || typeof spec.width === 'object') return null;
  return spec.width || 640;
}

/** The pictures of a chart, each of which is drawn alone: they lie beside each other where there is room. */
const panelsOf = ({ concat, columns, resolve, ...shared }) => (concat ? concat.map((panel) => ({ ...shared, ...panel })) : [shared]);

/** Draw one; what axes and legend take too much is taken from the width of the picture. */
async function drawPanel(place, spec, room) {
  const options = { renderer: 'svg', actions: false, ast: true, config: chartConfig(room) }; // ast: without eval
  const width = ownWidth(spec);
  try {
    if (room < 560) { // the picture's words have as much room as it has
      const { axis, legend, ...others } = spec.config || {};
      spec.config = { ...others, axis: { ...axis, labelLimit: 0.45 * room }, legend: { ...legend, labelLimit: 0.75 * room } };
    }
    if (width === null) { await window.vegaEmbed(place, spec, options); return; }
    let fits = Math.min(width, room);
    for (let tries = 0; tries < 3; tries++) {
      await window.vegaEmbed(place, { ...spec, width: fits }, options);
      const over = find('svg', place).getBoundingClientRect().width - room;
      if (over <= 0 || fits <= 100) return;
      fits = Math.max(100, Math.floor(fits - over));
    }
  } catch (error) {
    place.replaceChildren(make('p', { class: 'note' }, `This chart cannot be drawn: ${error.message}`));
  }
}

function drawChart(place) {
  const panels = panelsOf(JSON.parse(find('script', place.parentElement).textContent));
  const room = place.clientWidth;
  place.replaceChildren(...panels.map((spec) => { const panel = make('div'); drawPanel(panel, spec, room); return panel; }));
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
