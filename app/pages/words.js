/** A text and its words: bars, and links both ways between them. */

import { arrows, element } from "./dom.js";
import { number, say } from "./language.js";

const AT_FIRST = 30; // words that are shown before somebody asks for more
const percent = (share) => Math.max(1, Math.round(share * 100));

/** The text as a row of pieces: tokens that brought something can be pointed at. */
export function markedText(text, explanation, point) {
  const characters = Array.from(text); // offsets count code points
  const brought = new Map(); // token → words
  for (const word of explanation.words) for (const { token } of word.tokens) brought.set(token, [...(brought.get(token) ?? []), word]);
  const pieces = [];
  const tokens = new Map();
  let done = 0;
  explanation.tokens.forEach((token, index) => {
    if (token.start === null || token.start < done || token.stop <= token.start) return; // no place, or seen in a window before
    pieces.push(characters.slice(done, token.start).join(""));
    const shown = characters.slice(token.start, token.stop).join("");
    const words = brought.get(index) ?? [];
    if (words.length) {
      const piece = element("button", {
        type: "button",
        class: `token${words.some((word) => word.own) ? " own" : ""}`,
        textContent: shown,
        onmouseenter: () => point({ token: index }),
        onfocus: () => point({ token: index }),
      });
      pieces.push(piece);
      tokens.set(index, piece);
    } else {
      pieces.push(element("span", { class: token.silent ? "silent" : "", textContent: shown }));
    }
    done = token.stop;
  });
  const end = explanation.cut ? explanation.cut.start : characters.length;
  pieces.push(characters.slice(done, end).join(""));
  if (explanation.cut) pieces.push(element("span", { class: "cut", textContent: characters.slice(end).join("") }));
  const shown = element("p", { class: "marked", role: "group", "aria-label": say("text") }, ...pieces);
  arrows(shown, [...tokens.values()]);
  return { shown, tokens, brought };
}

/** What a token is called: as it stands in the text, or as the model writes it. */
export function nameOf(text, token) {
  return token.start === null ? token.token : Array.from(text).slice(token.start, token.stop).join("");
}

function reason(text, explanation, word) {
  const named = (tokens) => [...new Set(tokens.map(({ token }) => nameOf(text, explanation.tokens[token])))].join(", ");
  if (word.own) return say("whyOwn");
  const parts = [];
  if (word.head && word.head.token !== null && word.head.logit > 0)
    parts.push(say("whyHead", { by: nameOf(text, explanation.tokens[word.head.token]) }));
  if (word.related.length) parts.push(say("whyTable", { by: word.related.map((by) => by.word).join(", ") }));
  if (!parts.length) parts.push(word.tokens.length ? say("whyHead", { by: named(word.tokens) }) : say("whyBias"));
  return parts.join(" · ");
}

/** The whole of one explanation, with `heading` and `buttons` on it. */
export function wordsCard(text, explanation, heading, buttons) {
  const why = element("p", { class: "why quiet", textContent: say("hint") });
  const { shown, tokens, brought } = markedText(text, explanation, point);
  const own = explanation.words.filter((word) => word.own).length;
  const heaviest = explanation.words[0]?.weight ?? 1;
  const bars = explanation.words.map((word) => {
    const bar = element(
      "button",
      { type: "button", class: `word ${word.own ? "own" : "related"}`, onmouseenter: () => point({ word }), onfocus: () => point({ word }) },
      element("span", { class: "name", textContent: word.word }),
      element("span", { class: "bar", "aria-hidden": "true" }, element("span", { class: "fill" })),
      element("span", { class: "weight", textContent: number(word.weight) }),
      element("span", { class: "hidden", textContent: `, ${say(word.own ? "own" : "relatedWord")}` }),
    );
    bar.querySelector(".fill").style.setProperty("--length", word.weight / heaviest);
    return bar;
  });
  const list = element("ol", { class: "words" }, ...bars.map((bar) => element("li", {}, bar)));
  arrows(list, bars);
  const rows = [...list.children];
  rows.slice(AT_FIRST).forEach((row) => (row.hidden = true));

  function point({ word, token }) {
    const shares = new Map(word?.tokens.map((by) => [by.token, by.share]) ?? [[token, 1]]);
    tokens.forEach((piece, index) => {
      piece.classList.toggle("lit", shares.has(index));
      piece.style.setProperty("--share", shares.get(index) ?? 0);
    });
    const lit = word ? [word] : (brought.get(token) ?? []);
    bars.forEach((bar, index) => {
      const on = lit.includes(explanation.words[index]);
      bar.classList.toggle("lit", on);
      bar.classList.toggle("dim", !on && !word);
    });
    if (word) {
      const by = word.tokens.slice(0, 4).map((part) => say("brought", { by: nameOf(text, explanation.tokens[part.token]), share: percent(part.share) }));
      why.replaceChildren(element("b", { textContent: word.word }), ` ${number(word.weight)} — ${reason(text, explanation, word)}`, by.length > 1 && !word.own ? ` (${by.join(", ")})` : "");
    } else {
      why.textContent = say("brings", { token: nameOf(text, explanation.tokens[token]), count: lit.length });
    }
  }

  const card = element("article", { class: "card result" });
  const clear = () => {
    [...tokens.values(), ...bars].forEach((node) => node.classList.remove("lit", "dim"));
    why.textContent = say("hint");
  };
  card.addEventListener("mouseleave", clear);
  card.addEventListener("keydown", (event) => event.key === "Escape" && clear());

  const notes = [];
  if (explanation.cut) notes.push(say("cut", { count: explanation.cut.stop - explanation.cut.start }));
  if (explanation.left_out.unwritable.length)
    notes.push(say("unwritable", { words: explanation.left_out.unwritable.map(({ word }) => word).join(", ") }));
  const more = element("button", { type: "button", class: "plain small", textContent: say("more", { count: rows.length - AT_FIRST }) });
  more.addEventListener("click", () => {
    rows.forEach((row) => (row.hidden = false));
    bars[AT_FIRST].focus();
    more.remove();
  });
  if (explanation.left_out.pruned_words) notes.push(say("pruned", { count: explanation.left_out.pruned_words }));
  card.append(
    element("div", { class: "head" }, element("h2", { textContent: heading }), element("p", { class: "quiet", textContent: say("counts", { own, related: explanation.words.length - own }) })),
    shown,
    why,
    element(
      "p",
      { class: "legend quiet", "aria-hidden": "true" },
      element("span", { class: "swatch own" }),
      say("own"),
      element("span", { class: "swatch related" }),
      say("relatedWord"),
    ),
    explanation.words.length ? list : element("p", { class: "quiet", textContent: say(text.trim() ? "noWords" : "empty") }),
    ...(rows.length > AT_FIRST ? [more] : []),
    ...notes.map((note) => element("p", { class: "note quiet", textContent: note })),
    buttons,
  );
  return card;
}
