// The list of conversations on the left, which on a phone is a page of its own.

import { $, dressAvatar, dressIcon, h } from "./dom.js";
import { language, t } from "./i18n.js";
import { EVERYONE, clientOf, conversation, kindOf, nameOf, personId, roomId, store, unreadOfAll } from "./store.js";

const collator = () => new Intl.Collator(language);
const STATES = {
  connecting: "connecting", open: "open", waiting: "waiting", forced: "forcedState", replaced: "forcedState", refused: "refused",
};

export function drawState() {
  $("state").dataset.state = store.state;
  $("state").textContent = t(STATES[store.state]);
  $("banner").hidden = store.state !== "waiting";
  $("banner").textContent = t("lost");
  $("app").dataset.state = store.state;
}

export function drawLists() {
  if (!store.me) return;
  const myName = store.me.name;
  dressAvatar($("me-avatar"), store.me.id, myName);
  $("me-name").textContent = myName;

  $("everyone-list").replaceChildren(row(EVERYONE, t("everyone"), t("onlineCount", { n: store.online.size })));

  const { compare } = collator();
  const foreign = (name) => (store.joined.has(name) ? 0 : 1);
  const names = [...new Set([...store.joined, ...store.rooms.keys()])];
  names.sort((a, b) => foreign(a) - foreign(b) || compare(a, b));
  $("rooms").replaceChildren(...names.map((name) => roomRow(name)));

  const others = people();
  $("people").replaceChildren(...others.map((id) => personRow(id)));
  const there = others.filter((id) => store.online.has(id)).length;
  $("people-count").textContent = there ? String(there) : "";
  $("alone").hidden = others.length > 0 || store.state !== "open";

  const unread = unreadOfAll();
  document.title = (unread ? `(${unread}) ` : "") + "freeim";
}

// Those who are online first, then those who left in the middle of a conversation.
function people() {
  const talked = [...store.conversations.values()].filter((each) => kindOf(each.id) === "person" && each.items.length);
  const known = new Set([...store.online, ...talked.map((each) => clientOf(each.id))]);
  known.delete(store.me.id);
  const { compare } = collator();
  const rank = (id) => (store.online.has(id) ? 0 : 1);
  return [...known].sort((a, b) => rank(a) - rank(b) || compare(nameOf(a), nameOf(b)));
}

function roomRow(name) {
  const count = store.rooms.get(name) ?? 0;
  const node = row(roomId(name), name, t("members", { n: count }));
  if (!store.joined.has(name)) node.classList.add("foreign");
  return node;
}

function personRow(id) {
  const here = store.online.has(id);
  const node = row(personId(id), nameOf(id), t(here ? "online" : "offline"));
  node.classList.add(here ? "here" : "away");
  return node;
}

function row(id, title, sub) {
  const { unread } = conversation(id);
  const avatar = h("span", { "aria-hidden": "true" });
  dressConversation(avatar, id);
  const link = h(
    "a",
    { class: "row", href: `#${encodeURI(id)}` },
    avatar,
    h("span", { class: "row-text" }, h("span", { class: "row-title" }, title), h("span", { class: "row-sub" }, sub)),
    unread ? h("span", { class: "badge", "aria-label": t("unread", { n: unread }) }, String(unread)) : null,
  );
  if (store.open === id) link.setAttribute("aria-current", "page");
  return h("li", {}, link);
}

export function dressConversation(node, id) {
  const kind = kindOf(id);
  if (kind === "person") dressAvatar(node, clientOf(id), store.names.get(clientOf(id)));
  else dressIcon(node, kind);
}
