// The page: counts and cards, kept up to date by the feed, and the form that submits a job. What comes in is shown as
// text, or as a picture that came with its data: nothing is loaded from an address outside.

import * as form from "./form.js";

const STATUS = {
  IN_QUEUE: ["○", "in queue"],
  IN_PROGRESS: ["◐", "in progress"],
  COMPLETED: ["✓", "completed"],
  FAILED: ["✕", "failed"],
  TIMED_OUT: ["✕", "timed out"],
  CANCELLED: ["–", "cancelled"],
};
const BATCH = {
  DRAFT: ["○", "draft"],
  FINALIZED: ["◐", "in progress", "IN_PROGRESS"],
  ENDED: ["✓", "completed", "COMPLETED"],
  CANCELLED: ["–", "cancelled"],
};
const PICTURE = /^image\/(avif|bmp|gif|jpeg|png|webp)$/; // these are shown; SVG is not, since it can hold scripts
const OPEN = 3; // the latest cards are open unless a person closes them

const cards = new Map(); // by job id; the one that has not changed for longest is first
let limits; // how much is shown
let submitted; // the id of the job that this page submitted last
let edition = 0; // of the form
let schema; // of the input; undefined where it can only be written as JSON

const $ = (selector, within = document) => within.querySelector(selector);
const number = (count) => count.toLocaleString("en");
const counted = (count, noun) => `${number(count)} ${noun}${count === 1 ? "" : "s"}`;
const copy = (template) => $(template).content.firstElementChild.cloneNode(true);

function put(element, text) {
  element.textContent = text;
  element.hidden = !text;
}

function duration(milliseconds) {
  if (milliseconds < 1000) return `${Math.round(milliseconds)} ms`;
  if (milliseconds < 60_000) return `${(milliseconds / 1000).toFixed(2)} s`;
  return `${Math.floor(milliseconds / 60_000)} min ${Math.floor((milliseconds % 60_000) / 1000)} s`;
}

function call(path, options) {
  const key = sessionStorage.getItem("key") ?? "page"; // without a key of its own, the endpoint takes any
  return fetch(path, { ...options, cache: "no-store", headers: { Authorization: `Bearer ${key}` } });
}

