// What is typed into the search is made plain before the search's worker sees it; the field itself is left as it was typed.
//
// - What is pasted (a message, a name in quotes) is searched for as plain words: quotes, brackets, colons and minus signs in
//   it would be read as "must have", "only in the field" and "must not have". In a short query the marks that the search
//   knows stay: "both words", +word, -word, word*, word~1, title:word.
// - Words that the index leaves out, such as "a", go: the search completes every word, so "a" would find "accelerate".
const ENCLOSED = /^\s*(?:"[^"]*"|'[^']*'|`+[^`]*`+|“[^”]*”|‘[^’]*’|«[^»]*»|「[^」]*」)\s*$/;
const MARKS = /["'`“”‘’«»„「」[\](){}<>=!^~*+:;,\\|]|\B-/g;
const STRAY = /[`“”‘’«»„「」[\]{}<>!;\\|]|(?<!\w)'|'(?!\w)|(?<!\b(?:title|text|tags)):|:(?!\w)|\B--+|\B-(?=[\d=])|\B\*\B/g;
const COMMON = new Set(
  "a an and are as at be been but by can could did do does for from had has have how i if in into is it its me my of on or our should so than that the their them then there these they this to us was we were what when where which while who why will with would you your".split(" "),
);
const QUERY = 2; // the kind of message that Material for MkDocs 9 sends its worker for each query

const plainQuery = (typed) => {
  const isPasted = typed.length > 40 || typed.includes("=-") || ENCLOSED.test(typed);
  // "Which codec": the page that answers is called "How to choose".
  const asked = isPasted ? typed : typed.replace(/^\s*which(?=\s+(codec|clipp|compress|reducer|method|feedback))/i, "choose");
  const words = asked.replace(isPasted ? MARKS : STRAY, " ").split(/\s+/);
  const telling = words.filter((word) => !COMMON.has(word.toLowerCase()));
  // One letter, as in "what is N", must be a word of its own: the search would complete it to every word that begins with it.
  const one = telling.join("").replace(/[?？.]+$/, "");
  if (/^[a-z]$/i.test(one)) return `+${one}`;
  return (telling.some(Boolean) ? telling : words).join(" ");
};

const post = Worker.prototype.postMessage;
Worker.prototype.postMessage = function (message, ...rest) {
  const isQuery = message?.type === QUERY && typeof message.data === "string";
  return post.call(this, isQuery ? { ...message, data: plainQuery(message.data) } : message, ...rest);
};

// Material searches on a key's release, which a paste with the mouse and some input methods do not have.
document.addEventListener("input", (event) => {
  if (event.target.matches(".md-search__input")) event.target.dispatchEvent(new KeyboardEvent("keyup", { bubbles: true }));
});
