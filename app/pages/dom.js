/** Elements from values. Texts become text nodes, never markup. */

export const $ = (id) => document.getElementById(id);

/** `properties`: of the element; `class`, `data-*`, `aria-*` and `role` are attributes. */
export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key === "class" || key === "role" || key.includes("-")) made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** One stop of the Tab key for all `items` of `group`; the arrow keys, Home and End go from one to the next. */
export function arrows(group, items, active = 0) {
  items.forEach((item, index) => (item.tabIndex = index === active ? 0 : -1));
  group.addEventListener("keydown", (event) => {
    const at = items.indexOf(document.activeElement);
    const steps = { ArrowDown: at + 1, ArrowRight: at + 1, ArrowUp: at - 1, ArrowLeft: at - 1, Home: 0, End: items.length - 1 };
    if (at < 0 || !(event.key in steps)) return;
    event.preventDefault();
    const next = items[Math.min(items.length - 1, Math.max(0, steps[event.key]))];
    items.forEach((item) => (item.tabIndex = item === next ? 0 : -1));
    next.focus();
  });
}

/** Into the clipboard; without one, as on plain HTTP, by way of a selection. */
export async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = element("textarea", { value: text, class: "hidden" });
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
