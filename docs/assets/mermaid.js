// Loads the program that draws diagrams with the first diagram that is shown, from this site.
(() => {
  const address = new URL("mermaid/mermaid.esm.min.mjs", document.currentScript.src);
  // What this version of the program names otherwise than the theme expects.
  const colours = `
    .sectionTitle { fill: var(--md-mermaid-sequence-loop-fg-color); stroke: none }
    [id$="-arrowhead"] path { fill: var(--md-mermaid-sequence-message-line-color) }
    [id$="-crosshead"] path { stroke: var(--md-mermaid-sequence-message-line-color) }`;
  let settings = {};
  let loading;
  const load = () => (loading ??= import(address).then(({ default: mermaid }) => {
    mermaid.initialize({ ...settings, themeCSS: settings.themeCSS + colours });
    return mermaid;
  }));
  window.mermaid = {
    initialize: (given) => { settings = given; },
    render: async (...what) => (await load()).render(...what),
  };
})();
