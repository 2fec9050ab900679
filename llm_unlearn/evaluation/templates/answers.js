(() => {
  const form = document.querySelector(".controls");
  if (!form) return;
  const list = document.querySelector(".items");
  const rows = [...list.children];
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const output = form.querySelector("output");

  function filter() {
    const words = form.words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, i) => {
      const fits = (!form.set.value || row.dataset.set === form.set.value) && words.every((word) => texts[i].includes(word));
      row.hidden = !fits;
      shown += fits;
    });
    output.textContent = `${shown} of ${rows.length} shown`;
  }

  function order() {
    const sign = { high: -1, low: 1 }[form.order.value];
    const key = (row) => Number(row.dataset.probability ?? NaN);
    const sorted = sign ? [...rows].sort((a, b) => sign * (key(a) - key(b)) || 0) : rows;
    list.append(...sorted);
  }

  form.addEventListener("submit", (event) => event.preventDefault());
  form.words.addEventListener("input", filter);
  form.set.addEventListener("change", filter);
  form.order.addEventListener("change", order);
  form.hidden = false;
  filter();
})();
