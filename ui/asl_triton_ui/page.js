// What HTML alone cannot do: show a moment of the preview, speak to screen readers, explain a black preview or a login
// that is refused.
(() => {
  const one = (selector) => document.querySelector(selector);

  // A frame of the filmstrip was pressed.
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-seek]");
    const video = one("#clip video");
    if (!button || !video) return;
    video.pause();
    video.currentTime = Number(button.dataset.seek);
  });

  // Browsers play fewer codecs than are recognized.
  document.addEventListener("error", (event) => {
    const video = event.target;
    if (!(video instanceof HTMLVideoElement) || !video.closest("#clip") || !video.getAttribute("src")) return;
    event.stopPropagation(); // Gradio would only say "Video not playable"
    explain("This browser cannot show this file. It may be recognized all the same: press Recognize.");
  }, true);

  document.addEventListener("loadeddata", (event) => {
    if (event.target.closest?.("#clip")) explain("");
  }, true);

  // A camera that is refused: Gradio goes back to where it was without a word.
  const cameras = navigator.mediaDevices;
  const reasons = {
    NotAllowedError: "The browser refuses the camera. Allow it for this page, by the sign beside its address, and try again; or upload a clip under Recognize.",
    NotFoundError: "There is no camera. Connect one and try again, or upload a clip under Recognize.",
    NotReadableError: "Another program uses the camera. Close that and try again, or upload a clip under Recognize.",
  };
  if (cameras) {
    const ask = cameras.getUserMedia.bind(cameras);
    cameras.getUserMedia = async (wanted) => {
      try {
        const stream = await ask({ ...wanted, audio: false }); // a recording is of what is seen
        explain("");
        return stream;
      } catch (error) {
        explain(reasons[error.name] ?? `The camera cannot be used (${error.name}). Try again, or upload a clip under Recognize.`);
        throw error;
      }
    };
  } else {
    document.addEventListener("click", (event) => {
      if (!event.target.closest('[aria-label="Capture from camera"], [title="grant webcam access"]')) return;
      explain("Browsers give a camera to pages of https and of this machine alone. Upload a clip under Recognize, or have the page served over https.");
    });
  }

  // Frames of the live camera: while several are on their way, the next are dropped; queued, they would come ever later.
  const MOST_UNDER_WAY = 4;
  const way = { underWay: 0, dropped: 0, tookMs: [], toldMs: 0 };
  const send = window.fetch.bind(window);
  window.fetch = async (resource, options) => {
    const address = String(resource?.url ?? resource);
    if (/\/login$/.test(address)) return logIn(resource, options);
    if (!/\/gradio_api\/stream\/\w+$/.test(address)) return send(resource, options);
    if (way.underWay >= MOST_UNDER_WAY) {
      way.dropped += 1;
      return Response.json({ msg: "dropped" });
    }
    const sentMs = performance.now();
    way.underWay += 1;
    try {
      return await send(resource, options);
    } finally {
      way.underWay -= 1;
      way.tookMs = [...way.tookMs.slice(-19), performance.now() - sentMs];
      tellWay();
    }
  };

  // Gradio's login form explains a wrong password and nothing else, such as that one has to wait.
  async function logIn(resource, options) {
    const response = await send(resource, options);
    for (const old of document.querySelectorAll(".login-note")) old.remove();
    if (response.ok || response.status === 400) return response;
    const { detail } = await response.clone().json().catch(() => ({}));
    const sentence = `${detail ?? `the page answers with an error (${response.status})`}.`;
    const note = Object.assign(document.createElement("p"), { className: "login-note" });
    note.textContent = sentence[0].toUpperCase() + sentence.slice(1);
    note.setAttribute("role", "alert");
    note.style.color = "var(--error-text-color)"; // the page's style sheet comes after the login
    document.querySelector("h2")?.after(note);
    return response;
  }

  function tellWay() {
    const place = one("#live-way p");
    if (!place || performance.now() - way.toldMs < 1000) return;
    way.toldMs = performance.now();
    const middleMs = [...way.tookMs].sort((a, b) => a - b)[way.tookMs.length >> 1];
    const dropped = way.dropped ? `; ${way.dropped} were dropped here because the way was full` : "";
    place.textContent = `Frames take ${Math.round(middleMs)} ms from this browser to the page's server${dropped}.`;
  }

  // Gradio's words for the camera's button are of recordings, and its name for screen readers of photos.
  const words = { Record: "Start", Stop: "Stop", Waiting: "Waiting" };
  function nameButton(camera) {
    const button = camera.querySelector('.button-wrap button:has(.icon-with-text)');
    if (!button) return;
    const said = Object.entries(words).find(([word]) => button.textContent.includes(word));
    const text = [...button.querySelector(".icon-with-text").childNodes].find((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
    if (!said || !text) return;
    if (text.data.trim() !== said[1]) text.data = ` ${said[1]}`;
    if (button.getAttribute("aria-label") !== said[1]) button.setAttribute("aria-label", said[1]);
  }

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    await navigator.clipboard.writeText(button.dataset.copy);
    button.textContent = "Copied";
  });

  // A file beyond the limit is not even sent.
  const { maxUploadMb } = window.aslTriton;
  const isTooLarge = (file) => file.size > maxUploadMb * 1e6;
  const tooLarge = (files) =>
    `${files.map((file) => file.name).join(", ")}: larger than ${maxUploadMb} MB, the limit of this page. Cut or compress it first.`;

  document.addEventListener("change", (event) => {
    const input = event.target;
    if (input.type !== "file") return;
    const large = [...input.files].filter(isTooLarge);
    if (!large.length) return explain("");
    const fitting = new DataTransfer();
    for (const file of input.files) if (!isTooLarge(file)) fitting.items.add(file);
    input.files = fitting.files;
    if (!fitting.files.length) event.stopImmediatePropagation();
    explain(tooLarge(large));
  }, true);

  document.addEventListener("drop", (event) => {
    const large = [...(event.dataTransfer?.files ?? [])].filter(isTooLarge);
    if (!large.length) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    explain(tooLarge(large));
  }, true);

  // In the tab that is seen, at its top.
  function explain(sentence) {
    for (const old of document.querySelectorAll(".page-note")) old.remove();
    const panel = [...document.querySelectorAll('[role="tabpanel"]')].find((one) => one.offsetParent);
    if (!sentence || !panel) return;
    const note = Object.assign(document.createElement("div"), { className: "note page-note", textContent: sentence });
    note.setAttribute("role", "alert");
    panel.prepend(note);
  }

  // One live region that stays: what is put into it is read out, whatever else is drawn anew.
  const announcement = Object.assign(document.createElement("div"), { className: "announcement" });
  announcement.setAttribute("role", "status");

  function announce(answer) {
    const texts = [".progress p", ".gloss", ".confidence", ".best .badge"].map((part) => answer.querySelector(part));
    const text = texts.filter(Boolean).map((element) => element.textContent.trim()).join(", ");
    if (announcement.textContent !== text) announcement.textContent = text;
  }

  function announceSign(transcript) {
    const [name, time] = [".name", ".time"].map((part) => transcript.querySelector(`li ${part}`)?.textContent);
    if (name && announcement.textContent !== `${name}, ${time}`) announcement.textContent = `${name}, ${time}`;
  }

  function showPeak(film) {
    const strip = film.querySelector(".film");
    const peak = film.querySelector(".peak");
    if (strip && peak) strip.scrollLeft = peak.offsetLeft - strip.offsetLeft - (strip.clientWidth - peak.clientWidth) / 2;
  }

  // A table is sorted by the column whose head is pressed, and stays so while it fills.
  const order = { column: null, descending: false };
  const valueOf = (row) => {
    const { dataset, textContent } = row.cells[order.column];
    return dataset.value === undefined ? textContent.trim() : Number(dataset.value);
  };

  function compare(one, other) {
    const [a, b] = [valueOf(one), valueOf(other)];
    if ((a === "") !== (b === "")) return a === "" ? 1 : -1; // what is not known comes last
    const rises = typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true });
    return order.descending ? -rises : rises;
  }

  function sort(place) {
    const body = place.querySelector("tbody");
    if (!body || order.column === null) return;
    const sorted = [...body.rows].sort(compare);
    if (sorted.some((row, number) => row !== body.rows[number])) body.append(...sorted);
    for (const [number, head] of [...place.querySelectorAll("thead th")].entries()) {
      const wanted = number !== order.column ? "none" : order.descending ? "descending" : "ascending";
      if (head.getAttribute("aria-sort") !== wanted) head.setAttribute("aria-sort", wanted);
    }
  }

  document.addEventListener("click", (event) => {
    const head = event.target.closest(".answers thead th");
    if (!head) return;
    order.descending = order.column === head.cellIndex && !order.descending;
    order.column = head.cellIndex;
    sort(one("#table"));
  });

  const watched = new Map([["#answer", announce], ["#film", showPeak], ["#table", sort], ["#live-transcript", announceSign], ["#live-camera", nameButton]]);
  const waiting = setInterval(() => {
    if (!document.body) return;
    if (!announcement.isConnected) document.body.append(announcement);
    for (const [selector, act] of watched) {
      const element = one(selector);
      if (!element) continue;
      watched.delete(selector);
      new MutationObserver(() => act(element)).observe(element, { childList: true, subtree: true, characterData: true });
      act(element);
    }
    if (!watched.size) clearInterval(waiting);
  }, 250);
})();
