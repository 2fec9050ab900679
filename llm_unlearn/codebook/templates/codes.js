(() => {
  const form = document.querySelector(".controls");
  const list = document.querySelector(".items");
  const rows = [...list.children];
  const texts = rows.map((row) => [...row.querySelectorAll(".said, .tag")].map((part) => part.textContent).join("\n").toLowerCase());
  const output = form.querySelector("output");

  function filter() {
    const words = form.words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, i) => {
      const told = (word) => row.dataset.code === word || texts[i].includes(word);
      const fits = (!form.kind.value || row.dataset.kind.split(" ").includes(form.kind.value)) && words.every(told);
      row.hidden = !fits;
      shown += fits;
    });
    output.textContent = `${shown} of ${rows.length} shown`;
  }

  function order() {
    const name = form.order.value;
    const sign = name === "code" ? 1 : -1;
    const key = (row) => (row.dataset[name] === "" ? -Infinity : Number(row.dataset[name]));
    list.append(...(name ? [...rows].sort((a, b) => sign * (key(a) - key(b)) || 0) : rows));
  }

  form.addEventListener("submit", (event) => event.preventDefault());
  form.words.addEventListener("input", filter);
  form.kind.addEventListener("change", filter);
  form.order.addEventListener("change", order);
  form.hidden = false;
  filter();
})();
