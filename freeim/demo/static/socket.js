// The connection to the node: it only receives, and comes back by itself, each time with a fresh URL of the app.

import { post } from "./api.js";

const FIRST_PAUSE = 500;
const LONGEST_PAUSE = 10_000;
const STEADY = 3_000; // a connection that lasted as long begins a new count of attempts
const FORCED_OFFLINE = 1001; // with the reason "disconnect": do not come back by yourself
const REPLACED = 4001; // by a newer login: two pages that both came back would replace each other for ever

export class Connection {
  // told(state, error): "connecting", "open", "waiting", "forced", "replaced" or "refused".
  // heard(message): what the node pushes.
  constructor(told, heard) {
    this.told = told;
    this.heard = heard;
    this.attempts = 0;
    this.socket = null;
    this.timer = 0;
    addEventListener("online", () => this.hurry());
    addEventListener("visibilitychange", () => document.visibilityState === "visible" && this.hurry());
  }

  // Connect; a name makes an identity, or renames the one there is.
  async connect(name) {
    this.close();
    this.told("connecting");
    let answer;
    try {
      answer = await post("/ws/pre-connect", name === undefined ? {} : { name });
    } catch (error) {
      if (error.status >= 400 && error.status < 500) this.refuse(error);
      else this.retry();
      return;
    }
    this.me = { id: answer.websocketId, name: answer.name };
    this.open(answer.server);
  }

  // The app does not know us, or will not have us: stay away until there is another name.
  refuse(error) {
    this.close();
    this.told("refused", error);
  }

  // Without a word to anybody: what comes of a socket that we gave up is no news.
  close() {
    clearTimeout(this.timer);
    this.timer = 0;
    if (!this.socket) return;
    this.socket.onopen = this.socket.onmessage = this.socket.onclose = null;
    this.socket.close();
    this.socket = null;
  }

  open(url) {
    const socket = (this.socket = new WebSocket(url));
    let opened = 0;
    socket.onopen = () => {
      opened = Date.now();
      this.told("open");
    };
    socket.onmessage = (event) => this.heard(JSON.parse(event.data));
    socket.onclose = (event) => {
      this.socket = null;
      if (event.code === FORCED_OFFLINE && event.reason === "disconnect") {
        this.told("forced");
        return;
      }
      if (event.code === REPLACED) {
        this.told("replaced");
        return;
      }
      if (opened && Date.now() - opened > STEADY) this.attempts = 0;
      this.retry();
    };
  }

  // The pause doubles, and half of it is chance, so that those who lost a node do not come back all at once.
  retry() {
    const longest = Math.min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** this.attempts++);
    this.told("waiting");
    this.timer = setTimeout(() => this.connect(), longest / 2 + (Math.random() * longest) / 2);
  }

  hurry() {
    if (this.timer) this.connect();
  }
}
