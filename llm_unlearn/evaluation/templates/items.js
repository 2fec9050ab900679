// Search, choice and order of the items of a page. `told` is an item's text, `chosen` whether it belongs to a value of
// the field `choice`, `named` whether a word is its name, and `key` by what it stands in an order, smallest first.
function showItems({ choice, told, chosen, named = () => false, key }) {
  const form = document.querySelector(".controls");
  if (!form) return;
  const list = document.querySelector(".items");
  const rows = [...list.children];
  const texts = rows.map((row) => told(row).toLowerCase());
  const output = form.querySelector("output");

  function filter() {
    const words = form.words.value.toLowerCase().split(/\s+/).filter(Boolean);
    const value = form[choice].value;
    let shown = 0;
    rows.forEach((row, i) => {
      const has = (word) => named(row, word) || texts[i].includes(word);
      const fits = (!value || chosen(row, value)) && words.every(has);
      row.hidden = !fits;
      shown += fits;
    });
    output.textContent = `${shown} of ${rows.length} shown`;
  }

  function order() {
    const name = form.order.value;
    list.append(...(name ? [...rows].sort((a, b) => key(a, name) - key(b, name) || 0) : rows));
  }

  form.addEventListener("submit", (event) => event.preventDefault());
  form.words.addEventListener("input", filter);
  form[choice].addEventListener("change", filter);
  form.order.addEventListener("change", order);
  form.hidden = false;
  filter();
}
