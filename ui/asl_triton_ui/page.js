// What HTML alone cannot do: seek the preview, announce to screen readers, explain a black preview or a refused login.
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

  // Browsers play fewer codecs than the page can recognize.
  document.addEventListener("error", (event) => {
    const video = event.target;
    if (!(video instanceof HTMLVideoElement) || !video.closest("#clip, #teach-clip") || !video.getAttribute("src")) return;
    event.stopPropagation(); // Gradio would only say "Video not playable"
    explain("This browser cannot play this file, but it may still be recognized.");
  }, true);

  document.addEventListener("loadeddata", (event) => {
    if (event.target.closest?.("#clip, #teach-clip")) explain("");
  }, true);

  // Recordings do not declare their length; a browser learns it by seeking to the end.
  document.addEventListener("loadedmetadata", (event) => {
    const video = event.target;
    if (!video.closest?.("#clip, #teach-clip") || video.srcObject || video.duration !== Infinity) return;
    video.addEventListener("durationchange", () => { video.currentTime = 0; }, { once: true });
    video.currentTime = 1e7;
  }, true);

  // Gradio does not explain why the camera was refused.
  const cameras = navigator.mediaDevices;
  const reasons = {
    NotAllowedError: "The browser blocked the camera. Allow it for this page with the icon next to the address, and try again, or upload a clip under Recognize.",
    NotFoundError: "No camera was found. Connect one and try again, or upload a clip under Recognize.",
    NotReadableError: "Another program is using the camera. Close it and try again, or upload a clip under Recognize.",
  };
  if (cameras) {
    const ask = cameras.getUserMedia.bind(cameras);
    cameras.getUserMedia = async (wanted) => {
      try {
        const stream = await ask({ ...wanted, audio: false }); // record the picture only
        explain("");
        take.mayReopen = Boolean(one("#teach-clip")?.offsetParent);
        return stream;
      } catch (error) {
        explain(reasons[error.name] ?? `The camera cannot be used (${error.name}). Try again, or upload a clip under Recognize.`);
        throw error;
      }
    };
  } else {
    document.addEventListener("click", (event) => {
      if (!event.target.closest('[aria-label="Capture from camera"], [title="grant webcam access"]')) return;
      explain("Browsers allow the camera only on https pages and on this machine. Upload a clip under Recognize, or ask the page's operator for https.");
    });
  }

  // Drop live frames while several are in flight. Queued frames would arrive later and later.
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

  // Gradio's login form explains only a wrong password. Show other errors too, such as a required wait.
  async function logIn(resource, options) {
    const response = await send(resource, options);
    for (const old of document.querySelectorAll(".login-note")) old.remove();
    if (response.ok || response.status === 400) return response;
    const { detail } = await response.clone().json().catch(() => ({}));
    const sentence = `${detail ?? `the page returned an error (${response.status})`}.`;
    const note = Object.assign(document.createElement("p"), { className: "login-note" });
    note.textContent = sentence[0].toUpperCase() + sentence.slice(1);
    note.setAttribute("role", "alert");
    note.style.color = "var(--error-text-color)"; // the page's style sheet is loaded only after the login
    document.querySelector("h2")?.after(note);
    return response;
  }

  function tellWay() {
    const place = one("#live-way p");
    if (!place || performance.now() - way.toldMs < 1000) return;
    way.toldMs = performance.now();
    const middleMs = [...way.tookMs].sort((a, b) => a - b)[way.tookMs.length >> 1];
    const dropped = way.dropped ? `; ${way.dropped} were dropped while earlier ones were still in flight` : "";
    place.textContent = `Frames take ${Math.round(middleMs)} ms from this browser to the page's server${dropped}.`;
  }

  // Gradio labels the camera's button for recordings, and names it for screen readers as if it took photos.
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

  // Do not send files beyond the limit.
  const { maxUploadMb } = window.aslTriton;
  const isTooLarge = (file) => file.size > maxUploadMb * 1e6;
  const tooLarge = (files) =>
    `${files.map((file) => file.name).join(", ")}: larger than this page's limit of ${maxUploadMb} MB. Cut or compress it first.`;

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

  // Show a sentence at the top of the visible tab.
  function explain(sentence) {
    for (const old of document.querySelectorAll(".page-note")) old.remove();
    const panel = [...document.querySelectorAll('[role="tabpanel"]')].find((one) => one.offsetParent);
    if (!sentence || !panel) return;
    const note = Object.assign(document.createElement("div"), { className: "note page-note", textContent: sentence });
    note.setAttribute("role", "alert");
    panel.prepend(note);
  }

  // Overlays on a picture or video: the box that the network saw, and the outline to sit in.
  const OUTLINE = `<svg viewBox="0 0 400 300" preserveAspectRatio="xMidYMid meet"><g id="outline-shape">
    <rect x="14" y="12" width="372" height="278" rx="14" stroke-width="1.5" stroke-dasharray="6 7"/>
    <ellipse cx="200" cy="88" rx="36" ry="47"/>
    <path d="M182 133 v14 q-62 8 -78 46 q-12 40 -16 96 M218 133 v14 q62 8 78 46 q12 40 16 96"/></g></svg>`;
  const number = (text) => (text === "" || text === undefined ? NaN : Number(text));
  const sides = () => [...document.querySelectorAll("#box-sides input[type=number]")];
  const typed = () => sides().map((input) => number(input.value));
  const parse = (place) => (one(place)?.dataset.seen ?? "").split(" ").map(number);
  const isBox = (box) => box.length === 4 && box.every(Number.isFinite) && box[0] < box[2] && box[1] < box[3];

  function findContent(video) { // the area of the picture within the video element
    const [width, height] = [video.videoWidth, video.videoHeight];
    const space = video.getBoundingClientRect();
    if (!width || !height || !space.width) return null;
    const scale = Math.min(space.width / width, space.height / height);
    const [wide, high] = [width * scale, height * scale];
    return new DOMRect(space.left + (space.width - wide) / 2, space.top + (space.height - high) / 2, wide, high);
  }

  function overlay(host, name, html = "") {
    let layer = host.querySelector(`:scope > .${name}`);
    if (!layer) {
      layer = Object.assign(document.createElement("div"), { className: `overlay ${name}`, innerHTML: html });
      layer.setAttribute("aria-hidden", "true");
      host.append(layer);
    }
    return layer;
  }

  function place(layer, host, area, box = [0, 0, 100, 100], isMirrored = false) {
    layer.hidden = !area || !isBox(box);
    if (layer.hidden) return;
    const [x0, y0, x1, y1] = isMirrored ? [100 - box[2], box[1], 100 - box[0], box[3]] : box;
    const own = host.getBoundingClientRect();
    const [left, top] = [area.left - own.left - host.clientLeft, area.top - own.top - host.clientTop];
    const style = {
      left: left + (area.width * x0) / 100,
      top: top + (area.height * y0) / 100,
      width: (area.width * (x1 - x0)) / 100,
      height: (area.height * (y1 - y0)) / 100,
    };
    for (const [name, value] of Object.entries(style)) layer.style[name] = `${value.toFixed(1)}px`;
  }

  function draw() {
    for (const [id, seen] of [["#clip", "#box-said [data-seen]"], ["#teach-clip", "#teach-none"], ["#live-camera", "#live-now [data-seen]"]]) {
      const host = one(id);
      const video = host?.querySelector("video");
      if (!host?.offsetParent) continue;
      const area = video?.offsetParent ? findContent(video) : null;
      const isCamera = Boolean(video?.srcObject);
      const isMirrored = Boolean(video) && getComputedStyle(video).transform.startsWith("matrix(-1");
      const isOver = Boolean(area) && (isCamera || id !== "#live-camera");
      if (isOver || host.querySelector(":scope > .overlay")) {
        place(overlay(host, "outline", OUTLINE), host, isCamera ? area : null);
        place(overlay(host, "seen"), host, isCamera === (id === "#live-camera") ? area : null, parse(seen), isMirrored);
      }
    }
    const stage = one("#box .stage");
    if (!stage?.offsetParent) return;
    const area = stage.getBoundingClientRect();
    place(overlay(stage, "seen"), stage, isBox(typed()) ? null : area, parse("#box-said [data-seen]"));
    place(overlay(stage, "drawn", "<i></i><i></i><i></i><i></i>"), stage, area, typed());
  }
  setInterval(draw, 200);
  document.addEventListener("input", draw);

  // Draw, move and resize the box on the picture. With a keyboard, use the fields.
  const LEAST = 4; // percent of a side
  const near = (a, b, pixels, length) => Math.abs(a - b) * length < pixels * 100;
  const clamp = (value) => Math.min(Math.max(value, 0), 100);
  let drag = null;

  function point(event, stage) {
    const area = stage.getBoundingClientRect();
    return [clamp((100 * (event.clientX - area.left)) / area.width), clamp((100 * (event.clientY - area.top)) / area.height)];
  }

  function setSides(box) {
    sides().forEach((input, place) => {
      input.value = String(Math.round(box[place]));
      input.dispatchEvent(new Event("input", { bubbles: true }));
    });
  }

  document.addEventListener("pointerdown", (event) => {
    const stage = event.target.closest?.("#box .stage");
    if (!stage || event.button !== 0) return;
    event.preventDefault();
    stage.setPointerCapture(event.pointerId);
    const [x, y] = point(event, stage);
    const { width, height } = stage.getBoundingClientRect();
    const seen = parse("#box-said [data-seen]");
    const box = isBox(typed()) ? typed() : seen;
    const reach = event.pointerType === "touch" ? 22 : 12;
    drag = { from: [x, y], fixed: [x, y], box: null };
    if (!isBox(box)) return;
    const [across, down] = [[0, 2].find((side) => near(x, box[side], reach, width)), [1, 3].find((side) => near(y, box[side], reach, height))];
    if (across !== undefined && down !== undefined) drag.fixed = [box[2 - across], box[4 - down]];
    else if (x > box[0] && x < box[2] && y > box[1] && y < box[3]) drag.box = box;
  });

  document.addEventListener("pointermove", (event) => {
    const stage = one("#box .stage");
    if (!drag || !stage) return;
    const [x, y] = point(event, stage);
    if (drag.box) {
      const [x0, y0, x1, y1] = drag.box;
      const dx = Math.min(Math.max(x - drag.from[0], -x0), 100 - x1);
      const dy = Math.min(Math.max(y - drag.from[1], -y0), 100 - y1);
      return setSides([x0 + dx, y0 + dy, x1 + dx, y1 + dy]);
    }
    const [a, b] = drag.fixed;
    const box = [Math.min(a, x), Math.min(b, y), Math.max(a, x), Math.max(b, y)];
    if (box[2] - box[0] >= LEAST && box[3] - box[1] >= LEAST) setSides(box);
  });

  for (const name of ["pointerup", "pointercancel"]) document.addEventListener(name, () => { drag = null; });

  // Before a recording, send the camera's picture to the page's server regularly, for advice on how to sit.
  const GUIDE_EVERY_MS = 1500;
  const canvas = document.createElement("canvas");
  setInterval(() => {
    for (const clip of ["#clip", "#teach-clip"]) {
      const video = one(`${clip} video`);
      const field = one(`${clip}-frame textarea, ${clip}-frame input`);
      const isCamera = Boolean(video?.srcObject && video.offsetParent && video.videoWidth);
      if (!field || (!isCamera && !field.value)) continue;
      let picture = "";
      if (isCamera) {
        const scale = Math.min(320 / Math.max(video.videoWidth, video.videoHeight), 1);
        [canvas.width, canvas.height] = [video.videoWidth * scale, video.videoHeight * scale].map(Math.round);
        canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
        picture = canvas.toDataURL("image/jpeg", 0.7);
      }
      field.value = picture;
      field.dispatchEvent(new Event("input", { bubbles: true }));
    }
  }, GUIDE_EVERY_MS);

  // On the Teach tab, a recording starts after a countdown, so that the hands are free, and stops by itself.
  const COUNTDOWN_S = 3;
  const RECORDED_MS = 4000;
  const take = { counting: 0, ending: 0, isOurs: false, mayReopen: false };
  const isRecording = (button) => Boolean(button.querySelector('[title="stop recording"]'));

  function showCount(text) {
    const host = one("#teach-clip");
    const layer = overlay(host, "countdown");
    layer.hidden = !text;
    layer.textContent = text;
    if (text) announcement.textContent = text;
  }

  function press(button) {
    take.isOurs = true;
    button.click();
    take.isOurs = false;
  }

  function endTake() {
    clearInterval(take.counting);
    clearTimeout(take.ending);
    [take.counting, take.ending] = [0, 0];
    if (one("#teach-clip")) showCount("");
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("#teach-clip .capture-button");
    if (!button || take.isOurs) return;
    if (isRecording(button)) return endTake(); // stopped early
    event.stopImmediatePropagation();
    if (take.counting) return endTake(); // pressed again: no recording
    let left = COUNTDOWN_S;
    showCount(String(left));
    take.counting = setInterval(() => {
      left -= 1;
      if (!button.isConnected || !button.offsetParent) return endTake();
      if (left > 0) return showCount(String(left));
      endTake();
      press(button);
      announcement.textContent = "Sign now";
      take.ending = setTimeout(() => {
        take.ending = 0;
        if (button.isConnected && isRecording(button)) press(button);
      }, RECORDED_MS);
    }, 1000);
  }, true);

  // After each take Gradio asks for the camera again. It was allowed on this tab, so open it for the next take.
  setInterval(() => {
    const access = one('#teach-clip [title="grant webcam access"] button');
    if (!access?.offsetParent || !take.mayReopen) return;
    take.mayReopen = false; // until it is open
    access.click();
  }, 300);

  // Save the taught signs, in base64, as a file. Returns "", the new value of the hidden field.
  let savedSigns = "";
  const findSigns = () => one("#teach-table [data-own] tbody")?.textContent ?? "";
  window.aslTriton.saveSigns = (content) => {
    if (!content) return "";
    savedSigns = findSigns();
    const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
    const link = Object.assign(document.createElement("a"), {
      href: URL.createObjectURL(new Blob([bytes], { type: "application/octet-stream" })),
      download: "signs.safetensors",
    });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    return "";
  };

  // A reloaded page is a new visitor's and loses the signs, so have the browser ask first.
  window.addEventListener("beforeunload", (event) => {
    if (findSigns() !== savedSigns && findSigns()) event.preventDefault();
  });

  // Announce advice only when it has changed and has been stable for a while.
  const GUIDE_SETTLES_MS = 2500;
  const guided = { said: "", word: "", timer: 0 };
  function announceGuide(place) {
    const word = place.querySelector(".guide strong")?.textContent ?? "";
    if (word === guided.word) return;
    guided.word = word;
    clearTimeout(guided.timer);
    guided.timer = setTimeout(() => {
      if (word && word !== guided.said) announcement.textContent = word;
      guided.said = word;
    }, GUIDE_SETTLES_MS);
  }

  // One permanent live region for screen readers, which survives when the rest of the page is redrawn.
  const announcement = Object.assign(document.createElement("div"), { className: "announcement" });
  announcement.setAttribute("role", "status");

  function announce(answer) {
    const texts = [".progress p", ".gloss", ".confidence", ".best .badge"].map((part) => answer.querySelector(part));
    const text = texts.filter(Boolean).map((element) => element.textContent.trim()).join(", ");
    if (announcement.textContent !== text) announcement.textContent = text;
  }

  function announceHint(place) {
    const text = place.querySelector(".hint, .progress p")?.textContent.trim() ?? ""; // problems are alerts
    if (text && announcement.textContent !== text) announcement.textContent = text;
  }

  function announceAnswer(place) {
    if (place.querySelector(".gloss, .progress")) announce(place);
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

  // Sort a table by the column whose header is pressed, and keep it sorted while it fills.
  const order = { column: null, descending: false };
  const valueOf = (row) => {
    const { dataset, textContent } = row.cells[order.column];
    return dataset.value === undefined ? textContent.trim() : Number(dataset.value);
  };

  function compare(one, other) {
    const [a, b] = [valueOf(one), valueOf(other)];
    if ((a === "") !== (b === "")) return a === "" ? 1 : -1; // empty cells come last
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

  const watched = new Map([["#answer", announce], ["#film", showPeak], ["#table", sort], ["#live-transcript", announceSign], ["#live-camera", nameButton], ["#live-guide", announceGuide], ["#clip-guide", announceGuide], ["#teach-clip-guide", announceGuide], ["#teach-said", announceHint], ["#teach-answer", announceAnswer]]);
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
