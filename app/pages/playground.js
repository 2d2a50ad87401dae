/** The playground: what is typed is explained, a moment after the last key. */

import { copyButtons, curl, document_, searchRequest, weights } from "./copying.js";
import { $, arrows, element } from "./dom.js";
import { knows, language, say, speak } from "./language.js";
import { rankingList } from "./ranking.js";
import { Refusal, explain, information } from "./service.js";
import { wordsCard } from "./words.js";

const WAIT = 250; // milliseconds after the last key
const PATIENCE = 1; // seconds until it asks again, if the service does not say
const MOST_QUERY_WORDS = 256; // that the service takes for a query
const TEXTS = ["손해배상", "화면이 깨진 스마트폰은 구입한 날부터 일 년 동안 무상으로 수리한다.", "감기에 걸리면 물을 자주 마시고 충분히 쉬는 것이 좋다."];
const QUERIES = ["휴대폰 고장", "전셋집 계약 끝내기", "열이 나고 기침을 해요"];
const DOCUMENTS = [
  "화면이 깨진 스마트폰은 구입한 날부터 일 년 동안 무상으로 수리한다.",
  "임차인은 계약이 끝나기 두 달 전까지 해지를 알려야 한다.",
  "감기에 걸리면 물을 자주 마시고 충분히 쉬는 것이 좋다.",
];
const THEMES = ["Auto", "Light", "Dark"];

let known = null; // what /info says
let running = null; // AbortController of the request on its way
let timer = 0;
let drawn = () => {}; // draws the last answer again, in another language
const shown = new WeakMap(); // the answer that each place shows: the same one is not drawn again, the focus may be in it
let trouble = null;

const remembered = (name) => {
  try {
    return localStorage.getItem(name);
  } catch {
    return null; // a browser may forbid it
  }
};
const remember = (name, value) => {
  try {
    localStorage.setItem(name, value);
  } catch {
    /* then it is forgotten */
  }
};

const searching = () => !$("search").hidden;
const documents = () => [...document.querySelectorAll("#documents textarea")].map((area) => area.value);
const numberOf = (id) => ($(id).value === "" || !$(id).checkValidity() ? undefined : Number($(id).value));

function wanted(version) {
  const inferenceFree = $("inference-free").checked ? "inference_free" : undefined;
  const bounds = { top_k: numberOf("top-k"), min_weight: numberOf("min-weight"), version: version || undefined };
  if (searching()) {
    const ofQuery = { query_top_k: bounds.top_k && Math.min(bounds.top_k, MOST_QUERY_WORDS), query_min_weight: bounds.min_weight };
    return { query: $("query").value, texts: documents(), rounding: $("rounding").value, query_encoding: inferenceFree, ...bounds, ...ofQuery };
  }
  const kind = $("input-type").value;
  return { texts: [$("text").value], input_type: kind, query_encoding: kind === "query" ? inferenceFree : undefined, ...bounds };
}

function later(milliseconds = WAIT) {
  clearTimeout(timer);
  timer = setTimeout(ask, milliseconds);
}

async function ask() {
  clearTimeout(timer);
  running?.abort();
  const own = (running = new AbortController());
  const place = $(searching() ? "ranking" : "results");
  if (searching() && (!$("query").value.trim() || !documents().some((text) => text.trim()))) {
    place.replaceChildren();
    shown.delete(place);
    return;
  }
  const versions = [$("version").value, ...($("other").value ? [$("other").value] : [])];
  const bodies = versions.map(wanted);
  document.body.classList.add("busy");
  try {
    if (!known) await learn();
    const answers = await Promise.all(bodies.map((body) => explain(body, $("key").value, own.signal)));
    if (own.signal.aborted) return;
    drawn = () => draw(place, bodies, answers);
    const answer = JSON.stringify([language(), bodies, answers]);
    if (shown.get(place) !== answer) drawn();
    shown.set(place, answer);
    complain(null);
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!(error instanceof Refusal)) throw error;
    complain(error);
    if (error.status === 429 || error.status === 503) later((error.retryAfter ?? PATIENCE) * 1000);
  } finally {
    if (running === own) document.body.classList.remove("busy");
  }
}

function draw(place, bodies, answers) {
  place.classList.toggle("two", answers.length > 1);
  if (bodies[0].query !== undefined) {
    const lists = bodies.map((body, at) => rankingList(body.query, body.texts, answers[at], answers.length > 1 ? answers[at].version : ""));
    const vector = weights(answers[0].query);
    place.replaceChildren(...lists, copyButtons([
      ["copyQuery", () => searchRequest(vector)],
      ["copyJson", () => JSON.stringify(answers[0].scores, null, 2)],
      ["copyCurl", () => curl("explain", bodies[0], Boolean($("key").value))],
    ]));
    return;
  }
  place.replaceChildren(...bodies.map((body, at) => {
    const [text] = body.texts;
    const [explanation] = answers[at].texts;
    const vector = weights(explanation);
    const isQuery = body.input_type === "query";
    return wordsCard(text, explanation, answers[at].version, copyButtons([
      isQuery ? ["copyQuery", () => searchRequest(vector)] : ["copyDocument", () => document_(text, vector)],
      ["copyJson", () => JSON.stringify(vector, null, 2)],
      ["copyCurl", () => curl("encode", body, Boolean($("key").value))],
    ]));
  }));
}

