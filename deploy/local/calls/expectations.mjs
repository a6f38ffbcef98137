// What has to be so after a call: the events in the room, what the API says of it, and the frames that came.
//
// That a call connects proves little. A Matrix client takes calls without `select_answer`, without any `party_id`, with a
// number for a version; and all that others depend on.

import { createHash } from "node:crypto";
import { holds, same, until } from "../waiting.mjs";

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;
const MARK = "com.nova.outbox_id";
const LONGEST_RING_MS = 90_000;
const MOST_CANDIDATE_EVENTS = 3;
const GROWTH_BYTES = 1000;
const GROWTH_PICTURES = 5;

export const sdpHash = (text) => createHash("sha256").update(text).digest("hex");

/** How many events of each kind one side sends in a call: a number, or the least and the most. */
const bounds = (count) => (Array.isArray(count) ? count : [count, count]);

/** A side of a call: who sends its events, by which party, and how many of which kind. */
export const side = (sender, party, counts) => ({ sender, party, counts });

/** Our own side, whose candidates are few events whatever the browser finds. */
export const ours = (world, party, { candidates = 1, ...counts }) =>
    side(world.serviceUser, party, { ...counts, candidates: [candidates, MOST_CANDIDATE_EVENTS] });

export const theirs = (world, counts, { matrix } = world.grace) =>
    side(matrix.userId, matrix.deviceId, { candidates: [0, 100], ...counts });

/** The call's events in the room once all have come, checked field by field. Returns them by sender and kind. */
export async function events(world, callId, ...sides) {
    const read = () => world.grace.matrix.events(world.roomId, callId);
    const count = (found, { sender }, kind) => found.filter(is(sender, kind)).length;
    let found = [];
    await until(`all events of the call are in the room: ${described(sides)}`, async () => {
        found = await read();
        return sides.every((one) =>
            Object.entries(one.counts).every(([kind, wanted]) => count(found, one, kind) >= bounds(wanted)[0]),
        );
    }).catch((error) => {
        error.message += `; there are ${found.map(({ type }) => type.slice("m.call.".length)).join(", ") || "none"}`;
        throw error;
    });
    agrees(found, callId, sides);
    world.finished.push(async () => agrees(await read(), callId, sides));
    return (one, kind) => found.filter(is(one.sender, kind));
}

const is = (sender, kind) => (event) => event.sender === sender && event.type === `m.call.${kind}`;

const described = (sides) =>
    sides.map(({ sender, counts }) => `${sender.slice(0, 8)} ${JSON.stringify(counts)}`).join(", ");

function agrees(found, callId, sides) {
    for (const { type, sender, content } of found) {
        const one = sides.find((other) => other.sender === sender);
        holds(`${type} is sent by a side of the call, not by ${sender}`, one);
        holds(`${type} is of a kind that this side sends`, one.counts[type.slice("m.call.".length)] !== undefined);
        same(`${type}: version`, content.version, "1");
        same(`${type}: call_id`, content.call_id, callId);
        same(`${type}: party_id`, content.party_id, one.party);
    }
    for (const { sender, counts } of sides) {
        for (const [kind, wanted] of Object.entries(counts)) {
            const [least, most] = bounds(wanted);
            const there = found.filter(is(sender, kind)).length;
            holds(`${there} m.call.${kind} from ${sender.slice(0, 8)}: ${least} to ${most}`, there >= least && there <= most);
        }
    }
    const our = sides[0].sender;
    const marks = found.filter(({ sender }) => sender === our).map(({ content }) => content[MARK]);
    holds("each event of ours carries our mark", marks.every((mark) => UUID.test(mark)));
    same("different marks", new Set(marks).size, marks.length);
    // What the other side ended may go on until we hear of it.
    const over = found.findIndex(({ type, sender }) => sender === our && /^m\.call\.(hangup|reject)$/.test(type));
    const late = over < 0 ? [] : found.slice(over + 1).filter(is(our, "candidates"));
    same("events with our candidates after our hangup", late.length, 0);
}

/** The one invite: for whom, for how long, and with exactly the caller's offer. */
export function invite([event], { invitee, offerHash, streams, longest = LONGEST_RING_MS }) {
    const { content } = event;
    same("m.call.invite: invitee", content.invitee, invitee);
    same("m.call.invite: offer.type", content.offer.type, "offer");
    same("m.call.invite: hash of offer.sdp", sdpHash(content.offer.sdp), offerHash);
    same("m.call.invite: sdp_stream_metadata", content.sdp_stream_metadata, streams);
    const { lifetime } = content;
    const fits = Number.isInteger(lifetime) && lifetime > 0 && lifetime <= longest;
    holds(`m.call.invite: lifetime is from 1 to ${longest}: ${lifetime}`, fits);
}

/** The one answer, with exactly the callee's SDP. */
export function answer([event], answerHash) {
    same("m.call.answer: answer.type", event.content.answer.type, "answer");
    same("m.call.answer: hash of answer.sdp", sdpHash(event.content.answer.sdp), answerHash);
}

/** Offers and answers within a call: each exactly as its maker made it, and said how long it counts. */
export function negotiations(found, descriptions) {
    const said = found.map(({ content }) => [content.description.type, sdpHash(content.description.sdp)]);
    same("m.call.negotiate: types and hashes of description.sdp", said, descriptions);
    for (const { content } of found) {
        holds("m.call.negotiate: lifetime", Number.isInteger(content.lifetime) && content.lifetime > 0);
    }
}

