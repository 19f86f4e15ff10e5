// English and Chinese. data-text, data-title, data-hint, data-label and data-placeholder in the page name an entry.

const KEY = "freeim-demo-language";

const texts = {
  en: {
    other: "中文", otherShort: "中", conversations: "Conversations", messages: "Messages",
    rename: "Change your nickname", goOffline: "Go offline", rooms: "Rooms", newRoom: "Open a room", people: "People",
    alone: "Nobody else is here yet. Open this page in a private window, or send its address to a colleague.",
    back: "Back", leave: "Leave", write: "Message", attach: "Send a file", send: "Send", nickname: "Nickname",
    cancel: "Cancel", roomName: "Name of the room", openRoom: "Open", save: "Save", start: "Start chatting",
    newRoomLead: "A room is there as long as somebody is in it.",
    welcome: "Welcome to freeim", welcomeLead: "A small chat on a push server. What shall the others call you?",
    renameTitle: "Your nickname", renameLead: "Everybody sees the new one at once.",
    forced: "You are offline", forcedLead: "All your connections were closed. You will not come back by yourself.",
    comeBack: "Come back",
    replaced: "You are signed in elsewhere",
    replacedLead: "A newer window or device took the place of this one. It will not come back by itself.",
    comeBackHere: "Use it here",
    connecting: "Connecting…", open: "Connected", waiting: "Reconnecting…", forcedState: "Offline", refused: "Not connected",
    lost: "The connection is lost. It comes back by itself.",
    everyone: "Everyone", onlineCount: "{n} online", members: { one: "{n} member", other: "{n} members" },
    online: "online", offline: "offline", joinRoom: "Join {room}", you: "You", unread: "{n} unread",
    emptyEveryone: "Say something to everybody",
    emptyEveryoneLead: "It reaches all who are online. You also see here who comes and goes.",
    emptyRoom: "It is quiet in here", emptyRoomLead: "Nothing is stored: you see what is said while you are here.",
    emptyStranger: "You are not in this room", emptyStrangerLead: "Join it to read and to write.",
    emptyPerson: "Just you and {name}", emptyPersonLead: "Receipts show whether a message arrived. Files work, too.",
    nothing: "Pick a conversation", nothingLead: "Rooms and people are in the list.",
    came: "{name} is online", went: "{name} went offline", joined: "{name} joined", left: "{name} left",
    youJoined: "You joined", renamed: "{old} is now called {name}", youRenamed: "You are now called {name}",
    sending: "Sending…", sent: "Sent", delivered: "Delivered", absent: "Not online", failed: "Not sent",
    again: "Try again", coming: "is sending you a file…", fileComing: "Being sent…", fileFailed: "Did not arrive",
    download: "Download {file}", fileSelf: "Uploading…", tooLarge: "{file} is larger than {size}.",
    broadcastFrom: "{name} to everybody", fileFrom: "{name} is sending you {file}", from: "Message from {name}",
    "e-no-app": "The app does not answer.", "e-unavailable": "The push server is not there at the moment.",
    "e-name": "A nickname has 1 to {name} characters.",
    "e-room": "1 to {room} letters, digits, spaces, and - _ .", "e-text": "A message has at most {text} characters.",
    "e-no-identity": "Please choose a nickname.", "e-too-many-rooms": "You are in too many rooms.",
    "e-not-in-room": "Join the room first.", "e-full": "Too many files at the moment.",
    "e-too-slow": "That took too long.",
  },
  zh: {
    other: "English", otherShort: "En", conversations: "会话", messages: "消息",
    rename: "修改昵称", goOffline: "下线", rooms: "房间", newRoom: "新建房间", people: "在线的人",
    alone: "暂时没有其他人。可以在无痕窗口中打开本页，或把网址发给同事。",
    back: "返回", leave: "退出", write: "输入消息", attach: "发送文件", send: "发送", nickname: "昵称",
    cancel: "取消", roomName: "房间名", openRoom: "打开", save: "保存", start: "开始聊天",
    newRoomLead: "只要还有人在，房间就一直存在。",
    welcome: "欢迎使用 freeim", welcomeLead: "这是推送服务器上的一个小聊天室。大家怎么称呼你？",
    renameTitle: "你的昵称", renameLead: "修改后所有人立即可见。",
    forced: "你已下线", forcedLead: "你的所有连接都已关闭，不会自动重新连接。",
    comeBack: "重新上线",
    replaced: "你已在别处登录",
    replacedLead: "另一个窗口或设备取代了这里的连接，本页不会自动重新连接。",
    comeBackHere: "在此使用",
    connecting: "连接中…", open: "已连接", waiting: "重新连接中…", forcedState: "已下线", refused: "未连接",
    lost: "连接已断开，正在自动恢复。",
    everyone: "所有人", onlineCount: "{n} 人在线", members: { other: "{n} 位成员" },
    online: "在线", offline: "离线", joinRoom: "加入 {room}", you: "我", unread: "{n} 条未读",
    emptyEveryone: "对所有人说点什么", emptyEveryoneLead: "在线的人都会收到。谁上线、谁下线也会显示在这里。",
    emptyRoom: "这里很安静", emptyRoomLead: "消息不会保存：只能看到你在场时的发言。",
    emptyStranger: "你还不在这个房间", emptyStrangerLead: "加入后即可阅读和发言。",
    emptyPerson: "你和 {name} 的私聊", emptyPersonLead: "回执会告诉你消息是否送达，也可以发送文件。",
    nothing: "请选择一个会话", nothingLead: "房间和在线的人都在列表中。",
    came: "{name} 上线了", went: "{name} 下线了", joined: "{name} 加入了房间", left: "{name} 离开了房间",
    youJoined: "你加入了房间", renamed: "{old} 改名为 {name}", youRenamed: "你改名为 {name}",
    sending: "发送中…", sent: "已发送", delivered: "已送达", absent: "对方不在线", failed: "未发送",
    again: "重试", coming: "正在给你传送文件…", fileComing: "正在传送…", fileFailed: "未能送达",
    download: "下载 {file}", fileSelf: "上传中…", tooLarge: "{file} 超过了 {size}。",
    broadcastFrom: "{name} 对所有人说", fileFrom: "{name} 正在给你传送 {file}", from: "{name} 发来消息",
    "e-no-app": "应用没有响应。", "e-unavailable": "推送服务器暂时不可用。",
    "e-name": "昵称为 1 到 {name} 个字符。", "e-room": "1 到 {room} 个字母、数字、汉字、空格或 - _ .",
    "e-text": "消息最多 {text} 个字符。", "e-no-identity": "请先取一个昵称。",
    "e-too-many-rooms": "你加入的房间太多了。", "e-not-in-room": "请先加入房间。", "e-full": "同时传送的文件太多。",
    "e-too-slow": "传送时间太长。",
  },
};