function complain(error) {
  trouble = error;
  const place = $("trouble");
  place.hidden = !error;
  if (!error) return place.replaceChildren();
  const name = `error${error.status}`;
  const seconds = error.retryAfter ?? PATIENCE;
  place.replaceChildren(
    element("b", { textContent: say(knows(name) ? name : "errorOther", { seconds }) }),
    error.message && error.status !== 401 ? element("span", { textContent: ` ${error.message}` }) : null,
  );
  if (error.status === 401 && !$("options").open) {
    $("options").open = true;
    $("key").focus();
  }
}

async function learn() {
  known = await information($("key").value);
  showVersions();
}

function showVersions() {
  if (!known) return;
  const { serving, resident = [], aliases = {} } = known.versions;
  const names = [...new Set([...Object.keys(aliases), ...Object.values(aliases), ...resident])].filter((name) => name !== serving);
  const options = () => names.map((name) => element("option", { value: name, textContent: name }));
  const chosen = [$("version").value, $("other").value];
  $("version").replaceChildren(element("option", { value: "", textContent: say("served", { name: serving }) }), ...options());
  $("other").replaceChildren(element("option", { value: "", textContent: say("nothing") }), ...(names.length ? [element("option", { value: serving, textContent: serving }), ...options()] : []));
  [$("version").value, $("other").value] = chosen;
  $("other").disabled = !names.length;
  $("inference-free").disabled = !known.model.query_encodings.includes("inference_free");
  $("top-k").placeholder = `${known.limits.top_k_document} / ${known.limits.top_k_query}`;
  $("min-weight").placeholder = "0";
  $("model").textContent = `${serving} · ${known.device}`;
}

function show(tab) {
  for (const name of ["words", "search"]) {
    const on = name === tab;
    $(name).hidden = !on;
    $(`tab-${name}`).setAttribute("aria-selected", String(on));
    $(`tab-${name}`).tabIndex = on ? 0 : -1;
    document.body.classList.toggle(`in-${name}`, on);
  }
  complain(null);
  ask();
}

function addDocument(text) {
  const remove = element("button", { type: "button", class: "plain remove", textContent: "×" });
  const area = element("textarea", { rows: 2, value: text, spellcheck: false, autocomplete: "off", oninput: () => later() });
  const row = element("li", {}, area, remove);
  remove.addEventListener("click", () => {
    row.remove();
    label();
    $("add").focus();
    later();
  });
  $("documents").append(row);
  label();
  return area;
}

function label() {
  const rows = [...document.querySelectorAll("#documents li")];
  rows.forEach((row, index) => {
    row.querySelector("textarea").setAttribute("aria-label", say("documentNumber", { number: index + 1 }));
    row.querySelector("button").setAttribute("aria-label", say("remove", { number: index + 1 }));
    row.querySelector("button").hidden = rows.length < 2;
  });
}

function examples(place, texts, into) {
  place.append(...texts.map((text) => element("button", {
    type: "button",
    class: "example",
    lang: "ko",
    textContent: text,
    onclick: () => {
      into.value = text;
      ask();
    },
  })));
}

function dress(theme) {
  const at = THEMES.includes(theme) ? theme : "Auto";
  document.documentElement.dataset.theme = at.toLowerCase();
  $("theme").textContent = say(`theme${at}`);
  remember("theme", at);
}

function speakTo(name) {
  speak(name);
  remember("language", language());
  $("language").textContent = say("language");
  $("language").lang = language() === "ko" ? "en" : "ko";
  dress(remembered("theme"));
  label();
  showVersions();
  drawn();
  complain(trouble);
}

function begin() {
  DOCUMENTS.forEach(addDocument);
  examples($("text-examples"), TEXTS, $("text"));
  examples($("query-examples"), QUERIES, $("query"));
  $("text").value = TEXTS[1];
  $("query").value = QUERIES[0];
  speakTo(remembered("language") ?? (navigator.language.startsWith("ko") ? "ko" : "en"));
  for (const id of ["text", "query", "top-k", "min-weight"]) $(id).addEventListener("input", () => later());
  for (const id of ["input-type", "version", "other", "rounding", "inference-free"]) $(id).addEventListener("change", ask);
  $("key").addEventListener("input", () => {
    known = null;
    later();
  });
  $("add").addEventListener("click", () => addDocument("").focus());
  $("language").addEventListener("click", () => speakTo(language() === "ko" ? "en" : "ko"));
  $("theme").addEventListener("click", () => dress(THEMES[(THEMES.indexOf(remembered("theme") ?? "Auto") + 1) % THEMES.length]));
  for (const name of ["words", "search"]) {
    $(`tab-${name}`).addEventListener("click", () => show(name));
    $(`tab-${name}`).addEventListener("focus", () => $(name).hidden && show(name));
  }
  arrows(document.querySelector("[role=tablist]"), [$("tab-words"), $("tab-search")]);
  show("words");
}

begin();
