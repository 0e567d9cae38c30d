// A pasted error message is searched for as plain words: quotes, brackets and minus signs in it would be read as "must have"
// and "must not have". Queries of up to 40 characters are left alone, unless they have "=-" in them.
document.addEventListener("input", (event) => {
  const field = event.target;
  if (!field.matches(".md-search__input") || (field.value.length <= 40 && !field.value.includes("=-"))) return;
  const plain = field.value.replace(/["'`[\](){}<>=!^~*+:;,\\|]|\B-/g, " ");
  if (plain === field.value) return;
  field.value = plain;
  field.dispatchEvent(new KeyboardEvent("keyup", { bubbles: true }));
});