function stored() {
  try {
    return localStorage.getItem(KEY);
  } catch {
    return null;
  }
}

export let language = texts[stored()] ? stored() : navigator.language.startsWith("zh") ? "zh" : "en";

export function t(key, values = {}) {
  let text = texts[language][key];
  if (typeof text === "object") text = text[new Intl.PluralRules(language).select(values.n)] ?? text.other;
  return text.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

export function tFailure(error, limits) {
  return texts[language][`e-${error.reason}`] ? t(`e-${error.reason}`, limits ?? {}) : error.message;
}

export function translatePage() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  const named = (name) => document.querySelectorAll(`[data-${name}]`);
  for (const each of named("text")) each.textContent = t(each.dataset.text);
  for (const each of named("placeholder")) each.placeholder = t(each.dataset.placeholder);
  for (const each of named("label")) each.setAttribute("aria-label", t(each.dataset.label));
  for (const each of named("hint")) each.title = t(each.dataset.hint);
  for (const each of named("title")) {
    each.title = t(each.dataset.title);
    each.setAttribute("aria-label", each.title);
  }
}

export function switchLanguage() {
  language = language === "zh" ? "en" : "zh";
  try {
    localStorage.setItem(KEY, language);
  } catch {
    // for this visit only, then
  }
}

// The reader's own way of writing the time, if it is in this language: en-GB has no AM.
const locale = () => navigator.languages.find((each) => each.startsWith(language)) ?? language;

export const time = (at) => new Intl.DateTimeFormat(locale(), { hour: "numeric", minute: "2-digit" }).format(at);

export function size(bytes) {
  const unit = bytes < 1e3 ? ["byte", 1] : bytes < 1e6 ? ["kilobyte", 1e3] : ["megabyte", 1e6];
  const form = { style: "unit", unit: unit[0], unitDisplay: "short", maximumFractionDigits: bytes < 1e6 ? 0 : 1 };
  return new Intl.NumberFormat(locale(), form).format(bytes / unit[1]);
}