async function follow() {
  for (;;) {
    try {
      const answer = await call("feed");
      if (answer.status === 401) return askForKey();
      await read(answer.body.pipeThrough(new TextDecoderStream()).getReader());
    } catch {
      connection("lost", "No answer: start the endpoint again, and this page connects by itself");
    }
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

async function read(feed) {
  cards.clear();
  [...$("#jobs").children].forEach(discard);
  for (let rest = ""; ; ) {
    const { value, done } = await feed.read();
    if (done) return;
    connection("live", "Live");
    rest += value;
    if (!value.includes("\n")) continue; // so that a line of many megabytes is split only once
    const lines = rest.split("\n");
    rest = lines.pop();
    for (const news of lines.map((line) => JSON.parse(line))) (news.id ? tell : count)(news);
  }
}

function connection(state, text) {
  document.body.dataset.connection = state;
  if ($("#connection").textContent !== text) $("#connection").textContent = text;
}

function askForKey() {
  connection("locked", "Waiting for the API key");
  put($("#key-refused"), sessionStorage.getItem("key") === null ? "" : "The endpoint does not take this key.");
  $("#key").hidden = false;
  $("#api-key").focus();
}

function count(news) {
  limits = news.shown;
  for (const shown of document.querySelectorAll("[data-count]")) {
    const [group, name] = shown.dataset.count.split(".");
    shown.textContent = number(news[group][name]);
    shown.dataset.zero = news[group][name] === 0;
  }
  for (const entry of cards.values()) if (!entry.news.final) drawClock(entry);
  drawBatches(news.batches);
  if (edition !== news.form) load();
  edition = news.form;
}

function drawBatches(batches) {
  const known = new Map([...$("#batches").children].map((card) => [card.dataset.id, card]));
  const shown = batches.map(({ id }) => known.get(id) ?? addBatch(id));
  if (shown.some((card, place) => card !== $("#batches").children[place])) $("#batches").replaceChildren(...shown);
  shown.forEach((card, place) => drawBatch(card, batches[place]));
}

function addBatch(id) {
  const card = copy("#batch-card");
  card.dataset.id = id;
  $(".cancel", card).addEventListener("click", () => {
    call(`v2/local/batch/${id}/cancel`, { method: "POST" }).catch(() => {});
  });
  return card;
}

function drawBatch(card, { id, name, status, requestTotal, requestCompleted, requestFailed }) {
  const ended = requestCompleted + requestFailed;
  const [icon, word, colour = status] = BATCH[status === "FINALIZED" && ended === requestTotal ? "ENDED" : status];
  card.dataset.status = colour;
  $(".icon", card).textContent = icon;
  $(".word", card).textContent = word;
  $(".id", card).textContent = name ?? id;
  put($(".tally", card), `${number(ended)} of ${counted(requestTotal, "request")}`);
  put($(".failures", card), requestFailed ? `${number(requestFailed)} failed` : "");
  $(".cancel", card).hidden = !["draft", "in progress"].includes(word);
  Object.assign($("progress", card), { hidden: word !== "in progress", max: requestTotal || 1, value: ended });
}

function choose(chosen) {
  for (const tab of document.querySelectorAll("[role=tab]")) {
    tab.setAttribute("aria-selected", tab === chosen);
    tab.tabIndex = tab === chosen ? 0 : -1;
    $(`#${tab.getAttribute("aria-controls")}`).hidden = tab !== chosen;
  }
  chosen.focus();
}

function tell(news) {
  const entry = cards.get(news.id) ?? { card: addCard(news.id) };
  if (news.final && entry.news?.final === false) announce(news);
  cards.delete(news.id);
  cards.set(news.id, entry);
  if (cards.size > limits.jobs) {
    const [id, { card }] = cards.entries().next().value;
    cards.delete(id);
    discard(card);
    put($("#bounds"), `Only the ${counted(limits.jobs, "job")} that changed last are shown.`);
  }
  entry.news = news;
  entry.queued = performance.now() - news.age;
  draw(entry);
}

function announce({ id, status, count, failed }) {
  const results = failed ? `${counted(count, "result")}, ${number(failed)} failed` : counted(count, "result");
  $("#announcement").textContent = `Job ${id}: ${STATUS[status][1]}, ${results}.`;
}

function addCard(id) {
  const card = copy("#job-card");
  $(".id", card).textContent = id;
  $("summary", card).addEventListener("click", () => (card.dataset.touched = true));
  $(".cancel", card).addEventListener("click", () => {
    call(`v2/local/cancel/${id}`, { method: "POST" }).catch(() => {}); // the line on the connection says what is wrong
    $("summary", card).focus();
  });
  $("#jobs").prepend(card);
  for (const [place, other] of [...$("#jobs").children].entries()) {
    if (!other.dataset.touched) other.open = place < OPEN;
  }
  if (id === submitted) card.scrollIntoView({ block: "nearest" });
  return card;
}

function draw(entry) {
  const { card, news } = entry;
  const [icon, word] = STATUS[news.status];
  card.dataset.status = news.status;
  $(".icon", card).textContent = icon;
  $(".word", card).textContent = word;
  put($(".tally", card), tally(news));
  put($(".failures", card), news.failed ? `${number(news.failed)} failed` : "");
  put($(".facts", card), facts(news));
  put($(".progress", card), news.progress);
  put($(".error", card), news.error);
  $(".cancel", card).hidden = news.final;
  const bar = $("progress", card);
  Object.assign(bar, { hidden: news.status !== "IN_PROGRESS" || !news.items, max: news.items || 1, value: news.count });
  drawResults(card, news);
  drawClock(entry);
}

function tally({ status, items, count }) {
  if (status === "IN_QUEUE") return items === null ? "" : counted(items, "item");
  if (status === "IN_PROGRESS" && items) return `${number(count)} of ${counted(items, "result")}`;
  return counted(count, "result");
}

function facts({ status, workerId, delayTime, retries }) {
  const taken = status !== "IN_QUEUE" && workerId && `${workerId}, after ${duration(delayTime)} in the queue`;
  const lost = retries && `given back to the queue ${counted(retries, "time")} because its worker ended`;
  return [taken, lost].filter(Boolean).join(" · ");
}

function drawClock({ card, news, queued }) {
  const since = performance.now() - queued - (news.status === "IN_PROGRESS" ? news.delayTime : 0);
  put($(".clock", card), news.final ? duration(news.executionTime ?? 0) : `${Math.floor(since / 1000)} s`);
}

function drawResults(card, { fresh, results, growing, count }) {
  const list = $(".results", card);
  const followed = list.scrollTop + list.clientHeight > list.scrollHeight - 10;
  if (fresh) [...list.children].forEach(discard);
  for (const result of results) {
    $(`[data-growing="${result.index}"]`, list)?.remove();
    list.insertBefore(drawResult(result), $("[data-growing]", list));
  }
  for (const [index, text] of growing) grow(list, index, text);
  while (list.children.length > limits.results) discard(list.firstElementChild);
  list.hidden = !list.children.length;
  const earlier = count - list.querySelectorAll(":not([data-growing]) > .index").length;
  put($(".earlier", card), earlier > 0 ? `${counted(earlier, "earlier result")} not shown: see /status.` : "");
  if (followed) list.scrollTop = list.scrollHeight;
}

function grow(list, index, text) {
  let item = $(`[data-growing="${index}"]`, list);
  if (!item) {
    item = drawResult({ index, after: null, text: "", files: [] });
    item.dataset.growing = index;
    $(".outcome", item).textContent = "◐ so far";
    const later = [...list.querySelectorAll("[data-growing]")].find(({ dataset }) => dataset.growing > index);
    list.insertBefore(item, later ?? null);
  }
  const shown = $(".text", item);
  shown.textContent = (shown.textContent + text).slice(-limits.preview);
  shown.scrollTop = shown.scrollHeight;
}

function drawResult({ index, after, success, text, files }) {
  const item = copy("#result");
  item.dataset.success = success;
  $(".index", item).textContent = index;
  $(".outcome", item).textContent = { true: "✓ ok", false: "✕ failed" }[success] ?? "";
  $(".text", item).textContent = text;
  $(".after", item).textContent = after === null ? "" : `+${duration(1000 * after)}`;
  $(".files", item).append(...files.map(drawFile));
  return item;
}

// A file to save, and to look at if it is a picture. One in a bucket is fetched only when a person follows the link.
function drawFile({ name, content_type, bytes, data, url }) {
  const file = copy("#file");
  const link = $("a", file);
  link.textContent = name;
  link.download = name;
  $(".size", file).textContent = `${size(bytes)}, ${content_type}`;
  if (/^https?:/.test(url)) Object.assign(link, { href: url, target: "_blank", rel: "noreferrer" });
  const content = data === undefined ? null : decoded(data);
  if (!content) {
    put($(".why", file), url === undefined ? "not shown: see /status" : "in a bucket");
    return file;
  }
  const shown = PICTURE.test(content_type);
  link.href = URL.createObjectURL(new Blob([content], { type: shown ? content_type : "application/octet-stream" }));
  const picture = $("img", file);
  if (shown) Object.assign(picture, { src: link.href, alt: `File ${name}`, hidden: false });
  picture.addEventListener("error", () => (picture.hidden = true));
  return file;
}

function decoded(data) {
  try {
    return Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  } catch {
    return null; // no base64
  }
}

function size(bytes) {
  if (bytes < 1000) return counted(bytes, "byte");
  if (bytes < 999_500) return `${(bytes / 1000).toPrecision(3)} kB`;
  return `${(bytes / 1_000_000).toPrecision(3)} MB`;
}

// Take an element off the page, and free the memory of its files.
function discard(element) {
  for (const link of element.querySelectorAll("[href^='blob:']")) URL.revokeObjectURL(link.href);
  element.remove();
}

async function load() {
  const found = await call("form")
    .then((answer) => answer.text())
    .then((text) => ({ ...JSON.parse(text), example: form.parse(text).example }))
    .catch((error) => ({ why: error.message }));
  const { example = {}, why = "The form has no field for a part of test_input.json." } = found;
  if (schema && JSON.stringify(schema) === JSON.stringify(found.schema)) return; // keep what has been typed
  schema = found.schema;
  const shown = form.holds(schema, example);
  if (shown) form.show($("#fields"), schema, example);
  put($("#about"), shown ? schema.description : `${why} Write the input as JSON.`);
  $("#json").value = JSON.stringify(example, null, 2);
  $("#toggle").hidden = !schema;
  edit(!shown);
  $("#run").disabled = false;
}

function edit(asJson) {
  $("#edit-json").checked = asJson;
  $("#as-json").hidden = $("#as-json").disabled = !asJson; // disabled, since a hidden field must not be required
  $("#fields").hidden = $("#fields").disabled = asJson;
}

// The input as JSON, as it was written: JavaScript would round large numbers.
function input(asJson) {
  if (!asJson) return form.read();
  JSON.parse($("#json").value);
  return $("#json").value;
}

function toggle() {
  const asJson = $("#edit-json").checked;
  $("#edit-json").checked = !asJson; // until it has worked
  const written = input(!asJson);
  if (asJson) $("#json").value = written;
  else if (form.holds(schema, form.parse(written))) form.show($("#fields"), schema, form.parse(written));
  else throw new Error("The form has no field for a part of this.");
  edit(asJson);
}

async function submit() {
  const body = `{"input": ${input($("#edit-json").checked)}}`;
  $("#run").disabled = true;
  const answer = await call("v2/local/run", { method: "POST", body })
    .then((answer) => answer.json())
    .catch(() => ({ error: "The endpoint does not answer: the job was not submitted." }))
    .finally(() => ($("#run").disabled = false));
  if (answer.error) throw new Error(answer.error);
  submitted = answer.id;
  cards.get(submitted)?.card.scrollIntoView({ block: "nearest" });
}

function on(type, element, act) {
  element.addEventListener(type, async (event) => {
    if (type === "submit") event.preventDefault();
    put($("#refusal"), "");
    try {
      await act(event);
    } catch (error) {
      put($("#refusal"), error.message);
    }
  });
}

function start() {
  $("#key").hidden = true;
  follow();
  load();
}

for (const tab of document.querySelectorAll("[role=tab]")) {
  tab.addEventListener("click", () => choose(tab));
  tab.addEventListener("keydown", ({ key }) => {
    const other = { ArrowRight: tab.nextElementSibling, ArrowLeft: tab.previousElementSibling }[key];
    if (other) choose(other);
  });
}
on("submit", $("#job"), submit);
on("change", $("#edit-json"), toggle);
$("#job").addEventListener("invalid", ({ target }) => {
  put($("#refusal"), `${target.labels[0].textContent}: ${target.validationMessage}`);
}, true);
on("submit", $("#key"), () => {
  sessionStorage.setItem("key", $("#api-key").value);
  start();
});
$("#job").addEventListener("keydown", ({ key, ctrlKey, metaKey }) => {
  if (key === "Enter" && (ctrlKey || metaKey)) $("#job").requestSubmit($("#run"));
});
start();
