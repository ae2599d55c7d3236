// Start: set the theme before anything is painted, and build the rest when the page has loaded.

async function fillBrowsers() {
  const places = [...document.querySelectorAll('[data-browser]')];
  if (!places.length) return;
  try {
    const data = toObjects(await inflate(find('#data').textContent));
    find('#data').remove(); // frees megabytes: the parsed data replaces them
    for (const place of places) (place.dataset.browser === 'samples' ? sampleBrowser : pathBrowser)(place, data);
    const section = location.hash && !location.hash.includes('=') && document.getElementById(location.hash.slice(1));
    if (section) section.scrollIntoView(); // the sections above it have grown since the browser scrolled there
  } catch (error) {
    for (const place of places) place.replaceChildren(make('p', { class: 'note' }, `The samples cannot be shown in this browser: ${error.message}`));
    throw error;
  }
}

function start() {
  const control = find('#theme');
  control.hidden = false;
  control.addEventListener('click', switchTheme);
  dark.addEventListener('change', () => showTheme(storedTheme()));
  showTheme(storedTheme());
  openForPrint();
  addCopyButtons();
  if (window.vegaEmbed) drawCharts();
  fillBrowsers();
}

showTheme(storedTheme()); // before anything is painted
document.addEventListener('DOMContentLoaded', start);
