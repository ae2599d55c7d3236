// What is done first and what when the page is there.

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
