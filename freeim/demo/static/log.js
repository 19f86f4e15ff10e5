// The conversation that is shown: its head, its messages, and what is under them.

import { $, dressAvatar, h, icon } from "./dom.js";
import { size, t, time } from "./i18n.js";
import { dressConversation } from "./lists.js";
import { EVERYONE, called, clientOf, conversation, kindOf, nameOf, store, subjectOf } from "./store.js";

const GROUPED = 5 * 60_000; // messages of one person within this time stand together
const nodes = new WeakMap();
let again = () => {};

export function onAgain(callback) {
  again = callback;
}

// Whether one can write here: not in a room that one is not in.
export const isStranger = (id) => kindOf(id) === "room" && !store.joined.has(subjectOf(id));

export function drawHead() {
  const id = store.open;
  $("app").dataset.pane = id ? "chat" : "list";
  const kind = kindOf(id);
  const shown = id || EVERYONE;
  $("chat-avatar").replaceChildren();
  dressConversation($("chat-avatar"), shown);
  $("chat-title").textContent = titleOf(shown);
  $("chat-sub").textContent = subOf(shown);
  $("chat-sub").className = kind === "person" ? (store.online.has(clientOf(id)) ? "here" : "away") : "";
  const stranger = isStranger(shown);
  $("leave").hidden = kind !== "room" || stranger;
  $("attach").hidden = kind !== "person";
  $("composer").hidden = stranger;
  $("joiner").hidden = !stranger;
  if (stranger) $("join").textContent = t("joinRoom", { room: subjectOf(shown) });
  drawSend();
}

export function drawSend() {
  const away = kindOf(store.open) === "person" && !store.online.has(clientOf(store.open));
  $("send").disabled = store.state !== "open" || !$("text").value.trim();
  $("attach").disabled = store.state !== "open" || away;
  $("join").disabled = $("leave").disabled = store.state !== "open";
}

function titleOf(id) {
  if (id === EVERYONE) return t("everyone");
  return kindOf(id) === "room" ? subjectOf(id) : nameOf(clientOf(id));
}

function subOf(id) {
  if (id === EVERYONE) return t("onlineCount", { n: store.online.size });
  if (kindOf(id) === "room") return t("members", { n: store.rooms.get(subjectOf(id)) ?? 0 });
  return t(store.online.has(clientOf(id)) ? "online" : "offline");
}

export function drawLog() {
  const log = $("log");
  const { items } = conversation(store.open || EVERYONE);
  log.setAttribute("aria-live", "off"); // what was said before is not news
  log.replaceChildren(...(items.length ? items.map((item, index) => draw(item, items[index - 1])) : [empty()]));
  log.scrollTop = log.scrollHeight;
  setTimeout(() => log.setAttribute("aria-live", "polite"), 100);
}

// Draw a new item of the conversation that is shown, or one of it that has changed.
export function drawItem(item) {
  const log = $("log");
  const { items } = conversation(store.open || EVERYONE);
  const index = items.lastIndexOf(item);
  if (index < 0) return; // so old that it is gone
  const low = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
  const old = nodes.get(item);
  if (items.length === 1) log.replaceChildren();
  const node = draw(item, items[index - 1]);
  if (old?.isConnected) old.replaceWith(node);
  else log.append(node);
  while (log.children.length > items.length) log.firstChild.remove(); // what the store has let go
  if (low || item.from === store.me.id) log.scrollTop = log.scrollHeight;
}

function draw(item, before) {
  const node = item.kind === "note" ? note(item) : message(item, before);
  nodes.set(item, node);
  return node;
}

function note(item) {
  return h("p", { class: "note" }, t(item.text, item.values), h("time", {}, time(item.at)));
}

function message(item, before) {
  const mine = item.from === store.me.id;
  const follows = before?.from === item.from && before.kind !== "note" && item.at - before.at < GROUPED;
  const node = h("article", { class: `message${mine ? " mine" : ""}${follows ? " follows" : ""}` });
  if (!mine) {
    const avatar = h("span", { "aria-hidden": "true" });
    dressAvatar(avatar, item.from, item.name);
    node.append(avatar);
  }
  const body = h("div", { class: "body" });
  if (!follows || mine) {
    body.append(h("p", { class: mine ? "who hidden" : "who" }, mine ? t("you") : called(item.from, item.name)));
  }
  body.append(item.kind === "file" ? file(item, mine) : h("p", { class: "bubble", dir: "auto" }, item.text));
  const meta = h("p", { class: "meta" }, h("time", {}, time(item.at)));
  if (mine && item.status) meta.append(status(item));
  body.append(meta);
  node.append(body);
  return node;
}

function status(item) {
  const node = h("span", { class: `status ${item.status}` }, t(item.status));
  if (item.status !== "failed") return node;
  const button = h("button", { type: "button", class: "link" }, t("again"));
  button.onclick = () => again(item);
  return h("span", {}, node, item.why ? ` ${item.why}` : "", " ", button);
}

function file(item, mine) {
  const { name, size: bytes, url } = item.file;
  const states = { coming: mine ? "fileSelf" : "fileComing", failed: "fileFailed" };
  const about = [bytes === null ? null : size(bytes), states[item.state] ? t(states[item.state]) : null];
  const card = h(
    item.state === "ready" ? "a" : "div",
    { class: `bubble file ${item.state}` },
    h("span", { class: "file-icon" }, icon(item.state === "ready" ? "down" : "file")),
    h(
      "span",
      { class: "file-text" },
      h("span", { class: "file-name", dir: "auto" }, name),
      h("span", { class: "file-sub" }, about.filter(Boolean).join(" · ")),
    ),
  );
  // Only an address of this app: what else a message might hold is no link.
  if (item.state === "ready" && /^\/files\/[\w-]+$/.test(url)) {
    card.href = url;
    card.download = name;
    card.setAttribute("aria-label", t("download", { file: name }));
  }
  return card;
}

function empty() {
  const id = store.open || EVERYONE;
  const kind = isStranger(id) ? "Stranger" : { everyone: "Everyone", room: "Room", person: "Person" }[kindOf(id)];
  const avatar = h("span", { "aria-hidden": "true" });
  dressConversation(avatar, id);
  return h(
    "div",
    { class: "empty" },
    avatar,
    h("p", { class: "empty-title" }, t(`empty${kind}`, { name: titleOf(id) })),
    h("p", {}, t(`empty${kind}Lead`)),
  );
}
