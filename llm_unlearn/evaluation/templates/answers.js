{% include "items.js" %}
showItems({
  choice: "set",
  told: (row) => row.textContent,
  chosen: (row, set) => row.dataset.set === set,
  key: (row, name) => ({ high: -1, low: 1 })[name] * Number(row.dataset.probability ?? NaN),
});
