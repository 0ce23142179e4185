// What the theme leaves out for keyboards and screen readers. `document$` emits every page shown.
document$.subscribe(() => {
  for (const region of document.querySelectorAll("pre > code, .nb-output pre, .md-typeset__scrollwrap")) {
    if (region.scrollWidth > region.clientWidth) region.tabIndex = 0;
  }
  document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
});
// The button of each code block comes in a landmark without a name, once the block has been drawn.
new MutationObserver(() => {
  for (const part of document.querySelectorAll("nav.md-code__nav")) part.role = "none";
}).observe(document.body, { childList: true, subtree: true });
