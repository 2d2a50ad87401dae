/** Documents in the order in which OpenSearch finds them, each with what its score is made of. */

import { element } from "./dom.js";
import { number, say } from "./language.js";
import { nameOf } from "./words.js";

const AT_MOST = 6; // shared words that are named of one document

const names = (text, explanation, id) => {
  const word = explanation.words.find((one) => one.id === id);
  const tokens = word?.tokens.slice(0, 2).map(({ token }) => nameOf(text, explanation.tokens[token])) ?? [];
  return [...new Set(tokens)].join(", ");
};

/** `documents`: as they were sent; `answer`: of `/explain`. */
export function rankingList(query, documents, answer, heading) {
  const order = answer.scores.map((_, index) => index).sort((a, b) => answer.scores[b].score - answer.scores[a].score || a - b);
  const best = Math.max(...answer.scores.map(({ score }) => score), 1e-9);
  const rows = order.map((index) => {
    const { score, words } = answer.scores[index];
    const asked = new Set(words.map(({ id }) => id));
    const shared = words.slice(0, AT_MOST).map((word) => {
      const from = say("from", { asked: names(query, answer.query, word.id), stored: names(documents[index], answer.texts[index], word.id) });
      const own = answer.query.words.find(({ id }) => id === word.id)?.own && answer.texts[index].words.find(({ id }) => id === word.id)?.own;
      const part = element(
        "li",
        { class: own ? "own" : "related" },
        element("span", { class: "name", textContent: word.word }),
        element("span", { class: "bar", "aria-hidden": "true" }, element("span", { class: "fill" })),
        element("span", { class: "weight", textContent: `+${number(word.adds)}` }),
        element("span", { class: "from quiet", textContent: `${from} · ${say("adds", { query: number(word.query), document: number(word.document), adds: number(word.adds) })}` }),
      );
      part.querySelector(".fill").style.setProperty("--length", word.adds / words[0].adds);
      return part;
    });
    const rest = words.slice(AT_MOST);
    const others = say("others", { count: rest.length, adds: number(rest.reduce((sum, { adds }) => sum + adds, 0)) });
    const row = element(
      "li",
      { class: `card found${score ? "" : " missed"}`, "data-document": String(index + 1) },
      element(
        "div",
        { class: "head" },
        element("h2", { textContent: say("documentNumber", { number: index + 1 }) }),
        element("b", { class: "score", textContent: score ? say("score", { score: number(score) }) : "0" }),
      ),
      element("div", { class: "meter", "aria-hidden": "true" }, element("span", { class: "fill" })),
      element("p", { class: "marked" }, ...marks(documents[index], answer.texts[index], asked)),
      shared.length ? element("ul", { class: "shared" }, ...shared) : element("p", { class: "quiet", textContent: say("noScore") }),
      rest.length ? element("p", { class: "others quiet", textContent: others }) : null,
    );
    row.querySelector(".meter .fill").style.setProperty("--length", score / best);
    return row;
  });
  return element("div", {}, heading ? element("h2", { textContent: heading }) : null, element("ol", { class: "ranking" }, ...rows));
}

/** `text` with the tokens marked that brought a word of `asked`. */
function marks(text, explanation, asked) {
  const characters = Array.from(text);
  const hit = new Set(explanation.words.filter(({ id }) => asked.has(id)).flatMap(({ tokens }) => tokens.map(({ token }) => token)));
  const pieces = [];
  let done = 0;
  explanation.tokens.forEach(({ start, stop }, index) => {
    if (!hit.has(index) || start === null || start < done) return;
    pieces.push(characters.slice(done, start).join(""), element("mark", { textContent: characters.slice(start, stop).join("") }));
    done = stop;
  });
  return [...pieces, characters.slice(done).join("")];
}
