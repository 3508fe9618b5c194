// A browser starts no worker from a folder (file://). There the search runs in a hidden frame instead.
class FrameWorker extends EventTarget {
  constructor(script) {
    super();
    const frame = document.createElement("iframe");
    frame.hidden = true;
    document.body.append(frame);
    const inside = frame.contentWindow;
    inside.document.write("<body></body>");
    inside.document.close();
    inside.postMessage = (data) => {
      const told = new MessageEvent("message", { data });
      this.dispatchEvent(told);
      this.onmessage?.(told);
    };
    this.ready = new Promise((loaded) => {
      const part = inside.document.createElement("script");
      part.src = script;
      part.onload = loaded;
      inside.document.body.append(part);
    });
    this.inside = inside;
  }

  postMessage(data) {
    this.ready.then(() => this.inside.dispatchEvent(new MessageEvent("message", { data })));
  }
}

if (location.protocol === "file:") window.Worker = FrameWorker;
