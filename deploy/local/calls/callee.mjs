// A Matrix client: matrix-js-sdk and its own calls, in a process of its own, since wrtc is native code and may crash.
//
// Speaks with its parent in messages: {id, method, given} is answered with {id, result} or {id, error}; in between it
// tells of each change of a call.

import { createHash } from "node:crypto";
import { summary } from "./statistics.mjs";
import { install } from "./webrtc.mjs";

install();
const sdk = await import("matrix-js-sdk");
// What it logs below warnings holds whole candidates.
for (const level of ["trace", "debug", "info", "log"]) console[level] = () => {};

const calls = new Map();
// The bodies of m.call.* as they went to the homeserver, by type.
const sent = [];
let client;

const methods = {
    async start({ baseUrl, accessToken, userId, deviceId }) {
        // Without forceTURN it offers host candidates too, and "relay only" is true of one side at best.
        const options = { forceTURN: true, fallbackICEServerAllowed: false, fetchFn: remember };
        client = sdk.createClient({ baseUrl, accessToken, userId, deviceId, ...options });
        client.on("Call.incoming", follow);
        const prepared = new Promise((resolve) => client.on("sync", (state) => state === "PREPARED" && resolve()));
        await client.startClient({ initialSyncLimit: 1 });
        await prepared;
    },

    /** Joins the room as soon as it is invited, and is in it when this resolves. */
    async join({ roomId }) {
        await membership(roomId, "invite");
        await client.joinRoom(roomId);
        await membership(roomId, "join");
    },

    async place({ roomId }) {
        const call = client.createCall(roomId);
        follow(call);
        await call.placeCall(true, true);
        return call.callId;
    },

    async answer({ callId }) {
        const call = expect(callId);
        // The SDK crashes when it is to answer a call that is over.
        if (call.state !== "ringing") throw new Error(`cannot answer: the call is ${call.state}`);
        await call.answer(true, true);
    },

    async reject({ callId }) {
        expect(callId).reject();
    },

    async hangup({ callId }) {
        expect(callId).hangup("user_hangup", false);
    },

    /** Puts the other side on hold, for which both have to negotiate. */
    async hold({ callId }) {
        expect(callId).setRemoteOnHold(true);
    },

    /** What the other side's streams are said to be. */
    async remote({ callId }) {
        const feeds = expect(callId).getRemoteFeeds();
        return feeds.map((feed) => ({ audio: feed.isAudioMuted(), video: feed.isVideoMuted(), purpose: feed.purpose }));
    },

    async statistics({ callId }) {
        return summary((await expect(callId).getCurrentCallStats()) ?? []);
    },

    /** What it has sent for a call: each event's type and the hash of its SDP. */
    async sent({ callId }) {
        return sent.filter((event) => event.callId === callId);
    },
};

function membership(roomId, wanted) {
    return new Promise((resolve) => {
        const look = () => client.getRoom(roomId)?.getMyMembership() === wanted && resolve();
        client.on("Room.myMembership", look);
        client.on("sync", look);
        look();
    });
}

function expect(callId) {
    const call = calls.get(callId);
    if (!call) throw new Error("no such call");
    return call;
}

function follow(call) {
    calls.set(call.callId, call);
    const tell = () =>
        process.send({
            call: call.callId,
            state: call.state,
            reason: call.hangupReason ?? null,
            party: call.hangupParty ?? null,
            outgoing: call.direction === "outbound",
        });
    call.on("state", tell);
    call.on("hangup", tell);
    call.on("error", (error) => process.send({ call: call.callId, error: error.code ?? String(error) }));
    tell();
}

async function remember(url, options) {
    const [, type] = /\/send\/(m\.call\.[a-z_.]+)\//.exec(String(url)) ?? [];
    if (type) {
        const content = JSON.parse(options.body);
        const { sdp = null } = content.offer ?? content.answer ?? content.description ?? {};
        sent.push({
            type,
            callId: content.call_id,
            sdpHash: sdp && createHash("sha256").update(sdp).digest("hex"),
            sdpCandidates: sdp && sdp.split("\n").filter((line) => line.startsWith("a=candidate:")).length,
        });
    }
    return fetch(url, options);
}

process.on("message", async ({ id, method, given }) => {
    try {
        process.send({ id, result: await methods[method](given) });
    } catch (error) {
        process.send({ id, error: String(error?.message ?? error) });
    }
});
process.on("disconnect", () => process.exit());
process.send({ ready: true });
