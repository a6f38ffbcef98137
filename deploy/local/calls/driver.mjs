// Plays the calls, one after the other, and prints a line for each. Exits with 1 when one is not as it has to be.
//
// The servers run already; the one argument names a file that says where they are, and which users there are.

import { readFile } from "node:fs/promises";
import path from "node:path";
import { chromium } from "playwright-core";
import { MatrixUser } from "./matrix.mjs";
import { NovaUser } from "./nova.mjs";
import { SCENARIOS } from "./scenarios.mjs";
import { SlowProxy } from "./slow.mjs";
import { until } from "../waiting.mjs";
import { serve } from "./web.mjs";

const BROWSER_ARGUMENTS = [
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
    // Where there is no other interface than the loopback one, no candidate is found without this.
    "--allow-loopback-in-peer-connection",
    "--autoplay-policy=no-user-gesture-required",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
];

async function main() {
    const setting = JSON.parse(await readFile(process.argv[2], "utf8"));
    const world = await arrange(setting);
    try {
        await play(world, setting.only);
        for (const check of world.finished) await check();
        await complain(world);
    } catch (error) {
        for (const problem of await world.problems().catch(() => [])) console.log(`       the browser: ${problem}`);
        throw error;
    } finally {
        for (const { matrix } of [world.grace, world.linus]) matrix.stop();
        await world.browser.close();
    }
}

/** Ada and Grace in one conversation, Grace and Linus in another. */
async function arrange(setting) {
    const turn = new SlowProxy(setting.turn_port);
    await turn.listen(setting.slow_port);
    const [origin, secondOrigin] = await Promise.all([setting.api_url, setting.second_api_url].map(serve));
    const browser = await chromium.launch({
        executablePath: setting.chromium,
        // It cannot be had as root, nor in most containers, and no page but ours is loaded.
        chromiumSandbox: false,
        args: BROWSER_ARGUMENTS,
    });
    const user = (name) => new NovaUser(name, setting.users[name.toLowerCase()], setting.api_url);
    const [ada, grace, linus] = ["Ada", "Grace", "Linus"].map(user);
    for (const one of [grace, linus]) {
        one.matrix = new MatrixUser(one.name, setting.users[one.name.toLowerCase()], setting.homeserver_url);
    }
    const onSecond = [setting.users.ada, setting.users.grace].map((who, i) => {
        return new NovaUser(["Ada", "Grace"][i], who, setting.second_api_url);
    });
    await Promise.all([
        ...onSecond.map((user) => user.open(browser, secondOrigin, "websocket")),
        ada.open(browser, origin, "rest"),
        grace.open(browser, origin, "websocket"),
        ...[grace, linus].map(({ name, matrix }) => matrix.start(path.join(setting.directory, `${name}.log`))),
    ]);
    const world = {
        ada,
        grace,
        linus,
        browser,
        turn,
        serviceUser: setting.service_user,
        relayPorts: setting.relay_ports,
        homeserver: {
            freeze: () => process.kill(setting.homeserver_pid, "SIGSTOP"),
            thaw: () => process.kill(setting.homeserver_pid, "SIGCONT"),
        },
        /** Those that were placed, by the API's ids. */
        calls: new Set(),
        /** What must still be so when all calls are over. */
        finished: [],
        problems: async () => (await Promise.all([ada, grace, ...onSecond].map((user) => user.problems()))).flat(),
    };
    /** The same world, with its browsers at the api that keeps calls from Matrix. */
    world.second = { ...world, ...(await converse(ada, grace)), ada: onSecond[0], grace: onSecond[1] };
    world.second.grace.matrix = grace.matrix;
    world.other = { ...world, ...(await converse(grace, linus)) };
    return Object.assign(world, await converse(ada, grace));
}

/** A conversation that has a room, where everybody is who has a Matrix client. */
async function converse(one, other) {
    const { id } = await one.request("POST", "/conversations", { members: [other.id], name: "Calls" });
    await one.request("POST", "/messages", { conversation_id: id, plaintext: "I will call you." });
    const roomId = await until("the conversation has a room", async () => {
        return (await one.request("GET", `/conversations/${id}`)).matrix.room_id;
    });
    // A Matrix client rings only for what comes after its first sync, in rooms that it is in.
    for (const { matrix } of [one, other]) await matrix?.ask("join", { roomId });
    return { conversationId: id, roomId };
}

async function play(world, only) {
    for (const [index, [title, scenario]] of SCENARIOS.entries()) {
        const number = index + 1;
        if (only.length > 0 && !only.includes(number)) continue;
        const line = `${String(number).padStart(2)}  ${title}`;
        const started = performance.now();
        const seconds = () => ((performance.now() - started) / 1000).toFixed(1);
        try {
            const note = await scenario(world);
            await complain(world);
            console.log(`   ok  ${line} (${seconds()} s${note ? `; ${note}` : ""})`);
        } catch (error) {
            console.log(`   NOT ${line} (${seconds()} s)`);
            throw error;
        }
    }
}

async function complain(world) {
    const problems = await world.problems();
    if (problems.length > 0) throw new Error(`the browser: ${problems.join("; ")}`);
}

main().then(
    () => process.exit(0),
    (error) => {
        const expected = error.constructor.name === "Fault";
        console.log(`       ${expected ? error.message : error.stack}`);
        process.exit(1);
    },
);
