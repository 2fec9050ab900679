{% include "items.js" %}
showItems({
  choice: "kind",
  told: (row) => [...row.querySelectorAll(".said, .tag")].map((part) => part.textContent).join("\n"),
  chosen: (row, kind) => row.dataset.kind.split(" ").includes(kind),
  named: (row, word) => row.dataset.code === word,
  key: (row, name) => (name === "code" ? 1 : -1) * (row.dataset[name] === "" ? -Infinity : Number(row.dataset[name])),
});
