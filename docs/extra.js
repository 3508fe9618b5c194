// What the theme does not do: a pasted message that the search understands, ticks that stay, tables for the keyboard,
// options in one piece.

// Colons, quotes and the like are commands of the search; in a pasted message they are only noise.
// A word of a longer message is meant as it stands ("^1"), the last one may be still being typed.
const searchable = (text) => {
  const words = (text.match(/\w+/g) ?? []).filter((word) => !/^\d{0,2}$|^.$/.test(word));
  return words.map((word, place) => (words.length > 3 && place < words.length - 1 ? `${word}^1` : word)).join(" ");
};

const search = document.querySelector("[data-md-component=search-query]");
const typed = Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value");
Object.defineProperty(search, "value", {
  get: () => searchable(typed.get.call(search)),
  set: (text) => typed.set.call(search, text),
});
// The theme waits for a key, but a phone pastes without one.
search.addEventListener("input", () => search.dispatchEvent(new Event("keyup")));

// A tick stays in this browser, under the name that its box has.
const remember = (box) => {
  const key = `tick ${box.dataset.tick}`;
  box.checked = localStorage.getItem(key) !== null;
  box.addEventListener("change", () => (box.checked ? localStorage.setItem(key, "") : localStorage.removeItem(key)));
};

// What scrolls can be reached with the keyboard, and only that.
const reachable = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    const scrolls = target.scrollWidth > target.clientWidth || target.scrollHeight > target.clientHeight;
    if (scrolls) target.tabIndex = 0;
    else target.removeAttribute("tabindex");
  }
});

addEventListener("DOMContentLoaded", () => {
  // The theme opens its menu and its search on a phone by labels, which the Tab key passes by.
  for (const [name, says] of Object.entries({ __drawer: "Menu", __search: "Search" })) {
    const button = document.querySelector(`.md-header__button[for=${name}]`);
    Object.assign(button, { tabIndex: 0, role: "button", ariaLabel: says });
  }
  document.querySelectorAll("[data-tick]").forEach(remember);
  // Who comes back after a year begins with an empty list.
  for (const list of document.querySelectorAll("ul:has(> li > label > [data-tick])")) {
    const ticks = [...list.querySelectorAll("[data-tick]")];
    const button = Object.assign(document.createElement("button"), { type: "button", className: "untick", textContent: "Untick all" });
    const show = () => (button.hidden = !ticks.some((tick) => tick.checked));
    button.addEventListener("click", () => {
      ticks.filter((tick) => tick.checked).forEach((tick) => tick.click());
      ticks[0].focus();
    });
    list.addEventListener("change", show);
    list.after(button);
    show();
  }
  for (const box of document.querySelectorAll(".md-typeset__scrollwrap, .md-typeset .highlight")) reachable.observe(box);
  // An option is not torn apart after its dashes: it goes to the next line whole.
  for (const code of document.querySelectorAll(".md-typeset :not(pre) > code:not(:has(*))")) {
    code.innerHTML = code.innerHTML.replace(/(?<=^|\s)--\w\S*/g, (option) => `<span class="option">${option}</span>`);
  }
  // A phone shows a row as a small card; each value then says what it is.
  for (const table of document.querySelectorAll(".md-typeset table")) {
    const names = [...table.querySelectorAll("th")].map((head) => head.textContent);
    for (const row of table.tBodies[0].rows) [...row.cells].forEach((cell, place) => (cell.dataset.name = names[place]));
  }
});