export function selected([event], party) {
    same("m.call.select_answer: selected_party_id", event.content.selected_party_id, party);
}

/** All candidates of these events: each once, every one a relay's; at the end, once, that there are no more. */
export function candidates(found, { complete }) {
    const all = found.flatMap(({ content }) => content.candidates);
    const real = all.filter(({ candidate }) => candidate !== "");
    holds("there are candidates", real.length > 0);
    holds("all candidates are a relay's", real.every(({ candidate }) => / typ relay /.test(candidate)));
    holds("all candidates say where they belong", real.every((one) => one.sdpMid != null || one.sdpMLineIndex != null));
    same("different candidates", new Set(real.map((one) => JSON.stringify(one))).size, real.length);
    if (complete) {
        same("times that candidates were said to end", all.length - real.length, 1);
        same("the last candidate", all.at(-1).candidate, "");
    }
}

/** The descriptions that GET /calls/{id} has while the call goes on: exactly those that were made. */
export async function descriptions(user, callId, { offerHash, answerHash }) {
    const { sdp_offer: offer, sdp_answer: answer } = await user.request("GET", `/calls/${callId}`);
    same("GET /calls/{id}: hash of sdp_offer", sdpHash(offer), offerHash);
    same("GET /calls/{id}: hash of sdp_answer", answer ? sdpHash(answer) : null, answerHash ?? null);
}

/** Of a value, what is there in another too: so much of it is compared. */
function part(value, like) {
    if (!like || typeof like !== "object") return value;
    return Object.fromEntries(Object.keys(like).map((key) => [key, part(value?.[key], like[key])]));
}

/** What GET /calls/{id} says to a user, when it has come to say that. */
export async function report(user, callId, wanted) {
    let call = {};
    const seen = () => JSON.stringify(part(call, wanted));
    await until(`the call is for ${user.name} ${JSON.stringify(wanted)}`, async () => {
        call = await user.request("GET", `/calls/${callId}`);
        return seen() === JSON.stringify(wanted);
    }).catch((error) => {
        error.message += `; it is ${seen()}`;
        throw error;
    });
    const listed = await user.request("GET", `/calls?conversation_id=${call.conversation_id}&limit=1`);
    same("the newest call of the history", listed.calls[0].id, callId);
    same("the newest call's status", listed.calls[0].status, call.status);
    return call;
}

/** The frames of a call by type: those named must have come, each as often as said; the last word is that it ended. */
export async function frames(world, user, callId, counts, { ended }) {
    let found = [];
    const ends = (frame) => frame.type === "CallUpdated" && frame.call.status === "ended";
    await until(`${user.name}'s browser is told that the call ended`, async () => {
        found = await user.frames(callId);
        return found.some(ends);
    });
    for (const [type, wanted] of Object.entries(counts)) {
        const [least, most] = bounds(wanted);
        const there = found.filter((frame) => frame.type === type).length;
        holds(`${there} frames ${type} for ${user.name}: ${least} to ${most}`, there >= least && there <= most);
    }
    same(`${user.name}'s last frame: reason`, found.findLast(ends).call.reason, ended);
    for (const frame of found) {
        same(`${frame.type}: conversation_id`, frame.conversation_id ?? frame.call?.conversation_id, world.conversationId);
        holds(`${frame.type} has a cursor`, typeof frame.cursor === "string" && frame.cursor !== "");
    }
    const told = await user.frames();
    same(`different cursors of ${user.name}'s frames`, new Set(told.map(({ cursor }) => cursor)).size, told.length);
    return (type) => found.filter((frame) => frame.type === type);
}

/** Media that grows, of both kinds, on both sides, over relays on both sides. Says how much came. */
export async function mediaFlows(world, [caller, callerCall], [callee, calleeCall]) {
    const look = async () => [await caller.statistics(callerCall), await callee.statistics(calleeCall)];
    const troubles = async () => {
        const all = await world.problems();
        if (all.length > 0) throw new Error(all.join("; "));
    };
    const first = await until("both sides receive sound and pictures", async () => {
        await troubles();
        const both = await look();
        return both.every(({ received, pictures, pair }) => pair && received.audio > 0 && pictures > 0) && both;
    });
    const later = await until("on both sides sound and pictures go on", async () => {
        await troubles();
        const both = await look();
        const grew = (way, kind) => both.every((one, i) => one[way][kind] >= first[i][way][kind] + GROWTH_BYTES);
        const all = ["received", "sent"].every((way) => ["audio", "video"].every((kind) => grew(way, kind)));
        return all && both.every(({ pictures }, i) => pictures >= first[i].pictures + GROWTH_PICTURES) && both;
    });
    for (const { pair } of later) {
        same("the local end of the chosen pair", pair.local.type, "relay");
        same("the remote end of the chosen pair", pair.remote.type, "relay");
        const [from, to] = world.relayPorts;
        holds("the remote end is a port of the TURN server", pair.remote.port >= from && pair.remote.port <= to);
    }
    const [one, other] = later.map(({ pictures }) => pictures);
    return `relay/relay, ${one} and ${other} pictures shown`;
}
