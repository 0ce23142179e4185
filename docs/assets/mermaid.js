// Loads the program that draws diagrams with the first diagram that is shown, from this site.
(() => {
  const address = new URL("mermaid/mermaid.esm.min.mjs", document.currentScript.src);
  // What this version of the program names otherwise than the theme expects.
  const colours = `
    .sectionTitle { fill: var(--md-mermaid-sequence-loop-fg-color); stroke: none }
    [id$="-arrowhead"] path { fill: var(--md-mermaid-sequence-message-line-color) }
    [id$="-crosshead"] path { stroke: var(--md-mermaid-sequence-message-line-color) }`;
  // Diagrams shrink with the window, but not until their text cannot be read: then they scroll.
  const legible = (drawn) => {
    const width = Math.min(640, 0.75 * drawn.svg.match(/max-width: ([\d.]+)px/)?.[1] || 0);
    const scrolls = width > document.querySelector("article").clientWidth;
    const svg = drawn.svg.replace("max-width:", `min-width: ${width}px; max-width:`);
    return { ...drawn, svg: `<div style="overflow-x: auto"${scrolls ? " tabindex=0" : ""}>${svg}</div>` };
  };
  let settings = {};
  let loading;
  const load = () => (loading ??= import(address).then(({ default: mermaid }) => {
    mermaid.initialize({ ...settings, themeCSS: settings.themeCSS + colours });
    return mermaid;
  }));
  window.mermaid = {
    initialize: (given) => { settings = given; },
    render: async (...what) => legible(await (await load()).render(...what)),
  };
})();
