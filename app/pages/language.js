/** What the page says, in Korean and English; `{name}` stands for a value. */

const SAYINGS = {
  title: ["글에서 검색 낱말까지", "From text to search words"],
  lead: [
    "글을 쓰면 검색 색인에 들어갈 낱말과 무게가 보입니다. 낱말을 가리키면 글의 어디에서 왔는지, 글을 가리키면 무엇을 불러왔는지 보입니다.",
    "Type a text to see the words and weights that go into the search index. Point at a word to see what in the text brought it, or at the text to see what it brought.",
  ],
  views: ["보기", "Views"],
  tabWords: ["낱말", "Words"],
  tabSearch: ["검색", "Search"],
  api: ["API 문서", "API"],
  language: ["English", "한국어"],
  themeAuto: ["화면: 자동", "Theme: auto"],
  themeLight: ["화면: 밝게", "Theme: light"],
  themeDark: ["화면: 어둡게", "Theme: dark"],
  text: ["글", "Text"],
  query: ["검색어", "Query"],
  documents: ["문서", "Documents"],
  documentNumber: ["문서 {number}", "Document {number}"],
  remove: ["문서 {number} 지우기", "Remove document {number}"],
  add: ["+ 문서 더하기", "+ Add a document"],
  examples: ["보기 글", "Examples"],
  options: ["설정", "Options"],
  inputType: ["종류", "Kind"],
  document: ["문서", "Document"],
  asQuery: ["검색어", "Query"],
  version: ["모델 판", "Model version"],
  served: ["{name} (서비스 중)", "{name} (served)"],
  compare: ["나란히 볼 판", "Beside it"],
  nothing: ["없음", "none"],
  topK: ["남길 낱말 수 (top_k)", "Words kept (top_k)"],
  minWeight: ["가장 작은 무게 (min_weight)", "Least weight (min_weight)"],
  rounding: ["색인 필드", "Index field"],
  noRounding: ["반올림 없이", "no rounding"],
  inferenceFree: ["검색어를 모델 없이 (inference-free)", "Queries without the model (inference-free)"],
  key: ["API 키", "API key"],
  keyNote: ["이 화면에만 있고 저장하지 않습니다.", "Kept on this page only, never stored."],
  privacy: [
    "글은 이 서비스로만 보내며, 저장하지 않고 주소에도 넣지 않습니다.",
    "Texts go to this service only; they are not stored, nor put into the address.",
  ],
  own: ["글의 낱말", "In the text"],
  relatedWord: ["관련 낱말", "Related"],
  counts: ["글의 낱말 {own} · 관련 낱말 {related}", "{own} in the text · {related} related"],
  empty: ["빈 글에는 낱말이 없습니다.", "A blank text has no words."],
  noWords: ["남은 낱말이 없습니다.", "No words are left."],
  hint: ["낱말이나 글의 한 곳을 가리켜 보세요.", "Point at a word or at a part of the text."],
  whyOwn: ["글에 있는 낱말", "is in the text"],
  whyHead: ["모델이 “{by}”에서 떠올린 관련 낱말", "the model thought of it at “{by}”"],
  whyTable: ["관련 낱말 표: “{by}”와 함께", "by the table of related words, with “{by}”"],
  whyBias: ["글의 한 곳이 아니라 모델의 기본값에서", "from no part of the text, but the model's bias"],
  brought: ["“{by}” {share} %", "“{by}” {share}%"],
  brings: ["“{token}” → 낱말 {count}개", "“{token}” → {count} words"],
  pruned: ["그 아래 {count}개는 남기지 않음", "{count} more below are left out"],
  unwritable: ["색인에 쓸 수 없는 낱말: {words}", "Cannot be written to the index: {words}"],
  cut: ["모델은 여기까지만 읽습니다. 뒤의 {count}자는 벡터에 없습니다.", "The model reads up to here; the last {count} characters are not in the vector."],
  more: ["{count}개 더 보기", "Show {count} more"],
  copyQuery: ["OpenSearch 질의", "OpenSearch query"],
  copyDocument: ["OpenSearch 문서", "OpenSearch document"],
  copyJson: ["JSON", "JSON"],
  copyCurl: ["curl", "curl"],
  copyAs: ["복사:", "Copy:"],
  copied: ["복사했습니다", "Copied"],
  score: ["점수 {score}", "Score {score}"],
  noScore: ["함께 가진 낱말이 없어 찾지 못합니다.", "Shares no word, so it is not found."],
  others: ["그 밖의 낱말 {count}개 +{adds}", "{count} other words +{adds}"],
  adds: ["{query} × {document} = {adds}", "{query} × {document} = {adds}"],
  from: ["{asked} → {stored}", "{asked} → {stored}"],
  error0: ["서비스에 닿지 않습니다. 주소와 연결을 확인하세요.", "The service cannot be reached: check the address and the connection."],
  error401: ["API 키가 없거나 틀립니다. 아래 설정에 키를 넣으세요.", "The API key is missing or wrong: give one under Options."],
  error413: ["글이 너무 깁니다.", "That is too much at once."],
  error422: ["설정 값이 맞지 않습니다.", "An option has a value that it cannot have."],
  error429: ["지금 요청이 많습니다. {seconds}초 뒤에 다시 묻습니다.", "The service is busy; asking again in {seconds} s."],
  error503: ["지금 답할 수 없습니다. {seconds}초 뒤에 다시 묻습니다.", "It cannot answer now; asking again in {seconds} s."],
  errorOther: ["답을 얻지 못했습니다.", "There was no answer."],
};

export const LANGUAGES = ["ko", "en"];
let at = 0;

export const language = () => LANGUAGES[at];

export function speak(name) {
  at = Math.max(0, LANGUAGES.indexOf(name));
  document.documentElement.lang = language();
  for (const node of document.querySelectorAll("[data-say]")) node.textContent = say(node.dataset.say);
  for (const node of document.querySelectorAll("[data-label]")) node.setAttribute("aria-label", say(node.dataset.label));
}

export const say = (name, values = {}) => SAYINGS[name][at].replace(/\{(\w+)\}/g, (_, key) => values[key]);
export const knows = (name) => name in SAYINGS;

/** Weights and scores as people read them. */
export const number = (value) => value.toFixed(value < 10 ? 2 : 1);
