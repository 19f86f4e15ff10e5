// Puts the page together: what the node pushes, what the user does, and what is shown.

import { newKey, post, upload, whoAmI } from "./api.js";
import { $, h, openDialog } from "./dom.js";
import { size, switchLanguage, t, tFailure, translatePage } from "./i18n.js";
import { receive, setNotify } from "./inbox.js";
import { drawLists, drawState } from "./lists.js";
import { drawHead, drawItem, drawLog, drawSend, onAgain } from "./log.js";
import { Connection } from "./socket.js";
import {
  EVERYONE, FIRST_ROOM, add, clientOf, conversation, kindOf, later, rememberRooms, rememberedRooms, roomId, store,
  subjectOf,
} from "./store.js";

const connection = new Connection(told, heard);

// The connection

function told(state, error) {
  store.state = state === "open" ? "connecting" : state; // connected for us once the app has told what we missed
  if (state === "open") {
    store.me = connection.me;
    store.names.set(store.me.id, store.me.name);
    sync();
  } else if (state === "forced" || state === "replaced") {
    openDialog($(`${state}-dialog`), () => void connection.connect(), { closable: false });
  } else if (state === "refused") {
    askName(tFailure(error, store.limits));
  }
  drawState();
  drawSend();
}

// What is pushed while the app is asked comes after its answer.
let held = null;

function heard(message) {
  if (message?.type === "who") setTimeout(sync, Math.random() * 500); // a new app: not all pages at once
  else if (held) held.push(message);
  else receive(message);
}

// Introduce this page to the app, learn what it cannot have heard, and come back to the rooms.
async function sync() {
  if (held || !connection.socket) return;
  held = [];
  let delay = 0;
  try {
    const answer = await post("/me/hello");
    store.online = new Set(answer.people.map((each) => each.id));
    for (const { id, name } of answer.people) if (name) store.names.set(id, name);
    store.rooms = new Map(answer.channels.map((each) => [each.channel, each.online]));
    const remembered = store.joined.size ? [...store.joined] : rememberedRooms();
    const missing = (remembered ?? [FIRST_ROOM]).filter((room) => !answer.joined.includes(room));
    store.joined = new Set([...answer.joined, ...missing]); // all, so that those that fail now are asked for again
    for (const channel of missing) await comeBack(channel, remembered !== null);
    rememberRooms();
  } catch (error) {
    if (error.status === 401) connection.refuse(error);
    else delay = 1000;
  }
  const waiting = held;
  held = null;
  if (connection.socket) store.state = "open";
  for (const message of waiting) receive(message);
  drawAll();
  if (delay) setTimeout(sync, delay);
}

// A room that the app refuses is forgotten: to ask for it again would not help.
async function comeBack(channel, again) {
  try {
    await post("/ws/subscr-channel", { channel, again });
  } catch (error) {
    const passing = ["no-identity", "not-connected"].includes(error.reason);
    if (passing || !(error.status >= 400 && error.status < 500)) throw error;
    store.joined.delete(channel);
    toast(`${channel}: ${tFailure(error, store.limits)}`);
  }
}

// What is shown

function drawAll() {
  drawState();
  drawLists();
  drawHead();
  drawLog();
}

function show() {
  const text = $("text");
  if (store.open) conversation(store.open).draft = text.value;
  let id = "";
  try {
    id = decodeURI(location.hash.slice(1));
  } catch {
    // not one of our addresses
  }
  const known = id === EVERYONE || /^room\/./.test(id) || /^person\/[1-9]\d*$/.test(id);
  store.open = known ? id : wide.matches ? EVERYONE : "";
  if (store.open) {
    conversation(store.open).unread = 0;
    text.value = conversation(store.open).draft;
    fit();
  }
  if (!store.me) return;
  drawLists();
  drawHead();
  drawLog();
  if (wide.matches) text.focus();
}

const wide = matchMedia("(min-width: 720px)");
wide.onchange = show;
addEventListener("hashchange", show);
addEventListener("visibilitychange", () => {
  if (document.visibilityState === "visible" && store.open) {
    conversation(store.open).unread = 0;
    drawLists();
  }
});

function toast(text, id) {
  const node = h("button", { type: "button", class: "toast" }, text);
  node.onclick = () => {
    node.remove();
    if (id) location.hash = id;
  };
  $("toasts").append(node);
  setTimeout(() => node.remove(), 6000);
}

setNotify(toast);

// Sending

const PATHS = { everyone: "/ws/send-broadcast", room: "/ws/send-channelmsg", person: "/ws/send-msg" };

