// Charts, copy buttons and printing.

/** Chart colors are those of the text, so that charts need not be drawn again for another theme or for print. `room`: available pixels. */
function chartConfig(room) {
  const axis = { labelColor: 'currentColor', titleColor: 'currentColor', tickColor: 'currentColor', domainColor: 'currentColor',
    gridColor: 'currentColor', gridOpacity: 0.12, tickOpacity: 0.4, domainOpacity: 0.4, titleFontWeight: 'normal' };
  const labels = { labelColor: 'currentColor', titleColor: 'currentColor' };
  const below = room < 560 ? { orient: 'bottom', columns: 1 } : {}; // beside the plot, a legend would leave no room for it
  return {
    background: null, font: getComputedStyle(document.body).fontFamily, axis, legend: { ...labels, ...below }, header: labels,
    title: { color: 'currentColor', subtitleColor: 'currentColor', limit: room - 8 }, view: { stroke: null },
    text: { color: 'currentColor' }, rule: { color: 'currentColor' },
  };
}

/** The width of a chart with a single view. null: several views, or a width in steps; such a chart scrolls in its box. */
function ownWidth(spec) {
  const { row, column, facet } = spec.encoding || {};
  if (!(spec.mark || spec.layer) || row || column || facet || typeof spec.width === 'object') return null;
  return spec.width || 640;
}

/** The panels of a chart as separate specifications. They are drawn separately, so that they can wrap to the page's width. */
const panelsOf = ({ concat, columns, resolve, ...shared }) => (concat ? concat.map((panel) => ({ ...shared, ...panel })) : [shared]);

/** Draw a panel. If axes and legend make it too wide, the plot is made narrower. */
async function drawPanel(place, spec, room) {
  const options = { renderer: 'svg', actions: false, ast: true, config: chartConfig(room) }; // ast: without eval
  const width = ownWidth(spec);
  try {
    if (room < 560) { // limit the labels to the panel's width
      const { axis, legend, ...others } = spec.config || {};
      spec.config = { ...others, axis: { ...axis, labelLimit: 0.45 * room }, legend: { ...legend, labelLimit: 0.75 * room } };
    }
    if (width === null) { await window.vegaEmbed(place, spec, options); return; }
    let plotWidth = Math.min(width, room);
    for (let attempt = 0; attempt < 3; attempt++) {
      await window.vegaEmbed(place, { ...spec, width: plotWidth }, options);
      const excess = find('svg', place).getBoundingClientRect().width - room;
      if (excess <= 0 || plotWidth <= 100) return;
      plotWidth = Math.max(100, Math.floor(plotWidth - excess));
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
  let timer = 0;
  window.addEventListener('resize', () => { clearTimeout(timer); timer = setTimeout(drawChanged, 150); });
}

async function copy(text, control) {
  const label = control.textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch { // some browsers deny clipboard access to pages opened from a file
    const area = make('textarea', { class: 'hidden' });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand('copy');
    area.remove();
    control.focus();
  }
  control.textContent = 'Copied';
  announce('Copied');
  setTimeout(() => { control.textContent = label; }, 1500);
}

function addCopyButtons() {
  for (const box of document.querySelectorAll('.copied')) {
    const control = button('Copy', () => copy(find('code', box).textContent, control), { class: '' });
    box.append(control);
  }
}

/** Open folded blocks for printing, in browsers where a style sheet cannot. */
function openForPrint() {
  let opened = [];
  window.addEventListener('beforeprint', () => {
    opened = [...document.querySelectorAll('details:not([open])')];
    opened.forEach((details) => { details.open = true; });
  });
  window.addEventListener('afterprint', () => opened.forEach((details) => { details.open = false; }));
}
