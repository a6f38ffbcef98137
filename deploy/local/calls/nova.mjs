// A Nova user: a page of a real Chromium, and the same user's REST requests beside it.

import { until } from "../waiting.mjs";

export class NovaUser {
    constructor(name, { id, token }, apiUrl) {
        Object.assign(this, { name, id, token, apiUrl });
    }

    /** Opens a page of one's own, whose requests about calls go by "rest" or by "websocket". */
    async open(browser, origin, speaks) {
        const context = await browser.newContext();
        this.page = await context.newPage();
        this.troubles = [];
        this.page.on("pageerror", (error) => this.troubles.push(error.message));
        await this.page.goto(origin);
        await this.page.waitForFunction("window.nova");
        await this.ask("connect", { token: this.token, userId: this.id, speaks });
    }

    /** Has the page's client do something. */
    async ask(method, given = {}) {
        return this.page.evaluate(([name, argument]) => window.nova[name](argument), [method, given]);
    }

    place = (conversationId, more = {}) => this.ask("place", { conversationId, ...more });
    answer = (callId) => this.ask("answer", { callId });
    reject = (callId) => this.ask("reject", { callId });
    hangup = (callId) => this.ask("hangup", { callId });
    statistics = (callId) => this.ask("statistics", { callId });

    /** Waits until the page's client sees the call as it should be. */
    async sees(callId, wanted) {
        const shown = JSON.stringify(wanted);
        let view = null;
        const fits = ([field, value]) => view?.[field] === value;
        return until(`${this.name}'s browser sees ${shown}`, async () => {
            view = await this.ask("view", { callId });
            return Object.entries(wanted).every(fits) && view;
        });
    }

    /** The frames of events, in the order in which they came. */
    async frames(callId) {
        const all = await this.page.evaluate(() => window.nova.frames);
        const events = all.filter(({ type }) => /^[A-Z]/.test(type));
        return events.filter((frame) => callId === undefined || (frame.call_id ?? frame.call?.id) === callId);
    }

    /** The frame of a ring whose call this client did not know yet. */
    async rung(known) {
        return until(`${this.name}'s browser is rung`, async () => {
            const frames = await this.frames();
            return frames.find(({ type, call_id }) => /^CallInvite/.test(type) && !known.has(call_id)) ?? null;
        });
    }

    async problems() {
        return [...this.troubles, ...(await this.page.evaluate(() => window.nova.problems))];
    }

    async request(method, path, body) {
        const headers = { Authorization: `Bearer ${this.token}` };
        if (body) Object.assign(headers, { "Content-Type": "application/json", "Idempotency-Key": crypto.randomUUID() });
        const response = await fetch(`${this.apiUrl}${path}`, { method, headers, body: body && JSON.stringify(body) });
        const answer = await response.json();
        if (!response.ok) throw new Error(`${method} ${path} was answered with ${response.status} ${answer.code}`);
        return answer;
    }
}
