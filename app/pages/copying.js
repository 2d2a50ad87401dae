/** What a person takes from the page into a terminal or a program. */

import { copy, element } from "./dom.js";
import { say } from "./language.js";

const LONGEST = 1500; // milliseconds that "copied" stands there

/** `{word: weight}` of an explanation, as `/encode` gives it. */
export const weights = (explanation) => Object.fromEntries(explanation.words.map(({ word, weight }) => [word, weight]));

const json = (value) => JSON.stringify(value, null, 2);

export function searchRequest(vector) {
  return json({ query: { neural_sparse: { text_sparse: { query_tokens: vector } } } });
}

export const document_ = (text, vector) => json({ text, text_sparse: vector });

/** For a shell: in single quotes, with those of the text outside of them. The key itself is not in it. */
export function curl(path, body, hasKey) {
  const quoted = `'${JSON.stringify(body).replaceAll("'", `'\\''`)}'`;
  const key = hasKey ? ` -H "Authorization: Bearer $API_KEY"` : "";
  const address = new URL(path, document.baseURI).href;
  return `curl -s '${address}' -H 'Content-Type: application/json'${key} -d ${quoted}`;
}

/** Buttons for `offers`: what each is called, and a function that makes it. */
export function copyButtons(offers) {
  const said = element("span", { class: "said", role: "status" });
  const buttons = offers.map(([name, make]) =>
    element("button", {
      type: "button",
      class: "plain small",
      textContent: say(name),
      onclick: async () => {
        await copy(make());
        said.textContent = say("copied");
        setTimeout(() => (said.textContent = ""), LONGEST);
      },
    }),
  );
  return element("div", { class: "copies" }, element("span", { class: "quiet", textContent: say("copyAs") }), ...buttons, said);
}
