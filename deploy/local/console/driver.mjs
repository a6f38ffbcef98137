// Does what an operator does at the console, step by step, and prints a line for each. Exits with 1 when something is not as
// it has to be.
//
// The servers run already; the one argument names a file that says where they are, and who there is.

import { readFile } from "node:fs/promises";
import { chromium } from "playwright-core";
import { NovaUser } from "./nova.mjs";
import { Desk } from "./desk.mjs";
import { RefusingProxy } from "./refusing.mjs";
import { STEPS } from "./steps.mjs";

const BROWSER_ARGUMENTS = [
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
];

async function main() {
    const setting = JSON.parse(await readFile(process.argv[2], "utf8"));
    const homeserver = new RefusingProxy(setting.homeserver_url);
    await homeserver.listen(setting.proxy_port);
    const browser = await chromium.launch({
        executablePath: setting.chromium,
        // It cannot be had as root, nor in most containers, and no page but ours is loaded.
        chromiumSandbox: false,
        args: BROWSER_ARGUMENTS,
    });
    const { ada, grace, ...operators } = setting.people;
    const world = {
        setting,
        homeserver,
        browser,
        ada: new NovaUser(ada, setting.api_url),
        grace,
        operators,
        /** A page of its own, that watches over what it loads and shows. */
        desk: (options) => Desk.open(browser, setting, options),
    };
    try {
        for (const [index, [title, step]] of STEPS.entries()) await play(index + 1, title, step, world);
    } finally {
        await browser.close();
    }
}

async function play(number, title, step, world) {
    const line = `${String(number).padStart(2)}  ${title}`;
    const started = performance.now();
    const seconds = () => ((performance.now() - started) / 1000).toFixed(1);
    try {
        await step(world);
        console.log(`   ok  ${line} (${seconds()} s)`);
    } catch (error) {
        console.log(`   NOT ${line} (${seconds()} s)`);
        throw error;
    }
}

main().then(
    () => process.exit(0),
    (error) => {
        const expected = error.constructor.name === "Fault";
        console.log(`       ${expected ? error.message : error.stack}`);
        process.exit(1);
    },
);
