// What arrives: messages, receipts, files, and the news of who comes and goes.

import { t } from "./i18n.js";
import { drawLists } from "./lists.js";
import { drawHead, drawItem } from "./log.js";
import { EVERYONE, add, called, conversation, later, nameOf, personId, roomId, store } from "./store.js";

const DELIVERED = "发送成功"; // what a receipt says; the other is 用户不在线

let notify = () => {};

export function setNotify(callback) {
  notify = callback;
}

// Anybody who reaches Redis can send anything; what is none of ours must not end the chat.
export function receive(message) {
  if (typeof message === "string") notify(message, EVERYONE);
  if (message === null || typeof message !== "object") return;
  try {
    if ("receipt" in message) receipt(message);
    else if (Object.hasOwn(kinds, message.type)) kinds[message.type](message);
  } catch {
    // it has the name of one of ours, and not the form
  }
}

const kinds = {
  online({ id, name }) {
    store.names.set(id, name);
    if (store.online.has(id)) return;
    store.online.add(id);
    if (id !== store.me.id) noteAbout(id, "came", { name: nameOf(id) });
    redraw();
  },

  offline({ id, name }) {
    if (!store.names.has(id)) store.names.set(id, name);
    const called = nameOf(id);
    if (!store.online.delete(id)) return;
    if (id !== store.me.id) noteAbout(id, "went", { name: called });
    redraw();
  },

  name({ id, name }) {
    const old = store.names.get(id);
    store.names.set(id, name);
    store.online.add(id);
    if (id === store.me.id) {
      store.me.name = name;
      if (old && old !== name) noteAbout(id, "youRenamed", { name });
    } else if (old && old !== name) noteAbout(id, "renamed", { old, name });
    redraw();
  },

  channels({ channels }) {
    store.rooms = new Map(channels.map((each) => [each.channel, each.online]));
    redraw();
  },

  joined: (message) => noteInRoom(message, "joined"),
  left: (message) => noteInRoom(message, "left"),

  room: (message) => arrive(roomId(message.channel), text(message)),
  everyone(message) {
    if (arrive(EVERYONE, text(message))) announce(EVERYONE, t("broadcastFrom", { name: senderOf(message) }), message.text);
  },
  direct(message) {
    const id = peerOf(message);
    if (arrive(id, text(message))) announce(id, t("from", { name: senderOf(message) }), message.text);
  },

  // A file comes as two messages with one key: that it is being sent, and where it is.
  "file-coming"(message) {
    const id = peerOf(message);
    if (arrive(id, file(message, "coming"))) notifyAway(id, t("fileFrom", { name: senderOf(message), file: message.file.name }));
  },
  file: (message) => arrive(peerOf(message), file(message, "ready")),
  "file-failed": (message) => arrive(peerOf(message), file(message, "failed")),
};

const senderOf = ({ from, name }) => called(from, name);
const peerOf = ({ from, to }) => personId(from === store.me.id ? to : from);

function text({ from, name, text, key, at }) {
  return { kind: "text", from, name, text, key, at, ...(from === store.me.id ? { status: "sent" } : {}) };
}

function file({ from, name, file, key, at }, state) {
  return { kind: "file", state, from, name, file, key, at, ...(from === store.me.id ? { status: "sent" } : {}) };
}

// The node answers a message with a receipt: the message, as it was sent, and whether its receiver had a connection.
function receipt({ content, receipt }) {
  const { key, to } = JSON.parse(content);
  const id = personId(to);
  const item = conversation(id).items.findLast((each) => each.key === key);
  if (!item) return;
  item.status = later(item.status, receipt === DELIVERED ? "delivered" : "absent");
  if (store.open === id) drawItem(item);
}

// Returns whether it is new, and from somebody else.
function arrive(id, item) {
  if (item.from !== store.me.id) store.names.set(item.from, item.name);
  const { item: kept, fresh } = add(id, item);
  const news = fresh && item.from !== store.me.id;
  const shown = store.open === id;
  if (news && !(shown && document.visibilityState === "visible")) conversation(id).unread++;
  if (shown) drawItem(kept);
  drawLists();
  return news;
}

function announce(id, head, body) {
  notifyAway(id, `${head}: ${body.length > 80 ? `${body.slice(0, 80)}…` : body}`);
}

function notifyAway(id, sentence) {
  if (store.open !== id) notify(sentence, id);
}

// Comings and goings are told to everybody, and where the one they are about has been seen.
function noteAbout(id, text, values) {
  for (const { id: place, faces } of [...store.conversations.values()]) {
    const here = place === EVERYONE || faces.has(id) || (place === personId(id) && conversation(place).items.length);
    if (here) note(place, text, values);
  }
}

function noteInRoom({ channel, from, name }, text) {
  if (from === store.me.id) return;
  store.names.set(from, name);
  conversation(roomId(channel)).faces.add(from);
  note(roomId(channel), text, { name: nameOf(from) });
}

function note(id, text, values) {
  const item = { kind: "note", text, values, at: Date.now() };
  add(id, item);
  if (store.open === id) drawItem(item);
}

function redraw() {
  drawLists();
  drawHead();
}
