"use strict";
// Everything works without this. It renews the live parts of a page, says how long ago times are, and knows some keys.
(() => {
    const body = document.body;
    body.classList.add("scripted");

    // How long ago.
    const ago = (seconds) => {
        const sooner = seconds < 0;
        const s = Math.abs(seconds);
        const text = s < 90 ? `${Math.round(s)} s` : s < 5400 ? `${Math.round(s / 60)} min`
            : s < 129600 ? `${Math.round(s / 3600)} h` : `${Math.round(s / 86400)} d`;
        return sooner ? `in ${text}` : `${text} ago`;
    };
    const tellTimes = () => {
        for (const time of document.querySelectorAll("time[datetime]")) {
            const words = ago((Date.now() - Date.parse(time.dateTime)) / 1000);
            if (time.dataset.ago !== words) time.dataset.ago = words;
            time.classList.toggle("today", time.dateTime.slice(0, 10) === new Date().toISOString().slice(0, 10));
        }
    };
    // The live parts, by their ids. What somebody is typing in, or has chosen, stays.
    const refresh = Number(body.dataset.refresh);
    const was = new Map();
    for (const part of document.querySelectorAll("[data-live][id]")) was.set(part.id, part.innerHTML);
    const isLive = () => document.querySelector("[data-refreshes]") !== null;
    const renew = async () => {
        if (document.hidden || !isLive()) return;
        let fresh;
        try {
            const answer = await fetch(location.href, { credentials: "same-origin", cache: "no-store" });
            if (!answer.ok || answer.redirected) {
                body.classList.add("stale");
                return;
            }
            fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
        } catch {
            body.classList.add("stale");
            return;
        }
        body.classList.remove("stale");
        for (const part of document.querySelectorAll("[data-live][id]")) {
            const next = fresh.getElementById(part.id);
            const busy = part.contains(document.activeElement) && document.activeElement.matches("input, select, textarea");
            const chosen = document.getSelection();
            const selecting = chosen && !chosen.isCollapsed && part.contains(chosen.anchorNode);
            if (!next || busy || selecting || next.innerHTML === was.get(part.id)) continue;
            const key = part.querySelector("tr.chosen")?.dataset.key;
            const focused = part.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
            was.set(part.id, next.innerHTML);
            part.replaceWith(next);
            if (key) next.querySelector(`tr[data-key="${CSS.escape(key)}"]`)?.classList.add("chosen");
            if (focused) next.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
        }
        if (!fresh.querySelector("[data-refreshes]")) document.querySelector("[data-refreshes]")?.removeAttribute("data-refreshes");
        tellTimes();
    };
    tellTimes();
    setInterval(tellTimes, 1000);
    if (refresh > 0) setInterval(renew, refresh * 1000);

    // Keys.
    const rows = () => [...document.querySelectorAll("main table tbody tr")];
    const choose = (step) => {
        const all = rows();
        if (all.length === 0) return;
        const now = all.findIndex((row) => row.classList.contains("chosen"));
        const next = all[Math.min(Math.max(now + step, 0), all.length - 1)];
        for (const row of all) row.classList.toggle("chosen", row === next);
        next.scrollIntoView({ block: "nearest" });
        next.querySelector("a")?.focus({ preventScroll: true });
    };
    const places = {
        o: "/console", d: "/console/dead", l: "/console/operations?state=live",
        p: "/console/pauses", t: "/console/tasks", a: "/console/audit",
    };
    const requeue = () => {
        const open = document.querySelector("#actions a[href$='/requeue']");
        const chosen = document.querySelector("tr.chosen a[href^='/console/operations/']");
        if (open) location.assign(open.href);
        else if (chosen && chosen.closest("#dead")) location.assign(`${chosen.getAttribute("href")}/requeue`);
    };
    let going = 0;
    document.addEventListener("keydown", (event) => {
        if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
        if (going && Date.now() - going < 1500 && places[event.key]) {
            location.assign(places[event.key]);
            return;
        }
        going = 0;
        switch (event.key) {
            case "g": going = Date.now(); break;
            case "/": document.getElementById("q")?.focus(); event.preventDefault(); break;
            case "j": choose(1); break;
            case "k": choose(-1); break;
            case "r": requeue(); break;
            case "?": location.assign("/console/help"); break;
        }
    });
})();
