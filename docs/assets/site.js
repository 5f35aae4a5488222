/* Names for what the theme leaves without one, and the keyboard's way into tables that scroll. */
const name = (selector, text) =>
  document.querySelectorAll(selector).forEach((element) => element.setAttribute("aria-label", text));

document$.subscribe(() => {
  name(".md-search[role=dialog], #__search", "Search");
  name("#__drawer", "Navigation");
  requestAnimationFrame(() => {
    for (const frame of document.querySelectorAll(".md-typeset__scrollwrap")) {
      if (frame.scrollWidth > frame.clientWidth) {
        frame.tabIndex = 0;
        frame.setAttribute("role", "group");
        frame.setAttribute("aria-label", "Table");
      }
    }
  });
});
