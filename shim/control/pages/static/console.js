"use strict";
// Small additions. Every page works without this script.

(() => {
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone || "UTC";
  const fields = (date) => {
    const found = {};
    const format = new Intl.DateTimeFormat("en-GB", {
      year: "numeric", month: "2-digit", day: "2-digit",
      hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23",
    });
    for (const { type, value } of format.formatToParts(date)) found[type] = value;
    return found;
  };

  // Show times in the reader's zone, and UTC as the tooltip.
  const localize = (root) => {
    for (const element of root.querySelectorAll("time[data-style]:not([title])")) {
      const date = new Date(element.dateTime);
      if (Number.isNaN(date.getTime())) continue;
      element.title = element.textContent.trim();
      if (element.dataset.style === "day") continue; // a day of the chart is a day in UTC
      const { year, month, day, hour, minute, second } = fields(date);
      const clock = element.dataset.style === "minute" ? `${hour}:${minute}` : `${hour}:${minute}:${second}`;
      element.textContent = `${year}-${month}-${day} ${clock}`;
    }
  };

  const start = () => {
    localize(document);
    const note = document.getElementById("zone");
    if (note) note.textContent = `Times are in your zone, ${zone}.`;
    // Words such as "yesterday" in a filter mean the reader's days.
    for (const field of document.querySelectorAll("input[data-zone]")) {
      field.value = zone;
      field.disabled = false;
    }
    // Fields that were left empty would only make the address of a view longer.
    for (const form of document.querySelectorAll("form[data-short]")) {
      form.addEventListener("submit", () => {
        for (const field of form.elements) if (field.name && field.value === "") field.disabled = true;
      });
      addEventListener("pageshow", () => {
        for (const field of form.elements) if (!("zone" in field.dataset)) field.disabled = false;
      });
    }
  };

  document.addEventListener("DOMContentLoaded", start);
  document.addEventListener("htmx:after:swap", () => localize(document));
})();
