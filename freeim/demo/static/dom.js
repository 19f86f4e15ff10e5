// The document, in a few words. What people typed goes in as text, never as markup.

export const $ = (id) => document.getElementById(id);

export function h(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") node.className = value;
    else if (name.includes("-")) node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children.filter((each) => each !== null));
  return node;
}

export function icon(name, more = "") {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("class", `icon ${more}`);
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(space, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

// An initial on a colour that is the same for everybody who sees this person.
export function dressAvatar(node, id, name) {
  node.className = "avatar";
  node.style.setProperty("--hue", String(((id % 360) * 137) % 360));
  node.textContent = [...(name ?? "…")][0].toUpperCase();
}

export function dressIcon(node, name) {
  node.className = `avatar ${name}`;
  node.replaceChildren(icon(name));
}

// Shows a dialog and gives what was typed: submit(value) may throw, and its sentence is shown.
export function openDialog(dialog, submit, { closable = true } = {}) {
  const input = dialog.querySelector("input");
  const error = dialog.querySelector(".error");
  const cancel = dialog.querySelector("[data-close]");
  if (error) error.textContent = "";
  if (cancel) {
    cancel.hidden = !closable;
    cancel.onclick = () => dialog.close();
  }
  dialog.oncancel = (event) => closable || event.preventDefault();
  dialog.querySelector("form").onsubmit = async (event) => {
    event.preventDefault();
    try {
      await submit(input?.value.trim());
      dialog.close();
    } catch (failure) {
      if (!error) throw failure;
      error.textContent = failure.message;
      input.focus();
    }
  };
  if (!dialog.open) dialog.showModal();
  input?.select();
}
