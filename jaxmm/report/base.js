"use strict";
// What all pages are made with. All that comes from data is set as text: nothing of it is ever parsed as markup.
const store = JSON.parse(document.getElementById("store").textContent);
const one = (id) => document.getElementById(id);
const tip = one("tip");

function make(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function drawn(name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

const number = (n) => (n + 0).toLocaleString("en");  // 0 for -0
const fixed = (n, digits) => n.toFixed(digits).replace(/^-(?=0\.?0*$)/, "");
const plural = (n, noun) => `${number(n)} ${noun}${n === 1 ? "" : "s"}`;
