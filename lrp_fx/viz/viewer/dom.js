// Elements. Texts become text nodes: this page never parses HTML.

export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== false && value !== null) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

let ids = 0;

// A control with its label.
export function labelled(text, control) {
  control.id = `control-${++ids}`;
  return element("span", {}, element("label", { for: control.id }, `${text} `), control);
}

export function choice(options, chosen, change) {
  const select = element("select", { change: () => change(select.value) });
  for (const [value, text] of options) select.append(element("option", { value }, text));
  select.value = chosen;
  return select;
}

// A text as a name that can be seen: white space alone by its escapes, spaces or nothing as a dot.
export const visible = (text) => text.trim() || JSON.stringify(text.replace(/^ +| +$/g, "")).slice(1, -1) || "\u00b7";

// Text at the foot of the page, and text for screen readers.
export const readout = (text) => { document.getElementById("readout").textContent = text; };
export const say = (text) => { document.getElementById("said").textContent = text; };
