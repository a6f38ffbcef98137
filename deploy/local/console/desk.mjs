// A browser at the console, which watches over everything that it loads and shows.

import path from "node:path";
import { Fault, holds, until } from "../waiting.mjs";

// What no page may show: words of messages, and what a call's description holds.
export const CANARY = "canary-3a1f";
const NEVER_SHOWN = [CANARY, "v=0", "ice-pwd", "a=candidate"];

const WIDE = { width: 1280, height: 900 };
export const NARROW = { width: 360, height: 740 };

export class Desk {
    #problems = [];

    static async open(browser, setting, { viewport = WIDE, dark = false, script = true } = {}) {
        const context = await browser.newContext({
            baseURL: setting.api_url,
            viewport,
            colorScheme: dark ? "dark" : "light",
            javaScriptEnabled: script,
        });
        const desk = new Desk();
        Object.assign(desk, { setting, context, page: await context.newPage(), script, look: dark ? "dark" : "light", viewport });
        desk.#watch();
        return desk;
    }

    #watch() {
        const { page, setting } = this;
        const origin = new URL(setting.api_url).origin;
        page.on("pageerror", (error) => this.#problems.push(`a script failed: ${error.message}`));
        page.on("console", (message) => {
            // A refusal that is looked for shows as a failed load; it is no fault of the page's.
            if (message.type() === "error" && !message.text().includes("the server responded with a status of")) {
                this.#problems.push(`the browser's log: ${message.text()}`);
            }
        });
        page.on("request", (request) => {
            if (new URL(request.url()).origin !== origin) this.#problems.push(`something was loaded from ${request.url()}`);
        });
        page.on("response", async (response) => {
            const type = response.headers()["content-type"] ?? "";
            if (!type.startsWith("text/html")) return;
            const policy = response.headers()["content-security-policy"] ?? "";
            if (!policy.includes("default-src 'none'") || policy.includes("unsafe")) {
                this.#problems.push(`${response.url()} has the policy "${policy}"`);
            }
            const text = await response.text().catch(() => "");
            for (const word of NEVER_SHOWN) {
                if (text.includes(word)) this.#problems.push(`${response.url()} shows "${word}"`);
            }
            for (const { token } of Object.values(setting.people)) {
                if (text.includes(token)) this.#problems.push(`${response.url()} shows a token`);
            }
        });
    }

    async go(where) {
        return this.page.goto(where);
    }

    async signIn(person) {
        await this.go("/console");
        await this.page.getByLabel("Token").fill(person.token);
        await this.page.getByRole("button", { name: "Sign in" }).click();
    }

    /** Everything that the page shows, as one reads it. */
    async text() {
        return this.page.locator("body").innerText();
    }

    async shows(words) {
        await until(`${this.page.url()} shows "${words}"`, async () => (await this.text()).includes(words), 20);
    }

    async picture(name) {
        if (!this.setting.pictures) return;
        const width = this.viewport.width < 600 ? "narrow" : "wide";
        const file = path.join(this.setting.pictures, `${name}-${this.look}-${width}.png`);
        await this.page.screenshot({ path: file, fullPage: true });
    }

    /** Nothing lies beyond the right edge: nobody has to scroll sideways. */
    async fits() {
        const [width, room] = await this.page.evaluate(() => [document.documentElement.scrollWidth, window.innerWidth]);
        holds(`${this.page.url()} is ${width} wide, in a window of ${room}`, width <= room);
    }

    /** Complains of whatever went wrong on the way. */
    async close() {
        await this.context.close();
        if (this.#problems.length > 0) throw new Fault(this.#problems.join("; "));
    }
}
