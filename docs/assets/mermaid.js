// Loads the program that draws diagrams with the first diagram that is shown, from this site.
(() => {
  const address = new URL("mermaid/mermaid.esm.min.mjs", document.currentScript.src);
  let settings = {};
  let loading;
  const load = () => (loading ??= import(address).then(({ default: mermaid }) => {
    mermaid.initialize(settings);
    return mermaid;
  }));
  window.mermaid = {
    initialize: (given) => { settings = given; },
    render: async (...what) => (await load()).render(...what),
  };
})();
