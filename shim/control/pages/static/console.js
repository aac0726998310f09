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

  // Copy the text of an element. Browsers allow it only with TLS.
  const copy = (button) => {
    const note = document.getElementById("copied");
    button.hidden = false;
    button.addEventListener("click", async () => {
      const text = document.getElementById(button.dataset.copy).textContent;
      try {
        await navigator.clipboard.writeText(text);
        button.firstChild.textContent = "Copied";
        note.textContent = "Copied.";
      } catch {
        note.textContent = "The browser did not allow it: select the text and copy it.";
      }
    });
  };

  // Follow the trail: the server's stream says that there are new events, and the list is loaded again.
  const follow = (button) => {
    const rows = document.getElementById("rows");
    const note = document.getElementById("live-note");
    let source = null;
    let timer = null;
    const stop = (text) => {
      source?.close();
      source = null;
      clearTimeout(timer);
      timer = null;
      button.textContent = "Follow new events";
      button.setAttribute("aria-pressed", "false");
      note.textContent = text;
    };
    const changed = () => {
      timer ??= setTimeout(() => {
        timer = null;
        htmx.trigger(rows, "trail-changed");
      }, 1000);
    };
    button.hidden = false;
    button.addEventListener("click", () => {
      if (source) {
        stop("");
        return;
      }
      source = new EventSource(button.dataset.stream);
      source.addEventListener("open", () => { note.textContent = "New events appear here as they happen."; });
      source.addEventListener("message", changed);
      source.addEventListener("error", () => {
        // The browser connects again by itself, unless the server refused.
        if (source?.readyState === EventSource.CLOSED) stop("New events cannot be followed now. Load the page again.");
      });
      button.textContent = "Stop following";
      button.setAttribute("aria-pressed", "true");
    });
  };

  const known = new Set();
  const remember = (mark) => {
    for (const row of document.querySelectorAll("#rows .event")) {
      if (mark && !known.has(row.id)) row.classList.add("new");
      known.add(row.id);
    }
  };

  document.addEventListener("DOMContentLoaded", () => {
    start();
    remember(false);
    if (navigator.clipboard) document.querySelectorAll("button[data-copy]").forEach(copy);
    const button = document.querySelector("button[data-stream]");
    if (button && globalThis.EventSource && globalThis.htmx) follow(button);
  });
  document.addEventListener("htmx:after:swap", () => {
    localize(document);
    remember(true);
  });
})();