async function send(id, item) {
  const kind = kindOf(id);
  try {
    let answer;
    if (item.kind === "file") answer = await upload(item.source, clientOf(id), item.key);
    else {
      const to = { everyone: {}, room: { channel: subjectOf(id) }, person: { receiveWebsocketId: clientOf(id), isReceipt: true } };
      answer = await post(PATHS[kind], { ...to[kind], message: item.text, key: item.key });
    }
    item.status = later(item.status, "sent");
    if (answer.file) Object.assign(item, { file: answer.file, state: "ready" });
  } catch (error) {
    item.status = later(item.status, "failed");
    item.why = tFailure(error, store.limits);
    if (item.kind === "file") item.state = "failed";
  }
  if (store.open === id) drawItem(item);
}

function begin(id, item) {
  const full = { from: store.me.id, name: store.me.name, at: Date.now(), key: newKey(), status: "sending", ...item };
  send(id, add(id, full).item);
  if (store.open === id) drawItem(full);
  drawLists();
}

onAgain((item) => {
  Object.assign(item, { status: "sending", why: undefined, at: Date.now() }, item.kind === "file" ? { state: "coming" } : {});
  drawItem(item);
  send(store.open, item);
});

$("composer").onsubmit = (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text || store.state !== "open" || !store.open) return;
  $("text").value = "";
  fit();
  begin(store.open, { kind: "text", text });
};

// A field that grows with its text. Enter sends, except on a phone's keyboard or in the middle of a Chinese word.
function fit() {
  const text = $("text");
  text.style.height = "auto";
  if (text.scrollHeight) text.style.height = `${text.scrollHeight}px`; // 0 while it is not shown
  drawSend();
}

$("text").oninput = fit;
$("text").onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
  if (matchMedia("(pointer: coarse)").matches) return;
  event.preventDefault();
  $("composer").requestSubmit();
};

$("attach").onclick = () => $("file").click();
$("file").onchange = () => {
  const [file] = $("file").files;
  $("file").value = "";
  if (!file || kindOf(store.open) !== "person") return;
  if (file.size > store.limits.upload) toast(t("tooLarge", { file: file.name, size: size(store.limits.upload) }));
  else begin(store.open, { kind: "file", state: "coming", source: file, file: { name: file.name, size: file.size } });
};

// Rooms, the name, the language, going offline

async function join(channel) {
  const answer = await post("/ws/subscr-channel", { channel });
  store.joined.add(answer.channel);
  conversation(roomId(answer.channel)).items.push({ kind: "note", text: "youJoined", at: Date.now() });
  rememberRooms();
  location.hash = encodeURI(roomId(answer.channel));
  show();
}

const shown = (failure) => Object.assign(failure, { message: tFailure(failure, store.limits) });
const complain = (failure) => toast(tFailure(failure, store.limits));

$("join").onclick = () => join(subjectOf(store.open)).catch(complain);
$("leave").onclick = async () => {
  const channel = subjectOf(store.open);
  try {
    await post("/ws/leave-channel", { channel });
  } catch (failure) {
    complain(failure);
    return;
  }
  store.joined.delete(channel);
  store.conversations.delete(roomId(channel));
  rememberRooms();
  show();
};
$("new-room").onclick = () =>
  openDialog($("room-dialog"), (room) => join(room).catch((failure) => Promise.reject(shown(failure))));
$("rename").onclick = () => askName();
$("go-offline").onclick = () => post("/ws/offline").catch(complain);
$("language").onclick = $("welcome-language").onclick = () => {
  switchLanguage();
  translate();
};

function translate() {
  translatePage();
  $("language").textContent = t("otherShort");
  $("language").title = $("welcome-language").textContent = t("other");
  $("language").setAttribute("aria-label", t("other"));
  nameTexts();
  if (store.me) drawAll();
}

function nameTexts() {
  $("name-title").textContent = t(store.me ? "renameTitle" : "welcome");
  $("name-lead").textContent = t(store.me ? "renameLead" : "welcomeLead");
  $("name-ok").textContent = t(store.me ? "save" : "start");
  $("welcome-language").hidden = store.me !== null;
}

function askName(problem = "") {
  nameTexts();
  $("name").value = store.me?.name ?? "";
  const closable = store.state === "open";
  openDialog($("name-dialog"), closable ? rename : (name) => void connection.connect(name), { closable });
  $("name-error").textContent = problem;
}

async function rename(name) {
  try {
    const answer = await post("/me/name", { name });
    store.me.name = connection.me.name = answer.name;
  } catch (failure) {
    throw shown(failure);
  }
  drawLists();
}

async function start() {
  translate();
  let answer;
  try {
    answer = await whoAmI();
  } catch {
    setTimeout(start, 2000);
    return;
  }
  store.limits = answer.limits;
  $("name").maxLength = answer.limits.name;
  $("room").maxLength = answer.limits.room;
  $("text").maxLength = answer.limits.text;
  show();
  if (answer.me) connection.connect();
  else askName();
}

start();
