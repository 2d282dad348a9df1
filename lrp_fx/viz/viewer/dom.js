// Elements. Texts become text nodes: nothing in this page parses html.

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value !== false && value !== null) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
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

// Words for the eye at the foot of the page, and words that a screen reader says.
export const readout = (text) => { document.getElementById("readout").textContent = text; };
export const say = (text) => { document.getElementById("said").textContent = text; };
