// A Matrix user: a client of its own process, and what that user reads in the room.

import { fork } from "node:child_process";
import { createWriteStream } from "node:fs";
import { fileURLToPath } from "node:url";
import { until } from "../waiting.mjs";

const CALLEE = fileURLToPath(new URL("callee.mjs", import.meta.url));
const ANSWER_MS = 60_000;
// More than a page holds would be a fault by itself; see `events`.
const PAGE = 500;

export class MatrixUser {
    /** The calls that the client knows, by the id they have on Matrix: the last that it told of each. */
    calls = new Map();
    #waiting = new Map();
    #next = 1;

    constructor(name, { matrix_user_id, access_token, device_id }, homeserver) {
        Object.assign(this, { name, userId: matrix_user_id, token: access_token, deviceId: device_id, homeserver });
    }

    async start(log) {
        this.process = fork(CALLEE, { stdio: ["ignore", "pipe", "pipe", "ipc"] });
        const output = createWriteStream(log);
        this.process.stdout.pipe(output);
        this.process.stderr.pipe(output);
        this.process.on("exit", (code, signal) => this.#ended(code ?? signal));
        await new Promise((resolve) => {
            this.process.on("message", (message) => this.#take(message, resolve));
        });
        const { homeserver: baseUrl, token: accessToken, userId, deviceId } = this;
        await this.ask("start", { baseUrl, accessToken, userId, deviceId });
    }

    stop() {
        this.stopped = true;
        // wrtc takes its time to end, and does not always.
        this.process?.kill("SIGKILL");
    }

    ask(method, given = {}) {
        const id = this.#next++;
        return new Promise((resolve, reject) => {
            const silent = () => reject(new Error(`${method}: ${this.name}'s Matrix client does not answer`));
            this.#waiting.set(id, { resolve, reject, timer: setTimeout(silent, ANSWER_MS) });
            this.process.send({ id, method, given });
        });
    }

    answer = (callId) => this.ask("answer", { callId });
    reject = (callId) => this.ask("reject", { callId });
    hangup = (callId) => this.ask("hangup", { callId });
    statistics = (callId) => this.ask("statistics", { callId });

    /** Calls; returns the id that the client gives the call. */
    place = (roomId) => this.ask("place", { roomId });

    async comesTo(callId, state, wanted = {}) {
        return until(`${this.name}'s Matrix client is "${state}" ${JSON.stringify(wanted)}`, () => {
            const call = this.calls.get(callId);
            if (call?.error) throw new Error(`${this.name}'s Matrix client: ${call.error}`);
            return call?.state === state && Object.entries(wanted).every(([field, value]) => call[field] === value);
        });
    }

    /** The hash of the SDP that it sent with the first event of this type, and how many candidates that held. */
    async sentSdp(callId, type) {
        return (await this.sent(callId, type))[0];
    }

    async sent(callId, type) {
        const events = await this.ask("sent", { callId });
        return events.filter((event) => event.type === type);
    }

    /** The m.call.* events of a call, as they stand in the room, oldest first. */
    async events(roomId, callId) {
        const path = `/rooms/${encodeURIComponent(roomId)}/messages?dir=b&limit=${PAGE}`;
        const { chunk } = await this.#get(path);
        return chunk
            .reverse()
            .filter(({ type, content }) => type.startsWith("m.call.") && (!callId || content.call_id === callId));
    }

    async #get(path) {
        const url = `${this.homeserver}/_matrix/client/v3${path}`;
        const response = await fetch(url, { headers: { Authorization: `Bearer ${this.token}` } });
        if (!response.ok) throw new Error(`GET ${path} was answered with ${response.status}`);
        return response.json();
    }

    #take(message, ready) {
        if (message.ready) ready();
        else if (message.call) this.calls.set(message.call, { ...this.calls.get(message.call), ...message });
        else {
            const { resolve, reject, timer } = this.#waiting.get(message.id);
            this.#waiting.delete(message.id);
            clearTimeout(timer);
            if (message.error) reject(new Error(`${this.name}'s Matrix client: ${message.error}`));
            else resolve(message.result);
        }
    }

    #ended(how) {
        if (this.stopped) return;
        for (const { reject } of this.#waiting.values()) reject(new Error(`${this.name}'s Matrix client ended: ${how}`));
    }
}
