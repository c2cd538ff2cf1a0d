// What a list of labels looks like.

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

export function percent(score) {
  return `${(100 * score).toFixed(1)} %`;
}

// Fill a list with a bar for each prediction; with `choose` each is a button that calls it with the prediction.
export function showBars(list, predictions, choose) {
  list.replaceChildren(...predictions.map((prediction) => {
    const item = document.createElement("li");
    const row = element(choose ? "button" : "div", choose ? "" : "row");
    const fill = element("span", "fill");
    fill.style.setProperty("--score", Math.min(1, Math.max(0, prediction.score)));
    row.append(fill, element("span", "name", prediction.label), element("span", "score", percent(prediction.score)));
    if (choose) {
      row.type = "button";
      row.setAttribute("aria-pressed", "false");
      row.addEventListener("click", () => choose(prediction, row));
    }
    item.append(row);
    return item;
  }));
}

// Fill a description list with pairs of a name and a value.
export function showFacts(list, facts) {
  list.replaceChildren(...facts.flatMap(([name, value]) => [element("dt", "", name), element("dd", "", value)]));
}
