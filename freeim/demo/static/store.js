// What the page knows: who is online, the rooms, and the conversations. Nothing here touches the document.

const KEPT = 500; // messages of a conversation
const ROOMS_KEY = "freeim-demo-rooms";
export const FIRST_ROOM = "lobby";
export const EVERYONE = "everyone";

export const roomId = (name) => `room/${name}`;
export const personId = (id) => `person/${id}`;

export const store = {
  me: null,
  limits: null,
  state: "connecting",
  open: "", // the conversation that is shown; empty: the list alone, on a phone
  online: new Set(),
  names: new Map(),
  rooms: new Map(), // name -> number of members
  joined: new Set(),
  conversations: new Map(),
};

export function conversation(id) {
  let found = store.conversations.get(id);
  if (!found) {
    found = { id, items: [], unread: 0, draft: "", faces: new Set() };
    store.conversations.set(id, found);
  }
  return found;
}

export const kindOf = (id) => id.split("/", 1)[0];
export const subjectOf = (id) => id.slice(id.indexOf("/") + 1);
export const clientOf = (id) => Number(subjectOf(id));

export const nameOf = (id) => called(id, store.names.get(id) ?? "…");

// Two people may have one name, or two that look the same; then a part of the id tells them apart.
export function called(id, name) {
  for (const other of [...store.online, store.me?.id]) {
    if (other !== id && looks(store.names.get(other)) === looks(name)) return `${name} #${String(id).slice(-3)}`;
  }
  return name;
}

const skeletons = new Map();

function looks(name) {
  if (!skeletons.has(name)) {
    skeletons.set(name, name?.normalize("NFKC").replace(/\p{Default_Ignorable_Code_Point}/gu, "").toLowerCase());
  }
  return skeletons.get(name);
}

// Returns the item, and whether it is new: a message of one's own comes back where it also went to other windows.
export function add(id, item) {
  const { items, faces } = conversation(id);
  const known = item.key && items.findLast((each) => each.key === item.key && each.from === item.from);
  if (known) {
    return { item: Object.assign(known, item, { status: later(known.status, item.status) }), fresh: false };
  }
  if (item.from) faces.add(item.from);
  items.push(item);
  if (items.length > KEPT) items.shift();
  return { item, fresh: true };
}

// A receipt may overtake the app's answer, and must not be undone by it.
const ORDER = ["sending", "failed", "sent", "absent", "delivered"];
export const later = (one, other) => (ORDER.indexOf(one) > ORDER.indexOf(other) ? one : other);

export function unreadOfAll() {
  let sum = 0;
  for (const each of store.conversations.values()) sum += each.unread;
  return sum;
}

// The rooms to come back to, after a drop or a reload.

export function rememberRooms() {
  try {
    localStorage.setItem(ROOMS_KEY, JSON.stringify([...store.joined]));
  } catch {
    // a browser that keeps nothing begins in the first room again
  }
}

export function rememberedRooms() {
  try {
    const rooms = JSON.parse(localStorage.getItem(ROOMS_KEY));
    return Array.isArray(rooms) ? rooms.filter((each) => typeof each === "string") : null;
  } catch {
    return null;
  }
}
