"use strict";
(() => {
  const gallery = document.getElementById("gallery");
  if (!gallery) return;
  const sort = document.getElementById("sort");
  const find = document.getElementById("find");
  const shown = document.getElementById("shown");
  const cards = [...gallery.children].map((card) => ({
    card,
    score: Number(card.dataset.score),
    std: Number(card.dataset.std),
    name: card.querySelector(".name").textContent,
    text: card.querySelector(".facts").textContent.toLowerCase(),
  }));
  const orders = {
    score: (a, b) => b.score - a.score,
    "-score": (a, b) => a.score - b.score,
    "-std": (a, b) => b.std - a.std,
    name: (a, b) => a.name.localeCompare(b.name),
  };
  sort.addEventListener("change", () => {
    gallery.append(...[...cards].sort(orders[sort.value]).map(({ card }) => card));
  });
  find.addEventListener("input", () => {
    const wanted = find.value.trim().toLowerCase();
    let count = 0;
    for (const { card, text } of cards) {
      card.hidden = !text.includes(wanted);
      count += card.hidden ? 0 : 1;
    }
    shown.value = wanted ? `${count} of ${cards.length}` : `${cards.length} image${cards.length === 1 ? "" : "s"}`;
  });
  const controls = document.getElementById("controls");
  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.reset();
  controls.hidden = false;
})();
